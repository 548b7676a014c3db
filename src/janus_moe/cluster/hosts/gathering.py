"""From a cluster's settings to hosts that are there: listen, wait, and know what each has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from janus_moe.cluster.control_channel import ControlChannel
from janus_moe.cluster.deployment_plan import Host, plan_deployment
from janus_moe.cluster.host_facts import HostFacts, host_facts
from janus_moe.cluster.hosts.addresses import Address, require_own
from janus_moe.cluster.hosts.pool import HostPool
from janus_moe.cluster.hosts.secret import read_secret
from janus_moe.cluster.hosts.shares import HostShare, assign, parse_hosts
from janus_moe.config import ClusterConfig, EngineConfig
from janus_moe.errors import ConfigError

UNLIMITED = HostFacts(cores=1, free_bytes=2**60)


@dataclass(frozen=True, slots=True)
class Gathered:
    """All hosts of a run. pool: the other hosts. bind_host: where workers of this one listen."""

    hosts: tuple[Host, ...]
    pool: HostPool
    bind_host: str

    async def dismiss(self, error: str | None, timeout_s: float = 5.0) -> None:
        """Sends the hosts home before any worker was started; they are told why."""
        await self.pool.stop(error, timeout_s)
        self.pool.channel.close()


async def gather_hosts(
    config: EngineConfig, cluster: ClusterConfig, say: Callable[[str], None]
) -> Gathered | None:
    """Waits until every host has joined; None where this one is the only one.

    Raises ConfigError or CheckpointError before it waits for any host, HostLost naming those that
    have not joined within the startup timeout.
    """
    if cluster.hosts is None:
        return None
    shares = assign(config.shape, parse_hosts(cluster.hosts))
    names = [share.name for share in shares if not share.is_local]
    if not names:
        return None
    plan_deployment(config, [Host(share, UNLIMITED) for share in shares])
    address, secret = _listening(cluster)
    bind_host = _bind_host(address, shares)
    channel = ControlChannel.listen(address, secret, cluster.cluster_heartbeat_timeout)
    for name in names:
        say(f"on {name}: {_join_command(channel.endpoint, name, cluster.cluster_secret_file)}")
    pool = HostPool(channel, names, cluster.cluster_heartbeat_timeout, say)
    try:
        facts = {**await pool.joined(config.startup_timeout)}
    except BaseException as error:
        await Gathered((), pool, bind_host).dismiss(why(error))
        raise
    own = host_facts(config.device)
    hosts = tuple(Host(share, facts.get(share.name, own)) for share in shares)
    return Gathered(hosts, pool, bind_host)


def why(error: BaseException) -> str | None:
    """What hosts are told of an error; None for a stop by request."""
    return str(error) or type(error).__name__ if isinstance(error, Exception) else None


def _listening(cluster: ClusterConfig) -> tuple[Address, bytes]:
    if cluster.cluster_listen is None:
        raise ConfigError(
            "--hosts needs --cluster-listen ADDRESS:PORT, an address of this host that the other "
            "hosts can reach, such as 10.0.0.1:29500"
        )
    if cluster.cluster_secret_file is None:
        raise ConfigError(
            "--hosts needs --cluster-secret-file FILE with the secret that all hosts share; make "
            "one with `umask 077; openssl rand -hex 32 > FILE`"
        )
    address = Address.parse(cluster.cluster_listen, "--cluster-listen")
    return address, read_secret(cluster.cluster_secret_file, "--cluster-secret-file")


def _bind_host(address: Address, shares: Sequence[HostShare]) -> str:
    if not any(share.is_local for share in shares):
        return address.host  # no instance of this host listens
    return require_own(address.host, "--cluster-listen")


def _join_command(endpoint: str, name: str, secret_file: str | None) -> str:
    where = endpoint.removeprefix("tcp://")
    return f"janus worker --join {where} --name {name} --secret-file {secret_file}"
