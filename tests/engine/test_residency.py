"""Models that sleep and wake on a real device: the same tokens as if they had never moved, and the
memory where the operating system says it is."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.tiny import make_tiny
from tenfold.core.clock import SystemClock
from tenfold.core.messages import (
    AskDecisions,
    AskStats,
    DecisionReport,
    DeviceStats,
    Event,
    Generate,
    LoadModel,
    ModelMoved,
    ModelOptions,
    RequestFailed,
    SetResidency,
    SleepModel,
    StepDone,
    UnloadModel,
    WakeModel,
)
from tenfold.core.settings import DeviceSettings, ResidencySettings
from tenfold.core.types import EngineRequest, SamplingParams
from tenfold.engine.device import Device
from tenfold.engine.engine import Engine
from tenfold.engine.weights import PackedWeights
from tenfold.memory.page_cache import HeldFile, drop_from_page_cache, image_in_page_cache

PAGE = 16 << 10
FAMILIES = {"llama": "llama", "gemma": "gemma3_text", "moe": "qwen2_moe"}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("residency")
    found = {}
    for name, family in FAMILIES.items():
        found[name] = folder / name
        make_tiny(family, found[name])
    return found


class Host:
    """A device with several tiny models, on the real clock."""

    def __init__(self, paths: dict[str, Path], pages: int, folder: Path, **fields: object) -> None:
        residency = ResidencySettings(min_seconds=0.0, **fields)  # type: ignore[arg-type]
        settings = DeviceSettings.of(
            memory_bytes=pages * PAGE,
            page_bytes=PAGE,
            threads=1,
            kernels_mode="exact",
            residency=residency,
            cache_dir=str(folder),
        )
        self.tokens: dict[str, list[int]] = {}
        self.events: list[Event] = []
        self.failed: list[RequestFailed] = []
        self.clock = SystemClock()
        self.device = Device(settings)
        self.engine = Engine(self.device, self.clock, self._hear)
        for name, path in paths.items():
            self.load(name, path)

    def load(self, name: str, path: Path, **options: object) -> None:
        self.engine.handle(LoadModel(name, str(path), ModelOptions(**options)))  # type: ignore[arg-type]
        while self.engine.loading:
            self.engine.step()

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, RequestFailed):
            self.failed.append(event)
        if isinstance(event, StepDone):
            for output in event.outputs:
                self.tokens.setdefault(output.request_id, []).extend(output.token_ids)

    def ask(self, id: str, model: str, output: int = 24, **fields: object) -> None:
        prompt = [3 + (7 * i + len(id) + sum(map(ord, id))) % 200 for i in range(40)]
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        request = EngineRequest(id, model, "c", prompt, sampling, self.clock.now(), **fields)  # type: ignore[arg-type]
        self.engine.handle(Generate(request))

    def run(self, *, looking: bool = False) -> None:
        """Until nothing is left to do; with ``looking``, the system's count is compared at every
        step."""
        end = time.monotonic() + 300
        while any(one.has_work for one in self.engine.instances.values()):
            assert time.monotonic() < end, "it does not come to rest"
            if not self.engine.step():
                time.sleep(self.engine.patience())
            if looking:
                assert self.device.check() == []
        self.engine.step()
        assert self.engine.check() == []

    def settle(self) -> None:
        """Do what is to be done about memory."""
        end = time.monotonic() + 300
        self.engine.step()
        while self.engine.residents.waking or self.engine.residents.changed:
            assert time.monotonic() < end
            self.engine.step()

    def states(self) -> dict[str, str]:
        return {one.name: one.residency for one in self.stats().models}

    def stats(self) -> DeviceStats:
        self.engine.handle(AskStats("s"))
        found = self.events[-1]
        assert isinstance(found, DeviceStats)
        return found

    def moved(self) -> list[ModelMoved]:
        return [event for event in self.events if isinstance(event, ModelMoved)]


@pytest.fixture(scope="module")
def alone(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Each model by itself with memory for everything."""
    found: dict[str, list[int]] = {}
    for name, path in paths.items():
        host = Host({name: path}, 4000, tmp_path_factory.mktemp("packed"))
        for turn in range(3):
            host.ask(f"{name}{turn}", name)
        host.run()
        found |= host.tokens
        host.engine.close()
    return found


