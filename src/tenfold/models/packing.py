"""Where every weight lies in one flat buffer, and how the buffer is filled from a checkpoint.

plan -> pack -> bind. The plan needs only the checkpoint's header. Matrices that share an input
(q, k, v; gate, up) become one where their kinds agree. Knows nothing of the disk cache or of the
network's arithmetic.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.kernels.base import Kernels, PackedWeight, WeightKind
from tenfold.models.checkpoint import Checkpoint, TensorInfo, count_parameters

ALIGNMENT = 64
_FUSABLE = (("q", "k", "v"), ("gate", "up"), ("q_bias", "k_bias", "v_bias"))


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """One stretch of the buffer: a packed matrix, or a vector of float32 where ``cols`` is 0.

    ``parts`` are the weights it holds, one after another, by Tenfold's names; ``part_rows`` their
    rows.
    """

    parts: tuple[str, ...]
    part_rows: tuple[int, ...]
    kind: WeightKind
    cols: int
    offset: int
    nbytes: int

    @property
    def rows(self) -> int:
        return sum(self.part_rows)


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """The layout of one model's weights for one kernel table. ``nbytes`` is the buffer's size."""

    layout: str
    nbytes: int
    parameters: int
    entries: tuple[PlanEntry, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` gives the same plan back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WeightPlan:
        """Inverse of ``to_dict``. Raises KeyError or TypeError on values of another version."""
        entries = [
            PlanEntry(**{**e, "parts": tuple(e["parts"]), "part_rows": tuple(e["part_rows"])})
            for e in values["entries"]
        ]
        return cls(**{**values, "entries": tuple(entries)})


def plan_weights(checkpoint: Checkpoint, kernels: Kernels) -> WeightPlan:
    """Lay the weights out, in the order of use, each at a multiple of 64 bytes."""
    tensors, entries, offset = checkpoint.tensors, [], 0
    for parts in _runs(checkpoint):
        infos = [tensors[name] for name in parts]
        rows = tuple(info.shape[0] for info in infos)
        if len(infos[0].shape) == 1:
            kind: WeightKind = "f32"
            cols, nbytes = 0, 4 * sum(rows)
        else:
            kind, cols = infos[0].kind, infos[0].shape[1]
            nbytes = kernels.packed_bytes(kind, sum(rows), cols)
        entries.append(PlanEntry(parts, rows, kind, cols, offset, nbytes))
        offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return WeightPlan(kernels.layout, offset, count_parameters(checkpoint), tuple(entries))


def _runs(checkpoint: Checkpoint) -> list[tuple[str, ...]]:
    """The weights' names, those that become one entry together."""
    tensors, runs, seen = checkpoint.tensors, [], set()
    for name in tensors:
        if name in seen:
            continue
        prefix, _, last = name.rpartition(".")
        group = next((names for names in _FUSABLE if last == names[0]), (last,))
        members = [f"{prefix}.{other}" if prefix else other for other in group]
        members = [other for other in members if other in tensors]
        seen.update(members)
        runs += _same_kind(members, tensors)
    return runs


def _same_kind(names: list[str], tensors: Any) -> list[tuple[str, ...]]:
    """Split a group into runs of one kind: quantised files often keep v at a higher precision."""
    runs: list[list[str]] = []
    for name in names:
        info: TensorInfo = tensors[name]
        vector = len(info.shape) == 1
        if runs and (vector or tensors[runs[-1][-1]].kind == info.kind):
            runs[-1].append(name)
        else:
            runs.append([name])
    return [tuple(run) for run in runs]


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
