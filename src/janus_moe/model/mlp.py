"""The gated MLP of the attention side, of dense layers and shared experts.

It knows nothing of routing; the experts' MLPs are computed by a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from janus_moe.kernels.linear import linear
from janus_moe.kernels.swiglu import swiglu
from janus_moe.model.loading import Loader


@dataclass(frozen=True, slots=True)
class SwigluMlp:
    """An MLP that computes down(silu(gate(x)) * up(x)).

    gate_up: [2 * width, hidden], gate above up.
    down: [hidden, width].
    """

    gate_up: Tensor
    down: Tensor

    @classmethod
    def load(cls, loader: Loader, kind: str, layer: int) -> SwigluMlp:
        """The MLP of a layer.

        kind: "dense" or "shared".
        """
        gate_up = loader.rows((f"{kind}_gate", f"{kind}_up"), layer)
        return cls(gate_up, loader.tensor(f"{kind}_down", layer))

    def __call__(self, x: Tensor) -> Tensor:
        return linear(swiglu(linear(x, self.gate_up)), self.down)
