"""Packed images: written once, read back whole, never half there, and gone when they are stale."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from models.conftest import allocate
from models.paged import PagedRun
from models.tiny import FAMILIES, make_tiny
from models.tiny_gguf import make_tiny_gguf
from tenfold.core.errors import ModelFileError, OutOfMemory
from tenfold.models import packed_store
from tenfold.models.checkpoint import open_checkpoint
from tenfold.models.loading import load_model
from tenfold.models.weight_plan import ALIGNMENT, WeightPlan, plan_weights

PROMPT = list(range(3, 40))


def logits(loaded):
    return PagedRun(loaded.model).step({0: PROMPT})[0]


def images(cache: Path) -> list[Path]:
    return sorted((cache / "packed").iterdir())


@pytest.mark.parametrize("family", [*FAMILIES, "bert"])
def test_the_plan_needs_no_weights(family, tmp_path, kernels):
    """It is laid out aligned and without overlap, and holds each weight once."""
    checkpoint = open_checkpoint(make_tiny(family, tmp_path))
    plan = plan_weights(checkpoint, kernels)
    end = 0
    for entry in plan.entries:
        assert entry.offset % ALIGNMENT == 0 and entry.offset >= end
        end = entry.offset + entry.nbytes
    assert end <= plan.nbytes
    parts = [name for entry in plan.entries for name in entry.parts]
    assert sorted(parts) == sorted(checkpoint.tensors)
    assert WeightPlan.from_dict(plan.to_dict()) == plan


def test_the_second_load_reads_the_image(tmp_path, load, monkeypatch):
    path, cache = tmp_path / "m.gguf", tmp_path / "cache"
    make_tiny_gguf("qwen3_moe", path)
    first = load(path, cache)
    assert [f.suffix for f in images(cache)] == [".bin", ".json"]

    def forbidden(*args: object) -> None:
        raise AssertionError("the checkpoint was opened again")

    monkeypatch.setattr("tenfold.models.loading.open_checkpoint", forbidden)
    second = load(path, cache)
    assert second.spec == first.spec and second.facts == first.facts and second.plan == first.plan
    assert torch.equal(logits(second), logits(first))


def test_an_image_larger_than_one_read(tmp_path, load, monkeypatch):
    monkeypatch.setattr(packed_store, "_CHUNK", 1000)
    folder = make_tiny("llama", tmp_path / "m")
    first, second = load(folder, tmp_path / "c"), load(folder, tmp_path / "c")
    assert torch.equal(logits(second), logits(first))


@pytest.mark.parametrize("harm", ["short", "manifest", "version", "missing"])
def test_a_harmed_image_is_made_anew(harm, tmp_path, load):
    folder, cache = make_tiny("llama", tmp_path / "m"), tmp_path / "c"
    first = load(folder, cache)
    data, manifest = images(cache)
    if harm == "short":
        os.truncate(data, 1000)
    elif harm == "manifest":
        manifest.write_text("{")
    elif harm == "version":
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 0'))
    else:
        data.unlink()
    again = load(folder, cache)
    assert torch.equal(logits(again), logits(first))
    assert images(cache)[0].stat().st_size == first.plan.nbytes


def test_a_changed_checkpoint_replaces_its_image(tmp_path, load):
    folder, cache = make_tiny("llama", tmp_path / "m", seed=1), tmp_path / "c"
    load(folder, cache)
    old = images(cache)
    make_tiny("llama", folder, seed=2)
    loaded = load(folder, cache)
    assert len(images(cache)) == 2 and images(cache) != old
    assert torch.equal(logits(loaded), logits(load(folder)))


def test_two_checkpoints_keep_an_image_each(tmp_path, load):
    for name in ("a", "b"):
        load(make_tiny("llama", tmp_path / name), tmp_path / "c")
    assert len(images(tmp_path / "c")) == 4


def test_an_unwritable_cache_is_only_slower(tmp_path, load, caplog):
    (tmp_path / "c").write_text("a file where the folder should be")
    loaded = load(make_tiny("llama", tmp_path / "m"), tmp_path / "c")
    assert logits(loaded).shape == (len(PROMPT), 304)
    assert "not kept" in caplog.text


def test_nothing_half_written_stays(tmp_path, load, monkeypatch):
    def full(stream: object, raw: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed_store, "_write", full)
    load(make_tiny("llama", tmp_path / "m"), tmp_path / "c")
    assert images(tmp_path / "c") == []


def test_what_a_killed_process_left_goes_in_time(tmp_path, load):
    folder = tmp_path / "c" / "packed"
    folder.mkdir(parents=True)
    for name in (".new-old", ".new-young"):
        (folder / name).write_bytes(b"half")
    os.utime(folder / ".new-old", (0, 0))
    load(make_tiny("llama", tmp_path / "m"), tmp_path / "c")
    assert (folder / ".new-young").exists()
    assert not (folder / ".new-old").exists()


def test_images_of_other_code_are_stale(tmp_path, monkeypatch):
    folder = make_tiny("llama", tmp_path)
    before = packed_store.fingerprint(folder)
    monkeypatch.setattr(packed_store, "_code_stamp", lambda: "another")
    after = packed_store.fingerprint(folder)
    assert before != after and before.partition("-")[0] == after.partition("-")[0]


def test_a_setting_in_a_subfolder_counts(tmp_path):
    folder = make_tiny("bert", tmp_path)
    before = packed_store.fingerprint(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    assert packed_store.fingerprint(folder) != before


def test_an_image_that_shrinks_while_read(tmp_path, load, kernels):
    folder, cache = make_tiny("llama", tmp_path / "m"), tmp_path / "c"
    load(folder, cache)

    def shrink(nbytes: int) -> torch.Tensor:
        os.truncate(images(cache)[0], 512)
        return allocate(nbytes)

    with pytest.raises(ModelFileError, match="ends early"):
        load_model(folder, kernels, shrink, name="m", cache_dir=cache)


def test_the_allocator_is_asked_once_and_its_refusal_is_passed_on(tmp_path, kernels):
    folder, asked = make_tiny("llama", tmp_path), []

    def refuse(nbytes: int) -> torch.Tensor:
        asked.append(nbytes)
        raise OutOfMemory("no room")

    with pytest.raises(OutOfMemory):
        load_model(folder, kernels, refuse, name="m", cache_dir=None)
    assert asked == [plan_weights(open_checkpoint(folder), kernels).nbytes]


def test_a_missing_path(tmp_path, load):
    for cache in (None, tmp_path / "c"):
        with pytest.raises(ModelFileError, match=r"nothing\.gguf"):
            load(tmp_path / "nothing.gguf", cache)
