"""One place a model: where it goes, how it moves while it serves, and what becomes of requests."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.fakes import Answer, Fakes, FakeWorker, facts, obliging
from fleet.services import begin, device, tiny, until, want
from tenfold.client.base import collect
from tenfold.core.errors import OutOfMemory, WorkerLost
from tenfold.core.messages import (
    Abort,
    AskStats,
    Command,
    DeviceStats,
    Generate,
    LoadModel,
    ModelDown,
    ModelStats,
    ModelUp,
    SleepModel,
    UnloadModel,
    WorkerUp,
)
from tenfold.core.settings import DeviceSettings, PlacementSettings
from tenfold.core.types import EngineRequest
from tenfold.fleet.placement import Placements
from tenfold.fleet.served import ModelSource
from tenfold.fleet.service import Service
from tenfold.fleet.supervisor import Supervisor
from tenfold.fleet.types import Delta
from tenfold.fleet.workers import LocalWorker, OnEvent, OnExit, Worker
from tenfold.scheduling.admission import AdmissionController, Limits

PAGE = 64 << 10
TWO = [device("cpu:0"), device("cpu:1")]
EVER = PlacementSettings("balanced", period=1e6, cooldown=0.0)
"""Looks only when a test does."""


@asynccontextmanager
async def placed(
    models: list[ModelSource],
    make_worker: Callable[[DeviceSettings], Worker],
    devices: list[DeviceSettings] | None = None,
    settings: PlacementSettings = EVER,
) -> AsyncIterator[Service]:
    service = Service(
        devices or TWO,
        models,
        admission=AdmissionController(Limits.unbounded()),
        placement=settings,
        make_worker=make_worker,
    )
    try:
        await service.start()
        yield service
    finally:
        await service.close()


def mover(service: Service) -> Placements:
    assert isinstance(service.places, Placements)
    return service.places


def other(service: Service, model: str) -> Supervisor:
    """A worker that the model is not at."""
    home = service.book.entry(model).places[0]
    return next(s for s in service.supervisors.values() if s is not home)


def at(service: Service, fakes: Fakes, model: str) -> FakeWorker:
    """The fake that the model is at."""
    return fakes.made[list(service.supervisors).index(service.status(model).device)]


def requests(worker: FakeWorker) -> list[EngineRequest]:
    return [command.request for command in worker.asked(Generate) if isinstance(command, Generate)]


def names(worker: FakeWorker, kind: type[LoadModel] | type[UnloadModel]) -> list[str]:
    return [command.name for command in worker.asked(kind) if isinstance(command, kind)]


def states(
    counters: dict[str, int],
    asleep: set[str] | None = None,
    *,
    preempted: dict[str, int] | None = None,
    seconds: dict[str, float] | None = None,
) -> Callable[..., None]:
    """A worker whose models have computed so many tokens, in so many seconds of steps, and had so
    many requests preempted."""

    def answer(worker: FakeWorker, command: Command) -> None:
        if isinstance(command, AskStats):
            here = set(names(worker, LoadModel)) - set(names(worker, UnloadModel))
            models = [
                ModelStats(
                    name,
                    "ready",
                    generated_tokens=counters.get(name, 0),
                    preemptions=(preempted or {}).get(name, 0),
                    step_seconds=(seconds or {}).get(name, 0.0),
                    weight_pages=7,
                    residency="host" if name in (asleep or ()) else "resident",
                )
                for name in sorted(here)
            ]
            where = device_of(worker)
            worker.say(DeviceStats(command.id, where, PAGE, 512, 0, 0, 0, models))
        else:
            loading(worker, command)

    made: list[FakeWorker] = []

    def device_of(worker: FakeWorker) -> str:
        if worker not in made:
            made.append(worker)
        return f"cpu:{made.index(worker)}"

    return answer


class SizedWorker(FakeWorker):
    """Says what memory it has."""

    def __init__(self, answer: Answer, settings: DeviceSettings) -> None:
        super().__init__(answer)
        self.settings = settings

    async def start(self, on_event: OnEvent, on_exit: OnExit) -> None:
        self.on_event, self.on_exit, self.alive = on_event, on_exit, True
        self.say(WorkerUp(self.settings.name, 1, self.settings.memory_bytes))


class Sized(Fakes):
    def __call__(self, settings: DeviceSettings) -> FakeWorker:
        self.made.append(SizedWorker(self.answer, settings))
        return self.made[-1]


def loading(worker: FakeWorker, command: Command) -> None:
    """Models of seven pages and a KiB a token load at once."""
    if isinstance(command, LoadModel):
        said = replace(facts(command.name), weight_bytes=7 * PAGE, kv_bytes_per_token=1024)
        worker.say(ModelUp(said, 0.0))
    else:
        obliging(worker, command)


def test_each_model_has_one_place_and_they_are_spread(tmp_path: Path) -> None:
    async def run() -> None:
        models = [tiny(tmp_path, name=name) for name in "abcd"]
        async with placed(models, fakes := Sized(loading)) as service:
            loads = [names(worker, LoadModel) for worker in fakes.made]
            assert [len(each) for each in loads] == [2, 2] and {*loads[0], *loads[1]} == {*"abcd"}
            assert all(len(status.devices) == 1 for status in service.models())
            begin(service, want([5], model="c"))
            await until(lambda: requests(at(service, fakes, "c")))

    asyncio.run(run())


def test_a_model_of_a_named_device_stays_there(tmp_path: Path) -> None:
    async def run() -> None:
        fixed = [tiny(tmp_path, name=name, device="cpu:1") for name in "ab"]
        async with placed([*fixed, tiny(tmp_path, name="c")], fakes := Sized(loading)) as service:
            assert [names(worker, LoadModel) for worker in fakes.made] == [["c"], ["a", "b"]]
            await mover(service).look()
            assert not mover(service).decisions
            service.drain_worker("cpu:1")
            assert not mover(service)._tasks

    asyncio.run(run())


def test_the_busy_ones_are_parted(tmp_path: Path) -> None:
    counters, preempted = dict.fromkeys("abcd", 1), dict[str, int]()

    async def run() -> None:
        models = [tiny(tmp_path, name=name) for name in "abcd"]
        async with placed(models, Sized(states(counters, preempted=preempted))) as service:
            near = next(n for n in "bcd" if service.status(n).device == service.status("a").device)
            counters["a"] = counters[near] = 50_000
            await mover(service).look()
            assert not mover(service).migrations  # there are pages enough
            preempted[near] = 1
            await mover(service).look()
            assert service.status("a").device != service.status(near).device
            assert mover(service).migrations == 1
            found = mover(service).decisions[-1]
            assert found.kind == "migrate" and "highest pressure" in found.why
            assert service.status(found.model).migrations == 1
            (told,) = await service.decisions(1)
            assert (told.device, told.why) == ("fleet", found.why)
            assert found.model in ("a", near) and "->" in found.why and found.pages == 7
            home = service.book.entry(found.model).places[0].name
            moved_from = next(s for s in service.supervisors.values() if s.name != home)
            await until(lambda: found.model not in moved_from.loaded)
            pressed = [state.pressure for state in await service.stats()]
            assert min(pressed) > 0 and max(pressed) < 2 * min(pressed)
            assert {m.name: m.kv_token_rate > 100 for s in await service.stats() for m in s.models}[
                "a"
            ]

    asyncio.run(run())


def test_nothing_goes_to_a_worker_that_computes_enough(tmp_path: Path) -> None:
    counters, preempted, seconds = dict.fromkeys("abcd", 1), dict[str, int](), dict[str, float]()

    async def run() -> None:
        models = [tiny(tmp_path, name=name) for name in "abcd"]
        answer = states(counters, preempted=preempted, seconds=seconds)
        async with placed(models, Sized(answer)) as service:
            near = next(n for n in "bcd" if service.status(n).device == service.status("a").device)
            far = next(n for n in "bcd" if service.status(n).device != service.status("a").device)
            counters["a"] = counters[near] = 50_000
            preempted[near] = 1
            seconds.update({"a": 1.0, near: 1.0, far: 1e6})
            await mover(service).look()
            assert not mover(service).migrations
            seconds["a"] = 2e6  # where they are is busier still
            await mover(service).look()
            assert mover(service).migrations == 1

    asyncio.run(run())


def test_the_source_serves_until_the_target_is_ready(tmp_path: Path) -> None:
    hold: list[Command] = []

    def answer(worker: FakeWorker, command: Command) -> None:
        slow = isinstance(command, LoadModel) and worker is fakes.made[1 - home] and ready
        hold.append(command) if slow else loading(worker, command)

    fakes, home, ready = Sized(answer), 0, False

    async def run() -> None:
        nonlocal home, ready
        async with placed([tiny(tmp_path)], fakes) as service:
            home = list(service.supervisors).index(service.status("tiny").device)
            source, target = fakes.made[home], fakes.made[1 - home]
            ready = True
            done = begin(service, want([4], 2))
            runs = begin(service, want([5], 3))
            waits = begin(service, want([6], 2))
            await until(lambda: len(requests(source)) == 3)
            source.make([9], part=1)
            moving = asyncio.create_task(
                mover(service).migrate(service.book.entry("tiny"), other(service, "tiny"), "a test")
            )
            await until(lambda: hold)
            late = begin(service, want([7], 2))
            await until(lambda: len(requests(source)) == 4)  # it serves on
            source.make([1, 2], "length", part=0)
            assert (await done).choices[0].token_ids == [1, 2]
            loading(target, hold[0])
            assert await moving
            # What waits goes over under another name, and what the source still says of it is
            # heard by nobody; what runs stays.
            await until(lambda: len(requests(target)) == 2)
            assert [r.prompt for r in requests(target)] == [[6], [7]]
            assert {c.request_id for c in source.asked(Abort) if isinstance(c, Abort)} == {
                requests(source)[2].id,
                requests(source)[3].id,
            }
            source.make([8, 8], "length", part=2)
            for part in (0, 1):
                target.make([3, 4], "length", part=part)
            for task in (waits, late):
                assert (await task).choices[0].token_ids == [3, 4]
            assert not names(source, UnloadModel)
            source.make([9, 9], "length", part=1)
            assert (await runs).choices[0].token_ids == [9, 9, 9]
            await until(lambda: names(source, UnloadModel) == ["tiny"])
            assert service.status("tiny").devices == [service.status("tiny").device]
            assert all(worker.requests == 0 for worker in service.workers())

    asyncio.run(run())


def test_what_runs_for_too_long_goes_on_at_the_target(tmp_path: Path) -> None:
    """Tokens that the client has are not made again, and those on their way are nobody's."""

    async def run() -> None:
        async with placed([tiny(tmp_path)], fakes := Sized(loading)) as service:
            mover(service)._finish_seconds = 0.0
            source = at(service, fakes, "tiny")
            sampling = replace(want([5], 9).sampling, n=2)
            both = begin(service, replace(want([5, 6], 9), sampling=sampling))
            await until(lambda: len(requests(source)) == 2)
            source.make([20, 21, 22], part=0)
            source.make([30], "length", part=1)
            entry = service.book.entry("tiny")
            assert await mover(service).migrate(entry, other(service, "tiny"), "a test")
            target = at(service, fakes, "tiny")
            await until(lambda: requests(target))
            assert target is not source
            (again,) = requests(target)
            assert (again.prompt, again.continued) == ([5, 6, 20, 21, 22], 3)
            assert again.sampling.max_tokens == 9
            source.make([99, 99], part=0)
            target.make([23, 24], "length")
            reply = await both
            assert [choice.token_ids for choice in reply.choices] == [[20, 21, 22, 23, 24], [30]]
            assert reply.usage.completion_tokens == 6
            await until(lambda: names(source, UnloadModel))
            assert [status.requests for status in service.workers()] == [0, 0]

    asyncio.run(run())


