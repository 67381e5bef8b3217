"""The book of clients and groups: what the config file says, and over it what was changed live.

A key finds its client here, workers and limits get their trees, and ``/v1/admin`` its changes. A
change is in the file before it is in force, and whoever listens is told. Knows nothing of HTTP, of
requests, and of how shares and limits are kept.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

from tenfold.core.clock import Clock, SystemClock
from tenfold.core.errors import ConfigError, Conflict, InvalidRequest, NotFound
from tenfold.core.keys import hash_key, new_key
from tenfold.core.settings import ClientSettings, GroupSettings, Share
from tenfold.core.tenancy import check_tree
from tenfold.fleet.tenant_file import (
    LiveClient,
    LiveGroup,
    LiveKey,
    TenantFile,
    TenantState,
    copy_of,
)

log = logging.getLogger("tenfold.fleet")

LOOK_SECONDS = 1.0
"""How often, at most, the file is looked at for what another server has changed."""

_NOT_SETTINGS = {"made", "keys", "ended", "born"}
GROUP_FIELDS = tuple(f.name for f in fields(LiveGroup) if f.name not in _NOT_SETTINGS)
CLIENT_FIELDS = tuple(f.name for f in fields(LiveClient) if f.name not in _NOT_SETTINGS)

_NOBODY = hash_key("")

One = TypeVar("One", ClientSettings, GroupSettings)


class KeyInfo(NamedTuple):
    """A key, for people to see. ``created`` is None for the config file's."""

    id: str
    created: float | None
    ends: float | None


@dataclass(slots=True)
class Entry:
    """A client or a group with where it comes from. ``live``: the settings that were set live."""

    settings: ClientSettings | GroupSettings
    from_file: bool
    live: list[str]
    keys: list[KeyInfo] = field(default_factory=list)


class _Key(NamedTuple):
    client: str
    sha256: str
    ends: float | None
    info: KeyInfo


@dataclass(slots=True)
class _Book:
    """A state laid over the config file, ready to be asked."""

    state: TenantState
    clients: dict[str, ClientSettings]
    groups: dict[str, GroupSettings]
    keys: dict[str, list[_Key]]


