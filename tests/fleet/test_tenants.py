"""The book of clients: keys, what is laid over what, and what survives a restart."""

from __future__ import annotations

import hmac
import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.core.clock import VirtualClock
from tenfold.core.errors import ConfigError, Conflict, InvalidRequest, NotFound
from tenfold.core.keys import hash_key, new_key
from tenfold.core.settings import ClientSettings, GroupSettings
from tenfold.fleet import tenants as tenants_module
from tenfold.fleet.tenant_file import TenantFile, default_path
from tenfold.fleet.tenants import LOOK_SECONDS, Tenants

ANN = ClientSettings("ann", (hash_key("a1"), hash_key("a2")), weight=2.0, group="lab")
LAB = GroupSettings("lab", requests_per_minute=60)


class Desk:
    """A state file, and the books of servers that share it, on clocks of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state" / "clients.json"
        self.clock, self.now = VirtualClock(), 1_000.0

    def book(self, *clients: ClientSettings, groups: tuple[GroupSettings, ...] = ()) -> Tenants:
        file = TenantFile(self.path)
        return Tenants(clients, groups, file=file, clock=self.clock, wall=lambda: self.now)

    def read(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.path.read_text())
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def owner(book: Tenants, key: str) -> str | None:
    found = book.owner(key)
    return found.name if found else None


# --- keys -------------------------------------------------------------------------------------
def test_keys_are_long_and_differ() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100 and all(key.startswith("tf-") and len(key) == 46 for key in keys)
    assert hash_key("a\ud800") != hash_key("a")


def test_every_look_up_does_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """One comparison in constant time, of whole hashes, whoever asks; none in Python's own way."""
    book = Tenants([ClientSettings(f"c{n}", (hash_key(f"k{n}"),)) for n in range(50)])
    compared: list[tuple[str, str]] = []
    plain = hmac.compare_digest

    def watched(one: str, other: str) -> bool:
        compared.append((one, other))
        return plain(one, other)

    monkeypatch.setattr(tenants_module.hmac, "compare_digest", watched)
    for key, name in (("k0", "c0"), ("k49", "c49"), ("nope", None), ("", None)):
        compared.clear()
        assert owner(book, key) == name
        assert [(len(one), other) for one, other in compared] == [(64, hash_key(key))]
    blind = next(iter(book._owners))
    assert blind not in Tenants([ClientSettings("c0", (hash_key("k0"),))])._owners
    assert isinstance(blind, bytes) and len(blind) == 16


def test_the_stored_hash_is_what_decides() -> None:
    """An index that pointed at the wrong client would still not let anybody in."""
    book = Tenants([ClientSettings("ann", (hash_key("a"),)), ClientSettings("bob")])
    book._owners[book._blind(hash_key("other"))] = next(iter(book._owners.values()))
    assert owner(book, "a") == "ann" and owner(book, "other") is None


def test_several_keys_and_rotation(desk: Desk) -> None:
    book = desk.book(ANN, groups=(LAB,))
    assert owner(book, "a1") == owner(book, "a2") == "ann"
    extra = book.rotate("ann", grace=None)
    assert [owner(book, key) for key in ("a1", "a2", extra)] == ["ann"] * 3
    fresh = book.rotate("ann", grace=60.0)
    assert [owner(book, key) for key in ("a1", extra, fresh)] == ["ann"] * 3
    book.rotate("ann", grace=3600.0)
    desk.now += 59.9
    assert owner(book, extra) == "ann"
    desk.now += 0.2
    again = desk.book(ANN, groups=(LAB,))
    for each in (book, again):
        assert [owner(each, key) for key in ("a1", "a2", extra)] == [None] * 3
        assert owner(each, fresh) == "ann", "a longer grace later does not shorten its own"
    last = book.rotate("ann")
    assert owner(book, fresh) is None and owner(book, last) == "ann"
    assert hash_key(fresh) not in desk.path.read_text(), "what has ended is forgotten"


def test_a_key_can_be_revoked_alone(desk: Desk) -> None:
    book = desk.book(ANN, groups=(LAB,))
    extra = book.rotate("ann", grace=None)
    ids = [key.id for key in book.client("ann").keys]
    assert ids[:2] == ["file-1", "file-2"]
    book.revoke("ann", "file-1")
    assert [owner(book, key) for key in ("a1", "a2", extra)] == [None, "ann", "ann"]
    book.revoke("ann", ids[2])
    assert [owner(book, key) for key in ("a1", "a2", extra)] == [None, "ann", None]
    assert [owner(desk.book(ANN, groups=(LAB,)), key) for key in ("a1", "a2")] == [None, "ann"]
    changed = ClientSettings("ann", (hash_key("a3"),))
    assert owner(desk.book(changed), "a3") == "ann", "a new key of the file is a new key"
    with pytest.raises(NotFound, match="no key"):
        book.revoke("ann", ids[2])