def test_a_target_without_room_changes_nothing(tmp_path: Path) -> None:
    def answer(worker: FakeWorker, command: Command) -> None:
        if isinstance(command, LoadModel) and len(fakes.made) == 2 and full:
            worker.say(ModelDown(command.name, OutOfMemory.code, "no room"))
        else:
            loading(worker, command)

    fakes, full = Sized(answer), False

    async def run() -> None:
        nonlocal full
        async with placed([tiny(tmp_path)], fakes) as service:
            full = True
            source = at(service, fakes, "tiny")
            entry = service.book.entry("tiny")
            assert not await mover(service).migrate(entry, other(service, "tiny"), "a test")
            assert "no room" in mover(service).decisions[-1].why
            assert service.ready() and not entry.moving and entry.places == entry.holders()
            begin(service, want([5]))
            await until(lambda: requests(source))

    asyncio.run(run())


def test_a_dead_workers_models_are_placed_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenfold.fleet.supervisor.BACKOFF_SECONDS", (60.0,))

    async def run() -> None:
        models = [tiny(tmp_path, name=name) for name in "ab"]
        async with placed(models, fakes := Sized(loading)) as service:
            dying, alive = at(service, fakes, "a"), at(service, fakes, "b")
            waits = begin(service, want([5], 1, model="a"))
            told = service.generate(want([6], 2, model="a"))
            telling = asyncio.ensure_future(anext(told))
            await until(lambda: len(requests(dying)) == 2)
            dying.make([1], part=1)
            await telling
            dying.die()
            with pytest.raises(WorkerLost):
                await anext(told)
            await until(lambda: requests(alive))
            alive.make([7], "length")
            assert (await waits).choices[0].token_ids == [7]
            assert service.status("a").devices == [service.status("b").device]
            assert "died" in mover(service).decisions[-1].why

    asyncio.run(run())


