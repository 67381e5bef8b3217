"""What can go wrong between a service and its workers, on workers that fail on command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fleet.fakes import Fakes, FakeWorker, facts, obliging
from fleet.services import begin, serving, tiny, until, want
from tenfold.core.clock import VirtualClock
from tenfold.core.errors import Conflict, TenfoldError, Unavailable, WorkerLost
from tenfold.core.messages import Command, Embed, Generate, LoadModel, ModelDown, ModelUp
from tenfold.core.types import SamplingParams
from tenfold.fleet.served import ModelSource
from tenfold.fleet.types import Delta, GenerateEvent, GenerateRequest, TextPrompt


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenfold.fleet.supervisor.BACKOFF_SECONDS", (0.0,))


def silent_for(name: str) -> Callable[[FakeWorker, Command], None]:
    """Obliging, but the model ``name`` loads for ever."""

    def answer(worker: FakeWorker, command: Command) -> None:
        if not (isinstance(command, LoadModel) and command.name == name):
            obliging(worker, command)

    return answer


def test_one_name_is_loaded_once_at_a_time(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([], make_worker=(fakes := Fakes())) as service:
            source = tiny(tmp_path)
            service.book._find_source = lambda name, _: source
            results = await asyncio.gather(
                *(service.load("tiny") for _ in range(3)), return_exceptions=True
            )
            assert [type(r) for r in results[1:]] == [Conflict, Conflict]
            assert service.status("tiny").state == "ready" and service.ready()
            assert len(fakes.last.asked(LoadModel)) == 1

    asyncio.run(run())


@pytest.mark.parametrize("error", [ValueError("odd"), OSError("gone"), KeyError("key")])
def test_a_load_that_ends_in_any_error_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(path: str) -> None:
        raise error

    async def run() -> None:
        async with serving([tiny(tmp_path)], make_worker=Fakes()) as service:
            service.book._find_source = lambda name, _: tiny(tmp_path, name=name)
            monkeypatch.setattr("tenfold.fleet.served.load_model_text", fail)
            with pytest.raises(type(error)):
                await service.load("other")
            status = service.status("other")
            assert status.state == "failed" and str(error) in status.error
            assert service.ready() and "other" not in service.supervisors["cpu:0"].wanted

    asyncio.run(run())


def test_a_load_that_is_cancelled_or_unloaded_is_taken_back(tmp_path: Path) -> None:
    async def run() -> None:
        fakes = Fakes(silent_for("slow"))
        async with serving([tiny(tmp_path)], make_worker=fakes) as service:
            service.book._find_source = lambda name, _: tiny(tmp_path, name=name)
            supervisor = service.supervisors["cpu:0"]

            async def loading() -> asyncio.Task[object]:
                asked = len(fakes.last.asked(LoadModel))
                task: asyncio.Task[object] = asyncio.create_task(service.load("slow"))
                await until(lambda: len(fakes.last.asked(LoadModel)) > asked)
                return task

            task = await loading()
            assert service.ready()  # one model more must not make the server unready
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert [s.name for s in service.models()] == ["tiny"]
            task = await loading()
            await service.unload("slow")
            fakes.last.on_event(ModelUp(facts("slow"), 0.0))  # was on its way
            with pytest.raises(Unavailable, match="unloaded"):
                await task
            assert "slow" not in supervisor.loaded and "slow" not in supervisor.wanted
            fakes.answer = fakes.last.answer = obliging
            assert (await service.load("slow")).state == "ready"

    asyncio.run(run())


def test_a_request_that_kills_its_worker_is_sent_twice_and_no_more(tmp_path: Path) -> None:
    def deadly(worker: FakeWorker, command: Command) -> None:
        obliging(worker, command)
        if isinstance(command, Generate | Embed):
            asyncio.get_running_loop().call_soon(worker.die)

    async def run() -> None:
        async with serving([tiny(tmp_path)], make_worker=(fakes := Fakes(deadly))) as service:
            with pytest.raises(WorkerLost, match="twice"):
                await begin(service, want("poison"))
            await until(service.ready)
            entry = service.book.entry("tiny")
            assert entry.facts is not None
            entry.facts.kind = "embed"
            with pytest.raises(WorkerLost, match="twice"):
                await service.embed("tiny", ["poison"], "c")
            await until(service.ready)
            assert sum(len(w.asked(Generate)) for w in fakes.made) == 2
            assert sum(len(w.asked(Embed)) for w in fakes.made) == 2
            assert service.queue() == [] and not service.admission.clients

    asyncio.run(run())


def test_a_finished_answer_outlives_its_worker(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)], make_worker=(fakes := Fakes())) as service:
            task = begin(service, want("the cat"))
            await until(lambda: fakes.last.asked(Generate))
            fakes.last.make([5, 6])
            fakes.last.make([7], "length")
            fakes.last.die()
            assert (await task).choices[0].token_ids == [5, 6, 7]

    asyncio.run(run())


@pytest.mark.parametrize("whole", [True, False])
def test_only_what_the_client_has_seen_cannot_start_anew(tmp_path: Path, whole: bool) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)], make_worker=(fakes := Fakes())) as service:
            sampling = SamplingParams(n=2, max_tokens=3)
            request = GenerateRequest("r", "tiny", "c", TextPrompt("a b"), sampling, whole=whole)
            task = begin(service, request)
            await until(lambda: len(fakes.last.asked(Generate)) == 2)
            first = fakes.last
            first.make([5, 6, 7], "length", part=0)
            first.make([8], part=1)
            await until(lambda: len(service.dispatch._calls) == 1)  # both were read
            await until(lambda: service.dispatch.calls()[0].events.empty())
            first.die()
            if not whole:
                with pytest.raises(WorkerLost):
                    await task
                return
            await until(lambda: fakes.last is not first and fakes.last.asked(Generate))
            assert len(fakes.last.asked(Generate)) == 1  # the first choice was complete
            fakes.last.make([9, 10, 11], "length")
            reply = await task
            assert [c.token_ids for c in reply.choices] == [[5, 6, 7], [9, 10, 11]]
            assert reply.usage.completion_tokens == 6

    asyncio.run(run())


def test_a_reload_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    refusals = 2

    def reluctant(worker: FakeWorker, command: Command) -> None:
        nonlocal refusals
        later = worker is not fakes.made[0] and isinstance(command, LoadModel)
        if later and refusals:
            refusals -= 1
            worker.say(ModelDown("tiny", "out_of_memory", "no room for it"))
        else:
            obliging(worker, command)

    fakes = Fakes(reluctant)

    async def run() -> None:
        async with serving([tiny(tmp_path)], make_worker=fakes) as service:
            supervisor = service.supervisors["cpu:0"]
            fakes.last.die()
            await until(lambda: supervisor.failed)
            status = service.status("tiny")
            assert (status.state, status.error) == ("failed", "no room for it")
            with pytest.raises(Unavailable, match="no room for it"):
                await begin(service, want("x"))
            await until(service.ready)
            assert service.status("tiny").state == "ready" and refusals == 0

    asyncio.run(run())


def test_a_worker_that_cannot_start_is_started_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)], make_worker=(fakes := Fakes())) as service:
            fakes.broken = 3
            fakes.last.die()
            await until(service.ready)
            assert len(fakes.made) == 2
            fakes.broken = 10**9  # and stopping in the middle of it is quiet
            fakes.last.die()
            await asyncio.sleep(0)

    asyncio.run(run())


def test_a_model_that_kills_its_worker_while_loading_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenfold.fleet.supervisor.STEADY_SECONDS", -1.0)  # it always lived long

    def deadly(worker: FakeWorker, command: Command) -> None:
        if isinstance(command, LoadModel) and command.name == "heavy":
            asyncio.get_running_loop().call_soon(worker.die)
        else:
            obliging(worker, command)

    async def run() -> None:
        async with serving([tiny(tmp_path)], make_worker=(fakes := Fakes(deadly))) as service:
            service.book._find_source = lambda name, _: ModelSource(name, tiny(tmp_path).path)
            with pytest.raises(Unavailable, match="3 times"):
                await service.load("heavy")
            assert service.status("heavy").state == "failed"
            await until(service.ready)
            assert sum(len(w.asked(LoadModel)) for w in fakes.made) == 4 + 3

    asyncio.run(run())


def test_closing_ends_what_waits(tmp_path: Path) -> None:
    async def run() -> None:
        fakes = Fakes()
        async with serving([tiny(tmp_path)], make_worker=fakes) as service:
            entry = service.book.entry("tiny")
            assert entry.facts is not None
            entry.facts.kind = "embed"
            embedding = asyncio.create_task(service.embed("tiny", ["x"], "c"))
            await until(lambda: fakes.last.asked(Embed))
            entry.facts.kind = "generate"
            fakes.answer = silent_for("tiny")
            entry.places[0].loaded.clear()
            waiting = begin(service, want("x"))
            await until(service.queue)
            await asyncio.sleep(0)
        for task in (embedding, waiting):
            with pytest.raises(Unavailable, match="stopping"):
                async with asyncio.timeout(5):
                    await task

    asyncio.run(run())


def test_a_load_that_closing_ends_is_not_tried_again(tmp_path: Path) -> None:
    """A worker that came back is told to stop while it loads: that is no failure of the model."""

    async def run() -> None:
        fakes = Fakes()
        async with serving([tiny(tmp_path)], make_worker=fakes) as service:
            supervisor = service.supervisors["cpu:0"]
            fakes.answer = silent_for("tiny")
            fakes.last.die()
            await until(lambda: len(fakes.made) == 2 and fakes.last.asked(LoadModel))
        fakes.last.on_event(ModelDown("tiny", Unavailable.code, "it was unloaded while it loaded"))
        assert not supervisor.failed

    asyncio.run(run())


def test_draining_counts_a_call_that_is_still_tokenised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenfold.fleet.served.LONG_TEXT", 1)  # every text goes to a thread

    async def run() -> None:
        async with serving([tiny(tmp_path)], make_worker=(fakes := Fakes())) as service:
            task = begin(service, want("the cat"))
            await until(lambda: service._door._inside)
            drained = asyncio.create_task(service.drain())
            await asyncio.sleep(0)
            assert not drained.done()
            with pytest.raises(TenfoldError, match="draining"):
                await task
            await asyncio.wait_for(drained, 5)
            assert not fakes.last.asked(Generate)

    asyncio.run(run())


def test_nothing_up_is_not_ready(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)], make_worker=Fakes()) as service:
            assert service.ready()
            service.book.entry("tiny").state = "failed"
            assert not service.ready()
            await service.unload("tiny")
            assert not service.ready()

    asyncio.run(run())


def test_stop_strings_wait_for_min_tokens(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)], make_worker=(fakes := Fakes())) as service:
            ids = service.tokenize("tiny", "the the the the", special=False)
            text = service.detokenize("tiny", ids)
            for least, outputs in ((len(ids), [[i] for i in ids]), (len(ids), [ids]), (0, [ids])):
                sampling = SamplingParams(stop=("the",), min_tokens=least)
                task = begin(service, GenerateRequest("r", "tiny", "c", TextPrompt("a"), sampling))
                sent = len(fakes.last.asked(Generate))
                await until(lambda sent=sent: len(fakes.last.asked(Generate)) > sent)
                for number, tokens in enumerate(outputs, 1):
                    fakes.last.make(tokens, "length" if number == len(outputs) else None)
                choice = (await task).choices[0]
                if least:
                    assert choice.text.strip().startswith("the the the"), (choice.text, text)
                else:
                    assert choice.text.strip() == "" and choice.stop_reason == "the"

    asyncio.run(run())


def test_a_whole_answer_keeps_the_times_of_its_tokens(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)], make_worker=(fakes := Fakes())) as service:
            clock = service.clock = VirtualClock()
            events = service.generate(want("the cat", whole=True))
            task = asyncio.create_task(_read(events))
            await until(lambda: fakes.last.asked(Generate))
            for at, finish in ((1.0, None), (2.0, None), (5.0, "length")):
                clock.advance(at - clock.now())
                fakes.last.make([5], finish)
                await until(service.dispatch.calls()[0].events.empty)
                await asyncio.sleep(0)
            assert [e.at for e in await task if isinstance(e, Delta)] == [1.0, 2.0, 5.0]

    asyncio.run(run())


async def _read(events: AsyncIterator[GenerateEvent]) -> list[GenerateEvent]:
    return [event async for event in events]