class Tenants:
    """The clients and groups of one server. One thread.

    ``clients`` and ``groups`` are those of the config file. Without ``file`` changes last as long
    as this object. ``wall`` tells seconds since 1970. Raises ConfigError for a file that cannot be
    read, or that does not fit what the config file says.
    """

    def __init__(
        self,
        clients: Iterable[ClientSettings] = (),
        groups: Iterable[GroupSettings] = (),
        *,
        file: TenantFile | None = None,
        clock: Clock | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._file_clients = {one.name: one for one in clients}
        self._file_groups = {one.name: one for one in groups}
        self._file = file
        self._clock = clock or SystemClock()
        self._wall = wall
        self._listeners: list[Callable[[], None]] = []
        self._looked = self._clock.now()
        self._stale = False
        self._pepper = os.urandom(32)
        self._take(self._laid_over(file.load() if file else TenantState()))
        self._warn()
        if any(client.isolate for client in self.clients.values()):
            self._need_secret()

    # --- asking ---------------------------------------------------------------------------------
    @property
    def clients(self) -> Mapping[str, ClientSettings]:
        return self._book.clients

    @property
    def groups(self) -> Mapping[str, GroupSettings]:
        return self._book.groups

    @property
    def keys_required(self) -> bool:
        """Whether callers need a key: once there is a client, or has been one made live."""
        return bool(self._book.clients) or self._book.state.closed

    def owner(self, key: str) -> ClientSettings | None:
        """Whose key this is; None for one that is not known, or not good any more.

        The same work whatever the key: one hash, one look-up under a hash that only this process
        can compute, one comparison in constant time. How long it takes tells nothing of the hashes.
        """
        self._look()
        digest = hash_key(key)
        found = self._owners.get(self._blind(digest))
        same = hmac.compare_digest(found.sha256 if found else _NOBODY, digest)
        if found is None or not same or _is_past(found.ends, self._wall()):
            return None
        return self._book.clients[found.client]

    def _blind(self, digest: str) -> bytes:
        return blake2b(digest.encode(), key=self._pepper, digest_size=16).digest()

    def shares(self) -> list[Share]:
        """The tree of shares, for workers."""
        groups = [group.share() for group in self.groups.values()]
        return groups + [client.share() for client in self.clients.values()]

    def namespace(self, client: str, salt: str) -> str:
        """The namespace of the prefix cache for a request of this client with this ``cache_salt``.

        Equal salts meet, as with vLLM: a salt is for those who know it. An isolated client meets
        only itself, with each of its salts apart; its namespace cannot be guessed.
        """
        settings = self._book.clients.get(client)
        if settings is None or not settings.isolate:
            return salt
        live = self._book.state.clients.get(client)
        what = "\0".join((client, live.born if live else "", salt))
        secret = bytes.fromhex(self._book.state.secret)
        return (
            "isolated:" + hmac.digest(secret, what.encode("utf-8", "surrogatepass"), "sha256").hex()
        )

    def client(self, name: str) -> Entry:
        """Raises NotFound."""
        self._look()
        if name not in self._book.clients:
            raise NotFound(f"there is no client {name[:80]!r}", param="name")
        live = self._book.state.clients.get(name, LiveClient())
        keys = [key.info for key in self._book.keys[name]]
        set_live = _set_fields(live, CLIENT_FIELDS)
        return Entry(self._book.clients[name], name in self._file_clients, set_live, keys)

    def group(self, name: str) -> Entry:
        """Raises NotFound."""
        self._look()
        if name not in self._book.groups:
            raise NotFound(f"there is no group {name[:80]!r}", param="name")
        live = self._book.state.groups.get(name, LiveGroup())
        set_live = _set_fields(live, GROUP_FIELDS)
        return Entry(self._book.groups[name], name in self._file_groups, set_live)

    # --- changing -------------------------------------------------------------------------------
    def listen(self, heard: Callable[[], None]) -> None:
        """Call ``heard`` now, and after every change."""
        self._listeners.append(heard)
        heard()

    def add_client(self, name: str, settings: Mapping[str, Any]) -> str:
        """Make a client and its first key, which nobody can ask for again. Raises Conflict for a
        name that is taken, InvalidRequest for what does not fit."""
        with self._changing() as state:
            if _has(state.clients, self._file_clients, name):
                raise Conflict(f"there is a client {name!r} already", param="name")
            live = LiveClient(made=True, born=secrets.token_hex(8))
            state.clients[name] = live
            state.closed = True
            _set(live, settings)
            return self._add_key(live)

    def set_client(self, name: str, settings: Mapping[str, Any]) -> None:
        """Change settings; None takes a live change back. Raises NotFound, InvalidRequest."""
        with self._changing() as state:
            _set(self._live_client(state, name), settings)

    def rotate(self, name: str, *, grace: float | None = 0.0) -> str:
        """Make another key for a client. Its older ones are good for ``grace`` more seconds; None
        lets them be. Raises NotFound."""
        with self._changing() as state:
            live = self._live_client(state, name)
            if grace is not None:
                ends = self._wall() + grace
                for key in live.keys:
                    key.ends = _earlier(key.ends, ends)
                for hashed in self._file_keys(name):
                    live.ended[hashed] = _earlier(live.ended.get(hashed), ends)
            return self._add_key(live)

    def revoke(self, name: str, key_id: str) -> None:
        """End one key at once. Raises NotFound."""
        with self._changing() as state:
            live = self._live_client(state, name)
            found = _client_keys(name, self._file_keys(name), live)
            hashed = next((key.sha256 for key in found if key.info.id == key_id), None)
            if hashed is None:
                raise NotFound(f"client {name!r} has no key {key_id[:80]!r}", param="id")
            live.keys = [key for key in live.keys if key.sha256 != hashed]
            if hashed in self._file_keys(name):
                live.ended[hashed] = self._wall()

    def remove_client(self, name: str) -> None:
        """Forget a client that was made live. Raises NotFound; Conflict for one of the file."""
        with self._changing() as state:
            self._live_client(state, name)
            if name in self._file_clients:
                raise Conflict(
                    f"the client {name!r} is defined in the config file; take it out there, or "
                    "disable it",
                    param="name",
                )
            del state.clients[name]

    def add_group(self, name: str, settings: Mapping[str, Any]) -> None:
        """Raises Conflict for a name that is taken, InvalidRequest for what does not fit."""
        with self._changing() as state:
            if _has(state.groups, self._file_groups, name):
                raise Conflict(f"there is a group {name!r} already", param="name")
            state.groups[name] = LiveGroup(made=True)
            _set(state.groups[name], settings)

    def set_group(self, name: str, settings: Mapping[str, Any]) -> None:
        """Change settings; None takes a live change back. Raises NotFound, InvalidRequest."""
        with self._changing() as state:
            _set(self._live_group(state, name), settings)

    def remove_group(self, name: str) -> None:
        """Forget a group that was made live. Raises NotFound; Conflict for one of the file, and for
        one that something is in."""
        with self._changing() as state:
            self._live_group(state, name)
            if name in self._file_groups:
                raise Conflict(
                    f"the group {name!r} is defined in the config file; take it out there",
                    param="name",
                )
            clients, groups = self._merged_clients(state), self._merged_groups(state)
            inside = [one for one, client in clients.items() if client.group == name]
            inside += [one for one, group in groups.items() if group.group == name]
            if inside:
                more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
                raise Conflict(
                    f"{', '.join(inside[:3])}{more} are in the group {name!r}; move them out first",
                    param="name",
                )
            del state.groups[name]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[TenantState]:
        """A copy of the state to change: kept, put in force and told if it is sound; of one that is
        not, nothing stays."""
        with self._file.locked() if self._file else contextlib.nullcontext():
            if self._file and (self._stale or self._file.changed()):
                self._reload(self._file)
            state = copy_of(self._book.state)
            yield state
            self._prune(state)
            state.secret = state.secret or secrets.token_hex(32)
            try:
                book = self._laid_over(state)
            except ConfigError as error:
                raise InvalidRequest(error.message, param=error.param) from None
            if self._file:
                self._file.save(state)
            self._take(book)
        self._tell()

    def _need_secret(self) -> None:
        if not self._book.state.secret:
            with self._changing():
                pass

    def _add_key(self, live: LiveClient) -> str:
        key = new_key()
        live.keys.append(LiveKey(f"key-{secrets.token_hex(4)}", hash_key(key), self._wall()))
        return key

    def _live_client(self, state: TenantState, name: str) -> LiveClient:
        """What was changed of a client, to be changed further. Raises NotFound."""
        if not _has(state.clients, self._file_clients, name):
            raise NotFound(f"there is no client {name[:80]!r}", param="name")
        return state.clients.setdefault(name, LiveClient())

    def _live_group(self, state: TenantState, name: str) -> LiveGroup:
        if not _has(state.groups, self._file_groups, name):
            raise NotFound(f"there is no group {name[:80]!r}", param="name")
        return state.groups.setdefault(name, LiveGroup())

    def _prune(self, state: TenantState) -> None:
        """Drop what has no effect any more: keys that ended, changes of what is gone or was taken
        back."""
        now = self._wall()
        for name, live in state.clients.items():
            live.keys = [key for key in live.keys if not _is_past(key.ends, now)]
            known = self._file_keys(name)
            live.ended = {hashed: at for hashed, at in live.ended.items() if hashed in known}
        state.clients = {
            name: live
            for name, live in state.clients.items()
            if live.made or (name in self._file_clients and live != LiveClient())
        }
        state.groups = {
            name: live
            for name, live in state.groups.items()
            if live.made or (name in self._file_groups and live != LiveGroup())
        }

    # --- file over file -------------------------------------------------------------------------
    def _file_keys(self, name: str) -> tuple[str, ...]:
        return self._file_clients[name].keys if name in self._file_clients else ()

    def _merged_clients(self, state: TenantState) -> dict[str, ClientSettings]:
        merged = dict(self._file_clients)
        for name, live in state.clients.items():
            if live.made or name in merged:
                merged[name] = _over(merged.get(name) or ClientSettings(name), live, CLIENT_FIELDS)
        return merged

    def _merged_groups(self, state: TenantState) -> dict[str, GroupSettings]:
        merged = dict(self._file_groups)
        for name, live in state.groups.items():
            if live.made or name in merged:
                merged[name] = _over(merged.get(name) or GroupSettings(name), live, GROUP_FIELDS)
        return merged

    def _laid_over(self, state: TenantState) -> _Book:
        """Raises ConfigError where names clash, a group is missing, or one is inside itself."""
        clients, groups = self._merged_clients(state), self._merged_groups(state)
        check_tree(
            {name: one.group for name, one in clients.items()},
            {name: one.group for name, one in groups.items()},
        )
        live = state.clients
        keys = {name: _client_keys(name, self._file_keys(name), live.get(name)) for name in clients}
        hashes = [key.sha256 for found in keys.values() for key in found]
        if len(set(hashes)) != len(hashes):
            raise ConfigError("two clients have the same key; every client needs its own")
        return _Book(state, clients, groups, keys)

    def _take(self, book: _Book) -> None:
        self._book = book
        keys = [key for keys in book.keys.values() for key in keys]
        self._owners = {self._blind(key.sha256): key for key in keys}

    def _tell(self) -> None:
        for heard in self._listeners:
            heard()

    def _look(self) -> None:
        """See, now and then, what another server has written."""
        now = self._clock.now()
        if self._file is None or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if not self._file.changed():
            return
        try:
            self._reload(self._file)
        except ConfigError as error:
            log.error("clients stay as they were: %s", error.message)
            return
        log.info("clients were changed by another server")
        self._tell()

    def _reload(self, file: TenantFile) -> None:
        """Take what the file says. Raises ConfigError, with everything as it was."""
        self._stale = True
        self._take(self._laid_over(file.load()))
        self._stale = False

    def _warn(self) -> None:
        """Say at the start where live changes hide what the config file says."""
        for kind, live in (
            ("clients", self._book.state.clients),
            ("groups", self._book.state.groups),
        ):
            known: Mapping[str, Any] = (
                self._file_clients if kind == "clients" else self._file_groups
            )
            for name, one in live.items():
                if name in known and (hidden := _set_fields(one, CLIENT_FIELDS)):
                    log.warning("%s.%s: %s set live, over the config file", kind, name, hidden)
                elif name not in known and not one.made:
                    log.warning("%s.%s is not in the config file any more", kind, name)


def _has(live: Mapping[str, LiveGroup], known: Mapping[str, Any], name: str) -> bool:
    """Whether there is such a client, or group, live or in the config file."""
    return name in known or (name in live and live[name].made)


def _client_keys(name: str, file_keys: tuple[str, ...], live: LiveClient | None) -> list[_Key]:
    """A client's keys: the file's first, then those made live."""
    found = []
    for number, hashed in enumerate(file_keys, start=1):
        ends = live.ended.get(hashed) if live else None
        found.append(_Key(name, hashed, ends, KeyInfo(f"file-{number}", None, ends)))
    for key in live.keys if live else ():
        found.append(_Key(name, key.sha256, key.ends, KeyInfo(key.id, key.created, key.ends)))
    return found


def _over(base: One, live: LiveGroup, names: tuple[str, ...]) -> One:
    return replace(base, **{name: getattr(live, name) for name in _set_fields(live, names)})


def _set_fields(live: LiveGroup, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if getattr(live, name, None) is not None]


def _set(live: LiveGroup, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        setattr(live, name, value)


def _is_past(ends: float | None, now: float) -> bool:
    return ends is not None and ends <= now


def _earlier(ends: float | None, other: float) -> float:
    return other if ends is None else min(ends, other)
