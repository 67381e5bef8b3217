"""Packed weights kept on disk, so that loading a model again is reading a file.

``<cache>/packed/<source>-<state>-<layout>.bin`` beside a JSON manifest: <source> hashes the
checkpoint's path, <state> its size, time and header, and the code that laid it out. An image is
written under another name and renamed, so a half-written one is never seen. Knows nothing of
formats or of networks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from tenfold.core.errors import ModelFileError
from tenfold.models.spec import EncoderSpec, ModelSpec, spec_from_dict, spec_to_dict
from tenfold.models.weight_plan import WeightPlan

log = logging.getLogger(__name__)

Parts = Sequence[tuple[int, int]] | None
"""First and last byte, exclusive, of parts of an image, ascending; None for all of it."""

FORMAT = 1
_HEADER_BYTES = 1 << 16
_CHUNK = 16 << 20
_ALONE = 128 << 20
"""Up to so much one thread reads by itself: beside a model that computes on every core, a thread
that is started waits milliseconds for its first turn."""
_TORN_SECONDS = 24 * 3600
"""A file under its temporary name for this long belongs to a process that died."""


@dataclass(frozen=True, slots=True)
class Image:
    """A packed model on disk: what it is, and where its bytes are."""

    spec: ModelSpec | EncoderSpec
    plan: WeightPlan
    data: Path


def fingerprint(path: Path) -> str:
    """Names a checkpoint and its state without reading its weights: "<source>-<state>"."""
    source = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    state = hashlib.sha256(_code_stamp().encode())
    files = [path]
    if path.is_dir():
        files = sorted([*path.rglob("*.json"), *path.rglob("*.safetensors")])
    for file in files:
        stat = file.stat()
        state.update(f"{file.name}:{stat.st_size}:{stat.st_mtime_ns};".encode())
        with file.open("rb") as stream:
            state.update(stream.read(_HEADER_BYTES))
    return f"{source}-{state.hexdigest()[:16]}"


def _code_stamp() -> str:
    """Changes with the code that reads and lays out models: an image made by other code is stale.

    Images made by other kernels have another layout in their name."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


class PackedStore:
    """The packed images of one cache folder for one kernel layout."""

    def __init__(self, cache_dir: Path, layout: str) -> None:
        self._folder = cache_dir / "packed"
        self._layout = re.sub(r"[^\w.]+", "_", layout)
        self._exact_layout = layout

    def find(self, key: str) -> Image | None:
        """The image of this fingerprint, or None if there is none that is whole and ours."""
        data = self._path(key, "bin")
        try:
            manifest = json.loads(self._path(key, "json").read_bytes())
            if manifest["format"] != FORMAT:
                return None
            plan = WeightPlan.from_dict(manifest["plan"])
            spec = spec_from_dict(manifest["spec"])
            whole = data.stat().st_size == plan.nbytes and plan.layout == self._exact_layout
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Image(spec, plan, data) if whole else None

    def save(
        self, key: str, spec: ModelSpec | EncoderSpec, plan: WeightPlan, buffer: Tensor
    ) -> None:
        """Write an image, and remove those of the same checkpoint's earlier states.

        A full or read-only disk costs the next load some time, so it is logged and not raised."""
        manifest = {"format": FORMAT, "spec": spec_to_dict(spec), "plan": plan.to_dict()}
        raw = buffer.numpy().data
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._replace(self._path(key, "bin"), lambda stream: _write(stream, raw))
            text = json.dumps(manifest).encode()
            self._replace(self._path(key, "json"), lambda stream: _write(stream, memoryview(text)))
            self._drop_stale(key)
        except OSError as exc:
            log.warning("packed weights were not kept in %s: %s", self._folder, exc)

    def _path(self, key: str, suffix: str) -> Path:
        return self._folder / f"{key}-{self._layout}.{suffix}"

    def _replace(self, target: Path, write: Callable[[BinaryIO], None]) -> None:
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _drop_stale(self, key: str) -> None:
        source = key.partition("-")[0]
        for torn in self._folder.glob(".new-*"):
            if time.time() - torn.stat().st_mtime > _TORN_SECONDS:
                torn.unlink(missing_ok=True)
        for old in self._folder.glob(f"{source}-*-{self._layout}.*"):
            if not old.name.startswith(key):
                old.unlink(missing_ok=True)


def read_image(image: Image, out: Tensor, parts: Parts = None) -> None:
    """Fill ``out`` (uint8, ``plan.nbytes``) from the image, or these ``parts`` of it: much of it by
    two threads side by side, straight into it.

    Raises ModelFileError where the file ends early."""
    raw = out.numpy().data
    with image.data.open("rb", buffering=0) as stream:
        handle = stream.fileno()

        def read(start: int, end: int) -> None:
            while start < end:
                count = os.preadv(handle, [raw[start:end]], start)
                if not count:
                    raise ModelFileError(f"{image.data}: the packed image ends early; remove it")
                start += count

        def read_all(wanted: Parts) -> None:
            for start, end in wanted or ():
                read(start, end)

        wanted = [(0, len(raw))] if parts is None else list(parts)
        whole = sum(end - start for start, end in wanted)
        if whole <= _ALONE:
            read_all(wanted)
            return
        first, second = _cut(wanted, whole // 2)
        with ThreadPoolExecutor(1) as helper:
            rest = helper.submit(read_all, second)
            read_all(first)
            rest.result()


def _cut(
    parts: Sequence[tuple[int, int]], at: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The first ``at`` bytes of the parts, and the others."""
    first: list[tuple[int, int]] = []
    second: list[tuple[int, int]] = []
    for start, end in parts:
        middle = min(end, start + at)
        at -= middle - start
        first += [(start, middle)] if start < middle else []
        second += [(middle, end)] if middle < end else []
    return first, second


def _write(stream: BinaryIO, raw: memoryview) -> None:
    for start in range(0, len(raw), _CHUNK):
        stream.write(raw[start : start + _CHUNK])
