"""Sleep, wake and limits: carried to workers that say what a test tells them to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fleet.fakes import Fakes, FakeWorker, obliging
from fleet.services import device, tiny, want
from tenfold.client.base import collect
from tenfold.core.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    OutOfMemory,
    Unavailable,
    WorkerLost,
)
from tenfold.core.messages import (
    AskDecisions,
    Command,
    Decision,
    DecisionReport,
    DeviceStats,
    Generate,
    LoadModel,
    ModelMoved,
    ModelStats,
    SetResidency,
    SleepModel,
    WakeModel,
)
from tenfold.fleet import residency
from tenfold.fleet.service import Service
from tenfold.scheduling.admission import AdmissionController, Limits

Test = Callable[[Service, Fakes], Awaitable[None]]


def with_fakes(tmp_path: Path, test: Test, *names: str, answer: object = obliging) -> None:
    async def run() -> None:
        fakes = Fakes(answer)  # type: ignore[arg-type]
        service = Service(
            [device(name) for name in names or ("cpu:0",)],
            [tiny(tmp_path)],
            admission=AdmissionController(Limits.unbounded()),
            make_worker=fakes,
        )
        await service.start()
        try:
            await asyncio.wait_for(test(service, fakes), 10)
        finally:
            await service.close()

    asyncio.run(run())


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def silent(worker: FakeWorker, command: Command) -> None:
    """Loads; whether it moves is the test's to say."""
    if not isinstance(command, SleepModel | WakeModel):
        obliging(worker, command)


def test_a_model_sleeps_wakes_and_is_ready_all_the_while(tmp_path: Path) -> None:
    async def test(service: Service, fakes: Fakes) -> None:
        assert service.status("tiny").residency == {"cpu:0": "resident"}
        for to in ("host", "cold"):
            status = await service.sleep("tiny", to, force=True, hold=to == "cold")
            assert status.residency == {"cpu:0": to} and status.state == "ready"
            assert status.held is (to == "cold") and service.ready()
        assert fakes.last.asked(SleepModel)[1] == SleepModel("tiny", "cold", True, True)
        status = await service.wake("tiny")
        assert (status.residency, status.held) == ({"cpu:0": "resident"}, False)

    with_fakes(tmp_path, test)


def test_requests_of_a_sleeping_model_are_sent_and_not_refused(tmp_path: Path) -> None:
    async def test(service: Service, fakes: Fakes) -> None:
        await service.sleep("tiny")
        call = asyncio.create_task(collect(service.generate(want("x", 1, keep_alive=7.5))))
        while not fakes.last.asked(Generate):
            await asyncio.sleep(0)
        (sent,) = fakes.last.asked(Generate)
        assert isinstance(sent, Generate) and sent.request.keep_alive == 7.5
        fakes.last.make([5], "length")
        assert (await call).choices[0].token_ids == [5]

    with_fakes(tmp_path, test)


def test_what_moves_by_itself_is_seen(tmp_path: Path) -> None:
    async def test(service: Service, fakes: Fakes) -> None:
        fakes.last.say(ModelMoved("tiny", "cold"))
        fakes.last.say(ModelMoved("nobody", "cold"))
        await turns()
        assert service.status("tiny").residency == {"cpu:0": "cold"}
        stats = DeviceStats("9", "cpu:0", 1, 1, 0, 0, 0)
        stats.models = [ModelStats("tiny", "ready", residency="waking"), ModelStats("x", "ready")]
        fakes.last.say(stats)
        await turns()
        assert service.status("tiny").residency == {"cpu:0": "waking"}

    with_fakes(tmp_path, test)


