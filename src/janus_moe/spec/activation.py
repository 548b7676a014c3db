"""Names of activation policies: how each activated expert of a batch is given to replicas.

This module does not know the rules themselves; they are in `policy.activation`.
"""

from __future__ import annotations

from typing import Literal

ExpertPolicy = Literal["exact", "aebs", "metro", "random"]
"""Policies that give all tokens of an expert to one replica."""

Policy = Literal[ExpertPolicy, "token-split"]
"""exact        greedy, then repaired until no assignment has a smaller maximum; the default
aebs         the greedy of Janus (arXiv 2512.13525): single replicas first, then the lightest holder
metro        the greedy of METRO (arXiv 2512.09277) in ascending order instead of a race
random       one replica per expert, by a hash of seed, expert and the activated set
token-split  EPLB's convention in vLLM: the (token, k) at flat position p uses replica p modulo
             the expert's replicas, whatever that activates
"""

ActivationPolicy = Literal[Policy, "token-aware"]
"""What `--activation-policy` takes; token-aware also needs to know what experts and tokens cost."""

DevicePolicy = Literal["exact", "aebs"]
"""Policies that also exist as a GPU kernel, in `kernels.activation_schedule`."""

ReplicaPolicy = Literal["exact", "random", "token-split"]
"""Policies whose a_max the planner has a formula for, in `planner.search.activation`."""
