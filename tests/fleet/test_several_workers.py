"""Several workers that hold one model: who is asked, who answers when one dies or is drained."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from fleet.fakes import Fakes, FakeWorker, obliging
from fleet.services import begin, device, serving, tiny, until, want
from tenfold.client.base import collect
from tenfold.core.errors import ConfigError, NotFound, OutOfMemory, Unavailable, WorkerLost
from tenfold.core.messages import (
    AskPrefixes,
    Command,
    Embed,
    Generate,
    LoadModel,
    ModelDown,
    PrefixUpdate,
)
from tenfold.core.settings import DeviceSettings, RoutingSettings, Share
from tenfold.fleet.routing import Routing
from tenfold.fleet.service import Service
from tenfold.fleet.workers import LocalWorker
from tenfold.kvcache.hashing import block_hashes
from tenfold.scheduling.routing.d2lpm import D2LPM
from tenfold.scheduling.routing.registry import routing_policies

TWO = [device("cpu:0"), device("cpu:1")]
PREFIX = list(range(3, 70))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenfold.fleet.supervisor.BACKOFF_SECONDS", (0.0,))


def policy_of(service: Service) -> D2LPM:
    assert isinstance(service.dispatch.routing.policy, D2LPM)
    return service.dispatch.routing.policy


def asked(worker: FakeWorker) -> int:
    return len(worker.asked(Generate))


def test_a_prefix_goes_where_it_went_and_others_elsewhere(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)], TWO, make_worker=(fakes := Fakes())) as service:
            first, second = fakes.made
            assert len(first.asked(LoadModel)) == len(second.asked(LoadModel)) == 1
            assert len(first.asked(AskPrefixes)) == len(second.asked(AskPrefixes)) == 1
            tasks = [begin(service, want([*PREFIX, number])) for number in range(3, 6)]
            tasks.append(begin(service, want([9] * 40)))
            await until(lambda: asked(first) + asked(second) == 4)
            assert (asked(first), asked(second)) == (3, 1)
            policy = policy_of(service)
            assert policy.workers.outstanding == {0: 3, 1: 1}
            for worker in (first, second):
                for part in range(asked(worker)):
                    worker.make([5, 6], "length", part)
            await asyncio.gather(*tasks)
            assert policy.workers.outstanding == {0: 0, 1: 0}
            assert policy.credit("local", "cpu:0") == 4000 - 3 * (68 + 2 * 2)
            # Nobody said that the prompts are cached, so they are not.
            hashes = block_hashes(PREFIX, 16)
            assert policy.map("tiny").match(hashes).blocks == 0
            second.on_event(PrefixUpdate("tiny", 1, [(0, hashes)], whole=True))
            begin(service, want([*PREFIX, 9]))
            await until(lambda: asked(second) == 2)

    asyncio.run(run())


def test_what_a_dead_worker_had_goes_to_another_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenfold.fleet.supervisor.BACKOFF_SECONDS", (60.0,))

    async def run() -> None:
        async with serving([tiny(tmp_path)], TWO, make_worker=(fakes := Fakes())) as service:
            first, second = fakes.made
            whole = begin(service, want(PREFIX, whole=True))
            queued = begin(service, want(PREFIX))
            told = service.generate(want(PREFIX))
            telling = asyncio.ensure_future(anext(told))
            await until(lambda: asked(first) == 3)
            first.make([5], part=0)
            first.make([6], part=2)
            await telling
            first.die()
            assert policy_of(service).credit("local", "cpu:0") == 0
            with pytest.raises(WorkerLost):
                await anext(told)
            await until(lambda: asked(second) == 2)
            assert service.ready() and service.status("tiny").devices == ["cpu:1"]
            for part in range(2):
                second.make([7, 8, 9], "length", part)
            assert (await whole).choices[0].token_ids == [7, 8, 9]
            assert (await queued).choices[0].token_ids == [7, 8, 9]
            # Charged for one worker's work: prompt and three tokens, twice.
            assert policy_of(service).credit("local", "cpu:1") == 4000 - 2 * (67 + 2 * 3)
            assert policy_of(service).workers.outstanding == {1: 0}

    asyncio.run(run())


def test_a_worker_that_comes_back_begins_with_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)], TWO, make_worker=(fakes := Fakes())) as service:
            first, second = fakes.made
            first.on_event(PrefixUpdate("tiny", 1, [(0, block_hashes(PREFIX, 16))], whole=True))
            first.die()
            await until(lambda: service.status("tiny").devices == ["cpu:0", "cpu:1"])
            reborn = fakes.made[2]
            assert len(reborn.asked(AskPrefixes)) == 1
            assert policy_of(service).map("tiny").runs == 0
            assert service.worker("cpu:0").restarts == 1
            begin(service, want(PREFIX))
            begin(service, want([8] * 40))
            await until(lambda: asked(reborn) == 1 and asked(second) == 1)

    asyncio.run(run())


def test_a_drained_worker_gets_nothing_new(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)], TWO, make_worker=(fakes := Fakes())) as service:
            first, second = fakes.made
            old = begin(service, want(PREFIX))
            await until(lambda: asked(first) == 1)
            assert service.drain_worker("cpu:0").requests == 1
            new = begin(service, want(PREFIX))
            await until(lambda: asked(second) == 1)
            service.drain_worker("cpu:1")
            assert not service.ready() and service.status("tiny").state == "ready"
            with pytest.raises(Unavailable, match="every worker of tiny is being drained"):
                await begin(service, want(PREFIX))
            for worker in (first, second):
                worker.make([5], "length")
            await asyncio.gather(old, new)
            assert [status.requests for status in service.workers()] == [0, 0]
            service.drain_worker("cpu:0", False)
            begin(service, want([9] * 40))
            await until(lambda: asked(first) == 2)
            with pytest.raises(NotFound, match="no worker 'cpu:9'; there are cpu:0, cpu:1"):
                service.drain_worker("cpu:9")

    asyncio.run(run())


def test_a_model_is_ready_on_the_workers_that_can_hold_it(tmp_path: Path) -> None:
    small = "cpu:1"

    def answer(worker: FakeWorker, command: Command) -> None:
        if isinstance(command, LoadModel) and worker is not fakes.made[0]:
            worker.say(ModelDown(command.name, OutOfMemory.code, "no room"))
        else:
            obliging(worker, command)

    fakes = Fakes(answer)

    async def run() -> None:
        async with serving([tiny(tmp_path)], TWO, make_worker=fakes) as service:
            assert service.ready() and service.status("tiny").devices == ["cpu:0"]
            begin(service, want([9] * 40))
            begin(service, want(PREFIX))
            await until(lambda: asked(fakes.made[0]) == 2)
            assert service.worker(small).models == []

    asyncio.run(run())


def test_texts_to_embed_go_to_the_less_busy_worker(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)], TWO, make_worker=(fakes := Fakes())) as service:
            first, second = fakes.made
            facts = service.book.entry("tiny").facts
            assert facts is not None
            facts.kind = "embed"
            tasks = [asyncio.create_task(service.embed("tiny", ["a b"], "c")) for _ in range(4)]
            await until(lambda: len(first.asked(Embed)) == len(second.asked(Embed)) == 2)
            assert [status.requests for status in service.workers()] == [2, 2]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert [status.requests for status in service.workers()] == [0, 0]

    asyncio.run(run())


def test_clients_weigh_what_their_shares_say() -> None:
    routing = Routing(RoutingSettings(quantum=10.0), [16, 16], _NoClock(), {})
    routing.set_shares([Share("team", 5.0, is_group=True), Share("a", 3.0, "team")])
    assert isinstance(routing.policy, D2LPM)
    assert (routing.policy._share("a"), routing.policy._share("team")) == (30.0, 10.0)
    routing.set_shares([Share("b", 2.0)])
    assert (routing.policy._share("a"), routing.policy._share("b")) == (10.0, 20.0)


def test_workers_must_name_prefixes_alike() -> None:
    with pytest.raises(ConfigError, match="blocks of 16, 32 tokens"):
        Routing(RoutingSettings(), [16, 32], _NoClock(), {})
    with pytest.raises(ConfigError, match="unknown routing policy 'nearest'"):
        Routing(RoutingSettings("nearest"), [16], _NoClock(), {})


class _NoClock:
    def now(self) -> float:
        return 0.0


def test_two_processes_share_a_model_and_one_is_killed(tmp_path: Path) -> None:
    """Every policy gives the same tokens; a prefix is found where it is; nothing is lost that has
    not been seen."""

    def settings(name: str, core: int) -> DeviceSettings:
        return device(name, kernels_mode="exact", cores=(core,))

    cores = sorted(os.sched_getaffinity(0))
    devices = [settings("cpu:0", cores[0]), settings("cpu:1", cores[-1])]
    prompts = [PREFIX + [n] * (n % 3) for n in range(3, 9)] + [[n] * 40 for n in range(3, 6)]

    async def run() -> None:
        async with serving([tiny(tmp_path)], devices, make_worker=LocalWorker) as service:
            for one, supervisor in zip(devices, service.supervisors.values(), strict=True):
                assert supervisor.up is not None
                assert os.sched_getaffinity(supervisor.up.pid) == set(one.cores)
            answers = []
            for name in routing_policies.names():
                route(service, name)
                replies = await asyncio.gather(
                    *(collect(service.generate(want(prompt, 12))) for prompt in prompts)
                )
                answers.append([reply.choices[0].token_ids for reply in replies])
            assert all(answer == answers[0] for answer in answers)
            route(service, "d2lpm")
            for supervisor in service.supervisors.values():
                supervisor.send(AskPrefixes())
            longer = await collect(service.generate(want([*PREFIX, 11, 12], 4)))
            assert longer.usage.cached_tokens == 64
            again = [begin(service, want(prompt, 200, whole=True)) for prompt in prompts]
            await until(lambda: any(call.generated for call in service.dispatch.calls()))
            busiest = max(service.workers(), key=lambda status: status.requests)
            os.kill(busiest.pid, signal.SIGKILL)
            replies = await asyncio.gather(*again)
            assert [reply.choices[0].token_ids[:12] for reply in replies] == answers[0]
            assert {len(reply.choices[0].token_ids) for reply in replies} == {200}
            assert set(policy_of(service).workers.outstanding.values()) == {0}

    asyncio.run(run())


def route(service: Service, policy: str) -> None:
    """Another policy, as if the service had begun with it."""
    sizes = [supervisor.settings.block_tokens for supervisor in service.supervisors.values()]
    service.dispatch.routing = Routing(
        RoutingSettings(policy),
        sizes,
        service.clock,
        {name: supervisor.send for name, supervisor in service.supervisors.items()},
    )
    for name, supervisor in service.supervisors.items():
        assert supervisor.up is not None
        service.dispatch.routing.heard(name, supervisor.up)
