"""Rules that a book of clients and groups must keep, wherever it was written.

Knows names and who belongs to whom; nothing of keys, limits, files or requests.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from tenfold.core.errors import ConfigError

ADMIN = "admin"
ANONYMOUS = "anonymous"
OTHER = "other"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_TAKEN = {
    ADMIN: "the admin key's own client",
    ANONYMOUS: "callers without a name",
    OTHER: "the metrics label of all further clients",
}


def check_tenant_name(name: str) -> str:
    """``name`` itself. Raises ConfigError where it cannot name a client or a group."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a client or a group: use up to 64 letters, digits and "
            "'. _ @ + -', and begin with a letter or a digit",
            param="name",
        )
    if name in _TAKEN:
        raise ConfigError(
            f"the name {name!r} stands for {_TAKEN[name]}; choose another", param="name"
        )
    return name


def check_tree(clients: Mapping[str, str], groups: Mapping[str, str]) -> None:
    """Names to the group each belongs to (empty: none). Raises ConfigError, naming what to change,
    for a bad name, one that a client and a group share, a group that is not there, or one inside
    itself."""
    for name in (*clients, *groups):
        check_tenant_name(name)
    for name in clients.keys() & groups.keys():
        raise ConfigError(
            f"{name!r} names a client and a group; give one of them another name", param="name"
        )
    for kind, members in (("client", clients), ("group", groups)):
        for name, group in members.items():
            if group and group not in groups:
                raise ConfigError(
                    f"{kind} {name!r} is in the group {group!r}, which is not there"
                    f"{_advice(group, groups)}",
                    param="group",
                )
    for name in groups:
        path = [name]
        while up := groups[path[-1]]:
            if up in path:
                chain = " in ".join([*path, up])
                raise ConfigError(
                    f"the group {up!r} is inside itself ({chain}); take one of them out",
                    param="group",
                )
            path.append(up)


def _advice(typed: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(typed, list(known), n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return "; make it first, or leave group empty"
