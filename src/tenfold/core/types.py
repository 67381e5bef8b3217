"""Requests, sampling settings and what comes back: the plain data that every floor shares.

Slotted dataclasses of plain values, so that they cross a process border as they are. No pydantic:
checking what a user typed is the business of the edges.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from tenfold.core.errors import InvalidRequest

FinishReason = Literal["stop", "length", "abort", "error"]
"""stop: an end-of-sequence id, stop id, stop string or finished grammar; length: a token limit."""

ConstraintKind = Literal["json_object", "json_schema", "regex", "grammar"]


@dataclass(slots=True, frozen=True)
class Constraint:
    """What the output must match. ``text``: the JSON schema, the regex, or the Lark grammar."""

    kind: ConstraintKind
    text: str = ""


@dataclass(slots=True)
class SamplingParams:
    """How tokens are chosen. vLLM's names where the meaning is the same.

    ``temperature`` 0 is greedy. ``top_k`` 0 (or -1) and ``top_p`` 1 are off. ``seed`` None draws a
    fresh one. ``logprobs`` None is off; k >= 0 returns the chosen token's log-probability and the k
    most likely ones. ``max_tokens`` None runs to the end of the context.
    """

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    ignore_eos: bool = False
    constraint: Constraint | None = None

    def check(self) -> None:
        """Raises InvalidRequest, naming the field, for a value outside its range."""
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidRequest(
                    f"{name} is {value}; it must lie between {low:g} and {high:g}", param=name
                )


_RANGES = (
    ("n", 1, 1 << 16),
    ("max_tokens", 1, inf),
    ("min_tokens", 0, inf),
    ("temperature", 0.0, 1e6),
    ("top_p", 1e-9, 1.0),
    ("top_k", -1, inf),
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -1e3, 1e3),
    ("frequency_penalty", -1e3, 1e3),
    ("repetition_penalty", 1e-6, 1e3),
    ("logprobs", 0, inf),
)
"""The widest range in which a setting means something; the HTTP face is stricter (OpenAI's)."""


@dataclass(slots=True)
class TokenLogprob:
    """Log-probability of a chosen token, and of the most likely ones as (token id, logprob)."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(slots=True)
class EngineRequest:
    """One sequence to generate: what a worker's inbox receives.

    ``arrival`` and ``deadline`` are seconds of the host's monotonic clock. Smaller ``priority``
    runs first. ``namespace`` keys the prefix cache (adapter, tenant salt): equal tokens in two
    namespaces never share blocks. ``itl_target`` is the wished seconds between tokens (TPOT),
    ``ttft_target`` those from arrival to the first; None takes the model's. ``keep_alive``: seconds
    that the model stays awake after this request, below 0 for ever; None leaves that as it is.
    ``continued``: the last so many tokens of ``prompt`` are its own answer so far, made by another
    worker; what counts answers (limits, penalties, draws, grammars) goes on behind them.
    """

    id: str
    model: str
    client: str
    prompt: list[int]
    sampling: SamplingParams
    arrival: float
    namespace: str = ""
    priority: int = 0
    deadline: float | None = None
    itl_target: float | None = None
    ttft_target: float | None = None
    keep_alive: float | None = None
    continued: int = 0


@dataclass(slots=True)
class Usage:
    """Token counts of one request. ``cached_tokens``: prompt tokens taken from the prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


KVDtype = Literal["f32", "f16", "bf16", "int8"]
"""How keys and values are kept. int8: a code per value, and one float32 scale for each row of
``head_dim`` of them; the others are plain storage."""


@dataclass(slots=True)
class KVGroup:
    """Layers of one model whose keys and values live in blocks together.

    A model has one group of global-attention layers and, where it has sliding layers, one more with
    their ``window`` in tokens. ``layers`` are the model's own layer numbers. A *row* is one token's
    key, or value, of one head.
    """

    name: str
    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    window: int | None = None
    dtype: KVDtype = "f32"

    @property
    def row_bytes(self) -> int:
        if self.dtype == "int8":
            return self.head_dim + 4
        return self.head_dim * (4 if self.dtype == "f32" else 2)

    def block_bytes(self, block_tokens: int) -> int:
        """Bytes of one block: keys and values of ``block_tokens`` tokens in each of its layers."""
        return len(self.layers) * 2 * self.kv_heads * block_tokens * self.row_bytes


ModelKind = Literal["generate", "embed"]


@dataclass(slots=True)
class ModelFacts:
    """What the control plane needs to know of a loaded model."""

    name: str
    kind: ModelKind
    family: str
    context_length: int
    vocab_size: int
    hidden_size: int
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    eos_ids: list[int] = field(default_factory=list)
