"""The seam between a fleet and the decision which device serves which model.

A policy sees models with their weights and the demand for their keys and values, and devices with
their memory; it says where each model should be, and what must move for that. Plain values in and
out, so the same policies run in a server, in simulation and in a dry run. Knows no clock, no worker
and no request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from tenfold.core.settings import PlacementSettings

DEFAULT_TPOT = 0.2
"""Seconds between tokens of models that have no target; as ``device.itl_target``."""

Placement = dict[str, tuple[str, ...]]
"""The device of each part of each model. A model that is nowhere is not in it."""


@dataclass(slots=True, frozen=True)
class PlacedModel:
    """A model to place. Memory in bytes, times in seconds.

    ``token_rate``: prompt tokens admitted and tokens generated, a second. ``token_bytes``: keys and
    values of one token. ``tpot``: target between tokens. ``parts``: tensor-parallel ones, each with
    its share of weights and demand, no two on one device. ``least_bytes``: keys and values that it
    must have room for at least. ``fixed``: it stays where it is. ``pinned``: where not all fit,
    others are left out first. ``busy``: the share of a device's time that its steps take.
    """

    name: str
    weight_bytes: int
    token_rate: float = 0.0
    token_bytes: int = 0
    tpot: float = DEFAULT_TPOT
    parts: int = 1
    least_bytes: int = 0
    fixed: bool = False
    pinned: bool = False
    busy: float = 0.0

    @property
    def demand(self) -> float:
        """w_token_rate of Prism, section 6.1: growth of keys and values over the TPOT target."""
        return self.token_rate * self.token_bytes / (self.tpot or DEFAULT_TPOT)


@dataclass(slots=True, frozen=True)
class PlaceDevice:
    """``capacity``: bytes for weights, keys and values of all its models. ``pressed``: whether any
    of them lacked pages of late."""

    name: str
    capacity: int
    pressed: bool = True


@dataclass(slots=True, frozen=True)
class Part:
    """One tensor-parallel part of a model: what is placed. A model without parts is one."""

    model: str
    index: int
    weight: float
    demand: float
    least: float
    home: str | None
    fixed: bool
    pinned: bool


@dataclass(slots=True, frozen=True)
class Move:
    """``source`` None: it was nowhere."""

    model: str
    part: int
    source: str | None
    target: str
    why: str


@dataclass(slots=True)
class PlacementPlan:
    """What a policy wants. ``placement`` holds after ``moves``; ``unplaced`` says why for each
    model that has no room. ``before`` and ``after``: each device's pressure. ``offered``: the part
    by which the highest pressure would fall, or a single model's, moves that did not pay included.
    """

    placement: Placement
    moves: list[Move] = field(default_factory=list)
    unplaced: dict[str, str] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    offered: float = 0.0


class PlacementPolicy(Protocol):
    """Pure: equal arguments get equal answers."""

    def place(
        self,
        models: Sequence[PlacedModel],
        devices: Sequence[PlaceDevice],
        current: Mapping[str, tuple[str, ...]],
        tau: float = 0.0,
    ) -> PlacementPlan:
        """Where the models should be. ``current``: where they are; what it names and is not among
        ``devices`` counts as nowhere. ``tau``: the least fall of pressure for which something
        moves. Models that are nowhere are placed whatever it is. Neither argument is changed."""
        ...


PlacementFactory = Callable[[PlacementSettings], PlacementPolicy]


class Board:
    """Devices with what lies on them: parts are put down and taken up, and pressures read."""

    def __init__(self, devices: Iterable[PlaceDevice]) -> None:
        self.capacity = {device.name: float(device.capacity) for device in devices}
        self.weight = dict.fromkeys(self.capacity, 0.0)
        self.demand = dict.fromkeys(self.capacity, 0.0)
        self.least = dict.fromkeys(self.capacity, 0.0)
        self.at: dict[Part, str] = {}
        self._models: dict[str, list[str]] = {name: [] for name in self.capacity}

    def put(self, part: Part, device: str) -> None:
        self.at[part] = device
        self.weight[device] += part.weight
        self.demand[device] += part.demand
        self.least[device] += part.least
        self._models[device].append(part.model)

    def take(self, part: Part) -> str:
        """Take a part up; gives where it was."""
        device = self.at.pop(part)
        self.weight[device] -= part.weight
        self.demand[device] -= part.demand
        self.least[device] -= part.least
        self._models[device].remove(part.model)
        return device

    def sibling(self, part: Part, device: str) -> bool:
        """Whether another part of the model is there."""
        return part.model in self._models[device]

    def fits(self, part: Part, device: str) -> bool:
        """Whether weights and least keys and values fit, with something left for the latter, and
        no sibling is there."""
        weight = self.weight[device] + part.weight
        least = self.least[device] + part.least
        room = self.capacity[device]
        return weight < room and weight + least <= room and not self.sibling(part, device)

    def pressure(self, device: str, more: Part | None = None) -> float:
        """KVPR of Prism, section 6.1: demand over the memory that weights leave; infinite where
        they leave none. With ``more`` on it, if that is given."""
        weight, demand = (more.weight, more.demand) if more is not None else (0.0, 0.0)
        left = self.capacity[device] - self.weight[device] - weight
        return (self.demand[device] + demand) / left if left > 0 else inf

    def pressures(self) -> dict[str, float]:
        return {device: self.pressure(device) for device in self.capacity}

    def placement(self) -> Placement:
        found: dict[str, list[tuple[int, str]]] = {}
        for part, device in self.at.items():
            found.setdefault(part.model, []).append((part.index, device))
        return {model: tuple(d for _, d in sorted(homes)) for model, homes in found.items()}


def parts_of(
    models: Iterable[PlacedModel],
    devices: Iterable[PlaceDevice],
    current: Mapping[str, tuple[str, ...]],
) -> list[Part]:
    """Every part, those of one model one after another, with where it is now."""
    known = {device.name for device in devices}
    found = []
    for model in models:
        homes = current.get(model.name, ())
        for index in range(model.parts):
            home = homes[index] if index < len(homes) and homes[index] in known else None
            found.append(
                Part(
                    model.name,
                    index,
                    model.weight_bytes / model.parts,
                    model.demand / model.parts,
                    model.least_bytes / model.parts,
                    home,
                    model.fixed and home is not None,
                    model.pinned,
                )
            )
    return found


def board_of(devices: Iterable[PlaceDevice], parts: Iterable[Part]) -> Board:
    """The parts where they are now; those that are nowhere are left out."""
    board = Board(devices)
    for part in parts:
        if part.home is not None:
            board.put(part, part.home)
    return board


def plan_of(board: Board, now: Board, parts: Iterable[Part], why: str) -> PlacementPlan:
    """From ``now`` to ``board``; ``why`` is said of every move, with its pressures."""
    plan = PlacementPlan(board.placement(), before=now.pressures(), after=board.pressures())
    for part in parts:
        target = board.at.get(part)
        if target is not None and target != part.home:
            plan.moves.append(Move(part.model, part.index, part.home, target, why))
    return plan


def highest(pressures: Mapping[str, float]) -> float:
    return max(pressures.values(), default=0.0)


def fall(before: float, after: float) -> float:
    """The part by which a pressure falls; below 0 where it rises."""
    if before == after:
        return 0.0
    if before == inf:
        return 1.0
    return (before - after) / before if before > 0 else -inf


def no_room(model: PlacedModel, board: Board) -> str:
    """Why a model is not placed, in words."""
    need = model.weight_bytes / model.parts
    left = max((board.capacity[d] - board.weight[d] for d in board.capacity), default=0.0)
    least = f" and {model.least_bytes:,} for keys and values" if model.least_bytes else ""
    return (
        f"{model.name} needs {need:,.0f} bytes for weights{least}"
        f"{' on each of ' + str(model.parts) + ' devices' if model.parts > 1 else ''}, "
        f"and the most that a device has left is {max(left, 0):,.0f}"
    )
