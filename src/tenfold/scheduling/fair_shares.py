"""What part of a device is whose, and how evenly service follows it.

A tree of shares says what part each client is due while others have work, too. Does not know what
anybody was given: that is in the accounts.
"""

from __future__ import annotations

from collections.abc import Iterable

from tenfold.core.settings import Share

_Node = tuple[bool, str]
"""Whether it is a group, and its name: a client may be called like a group."""


def fair_shares(shares: Iterable[Share], clients: Iterable[str]) -> dict[str, float]:
    """The part of the device (0 to 1) that each of ``clients`` is due if they, and nobody else,
    have work: siblings split what their group is due by weight. Clients that ``shares`` does not
    name have weight 1 at the top."""
    leaves: dict[str, Share] = {}
    groups: dict[str, Share] = {}
    for share in shares:
        (groups if share.is_group else leaves)[share.name] = share
    names = set(clients)
    named = names & leaves.keys()
    below: dict[str, dict[_Node, float]] = {"": {}}
    for client in named:
        share, node = leaves[client], (False, client)
        while node not in (siblings := below.setdefault(share.group, {})):
            siblings[node] = share.weight
            if not share.group:
                break
            node, share = (True, share.group), groups[share.group]
    strangers = len(names) - len(named)  # there may be thousands of them
    whole = strangers + sum(below[""].values())
    found = dict.fromkeys(names - named, 1 / whole) if strangers else {}
    to_split = [("", 1.0, whole)]
    while to_split:
        group, due, whole = to_split.pop()
        for (is_group, name), weight in below[group].items():
            part = due * weight / whole
            if is_group:
                to_split.append((name, part, sum(below[name].values())))
            else:
                found[name] = part
    return found


def jain(values: Iterable[float]) -> float | None:
    """Jain's index, (sum x)^2 / (n sum x^2): 1 where all are equal, 1 / n where one has all. None
    for fewer than two values, or where all are 0."""
    listed = list(values)
    squares = sum(value * value for value in listed)
    if len(listed) < 2 or not squares:
        return None
    return sum(listed) ** 2 / (len(listed) * squares)
