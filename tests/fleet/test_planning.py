"""What a dry run says, against what loading shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fleet.services import device
from models.tiny import make_tiny
from tenfold.core.clock import SystemClock
from tenfold.core.errors import ConfigError, ModelFileError
from tenfold.core.messages import LoadModel, ModelOptions
from tenfold.core.settings import DeviceSettings, ModelSetup, PlacementSettings, Speculation
from tenfold.engine.device import Device
from tenfold.engine.engine import Engine
from tenfold.fleet.planning import (
    FleetPlan,
    PlannedModel,
    measure_read_speed,
    parse_devices,
    plan_fleet,
)
from tenfold.kernels.base import ScratchKernels

PAGE = 64 << 10
BALANCED = PlacementSettings("balanced")


def setups(folder: Path, names: str, **fields: object) -> list[tuple[ModelSetup, Path]]:
    path = folder / "tiny"
    if not path.exists():
        make_tiny("llama", path)
    return [(ModelSetup(name, str(path), **fields), path) for name in names]  # type: ignore[arg-type]


def rooms(count: int, pages: int) -> list[DeviceSettings]:
    one = device(kernels_mode="exact")
    return [replace(one, name=f"cpu:{n}", memory_bytes=pages * PAGE) for n in range(count)]


def by_name(plan: FleetPlan) -> dict[str, PlannedModel]:
    return {model.name: model for model in plan.models}


def test_everything_fits(tmp_path: Path) -> None:
    plan = plan_fleet(setups(tmp_path, "abcd"), rooms(2, 20), BALANCED, {"a": 90, "b": 80}, 1e6)
    assert plan.fits and {model.state for model in plan.models} == {"awake"}
    found = by_name(plan)
    assert found["a"].devices != found["b"].devices
    assert [len(one.models) for one in plan.devices] == [2, 2]
    assert found["a"].wake_seconds == found["a"].weight_bytes / 1e6
    (home,) = [one for one in plan.devices if "a" in one.models]
    assert home.weight_bytes == 14 * PAGE and home.kv_bytes == 6 * PAGE - home.step_bytes
    assert found["a"].kv_tokens == home.kv_bytes // found["a"].kv_bytes_per_token
    growth = 90 * found["a"].kv_bytes_per_token / 0.2
    assert home.pressure == pytest.approx(growth / home.kv_bytes)


def test_who_sleeps_and_who_is_too_large(tmp_path: Path) -> None:
    many = setups(tmp_path, "abc")
    plan = plan_fleet(many, rooms(1, 20), BALANCED, {"a": 1, "c": 2})
    assert [model.state for model in plan.models] == ["awake", "asleep", "awake"]
    sleeper = by_name(plan)["b"]
    assert "beside the others" in sleeper.why and plan.fits
    left = 13 * PAGE - plan.devices[0].step_bytes
    assert sleeper.kv_tokens == left // sleeper.kv_bytes_per_token
    many[1][0].pin = True
    pinned = by_name(plan_fleet(many, rooms(1, 20), BALANCED, {"a": 1, "c": 2}))
    assert (pinned["a"].state, pinned["b"].state) == ("asleep", "awake")
    small = plan_fleet(many[:1], rooms(2, 6), BALANCED)
    assert not small.fits and small.models[0].state == "too large"
    assert "a needs 458,752 bytes" in small.models[0].why and not small.devices[0].models


@pytest.mark.parametrize("pages", [14, 40, 4000])
@pytest.mark.parametrize("speculation", [None, "ngram"])
@pytest.mark.parametrize("native", [True, False])
def test_what_steps_take_is_what_the_engine_lets_them(
    tmp_path: Path, pages: int, speculation: Speculation | None, native: bool
) -> None:
    """And it is not given away: keys and values get what the engine's budget has for them."""
    settings = [replace(room, native=native) for room in rooms(1, pages)]
    asked = setups(tmp_path, "a", speculation=speculation)
    (planned,) = plan_fleet(asked, settings, BALANCED).devices
    real = Device(settings[0])
    clock = SystemClock()
    engine = Engine(real, clock, lambda event: None)
    options = ModelOptions(speculation=speculation)
    engine.handle(LoadModel("a", str(asked[0][1]), options))
    while engine.loading:
        engine.step()
    assert planned.step_bytes == real.scratch.most * PAGE
    assert (planned.step_bytes > 0) == isinstance(real.kernels, ScratchKernels)
    budget = real.budget().capacity - engine.instances["a"].weights.pages
    assert planned.kv_bytes == budget * PAGE
    engine.close()


def test_replicas_are_everywhere_and_share_the_rate(tmp_path: Path) -> None:
    plan = plan_fleet(setups(tmp_path, "ab"), rooms(2, 20), PlacementSettings(), {"a": 100})
    assert all(model.devices == ["cpu:0", "cpu:1"] for model in plan.models)
    pressures = [one.pressure for one in plan.devices]
    assert pressures[0] == pressures[1] != 0
    alone = plan_fleet(setups(tmp_path, "ab"), rooms(1, 20), PlacementSettings(), {"a": 50})
    assert alone.devices[0].pressure == pytest.approx(pressures[0])


def test_what_cannot_be_planned_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a rate is given for 'z'; the models are a"):
        plan_fleet(setups(tmp_path, "a"), rooms(1, 20), BALANCED, {"z": 1.0})
    with pytest.raises(ConfigError, match="how much memory cuda:0 has is not known"):
        plan_fleet(setups(tmp_path, "a"), [DeviceSettings("cuda:0")], BALANCED)
    with pytest.raises(ModelFileError):
        plan_fleet([(ModelSetup("a", "x"), tmp_path / "none")], rooms(1, 20), BALANCED)


def test_devices_as_they_are_typed() -> None:
    like = DeviceSettings("cpu:3", threads=2)
    made = parse_devices("2x1GiB, 512MiB", like)
    assert [(one.name, one.memory_bytes) for one in made] == [
        ("cpu:0", 1 << 30),
        ("cpu:1", 1 << 30),
        ("cpu:2", 512 << 20),
    ]
    assert made[0].threads == 2
    for wrong in ("0x1GiB", "ax1GiB", "-1x2GiB"):
        with pytest.raises(ConfigError, match="write one like 2x8GiB"):
            parse_devices(wrong, like)
    with pytest.raises(ConfigError, match="not one page"):
        parse_devices("1MB", like)


def test_the_read_speed_is_measured_on_weights(tmp_path: Path) -> None:
    assert measure_read_speed([setups(tmp_path, "a")[0][1]]) > 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match="no file of weights"):
        measure_read_speed([tmp_path / "empty"])
