"""Limits and shares in the service: what failed, was cancelled or sent twice is counted once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fleet.fakes import Fakes, FakeWorker, obliging
from fleet.services import device, serving, tiny, until, want
from tenfold.client.base import Reply, collect
from tenfold.core.clock import VirtualClock
from tenfold.core.errors import ContextTooLong, Overloaded, RateLimited, TenfoldError, WorkerLost
from tenfold.core.messages import Command, Embed, Embedded, Generate, RequestFailed, SetShares
from tenfold.core.settings import ClientSettings, GroupSettings, Share
from tenfold.core.types import SamplingParams
from tenfold.fleet.service import Service
from tenfold.fleet.types import GenerateRequest, TextPrompt
from tenfold.scheduling.admission import Limits, Load
from tenfold.scheduling.limits import WINDOW, RateLimiter

PROMPT = [5, 6, 7]
GROUP = GroupSettings("lab", tokens_per_minute=1000)
CLIENTS = [
    ClientSettings("ann", group="lab", requests_per_minute=6, max_concurrent=4),
    ClientSettings("bob", group="lab"),
]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenfold.fleet.supervisor.BACKOFF_SECONDS", (0.0,))


def begin(service: Service, tokens: int = 10, client: str = "ann", n: int = 1, **fields: bool):  # type: ignore[no-untyped-def]
    sampling = SamplingParams(n=n, max_tokens=tokens)
    request = GenerateRequest("r", "tiny", client, TextPrompt(PROMPT), sampling, **fields)
    return asyncio.create_task(collect(service.generate(request)))


def left(service: Service) -> tuple[int, int, int]:
    """What ann may still do: requests, tokens, at once."""
    standing = service.standing("ann")
    assert standing and standing.requests and standing.tokens and standing.concurrent
    return (
        standing.requests.remaining,
        standing.tokens.remaining,
        standing.concurrent.remaining,
    )


@asynccontextmanager
async def limited(
    folder: Path, fakes: Fakes, limits: Limits | None = None
) -> AsyncIterator[tuple[Service, VirtualClock]]:
    async with serving([tiny(folder)], limits=limits, make_worker=fakes) as service:
        clock = VirtualClock()
        service.limiter = RateLimiter(clock)
        service.limiter.set_limits(CLIENTS, [GROUP])
        yield service, clock


def case(test: Callable[[Path], Awaitable[None]]) -> Callable[[Path], None]:
    def run(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path))  # type: ignore[arg-type]

    run.__name__ = test.__name__  # type: ignore[attr-defined]
    return run


@case
async def test_each_choice_counts_and_settles(tmp_path: Path) -> None:
    async with limited(tmp_path, fakes := Fakes()) as (service, _):
        task = begin(service, tokens=10, n=2)
        await until(lambda: len(fakes.last.asked(Generate)) == 2)
        assert left(service) == (4, 1000 - 2 * (3 + 10), 2)
        fakes.last.make([1, 2], part=0)
        fakes.last.make([1, 2, 3], "stop", part=1)
        await until(lambda: left(service)[2] == 3)
        assert left(service) == (4, 1000 - (3 + 10) - (3 + 3), 3)
        fakes.last.make([3], "stop", part=0)
        usage = (await task).usage
        assert usage.completion_tokens == 6
        assert left(service) == (4, 1000 - 2 * 3 - 6, 4)


@case
async def test_a_refused_request_counts_nothing(tmp_path: Path) -> None:
    limits = Limits(Load(10, 1000), Load(1, 1000))
    async with limited(tmp_path, fakes := Fakes(), limits) as (service, _):
        with pytest.raises(RateLimited, match="max_concurrent"):
            await begin(service, n=5)
        with pytest.raises(RateLimited, match="tokens_per_minute"):
            await begin(service, tokens=400, n=3)
        with pytest.raises(ContextTooLong):
            await collect(service.generate(want([5] * 600, client="ann")))
        waiting = begin(service)
        await until(lambda: fakes.last.asked(Generate))
        with pytest.raises(Overloaded, match="queue of client 'ann'"):  # the queue, not the limit
            await begin(service)
        assert left(service) == (5, 1000 - 13, 3)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert left(service) == (6, 1000, 4)


@case
async def test_what_was_begun_stays_counted(tmp_path: Path) -> None:
    async with limited(tmp_path, fakes := Fakes()) as (service, clock):
        failed, cancelled = begin(service), begin(service)
        await until(lambda: len(fakes.last.asked(Generate)) == 2)
        fakes.last.make([1, 2], part=0)
        fakes.last.make([1, 2, 3, 4], part=1)
        command = fakes.last.asked(Generate)[0]
        assert isinstance(command, Generate)
        fakes.last.say(RequestFailed(command.request.id, "out_of_memory", "full"))
        with pytest.raises(TenfoldError, match="full"):
            await failed
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert left(service) == (4, 1000 - (3 + 2) - (3 + 4), 4)
        clock.advance(WINDOW + 1)
        assert left(service) == (6, 1000, 4)


@case
async def test_a_retry_after_the_workers_death_is_not_counted_twice(tmp_path: Path) -> None:
    async with limited(tmp_path, fakes := Fakes()) as (service, _):
        task = begin(service, whole=True)
        await until(lambda: fakes.last.asked(Generate))
        fakes.last.make([1, 2, 3])
        await until(lambda: left(service)[1] == 1000 - 13)
        fakes.last.die()
        await until(lambda: len(fakes.made) == 2 and fakes.last.asked(Generate))
        assert service.queue()[0].generated == 0
        fakes.last.make([1, 2])
        assert left(service) == (5, 1000 - 13, 3)
        fakes.last.make([3, 4, 5], "stop")
        assert (await task).usage.completion_tokens == 5
        assert left(service) == (5, 1000 - 3 - 5, 4)


@case
async def test_a_call_lost_for_good_keeps_what_it_was_given(tmp_path: Path) -> None:
    async with limited(tmp_path, fakes := Fakes()) as (service, _):
        task, unborn = begin(service), begin(service)
        await until(lambda: len(fakes.last.asked(Generate)) == 2)
        fakes.last.make([1, 2], part=0)
        await until(lambda: service.dispatch.calls()[0].sent_token)
        for made in (2, 3):
            fakes.last.die()
            await until(lambda made=made: len(fakes.made) == made)
            await until(lambda: unborn.done() or fakes.last.asked(Generate))
        for each in (task, unborn):
            with pytest.raises(WorkerLost):
                await each
        assert left(service) == (5, 1000 - 3 - 2, 4)


@case
async def test_a_groups_limit_counts_all_its_clients(tmp_path: Path) -> None:
    async with limited(tmp_path, fakes := Fakes()) as (service, _):
        task = begin(service, tokens=500, client="bob")
        await until(lambda: fakes.last.asked(Generate))
        with pytest.raises(RateLimited, match="group 'lab'"):
            await begin(service, tokens=500)
        fakes.last.make([1], "stop")
        await task
        other = begin(service, tokens=500)
        await until(lambda: len(fakes.last.asked(Generate)) == 2)
        fakes.last.make([1], "stop")
        await other
        assert left(service)[1] == 1000 - 8


def test_embeddings_count_once_they_are_there(tmp_path: Path) -> None:
    answers: list[str] = ["die", "answer", "fail"]

    def answer(worker: FakeWorker, command: Command) -> None:
        obliging(worker, command)
        if not isinstance(command, Embed):
            return
        match answers.pop(0):
            case "die":
                asyncio.get_running_loop().call_soon(worker.die)
            case "answer":
                worker.say(Embedded(command.id, [[1.0]], 4))
            case _:
                worker.say(RequestFailed(command.id, "out_of_memory", "full"))

    async def run() -> None:
        async with limited(tmp_path, Fakes(answer)) as (service, _):
            service.book.entry("tiny").facts.kind = "embed"  # type: ignore[union-attr]
            await service.embed("tiny", [[5, 6], [7, 8]], "ann")
            assert left(service) == (5, 1000 - 4, 4)
            with pytest.raises(TenfoldError, match="full"):
                await service.embed("tiny", [[5, 6]], "ann")
            assert left(service) == (5, 1000 - 4, 4)
            with pytest.raises(RateLimited, match="may take 998"):
                await service.embed("tiny", [[5] * 499] * 2, "ann")

    asyncio.run(run())


def test_every_worker_hears_the_shares_when_it_comes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        devices = [device("cpu:0"), device("cpu:1")]
        async with serving([tiny(tmp_path)], devices, make_worker=(fakes := Fakes())) as service:
            assert not any(fake.asked(SetShares) for fake in fakes.made)
            weights: list[tuple[str, float]] = []
            set_weight = lambda *weight: weights.append(weight)  # noqa: E731
            monkeypatch.setattr(service.dispatch.routing.policy, "set_weight", set_weight)
            service.set_shares([Share("ann", 2.0)])
            assert [fake.asked(SetShares) for fake in fakes.made] == [
                [SetShares([Share("ann", 2.0)])]
            ] * 2
            fakes.made[0].die()
            service.set_shares([Share("ann", 3.0)])  # while it is away
            await until(lambda: len(fakes.made) == 3 and fakes.last.asked(SetShares))
            assert fakes.last.asked(SetShares) == [SetShares([Share("ann", 3.0)])]
            service.set_shares([])
            assert fakes.last.asked(SetShares)[-1] == SetShares([]) and service.shares == []
            assert weights == [("ann", 2.0), ("ann", 3.0), ("ann", 1.0)], "the router hears, too"

    asyncio.run(run())


def test_streams_that_their_readers_leave_settle(tmp_path: Path) -> None:
    async def run() -> None:
        async with limited(tmp_path, fakes := Fakes()) as (service, _):
            events = service.generate(want(PROMPT, 50, client="ann"))
            first = asyncio.ensure_future(anext(events))
            await until(lambda: fakes.last.asked(Generate))
            fakes.last.make([1, 2])
            await first
            fakes.last.make([3, 4])  # made, and never read
            await events.aclose()  # type: ignore[attr-defined]
            assert left(service) == (5, 1000 - 3 - 4, 4)

    asyncio.run(run())


def test_without_limits_nothing_is_kept(tmp_path: Path) -> None:
    async def run() -> Reply:
        async with serving([tiny(tmp_path)], make_worker=(fakes := Fakes())) as service:
            task = begin(service, n=3, client="free")
            await until(lambda: len(fakes.last.asked(Generate)) == 3)
            for part in range(3):
                fakes.last.make([1], "stop", part=part)
            assert service.standing("free") is None
            return await task  # type: ignore[no-any-return]

    assert asyncio.run(run()).usage.completion_tokens == 3
