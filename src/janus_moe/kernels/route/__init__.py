"""Top-k routing: which experts a token goes to and with what weight."""

from janus_moe.kernels.route.dispatch import route
from janus_moe.kernels.route.reference import route_reference, select

__all__ = ["route", "route_reference", "select"]
