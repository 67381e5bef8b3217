"""A GGUF file's header: its metadata, and where each tensor's bytes lie.

Reads through the ``gguf`` package, imported when first used, with two things added: every length in
the header is checked against the file's size before it is believed, and arrays of strings (a
vocabulary of 262,144 tokens) are stepped over in one go instead of entry by entry. Knows nothing of
what the metadata mean.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tenfold.core.errors import ModelFileError
from tenfold.models.checkpoint import BLOCKS

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderField


class _Damaged(Exception):
    """A header that contradicts itself or its file; the text says how."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies. ``shape`` is row-major (GGUF stores it reversed)."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata (arrays as lists), tensors by the file's own names, and the mapped file."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    data: NDArray[np.uint8]


def read_header(path: Path) -> GgufHeader:
    """Read and check a GGUF header. Raises ModelFileError, naming the file and what is wrong."""
    try:
        reader = _reader_class()(path)
        if reader.byte_order == "S":
            raise _Damaged("it is a big-endian file; convert it to little-endian")
        metadata = {name: _value(field, reader.spans) for name, field in reader.fields.items()}
        tensors = _tensors(reader)
    except _Damaged as exc:
        raise ModelFileError(f"{path}: cannot be loaded: {exc}") from None
    except (ValueError, LookupError, TypeError, OverflowError, MemoryError, OSError) as exc:
        reason = " ".join(str(exc).split())[:120] or type(exc).__name__
        raise ModelFileError(f"{path}: not a readable GGUF file: {reason}") from None
    except ImportError:
        raise ModelFileError(f"{path}: reading GGUF files needs the 'gguf' package") from None
    return GgufHeader(metadata, tensors, reader.data)


def _tensors(reader: GGUFReader) -> dict[str, GgufTensor]:
    tensors = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name.lower()
        shape = tuple(int(n) for n in reversed(tensor.shape.tolist()))
        if kind not in BLOCKS:
            raise _Damaged(
                f"tensor {tensor.name} has type {tensor.tensor_type.name}, which is not supported "
                f"(supported: {', '.join(k.upper() for k in BLOCKS)})"
            )
        per_block, size = BLOCKS[kind]
        nbytes = prod(shape) // per_block * size
        start, end = int(tensor.data_offset), int(tensor.data_offset) + nbytes
        if end > len(reader.data):
            raise _Damaged(_short(end, len(reader.data)))
        tensors[tensor.name] = GgufTensor(kind, shape, start, nbytes)
    return tensors


def _value(field: ReaderField, spans: set[int]) -> Any:
    """A scalar, a string, or a list. ``spans``: the ids of arrays that were kept in one piece."""
    span = field.parts[-1]
    if id(span) not in spans:
        return field.contents()
    return _strings(span) if field.types[-1].name == "STRING" else span.tolist()


def _strings(span: NDArray[np.uint8]) -> list[str]:
    raw, at, found = span.tobytes(), 0, []
    while at < len(raw):
        (length,) = struct.unpack_from("<Q", raw, at)
        # A vocabulary may hold bytes that are no UTF-8 by themselves.
        found.append(raw[at + 8 : at + 8 + length].decode("utf-8", errors="replace"))
        at += 8 + length
    return found


def _short(needed: int, size: int) -> str:
    return f"the file is truncated or damaged: {needed:,} bytes are needed, it has {size:,}"


def _reader_class() -> Any:
    from gguf import GGUFReader, GGUFValueType

    class CheckedReader(GGUFReader):
        """The package's reader, with bounds checked and arrays read whole."""

        def __init__(self, path: Path) -> None:
            self.spans: set[int] = set()
            super().__init__(path, "c")

        def _get(
            self, offset: int, dtype: Any, count: int = 1, override_order: Any = None
        ) -> NDArray[Any]:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise _Damaged(_short(end, len(self.data)))
            return super()._get(int(offset), dtype, int(count), override_order)

        def _get_field_parts(
            self, orig_offs: int, raw_type: int
        ) -> tuple[int, list[NDArray[Any]], list[int], list[GGUFValueType]]:
            if raw_type != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            item = self._get(orig_offs, np.uint32)
            length = self._get(orig_offs + 4, np.uint64)
            kind, start = GGUFValueType(item[0]), int(orig_offs) + 12
            if kind == GGUFValueType.ARRAY:
                raise _Damaged("it holds an array of arrays, which no known model needs")
            if kind == GGUFValueType.STRING:
                span = self._get(start, np.uint8, self._end_of_strings(start, length[0]) - start)
            else:
                span = self._get(start, self.gguf_scalar_to_np[kind], length[0])
            self.spans.add(id(span))
            parts = [item, length, span]
            return 12 + int(span.nbytes), parts, [2], [GGUFValueType.ARRAY, kind]

        def _end_of_strings(self, start: int, count: int) -> int:
            at, data, size = start, self.data.data, len(self.data)
            unpack = struct.Struct("<Q").unpack_from
            for _ in range(int(count)):
                if at + 8 > size:
                    raise _Damaged(_short(at + 8, size))
                at += 8 + unpack(data, at)[0]
            return at

    return CheckedReader
