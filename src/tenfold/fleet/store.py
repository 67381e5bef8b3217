"""The models on this machine: pulled, checked, listed, removed.

    ROOT/models/NAME/…              a model's files, and what is known of them (.tenfold.json)
    ROOT/downloads/NAME/            what an unfinished pull has brought so far
    ROOT/licences/                  texts that were shown; accepted.json
    ROOT/locks/NAME.lock            held while NAME is pulled or removed
    ROOT/packed/                    weights as the kernels want them; the workers' own

A model appears in ``models`` by one rename, after every file was hashed: it is there whole or not
at all. Knows nothing of devices, of loading, or of who asks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tenfold.core.errors import ModelFileError, PullError, TenfoldError
from tenfold.core.sizes import format_bytes
from tenfold.fleet.catalogue import Catalogue, Entry, Licence, entry_of_source
from tenfold.fleet.facts import Facts, check_has_weights, check_shards, checkpoint_facts
from tenfold.fleet.licences import Accept, AcceptedLicences, plain_text
from tenfold.fleet.sources import is_source, parse_source
from tenfold.fleet.sources.base import FileSpec, Job, Progress, quiet

_MANIFEST = ".tenfold.json"


@dataclass(slots=True)
class StoredFile:
    """One file as it was when it was checked; another ``mtime_ns`` asks for a new check."""

    name: str
    sha256: str
    size: int
    mtime_ns: int


@dataclass(slots=True)
class Installed:
    """A model in the store, as its manifest tells it."""

    name: str
    kind: str
    source: str
    licence: str
    licence_url: str
    pulled: str
    files: list[StoredFile] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def as_entry(self) -> Entry:
        """The entry it may once have had: for a model that no catalogue here names."""
        return Entry(
            self.name,
            "embed" if self.kind == "embed" else "generate",
            self.source,
            Licence(self.licence, self.licence_url),
            (self.source,),
            tuple(FileSpec(file.name, file.sha256, file.size) for file in self.files),
        )


@dataclass(slots=True)
class Card:
    """All that can be said of a model. ``installed`` and ``path`` are None before it is pulled."""

    entry: Entry
    installed: Installed | None
    path: Path | None
    facts: Facts


def default_root(environment: Mapping[str, str] | None = None) -> Path:
    """``$TENFOLD_HOME``, or ``tenfold`` in the user's cache folder."""
    values = os.environ if environment is None else environment
    if home := values.get("TENFOLD_HOME"):
        return Path(home).expanduser()
    cache = values.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tenfold"


