"""Measuring a model on this machine for the latency oracle: operations alone, then live."""

from janus_moe.profiling.plan import ProfilePlan, plan_profile
from janus_moe.profiling.run import run_profile

__all__ = ["ProfilePlan", "plan_profile", "run_profile"]
