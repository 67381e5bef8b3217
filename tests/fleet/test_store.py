"""The store's promises, with path: sources: hashes, atomic installs, locks, licences, removal."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest
from made_models import sha256

from tenfold.core.errors import ModelFileError, PullError
from tenfold.fleet.catalogue import Catalogue, Entry, Licence
from tenfold.fleet.sources.base import FileSpec
from tenfold.fleet.store import Store, default_root

WEIGHTS = b"GGUF" + bytes(range(256)) * 40


def entry(source: Path, sha: str = sha256(WEIGHTS), licence: Licence | None = None) -> Entry:
    return Entry(
        "tiny",
        "generate",
        "a made model",
        licence or Licence("MIT", "https://example.org/mit"),
        (f"path:{source}",),
        (FileSpec("tiny.gguf", sha, len(WEIGHTS)),),
    )


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    path = tmp_path / "origin" / "tiny.gguf"
    path.parent.mkdir()
    path.write_bytes(WEIGHTS)
    return path


@pytest.fixture
def store(tmp_path: Path, origin: Path) -> Store:
    return Store(tmp_path / "home", Catalogue([entry(origin)]))


def leftovers(store: Store) -> list[Path]:
    """Everything below the store but locks: what a failed pull must not leave installed."""
    return [p for p in store.root.rglob("*") if p.is_file() and p.parent.name != "locks"]


def test_root_follows_the_environment() -> None:
    assert default_root({"TENFOLD_HOME": "/a"}) == Path("/a")
    assert default_root({"XDG_CACHE_HOME": "/b"}) == Path("/b/tenfold")
    assert default_root({}) == Path.home() / ".cache" / "tenfold"


def test_pull_then_path_then_remove(store: Store) -> None:
    with pytest.raises(PullError, match="tenfold pull tiny"):
        store.path("tiny")
    seen: list[tuple[str, int, int | None]] = []
    path = store.pull("tiny", lambda *step: seen.append(step))
    assert path.read_bytes() == WEIGHTS
    assert path == store.path("tiny") == store.root / "models" / "tiny" / "tiny.gguf"
    assert ("copying tiny.gguf", len(WEIGHTS), len(WEIGHTS)) in seen
    assert not (store.root / "downloads" / "tiny").exists()
    assert store.remove("tiny") >= len(WEIGHTS)
    assert not path.exists()
    with pytest.raises(PullError, match="not on this machine"):
        store.remove("tiny")


def test_a_second_pull_fetches_nothing(store: Store, origin: Path) -> None:
    store.pull("tiny")
    origin.unlink()
    assert store.pull("tiny").read_bytes() == WEIGHTS


def test_a_wrong_hash_is_one_line_with_both_hashes(tmp_path: Path, origin: Path) -> None:
    store = Store(tmp_path / "home", Catalogue([entry(origin, "0" * 64)]))
    with pytest.raises(PullError) as caught:
        store.pull("tiny")
    message = caught.value.message
    assert "\n" not in message
    assert f"expected {'0' * 64}, got {sha256(WEIGHTS)}" in message
    assert caught.value.exit_code == 2
    assert leftovers(store) == []


def test_every_source_is_tried_and_named(tmp_path: Path, origin: Path) -> None:
    good = entry(origin)
    sources = ("path:/no/such/file", "path:/nor/this", *good.sources)
    two = Entry("tiny", "generate", "", good.licence, sources, good.files)
    assert Store(tmp_path / "a", Catalogue([two])).pull("tiny").exists()
    origin.unlink()
    store = Store(tmp_path / "b", Catalogue([two]))
    with pytest.raises(PullError) as caught:
        store.pull("tiny")
    lines = caught.value.message.splitlines()
    assert "no source answered" in lines[0]
    assert [line.strip().partition(": ")[0] for line in lines[1:]] == list(sources)
    assert leftovers(store) == []


def test_a_failure_keeps_the_old_model(tmp_path: Path, origin: Path) -> None:
    old = Store(tmp_path / "home", Catalogue([entry(origin)]))
    path = old.pull("tiny")
    newer = Store(tmp_path / "home", Catalogue([entry(origin, "1" * 64)]))
    with pytest.raises(PullError):
        newer.path("tiny")
    with pytest.raises(PullError):
        newer.pull("tiny")
    assert path.read_bytes() == WEIGHTS
    assert old.path("tiny") == path


def test_damage_is_found_and_repaired(store: Store) -> None:
    path = store.pull("tiny")
    path.write_bytes(WEIGHTS[:-1] + b"?")
    with pytest.raises(ModelFileError, match=r"wrong sha256.*tenfold pull tiny"):
        store.path("tiny")
    assert store.pull("tiny").read_bytes() == WEIGHTS
    path.write_bytes(WEIGHTS[:100])
    with pytest.raises(ModelFileError) as caught:
        store.path("tiny")
    assert caught.value.exit_code == 2
    path.unlink()
    with pytest.raises(ModelFileError, match="is missing"):
        store.path("tiny")
    assert store.pull("tiny").exists()


def test_a_touched_file_is_hashed_again_and_accepted(store: Store) -> None:
    path = store.pull("tiny")
    os.utime(path, ns=(1, 1))
    assert store.path("tiny") == path


def test_plain_paths_are_used_where_they_are(store: Store, origin: Path, tmp_path: Path) -> None:
    assert store.path(str(origin)) == origin
    assert store.pull(str(origin)) == origin
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ModelFileError, match=r"no config\.json"):
        store.path(str(folder))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert store.path(str(folder)) == folder
    assert store.show(str(folder)).facts["family"] == "llama"
    for absent in ("/no/such.gguf", "./absent", "absent.gguf"):
        with pytest.raises(ModelFileError, match="no file or folder"):
            store.path(absent)
    assert leftovers(store) == []


def test_unknown_names_suggest_the_nearest(store: Store) -> None:
    with pytest.raises(PullError, match="did you mean smollm2-135m"):
        store.pull("smollm-135m")
    with pytest.raises(PullError, match="it holds"):
        store.show("zzzzzzzz")
    with pytest.raises(PullError):
        store.remove("../../etc")


def test_a_model_of_a_lost_config_is_still_listed_and_removed(store: Store) -> None:
    store.pull("tiny")
    plain = Store(store.root)
    (card,) = [card for card in plain.list() if card.installed]
    assert (card.entry.name, card.entry.licence.name) == ("tiny", "MIT")
    assert plain.path("tiny").exists()
    plain.remove("tiny")
    assert not any(card.installed for card in plain.list())


def test_list_names_the_catalogue(store: Store) -> None:
    names = [card.entry.name for card in store.list()]
    assert names == ["gemma3-270m", "minilm-l6", "smollm2-135m", "tiny"]
    assert not any(card.installed for card in store.list())


def test_a_folder_with_a_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "a.safetensors").write_bytes(b"x")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}'
    )
    store = Store(tmp_path / "home")
    with pytest.raises(PullError, match=r"names b\.safetensors, which is not there"):
        store.pull(f"path:{folder}")
    assert leftovers(store) == []


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    store = Store(tmp_path / "home")
    with pytest.raises(PullError, match="holds no weights"):
        store.pull(f"path:{folder}")
    assert leftovers(store) == []


def test_names_cannot_leave_the_models_folder(tmp_path: Path, origin: Path) -> None:
    bad = Entry("bad", "generate", "", Licence("MIT"), (f"path:{origin}",), (FileSpec("../x"),))
    with pytest.raises(PullError, match="not a file name"):
        Store(tmp_path / "home", Catalogue([bad])).pull("bad")


def test_two_pulls_at_once_fetch_once(store: Store, origin: Path) -> None:
    """The second waits for the first one's lock, then finds the model there."""
    waiting, results = threading.Event(), []

    def progress(what: str, done: int, total: int | None) -> None:
        if what.startswith("waiting"):
            waiting.set()

    lock = store.root / "locks" / "tiny.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("a") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: results.append(store.pull("tiny", progress)))
        second.start()
        assert waiting.wait(10)
        assert not results
    second.join(10)
    assert results == [store.path("tiny")]