def test_a_dead_workers_models_wait_for_it_where_nothing_else_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenfold.fleet.supervisor.BACKOFF_SECONDS", (0.0,))
    small = [replace(one, memory_bytes=12 * PAGE) for one in TWO]

    async def run() -> None:
        models = [tiny(tmp_path, name=name) for name in "ab"]
        async with placed(models, fakes := Sized(loading), small) as service:
            dying, home = at(service, fakes, "a"), service.status("a").device
            waits = begin(service, want([5], 1, model="a"))
            await until(lambda: requests(dying))
            dying.die()
            assert "no other device has room" in mover(service).decisions[-1].why
            await until(lambda: len(fakes.made) == 3 and requests(fakes.last))
            fakes.last.make([7], "length")
            await waits
            assert service.status("a").device == home

    asyncio.run(run())


def test_a_drained_worker_serves_until_its_models_have_gone(tmp_path: Path) -> None:
    async def run() -> None:
        models = [tiny(tmp_path, name=name) for name in "abcd"]
        async with placed(models, fakes := Sized(loading)) as service:
            source = at(service, fakes, "a")
            gone = service.status("a").device
            service.drain_worker(gone)
            assert service.ready()
            await until(lambda: all(s.device != gone for s in service.models()))
            await until(lambda: len(names(source, UnloadModel)) == 2)
            begin(service, want([5], model="a"))
            await until(lambda: requests(at(service, fakes, "a")))
            assert not requests(source)
            assert all("drained" in d.why for d in mover(service).decisions)

    asyncio.run(run())


