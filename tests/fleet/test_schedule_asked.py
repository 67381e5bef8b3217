"""Asking workers why: answers find their question, and requests have the ids that clients know."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.fakes import Fakes, FakeWorker, obliging
from fleet.services import device, serving, tiny, want
from fleet.test_faults import begin, until
from tenfold.core.messages import (
    AskSchedule,
    AskStats,
    Command,
    DeviceStats,
    Generate,
    ModelSchedule,
    QueuePlace,
    ScheduleReport,
)

PLACE = QueuePlace("r1", "ann", 8, 4, 1.0, "first come")


def explaining(worker: FakeWorker, command: Command) -> None:
    if isinstance(command, AskSchedule):
        models = [
            ModelSchedule("tiny", "lpm", [PLACE, replace(PLACE, request_id="r9")], [PLACE], 1)
        ]
        worker.say(ScheduleReport(command.id, "cpu:0", models))
    else:
        obliging(worker, command)


def test_requests_have_the_ids_of_the_queue(tmp_path: Path) -> None:
    async def run() -> None:
        fakes = Fakes(explaining)
        async with serving([tiny(tmp_path)], make_worker=fakes) as service:
            request = want([1, 2, 3])
            task = begin(service, request)
            await until(lambda: fakes.last.asked(Generate))
            for alive in (True, False):
                (report,) = await service.schedule(5)
                (model,) = report.models
                assert [place.request_id for place in model.chosen] == [request.id, "r9"]
                assert model.next[0] == replace(PLACE, request_id=request.id)
                if alive:
                    fakes.last.make([1], "stop")
                    await task
            assert fakes.last.asked(AskSchedule)[0] == AskSchedule("1", 5)
            assert PLACE.request_id == "r1"  # an engine in this process keeps its own

    asyncio.run(run())


def test_a_worker_that_does_not_answer_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenfold.fleet.supervisor.STATS_SECONDS", 0.01)
    devices = [device("cpu:0"), device("cpu:1")]

    async def run() -> None:
        async with serving([], devices, make_worker=(fakes := Fakes(explaining))) as service:
            fakes.made[1].answer = lambda worker, command: None
            assert [report.device for report in await service.schedule(1)] == ["cpu:0"]
            assert [stats.device for stats in await service.stats()] == ["cpu:0"]

    asyncio.run(run())


def test_questions_at_the_same_time_are_not_mixed_up(tmp_path: Path) -> None:
    asked: list[Command] = []

    def disorderly(worker: FakeWorker, command: Command) -> None:
        asked.append(command)
        if len(asked) == 3:
            for one in (*asked[1:], asked[0]):
                if isinstance(one, AskSchedule):
                    worker.say(ScheduleReport(one.id, str(one.most)))
                elif isinstance(one, AskStats):
                    worker.say(DeviceStats(one.id, "cpu:0", 1, 1, 0, 0, 0))

    async def run() -> None:
        async with serving([], make_worker=Fakes(disorderly)) as service:
            found = await asyncio.gather(service.schedule(3), service.stats(), service.schedule(7))
            (three,), (stats,), (seven,) = found
            assert (three.device, stats.device, seven.device) == ("3", "cpu:0", "7")

    asyncio.run(run())