# --- what is laid over what -------------------------------------------------------------------
def test_a_live_change_lies_over_the_file_until_it_is_taken_back(desk: Desk) -> None:
    book = desk.book(ANN, groups=(LAB,))
    book.set_client("ann", {"weight": 5.0, "tokens_per_minute": 100, "group": ""})
    book.set_group("lab", {"requests_per_minute": 7})
    for each in (book, desk.book(ANN, groups=(LAB,))):
        ann, lab = each.clients["ann"], each.groups["lab"]
        assert (ann.weight, ann.tokens_per_minute, ann.group) == (5.0, 100, "")
        assert lab.requests_per_minute == 7
        assert each.client("ann").from_file
        assert each.client("ann").live == ["weight", "group", "tokens_per_minute"]
    changed = ClientSettings("ann", ANN.keys, weight=9.0, max_concurrent=4)
    assert desk.book(changed, groups=(LAB,)).clients["ann"].weight == 5.0
    assert desk.book(changed, groups=(LAB,)).clients["ann"].max_concurrent == 4
    book.set_client("ann", {"weight": None, "tokens_per_minute": None, "group": None})
    book.set_group("lab", {"requests_per_minute": None})
    assert (book.clients["ann"], book.groups["lab"]) == (ANN, LAB)
    assert desk.read()["clients"] == {} == desk.read()["groups"]


def test_changes_of_what_the_file_no_longer_names_have_no_effect(desk: Desk) -> None:
    book = desk.book(ANN, groups=(LAB,))
    live = book.rotate("ann")
    book.set_client("ann", {"weight": 5.0})
    gone = desk.book()
    assert owner(gone, live) is None and not gone.clients
    gone.add_client("bob", {})
    assert list(desk.read()["clients"]) == ["bob"]  # type: ignore[call-overload]


def test_names_and_groups_are_checked(desk: Desk) -> None:
    book = desk.book(ANN, groups=(LAB,))
    for name in ("two words", "", "x" * 65, "-a", "a/b", "admin", "other", "anonymous"):
        with pytest.raises(InvalidRequest, match="name"):
            book.add_client(name, {})
    with pytest.raises(InvalidRequest, match="a client and a group"):
        book.add_client("lab", {})
    with pytest.raises(InvalidRequest, match="did you mean 'lab'") as wrong:
        book.add_client("bob", {"group": "labs"})
    assert wrong.value.param == "group"
    with pytest.raises(Conflict):
        book.add_client("ann", {})
    book.add_group("org", {})
    book.set_group("lab", {"group": "org"})
    with pytest.raises(InvalidRequest, match="inside itself"):
        book.set_group("org", {"group": "lab"})
    with pytest.raises(Conflict, match="lab are in the group 'org'"):
        book.remove_group("org")
    for refused in (lambda: book.remove_client("ann"), lambda: book.remove_group("lab")):
        with pytest.raises(Conflict, match="config file"):
            refused()
    for missing in (
        lambda: book.remove_client("zed"),
        lambda: book.set_client("zed", {}),
        lambda: book.rotate("zed"),
        lambda: book.set_group("zed", {}),
        lambda: book.remove_group("zed"),
        lambda: book.client("zed"),
        lambda: book.group("zed"),
    ):
        with pytest.raises(NotFound, match="zed"):
            missing()
    assert list(book.clients) == ["ann"] and book.groups["org"].group == ""


def test_a_file_that_no_longer_fits_is_refused(desk: Desk) -> None:
    book = desk.book(groups=(LAB,))
    book.add_client("bob", {"group": "lab"})
    with pytest.raises(ConfigError, match="client 'bob' is in the group 'lab', which is not there"):
        desk.book()


def test_once_closed_a_server_stays_closed(desk: Desk) -> None:
    book = desk.book()
    assert not book.keys_required
    book.add_client("ann", {})
    book.remove_client("ann")
    assert book.keys_required and desk.book().keys_required


def test_shares_and_listeners(desk: Desk) -> None:
    book, heard = desk.book(ANN, groups=(LAB,)), []
    book.listen(lambda: heard.append([(s.name, s.weight, s.group) for s in book.shares()]))
    book.add_group("org", {"weight": 3.0})
    book.set_client("ann", {"group": "org", "disabled": True})
    with pytest.raises(InvalidRequest):
        book.set_client("ann", {"group": "nowhere"})
    assert heard == [
        [("lab", 1.0, ""), ("ann", 2.0, "lab")],
        [("lab", 1.0, ""), ("org", 3.0, ""), ("ann", 2.0, "lab")],
        [("lab", 1.0, ""), ("org", 3.0, ""), ("ann", 2.0, "org")],
    ]
    assert [share.is_group for share in book.shares()] == [True, True, False]
    disabled = book.owner("a1")
    assert disabled is not None and disabled.disabled


