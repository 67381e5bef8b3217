"""Where every weight lies in one flat buffer, and how the buffer is filled from a checkpoint.

plan -> pack -> bind. Knows nothing of the disk cache or of the network's arithmetic.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tenfold.kernels.base import Kernels, PackedWeight
from tenfold.models.checkpoint import Checkpoint
from tenfold.models.weight_plan import PlanEntry, WeightPlan


def pack_model(checkpoint: Checkpoint, plan: WeightPlan, kernels: Kernels, out: Tensor) -> None:
    """Fill ``out`` (uint8, ``plan.nbytes``) with every weight in the kernels' layout."""
    for entry in plan.entries:
        room = out[entry.offset : entry.offset + entry.nbytes]
        if entry.cols == 0:
            values = np.concatenate([checkpoint.vector(name) for name in entry.parts])
            room.view(torch.float32).copy_(torch.from_numpy(values))
            continue
        stored = [checkpoint.matrix(name) for name in entry.parts]
        raw = np.concatenate(stored) if len(stored) > 1 else np.ascontiguousarray(stored[0])
        kernels.pack(entry.kind, entry.rows, entry.cols, torch.from_numpy(raw).view(-1), room)


class Weights:
    """A filled buffer's weights by name: views, nothing is copied."""

    def __init__(self, plan: WeightPlan, buffer: Tensor) -> None:
        self._layout = plan.layout
        self._buffer = buffer
        self._entry_of = {name: entry for entry in plan.entries for name in entry.parts}

    def vector(self, *names: str) -> Tensor:
        """A float32 vector, or several that lie together, as one. They must be one entry."""
        entry = self._entry_of[names[0]]
        if entry.parts != names:
            raise ValueError(f"{names} do not lie together")
        return self._bytes(entry).view(torch.float32)

    def matrices(self, *names: str) -> list[PackedWeight]:
        """The packed matrices that hold these weights, in order; one where they were fused."""
        entries = list(dict.fromkeys(self._entry_of[name] for name in names))
        return [
            PackedWeight(entry.kind, entry.rows, entry.cols, self._layout, self._bytes(entry))
            for entry in entries
        ]

    def _bytes(self, entry: PlanEntry) -> Tensor:
        return self._buffer[entry.offset : entry.offset + entry.nbytes]
