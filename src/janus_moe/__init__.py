"""Janus: MoE serving with attention and experts on separate worker pools.

`LLM` and `generate` complete prompts from Python; everything else is behind `janus serve`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from janus_moe.llm import LLM, Completion, generate

__version__ = "0.1.0"
__all__ = ["LLM", "Completion", "__version__", "generate"]


def __getattr__(name: str) -> Any:
    """Loads the Python API on first use, so that `janus --help` and `policy` stay light."""
    if name in ("Completion", "LLM", "generate"):
        from janus_moe import llm as offline

        return getattr(offline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
