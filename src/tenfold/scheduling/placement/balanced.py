"""KV-pressure placement by linearised binary search: the aim of Prism, section 6.1, met nearly.

All devices have a pressure of at most K where, on each, the sum of demand + K * weight is at most
K * capacity. For a given K that is bin packing with one size an item, so best-fit decreasing inside
a search over K minimises the highest pressure. Knows nothing but what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, sqrt

from tenfold.core.settings import PlacementSettings
from tenfold.scheduling.placement.base import (
    Board,
    Part,
    PlaceDevice,
    PlacedModel,
    PlacementPlan,
    board_of,
    fall,
    highest,
    no_room,
    parts_of,
    plan_of,
)
from tenfold.scheduling.placement.static import spread

PRECISION = 1e-3
MOST_NODES = 50_000
"""Placements tried one by one before a set of models is said not to fit."""

Order = Callable[[Part], float]


class Balanced:
    """``tolerance``: the part by which the highest pressure may lie above the best one found, where
    that keeps models where they are."""

    def __init__(
        self, settings: PlacementSettings | None = None, *, tolerance: float = 0.05
    ) -> None:
        """``settings`` say nothing to this policy; its threshold is given with each call."""
        self.tolerance = tolerance

    def place(
        self,
        models: Sequence[PlacedModel],
        devices: Sequence[PlaceDevice],
        current: Mapping[str, tuple[str, ...]],
        tau: float = 0.0,
    ) -> PlacementPlan:
        parts = parts_of(models, devices, current)
        now = board_of(devices, parts)
        parts, best, left_out = self._search(devices, parts)
        board = best
        stay = _extended(devices, parts)
        if highest(best.pressures()) == 0 and stay is not None:
            board = stay  # nothing is asked of any model: what is new is spread by size
        else:
            goal = highest(best.pressures()) * (1 + self.tolerance)
            repaired = _repair(devices, parts, goal)
            relabelled = _relabel(devices, best)
            boards = [b for b in (repaired, relabelled, best) if b is not None]
            board = min(boards, key=lambda b: (_moved(b), highest(b.pressures())))
        offered = 0.0
        if stay is not None:  # what it would be worth, against moving nothing
            here, there = highest(stay.pressures()), highest(board.pressures())
            offered = max(0.0, fall(here, there))
            if here <= there or here - there <= tau:
                board = stay
        why = f"highest pressure {_said(now if stay is None else stay)} -> {_said(board)}"
        plan = plan_of(board, now, parts, why)
        plan.offered = offered
        plan.unplaced = {m.name: no_room(m, board) for m in models if m.name in left_out}
        return plan

    def _search(
        self, devices: Sequence[PlaceDevice], parts: list[Part]
    ) -> tuple[list[Part], Board, set[str]]:
        """The parts that can be placed, the board of the lowest K found for them, and the models
        that were left out: those that ask for the least a byte, until the rest fits."""
        out: list[str] = []
        kept, found = parts, _feasible(devices, parts)
        while found is None:
            free = [part for part in kept if not part.fixed]
            if not free:  # what is fixed is over its device's memory already
                return kept, board_of(devices, kept), set(out)
            hopeless = [part for part in free if _alone_too_large(devices, part)]
            least = min(hopeless or free, key=_worth)
            out.append(least.model)
            kept = [part for part in kept if part.model != least.model]
            found = _feasible(devices, kept)
        for model in reversed(out):  # a small one may fit after all, once a large one is out
            more = [part for part in parts if part in kept or part.model == model]
            if (again := _feasible(devices, more)) is not None:
                kept, found = more, again
        left_out = {part.model for part in parts} - {part.model for part in kept}
        return kept, _lowest(devices, kept, found), left_out


def _worth(part: Part) -> tuple[bool, float, float]:
    return part.pinned, part.demand / max(part.weight, 1.0), -part.weight


def _said(board: Board) -> str:
    return f"{highest(board.pressures()):.3g}"


def _alone_too_large(devices: Sequence[PlaceDevice], part: Part) -> bool:
    empty = Board(devices)
    return not any(empty.fits(part, device) for device in empty.capacity)


def _lowest(devices: Sequence[PlaceDevice], parts: Sequence[Part], found: Board) -> Board:
    """Binary search for the lowest K with a packing, from one that is known."""
    room = sum(d.capacity for d in devices) - sum(part.weight for part in parts)
    low, high = sum(part.demand for part in parts) / room, highest(found.pressures())
    while low > 0 and high > low * (1 + PRECISION):
        middle = sqrt(low * high) if high < inf else 2 * low
        packed = _pack(devices, parts, middle)
        if packed is None:
            low = middle
        else:
            found, high = packed, min(middle, highest(packed.pressures()))
    return found


def _pack(devices: Sequence[PlaceDevice], parts: Sequence[Part], bound: float) -> Board | None:
    """Best-fit decreasing at K = ``bound``; by weight where the order by cost does not succeed."""
    orders: tuple[Order, ...] = (
        lambda p: p.demand + bound * p.weight,
        lambda p: p.weight,
        lambda p: p.demand,
    )
    for order in orders:
        if (board := _best_fit(devices, parts, bound, order)) is not None:
            return board
    return None


def _best_fit(
    devices: Sequence[PlaceDevice], parts: Sequence[Part], bound: float, order: Order
) -> Board | None:
    board = board_of(devices, [part for part in parts if part.fixed])
    for part in sorted((p for p in parts if not p.fixed), key=order, reverse=True):
        cost = part.demand + bound * part.weight
        least, target = inf, None
        for device in board.capacity:
            left = _slack(board, device, bound) - cost
            if 0 <= left < least and board.fits(part, device):
                least, target = left, device
        if target is None:
            return None
        board.put(part, target)
    return board


def _slack(board: Board, device: str, bound: float) -> float:
    """What a device can still take at K = ``bound``, in cost; below 0: it is over."""
    return bound * (board.capacity[device] - board.weight[device]) - board.demand[device]


def _feasible(devices: Sequence[PlaceDevice], parts: Sequence[Part]) -> Board | None:
    """Any placement in which everything fits. Best fit by weight, and where that fails every one,
    as far as ``MOST_NODES`` go."""
    board = _best_fit_by_size(devices, parts)
    return board if board is not None else _exhaustive(devices, parts)


def _size(part: Part) -> float:
    return part.weight + part.least


def _best_fit_by_size(devices: Sequence[PlaceDevice], parts: Sequence[Part]) -> Board | None:
    board = board_of(devices, [part for part in parts if part.fixed])
    for part in sorted((p for p in parts if not p.fixed), key=_size, reverse=True):
        open_to = [device for device in board.capacity if board.fits(part, device)]
        if not open_to:
            return None
        board.put(part, min(open_to, key=lambda d: board.capacity[d] - board.weight[d]))
    return board


def _exhaustive(devices: Sequence[PlaceDevice], parts: Sequence[Part]) -> Board | None:
    board = board_of(devices, [part for part in parts if part.fixed])
    todo = sorted((p for p in parts if not p.fixed), key=_size, reverse=True)
    if sum(map(_size, parts)) > sum(board.capacity.values()):
        return None
    nodes = 0

    def place(at: int) -> bool:
        nonlocal nodes
        if at == len(todo):
            return True
        tried: set[tuple[float, float, bool]] = set()
        for device in board.capacity:
            alike = (
                board.capacity[device] - board.weight[device],
                board.least[device],
                board.sibling(todo[at], device),
            )
            if alike in tried or not board.fits(todo[at], device):
                continue
            tried.add(alike)
            nodes += 1
            if nodes > MOST_NODES:
                return False
            board.put(todo[at], device)
            if place(at + 1):
                return True
            board.take(todo[at])
        return False

    return board if place(0) else None


# --- keeping models where they are ----------------------------------------------------------------
def _moved(board: Board) -> tuple[int, float]:
    """How many parts that are somewhere are elsewhere on this board, and their bytes."""
    moved = [p for p, device in board.at.items() if p.home is not None and p.home != device]
    return len(moved), sum(part.weight for part in moved)


def _extended(devices: Sequence[PlaceDevice], parts: Sequence[Part]) -> Board | None:
    """The current placement with what is new spread over it; None where that does not fit."""
    board = board_of(devices, parts)
    for device, room in board.capacity.items():
        if board.weight[device] >= room or board.weight[device] + board.least[device] > room:
            return None
    return None if spread(board, [part for part in parts if part.home is None]) else board


def _repair(devices: Sequence[PlaceDevice], parts: Sequence[Part], goal: float) -> Board | None:
    """The current placement, brought to pressures of at most ``goal`` by few moves: from the device
    that is furthest over, the part, or the exchange of two, that helps most. None where that comes
    to no end within as many steps as there are parts."""
    board = board_of(devices, parts)
    new = sorted((p for p in parts if p.home is None), key=lambda p: -p.demand - goal * p.weight)
    for part in new:
        open_to = [device for device in board.capacity if board.fits(part, device)]
        if not open_to:
            return None
        board.put(part, max(open_to, key=lambda d: _slack(board, d, goal)))
    for _ in range(len(parts) + 1):
        worst = min(board.capacity, key=lambda d: _spare(board, d, goal))
        if _spare(board, worst, goal) >= -1e-9 * goal * board.capacity[worst]:
            return board
        if not _relieve(board, worst, goal):
            return None
    return None


def _spare(board: Board, device: str, goal: float) -> float:
    """As ``_slack``; what must fit for keys and values counts as well."""
    hard = board.capacity[device] - board.weight[device] - board.least[device]
    return min(_slack(board, device, goal), goal * hard)


def _relieve(board: Board, worst: str, goal: float) -> bool:
    """The one move or exchange that leaves the two devices the least over; a single move before an
    exchange, few bytes before many. False: none helps."""
    best: tuple[tuple[float, int, float], tuple[Part, ...], str] | None = None
    mine = [p for p, device in board.at.items() if device == worst and not p.fixed]
    for device in board.capacity:
        if device == worst:
            continue
        before = _over(board, worst, goal) + _over(board, device, goal)
        theirs = [p for p, at in board.at.items() if at == device and not p.fixed]
        for pair in [*((p,) for p in mine), *((p, o) for p in mine for o in theirs)]:
            if not _exchange(board, pair, worst, device):
                continue
            over = _over(board, worst, goal) + _over(board, device, goal)
            key = (over, len(pair), sum(part.weight for part in pair))
            if over < before and (best is None or key < best[0]):
                best = (key, pair, device)
            _exchange(board, pair, device, worst)
    return best is not None and _exchange(board, best[1], worst, best[2])


def _over(board: Board, device: str, goal: float) -> float:
    return max(0.0, -_spare(board, device, goal))


def _exchange(board: Board, pair: tuple[Part, ...], first: str, second: str) -> bool:
    """Put the first of ``pair``, which is at ``first``, to ``second``, and the other, if there is
    one, the other way. False, and nothing is changed, where that does not fit."""
    for part in pair:
        board.take(part)
    ends = (second, first)
    fit = all(board.fits(part, end) for part, end in zip(pair, ends, strict=False))
    for part, end in zip(pair, ends if fit else (first, second), strict=False):
        board.put(part, end)
    return fit


def _relabel(devices: Sequence[PlaceDevice], board: Board) -> Board:
    """The same packing, its devices of one capacity exchanged so that most bytes stay."""
    stays: list[tuple[float, str, str]] = []
    for group in board.capacity:
        inside = [part for part, device in board.at.items() if device == group]
        for device in board.capacity:
            if board.capacity[device] != board.capacity[group]:
                continue
            bound = any(part.fixed for part in inside)
            if bound and device != group:
                continue
            kept = sum(1 + part.weight for part in inside if part.home == device)
            stays.append((inf if bound else kept, group, device))
    names: dict[str, str] = {}
    for _, group, device in sorted(stays, key=lambda s: -s[0]):
        if group not in names and device not in names.values():
            names[group] = device
    found = Board(devices)
    for part, device in board.at.items():
        found.put(part, names.get(device, device))
    return found
