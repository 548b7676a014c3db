"""Every error Janus raises on purpose. Messages say what is wrong, with the values, and what to do.

JanusError
|-- ConfigError            a setting or a combination of settings cannot be met
|-- CheckpointError        a checkpoint is missing something, damaged or unsupported
|-- RequestError           one request is invalid; the service is fine
|-- ConflictError          the service is not in a state to do this now
|-- OverloadedError        the service is full; try again later
|-- ServiceError           the service cannot answer any request
|   |-- WorkerDied         a worker process ended while it was needed
|   |-- HostLost           a host of the cluster is gone or never came
|   `-- WorkerFailed       a worker reported an error it cannot recover from
`-- ExchangeError          the pools could not exchange activations
    |-- ExchangeTimeout    a peer did not answer before the deadline
    |-- PeerLost           a peer's connection closed; its process or host is gone
    |-- ExchangeClosed     the transport was closed while waiting
    |   `-- ExchangeEnded  all attention instances have left the exchange
    `-- RoutingDivergence  expert instances disagreed on the routing of one batch
"""

from __future__ import annotations


class JanusError(Exception):
    """Base of all deliberate errors."""


class ConfigError(JanusError):
    """A setting, or a combination of settings, cannot be met."""


class CheckpointError(JanusError):
    """A checkpoint is missing something, damaged or of an unsupported kind."""


class RequestError(JanusError):
    """One request is invalid. `param` names the offending field where there is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ConflictError(JanusError):
    """The service is not in a state to do what was asked; it may be later."""


class OverloadedError(JanusError):
    """The service is full; the same request may succeed in `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServiceError(JanusError):
    """The service cannot answer any request; `retry_after_s` says when it may, None: not known."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WorkerDied(ServiceError):
    """A worker process ended while it was needed."""


class HostLost(ServiceError):
    """A host of the cluster is gone, or never came; the message names it and its instances."""


class WorkerFailed(ServiceError):
    """A worker reported an error it cannot recover from."""


class ExchangeError(JanusError):
    """The pools could not exchange activations."""


class ExchangeTimeout(ExchangeError):
    """A peer did not answer before the deadline; the message names peer, layer and stage."""

    def __init__(self, *, peer: str, stage: str, step: int, layer: int, waited_s: float) -> None:
        super().__init__(
            f"{peer} did not answer within {waited_s:.1f} s "
            f"(stage {stage}, step {step}, layer {layer}); "
            "look at that worker's log, or raise --exchange-timeout if it is only slow"
        )
        self.peer = peer
        self.stage = stage
        self.step = step
        self.layer = layer
        self.waited_s = waited_s


class PeerLost(ExchangeError):
    """A peer's connection closed without a word; the message names peer, layer and stage."""

    def __init__(self, *, peer: str, stage: str, step: int, layer: int) -> None:
        super().__init__(
            f"{peer} is gone: its connection closed (stage {stage}, step {step}, layer {layer}); "
            "look at that worker's log and whether its host can be reached"
        )
        self.peer = peer
        self.stage = stage
        self.step = step
        self.layer = layer


class ExchangeClosed(ExchangeError):
    """The transport was closed while an instance waited on it."""


class ExchangeEnded(ExchangeClosed):
    """All attention instances have left the exchange, so no step will come any more."""


class RoutingDivergence(ExchangeError):
    """Expert instances disagreed on the routing of one batch, so their sums cannot be trusted."""
