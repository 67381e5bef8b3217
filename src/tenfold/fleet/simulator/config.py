"""A simulation's TOML file, read strictly: an unknown key is refused with the nearest known one.

    [run]          seconds, warm_up, seed, drain
    [cluster]      workers, device, the model's shape, memory
    [schedule]     as in a server's file
    [routing]      as in a server's file
    [weights]      client = share
    [queue]        as in a server's file; without it anything may wait
    [[model]]      one of several models: its name, count, shape, parts and targets
    [residency]    as in a server's file; of several models, as the two after it
    [deadlines]    as in a server's file
    [placement]    as in a server's file
    [[workload]]   kind = "...", and the settings of that kind; model = "...", where it names none

Knows nothing of what the settings do.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tenfold.core.errors import ConfigError
from tenfold.core.layers import read_value
from tenfold.core.sections import (
    DeadlinesSection,
    PlacementSection,
    ResidencySection,
    ScheduleSection,
    Section,
)
from tenfold.core.settings import (
    DeadlineSettings,
    PlacementSettings,
    QueueSettings,
    ResidencySettings,
    RoutingSettings,
    ScheduleSettings,
)
from tenfold.costs.shapes import shape
from tenfold.fleet.simulator.settings import (
    ClusterSettings,
    ModelSettings,
    RunSettings,
    Simulation,
)
from tenfold.fleet.workloads.base import Directed, Workload
from tenfold.fleet.workloads.bursty import Bursty
from tenfold.fleet.workloads.registry import workloads

T = TypeVar("T")

SECTIONS = (
    *("run", "cluster", "schedule", "routing", "weights", "queue", "workload"),
    *("model", "residency", "deadlines", "placement"),
)


def load_simulation(path: Path, overrides: Iterable[str] = ()) -> Simulation:
    """Read and check. ``overrides``: ``section.key=value`` texts. Raises ConfigError: one line that
    says where, which key, and what to write."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error
    for text in overrides:
        _override(tree, text)
    return read_simulation(tree, path.name, path.parent)


def _override(tree: dict[str, Any], text: str) -> None:
    dotted, equals, value = text.partition("=")
    section, dot, key = dotted.strip().partition(".")
    if not equals or not dot or not isinstance(tree.setdefault(section, {}), dict):
        raise ConfigError(f"--set {text!r} must be written section.key=value, as run.seconds=60")
    tree[section][key] = read_value(value.strip())


def read_simulation(tree: Mapping[str, Any], where: str, folder: Path = Path()) -> Simulation:
    """Check a parsed file. A device's file is looked for in ``folder``."""
    _known(tree, SECTIONS, where, "section")
    tables = tree.get("workload", [])
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{where}: give at least one [[workload]] table")
    cluster = _table(ClusterSettings, tree.get("cluster", {}), f"{where}: cluster")
    if (folder / cluster.device).is_file():
        cluster.device = str(folder / cluster.device)
    models = _models(tree.get("model", []), cluster, where)
    served = [name for model in models for name in model.names()]
    residency = _section(ResidencySection, tree, "residency", where)
    return Simulation(
        cluster,
        ScheduleSettings(**_section(ScheduleSection, tree, "schedule", where)),
        _table(RoutingSettings, tree.get("routing", {}), f"{where}: routing"),
        _table(RunSettings, tree.get("run", {}), f"{where}: run"),
        [_asking(table, served, f"{where}: workload {n}") for n, table in enumerate(tables, 1)],
        _checked(TypeAdapter(dict[str, float]), tree.get("weights", {}), f"{where}: weights"),
        _table(QueueSettings, tree["queue"], f"{where}: queue") if "queue" in tree else None,
        models,
        ResidencySettings(**{**residency, "ladder": tuple(residency["ladder"])}),
        DeadlineSettings(**_section(DeadlinesSection, tree, "deadlines", where)),
        PlacementSettings(**_section(PlacementSection, tree, "placement", where)),
    )


def _section(kind: type[Section], tree: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """A table that a server's file has too, read as there."""
    table = tree.get(name, {})
    _known(table, kind.model_fields, f"{where}: {name}")
    found: Section = _checked(TypeAdapter(kind), table, f"{where}: {name}")
    return found.model_dump()


def _models(tables: Any, cluster: ClusterSettings, where: str) -> list[ModelSettings]:
    if not isinstance(tables, list):
        raise ConfigError(f"{where}: write [[model]], with two brackets, for each model")
    found, names = [], set[str]()
    for number, table in enumerate(tables, 1):
        here = f"{where}: model {number}"
        shaped = shape(str(table["shape"]))._asdict() if table.get("shape") else {}
        model = _table(ModelSettings, {**shaped, **table}, here)
        if model.count < 1 or not 1 <= model.parts <= cluster.workers:
            raise ConfigError(
                f"{here}: count is {model.count} and parts are {model.parts}; there must be one of "
                f"it at least, and at most a part for each of the {cluster.workers} workers"
            )
        if twice := names.intersection(model.names()):
            raise ConfigError(f"{here}: there is a model {min(twice)} already; give another name")
        names.update(model.names())
        found.append(model)
    return found


def _asking(table: Mapping[str, Any], served: list[str], where: str) -> Workload:
    """A workload, and which models it asks: as it says itself, or all that there are."""
    settings, model = dict(table), ""
    if settings.get("kind") != "trace":
        model = str(settings.pop("model", ""))
    workload = read_workload(settings, where)
    if isinstance(workload, Bursty) and served and not workload.named:
        workload.named = tuple(served)
    if not model:
        return workload
    if model not in served:
        raise ConfigError(
            f"{where}: no [[model]] is named {model!r}; there are {', '.join(served)}"
        )
    return Directed(workload, model)


def read_workload(table: Mapping[str, Any], where: str) -> Workload:
    """A workload of its settings, ``kind`` among them. Raises ConfigError."""
    settings = dict(table)
    kind = settings.pop("kind", None)
    if not isinstance(kind, str):
        raise ConfigError(f"{where}: give its kind, one of {', '.join(workloads.names())}")
    made: Any = workloads.get(kind)
    workload: Workload = _table(made, settings, f"{where} ({kind})")
    return workload


def _table(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """A dataclass of plain values out of a table."""
    _known(table, [one.name for one in fields(kind)], where)  # type: ignore[arg-type]
    return _checked(TypeAdapter(kind), table, where)


def _checked(adapter: TypeAdapter[T], values: Mapping[str, Any], where: str) -> T:
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(word) for word in first["loc"])
        reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise ConfigError(f"{where}: {key} = {first['input']!r}: {reason}") from None


def _known(
    table: Mapping[str, Any], known: Iterable[str], where: str, what: str = "setting"
) -> None:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table, and is {table!r}")
    names = list(known)
    for key in table:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
            advice = f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"
            raise ConfigError(f"{where}: unknown {what} {key}; {advice}")