def test_a_pinned_model_sleeps_only_by_force(tmp_path: Path) -> None:
    async def test(service: Service, fakes: Fakes) -> None:
        assert service.pin("tiny", True).pinned
        with pytest.raises(Conflict, match="pinned"):
            await service.sleep("tiny")
        assert fakes.last.asked(SleepModel) == []
        assert (await service.sleep("tiny", force=True)).residency == {"cpu:0": "host"}
        assert fakes.last.asked(SetResidency) == [SetResidency("tiny", True, -1, 0, -1, 1.0)]

    with_fakes(tmp_path, test)


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    async def test(service: Service, fakes: Fakes) -> None:
        for ask in (service.sleep("x"), service.wake("x")):
            with pytest.raises(ModelNotFound, match="tiny"):
                await ask
        with pytest.raises(ModelNotFound):
            service.set_residency("x", ttl=1.0)
        for change, param in (
            ({"floor": -1}, "floor"),
            ({"evict_cost": -0.5}, "evict_cost"),
            ({"floor": 2, "limit": 1}, "limit"),
        ):
            with pytest.raises(InvalidRequest) as refusal:
                service.set_residency("tiny", **change)  # type: ignore[arg-type]
            assert refusal.value.param == param
        assert fakes.last.asked(SetResidency) == []
        service.set_residency("tiny", limit=10)
        with pytest.raises(InvalidRequest, match="floor"):
            service.set_residency("tiny", floor=11)
        fakes.last.die()
        with pytest.raises(Unavailable):
            await service.wake("tiny")

    with_fakes(tmp_path, test)


def test_the_worker_may_refuse_and_a_hold_that_failed_is_none(tmp_path: Path) -> None:
    async def test(service: Service, fakes: Fakes) -> None:
        def refuse(worker: FakeWorker, command: Command) -> None:
            if isinstance(command, SleepModel):
                worker.say(
                    ModelMoved("tiny", "resident", code="conflict", error="tiny is the only one")
                )
            elif isinstance(command, WakeModel):
                worker.say(
                    ModelMoved("tiny", "cold", code="out_of_memory", error="pinned models fill it")
                )

        fakes.last.answer = refuse
        with pytest.raises(Conflict, match="the only one"):
            await service.sleep("tiny", hold=True)
        assert not service.status("tiny").held
        with pytest.raises(OutOfMemory, match="fill it"):
            await service.wake("tiny")
        assert service.status("tiny").residency == {"cpu:0": "cold"}

    with_fakes(tmp_path, test)


def test_waiting_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(service: Service, fakes: Fakes) -> None:
        monkeypatch.setattr(residency, "SLEEP_SECONDS", 0.01)
        with pytest.raises(DeadlineExceeded, match="busy"):
            await service.sleep("tiny", hold=True)
        assert service.status("tiny").held  # it will, once it is done
        monkeypatch.setattr(residency, "SLEEP_SECONDS", 10.0)
        for end, error in (
            (lambda: fakes.last.die(), WorkerLost),
            (lambda: asyncio.ensure_future(service.unload("tiny")), Unavailable),
        ):
            while not service.ready():
                await asyncio.sleep(0)
            asked = asyncio.create_task(service.sleep("tiny"))
            await turns()
            end()
            with pytest.raises(error):
                await asked
        assert not any(place.moves._waiting for place in service.supervisors.values())

    with_fakes(tmp_path, test, answer=silent)


def test_of_two_orders_the_later_one_counts(tmp_path: Path) -> None:
    async def test(service: Service, fakes: Fakes) -> None:
        asleep = asyncio.create_task(service.sleep("tiny"))
        await turns()
        awake = asyncio.create_task(service.wake("tiny"))
        await turns()
        fakes.last.say(ModelMoved("tiny", "waking"))
        await turns()
        assert not awake.done() and service.status("tiny").residency == {"cpu:0": "waking"}
        fakes.last.say(ModelMoved("tiny", "resident"))
        assert (await awake).residency == {"cpu:0": "resident"}
        with pytest.raises(Conflict, match="told otherwise"):
            await asleep

    with_fakes(tmp_path, test, answer=silent)