def test_one_that_is_held_stays_held_where_it_moves(tmp_path: Path) -> None:
    counters, asleep = {"a": 1}, {"a"}

    async def run() -> None:
        models = [tiny(tmp_path, name="a")]
        async with placed(models, fakes := Sized(states(counters, asleep))) as service:
            await service.sleep("a", "cold", hold=True)
            await service.stats()
            target = other(service, "a")
            assert await mover(service).migrate(service.book.entry("a"), target, "to test")
            await until(lambda: not service.book.entry("a").moving)
            status = service.status("a")
            assert (status.device, status.held) == (target.name, True)
            worker = at(service, fakes, "a")
            load = worker.asked(LoadModel)[-1]
            assert isinstance(load, LoadModel) and load.options.asleep
            assert worker.asked(SleepModel) == [SleepModel("a", "cold", hold=True)]
            waits = begin(service, want([5], 1, model="a"))
            await until(lambda: requests(worker))  # it waits there, and is not woken elsewhere
            worker.make([7], "length")
            assert (await waits).choices[0].token_ids == [7]
            assert mover(service).activations == 0

    asyncio.run(run())


def test_a_sleeper_wakes_where_nothing_presses(tmp_path: Path) -> None:
    counters, asleep = {"a": 1, "b": 1}, {"b"}

    async def run() -> None:
        models = [tiny(tmp_path, name=name) for name in "ab"]
        async with placed(models, fakes := Sized(states(counters, asleep))) as service:
            home = service.book.entry("a").places[0]
            assert await mover(service).migrate(service.book.entry("b"), home, "to test")
            await until(lambda: not service.book.entry("b").moving)
            counters["a"] = 50_000
            await mover(service).look()  # b sleeps beside the busy a
            assert service.status("b").device == home.name
            waits = begin(service, want([5], 1, model="b"))
            await until(lambda: service.status("b").device != home.name)
            worker = at(service, fakes, "b")
            await until(lambda: requests(worker))
            worker.make([7], "length")
            assert (await waits).choices[0].token_ids == [7]
            assert "while it slept" in mover(service).decisions[-1].why
            assert mover(service).activations == 1
            await until(lambda: not service.book.entry("b").moving)

    asyncio.run(run())


