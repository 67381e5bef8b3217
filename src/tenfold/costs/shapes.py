"""Shapes of published models by name, for simulations and plans. From their configuration files.

Knows no device.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tenfold.core.errors import ConfigError


class Shape(NamedTuple):
    """``heads``: of queries. Weights of 16 bits."""

    parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


SHAPES: Final[dict[str, Shape]] = {
    "smollm2-135m": Shape(134.5e6, 30, 9, 3, 64),
    "gemma3-270m": Shape(268.1e6, 18, 4, 1, 256),
    "llama3.2-1b": Shape(1.236e9, 16, 32, 8, 64),
    "qwen2.5-1.5b": Shape(1.544e9, 28, 12, 2, 128),
    "gemma2-2b": Shape(2.614e9, 26, 8, 4, 256),
    "llama3.2-3b": Shape(3.213e9, 28, 24, 8, 128),
    "mistral-7b": Shape(7.248e9, 32, 32, 8, 128),
    "qwen2.5-7b": Shape(7.616e9, 28, 28, 4, 128),
    "llama3.1-8b": Shape(8.03e9, 32, 32, 8, 128),
    "qwen2.5-14b": Shape(14.77e9, 48, 40, 8, 128),
    "gemma2-27b": Shape(27.23e9, 46, 32, 16, 128),
    "qwen2.5-32b": Shape(32.76e9, 64, 40, 8, 128),
    "llama3.1-70b": Shape(70.55e9, 80, 64, 8, 128),
}


def shape(name: str) -> Shape:
    """Raises ConfigError for a name that is none."""
    if name not in SHAPES:
        raise ConfigError(f"no shape is named {name!r}; there are: {', '.join(SHAPES)}")
    return SHAPES[name]
