"""``path:/folder`` or ``path:/file.gguf``: files that are already on this machine, copied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tenfold.core.errors import PullError
from tenfold.fleet.sources.base import FileSpec, Job, inside

_PIECE = 8 << 20


class _Copy(NamedTuple):
    origin: Path
    spec: FileSpec


class FolderSource:
    def __init__(self, text: str) -> None:
        self.text = text
        self.path = Path(text.removeprefix("path:")).expanduser()
        if not self.path.is_absolute():
            raise PullError(f"{text}: write an absolute path")

    def fetch(self, job: Job) -> list[FileSpec]:
        copies = list(self._copies(job))
        total = sum(copy.origin.stat().st_size for copy in copies)
        done = 0
        for origin, spec in copies:
            with origin.open("rb") as reader, inside(job.stage, spec.name).open("wb") as writer:
                while piece := reader.read(_PIECE):
                    writer.write(piece)
                    done += len(piece)
                    job.progress(f"copying {spec.name}", done, total)
        return [copy.spec for copy in copies]

    def _copies(self, job: Job) -> Iterator[_Copy]:
        if self.path.is_file():
            if len(job.files) > 1:
                raise PullError(f"{self.path} is one file, and {len(job.files)} are wanted")
            yield _Copy(self.path, job.files[0] if job.files else FileSpec(self.path.name))
            return
        if not self.path.is_dir():
            raise PullError(f"there is no file or folder {self.path}")
        for spec in job.files or self._everything():
            if not (self.path / spec.name).is_file():
                raise PullError(f"{self.path} holds no {spec.name}")
            yield _Copy(self.path / spec.name, spec)

    def _everything(self) -> list[FileSpec]:
        found = sorted(path for path in self.path.rglob("*") if path.is_file())
        return [FileSpec(str(path.relative_to(self.path))) for path in found]
