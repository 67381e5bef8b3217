"""What a source of model files must do. Knows nothing of the catalogue or the store's layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tenfold.core.errors import PullError

Progress = Callable[[str, int, int | None], None]
"""Called often during a fetch: what is going on, bytes so far, bytes in all (None: unknown)."""


def quiet(what: str, done: int, total: int | None) -> None:
    """A Progress that shows nothing."""


@dataclass(slots=True, frozen=True)
class FileSpec:
    """A file: ``name`` inside the model's folder, hash ("" unknown) and bytes (0 unknown)."""

    name: str
    sha256: str = ""
    size: int = 0


@dataclass(slots=True)
class Job:
    """One fetch. ``stage`` receives the finished files; ``work`` keeps what a later try can reuse.

    ``files`` are the files wanted; empty: the source decides. ``download_bytes`` is what will be
    transferred, 0 where nobody knows.
    """

    name: str
    files: Sequence[FileSpec]
    stage: Path
    work: Path
    download_bytes: int = 0
    progress: Progress = quiet


class Source(Protocol):
    """One place a model's files can come from. ``text`` is how the catalogue writes it."""

    text: str

    def fetch(self, job: Job) -> list[FileSpec]:
        """Put every file into ``job.stage`` under its own name; say which there are.

        A returned hash or size may be empty: the store hashes every file itself. Raises PullError
        with a reason of one line. What was transferred before a failure stays in ``job.work``.
        """
        ...


def inside(folder: Path, name: str) -> Path:
    """``folder / name``, with its parents made. Raises PullError for a name that would leave it."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise PullError(f"{name!r} is not a file name inside a model's folder")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
