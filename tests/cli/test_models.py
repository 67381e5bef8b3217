"""pull, models list, models show and models remove, on a store in a temporary folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tenfold.cli.main import app

runner = CliRunner()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config whose catalogue has a small embedding model in a folder of this machine."""
    monkeypatch.setenv("TENFOLD_HOME", str(tmp_path / "home"))
    origin = tmp_path / "origin"
    origin.mkdir()
    text = '{"model_type": "bert", "hidden_size": 8}'
    (origin / "config.json").write_text(text)
    path = tmp_path / "tenfold.toml"
    path.write_text(
        f"""
        [catalogue.tiny]
        kind = "embed"
        description = "a made model"
        licence = "MIT"
        licence_url = "https://example.org/mit"
        sources = ["path:{origin}"]
        files = {{ "config.json" = "{hashlib.sha256(text.encode()).hexdigest()}" }}
        """
    )
    monkeypatch.setenv("TENFOLD_CONFIG", str(path))
    return path


def test_pull_shows_the_licence_and_prints_the_path(config: Path, tmp_path: Path) -> None:
    shown = runner.invoke(app, ["pull", "tiny"])
    assert shown.exit_code == 0
    assert shown.stdout.strip() == str(tmp_path / "home" / "models" / "tiny")
    assert "Licence of its weights: MIT (https://example.org/mit)" in shown.stderr
    again = runner.invoke(app, ["pull", "tiny"])
    assert again.stdout == shown.stdout
    assert again.stderr == ""


def test_a_damaged_model_is_pulled_again(config: Path, tmp_path: Path) -> None:
    runner.invoke(app, ["pull", "tiny"])
    (tmp_path / "home" / "models" / "tiny" / "config.json").write_text("{}")
    shown = runner.invoke(app, ["pull", "tiny"])
    assert shown.exit_code == 0
    assert "wrong sha256" in shown.stderr


def test_list_for_people_and_programs(config: Path) -> None:
    runner.invoke(app, ["pull", "tiny"])
    shown = runner.invoke(app, ["models", "list"]).stdout
    assert "smollm2-135m" in shown and "93.8 MiB" in shown and "Gemma Terms of Use" in shown
    listed = {row["name"]: row for row in json.loads(_json("models", "list"))}
    assert listed["tiny"]["pulled"] and listed["tiny"]["licence"] == "MIT"
    assert listed["smollm2-135m"]["path"] is None


def _json(*words: str) -> str:
    shown = runner.invoke(app, [*words, "--json"])
    assert shown.exit_code == 0
    return shown.stdout


def test_show(config: Path) -> None:
    before = runner.invoke(app, ["models", "show", "tiny"]).stdout
    assert "tenfold pull tiny" in before
    runner.invoke(app, ["pull", "tiny"])
    shown = runner.invoke(app, ["models", "show", "tiny"]).stdout
    for words in ("MIT (https://example.org/mit)", "bert", "config.json", "40 B"):
        assert words in shown
    full = json.loads(_json("models", "show", "tiny"))
    assert full["checkpoint"]["hidden size"] == 8
    assert len(full["files"][0]["sha256"]) == 64
    licence = runner.invoke(app, ["models", "show", "tiny", "--licence"]).stdout
    assert licence == "MIT: https://example.org/mit\n"


def test_remove(config: Path) -> None:
    runner.invoke(app, ["pull", "tiny"])
    assert runner.invoke(app, ["models", "remove", "tiny"]).exit_code == 0
    gone = runner.invoke(app, ["models", "remove", "tiny"])
    assert gone.exit_code == 2
    assert "not on this machine" in gone.stderr


def test_terms_need_a_yes(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenfold.fleet.store.Store.licence_text", lambda *args: "terms")
    shown = runner.invoke(app, ["pull", "gemma3-270m"])
    assert shown.exit_code == 2
    assert "--accept-licence" in shown.stderr
