"""The GGUF header reader against the gguf package, and against damaged files."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.core.errors import ModelFileError
from tenfold.text.gguf_metadata import read_gguf_metadata

VALUES: dict[str, tuple[object, gguf.GGUFValueType]] = {
    "a.u8": (255, gguf.GGUFValueType.UINT8),
    "a.i8": (-128, gguf.GGUFValueType.INT8),
    "a.u16": (65535, gguf.GGUFValueType.UINT16),
    "a.i16": (-32768, gguf.GGUFValueType.INT16),
    "a.u32": (2**32 - 1, gguf.GGUFValueType.UINT32),
    "a.i32": (-(2**31), gguf.GGUFValueType.INT32),
    "a.u64": (2**64 - 1, gguf.GGUFValueType.UINT64),
    "a.i64": (-(2**63), gguf.GGUFValueType.INT64),
    "a.f32": (0.5, gguf.GGUFValueType.FLOAT32),
    "a.f64": (1e300, gguf.GGUFValueType.FLOAT64),
    "a.bool": (True, gguf.GGUFValueType.BOOL),
    "a.text": ("größe 😀\x00", gguf.GGUFValueType.STRING),
    "a.empty": ("", gguf.GGUFValueType.STRING),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key, (value, kind) in VALUES.items():
        writer.add_key_value(key, value, kind)
    writer.add_array("b.texts", ["x", "", "世界"])
    writer.add_array("b.ints", [1, -2, 3])
    writer.add_array("b.floats", [1.0, 0.25])
    writer.add_array("b.bools", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "m.gguf"


def test_every_kind_of_value(path: Path) -> None:
    metadata = read_gguf_metadata(path)
    assert metadata["general.architecture"] == "llama"
    for key, (value, _) in VALUES.items():
        assert metadata[key] == value
    assert metadata["b.texts"] == ["x", "", "世界"]
    assert metadata["b.ints"] == [1, -2, 3]
    assert metadata["b.floats"] == [1.0, 0.25]
    assert metadata["b.bools"] == [True, False]


@pytest.mark.slow
def test_equals_the_gguf_package(smollm2_path: Path) -> None:
    metadata = read_gguf_metadata(smollm2_path)
    fields = gguf.GGUFReader(smollm2_path).fields
    assert metadata.keys() == {key for key in fields if not key.startswith("GGUF.")}
    for key, value in metadata.items():
        assert value == fields[key].contents()


def test_every_truncation_is_one_clear_error(path: Path) -> None:
    data = path.read_bytes()
    end = data.index(b"b.bools") + len("b.bools") + 4 + 12 + 2
    for size in range(end):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFileError, match=r"m\.gguf"):
            read_gguf_metadata(path)


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_no_flipped_byte_crashes(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    path = tmp_path_factory.mktemp("flip") / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("texts", ["a", "bc"])
    writer.add_array("ints", [1, 2])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    data = bytearray(path.read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(data)
    try:
        read_gguf_metadata(path)
    except ModelFileError as exc:
        assert "m.gguf" in exc.message


def test_huge_counts_are_not_believed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(b"b.ints") + len("b.ints") + 8
    data[place : place + 8] = struct.pack("<Q", 1 << 60)
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="truncated or corrupt"):
        read_gguf_metadata(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot read it"),
        (b"PK\x03\x04" + bytes(40), "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
    ],
)
def test_other_files(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ModelFileError, match=message):
        read_gguf_metadata(tmp_path / "m.gguf")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot read it"):
        read_gguf_metadata(tmp_path / "none.gguf")
