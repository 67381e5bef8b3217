"""Where every weight of a model lies in one flat buffer.

The plan needs only the checkpoint's header, and no torch. Matrices that share an input (q, k, v;
gate, up) become one where their kinds agree. Knows nothing of how the buffer is filled.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tenfold.models.checkpoint import Checkpoint, TensorInfo, count_parameters

if TYPE_CHECKING:
    from tenfold.kernels.base import WeightKind

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


class Layout(Protocol):
    """How a kernel table packs matrices; ``kernels.base.Kernels`` is one."""

    @property
    def layout(self) -> str: ...

    def packed_bytes(self, kind: WeightKind, rows: int, cols: int) -> int: ...


def plan_weights(checkpoint: Checkpoint, kernels: Layout) -> WeightPlan:
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
