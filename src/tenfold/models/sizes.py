"""What a model will take on a device, from its checkpoint's header: no weight is read, no torch.

The same plan of the weights is made that loading makes, so the numbers are those of the loaded
model. Knows nothing of what the device has.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.core.settings import DeviceSettings
from tenfold.core.types import KVDtype, ModelFacts
from tenfold.kernels.lines import CACHE_LINE
from tenfold.models.checkpoint import BLOCKS, open_checkpoint
from tenfold.models.footprint import Footprint
from tenfold.models.spec import ModelSpec
from tenfold.models.weight_plan import Layout, plan_weights

if TYPE_CHECKING:
    from tenfold.kernels.base import WeightKind

_DENSE = ("f32", "f16", "bf16")
_NATIVE_KINDS = tuple(BLOCKS)
"""In the order of the extension's own codes."""


@dataclass(frozen=True, slots=True)
class _Floats:
    """Matrices as plain numbers of ``item`` bytes; ``raw``: quantised ones as in the file."""

    layout: str
    item: int
    raw: bool = False

    def packed_bytes(self, kind: WeightKind, rows: int, cols: int) -> int:
        size = rows * cols * self.item
        if self.raw and kind not in _DENSE:
            per_block, nbytes = BLOCKS[kind]
            size = rows * (cols // per_block) * nbytes
        return -(-size // CACHE_LINE) * CACHE_LINE


@dataclass(frozen=True, slots=True)
class _Panels:
    """The native kernels' panels, as the extension counts them."""

    layout: str
    extension: Any

    def packed_bytes(self, kind: WeightKind, rows: int, cols: int) -> int:
        return int(self.extension.packed_bytes(_NATIVE_KINDS.index(kind), rows, cols))


def layout_of(device: DeviceSettings) -> Layout:
    """How a worker with these settings packs weights."""
    if device.name.startswith("cuda"):
        return _Floats("dense", 4 if device.cuda_dtype == "f32" else 2)
    if device.native:
        try:
            return _Panels("panel32", import_module("tenfold._native"))
        except ImportError:
            pass  # as a worker, which takes the torch column then
    return _Floats("dense-f32", 4, raw=device.kernels_mode == "fast")


def kv_dtype_of(device: DeviceSettings, chosen: KVDtype | None = None) -> KVDtype:
    """How keys and values are kept there, where the model has no choice of its own."""
    if chosen is not None:
        return chosen
    if device.kv_dtype != "auto":
        return device.kv_dtype
    if device.name.startswith("cuda"):
        return device.cuda_dtype
    return "f16" if device.kernels_mode == "fast" else "f32"


@dataclass(frozen=True, slots=True)
class Sizes:
    """``facts``: what the model's worker would say of it. ``steps``: bytes that a step takes for
    its results, by tokens and rows of logits; None where they lie elsewhere than in the device's
    pages."""

    facts: ModelFacts
    steps: Footprint | None


def sizes_on(
    path: Path, name: str, device: DeviceSettings, kv_dtype: KVDtype | None = None
) -> Sizes:
    """Of a model at such a device. Raises ModelFileError for what cannot be loaded."""
    checkpoint = open_checkpoint(path)
    layout, spec = layout_of(device), checkpoint.spec
    plan = plan_weights(checkpoint, layout)
    facts = spec.facts(
        name,
        parameters=plan.parameters,
        weight_bytes=plan.nbytes,
        kv_dtype=kv_dtype_of(device, kv_dtype),
    )
    if isinstance(layout, _Panels) and isinstance(spec, ModelSpec):  # others have them elsewhere
        return Sizes(facts, Footprint(spec))
    return Sizes(facts, None)