def test_a_sleeper_wakes_where_an_idle_model_sleeps_for_it(tmp_path: Path) -> None:
    """Neither device has room; at home the other model works, elsewhere nobody does."""
    asleep = {"b"}
    small = [replace(one, memory_bytes=16 * PAGE) for one in TWO]

    async def run() -> None:
        models = [tiny(tmp_path, name=name) for name in "abc"]
        placing = placed(models, fakes := Sized(states({}, asleep)), small)
        async with placing as service:
            entries = {name: service.book.entry(name) for name in "abc"}
            for name, supervisor in zip("abc", [0, 0, 1], strict=True):
                target = list(service.supervisors.values())[supervisor]
                if entries[name].places != [target]:
                    assert await mover(service).migrate(entries[name], target, "to test")
                    await until(lambda name=name: not entries[name].moving)  # type: ignore[misc]
            await mover(service).look()
            works = begin(service, want([5], 1, model="a"))
            await until(lambda: requests(at(service, fakes, "a")))
            first = begin(service, want([5], 1, model="b"))
            await until(lambda: service.status("b").device == service.status("c").device)
            await until(lambda: not entries["b"].moving)
            worker = at(service, fakes, "b")
            await until(lambda: [one.model for one in requests(worker)] == ["b"])
            assert mover(service).activations == 1
            worker.make([7], "length")
            assert (await first).choices[0].token_ids == [7]
            at(service, fakes, "a").make([7], "length")
            await works

    asyncio.run(run())


