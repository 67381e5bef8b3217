"""What a worker is told (commands) and what it says (events).

Plain dataclasses; ``core.wire`` turns them into bytes. An in-process engine passes them on as is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tenfold.core.settings import Share, Speculation
from tenfold.core.types import EngineRequest, FinishReason, KVDtype, ModelFacts, TokenLogprob


@dataclass(slots=True)
class ModelOptions:
    """Per-model settings a worker needs to load it. None means the device's default."""

    context_length: int | None = None
    kv_limit_bytes: int | None = None
    policy: str | None = None
    kv_dtype: KVDtype | None = None
    speculation: Speculation | None = None
    ttft_target: float | None = None
    tpot_target: float | None = None
    pinned: bool = False
    ttl: float | None = None
    floor_bytes: int = 0
    evict_cost: float = 1.0
    asleep: bool = False


# --- commands -----------------------------------------------------------------------------------
@dataclass(slots=True)
class LoadModel:
    name: str
    path: str
    options: ModelOptions = field(default_factory=ModelOptions)


@dataclass(slots=True)
class UnloadModel:
    """Running requests of the model fail with Unavailable; its pages go back."""

    name: str


@dataclass(slots=True)
class Generate:
    request: EngineRequest


@dataclass(slots=True)
class Embed:
    """``prompts``: token ids of each text. Answered by one Embedded or RequestFailed.
    ``keep_alive`` as of an EngineRequest."""

    id: str
    model: str
    prompts: list[list[int]]
    keep_alive: float | None = None


@dataclass(slots=True)
class Abort:
    """Stop a request, whatever its state. Unknown ids are ignored: aborting is idempotent."""

    request_id: str


@dataclass(slots=True)
class SleepModel:
    """Take a model's weights out of the device's memory, once it has nothing under way (``force``:
    at once; what runs waits, and is computed again). ``to``: "host" keeps them where they come back
    from fast, "cold" leaves them on disk only. A request for it wakes it, unless ``hold`` is set:
    then it sleeps until WakeModel. Answered by ModelMoved, also where there was nothing to do."""

    name: str
    to: Literal["host", "cold"] = "host"
    force: bool = False
    hold: bool = False


@dataclass(slots=True)
class WakeModel:
    """Bring a model's weights back. Answered by ModelMoved."""

    name: str


@dataclass(slots=True)
class SetResidency:
    """Change what a model may hold. None leaves a value as it is; ``limit_bytes`` (keys and values)
    and ``ttl`` below 0 lift theirs. A model above a new limit shrinks within ``shrink_seconds``."""

    name: str
    pinned: bool | None = None
    ttl: float | None = None
    floor_bytes: int | None = None
    limit_bytes: int | None = None
    evict_cost: float | None = None


@dataclass(slots=True)
class AskDecisions:
    """Answered by one DecisionReport: the latest ``most`` decisions about memory, newest first."""

    id: str
    most: int = 100


@dataclass(slots=True)
class AskStats:
    id: str


@dataclass(slots=True)
class SetShares:
    """The whole tree of shares, in place of the one before. Clients that are not named have weight
    1 at the top."""

    shares: list[Share] = field(default_factory=list)


@dataclass(slots=True)
class AskSchedule:
    """Answered by one ScheduleReport. ``most``: waiting requests to describe, of each model."""

    id: str
    most: int = 20


@dataclass(slots=True)
class AskPrefixes:
    """Answered by one PrefixUpdate of each generating model, with everything it caches. From then
    on the worker sends its changes, too."""


@dataclass(slots=True)
class Shutdown:
    pass


Command = (
    LoadModel
    | UnloadModel
    | Generate
    | Embed
    | Abort
    | AskStats
    | SetShares
    | AskSchedule
    | AskPrefixes
    | SleepModel
    | WakeModel
    | SetResidency
    | AskDecisions
    | Shutdown
)


# --- events -------------------------------------------------------------------------------------
@dataclass(slots=True)
class WorkerUp:
    """First event of a worker: it can take commands."""

    device: str
    pid: int
    capacity_bytes: int
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class WorkerRefused:
    """In place of WorkerUp: this device cannot be had with these settings. The worker ends."""

    device: str
    code: str
    message: str


