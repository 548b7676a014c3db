"""A small Qwen3-MoE for training on a CPU: forward, hand-written expert and loss gradients.

The arithmetic is that of `transformers.Qwen3MoeForCausalLM`; expert weights are stacked so that one
optimizer step covers all experts of a layer. Knows nothing of data, schedules, optimizers or files.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Expert spans are filled up to whole multiples: bfloat16 products are compiled anew for each shape.
ROW_MULTIPLE = 32


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network, named as in `Qwen3MoeConfig`."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    moe_intermediate_size: int = 64
    num_experts: int = 32
    num_experts_per_tok: int = 4
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048


class _CausalAttention(torch.autograd.Function):
    """Attention by whole score matrices: at these lengths, twice as fast as the tiled kernel."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: [batch * heads, length, head_dim], q already scaled; returns the like."""
        length = q.shape[1]
        mask = torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1)
        probs = torch.bmm(q, k.mT).add_(mask).softmax(-1)
        out = torch.bmm(probs, v)
        ctx.save_for_backward(q, k, v, probs, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        q, k, v, probs, out = ctx.saved_tensors
        grad_out: Tensor = grads[0]
        grad_v = torch.bmm(probs.mT, grad_out)
        row_sums = (grad_out * out).sum(-1, keepdim=True)
        grad_scores = torch.bmm(grad_out, v.mT).sub_(row_sums).mul_(probs)
        return torch.bmm(grad_scores, k), torch.bmm(grad_scores.mT, q), grad_v


class _RoutedExperts(torch.autograd.Function):
    """All experts of a layer over tokens sorted by expert; the loop is over experts, not tokens."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, expert_ids: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        """x: [tokens, hidden]; weights, expert_ids: [tokens, k].

        Returns [tokens, hidden] float32.
        """
        num_tokens, k = expert_ids.shape
        num_experts, hidden, inner = down.shape
        order = torch.argsort(expert_ids.reshape(-1), stable=True)
        counts = torch.bincount(expert_ids.reshape(-1), minlength=num_experts)
        padded = counts.add(ROW_MULTIPLE - 1).div(ROW_MULTIPLE, rounding_mode="floor")
        padded *= ROW_MULTIPLE
        shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
        row_of_sorted = torch.arange(order.numel()) + shift.repeat_interleave(counts)
        row_counts = padded.tolist()
        # Rows that fill a span up point at token 0 with weight 0, and so add nothing anywhere.
        token_of_row = torch.zeros(sum(row_counts), dtype=torch.int64)
        token_of_row[row_of_sorted] = order.div(k, rounding_mode="floor")
        row_weights = weights.new_zeros(sum(row_counts))
        row_weights[row_of_sorted] = weights.reshape(-1)[order]
        row_weights = row_weights.unsqueeze(1)
        row_of_entry = torch.empty_like(order)
        row_of_entry[order] = row_of_sorted
        rows = x.index_select(0, token_of_row)
        gate_up_out = rows.new_empty(len(rows), 2 * inner)
        for span, weight, result in zip(
            torch.split(rows, row_counts),
            gate_up,
            torch.split(gate_up_out, row_counts),
            strict=True,
        ):
            torch.mm(span, weight.T, out=result)
        gate, up = gate_up_out.chunk(2, dim=1)
        activated = F.silu(gate).mul_(up).mul_(row_weights)
        out = torch.empty_like(rows)
        for span, weight, result in zip(
            torch.split(activated, row_counts), down, torch.split(out, row_counts), strict=True
        ):
            torch.mm(span, weight.T, out=result)
        ctx.save_for_backward(
            rows, row_weights, gate_up_out, gate_up, down, row_of_entry, token_of_row
        )
        ctx.row_counts, ctx.k = row_counts, k
        per_choice = out.index_select(0, row_of_entry).view(num_tokens, k, hidden)
        return per_choice.sum(1, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        rows, row_weights, gate_up_out, gate_up, down, row_of_entry, token_of_row = (
            ctx.saved_tensors
        )
        _, hidden, inner = down.shape
        grad_out: Tensor = grads[0].to(rows.dtype)
        grad_rows_out = grad_out.index_select(0, token_of_row)
        grad_rows_out_spans = torch.split(grad_rows_out, ctx.row_counts)
        grad_weighted = rows.new_empty(len(rows), inner)
        for span, weight, result in zip(
            grad_rows_out_spans, down, torch.split(grad_weighted, ctx.row_counts), strict=True
        ):
            torch.mm(span, weight, out=result)
        gate, up = gate_up_out.chunk(2, dim=1)
        silu = F.silu(gate)
        activated = silu * up
        grad_row_weights = (grad_weighted * activated).sum(1, keepdim=True)
        grad_activated = grad_weighted.mul_(row_weights)
        grad_gate_up_out = torch.empty_like(gate_up_out)
        grad_gate = torch.ops.aten.silu_backward(grad_activated * up, gate)
        grad_gate_up_out[:, :inner] = grad_gate
        torch.mul(grad_activated, silu, out=grad_gate_up_out[:, inner:])
        grad_gate_up, grad_down = torch.zeros_like(gate_up), torch.zeros_like(down)
        weighted_spans = activated.mul_(row_weights).split(ctx.row_counts)
        for span, weighted, result in zip(
            grad_rows_out_spans, weighted_spans, grad_down, strict=True
        ):
            torch.mm(span.T, weighted, out=result)
        grad_rows = torch.empty_like(rows)
        for grad, row_span, weight, grad_weight, result in zip(
            torch.split(grad_gate_up_out, ctx.row_counts),
            torch.split(rows, ctx.row_counts),
            gate_up,
            grad_gate_up,
            torch.split(grad_rows, ctx.row_counts),
            strict=True,
        ):
            torch.mm(grad, weight, out=result)
            torch.mm(grad.T, row_span, out=grad_weight)
        num_tokens = grad_out.shape[0]
        k = ctx.k
        grad_x = grad_rows.index_select(0, row_of_entry).view(num_tokens, k, hidden).sum(1)
        grad_weights = grad_row_weights.index_select(0, row_of_entry).view(num_tokens, k)
        return grad_x, grad_weights, None, grad_gate_up, grad_down


class _TiedHeadLoss(torch.autograd.Function):
    """Mean cross-entropy under the tied head, in chunks that fit the cache.

    The gradients are made in the forward pass, while each chunk's probabilities are at hand.
    """

    CHUNK_TOKENS = 256

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        """x: [tokens, hidden]; head: [vocab, hidden]; targets: [tokens] int64.

        Returns a scalar, in nats per token.
        """
        num_tokens = x.shape[0]
        grad_x = torch.empty_like(x)
        grad_head = torch.zeros(head.shape, dtype=torch.float32)
        total = torch.zeros(())
        for start in range(0, num_tokens, _TiedHeadLoss.CHUNK_TOKENS):
            chunk = x[start : start + _TiedHeadLoss.CHUNK_TOKENS]
            target = targets[start : start + _TiedHeadLoss.CHUNK_TOKENS, None]
            grad = torch.mm(chunk, head.T).softmax(1)
            target_probs = grad.gather(1, target)
            total -= target_probs.float().clamp(min=1e-30).log().sum()
            grad.scatter_(1, target, target_probs - 1)
            grad_x[start : start + _TiedHeadLoss.CHUNK_TOKENS] = torch.mm(grad, head)
            grad_head += torch.mm(grad.T, chunk)
        ctx.save_for_backward(grad_x, grad_head)
        return total / num_tokens

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_x, grad_head = ctx.saved_tensors
        scale = grads[0] / len(grad_x)
        return grad_x * scale, grad_head * scale, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [batch, heads, length, head_dim]; cos, sin: [length, head_dim / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Layer(nn.Module):
    """One decoder layer; matrices are [out, in], expert matrices [experts, out, in]."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        c = self.config = config
        query_size = c.num_attention_heads * c.head_dim
        key_size = c.num_key_value_heads * c.head_dim
        self.input_norm = nn.Parameter(torch.ones(c.hidden_size))
        self.expert_norm = nn.Parameter(torch.ones(c.hidden_size))
        self.q_norm = nn.Parameter(torch.ones(c.head_dim))
        self.k_norm = nn.Parameter(torch.ones(c.head_dim))
        spread = 0.6 * c.hidden_size**-0.5
        self.q_proj = nn.Parameter(torch.randn(query_size, c.hidden_size) * spread)
        self.k_proj = nn.Parameter(torch.randn(key_size, c.hidden_size) * spread)
        self.v_proj = nn.Parameter(torch.randn(key_size, c.hidden_size) * spread)
        self.o_proj = nn.Parameter(torch.zeros(c.hidden_size, query_size))
        self.router = nn.Parameter(torch.randn(c.num_experts, c.hidden_size) * 0.02)
        inner = c.moe_intermediate_size
        self.gate_up = nn.Parameter(torch.randn(c.num_experts, 2 * inner, c.hidden_size) * spread)
        self.down = nn.Parameter(torch.randn(c.num_experts, c.hidden_size, inner) * 0.01)

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
        c = self.config
        batch, length, _ = x.shape
        normed = F.rms_norm(x, (c.hidden_size,), self.input_norm, c.rms_norm_eps).to(dtype)
        q, k, v = (
            F.linear(normed, w.to(dtype)).view(batch, length, -1, c.head_dim)
            for w in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = F.rms_norm(q.float(), (c.head_dim,), self.q_norm, c.rms_norm_eps).transpose(1, 2)
        k = F.rms_norm(k.float(), (c.head_dim,), self.k_norm, c.rms_norm_eps).transpose(1, 2)
        q, k = _rotate(q, cos, sin).to(dtype), _rotate(k, cos, sin).to(dtype)
        group = c.num_attention_heads // c.num_key_value_heads
        k = k.repeat_interleave(group, dim=1)
        v = v.transpose(1, 2).repeat_interleave(group, dim=1)
        out: Tensor = _CausalAttention.apply(  # type: ignore[no-untyped-call]
            (q * c.head_dim**-0.5).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        )
        out = out.view(batch, -1, length, c.head_dim).transpose(1, 2)
        return F.linear(out.reshape(batch, length, -1), self.o_proj.to(dtype))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x: [batch, length, hidden] float32.

        Returns the new x, the load-balancing loss (1 = even), and expert_ids: [tokens, k].
        """
        c = self.config
        x = x + self._attend(x, cos, sin, dtype)
        normed = F.rms_norm(x, (c.hidden_size,), self.expert_norm, c.rms_norm_eps)
        flat = normed.view(-1, c.hidden_size)
        probs = F.linear(flat, self.router).softmax(dim=-1)
        weights, expert_ids = probs.topk(c.num_experts_per_tok, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        counts = torch.bincount(expert_ids.reshape(-1), minlength=c.num_experts)
        balance = c.num_experts * (counts / counts.sum() * probs.mean(0)).sum()
        routed: Tensor = _RoutedExperts.apply(  # type: ignore[no-untyped-call]
            flat.to(dtype),
            weights.to(dtype),
            expert_ids,
            self.gate_up.to(dtype),
            self.down.to(dtype),
        )
        return x + routed.view_as(x), balance, expert_ids


class Network(nn.Module):
    """The whole model; `compute_dtype` is the type of the large products, all else is float32."""

    def __init__(self, config: NetworkConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.embedding = nn.Parameter(torch.randn(config.vocab_size, config.hidden_size) * 0.02)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.final_norm = nn.Parameter(torch.ones(config.hidden_size))
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        positions = torch.arange(config.max_position_embeddings, dtype=torch.float32)
        angles = torch.outer(positions, config.rope_theta**-half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def hidden_states(self, tokens: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """tokens: [batch, length] int64.

        Returns the normed last hidden states [batch, length, hidden], the mean load-balancing loss,
        and per layer expert_ids: [batch * length, k].
        """
        length = tokens.shape[1]
        cos, sin = self.get_buffer("cos")[:length], self.get_buffer("sin")[:length]
        x = F.embedding(tokens, self.embedding)
        balances: list[Tensor] = []
        routes: list[Tensor] = []
        for layer in self.layers:
            x, balance, expert_ids = layer(x, cos, sin, self.compute_dtype)
            balances.append(balance)
            routes.append(expert_ids)
        size = (self.config.hidden_size,)
        x = F.rms_norm(x, size, self.final_norm, self.config.rms_norm_eps)
        return x, torch.stack(balances).mean(), routes

    def loss(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Mean cross-entropy in nats per token, mean load-balancing loss, expert_ids per layer."""
        x, balance, routes = self.hidden_states(tokens)
        dtype = self.compute_dtype
        mean: Tensor = _TiedHeadLoss.apply(  # type: ignore[no-untyped-call]
            x.flatten(0, 1).to(dtype), self.embedding.to(dtype), targets.reshape(-1)
        )
        return mean, balance, routes

    def logits(self, tokens: Tensor) -> Tensor:
        """[batch, length, vocab] float32."""
        x, _, _ = self.hidden_states(tokens)
        return F.linear(x.to(self.compute_dtype), self.embedding.to(self.compute_dtype)).float()