def test_a_sleeper_that_is_waited_for_stays_and_loses_nothing(tmp_path: Path) -> None:
    """The first request waits at its home. When the second comes, the model stays there, though it
    would wake sooner elsewhere: a look at the placement moves it with what waits."""
    counters, asleep = {"a": 1, "b": 1}, {"b"}

    async def run() -> None:
        models = [tiny(tmp_path, name=name) for name in "ab"]
        async with placed(models, fakes := Sized(states(counters, asleep))) as service:
            entry, home = service.book.entry("b"), service.book.entry("a").places[0]
            assert await mover(service).migrate(entry, home, "to test")
            await until(lambda: not entry.moving)
            counters["a"] = 50_000
            await mover(service).look()
            entry.moving = True  # as when it cannot be woken elsewhere
            waiting = [begin(service, want([5], 1, model="b"))]
            await until(lambda: len(requests(at(service, fakes, "b"))) == 1)
            entry.moving = False
            waiting.append(begin(service, want([6], 1, model="b")))
            await until(lambda: len(requests(at(service, fakes, "b"))) == 2)
            assert entry.places == [home] and mover(service).activations == 0
            worker = at(service, fakes, "b")
            for part in range(2):
                worker.make([7], "length", part)
            assert [(await one).choices[0].token_ids for one in waiting] == [[7], [7]]

    asyncio.run(run())


def test_what_waits_for_a_sleeper_without_room_moves_with_it(tmp_path: Path) -> None:
    """Two models take turns on one device, with requests; an idle one fills the other device."""
    asleep = {"b"}
    small = [replace(one, memory_bytes=16 * PAGE) for one in TWO]

    async def run() -> None:
        models = [tiny(tmp_path, name=name) for name in "abc"]
        placing = placed(models, fakes := Sized(states({"a": 9, "b": 9}, asleep)), small)
        async with placing as service:
            first, second = service.supervisors.values()
            entries = {name: service.book.entry(name) for name in "abc"}
            for name, target in (("a", first), ("b", first), ("c", second)):
                if entries[name].places != [target]:
                    assert await mover(service).migrate(entries[name], target, "to test")
                    await until(lambda name=name: not entries[name].moving)  # type: ignore[misc]
            await mover(service).look()
            entries["b"].moving = True  # so that it is not woken elsewhere at once
            begin(service, want([5], 1, model="a"))
            waits = begin(service, want([5], 1, model="b"))
            await until(lambda: len(requests(at(service, fakes, "a"))) == 2)
            entries["b"].moving = False
            await mover(service).look()
            moved = [name for name in "ab" if entries[name].places == [second]]
            assert len(moved) == 1
            worker = at(service, fakes, moved[0])
            await until(lambda: any(one.model == moved[0] for one in requests(worker)))
            at(service, fakes, "b").make([7], "length")
            assert (await waits).choices[0].token_ids == [7]

    asyncio.run(run())


def test_a_sleeper_that_cannot_wake_elsewhere_wakes_at_home(tmp_path: Path) -> None:
    counters, asleep, full = {"a": 1, "b": 1}, {"b"}, False
    calm = states(counters, asleep)

    def answer(worker: FakeWorker, command: Command) -> None:
        if isinstance(command, LoadModel) and full:
            worker.say(ModelDown(command.name, OutOfMemory.code, "no room"))
        else:
            calm(worker, command)

    async def run() -> None:
        nonlocal full
        models = [tiny(tmp_path, name=name) for name in "ab"]
        async with placed(models, fakes := Sized(answer)) as service:
            home = service.book.entry("a").places[0]
            assert await mover(service).migrate(service.book.entry("b"), home, "to test")
            await until(lambda: not service.book.entry("b").moving)
            counters["a"], full = 50_000, True
            await mover(service).look()
            waits = begin(service, want([5], 1, model="b"))
            await until(lambda: requests(at(service, fakes, "b")))
            assert service.status("b").device == home.name
            at(service, fakes, "b").make([7], "length")
            assert (await waits).choices[0].token_ids == [7]
            assert "no room" in mover(service).decisions[-1].why

    asyncio.run(run())


def test_more_than_fits_begins_asleep(tmp_path: Path) -> None:
    small = [replace(one, memory_bytes=12 * PAGE) for one in TWO]

    async def run() -> None:
        models = [tiny(tmp_path, name=name) for name in "abc"]
        async with placed(models, fakes := Sized(loading), small):
            loads = [c for worker in fakes.made for c in worker.asked(LoadModel)]
            asleep = [c.name for c in loads if isinstance(c, LoadModel) and c.options.asleep]
            assert len(loads) == 3 and len(asleep) == 1

    asyncio.run(run())