def test_settings_survive_the_worker(tmp_path: Path) -> None:
    async def test(service: Service, fakes: Fakes) -> None:
        service.set_residency("tiny", True, 90.0, 1 << 20, 4 << 20, 3.0)
        sent = SetResidency("tiny", True, 90.0, 1 << 20, 4 << 20, 3.0)
        assert fakes.last.asked(SetResidency) == [sent]
        service.set_residency("tiny", ttl=-1, limit=-1)
        await service.sleep("tiny", "cold", force=True, hold=True)
        fakes.last.die()
        while not service.ready():
            await asyncio.sleep(0)
        (load,) = fakes.last.asked(LoadModel)
        assert isinstance(load, LoadModel)
        options = load.options
        kept = (options.pinned, options.ttl, options.floor_bytes, options.kv_limit_bytes)
        assert kept == (True, None, 1 << 20, None)
        assert (options.evict_cost, options.asleep) == (3.0, True)
        assert fakes.last.asked(SleepModel) == [SleepModel("tiny", "cold", True, True)]
        status = service.status("tiny")
        assert (status.pinned, status.floor_bytes, status.held) == (True, 1 << 20, True)
        await service.wake("tiny")
        fakes.last.die()
        while not service.ready():
            await asyncio.sleep(0)
        (load,) = fakes.last.asked(LoadModel)
        assert isinstance(load, LoadModel) and not load.options.asleep
        assert fakes.last.asked(SleepModel) == []

    with_fakes(tmp_path, test)


def test_what_is_set_while_a_model_loads_is_told_when_it_has(tmp_path: Path) -> None:
    async def test(service: Service, fakes: Fakes) -> None:
        held: list[Command] = []
        fakes.answer = lambda worker, command: held.append(command)
        fakes.last.die()
        while not held:
            await asyncio.sleep(0)
        service.set_residency("tiny", ttl=5.0)
        assert fakes.last.asked(SetResidency) == []  # the worker does not know it yet
        obliging(fakes.last, held[0])
        while not service.ready():
            await asyncio.sleep(0)
        assert fakes.last.asked(SetResidency) == [SetResidency("tiny", False, 5.0, 0, -1, 1.0)]

    with_fakes(tmp_path, test)


def test_a_model_that_slept_is_not_woken_by_a_restart(tmp_path: Path) -> None:
    async def test(service: Service, fakes: Fakes) -> None:
        await service.sleep("tiny")
        fakes.last.die()
        while not service.ready():
            await asyncio.sleep(0)
        (load,) = fakes.last.asked(LoadModel)
        assert isinstance(load, LoadModel) and load.options.asleep
        assert service.status("tiny").residency == {"cpu:0": "cold"}
        assert not service.book.entry("tiny").source.options.asleep

    with_fakes(tmp_path, test)


def test_every_worker_is_told(tmp_path: Path) -> None:
    async def test(service: Service, fakes: Fakes) -> None:
        status = await service.sleep("tiny")
        assert status.residency == {"a": "host", "b": "host"}
        fakes.made[1].answer = silent
        asked = asyncio.create_task(service.wake("tiny"))
        await turns()
        assert not asked.done()
        fakes.made[1].say(ModelMoved("tiny", "resident"))
        assert (await asked).residency == {"a": "resident", "b": "resident"}

    with_fakes(tmp_path, test, "a", "b")


def test_decisions_of_all_come_newest_first(tmp_path: Path) -> None:
    async def test(service: Service, fakes: Fakes) -> None:
        def tell(worker: FakeWorker, command: Command) -> None:
            if isinstance(command, AskDecisions):
                at = 100.0 if worker is fakes.made[0] else 7.0  # clocks of two machines
                made = [
                    Decision(at - 1, "wake", "tiny", "2 requests wait", 40, 0.2),
                    Decision(at - 5, "sleep", "tiny", "idle for 45 s", 40, 0.01),
                ]
                worker.say(DecisionReport(command.id, f"d{at:g}", made[: command.most], at))

        for worker in fakes.made:
            worker.answer = tell
        now = service.clock.now()
        migrated = Decision(now - 3, "migrate", "tiny", "from a to b: pressure 0.9 to 0.4")
        service.residency.note(migrated, service.book.entry("tiny"))
        found = await service.decisions(4)
        assert [(one.device, one.kind) for one in found] == [
            ("d100", "wake"),
            ("d7", "wake"),
            ("fleet", "migrate"),
            ("d100", "sleep"),
        ]
        assert [round(one.age) for one in found] == [1, 1, 3, 5]
        assert found[0].pages == 40 and found[0].seconds == 0.2
        assert len(await service.decisions(1)) == 1
        assert service.status("tiny").migrations == 1
        fakes.made[0].die()
        fakes.made[1].die()
        assert [one.kind for one in await service.decisions(9)] == ["migrate"]

    with_fakes(tmp_path, test, "a", "b")
