"""Janus: MoE serving with attention and experts on separate worker pools."""

__version__ = "0.1.0"
