"""The bundled model: weights, configuration and tokenizer, in the Hugging Face Qwen3-MoE layout.

This module says where the files are; it reads none of them.
"""

from __future__ import annotations

from pathlib import Path

BUNDLED = "bundled"
"""The name that stands for this model."""

BUNDLED_FOLDER = Path(__file__).parent