# --- isolation --------------------------------------------------------------------------------
def test_namespaces(desk: Desk) -> None:
    book = desk.book(ANN, ClientSettings("iso", (hash_key("i"),), isolate=True), groups=(LAB,))
    assert book.namespace("ann", "") == book.namespace("nobody", "") == ""
    assert book.namespace("ann", "s") == book.namespace("bob", "s") == "s"
    own = {book.namespace("iso", salt) for salt in ("", "s", "t")}
    assert len(own) == 3 and not own & {"", "s", "t"}
    assert all(len(name) == len("isolated:") + 64 for name in own)
    book.rotate("iso")
    assert book.namespace("iso", "s") in own
    again = desk.book(ANN, ClientSettings("iso", (hash_key("i"),), isolate=True), groups=(LAB,))
    assert again.namespace("iso", "s") == book.namespace("iso", "s")
    book.add_client("two", {"isolate": True})
    first = book.namespace("two", "")
    book.remove_client("two")
    book.add_client("two", {"isolate": True})
    assert book.namespace("two", "") != first, "a name's next owner does not inherit the cache"
    elsewhere = Tenants([ClientSettings("iso", isolate=True)])
    assert elsewhere.namespace("iso", "s") not in own, "the secret is each server's own"


APART = Tenants([ClientSettings("a", isolate=True), ClientSettings("ab", isolate=True)])


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["a", "ab"]), st.text(max_size=3)), unique=True))
def test_isolated_namespaces_never_meet(asked: list[tuple[str, str]]) -> None:
    assert len({APART.namespace(*pair) for pair in asked}) == len(asked)


# --- the file ---------------------------------------------------------------------------------
def test_nothing_is_written_before_it_is_needed(desk: Desk) -> None:
    desk.book(ANN, groups=(LAB,))
    assert not desk.path.parent.exists()


def test_the_file_is_private_and_holds_no_key(desk: Desk) -> None:
    book = desk.book()
    keys = [book.add_client("ann", {}), book.rotate("ann", grace=9.0)]
    text = desk.path.read_text()
    assert stat.S_IMODE(desk.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(desk.path.parent.stat().st_mode) == 0o700
    assert not any(key in text or key[3:] in text for key in keys)
    assert all(hash_key(key) in text for key in keys)
    assert sorted(path.name for path in desk.path.parent.iterdir()) == [
        "clients.json",
        "clients.json.lock",
    ]


def test_a_change_that_cannot_be_kept_is_not_in_force(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, heard = desk.book(), []
    book.add_client("ann", {})
    before = desk.path.read_text()
    book.listen(lambda: heard.append(1))

    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConfigError, match=r"clients\.json: No space left.*server\.state"):
        book.set_client("ann", {"weight": 7.0})
    assert book.clients["ann"].weight == 1.0 and heard == [1]
    assert desk.path.read_text() == before
    assert len(list(desk.path.parent.iterdir())) == 2, "nothing half-written is left"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"version": 1, "clients": {"a": {"weight": 0}}}', "damaged"),
        ('{"version": 1, "clients": {"a": {"made": true, "keys": [{"id": "x"}]}}}', "damaged"),
        ('{"version": 2}', "version 2"),
        ('{"version": 1, "clients": {"a b": {"made": true}}}', "cannot name"),
    ],
)
def test_a_file_that_cannot_be_used_never_opens_the_server(
    desk: Desk, text: str, words: str
) -> None:
    desk.path.parent.mkdir()
    desk.path.write_text(text)
    with pytest.raises(ConfigError, match=words) as refused:
        desk.book()
    assert "\n" not in refused.value.message


def test_two_servers_share_a_file(desk: Desk) -> None:
    one, two, heard = desk.book(), desk.book(), []
    two.listen(lambda: heard.append(sorted(two.clients)))
    key = one.add_client("ann", {})
    two.add_client("bob", {})  # on what the other has written since
    assert sorted(desk.read()["clients"]) == ["ann", "bob"]  # type: ignore[call-overload]
    assert owner(two, key) == "ann"
    one.rotate("ann")
    assert owner(two, key) == "ann", "it looks once a second"
    desk.clock.advance(LOOK_SECONDS)
    assert owner(two, key) is None
    assert heard[-1] == ["ann", "bob"] and len(heard) == 3


def test_a_file_spoilt_while_running_changes_nothing(desk: Desk) -> None:
    book = desk.book()
    key = book.add_client("ann", {})
    good = desk.path.read_text()
    desk.path.write_text("{")
    desk.clock.advance(LOOK_SECONDS)
    assert owner(book, key) == "ann"
    with pytest.raises(ConfigError, match="damaged"):
        book.set_client("ann", {"weight": 2.0})
    assert desk.path.read_text() == "{", "and nothing is written over it"
    desk.path.write_text(good)
    book.set_client("ann", {"weight": 2.0})
    assert desk.book().clients["ann"].weight == 2.0


def test_where_the_file_is() -> None:
    assert default_path({"TENFOLD_HOME": "/h"}) == Path("/h/clients.json")
    assert default_path({"XDG_STATE_HOME": "/s"}) == Path("/s/tenfold/clients.json")
    assert default_path({}) == Path.home() / ".local/state/tenfold/clients.json"
