"""Which tensors a model has, with their names, shapes and owners, from its spec alone.

The one place that says this: validation, loading and memory planning all ask it. It knows neither
files nor torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from janus_moe.families import find_family
from janus_moe.spec import WEIGHT_FORMATS, ModelSpec, Shape, WeightFormat

EXPERT_ROLES = ("expert_gate", "expert_up", "expert_down")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint and what it is held as.

    name: what the checkpoint calls it.
    shape: of its values.
    format: of the copy in memory, not of the file.
    """

    name: str
    shape: Shape
    format: WeightFormat

    @property
    def num_bytes(self) -> int:
        return self.format.num_bytes(self.shape)


class TensorTable:
    """Looks tensors up by role ("q", "expert_up"); roles are the keys of `Family.tensor_names`."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._names = find_family(spec.family).tensor_names
        self._shapes = _shapes(spec)
        self._attention = [kind.tensors(spec.hidden_size) for kind in spec.attention]

    def info(self, role: str, layer: int = 0, expert: int = 0) -> TensorInfo:
        """The tensor with this role in a layer, and of an expert where experts have one each."""
        name = self._names[role].format(layer=layer, expert=expert)
        shape = self._shapes.get(role) or self._attention_of(layer)[role]
        return TensorInfo(name, shape, self._format(role, shape))

    def global_roles(self) -> tuple[str, ...]:
        """What an attention instance holds beside its layers."""
        head = () if self._spec.tie_embeddings else ("lm_head",)
        return ("embed", "final_norm", *head)

    def layer_roles(self, layer: int) -> tuple[str, ...]:
        """What an attention instance holds of one layer."""
        roles = ("input_norm", "mlp_norm", *self._attention_of(layer))
        if self._spec.layers[layer].mlp == "dense":
            return (*roles, "dense_gate", "dense_up", "dense_down")
        if self._spec.moe.shared_intermediate_size:
            return (*roles, "shared_gate", "shared_up", "shared_down")
        return roles

    def router_roles(self) -> tuple[str, ...]:
        """What every expert instance holds of an MoE layer beside experts."""
        return ("router", "router_bias") if self._spec.moe.router.correction_bias else ("router",)

    def _attention_of(self, layer: int) -> dict[str, Shape]:
        return dict(self._attention[self._spec.layers[layer].attention])

    def _format(self, role: str, shape: Shape) -> WeightFormat:
        spec = self._spec
        if role in EXPERT_ROLES:
            return spec.expert_format
        if role == "router_bias":
            return WEIGHT_FORMATS["float32"]
        if role == "router":
            logits = spec.moe.router.logits_dtype
            return WEIGHT_FORMATS[spec.dtype if logits == "model" else logits]
        return WEIGHT_FORMATS[spec.dtype] if len(shape) == 1 else spec.weight_format


def attention_tensors(spec: ModelSpec) -> Iterator[TensorInfo]:
    """Everything one attention instance holds."""
    table = TensorTable(spec)
    yield from map(table.info, table.global_roles())
    for layer in range(spec.num_layers):
        for role in table.layer_roles(layer):
            yield table.info(role, layer)


def router_tensors(spec: ModelSpec) -> Iterator[TensorInfo]:
    """The gates of all MoE layers, which every expert instance holds."""
    table = TensorTable(spec)
    for layer in spec.moe_layer_ids:
        for role in table.router_roles():
            yield table.info(role, layer)


def expert_tensors(spec: ModelSpec, layer: int, experts: Iterable[int]) -> Iterator[TensorInfo]:
    """The weights of some experts of one layer."""
    table = TensorTable(spec)
    for expert in experts:
        for role in EXPERT_ROLES:
            yield table.info(role, layer, expert)


def all_tensors(spec: ModelSpec) -> Iterator[TensorInfo]:
    """Everything that any worker will need."""
    yield from attention_tensors(spec)
    yield from router_tensors(spec)
    for layer in spec.moe_layer_ids:
        yield from expert_tensors(spec, layer, range(spec.moe.num_experts))


def _shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Role -> shape of all that is no attention."""
    hidden, moe = spec.hidden_size, spec.moe
    shapes: dict[str, Shape] = {
        "embed": (spec.vocab_size, hidden),
        "lm_head": (spec.vocab_size, hidden),
        "router": (moe.num_experts, hidden),
        "router_bias": (moe.num_experts,),
    }
    shapes |= dict.fromkeys(("final_norm", "input_norm", "mlp_norm"), (hidden,))
    for mlp, width in (
        ("dense", spec.dense_intermediate_size),
        ("shared", moe.shared_intermediate_size),
        ("expert", moe.intermediate_size),
    ):
        shapes |= dict.fromkeys((f"{mlp}_gate", f"{mlp}_up"), (width, hidden))
        shapes[f"{mlp}_down"] = (hidden, width)
    return shapes
