"""`--cluster FILE.yaml`: hosts in a file, as settings. It does not know what starts there."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from janus_moe.cli.flags import Values, flag, read_yaml
from janus_moe.cluster.hosts.shares import parse_hosts, shape_of
from janus_moe.errors import ConfigError

KEYS = {
    "hosts": "hosts",
    "listen": "cluster_listen",
    "secret_file": "cluster_secret_file",
    "heartbeat_timeout": "cluster_heartbeat_timeout",
}


class ClusterFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hosts from a file, instead of the flags below."""

    cluster: Annotated[str | None, flag("hosts, listen and secret-file", metavar="FILE.yaml")] = (
        None
    )


def complete(values: Values) -> Values:
    """Returns settings with those of the cluster file under them, and the pool sizes they imply."""
    path = values.get("cluster")  # an empty one is refused with the struct
    return with_shape({**(read_cluster_file(path) if path else {}), **values})


def read_cluster_file(path: str) -> dict[str, Any]:
    """Returns settings by field name; `hosts` may be a list, or a mapping of names to counts."""
    content = read_yaml(path, "--cluster")
    if unknown := sorted(key for key in content if key not in KEYS):
        known = ", ".join(key.replace("_", "-") for key in KEYS)
        raise ConfigError(f"--cluster {path}: unknown {', '.join(unknown)}; keys are {known}")
    values = {KEYS[key]: value for key, value in content.items()}
    match values.get("hosts"):
        case list() as names:
            values["hosts"] = ",".join(map(str, names))
        case dict() as counts:
            pairs = [name if n is None else f"{name}={n}" for name, n in counts.items()]
            values["hosts"] = ",".join(pairs)
        case None:
            raise ConfigError(f"--cluster {path}: no hosts; write e.g. hosts: [a, b]")
    return values


def with_shape(values: Values) -> Values:
    """Adds the pool sizes that the hosts' counts add up to, where no setting gives them."""
    hosts = values.get("hosts")
    shape = shape_of(parse_hosts(hosts)) if isinstance(hosts, str) and hosts else None
    if shape is None:
        return dict(values)
    return {
        "attention_instances": shape.attention,
        "expert_instances": shape.expert,
        **values,
    }
