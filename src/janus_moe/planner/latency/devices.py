"""What a device is on paper: memory, arithmetic, links. Facts with sources, no measurements.

This module knows no model and no operation.
"""

from __future__ import annotations

import msgspec

from janus_moe.errors import ConfigError
from janus_moe.planner.latency import facts
from janus_moe.planner.latency.precision import Arithmetic, arithmetic
from janus_moe.spec import FormatName, Spec


class DeviceProfile(Spec, frozen=True):
    """One device as an instance uses it.

    name: of its facts.
    title: what reports call it.
    memory_bytes: of the device.
    memory_bytes_per_s: reading from device memory.
    flops: arithmetic -> dense operations per second.
    intra_bytes_per_s: a link inside a node, per device, in one direction.
    inter_bytes_per_s: a link between nodes, per device, in one direction.
    intra_latency_s: of a message inside a node.
    inter_latency_s: of a message between nodes.
    launch_s: least time of any operation.
    gpus_per_node: devices of a node.
    sources: fact -> where it is from.
    price_per_hour: US dollars; None means unknown.
    """

    name: str
    title: str
    memory_bytes: int
    memory_bytes_per_s: float
    flops: dict[Arithmetic, float]
    intra_bytes_per_s: float
    inter_bytes_per_s: float
    intra_latency_s: float
    inter_latency_s: float
    launch_s: float
    gpus_per_node: int
    sources: dict[str, str]
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not value > 0:
                raise ConfigError(f"device {self.name}: {field.name} must be above 0, got {value}")
        if not self.flops.keys() & {"float32", "bfloat16"}:
            raise ConfigError(f"device {self.name}: flops needs float32 or bfloat16")

    def flops_for(self, weights: FormatName) -> float:
        """Operations per second with weights of this format."""
        return self.flops[arithmetic(weights, frozenset(self.flops))]


def device_names() -> tuple[str, ...]:
    """The devices with facts in this package."""
    return facts.names("devices")


def device_profile(name: str) -> DeviceProfile:
    """The device `name`; raises ConfigError that lists the known ones."""
    if name not in device_names():
        raise ConfigError(
            f"there is no device {name!r}; known are {', '.join(device_names())}. "
            "Use `janus profile` to measure another one"
        )
    profile: DeviceProfile = facts.load("devices", name, DeviceProfile)
    return profile
