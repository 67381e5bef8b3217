"""Tables of cosines and sines for rotary positions, grown as longer sequences appear.

Frequencies are float32 and follow the published formulas in the order that the models were trained
with, because at position 30,000 the last bit of a frequency is visible. P positions, D head dim.
Knows nothing of which layer uses which table.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tenfold.models.spec import RopeSpec

_BLOCK_ELEMENTS = 16384
"""Rows are made in blocks of this size. torch shares larger ones among threads, and an element at
the edge of a share takes another code path and another last bit: a row would depend on when, and on
how many cores, its table grew."""


class RopeTable:
    """``cos`` and ``sin`` (P, D/2), float32, for every position asked for so far.

    A row never changes once it is there. Made on the CPU, kept on ``device``. Not thread-safe: one
    forward pass at a time.
    """

    def __init__(
        self, spec: RopeSpec, head_dim: int, context: int, device: torch.device | str = "cpu"
    ) -> None:
        self._frequencies, self._scale = inverse_frequencies(spec, head_dim)
        self._context = context
        self._block = _BLOCK_ELEMENTS // (head_dim // 2)
        self._device = device
        self.cos = torch.empty(0, head_dim // 2, device=device)
        self.sin = torch.empty(0, head_dim // 2, device=device)
        self.ensure(0)

    def ensure(self, position: int) -> None:
        """Make the tables cover ``position``, at least doubling them if they do not."""
        if position < len(self.cos):
            return
        rows = max(position + 1, min(2 * len(self.cos), self._context))
        cos, sin = [self.cos], [self.sin]
        for start in range(len(self.cos), rows, self._block):
            positions = torch.arange(start, start + self._block, dtype=torch.float32)
            angles = positions[:, None] * self._frequencies
            cos.append((angles.cos() * self._scale).to(self._device))
            sin.append((angles.sin() * self._scale).to(self._device))
        self.cos, self.sin = torch.cat(cos), torch.cat(sin)


def inverse_frequencies(spec: RopeSpec, head_dim: int) -> tuple[Tensor, float]:
    """Radians per position of each pair (D/2), and a factor for both cosine and sine."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    powers = spec.base**exponents
    plain = 1.0 / powers
    match spec.scaling:
        case "linear":
            return plain / spec.factor, 1.0
        case "factors":
            return plain / torch.tensor(spec.factors, dtype=torch.float32), 1.0
        case "llama3":
            return _llama3(spec, plain), 1.0
        case "yarn":
            return _yarn(spec, powers, head_dim)
        case _:
            return plain, 1.0


def _llama3(spec: RopeSpec, plain: Tensor) -> Tensor:
    """Llama 3.1: long wavelengths are stretched, short ones kept, a ramp between (its release)."""
    wavelength = 2 * math.pi / plain
    stretched = plain / spec.factor
    ramp = (spec.original_context / wavelength - spec.low_freq_factor) / (
        spec.high_freq_factor - spec.low_freq_factor
    )
    mixed = (1 - ramp) * stretched + ramp * plain
    long = wavelength > spec.original_context / spec.low_freq_factor
    short = wavelength < spec.original_context / spec.high_freq_factor
    return torch.where(long, stretched, torch.where(short, plain, mixed))


def _yarn(spec: RopeSpec, powers: Tensor, head_dim: int) -> tuple[Tensor, float]:
    """YaRN (Peng et al.) §3.2 by parts, §3.4 for the attention temperature."""

    def pair_at(rotations: float) -> float:
        turns = spec.original_context / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(spec.base))

    low = max(math.floor(pair_at(spec.beta_fast)), 0)
    high = min(math.ceil(pair_at(spec.beta_slow)), head_dim - 1)
    span = high - low or 0.001
    pairs = torch.arange(head_dim // 2, dtype=torch.float32)
    keep = 1 - ((pairs - low) / span).clamp(0, 1)
    frequencies = 1.0 / (spec.factor * powers) * (1 - keep) + 1.0 / powers * keep
    temperature = spec.attention_factor or (
        1.0 if spec.factor <= 1 else 0.1 * math.log(spec.factor) + 1.0
    )
    return frequencies, temperature