class Store:
    """Models by catalogue name, by source (``hf:org/repo``), or by a plain path.

    Safe with several processes on one ``root``. Every method raises PullError or ModelFileError
    with what to do.
    """

    def __init__(self, root: Path | None = None, catalogue: Catalogue | None = None) -> None:
        self.root = root or default_root()
        self.catalogue = catalogue or Catalogue()
        self.accepted = AcceptedLicences(self.root / "licences" / "accepted.json")

    def entry(self, name: str) -> Entry:
        """The catalogue's entry, or one made for a source."""
        if name not in self.catalogue and is_source(name):
            return entry_of_source(name)
        if name not in self.catalogue and (installed := self._manifest(name)):
            return installed.as_entry()
        return self.catalogue.get(name)

    def path(self, name: str) -> Path:
        """Where the model's file or folder is. Does not fetch.

        Files that changed since they were checked are hashed again. Raises PullError when the
        model is not pulled, ModelFileError when a file is missing or is not what was pulled.
        """
        if name not in self.catalogue and (plain := _plain_path(name)):
            return plain
        entry = self.entry(name)
        installed = self._current(entry)
        if installed is None:
            raise PullError(f"{name} is not on this machine; fetch it: tenfold pull {name}")
        self._check_unchanged(entry, installed)
        return self._target(installed)

    def pull(
        self, name: str, progress: Progress | None = None, accept: Accept | None = None
    ) -> Path:
        """Where the model is, after fetching what is not there yet.

        Sources are tried in order. ``accept`` is asked where the licence wants it; without it such
        a model is refused. Raises PullError with every source's reason; nothing is then installed,
        and what came is kept for the next try.
        """
        if name not in self.catalogue and (plain := _plain_path(name)):
            return plain
        entry, report = self.entry(name), progress or quiet
        with contextlib.suppress(ModelFileError):
            if self._current(entry) is not None:
                return self.path(name)
        try:
            with self._lock(entry.name, report):
                with contextlib.suppress(ModelFileError):
                    if self._current(entry) is not None:
                        return self.path(name)
                self._agree(entry, accept)
                return self._fetch(entry, report)
        except OSError as exc:
            raise PullError(f"cannot write {exc.filename or self.root}: {exc.strerror}") from exc

    def list(self) -> Sequence[Card]:
        """Every catalogue entry and every other model that was pulled, by name."""
        names = {entry.name for entry in self.catalogue}
        names |= {folder.name for folder in self._folder("models").glob("*/")}
        return [self._card(name) for name in sorted(names) if not name.startswith(".")]

    def show(self, name: str) -> Card:
        """The card with the checkpoint's own facts, where it is pulled (or is a plain path)."""
        plain = None if name in self.catalogue else _plain_path(name)
        if plain:
            entry = Entry(plain.name, "generate", str(plain), Licence("unknown"), ())
            return Card(entry, None, plain, checkpoint_facts(plain))
        card = self._card(name)
        if card.path:
            card.facts = checkpoint_facts(card.path)
        return card

    def remove(self, name: str) -> int:
        """Delete a model and what unfinished pulls left of it. Returns the bytes given back."""
        entry = self.entry(name)
        with self._lock(entry.name, quiet):
            gone = [self._folder("models") / entry.name, self._folder("downloads") / entry.name]
            if not any(folder.exists() for folder in gone):
                raise PullError(f"{name} is not on this machine")
            freed = sum(_bytes_under(folder) for folder in gone)
            for folder in gone:
                _discard(folder)
        return freed

    def licence_text(self, entry: Entry, progress: Progress = quiet) -> str:
        """The licence's text, fetched once and kept; "" where the entry names no source of it."""
        licence = entry.licence
        if not licence.text_source:
            return ""
        kept = self._folder("licences") / f"{entry.name}.txt"
        if not kept.exists():
            work = self._folder("downloads") / f"{entry.name}.licence"
            stage = _fresh(work / "stage")
            spec = FileSpec("licence", licence.text_sha256)
            source = parse_source(licence.text_source)
            try:
                source.fetch(Job(entry.name, [spec], stage, work, progress=progress))
                _hashed(stage, spec)
                text = (stage / spec.name).read_text(encoding="utf-8", errors="replace")
            finally:
                _discard(work)
            kept.parent.mkdir(parents=True, exist_ok=True)
            _write(kept, plain_text(text) + "\n")
        return kept.read_text(encoding="utf-8")

    def _agree(self, entry: Entry, accept: Accept | None) -> None:
        licence = entry.licence
        if not licence.ask or licence in self.accepted:
            return
        text = ""
        with contextlib.suppress(PullError):
            text = self.licence_text(entry)
        if accept is None or not accept(entry.name, licence, text):
            raise PullError(
                f"{entry.name} is under the {licence.name} ({licence.url}), and nobody has agreed; "
                f"to read and agree: tenfold pull {entry.name} --accept-licence"
            )
        self.accepted.add(licence)

    def _fetch(self, entry: Entry, report: Progress) -> Path:
        """Try the sources in order; install what the first good one brings."""
        work = self._folder("downloads") / entry.name
        self._check_space(entry)
        reasons: list[str] = []
        for number, text in enumerate(entry.sources):
            promised = entry.download_bytes if number == 0 else entry.size
            stage = _fresh(work / "stage")
            job = Job(entry.name, entry.files, stage, work, promised, report)
            try:
                specs = parse_source(text).fetch(job)
                files = _checked(entry, specs, stage, report)
            except TenfoldError as exc:
                reasons.append(f"{text}: {exc.message}")
                continue
            licence = entry.licence
            pulled = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            manifest = Installed(
                entry.name, entry.kind, text, licence.name, licence.url, pulled, files
            )
            self._install(manifest, stage)
            _discard(work)
            return self._target(manifest)
        _discard(work / "stage")
        if len(reasons) == 1:
            raise PullError(f"cannot pull {entry.name} from {reasons[0]}")
        raise PullError(
            f"cannot pull {entry.name}: no source answered" + "".join(f"\n  {r}" for r in reasons)
        )

    def _install(self, manifest: Installed, stage: Path) -> None:
        target = self._folder("models") / manifest.name
        _write(stage / _MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        _discard(target)
        stage.rename(target)

    def _check_space(self, entry: Entry) -> None:
        # The largest moment: everything transferred, and everything unpacked beside it.
        needed = entry.size + entry.download_bytes
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise PullError(
                f"{entry.name} needs {format_bytes(needed)} in {self.root} while it is pulled, "
                f"and {format_bytes(free)} are free"
            )

    def _card(self, name: str) -> Card:
        entry = self.entry(name)
        installed = self._current(entry)
        return Card(entry, installed, self._target(installed) if installed else None, {})

    def _manifest(self, name: str) -> Installed | None:
        if "/" in name:
            return None
        try:
            text = (self._folder("models") / name / _MANIFEST).read_text(encoding="utf-8")
            values = json.loads(text)
            values["files"] = [StoredFile(**file) for file in values["files"]]
            return Installed(**values)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _current(self, entry: Entry) -> Installed | None:
        """The installed model, unless the catalogue now asks for other files than it holds."""
        installed = self._manifest(entry.name)
        if installed is None:
            return None
        have = {file.name: file.sha256 for file in installed.files}
        wanted = {file.name: file.sha256 or have.get(file.name) for file in entry.files}
        return installed if not wanted or wanted == have else None

    def _check_unchanged(self, entry: Entry, installed: Installed) -> None:
        folder = self._folder("models") / installed.name
        again = f"fetch it again: tenfold pull {entry.name}"
        for file in installed.files:
            try:
                stat = (folder / file.name).stat()
            except OSError:
                raise ModelFileError(f"{folder / file.name} is missing; {again}") from None
            if stat.st_size == file.size and stat.st_mtime_ns == file.mtime_ns:
                continue
            try:
                _hashed(folder, FileSpec(file.name, file.sha256, file.size))
            except PullError as exc:
                raise ModelFileError(f"in {folder}, {exc.message}; {again}") from exc

    def _target(self, installed: Installed) -> Path:
        folder = self._folder("models") / installed.name
        only = installed.files[0].name if len(installed.files) == 1 else ""
        return folder / only if only.endswith(".gguf") else folder

    def _folder(self, name: str) -> Path:
        return self.root / name

    @contextlib.contextmanager
    def _lock(self, name: str, report: Progress) -> Iterator[None]:
        """Only one process at a time; the system lets go of the lock of one that died."""
        path = self._folder("locks") / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report(f"waiting for another pull of {name}", 0, None)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _plain_path(name: str) -> Path | None:
    """A model that is simply there: a .gguf file, or a folder with a config.json."""
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelFileError(f"{path} is no model: it holds no config.json")
        return path.resolve()
    looks_like_path = name.startswith(("/", "./", "../", "~")) or name.endswith(".gguf")
    if looks_like_path and not is_source(name):
        raise ModelFileError(f"there is no file or folder {name}")
    return None


def _hashed(folder: Path, spec: FileSpec) -> StoredFile:
    """The file with its hash. Raises PullError when hash or size are not the expected ones."""
    path = folder / spec.name
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    stat = path.stat()
    if spec.sha256 and found != spec.sha256:
        raise PullError(f"{spec.name} has a wrong sha256: expected {spec.sha256}, got {found}")
    if spec.size and stat.st_size != spec.size:
        raise PullError(f"{spec.name} has {stat.st_size} bytes, expected {spec.size}")
    return StoredFile(spec.name, found, stat.st_size, stat.st_mtime_ns)


def _checked(
    entry: Entry, specs: Sequence[FileSpec], stage: Path, report: Progress
) -> list[StoredFile]:
    """Every staged file with its hash, or PullError; then nothing is left to go on with."""
    if not specs:
        raise PullError("it holds no files")
    report(f"checking {entry.name}", 0, None)
    try:
        files = [_hashed(stage, spec) for spec in specs]
        check_shards(stage)
        if not entry.files:  # nobody has said what must be there
            check_has_weights(stage)
    except TenfoldError:
        _discard(stage.parent)
        raise
    return files


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _discard(folder: Path) -> None:
    """Delete a folder; a reader sees it whole or not at all."""
    if folder.exists():
        grave = folder.with_name(f".{folder.name}.{os.getpid()}.gone")
        shutil.rmtree(grave, ignore_errors=True)
        folder.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    """Write a small file at once: readers see the old text or the new one."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
