"""What the faces (HTTP, in-process client) ask of the fleet, and what streams back.

Free of HTTP and of any JSON shape: floor 6 translates. Text, never raw model output, crosses here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tenfold.core.messages import ResidencyState
from tenfold.core.types import FinishReason, ModelFacts, SamplingParams, Usage


@dataclass(slots=True)
class ChatPrompt:
    """A conversation to render with the model's own template.

    ``messages`` are OpenAI-shaped dicts (role, content, tool_calls, …), already checked.
    ``tool_choice``: "auto", "none", "required" or a function's name.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class TextPrompt:
    """A prompt to continue as it is: text, or token ids."""

    text: str | list[int]


@dataclass(slots=True)
class GenerateRequest:
    """One call. ``timeout`` is seconds from now until the whole answer must be there. ``whole``:
    nobody looks at it before it is complete, so it may start anew when a worker dies.
    ``ttft_target`` and ``itl_target``: wished seconds to the first token and between tokens (TPOT);
    None takes the model's. ``keep_alive``: seconds that the model stays awake after it, below 0 for
    ever."""

    id: str
    model: str
    client: str
    prompt: ChatPrompt | TextPrompt
    sampling: SamplingParams
    priority: int = 0
    timeout: float | None = None
    cache_salt: str = ""
    itl_target: float | None = None
    ttft_target: float | None = None
    split_reasoning: bool = True
    whole: bool = False
    keep_alive: float | None = None


@dataclass(slots=True)
class ToolCallDelta:
    """Part of a tool call: ``id`` and ``name`` come once, ``arguments`` is a piece of JSON text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class LogprobEntry:
    """A chosen token with its text, bytes and log-probability, and its rivals."""

    token: str
    token_id: int
    bytes: list[int]
    logprob: float
    top: list[LogprobEntry] = field(default_factory=list)


@dataclass(slots=True)
class Delta:
    """New output of choice ``index``. ``token_ids``: the tokens behind it (text may lag). ``at``:
    when it was made, in seconds of the service's clock, if it was kept back since."""

    index: int
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[LogprobEntry] | None = None
    at: float | None = None


@dataclass(slots=True)
class ChoiceEnd:
    """Choice ``index`` is complete. ``stop_reason``: the stop string or stop id that ended it."""

    index: int
    finish: FinishReason | Literal["tool_calls"]
    stop_reason: str | int | None = None


@dataclass(slots=True)
class Finished:
    """The last thing of a stream.

    ``queue_seconds``: from arrival to the start of prefill; None where it is not known.
    """

    usage: Usage
    queue_seconds: float | None = None


GenerateEvent = Delta | ChoiceEnd | Finished


@dataclass(slots=True)
class EmbedResult:
    vectors: list[list[float]]
    prompt_tokens: int


ModelState = Literal["loading", "ready", "failed", "unloading"]


@dataclass(slots=True)
class ModelStatus:
    """One served model as the control plane sees it. ``device``: the first it belongs on;
    ``devices``: those that hold it now. ``residency``: where its weights are, by those devices; one
    that sleeps is "ready" all the same, because requests wake it, unless it is ``held``.
    ``limit_bytes`` and ``floor_bytes``: of its keys and values. ``migrations``: how often it
    moved to another device."""

    name: str
    state: ModelState
    device: str
    pinned: bool = False
    facts: ModelFacts | None = None
    has_chat_template: bool = False
    licence: str = ""
    created: int = 0
    error: str = ""
    devices: list[str] = field(default_factory=list)
    residency: dict[str, ResidencyState] = field(default_factory=dict)
    held: bool = False
    ttl: float | None = None
    floor_bytes: int = 0
    limit_bytes: int | None = None
    evict_cost: float = 1.0
    migrations: int = 0


@dataclass(slots=True)
class MemoryDecision:
    """A decision about memory that a device, or the fleet ("fleet"), took ``age`` seconds ago, and
    why. Kinds, pages and seconds are those of ``core.messages.Decision``."""

    device: str
    kind: str
    model: str
    why: str
    age: float
    pages: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class WorkerStatus:
    """One worker. ``state``: "away" while it starts, also after it died. ``draining``: it finishes
    what it has and gets nothing new. ``requests``: calls it has, ``pid``: 0 while it is away."""

    name: str
    state: Literal["up", "away"]
    draining: bool
    requests: int
    models: list[str]
    restarts: int
    pid: int
    capacity_bytes: int


RequestState = Literal["waiting", "running"]


@dataclass(slots=True)
class RequestInfo:
    """One live request, for the queue listings. ``age`` is seconds since it arrived."""

    id: str
    client: str
    model: str
    state: RequestState
    prompt_tokens: int = 0
    generated: int = 0
    age: float = 0.0
