"""The file that keeps what was changed live of clients and groups: hashes of keys, never a key.

One JSON file, readable by its owner only, replaced whole by a rename: a reader sees the old one or
the new one. Several servers may share it; each change is made under a lock, on what the file says
then. Knows nothing of what a config file says, nor of what the changes mean.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from tenfold.core.errors import ConfigError

VERSION = 1

Positive = Annotated[int, msgspec.Meta(ge=1)]
Weight = Annotated[float, msgspec.Meta(gt=0)]


@dataclass(slots=True)
class LiveKey:
    """A key that was made here. Times are seconds since 1970; ``ends`` None: it does not."""

    id: str
    sha256: str
    created: float
    ends: float | None = None


@dataclass(slots=True)
class LiveGroup:
    """What was set live. None leaves it to the config file, or to the default. ``made``: the group
    is there because it was made here, and not only changed."""

    made: bool = False
    weight: Weight | None = None
    group: str | None = None
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    max_concurrent: Positive | None = None


@dataclass(slots=True)
class LiveClient(LiveGroup):
    """``ended``: hashes of keys of the config file, and when each stops to be good. ``born``: tells
    a client from others that had its name before."""

    max_requests: Positive | None = None
    max_tokens: Positive | None = None
    isolate: bool | None = None
    disabled: bool | None = None
    keys: list[LiveKey] = field(default_factory=list)
    ended: dict[str, float] = field(default_factory=dict)
    born: str = ""


@dataclass(slots=True)
class TenantState:
    """``secret``: of it the names of isolated caches are made. ``closed``: a client was made here
    once, so keys are asked for even when none is left."""

    version: int = VERSION
    secret: str = ""
    closed: bool = False
    clients: dict[str, LiveClient] = field(default_factory=dict)
    groups: dict[str, LiveGroup] = field(default_factory=dict)


def copy_of(state: TenantState) -> TenantState:
    """A deep copy, ten times as fast as ``copy.deepcopy``: thousands of clients may be in it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=TenantState)


def default_path(environment: Mapping[str, str] | None = None) -> Path:
    """``clients.json`` in ``$TENFOLD_HOME``, or in ``tenfold`` in the user's folder for state."""
    values = os.environ if environment is None else environment
    if home := values.get("TENFOLD_HOME"):
        return Path(home).expanduser() / "clients.json"
    state = values.get("XDG_STATE_HOME")
    root = Path(state) if state else Path.home() / ".local" / "state"
    return root / "tenfold" / "clients.json"


class TenantFile:
    """Every method raises ConfigError, naming the file and what to do."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path.expanduser()))
        self._seen: tuple[int, int, int] | None = None

    def load(self) -> TenantState:
        """What the file says; an empty state where there is none."""
        self._seen = self._signature()
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return TenantState()
        except OSError as exc:
            raise ConfigError(f"cannot read {self.path}: {exc.strerror}; {_ELSEWHERE}") from exc
        try:
            state = msgspec.json.decode(text, type=TenantState)
        except msgspec.MsgspecError as exc:
            raise ConfigError(
                f"{self.path} is damaged ({exc}); put a copy back, or move it away and make the "
                "clients anew"
            ) from exc
        if state.version != VERSION:
            raise ConfigError(
                f"{self.path} was written in version {state.version} of its format and this is "
                f"version {VERSION}; run the Tenfold that wrote it, or {_ELSEWHERE}"
            )
        return state

    def changed(self) -> bool:
        """Whether somebody else has written it since it was last read or written here."""
        return self._signature() != self._seen

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While nobody else changes the file."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise self._unwritable(exc) from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def save(self, state: TenantState) -> None:
        """Put ``state`` in its place; on the disk when this returns."""
        text = msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n"
        try:
            fresh, name = tempfile.mkstemp(dir=self.path.parent, prefix=".clients-")  # mode 0600
            try:
                with os.fdopen(fresh, "wb") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
            _sync(self.path.parent)
        except OSError as exc:
            raise self._unwritable(exc) from exc
        self._seen = self._signature()

    def _unwritable(self, exc: OSError) -> ConfigError:
        return ConfigError(f"cannot write {self.path}: {exc.strerror}; {_ELSEWHERE}")


_ELSEWHERE = "name another file with server.state"


def _sync(folder: Path) -> None:
    """The rename itself reaches the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