@dataclass(slots=True)
class ModelUp:
    facts: ModelFacts
    seconds: float


@dataclass(slots=True)
class ModelDown:
    """The model is unloaded, or (``code``, ``message`` set) could not be loaded."""

    name: str
    code: str = ""
    message: str = ""


ResidencyState = Literal["cold", "host", "waking", "resident"]
"""Where a model's weights are: on disk; in the host's memory; on their way; in the device's."""


@dataclass(slots=True)
class ModelMoved:
    """A model's weights came or went. ``seconds``: what that took. ``error``: why it did not happen
    (``code`` as of RequestFailed), the state then being what it was."""

    name: str
    state: ResidencyState
    seconds: float = 0.0
    why: str = ""
    code: str = ""
    error: str = ""


@dataclass(slots=True)
class Decision:
    """One decision about memory or turns, and why. ``at``: seconds of the host's monotonic clock.
    ``kind``: "wake", "sleep", "pause", "limit", "drain", "migrate", or a rung of the ladder.
    ``pages``: what moved; ``seconds``: what it took."""

    at: float
    kind: str
    model: str
    why: str
    pages: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class DecisionReport:
    """``now``: by the clock of ``Decision.at``, when this was said; 0: by the asking host's."""

    id: str
    device: str
    decisions: list[Decision] = field(default_factory=list)
    now: float = 0.0


@dataclass(slots=True)
class TokenOutput:
    """New tokens of one request after a step. ``finish`` set: this is its last output.

    ``logprobs`` has one entry a token when the request asked for them. ``cached_tokens`` is set on
    the first output. Times are seconds of the host's monotonic clock.
    """

    request_id: str
    token_ids: list[int]
    finish: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None
    cached_tokens: int = 0


@dataclass(slots=True)
class RequestStarted:
    """A request left the queue for the first time: its prefill begins."""

    request_id: str
    at: float
    cached_tokens: int


@dataclass(slots=True)
class StepDone:
    """Everything one step of one model produced: one message a step, however many requests."""

    model: str
    at: float
    started: list[RequestStarted] = field(default_factory=list)
    outputs: list[TokenOutput] = field(default_factory=list)


@dataclass(slots=True)
class RequestFailed:
    request_id: str
    code: str
    message: str
    param: str | None = None


@dataclass(slots=True)
class Embedded:
    """``vectors``: one row of floats a prompt, unit length."""

    id: str
    vectors: list[list[float]]
    prompt_tokens: int


@dataclass(slots=True)
class PrefixUpdate:
    """What changed in a model's prefix tree since the update before, ``number`` - 1.

    Prefixes are named by the chained hashes of their blocks (``kvcache.hashing``). ``inserted``:
    runs of blocks that are new, each after the hash of the block before it (0: the prompt's start);
    ``evicted``: blocks that are gone, none of which has a cached block behind it. ``whole``: this
    is everything that is cached, whatever was told before.
    """

    model: str
    number: int
    inserted: list[tuple[int, list[int]]] = field(default_factory=list)
    evicted: list[int] = field(default_factory=list)
    whole: bool = False


@dataclass(slots=True)
class ClientStats:
    """What one client got of a device, and where its account stands.

    ``service``: weighted tokens computed for it; ``asked_service``: with every prompt token
    counted, cached ones too (what the client sees). ``credit``: its deficit counter, what was
    admitted and not computed already taken off; ``rounds``: refills so far. ``drift``: how far its
    service is from its share since it last had nothing to do, ``bound``: the most that the theorem
    allows. ``fair``: the part of the device (0 to 1) that is its share among those that have work
    now; 0 where it has none.
    """

    client: str
    service: float = 0.0
    asked_service: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    waiting: int = 0
    running: int = 0
    oldest_wait: float = 0.0
    credit: float = 0.0
    rounds: int = 0
    drift: float = 0.0
    bound: float = 0.0
    fair: float = 0.0


@dataclass(slots=True)
class QueuePlace:
    """A waiting request as its policy sees it. ``why``: in words, what it waits for, or why it was
    chosen."""

    request_id: str
    client: str
    prompt_tokens: int
    matched_tokens: int
    waited: float
    why: str


