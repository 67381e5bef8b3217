"""The contract of a checkpoint on disk, whichever format, and how one is opened and described.

A checkpoint undoes its own format's quirks: what it gives out is under Tenfold's names, in the row
order and with the offsets that the decoder expects. Imports no torch, so that the control plane can
describe a model cheaply. Knows nothing of packing or of memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from tenfold.core.errors import ModelFileError
from tenfold.models.names import expected_shapes
from tenfold.models.spec import EncoderSpec, ModelSpec

if TYPE_CHECKING:
    from tenfold.kernels.base import WeightKind

BLOCKS: dict[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "q8_0": (32, 34),
    "q4_k": (256, 144),
    "q6_k": (256, 210),
}
"""Weights per block and bytes per block of each kind, as stored in a file."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One weight: its kind and (outputs, inputs) shape, and what its file calls it.

    ``part`` picks one slab of a source that stacks several (the experts of a layer), else None.
    """

    kind: WeightKind
    shape: tuple[int, ...]
    source: str
    part: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        per_block, size = BLOCKS[self.kind]
        return prod(self.shape) // per_block * size


class Checkpoint(Protocol):
    """An opened checkpoint whose header is read and checked; weights are read when asked for."""

    path: Path
    format: str

    @property
    def spec(self) -> ModelSpec | EncoderSpec: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Exactly the names of ``expected_shapes(spec)``, each with that shape."""
        ...

    def matrix(self, name: str) -> NDArray[np.uint8]:
        """A matrix's stored bytes (rows, bytes per row), rows in the decoder's order."""
        ...

    def vector(self, name: str) -> NDArray[np.float32]:
        """A norm's or bias's values as the decoder uses them."""
        ...


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """What ``tenfold models show`` prints of a checkpoint. ``kinds``: matrices by precision."""

    path: str
    format: str
    family: str
    context_length: int
    vocab_size: int
    hidden_size: int
    layers: int
    parameters: int
    file_bytes: int
    kinds: dict[str, int] = field(default_factory=dict)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a GGUF file or a Hugging Face folder, and check that every weight is there.

    Raises ModelFileError, in one line that names the file, for anything that cannot be loaded.
    """
    if path.is_dir():
        from tenfold.models.hf_folder import HfFolder

        return HfFolder(path)
    if not path.exists():
        raise ModelFileError(f"{path}: no such file or folder")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as exc:
        raise ModelFileError(f"{path}: cannot be read: {exc.strerror}") from None
    if magic != b"GGUF":
        raise ModelFileError(
            f"{path}: neither a model folder nor a GGUF file (it starts with {magic!r})"
        )
    from tenfold.models.gguf_file import GgufFile

    return GgufFile(path)


def describe_checkpoint(path: Path) -> CheckpointSummary:
    """Size, family and precisions of a checkpoint, from its header alone."""
    checkpoint = open_checkpoint(path)
    spec, tensors = checkpoint.spec, checkpoint.tensors
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return CheckpointSummary(
        path=str(path),
        format=checkpoint.format,
        family=spec.family,
        context_length=spec.context,
        vocab_size=spec.vocab,
        hidden_size=spec.hidden,
        layers=spec.layers,
        parameters=count_parameters(checkpoint),
        file_bytes=sum(file.stat().st_size for file in files),
        kinds=dict(Counter(info.kind for info in tensors.values() if len(info.shape) == 2)),
    )


def count_parameters(checkpoint: Checkpoint) -> int:
    """Weights of the model, a tied output head counted once."""
    return sum(prod(info.shape) for info in checkpoint.tensors.values())


def check_shapes(
    path: Path, spec: ModelSpec | EncoderSpec, found: Mapping[str, TensorInfo]
) -> None:
    """Raise ModelFileError for the first tensor whose shape or blocks do not fit the network."""
    for name, shape in expected_shapes(spec).items():
        info = found[name]
        if info.shape != shape:
            raise ModelFileError(
                f"{path}: tensor {info.source} has shape {list(info.shape)}; "
                f"this {spec.family} model needs {list(shape)}"
            )
        if len(shape) == 1 and info.kind not in ("f32", "f16", "bf16"):
            raise ModelFileError(
                f"{path}: tensor {info.source} is {info.kind}; plain floats expected"
            )
        if info.shape[-1] % BLOCKS[info.kind][0]:
            raise ModelFileError(
                f"{path}: tensor {info.source} is {info.kind} but its rows of {info.shape[-1]} "
                f"are no multiple of {BLOCKS[info.kind][0]}"
            )


def to_float32(raw: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """Flat bytes of a plain float kind ("f32", "f16" or "bf16") as float32 values."""
    if kind == "f32":
        return raw.view("<f4").astype(np.float32)
    if kind == "f16":
        return raw.view("<f2").astype(np.float32)
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
