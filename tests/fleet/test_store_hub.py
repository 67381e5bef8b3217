"""hf: sources, against a made hub on 127.0.0.1."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_models import FakeHub, sha256

from tenfold.core.errors import PullError
from tenfold.fleet.catalogue import Catalogue, Entry, Licence
from tenfold.fleet.sources import download, hub
from tenfold.fleet.sources.base import FileSpec
from tenfold.fleet.store import Store

WEIGHTS = random.Random(7).randbytes(3_000_000)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"old",
    "README.md": b"words",
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    made = FakeHub("org/repo", FILES)
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_TRIES", 1)
    yield made
    made.close()


def test_a_repository(tmp_path: Path, fake: FakeHub) -> None:
    store = Store(tmp_path)
    seen: list[tuple[str, int, int | None]] = []
    folder = store.pull("hf:org/repo", lambda *step: seen.append(step))
    assert folder.name == "hf--org--repo"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".tenfold.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    total = sum(len(FILES[n]) for n in ("config.json", "model.safetensors", "tokenizer.json"))
    assert ("fetching tokenizer.json", total, total) in seen
    fake.status = 500
    assert store.path("hf:org/repo") == folder


def test_one_file_with_a_known_hash_needs_no_listing(tmp_path: Path, fake: FakeHub) -> None:
    fake.files = {"deep/x.gguf": WEIGHTS}
    fake.listed = set()
    spec = FileSpec("renamed.gguf", sha256(WEIGHTS), len(WEIGHTS))
    made = Entry("tiny", "generate", "", Licence("MIT"), ("hf:org/repo@v1/deep/x.gguf",), (spec,))
    path = Store(tmp_path, Catalogue([made])).pull("tiny")
    assert path.name == "renamed.gguf"
    assert path.read_bytes() == WEIGHTS


def test_a_pull_goes_on_after_the_server_died_midway(tmp_path: Path, fake: FakeHub) -> None:
    fake.cut_at, fake.dies = 1_200_000, True
    store = Store(tmp_path)
    with pytest.raises(PullError, match="the connection failed"):
        store.pull("hf:org/repo")
    assert not (tmp_path / "models").exists()
    (part,) = (tmp_path / "downloads" / "hf--org--repo").glob("model.safetensors.*.part")
    have = part.stat().st_size
    assert 0 < have <= 1_200_000
    fake.revive()
    fake.asked.clear()
    folder = store.pull("hf:org/repo")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert ("model.safetensors", f"bytes={have}-") in fake.asked
    assert not (tmp_path / "downloads" / "hf--org--repo").exists()


def test_a_cut_connection_is_taken_up_in_the_same_pull(tmp_path: Path, fake: FakeHub) -> None:
    fake.cut_at = 1_200_000
    folder = Store(tmp_path).pull("hf:org/repo")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [asked for name, asked in fake.asked if name == "model.safetensors"]
    assert ranges[0] == "" and ranges[1].startswith("bytes=")


def test_a_server_without_ranges_starts_over(tmp_path: Path, fake: FakeHub) -> None:
    fake.cut_at, fake.ranges = 1_200_000, False
    folder = Store(tmp_path).pull("hf:org/repo")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_part_of_another_version_is_not_gone_on_with(tmp_path: Path, fake: FakeHub) -> None:
    fake.cut_at, fake.dies = 1_200_000, True
    store = Store(tmp_path)
    with pytest.raises(PullError):
        store.pull("hf:org/repo")
    fake.revive()
    fake.files["model.safetensors"] = newer = WEIGHTS[::-1]
    assert (store.pull("hf:org/repo") / "model.safetensors").read_bytes() == newer


def test_what_does_not_match_the_hubs_own_hash_is_refused(tmp_path: Path, fake: FakeHub) -> None:
    listing = json.loads(fake.listing())
    for sibling in listing["siblings"]:
        if sibling["rfilename"] == "config.json":
            sibling["blobId"] = "0" * 40
    fake.listing = lambda: json.dumps(listing).encode()  # type: ignore[method-assign]
    with pytest.raises(PullError, match=r"config\.json came damaged"):
        Store(tmp_path).pull("hf:org/repo")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("status", "words"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "no such"), (500, "500")]
)
def test_refusals_in_words(tmp_path: Path, fake: FakeHub, status: int, words: str) -> None:
    fake.status = status
    with pytest.raises(PullError) as caught:
        Store(tmp_path).pull("hf:org/repo")
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_nobody_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_TRIES", 1)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(PullError, match="hf:org/repo"):
        Store(tmp_path).pull("hf:org/repo")


def test_which_files_make_a_model() -> None:
    folder = ["README.md", "config.json", "model.safetensors", "onnx/model.onnx", "vocab.txt"]
    assert hub.choose(folder, "o/r") == ["config.json", "model.safetensors", "vocab.txt"]
    assert hub.choose(["a.gguf", "README.md"], "o/r") == ["a.gguf"]
    with pytest.raises(PullError, match=r"2 GGUF files; name one, as hf:o/r/a\.gguf"):
        hub.choose(["a.gguf", "b.gguf"], "o/r")
    with pytest.raises(PullError, match="neither"):
        hub.choose(["README.md"], "o/r")


@pytest.mark.parametrize("text", ["hf:", "hf:org", "hf:org//x"])
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(PullError, match="hf:"):
        Store(Path("/nowhere")).pull(text)