ASKING = Licence("Strict Terms", "https://example.org/terms", ask=True)


def test_terms_are_agreed_to_before_anything_is_fetched(tmp_path: Path, origin: Path) -> None:
    terms = tmp_path / "terms.html"
    terms.write_text(
        "<html><head><title>t</title></head><body><nav>menu</nav>"
        "<article><p>advert</p><h1>Terms</h1><p>Be\n kind.</p></article></body></html>"
    )
    licence = Licence(ASKING.name, ASKING.url, True, f"path:{terms}", sha256(terms.read_bytes()))
    store = Store(tmp_path / "home", Catalogue([entry(origin, licence=licence)]))
    with pytest.raises(PullError, match="--accept-licence"):
        store.pull("tiny")
    shown: list[str] = []

    def refuse(name: str, asked: Licence, text: str) -> bool:
        shown.append(text)
        return False

    with pytest.raises(PullError, match="nobody has agreed"):
        store.pull("tiny", accept=refuse)
    assert shown == ["Terms\nBe kind.\n"]
    assert not (store.root / "models").exists()
    store.pull("tiny", accept=lambda *asked: True)
    store.remove("tiny")
    assert store.pull("tiny").exists(), "the user has agreed once and is not asked again"


def test_terms_that_cannot_be_had_still_need_a_yes(tmp_path: Path, origin: Path) -> None:
    licence = Licence(ASKING.name, ASKING.url, True, "path:/no/terms")
    store = Store(tmp_path / "home", Catalogue([entry(origin, licence=licence)]))
    texts: list[str] = []
    store.pull("tiny", accept=lambda name, asked, text: not texts.append(text))
    assert texts == [""]


def test_too_little_room_is_said_before_the_fetch(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))
    with pytest.raises(PullError, match="9 B are free"):
        store.pull("tiny")


def test_a_root_that_cannot_be_written_is_one_line(tmp_path: Path, origin: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "home", Catalogue([entry(origin)]))
    with pytest.raises(PullError, match="cannot write"):
        store.pull("tiny")
