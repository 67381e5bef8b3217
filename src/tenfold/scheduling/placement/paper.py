"""KV-pressure placement as published: Prism, section 6.1, algorithm 1 (with appendix A.2's parts).

What is known to be wrong with it stands beside the lines; ``balanced`` is the repaired form. Knows
nothing but what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tenfold.core.settings import PlacementSettings
from tenfold.scheduling.placement.base import (
    Board,
    Move,
    Part,
    PlaceDevice,
    PlacedModel,
    PlacementPlan,
    board_of,
    fall,
    no_room,
    parts_of,
)


class Paper:
    """Models by demand, each to the device whose pressure is lowest before it comes.

    ``fit``: whether a device must have room. The published listing asks no such thing, and so can
    put more weights on a device than it has memory; a device like that counts as infinitely pressed
    here, where the listing divides by what is below zero.
    """

    def __init__(self, settings: PlacementSettings | None = None, *, fit: bool = True) -> None:
        """``settings`` say nothing to this policy; its threshold is given with each call."""
        self.fit = fit

    def place(
        self,
        models: Sequence[PlacedModel],
        devices: Sequence[PlaceDevice],
        current: Mapping[str, tuple[str, ...]],
        tau: float = 0.0,
    ) -> PlacementPlan:
        parts = parts_of(models, devices, current)
        now, board = board_of(devices, parts), Board(devices)
        plan = PlacementPlan({}, before=now.pressures())
        # The order is by demand alone. Fault 1: a large model with little demand comes last, when
        # what is left may be too small for it wherever it goes.
        order = sorted(parts, key=lambda p: (-p.demand, p.model, p.index))
        for part in (*(p for p in order if p.fixed), *(p for p in order if not p.fixed)):
            if part.model not in plan.unplaced and not self._put(board, part, tau, plan):
                whole = next(model for model in models if model.name == part.model)
                plan.unplaced[part.model] = no_room(whole, board)
        _forget(board, plan)
        plan.placement, plan.after = board.placement(), board.pressures()
        return plan

    def _put(self, board: Board, part: Part, tau: float, plan: PlacementPlan) -> bool:
        """Put a part down; False where no device takes it."""
        if part.fixed and part.home is not None:
            board.put(part, part.home)
            return True
        takes = board.fits if self.fit else (lambda p, d: not board.sibling(p, d))
        open_to = [device for device in board.capacity if takes(part, device)]
        if not open_to:
            return False
        # Fault 2: the pressure of the state before the model is added. The text speaks of the
        # resulting one; the listing reads this one, and so a small device that is empty takes a
        # model that fills it. Where a sibling is on the lowest, the second-lowest takes it (for
        # more than two parts: the lowest without a sibling).
        best = min(open_to, key=board.pressure)
        if part.home is None:
            target, why = best, f"lowest pressure, {board.pressure(best):.3g}"
        else:
            here, there = board.pressure(part.home), board.pressure(best)
            gain = here - there if here != there else 0.0
            # Fault 3: both are pressures of a board that is still being filled, not of any state
            # that will be; and the paper gives no value of its threshold.
            plan.offered = max(plan.offered, fall(here, there))
            stays = part.home in open_to and gain <= tau
            target = part.home if stays else best
            why = f"pressure {here:.3g} there, {there:.3g} here"
        if target != part.home:
            plan.moves.append(Move(part.model, part.index, part.home, target, why))
        board.put(part, target)
        return True


def _forget(board: Board, plan: PlacementPlan) -> None:
    """A model of which one part was not placed is nowhere, or where it was."""
    for part in [p for p in board.at if p.model in plan.unplaced]:
        board.take(part)
    plan.moves = [move for move in plan.moves if move.model not in plan.unplaced]
