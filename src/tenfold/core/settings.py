"""What a device's worker is set up with. Plain values; ``core.config`` makes them from TOML."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from tenfold.core.types import KVDtype

Speculation = Literal["off", "ngram", "auto"]

MemoryMode = Literal["elastic", "static", "quota", "swap", "ttl", "cold"]
"""How models share a device's memory; ``scheduling.residency`` has a file for each."""

Rung = Literal["reserved", "idle-prefixes", "prefixes", "admission", "preempt", "weights"]
"""What is taken back when pages are short, one step of the ladder each."""

LADDER: tuple[Rung, ...] = (
    "reserved",
    "idle-prefixes",
    "prefixes",
    "admission",
    "preempt",
    "weights",
)


@dataclass(slots=True)
class ScheduleSettings:
    """How a device shares itself between clients. What is not about fairness is ``policy``'s own.

    ``quantum``: service that a round gives a client of weight 1 (Q^u of DLPM), in units of one
    prompt token computed at ``extend_weight`` 1; an output token counts ``output_weight``.
    ``admission``: "reserve" keeps memory for every running request's whole output, as the bounds of
    the papers need; "optimistic" admits what fits now and preempts. ``idle_debt``: "keep" has a
    client that went away repay what it owes; "forget" is the paper's literal reading, which can be
    exploited. ``accounts``: one of a client for all models of the device, or one for each.
    ``vtc_charge``: what VTC bills of a prompt: all of it, as published, or what was not cached.
    ``escape_seconds``: with DLPM, how long a request that has credit and does not fit may keep the
    others from their next round; 0 is for ever, as published. ``share_prefixes``: the cost of a
    cached prefix is split among the clients that use it. ``k``: with k-LPM, one admission in so
    many is the oldest request's.
    """

    policy: str = "fcfs"
    quantum: float = 1000.0
    extend_weight: float = 1.0
    output_weight: float = 2.0
    admission: Literal["optimistic", "reserve"] = "optimistic"
    idle_debt: Literal["keep", "forget"] = "keep"
    accounts: Literal["device", "model"] = "device"
    vtc_charge: Literal["input", "extend"] = "input"
    escape_seconds: float = 0.0
    share_prefixes: bool = False
    k: int = 4


@dataclass(slots=True)
class RoutingSettings:
    """How requests are spread over workers that hold the same model.

    ``quantum``: service that a round gives a client of weight 1 on each worker (Q^w of D2LPM).
    Weights of tokens are ``ScheduleSettings``'. ``match_ratio``, ``slack_requests`` and
    ``slack_ratio`` are cache-aware's: the share of a prompt that must be cached to follow it, and
    the imbalance of outstanding requests, absolute and relative, from which the least loaded is
    taken instead. ``most_blocks`` bounds what a router remembers of each model's caches, in blocks.
    ``charge_input``: d2lpm bills the whole prompt, as published, or ("extend") what was not cached
    at the worker.
    """

    policy: str = "d2lpm"
    quantum: float = 4000.0
    extend_weight: float = 1.0
    output_weight: float = 2.0
    charge_input: Literal["all", "extend"] = "all"
    match_ratio: float = 0.5
    slack_requests: int = 32
    slack_ratio: float = 1.1
    most_blocks: int = 1 << 20


@dataclass(slots=True)
class ResidencySettings:
    """Which models have their weights in a device's memory, and how memory moves between them.

    ``idle_seconds``: without work for so long, a model sleeps: where another wants the memory
    (``evict`` "pressure") or at once ("always"). ``min_seconds``: the least time awake, or
    what waking took if that is shorter. ``shrink_seconds``: within which a model is brought
    down to a lower limit, by the ``ladder``. ``low_bytes`` and ``high_bytes``: a thread prepares
    pages when fewer than low are ready, until high are. ``host_bytes``: sleeping weights kept in
    the host's memory, the rest are on disk; 0 keeps all that the page cache will. ``keep_alive``:
    with "ttl", seconds that a model stays after its last request. ``quota_seconds``: with "quota",
    how often quotas follow demand. ``turn_seconds``: with "swap", how long a model goes on that
    always has requests, while others wait.
    """

    mode: MemoryMode = "elastic"
    evict: Literal["pressure", "always"] = "pressure"
    idle_seconds: float = 45.0
    min_seconds: float = 10.0
    shrink_seconds: float = 2.0
    ladder: tuple[Rung, ...] = LADDER
    low_bytes: int = 16 << 20
    high_bytes: int = 64 << 20
    host_bytes: int = 0
    keep_alive: float = 300.0
    quota_seconds: float = 5.0
    turn_seconds: float = 5.0


