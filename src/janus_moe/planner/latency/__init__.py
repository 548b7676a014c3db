"""The latency oracle: the only code that says how long something takes.

`Oracle` answers for a model on devices; `device_profile` and `find_model` are the facts it starts
from. Planner, simulator and the choice of an exchange ask it. It decides nothing, measures nothing
and imports no framework.
"""

from janus_moe.planner.latency.catalog import ServeSource, find_model, model_names, serve_source
from janus_moe.planner.latency.coefficients import Coefficients, OpLaw
from janus_moe.planner.latency.devices import DeviceProfile, device_names, device_profile
from janus_moe.planner.latency.estimate import Confidence, Estimate, weakest
from janus_moe.planner.latency.link_fit import (
    LinkFit,
    MeasuredExchange,
    exchange_seconds,
    fit_links,
)
from janus_moe.planner.latency.links import (
    ExchangeCounts,
    LinkModel,
    NodeLayout,
    all_to_all_counts,
    exchange_counts,
)
from janus_moe.planner.latency.oracle import Oracle
from janus_moe.planner.latency.pool_device import Overheads, PoolDevice
from janus_moe.planner.latency.profile import Profile, read_profile
from janus_moe.planner.latency.step import StepEstimate, StepLoad

__all__ = [
    "Coefficients",
    "Confidence",
    "DeviceProfile",
    "Estimate",
    "ExchangeCounts",
    "LinkFit",
    "LinkModel",
    "MeasuredExchange",
    "NodeLayout",
    "OpLaw",
    "Oracle",
    "Overheads",
    "PoolDevice",
    "Profile",
    "ServeSource",
    "StepEstimate",
    "StepLoad",
    "all_to_all_counts",
    "device_names",
    "device_profile",
    "exchange_counts",
    "exchange_seconds",
    "find_model",
    "fit_links",
    "model_names",
    "read_profile",
    "serve_source",
    "weakest",
]