@pytest.fixture
def host(paths: dict[str, Path], tmp_path: Path) -> Iterator[Host]:
    made = Host(paths, 4000, tmp_path)
    yield made
    made.engine.close()


def test_a_model_asleep_gives_its_pages_to_the_system_and_comes_back(host: Host) -> None:
    host.ask("llama0", "llama")
    host.run()
    before = host.device.pages_of("llama")
    resident = host.device.pool.total_resident_bytes()
    host.device.pool.reserve(0)
    host.engine.handle(SleepModel("llama"))
    host.settle()
    assert host.states()["llama"] == "host" and host.device.pages_of("llama") == 0
    host.device.pool.settle()
    assert host.device.pool.total_resident_bytes() <= resident - before * PAGE
    host.engine.handle(WakeModel("llama"))
    host.settle()
    assert host.states()["llama"] == "resident"
    assert [(one.name, one.state) for one in host.moved()] == [
        ("llama", "host"),
        ("llama", "resident"),
    ]


@pytest.mark.parametrize("to", ["host", "cold"])
def test_tokens_are_the_same_with_sleep_forced_in_the_middle(
    host: Host, alone: dict[str, list[int]], to: str
) -> None:
    """Weights, keys and values go several times while requests run, and everything comes back."""
    for name in FAMILIES:
        for turn in range(3):
            host.ask(f"{name}{turn}", name)
    for turn in range(12):
        for _ in range(4):
            host.engine.step()
        name = list(FAMILIES)[turn % 3]
        host.engine.handle(SleepModel(name, to, force=True))  # type: ignore[arg-type]
        assert host.device.check() == []
    host.run(looking=True)
    assert host.tokens == alone and not host.failed
    assert sum(one.sleeps for one in host.stats().models) >= 6


@pytest.mark.parametrize("mode", ["elastic", "swap", "ttl", "cold"])
def test_three_models_share_memory_for_little_more_than_the_largest(
    paths: dict[str, Path], alone: dict[str, list[int]], tmp_path: Path, mode: str
) -> None:
    whole = Host(paths, 4000, tmp_path)
    weights = {one.name: one.image_pages for one in whole.stats().models}
    scratch = whole.stats().scratch_pages
    whole.engine.close()
    pages = int((max(weights.values()) + 2 * scratch) * 1.25) + 16
    assert pages < sum(weights.values())
    host = Host(paths, pages, tmp_path, mode=mode)
    for turn in range(3):
        for name in FAMILIES:
            host.ask(f"{name}{turn}", name)
    host.run(looking=True)
    assert host.tokens == alone and not host.failed
    assert len({one.name for one in host.moved() if one.state == "resident"}) >= 2
    host.engine.handle(AskDecisions("d"))
    report = host.events[-1]
    assert isinstance(report, DecisionReport)
    kinds = {"wake", "pause" if mode == "elastic" else "sleep"}
    assert kinds <= {one.kind for one in report.decisions}
    assert all(one.why for one in report.decisions)
    host.engine.close()


def test_a_model_whose_turn_is_over_gives_way_though_it_has_requests(
    paths: dict[str, Path], alone: dict[str, list[int]], tmp_path: Path
) -> None:
    """What ran is done, what came since waits: nothing else happens that would be looked at."""
    host = Host(paths, 4000, tmp_path, mode="swap", turn_seconds=0.02)
    host.ask("llama0", "llama", 200)
    while "llama0" not in host.tokens:
        host.engine.step()
    host.ask("moe0", "moe")
    while host.engine.residents._models["llama"].draining is None:
        assert host.engine.step()
    host.ask("llama1", "llama")
    host.run()
    assert len(host.tokens.pop("llama0")) == 200
    assert host.tokens == {name: alone[name] for name in ("moe0", "llama1")}
    kinds = [(one.kind, one.model) for one in host.engine.residents.log.latest(99)]
    assert ("drain", "llama") in kinds
    host.engine.close()


