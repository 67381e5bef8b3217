"""Starts that cannot succeed: one clear line, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from e2e.serving import SMALL, Server, tenfold_run
from models.tiny import make_tiny
from models.tiny_gguf import make_tiny_gguf


def refused(folder: Path, *words: str, code: int = 2) -> str:
    """The one line of a ``tenfold serve`` that gives up. Checks that it left nothing."""
    home, scratch = folder / "home", folder / "scratch"
    scratch.mkdir(exist_ok=True)
    sets = [word for pair in SMALL for word in ("--set", pair)]
    asked = ("serve", "--port", "0", *sets, *words)  # the last word on a setting counts
    done = tenfold_run(home, *asked, env={"TMPDIR": str(scratch)})
    complaints = [line for line in done.stderr.splitlines() if " INFO " not in line]
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(complaints) == 1 and complaints[0].startswith("Error: "), done.stderr
    assert list(scratch.iterdir()) == []
    left = [path.relative_to(home) for path in home.rglob("*") if path.is_file()]
    assert [path for path in left if path.parts[0] != "packed"] == [], "packed: of sound weights"
    return complaints[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny("llama", tmp_path / "model")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    make_tiny_gguf("llama", path)
    return path


SLOW = pytest.mark.slow
"""Each start costs seconds: the quick run takes one of each kind."""


@pytest.mark.parametrize(
    "share", [0.95, pytest.param(0.4, marks=SLOW), pytest.param(1e-3, marks=SLOW)]
)
def test_truncated_gguf(gguf: Path, tmp_path: Path, share: float) -> None:
    whole = gguf.read_bytes()
    gguf.write_bytes(whole[: int(len(whole) * share)])
    assert str(gguf) in refused(tmp_path, str(gguf))


@pytest.mark.slow
@pytest.mark.parametrize("noise", [b"GGUF" + bytes(range(256)) * 64, b"<html>not found</html>"])
def test_a_gguf_of_noise(gguf: Path, tmp_path: Path, noise: bytes) -> None:
    gguf.write_bytes(noise)
    assert str(gguf) in refused(tmp_path, str(gguf))


@pytest.mark.parametrize(
    "size", [-1000, pytest.param(300, marks=SLOW), pytest.param(4, marks=SLOW)]
)
def test_truncated_safetensors(folder: Path, tmp_path: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "model.safetensors" in refused(tmp_path, str(folder))


def test_a_missing_shard(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    half = {name: tensors[name] for name in names[: len(names) // 2]}
    (folder / "model.safetensors").unlink()
    save_file(half, folder / "one.safetensors")
    there = {n: "one.safetensors" if n in half else "two.safetensors" for n in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": there}))
    assert "two.safetensors" in refused(tmp_path, str(folder))


def spoil_config(folder: Path) -> str:
    (folder / "config.json").write_text('{"model_type": "lla')
    return "config.json"


def unknown_family(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "weaver"}))
    return "weaver"


def wrong_shape(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 97}))
    return "mlp"


def lose_tensor(folder: Path) -> str:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    return "model.norm.weight"


def lose_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "config.json"


def lose_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "tokenizer.json"


def spoil_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").write_text("{}")
    return "tokenizer.json"


def lose_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "safetensors"


@pytest.mark.parametrize(
    "spoil",
    [
        lose_config,
        pytest.param(spoil_config, marks=SLOW),
        pytest.param(unknown_family, marks=SLOW),
        pytest.param(wrong_shape, marks=SLOW),
        pytest.param(lose_tensor, marks=SLOW),
        pytest.param(lose_tokenizer, marks=SLOW),
        pytest.param(spoil_tokenizer, marks=SLOW),
        pytest.param(lose_weights, marks=SLOW),
    ],
)
def test_a_spoilt_folder(folder: Path, tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    assert spoil(folder) in refused(tmp_path, str(folder))


@pytest.mark.slow
def test_a_good_model_does_not_save_a_bad_one(folder: Path, gguf: Path, tmp_path: Path) -> None:
    gguf.write_bytes(gguf.read_bytes()[:5000])
    assert "bad.gguf" not in refused(tmp_path, f"good={folder}", f"bad={gguf}")


@pytest.mark.slow
def test_more_weights_than_memory(folder: Path, tmp_path: Path) -> None:
    line = refused(tmp_path, str(folder), "--set", "device.memory=128KiB", code=1)
    assert "device.memory" in line


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smolm2-135m", "/no/such/model.gguf", "hf:", "a b"])
def test_a_model_that_is_nowhere(tmp_path: Path, model: str) -> None:
    refused(tmp_path, model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("server.prot=1", "server.port"),
        ("schedule.policy=fastest", "fastest"),
        ("device.memory=much", "device.memory"),
        ("device.page_bytes=1000", "page"),
    ],
)
def test_settings_that_cannot_be(folder: Path, tmp_path: Path, setting: str, said: str) -> None:
    assert said in refused(tmp_path, str(folder), "--set", setting)


def test_a_taken_port(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refused(tmp_path, str(folder), "--port", port)
    assert f"127.0.0.1:{port}" in line and "--port" in line


def test_a_running_server_refuses_a_bad_model_and_serves_on(
    folder: Path, tmp_path: Path, home: Path, tiny: Mapping[str, Path], server: Server
) -> None:
    before = server.complete("tiny", "the", 8)
    pages = server.settled()["mapped_pages"]
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    reply = server.http.post("/v1/admin/models/bad/load", json={"source": str(folder)})
    assert reply.status_code == 422
    assert reply.json()["error"]["code"] == "model_file_error"
    assert "\n" not in reply.json()["error"]["message"]
    missing = server.http.post("/v1/admin/models/gone/load", json={"source": "/no/such"})
    assert 400 <= missing.status_code < 500
    assert server.ready()
    assert server.complete("tiny", "the", 8) == before
    assert server.settled()["mapped_pages"] == pages
    shutil.copytree(tiny["tiny"], tmp_path / "good")
    loaded = server.http.post("/v1/admin/models/bad/load", json={"source": str(tmp_path / "good")})
    assert loaded.status_code == 200, "a better file under the same name"
    assert server.complete("bad", "the", 8) == before
    assert server.post("/v1/admin/models/bad/unload")["unloaded"]


def test_pull_of_a_broken_folder_installs_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    done: subprocess.CompletedProcess[str] = tenfold_run(
        tmp_path / "home", "pull", f"path:{folder}"
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert not (tmp_path / "home" / "models").exists()