@dataclass(slots=True)
class DeadlineSettings:
    """Whose first tokens come first, among all models of a device (Prism, section 6.2).

    ``order``: "mh" (Moore-Hodgson: the most requests on time), "edf", or "fifo" (targets are not
    looked at). ``margin`` multiplies the estimated time of a prefill. ``max_wait``: a request that
    cannot be on time runs after those that can, but after so many times its target it is overdue:
    the overdue get ``overdue_share`` of the time for prompts, and with 1 come before all.
    ``answer_share``: of the time, for answers that run, while a first token is at risk.
    ``ttft`` and ``tpot``: targets of requests and models that have none, in seconds; 0 is none.
    """

    order: Literal["mh", "edf", "fifo"] = "mh"
    margin: float = 1.5
    max_wait: float = 10.0
    overdue_share: float = 0.25
    answer_share: float = 0.05
    ttft: float = 0.0
    tpot: float = 0.0


@dataclass(slots=True)
class PlacementSettings:
    """Which workers hold which models (Prism, section 6.1).

    ``policy``: "replicate" (every worker holds every model), "static" (spread once by size),
    "paper" (KV-pressure ratio, as published) or "balanced" (linearised binary search). Every
    ``period`` seconds rates over the last ``window`` seconds are looked at, and models move where
    the highest pressure falls by more than ``threshold``, a share of it (0: mean + 2 sigma of what
    was seen, at least 10 %), no model twice within ``cooldown`` seconds.
    """

    policy: Literal["replicate", "static", "paper", "balanced"] = "replicate"
    period: float = 5.0
    window: float = 60.0
    threshold: float = 0.0
    cooldown: float = 30.0


@dataclass(slots=True)
class Share:
    """A node of the tree of shares: a client, or a group of clients and groups.

    Siblings get service in proportion to ``weight`` while they have work; what one leaves goes to
    its siblings first. ``group``: the group it belongs to, empty at the top.
    """

    name: str
    weight: float = 1.0
    group: str = ""
    is_group: bool = False


