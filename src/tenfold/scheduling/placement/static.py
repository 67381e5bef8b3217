"""Spread once, by size: what an operator does by hand. Looks at no demand and moves nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tenfold.core.settings import PlacementSettings
from tenfold.scheduling.placement.base import (
    Board,
    Part,
    PlaceDevice,
    PlacedModel,
    PlacementPlan,
    board_of,
    no_room,
    parts_of,
    plan_of,
)


class Static:
    """The largest first, each on the device with the most memory left."""

    def __init__(self, settings: PlacementSettings | None = None) -> None:
        """``settings`` say nothing to this policy."""

    def place(
        self,
        models: Sequence[PlacedModel],
        devices: Sequence[PlaceDevice],
        current: Mapping[str, tuple[str, ...]],
        tau: float = 0.0,
    ) -> PlacementPlan:
        parts = parts_of(models, devices, current)
        now, board = board_of(devices, parts), board_of(devices, parts)
        left_out = spread(board, [part for part in parts if part.home is None])
        plan = plan_of(board, now, parts, "spread by size")
        plan.unplaced = {m.name: no_room(m, board) for m in models if m.name in left_out}
        return plan


def spread(board: Board, parts: Sequence[Part]) -> set[str]:
    """Put parts where most memory is left, the largest first. A model of which one part has no room
    is put nowhere; gives the names of those."""
    left_out: set[str] = set()
    for part in sorted(parts, key=lambda p: (-p.weight, p.model, p.index)):
        if part.model in left_out:
            continue
        open_to = [device for device in board.capacity if board.fits(part, device)]
        if open_to:
            board.put(part, max(open_to, key=lambda d: board.capacity[d] - board.weight[d]))
            continue
        left_out.add(part.model)
        for other in [p for p in board.at if p.model == part.model]:
            board.take(other)
    return left_out