def test_what_a_paused_model_runs_goes_on_with_its_keys_and_values(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    whole = Host(paths, 4000, tmp_path)
    whole.ask("gemma0", "gemma", 200)
    whole.ask("moe0", "moe")
    whole.run()
    weights = {one.name: one.image_pages for one in whole.stats().models}
    scratch = whole.stats().scratch_pages
    whole.engine.close()
    host = Host({}, weights["gemma"] + 2 * scratch + 8, tmp_path)
    for name in ("gemma", "moe"):
        host.load(name, paths[name], asleep=True)
    host.ask("gemma0", "gemma", 200)
    while len(host.tokens.get("gemma0", ())) < 5:
        host.engine.step()
    host.ask("moe0", "moe", ttft_target=0.05)
    host.run(looking=True)
    assert host.tokens == whole.tokens
    decided = [(one.kind, one.model) for one in host.engine.residents.log.latest(99)]
    assert ("pause", "gemma") in decided
    assert [one.preemptions for one in host.stats().models] == [0, 0]
    host.engine.close()


def test_cached_prefixes_of_a_model_that_runs_make_room_for_one_that_wakes(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    """Its own requests go on, and nobody need sleep or drain."""
    whole = Host(paths, 4000, tmp_path)
    weights = {one.name: one.image_pages for one in whole.stats().models}
    scratch = whole.stats().scratch_pages
    whole.engine.close()
    host = Host({}, weights["llama"] + weights["gemma"] + 2 * scratch + 40, tmp_path)
    host.load("llama", paths["llama"])
    host.load("gemma", paths["gemma"], asleep=True)
    missing = host.engine.instances["gemma"].weights.missing
    turn = 0
    while missing() <= 0:
        host.ask("x" * turn, "llama")
        host.run()
        turn += 1
    host.ask("long", "llama", output=300)
    while not host.tokens.get("long"):
        host.engine.step()
    (seen,) = [one for one in host.engine.residents._view().models.values() if one.running]
    cache = host.engine.instances["llama"].batcher.cache  # type: ignore[attr-defined]
    (used,) = cache._open
    touched = {page for b in cache.table(used, 0).tolist() for page in cache.ledgers[0].pages_of(b)}
    assert seen.cached_pages == seen.kv_pages - len(touched) >= missing() > 0
    host.ask("gemma0", "gemma")
    while not host.tokens.get("gemma0"):
        host.engine.step()
    assert len(host.tokens["long"]) < 300
    host.run(looking=True)
    assert len(host.tokens["long"]) == 300
    decided = host.stats().decided
    assert decided["prefixes"] and not {"drain", "preempt"} & decided.keys()
    assert decided["sleep"] == 1  # gemma, to begin with
    host.engine.close()


def test_static_and_quota_say_that_the_models_do_not_fit(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    for mode in ("static", "quota"):
        host = Host({}, 120, tmp_path, mode=mode)
        for name, path in paths.items():
            host.load(name, path)
        downs = [e for e in host.events if getattr(e, "code", "") == "out_of_memory"]
        assert downs and len(host.engine.instances) < 3
        host.engine.close()


def test_a_request_holds_while_its_model_wakes_unless_its_time_is_too_short(host: Host) -> None:
    host.engine.handle(SleepModel("gemma"))
    host.settle()
    weights = host.engine.instances["gemma"].weights
    weights.seconds = lambda: 5.0  # type: ignore[method-assign]
    host.ask("late", "gemma", deadline=host.clock.now() + 1.0)
    assert [one.request_id for one in host.failed] == ["late"]
    assert host.failed[0].code == "deadline_exceeded" and "sleeps" in host.failed[0].message
    host.ask("held", "gemma", deadline=host.clock.now() + 60.0)
    host.run()
    assert len(host.tokens["held"]) == 24


def test_held_models_sleep_through_requests_until_they_are_woken(host: Host) -> None:
    host.engine.handle(SleepModel("moe", hold=True))
    host.settle()
    host.ask("moe0", "moe")
    for _ in range(5):
        host.engine.step()
    assert host.states()["moe"] == "host" and "moe0" not in host.tokens
    host.engine.handle(WakeModel("moe"))
    host.run()
    assert len(host.tokens["moe0"]) == 24


def test_keep_alive_of_nought_puts_the_model_to_sleep_after_the_request(host: Host) -> None:
    host.ask("llama0", "llama", keep_alive=0.0)
    host.run()
    host.settle()
    assert host.states() == {"llama": "host", "gemma": "resident", "moe": "resident"}


def test_a_limit_shrinks_a_model_that_runs_and_its_requests_are_answered(
    host: Host, alone: dict[str, list[int]]
) -> None:
    for turn in range(3):
        host.ask(f"gemma{turn}", "gemma")
    for _ in range(6):
        host.engine.step()
    assert host.device.pages_of("gemma") > 0
    weights = host.engine.instances["gemma"].weights.pages
    limit = 6 * PAGE
    host.engine.residents.settings.shrink_seconds = 0.0
    host.engine.handle(SetResidency("gemma", limit_bytes=limit))
    for _ in range(3):
        host.engine.step()
    assert host.device.pages_of("gemma") - weights <= 6
    host.run(looking=True)
    assert host.tokens == {k: v for k, v in alone.items() if k.startswith("gemma")}


@pytest.mark.parametrize("limit", [64 * PAGE, -1])
def test_a_limit_may_rise_above_the_one_that_the_model_was_loaded_with(
    paths: dict[str, Path], alone: dict[str, list[int]], tmp_path: Path, limit: int
) -> None:
    host = Host({}, 4000, tmp_path)
    host.load("gemma", paths["gemma"], kv_limit_bytes=PAGE)
    host.ask("gemma0", "gemma")
    [failed] = host.failed
    assert failed.code == "out_of_memory"
    host.engine.handle(SetResidency("gemma", limit_bytes=limit))
    host.ask("gemma0", "gemma")
    host.run(looking=True)
    assert host.failed == [failed] and host.tokens["gemma0"] == alone["gemma0"]
    host.engine.close()


def test_a_model_unloaded_while_it_wakes_is_gone_and_its_pages_back(host: Host) -> None:
    host.engine.handle(SleepModel("gemma"))
    host.settle()
    host.ask("gemma0", "gemma")
    host.engine.step()
    assert host.states()["gemma"] == "waking"
    host.engine.handle(UnloadModel("gemma"))
    end = time.monotonic() + 300
    while host.engine.residents.left_behind():
        assert time.monotonic() < end
        host.engine.step()
    assert [one.request_id for one in host.failed] == ["gemma0"]
    assert "gemma" not in host.device.pool.stats().owners and host.engine.check() == []


def test_one_that_leaves_the_host_leaves_the_page_cache(host: Host) -> None:
    image = host.engine.instances["gemma"].weights._image.path  # type: ignore[attr-defined]
    image.write_bytes(bytes(1 << 20))  # not on the disk yet
    host.engine.handle(SleepModel("gemma", "cold"))
    host.settle()
    while threads := [one for one in threading.enumerate() if one.name == "leave-host"]:
        threads[0].join()
    if image_in_page_cache(image) == 1.0:
        drop_from_page_cache(image)
        assert image_in_page_cache(image) == 1.0  # this file system keeps its files in memory
    else:
        assert image_in_page_cache(image) == 0.0


def test_one_that_sleeps_is_held_in_the_hosts_memory_until_it_wakes(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HeldFile.hold, "__defaults__", (0.0,))
    image = host.engine.instances["gemma"].weights._image  # type: ignore[attr-defined]

    def mapped() -> bool:
        return image.path.name in Path("/proc/self/maps").read_text()

    host.engine.handle(SleepModel("gemma"))
    host.settle()
    end = time.monotonic() + 20
    while not mapped():
        assert time.monotonic() < end
        time.sleep(0.01)
    holding = image._thread
    host.engine.handle(WakeModel("gemma"))
    host.settle()
    assert host.states()["gemma"] == "resident"
    holding.join(20)
    assert not mapped()


def test_waking_brings_back_only_what_others_took(
    host: Host, alone: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that nobody wanted is as the model left it, and costs no reading."""
    weights = host.engine.instances["gemma"].weights
    assert isinstance(weights, PackedWeights)
    read: list[int] = []
    refill = weights._refill

    def counted(parts: Any = None) -> None:
        read.append(sum(end - first for first, end in parts))
        refill(parts)

    monkeypatch.setattr(weights, "_refill", counted)
    host.device.pool.reserve(4000)

    def sleep_and_ask(turn: int, taken: int) -> None:
        host.engine.handle(SleepModel("gemma"))
        host.settle()
        assert weights.space.ready_pages == weights.pages
        thief = host.device.pool.create(f"thief{turn}", "w", 4000 * PAGE)
        stats = host.device.pool.stats()
        free = stats.capacity - stats.mapped - weights.pages
        assert thief.map(range(free + taken))
        assert weights.space.ready_pages == weights.pages - taken
        thief.close()
        host.ask(f"gemma{turn}", "gemma")
        host.run(looking=True)
        assert host.tokens[f"gemma{turn}"] == alone[f"gemma{turn}"]

    sleep_and_ask(0, taken=0)
    assert read == []
    sleep_and_ask(1, taken=3)
    assert len(read) == 1 and 2 * PAGE < read[0] <= 3 * PAGE
    host.engine.handle(SleepModel("gemma", "cold"))
    host.settle()
    assert weights.space.ready_pages == 0
    host.ask("gemma2", "gemma")
    host.run()
    assert host.tokens["gemma2"] == alone["gemma2"] and read[1] == weights.space.nbytes


def test_an_image_that_is_gone_is_packed_again(host: Host, alone: dict[str, list[int]]) -> None:
    host.engine.handle(SleepModel("gemma", "cold"))
    host.settle()
    image = host.engine.instances["gemma"].weights._image.path  # type: ignore[attr-defined]
    assert image is not None
    image.unlink()
    host.ask("gemma0", "gemma")
    host.run()
    assert host.tokens["gemma0"] == alone["gemma0"] and not host.failed


def test_weights_that_cannot_be_had_fail_the_requests_with_the_reason(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "own"
    make_tiny("gemma3_text", path)
    host = Host({"gemma": path}, 4000, tmp_path / "packed")
    host.engine.handle(SleepModel("gemma", "cold"))
    host.settle()
    image = host.engine.instances["gemma"].weights._image.path  # type: ignore[attr-defined]
    image.unlink()
    shutil.rmtree(path)
    host.ask("gemma0", "gemma")
    host.run()
    assert host.failed[0].code == "unavailable" and "could not be woken" in host.failed[0].message
    assert host.states()["gemma"] == "cold" and host.device.pages_of("gemma") == 0
    host.engine.close()


def test_a_pinned_model_never_makes_room(paths: dict[str, Path], tmp_path: Path) -> None:
    whole = Host(paths, 4000, tmp_path)
    weights = {one.name: one.image_pages for one in whole.stats().models}
    scratch = whole.stats().scratch_pages
    whole.engine.close()
    pages = weights["llama"] + int(1.2 * max(weights["gemma"], weights["moe"])) + 2 * scratch + 24
    host = Host({}, pages, tmp_path)
    host.load("llama", paths["llama"], pinned=True)
    host.load("gemma", paths["gemma"], asleep=True)
    host.load("moe", paths["moe"], asleep=True)
    assert host.states() == {"llama": "resident", "gemma": "host", "moe": "host"}
    for turn in range(2):
        for name in ("gemma", "moe"):
            host.ask(f"{name}{turn}", name)
        host.run()
    assert len(host.tokens) == 4 and not host.failed
    assert "llama" not in {one.name for one in host.moved()}
    host.engine.close()


def test_what_the_host_may_not_keep_is_left_on_disk(host: Host) -> None:
    settings = host.engine.residents.settings
    settings.host_bytes = 70 * PAGE
    for name in ("llama", "moe", "gemma"):
        host.engine.handle(SleepModel(name))
        host.settle()
    assert host.states() == {"llama": "cold", "gemma": "cold", "moe": "host"}
    host.ask("gemma0", "gemma")
    host.run()
    assert len(host.tokens["gemma0"]) == 24