@dataclass(slots=True)
class ModelSchedule:
    """``chosen``: the latest admissions, newest first; ``next``: the queue, in order."""

    model: str
    policy: str
    chosen: list[QueuePlace] = field(default_factory=list)
    next: list[QueuePlace] = field(default_factory=list)
    waiting: int = 0


@dataclass(slots=True)
class ScheduleReport:
    id: str
    device: str
    models: list[ModelSchedule] = field(default_factory=list)


@dataclass(slots=True)
class ModelStats:
    """One model's gauges and counters since it was loaded."""

    name: str
    state: str
    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0
    weight_pages: int = 0
    kv_pages: int = 0
    kv_blocks_used: int = 0
    kv_blocks_cached: int = 0
    kv_blocks_total: int = 0
    step_seconds: float = 0.0
    predicted_seconds: float = 0.0
    schedule_seconds: float = 0.0
    """Deciding steps and booking what they computed; the next three are parts of step_seconds."""
    kernel_seconds: float = 0.0
    sampling_seconds: float = 0.0
    launch_seconds: float = 0.0
    """Inside steps, between operations: preparing inputs, calling kernels."""
    residency: ResidencyState = "resident"
    pinned: bool = False
    limit_pages: int | None = None
    """Most pages for weights, keys and values together."""
    floor_pages: int = 0
    image_pages: int = 0
    """What its weights take when it is awake."""
    cached_pages: int = 0
    """Of ``kv_pages``, those that hold nothing but cached prefixes."""
    kv_token_rate: float = 0.0
    """Prompt tokens admitted and tokens generated, a second, over the placement's window."""
    ttft_met: int = 0
    ttft_missed: int = 0
    tpot_met: int = 0
    tpot_missed: int = 0
    """Finished requests that had a target, and kept or missed it."""
    both_met: int = 0
    deferred: int = 0
    """Waiting requests that cannot be on time any more, or make too many others late."""
    idle_seconds: float = 0.0
    wakes: int = 0
    sleeps: int = 0
    wake_seconds: float = 0.0
    """Of the last wake, until the weights were there."""
    held: bool = False
    """It sleeps until WakeModel, whoever asks for it."""
    sleeps_in: float | None = None
    """Seconds until it sleeps for want of work (ttl, keep_alive); None: no time is set."""


@dataclass(slots=True)
class Spread:
    """Of the latest calls, by page: how many in all since the start, and percentiles in seconds."""

    count: int = 0
    p50: float = 0.0
    p99: float = 0.0


@dataclass(slots=True)
class DeviceStats:
    """A worker's whole state at a moment. Pages are physical; ``capacity_pages`` is the budget."""

    id: str
    device: str
    page_bytes: int
    capacity_pages: int
    mapped_pages: int
    reserved_pages: int
    resident_bytes: int
    models: list[ModelStats] = field(default_factory=list)
    integrity: list[str] = field(default_factory=list)
    message_seconds: float = 0.0
    """Spent sending events since the worker started."""
    scratch_pages: int = 0
    """Of the mapped ones: for the results of steps, whichever model's."""
    clients: list[ClientStats] = field(default_factory=list)
    rounds: int = 0
    """Refills of deficit counters at the top of the tree of shares."""
    live_kv_bytes: int = 0
    """Keys and values that sequences or the prefix cache hold; mapped pages hold more."""
    map_seconds: Spread = field(default_factory=Spread)
    unmap_seconds: Spread = field(default_factory=Spread)
    pressure: float = 0.0
    """Prism's KV-pressure ratio of this device, over the placement's window."""
    virtual_bytes: int = 0
    """Addresses that models' weights, keys and values have, mapped or not."""
    decided: dict[str, int] = field(default_factory=dict)
    """Decisions about memory so far, by their kind."""


Event = (
    WorkerUp
    | WorkerRefused
    | ModelUp
    | ModelDown
    | StepDone
    | RequestFailed
    | Embedded
    | DeviceStats
    | PrefixUpdate
    | ScheduleReport
    | ModelMoved
    | DecisionReport
)
