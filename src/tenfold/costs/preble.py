"""What steps cost by Preble's published measurements (its repository, model_equations.py).

Milliseconds by tokens of a batch and of its contexts, fitted by its authors to SGLang with
FlashInfer, for Mistral-7B on an A6000 and an A100 and for Llama-3-70B on two A100 or H100. Read
here as follows. A step's chunks of prompts are taken as equally long. The quadratic that the A6000
has between 192 and 384 tokens is left out, because it falls below nothing there. The attention of
short requests, which the A100's formula adds once for each of them, is added once. Llama's formulas
are of one request; here a batch pays their constant once, and decode rows read keys and values at
the bandwidth of the devices, since the published slope is that of prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tenfold.costs.formula import Formula
from tenfold.costs.step import StepShape

LONG = 1024 * 1024
"""Chunk times context from which a prompt's attention counts by itself."""


@dataclass(slots=True)
class _Prompts:
    """A step's chunks: how many, the tokens of each, and how long its sequence is behind it."""

    count: int
    extend: float
    length: float

    @classmethod
    def of(cls, shape: StepShape) -> _Prompts:
        tokens = shape.prefill_tokens
        count = max(1, shape.sequences - shape.decode_rows) if tokens else 0
        if not count:
            return cls(0, 0.0, 0.0)
        return cls(count, tokens / count, shape.prefill_context / tokens + tokens / count)

    @property
    def long(self) -> bool:
        return self.extend * self.length > LONG


def _attention(context: float) -> float:
    return 0.32 if context <= 1024 else 1.86e-4 * context + 0.159


def _mistral_a6000(shape: StepShape) -> float:
    prompts = _Prompts.of(shape)
    tokens = shape.prefill_tokens + shape.decode_rows + shape.draft_tokens
    linear = max(22.0, 0.10842571 * tokens + 4.209777054806409)
    total = linear + _attention(shape.decode_context + prompts.count * prompts.length)
    if prompts.long:
        extend, length = prompts.extend, prompts.length
        one = 1.13e-3 * extend + 1.75e-3 * length + 2.19e-6 * extend * length
        total += prompts.count * one
    return total / 0.9


def _mistral_a100(shape: StepShape) -> float:
    prompts = _Prompts.of(shape)
    tokens = shape.prefill_tokens + shape.decode_rows + shape.draft_tokens
    if tokens >= 256:
        total = 0.05031337 * tokens + 5.505996896412796
    else:
        total = 10.5 if tokens >= 64 else 8.96
    if prompts.long:
        extend, length = prompts.extend, prompts.length
        one = 0.12386358 - 7.45358651e-4 * extend + 1.72022673e-3 * length
        total += prompts.count * (one + 1.36265841e-6 * extend * length)
        total += _attention(shape.decode_context)
    else:
        total += _attention(shape.decode_context + prompts.count * prompts.length)
    return total / 0.85


def _llama_70b(constant: float, extend: float, length: float, product: float, read: float) -> Ms:
    def milliseconds(shape: StepShape) -> float:
        prompts = _Prompts.of(shape)
        tokens = shape.prefill_tokens + shape.decode_rows + shape.draft_tokens
        total = constant + extend * tokens + read * shape.decode_context
        if prompts.count:
            total += prompts.count * prompts.length * (length + product * prompts.extend)
        return total

    return milliseconds


Ms = Callable[[StepShape], float]

_LLAMA_TOKEN = 2 * 80 * 8 * 128 * 2 / 2
"""Bytes of keys and values of a token on each of two devices."""

FORMULAS: Final[dict[str, Ms]] = {
    "preble-mistral-7b-a6000": _mistral_a6000,
    "preble-mistral-7b-a100": _mistral_a100,
    "preble-llama3-70b-2xa100": _llama_70b(
        28.931389307785594, 0.182233431, 4.00365142e-3, 2.55050069e-6, 1e3 * _LLAMA_TOKEN / 2.039e12
    ),
    "preble-llama3-70b-2xh100": _llama_70b(
        18.667307208113755, 0.0798791064, 2.68531603e-3, 7.44344923e-7, 1e3 * _LLAMA_TOKEN / 3.35e12
    ),
}


class Preble(Formula):
    """One of the published formulas by name. Raises KeyError for another."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._milliseconds = FORMULAS[name]

    def predict(self, shape: StepShape) -> float:
        return self._milliseconds(shape) / 1e3
