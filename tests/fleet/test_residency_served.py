"""Sleep, wake, keep_alive and decisions of a service over tiny real models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet.services import device, serving, tiny, want
from tenfold.client.base import collect
from tenfold.core.errors import Conflict
from tenfold.core.messages import ModelStats
from tenfold.fleet.service import Service


async def _stats(service: Service, name: str) -> ModelStats:
    (found,) = await service.stats()
    return next(one for one in found.models if one.name == name)


async def _until(service: Service, name: str, true: Callable[[ModelStats], bool]) -> ModelStats:
    for _ in range(500):
        if true(found := await _stats(service, name)):
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(found)


def test_a_model_sleeps_and_a_request_wakes_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path), tiny(tmp_path, "gemma3_text", "other")]) as service:
            first = (await collect(service.generate(want("the cat", 8)))).choices[0].token_ids
            before = await _stats(service, "tiny")
            assert before.weight_pages == before.image_pages > 0
            status = await service.sleep("tiny", "cold")
            assert status.residency == {"cpu:0": "cold"} and status.state == "ready"
            asleep = await _stats(service, "tiny")
            assert (asleep.weight_pages, asleep.kv_pages, asleep.sleeps) == (0, 0, 1)
            again = (await collect(service.generate(want("the cat", 8)))).choices[0].token_ids
            assert again == first
            assert service.status("tiny").residency == {"cpu:0": "resident"}
            found = [(one.kind, one.model) for one in await service.decisions(100)]
            assert found.index(("awake", "tiny")) < found.index(("sleep", "tiny"))
            (device,) = await service.stats()
            assert device.decided["sleep"] == 1 and device.decided["awake"] == 1
            assert device.virtual_bytes >= device.mapped_pages * device.page_bytes

    asyncio.run(run())


def test_one_that_is_held_keeps_its_requests_until_it_is_woken(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)]) as service:
            await service.sleep("tiny", hold=True)
            call = asyncio.create_task(collect(service.generate(want("the cat", 4))))
            held = await _until(service, "tiny", lambda one: one.waiting == 1)
            assert held.held and held.residency == "host" and service.status("tiny").held
            await service.wake("tiny")
            assert len((await call).choices[0].token_ids) == 4
            assert not (await _stats(service, "tiny")).held

    asyncio.run(run())


@pytest.mark.parametrize("keep_alive", [0.0, 0.05])
def test_keep_alive_of_a_request_is_when_the_model_sleeps(
    tmp_path: Path, keep_alive: float
) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)]) as service:
            await collect(service.generate(want("x", 2)))
            assert (await _stats(service, "tiny")).sleeps_in is None
            await collect(service.generate(want("x", 2, keep_alive=500.0)))
            left = (await _stats(service, "tiny")).sleeps_in
            assert left is not None and 100 < left <= 500
            await collect(service.generate(want("x", 2, keep_alive=-1)))
            assert (await _stats(service, "tiny")).sleeps_in is None
            await collect(service.generate(want("x", 2, keep_alive=keep_alive)))
            await _until(service, "tiny", lambda one: one.residency == "host")
            assert service.status("tiny").residency == {"cpu:0": "host"}

    asyncio.run(run())


def test_keep_alive_of_embeddings(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path, "bert", "words")]) as service:
            first = await service.embed("words", ["a b"], "c", 0.0)
            await _until(service, "words", lambda one: one.residency == "host")
            assert (await service.embed("words", ["a b"], "c")).vectors == first.vectors

    asyncio.run(run())


def test_what_is_set_is_in_force(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)], [device(memory_bytes=8 << 20)]) as service:
            assert service.pin("tiny", True).pinned and (await _stats(service, "tiny")).pinned
            with pytest.raises(Conflict, match="pinned"):
                await service.sleep("tiny")
            page = device().page_bytes
            service.set_residency("tiny", floor=4 * page, limit=6 * page)
            held = await _until(service, "tiny", lambda one: one.limit_pages is not None)
            assert held.floor_pages == 4
            await _until(service, "tiny", lambda one: one.limit_pages == one.weight_pages + 6)
            service.set_residency("tiny", pinned=False, ttl=0.0)
            await _until(service, "tiny", lambda one: one.residency == "host")

    asyncio.run(run())
