"""A GGUF file written anew with all its matrices in another precision.

For measuring: one model in every precision without fetching any. What the new file holds is the
old file's own rounded values, rounded once more. Vectors and all else are copied. K-quants can be
read but not made here. Knows nothing of who reads the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tenfold.core.errors import ConfigError

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

PRECISIONS = ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q8_0")
_WRITTEN_BY_THE_WRITER = ("GGUF.", "general.architecture", "general.file_type")


def requantise(source: Path, target: Path, precision: str) -> None:
    """Write ``target``. Raises ConfigError for a precision that cannot be made, or rows that are no
    whole number of its blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
    from gguf.quants import dequantize, quantize

    if precision not in PRECISIONS:
        raise ConfigError(f"{precision!r} cannot be made; choose from {', '.join(PRECISIONS)}")
    kind = GGMLQuantizationType[precision.upper()]
    values, _ = GGML_QUANT_SIZES[kind]
    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    _copy_metadata(reader, writer)
    for tensor in reader.tensors:
        if len(tensor.shape) < 2:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        matrix = dequantize(tensor.data, tensor.tensor_type)
        if matrix.shape[-1] % values:
            raise ConfigError(
                f"{source.name}: rows of {tensor.name} hold {matrix.shape[-1]} values, "
                f"no multiple of {values} as {precision} needs"
            )
        writer.add_tensor(tensor.name, quantize(matrix, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_metadata(reader: GGUFReader, writer: GGUFWriter) -> None:
    from gguf import GGUFValueType

    for field in reader.fields.values():
        if field.name.startswith(_WRITTEN_BY_THE_WRITER):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
