from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tenfold.cli import doctor
from tenfold.cli.main import app

runner = CliRunner()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TENFOLD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_everything_essential_is_here() -> None:
    shown = runner.invoke(app, ["doctor"])
    assert shown.exit_code == 0
    for words in ("cores", "memory", "huge pages", "max_map_count", "torch ", "native kernels"):
        assert words in shown.stdout
    assert "Every setting is at its default" in shown.stdout


def test_where_settings_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_SERVER__PORT", "9")
    shown = runner.invoke(app, ["doctor", "--set", "schedule.policy=lpm", "--json"])
    found = json.loads(shown.stdout)
    assert found["ok"]
    assert {row["key"]: row["origin"] for row in found["settings"]} == {
        "server.port": "TENFOLD_SERVER__PORT",
        "schedule.policy": "--set",
    }
    every = json.loads(runner.invoke(app, ["doctor", "--all", "--json"]).stdout)
    assert len(every["settings"]) > 20


def test_a_missing_package_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("torch", "no-such-package"))
    shown = runner.invoke(app, ["doctor", "--json"])
    assert shown.exit_code == 1
    found = json.loads(shown.stdout)
    assert not found["ok"]
    assert any(
        row["verdict"] == "missing" and "no-such-package" in row["value"]
        for row in found["findings"]
    )


def test_a_missing_extension_costs_speed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_native_trouble", lambda: "no compiler was found")
    shown = runner.invoke(app, ["doctor"])
    assert shown.exit_code == 0
    assert "not built (no compiler was found)" in shown.stdout
