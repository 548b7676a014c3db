"""Says what to write instead of a flag that does not exist: the nearest one, or for a flag of vLLM
what does the same here."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import NamedTuple


class Counterpart(NamedTuple):
    """What corresponds to a flag of vLLM.

    flags: of Janus that do the same, without dashes; none means there is no such thing
    why: the rest of the sentence
    """

    flags: tuple[str, ...]
    why: str


_POOLS = Counterpart(
    ("attention-instances", "expert-instances"),
    "instances are whole and any number of each may serve",
)
_MICRO_BATCHES = Counterpart(("micro-batch-threshold",), "steps of so many tokens run in halves")
_NO_TLS = Counterpart((), "there is no TLS here; put a proxy in front")
_NO_TOOLS = Counterpart((), "there are no tool calls or reasoning parsers here")
_NO_LORA = Counterpart((), "there are no adapters here; merge them into the checkpoint")

VLLM: dict[str, Counterpart] = {
    "tensor-parallel-size": _POOLS,
    "tp": _POOLS,
    "pipeline-parallel-size": _POOLS,
    "pp": _POOLS,
    "data-parallel-size": Counterpart(
        ("attention-instances",), "each attention instance has requests of its own"
    ),
    "dp": Counterpart(("attention-instances",), "each attention instance has requests of its own"),
    "enable-expert-parallel": Counterpart(
        ("expert-instances",), "experts are always divided among the expert instances"
    ),
    "gpu-memory-utilization": Counterpart(
        ("kv-cache-memory-bytes",), "the KV cache has a size, not a share of the device"
    ),
    "num-gpu-blocks-override": Counterpart(("kv-cache-memory-bytes",), "it is given in bytes"),
    "kv-cache-dtype": Counterpart(("dtype",), "the KV cache has the dtype of the activations"),
    "quantization": Counterpart((), "quantised checkpoints are not served"),
    "load-format": Counterpart((), "checkpoints are safetensors, always"),
    "enforce-eager": Counterpart((), "nothing is captured or compiled per shape here"),
    "compilation-config": Counterpart((), "nothing is captured or compiled per shape here"),
    "trust-remote-code": Counterpart((), "code from a checkpoint is never run"),
    "enable-prefix-caching": Counterpart(("prefix-caching",), "write --prefix-caching on"),
    "no-enable-prefix-caching": Counterpart(("prefix-caching",), "write --prefix-caching off"),
    "enable-chunked-prefill": Counterpart(
        ("max-num-batched-tokens",), "prompts are always computed in chunks of what a step holds"
    ),
    "num-redundant-experts": Counterpart(("redundant-experts",), "per layer, over the whole pool"),
    "enable-eplb": Counterpart(("rebalance-interval",), "experts move every so many seconds"),
    "eplb-config": Counterpart(
        ("rebalance-interval", "redundant-experts"), "each has its own flag"
    ),
    "all2all-backend": Counterpart(("transport", "exchange"), "rows go to all expert instances"),
    "distributed-executor-backend": Counterpart(("hosts",), "other hosts join with `janus worker`"),
    "nnodes": Counterpart(("hosts",), "other hosts join with `janus worker`"),
    "enable-dbo": _MICRO_BATCHES,
    "dbo-decode-token-threshold": _MICRO_BATCHES,
    "swap-space": Counterpart((), "KV blocks are not swapped: preempted requests compute again"),
    "cpu-offload-gb": Counterpart((), "weights stay on the device they are computed on"),
    "speculative-config": Counterpart((), "there is no speculative decoding here"),
    "generation-config": Counterpart((), "sampling defaults are those of the API"),
    "override-generation-config": Counterpart((), "sampling defaults are those of the API"),
    "download-dir": Counterpart((), "the environment variable HF_HOME says where models are kept"),
    "revision": Counterpart((), "download the revision and give its folder as MODEL"),
    "enable-auto-tool-choice": _NO_TOOLS,
    "tool-call-parser": _NO_TOOLS,
    "reasoning-parser": _NO_TOOLS,
    "enable-lora": _NO_LORA,
    "lora-modules": _NO_LORA,
    "ssl-keyfile": _NO_TLS,
    "ssl-certfile": _NO_TLS,
    "disable-log-requests": Counterpart((), "requests are never logged"),
    "disable-log-stats": Counterpart((), "a line every ten seconds is all there is"),
}


def hint(name: str, known: Collection[str]) -> str:
    """Returns `name` and what to write instead.

    name: a flag with dashes, or a key of a settings file
    known: those that exist, written the same way
    """
    dashes = "--" if name.startswith("-") else ""
    bare = name.lstrip("-").replace("_", "-")
    if f"{dashes}{bare}" in known:
        return f"{name}; write {dashes}{bare}"
    if bare in VLLM:
        flags = [f"{dashes}{one}" for one in VLLM[bare].flags if f"{dashes}{one}" in known]
        if flags or not VLLM[bare].flags:
            use = f"use {' and '.join(flags)}: " if flags else ""
            return f"{name}; {use}{VLLM[bare].why}"
    near = difflib.get_close_matches(f"{dashes}{bare}", sorted(known), n=1, cutoff=0.6)
    return f"{name}; did you mean {near[0]}?" if near else name
