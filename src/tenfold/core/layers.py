"""Layers of settings, laid over one another: file, then environment, then flags.

A layer is flat: a key (``("server", "port")``, ``("clients", "alice", "weight")``) and the value
somebody gave it, with where. Knows nothing of which settings exist or what they may hold.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.core.errors import ConfigError
from tenfold.core.names import name_of, split_model

NAMED = frozenset({"models", "clients", "groups", "catalogue"})
"""Sections whose second word is a name the user chose."""

PREFIX = "TENFOLD_"

Key = tuple[str, ...]


@dataclass(slots=True, frozen=True)
class Given:
    """A value and who gave it: "tenfold.toml", "TENFOLD_SERVER__PORT", "--set"."""

    value: Any
    origin: str


Layer = dict[Key, Given]


def split_key(dotted: str) -> Key:
    """``server.port`` as a key. Names may hold dots: ``models.qwen2.5.pin`` is three words."""
    words = dotted.strip().split(".")
    if words[0] in NAMED and len(words) > 3:
        words = [words[0], ".".join(words[1:-1]), words[-1]]
    return tuple(words)


def read_value(text: str) -> Any:
    """A value typed in a shell: TOML where it reads as a plain TOML value, otherwise the text."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed.get("value")
    plain = isinstance(value, bool | int | float | str | list | dict)
    return value if plain and len(parsed) == 1 else text


def _models(tables: Any, origin: str) -> dict[str, Any]:
    """``[[models]]`` as a table by name, so that every layer can speak of one model's settings."""
    if isinstance(tables, dict):
        return tables
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{origin}: models must be written as [[models]] tables")
    named: dict[str, Any] = {}
    for table in tables:
        settings = dict(table)
        source = settings.get("source", settings.get("name"))
        name = settings.pop("name", None) or name_of(str(source or ""))
        if not source or not isinstance(name, str):
            raise ConfigError(f"{origin}: each [[models]] table needs a name or a source")
        if name in named:
            raise ConfigError(f"{origin}: two [[models]] tables are called {name!r}")
        named[name] = {"source": source, **settings}
    return named


def flatten(tree: Mapping[str, Any], origin: str) -> Layer:
    """A parsed TOML document as a layer."""
    layer: Layer = {}
    for section, body in tree.items():
        if section == "models":
            body = _models(body, origin)
        if not isinstance(body, dict):
            layer[(section,)] = Given(body, origin)
        elif section not in NAMED:
            layer |= {(section, key): Given(value, origin) for key, value in body.items()}
        else:
            for name, table in body.items():
                if isinstance(table, dict):
                    layer |= {(section, name, key): Given(v, origin) for key, v in table.items()}
                else:
                    layer[(section, name)] = Given(table, origin)
    return layer


def from_file(path: Path) -> Layer:
    """Raises ConfigError when the file is missing or is not TOML, with the line."""
    try:
        return flatten(tomllib.loads(path.read_text(encoding="utf-8")), path.name)
    except OSError as exc:
        raise ConfigError(f"cannot read the config file {path}: {exc.strerror or exc}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not a TOML file: {exc}") from exc


def from_environment(environment: Mapping[str, str]) -> Layer:
    """Variables such as TENFOLD_SERVER__PORT: two underscores stand for a dot, case is ignored.

    Variables with no double underscore (TENFOLD_HOME) are not settings.
    """
    layer: Layer = {}
    for variable, text in sorted(environment.items()):
        if variable.startswith(PREFIX) and "__" in variable:
            dotted = variable.removeprefix(PREFIX).lower().replace("__", ".")
            layer[split_key(dotted)] = Given(read_value(text), variable)
    return layer


def from_sets(assignments: Iterable[str], origin: str = "--set") -> Layer:
    """``key=value`` texts of the command line."""
    layer: Layer = {}
    for text in assignments:
        dotted, equals, value = text.partition("=")
        if not equals or not dotted.strip():
            raise ConfigError(f"{origin} {text!r} must be written key=value, as server.port=9000")
        layer[split_key(dotted)] = Given(read_value(value.strip()), origin)
    return layer


def from_arguments(models: Iterable[str]) -> Layer:
    """Models named on the command line."""
    layer: Layer = {}
    for text in models:
        argument = split_model(text)
        key = ("models", argument.name, "source")
        if key in layer:
            raise ConfigError(
                f"two models would be served as {argument.name!r}; name one, as other={text}"
            )
        layer[key] = Given(argument.source, "argument")
    return layer


def nest(layer: Layer) -> dict[str, Any]:
    """The tree again: ``{"server": {"port": 9000}}``."""
    tree: dict[str, Any] = {}
    for key, given in layer.items():
        table = tree
        for word in key[:-1]:
            table = table.setdefault(word, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{given.origin}: {'.'.join(key)} is inside a plain value")
        table[key[-1]] = given.value
    return tree
