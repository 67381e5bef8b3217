"""How file, environment and flags become one checked whole.

Everybody else receives the plain dataclasses of ``core.settings``. Knows nothing of what the
settings do; their schema is ``core.sections``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from tenfold.core import layers, machine
from tenfold.core.division import divide
from tenfold.core.errors import ConfigError
from tenfold.core.keys import hash_key
from tenfold.core.sections import ClientSection, Config, known_keys
from tenfold.core.settings import (
    ClientSettings,
    DeadlineSettings,
    DeviceSettings,
    GroupSettings,
    ModelSetup,
    PlacementSettings,
    QueueSettings,
    ResidencySettings,
    RoutingSettings,
    ScheduleSettings,
)
from tenfold.core.sizes import parse_share
from tenfold.core.tenancy import check_tree


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
        residency = self.config.residency.model_dump()
        free = machine.memory().available
        return DeviceSettings(
            memory_bytes=parse_share(self.config.device.memory, free),
            kernels_mode=self.config.kernels.mode,
            native=self.config.kernels.native,
            kernels_arch=self.config.kernels.arch,
            schedule=ScheduleSettings(**self.config.schedule.model_dump()),
            residency=ResidencySettings(**{**residency, "ladder": tuple(residency["ladder"])}),
            deadlines=DeadlineSettings(**self.config.deadlines.model_dump()),
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

    def to_placement(self) -> PlacementSettings:
        return PlacementSettings(**self.config.placement.model_dump())

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
                ttft_target=m.ttft_target,
                tpot_target=m.tpot_target,
                ttl=m.ttl,
                floor_bytes=m.floor,
                evict_cost=m.evict_cost,
                asleep=m.asleep,
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