def test_what_steps_may_take_is_no_room_for_weights(tmp_path: Path) -> None:
    """Two models of seven pages, and two for keys and values each, fit in eighteen, but their steps
    need some as well. Where other kernels have these elsewhere, both are awake."""

    async def run(native: bool) -> int:
        settings = replace(TWO[0], memory_bytes=18 * PAGE, native=native, kernels_mode="exact")
        models = [tiny(tmp_path, name=name) for name in "ab"]
        async with placed(models, fakes := Sized(loading), [settings]) as service:
            sizes = mover(service)._sizes["a"]
            assert sizes.facts.weight_bytes <= 7 * PAGE
            loads = fakes.last.asked(LoadModel)
            return sum(isinstance(c, LoadModel) and c.options.asleep for c in loads)

    assert asyncio.run(run(native=False)) == 0
    pytest.importorskip("tenfold._native")
    assert asyncio.run(run(native=True)) == 1


def test_an_unloaded_model_takes_its_move_along(tmp_path: Path) -> None:
    async def run() -> None:
        async with placed([tiny(tmp_path)], fakes := Sized(loading)) as service:
            entry = service.book.entry("tiny")
            moving = asyncio.create_task(
                mover(service).migrate(entry, other(service, "tiny"), "a test")
            )
            await until(lambda: len([w for w in fakes.made if names(w, LoadModel)]) == 2)
            await service.unload("tiny")
            assert not await moving
            assert [names(worker, UnloadModel) for worker in fakes.made] == [["tiny"], ["tiny"]]
            await until(lambda: not mover(service)._tasks)

    asyncio.run(run())


def test_a_stream_goes_on_at_another_process_where_it_was(tmp_path: Path) -> None:
    """Two real workers; the model is moved in the middle of a stream, which goes on there with the
    same tokens: greedy, and drawn with a seed and penalties."""

    async def run() -> None:
        prompt = list(range(3, 40))
        drawn = replace(
            want(prompt, 300).sampling,
            temperature=1.0,
            seed=7,
            presence_penalty=0.5,
            repetition_penalty=1.2,
        )
        asked = [want(prompt, 300), replace(want(prompt, 300), sampling=drawn)]
        async with placed([tiny(tmp_path)], LocalWorker) as service:
            mover(service)._finish_seconds = 0.0
            straight = [await collect(service.generate(one)) for one in asked]
            streams = [service.generate(one) for one in asked]
            seen: list[list[int]] = [[], []]
            text = ["", ""]

            async def read(number: int, most: int) -> None:
                async for event in streams[number]:
                    if isinstance(event, Delta):
                        seen[number] += event.token_ids
                        text[number] += event.text
                    if len(seen[number]) >= most:
                        return

            await asyncio.gather(read(0, 10), read(1, 10))
            entry, before = (
                service.book.entry("tiny"),
                service.worker(service.status("tiny").device),
            )
            os.kill(before.pid, signal.SIGSTOP)  # it would be done before the target is ready
            try:
                assert await mover(service).migrate(entry, other(service, "tiny"), "a test")
                calls = service.dispatch.calls()
                await until(lambda: all(c.supervisor is entry.places[0] for c in calls))
            finally:
                os.kill(before.pid, signal.SIGCONT)
            left = sum(300 - len(call.sends[0].prompt) + len(prompt) for call in calls)
            assert left > 300
            await asyncio.gather(read(0, 10**9), read(1, 10**9))
            for number, reply in enumerate(straight):
                assert seen[number] == reply.choices[0].token_ids
                assert text[number] == reply.choices[0].text
            await until(lambda: not entry.moving)
            (found,) = [model for state in await service.stats() for model in state.models]
            assert found.generated_tokens == left  # not one was made twice

    asyncio.run(run())