@dataclass(slots=True)
class DeviceSettings:
    """One device: a named share of a machine, served by one worker process. "cuda:N" is a GPU.

    ``memory_bytes`` 0 takes 60 % of the memory that is free when the worker starts. ``threads`` 0
    takes every core the process may use; ``cores`` are those it is bound to, empty for all.
    ``backend``: "anon" or "memfd" pages; a GPU has its own,
    and with ``memory_bytes`` 0 80 % of its free memory. ``cuda_dtype`` is the type of a GPU's
    weights, keys and values; decode graphs may take ``cuda_graph_bytes`` beside the pool.
    ``speculation``: whether steps verify guessed tokens: never, always ("ngram"), or where it pays
    ("auto"); ``draft_tokens`` is the longest guess, ``draft_match`` the longest run of tokens that
    is looked up for one. ``step_log``: a file to which every step is written, empty for none.
    """

    name: str = "cpu:0"
    memory_bytes: int = 0
    threads: int = 0
    page_bytes: int = 2 << 20
    backend: Literal["anon", "memfd", "cuda"] = "anon"
    block_tokens: int = 16
    kv_dtype: KVDtype | Literal["auto"] = "auto"
    kernels_mode: Literal["exact", "fast"] = "fast"
    native: bool = True
    kernels_arch: str = ""
    prefix_cache: bool = True
    max_running: int = 64
    max_step_tokens: int = 2048
    itl_target: float = 0.2
    prefill_share: float = 0.25
    speculation: Speculation = "off"
    draft_tokens: int = 8
    draft_match: int = 3
    grammar_seconds: float = 10.0
    cache_dir: str = ""
    cuda_dtype: Literal["bf16", "f16", "f32"] = "bf16"
    cuda_graphs: bool = True
    cuda_graph_bytes: int = 2 << 30
    step_log: str = ""
    cores: tuple[int, ...] = ()
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    residency: ResidencySettings = field(default_factory=ResidencySettings)
    deadlines: DeadlineSettings = field(default_factory=DeadlineSettings)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DeviceSettings:
        """What ``dataclasses.asdict`` made of one, lists for tuples allowed."""
        residency = dict(values["residency"])
        residency["ladder"] = tuple(residency["ladder"])
        nested: dict[str, Any] = {
            "schedule": ScheduleSettings(**values["schedule"]),
            "residency": ResidencySettings(**residency),
            "deadlines": DeadlineSettings(**values["deadlines"]),
            "cores": tuple(values["cores"]),
        }
        return cls(**{**values, **nested})

    @classmethod
    def of(cls, **values: Any) -> DeviceSettings:
        """From fields of this class and of ``ScheduleSettings``. Raises TypeError for any other."""
        schedule = {k: values.pop(k) for k in _SCHEDULE if k in values}
        if schedule:
            values["schedule"] = ScheduleSettings(**schedule)
        return cls(**values)


_SCHEDULE = tuple(one.name for one in fields(ScheduleSettings))


@dataclass(slots=True)
class ModelSetup:
    """A model to serve: the ``name`` clients ask for, and the ``source`` the store resolves.

    ``pin`` keeps it loaded and awake. None leaves a value to the checkpoint or the device.
    ``ttft_target`` and ``tpot_target``: wished seconds to the first token, and between tokens.
    ``ttl``: seconds without work after which it sleeps, whatever memory there is. ``floor_bytes``:
    memory for its keys and values that no other model takes. ``evict_cost``: how dear it is to put
    to sleep, against others' 1. ``asleep``: it starts without its weights in memory.
    """

    name: str
    source: str
    pin: bool = False
    context_length: int | None = None
    kv_limit_bytes: int | None = None
    policy: str | None = None
    kv_dtype: KVDtype | None = None
    speculation: Speculation | None = None
    ttft_target: float | None = None
    tpot_target: float | None = None
    ttl: float | None = None
    floor_bytes: int = 0
    evict_cost: float = 1.0
    asleep: bool = False


@dataclass(slots=True)
class QueueSettings:
    """How many requests, and prompt tokens, may wait: in all, and of one client."""

    max_requests: int = 1024
    max_tokens: int = 1 << 20
    client_requests: int = 512
    client_tokens: int = 1 << 19


@dataclass(slots=True)
class GroupSettings:
    """A group of clients and groups: its share among its siblings, and hard limits that count all
    of its clients together. ``group``: the group it is in, empty at the top. None: no limit."""

    name: str
    weight: float = 1.0
    group: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None

    def share(self) -> Share:
        return Share(self.name, self.weight, self.group, is_group=True)


@dataclass(slots=True)
class ClientSettings:
    """A client, known by the sha256 of its keys.

    ``max_requests`` and ``max_tokens`` bound what of it may wait; None takes the queue's limits of
    one client. The hard limits are as a group's. ``isolate``: nobody else meets what it leaves in
    the prefix cache. ``disabled``: its keys are known and refused.
    """

    name: str
    keys: tuple[str, ...] = ()
    weight: float = 1.0
    max_requests: int | None = None
    max_tokens: int | None = None
    group: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    isolate: bool = False
    disabled: bool = False

    def share(self) -> Share:
        return Share(self.name, self.weight, self.group)
