"""The service over a tiny real model: text in, text out, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet.services import device, serving, tiny, want
from tenfold.client.base import collect
from tenfold.core.errors import (
    Conflict,
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    ModelFileError,
    ModelNotFound,
    Overloaded,
    Unavailable,
)
from tenfold.core.types import SamplingParams
from tenfold.fleet.served import ModelSource
from tenfold.fleet.service import Service
from tenfold.fleet.types import ChatPrompt, Delta, GenerateRequest, TextPrompt
from tenfold.scheduling.admission import Limits, Load


async def _settled(service: Service) -> None:
    """Wait until the engine has nothing left, then look for leaks."""
    for _ in range(200):
        stats = (await service.stats())[0]
        if all(m.running == m.waiting == 0 for m in stats.models):
            break
        await asyncio.sleep(0.01)
    assert stats.integrity == []
    assert all(m.kv_blocks_used == 0 for m in stats.models)
    assert service.queue() == []


def test_streamed_text_is_the_decoding_of_its_tokens(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)]) as service:
            reply = await collect(service.generate(want("the cat sat on", 20)))
            choice = reply.choices[0]
            assert len(choice.token_ids) == 20 and choice.finish_reason == "length"
            tokenizer = service.book.entry("tiny").words.tokenizer
            prompt = tokenizer.encode("the cat sat on")
            whole = tokenizer.decode([*prompt, *choice.token_ids])
            assert whole == tokenizer.decode(prompt) + choice.text
            assert reply.usage.prompt_tokens == len(prompt)
            again = await collect(service.generate(want("the cat sat on", 20)))
            assert again.choices[0].token_ids == choice.token_ids
            await _settled(service)

    asyncio.run(run())


def test_choices_are_apart_and_seeds_repeat(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)]) as service:
            sampling = SamplingParams(n=3, max_tokens=12, seed=7, ignore_eos=True)
            request = GenerateRequest("r", "tiny", "c", TextPrompt("a b c"), sampling)
            one = await collect(service.generate(request))
            two = await collect(service.generate(request))
            texts = [c.token_ids for c in one.choices]
            assert len(texts) == 3 and len({tuple(t) for t in texts}) == 3
            assert texts == [c.token_ids for c in two.choices]
            assert one.usage.completion_tokens == 36
            await _settled(service)

    asyncio.run(run())


def test_a_stop_string_ends_a_choice_and_aborts_the_engine(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)]) as service:
            whole = (await collect(service.generate(want("the cat", 40)))).text
            stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
            request = want("the cat", 40)
            request.sampling.stop = (stop,)
            choice = (await collect(service.generate(request))).choices[0]
            assert choice.text == whole[: whole.index(stop)]
            assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
            await _settled(service)

    asyncio.run(run())


def test_a_stop_id_ends_without_its_text(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)]) as service:
            first = (await collect(service.generate(want("the cat", 10)))).choices[0]
            request = want("the cat", 10)
            request.sampling.stop_token_ids = (first.token_ids[4],)
            choice = (await collect(service.generate(request))).choices[0]
            cut = first.token_ids.index(first.token_ids[4])
            assert choice.token_ids == first.token_ids[: cut + 1]
            assert (choice.finish_reason, choice.stop_reason) == ("stop", first.token_ids[4])
            assert first.text.startswith(choice.text)

    asyncio.run(run())


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_closed_stream_frees_its_blocks(tmp_path: Path, after: int) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)], [device(prefix_cache=False)]) as service:
            events = service.generate(want("the cat", 400))
            for _ in range(after):
                await anext(events)
            await events.aclose()  # type: ignore[attr-defined]
            await _settled(service)

    asyncio.run(run())


def test_a_cancelled_reader_frees_its_blocks(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)]) as service:
            task = asyncio.create_task(collect(service.generate(want("the cat", 400))))
            while not service.queue():
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await _settled(service)

    asyncio.run(run())


def test_what_is_wrong_is_said_before_anything_runs(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)]) as service:
            for request, error, words in (
                (want("x", model="other"), ModelNotFound, "tiny"),
                (want(""), InvalidRequest, "empty"),
                (want([1, 5000]), InvalidRequest, "5000"),
                (want([5] * 600), ContextTooLong, "600"),
                (want("word " * 100_000), ContextTooLong, "at least"),
            ):
                with pytest.raises(error, match=words):
                    await collect(service.generate(request))
            assert service.queue() == []
            with pytest.raises(InvalidRequest):
                await service.embed("tiny", ["a"], "c")

    asyncio.run(run())


def test_a_full_queue_refuses_with_a_time_to_come_back(tmp_path: Path) -> None:
    async def run() -> None:
        limits = Limits(Load(3, 1000), Load(2, 1000))
        async with serving([tiny(tmp_path)], [device(max_running=1)], limits=limits) as service:
            tasks = []

            async def until(condition: Callable[[], bool]) -> None:
                while not condition():
                    await asyncio.sleep(0.001)

            def submit(name: str) -> None:
                request = want(name, 200, client="greedy")
                tasks.append(asyncio.create_task(collect(service.generate(request))))

            submit("first")
            await until(lambda: any(i.state == "running" for i in service.queue()))
            submit("second")
            submit("third")
            await until(lambda: service.admission.waiting.requests == 2)
            with pytest.raises(Overloaded, match="greedy") as refusal:
                await anext(service.generate(want("fourth", 60, client="greedy")))
            assert refusal.value.retry_after is not None and refusal.value.retry_after >= 1
            await asyncio.gather(*tasks)
            assert service.admission.waiting == Load() and not service.admission.clients
            await _settled(service)

    asyncio.run(run())


def test_time_runs_out_with_a_504(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)]) as service:
            with pytest.raises(DeadlineExceeded):
                await collect(service.generate(want("the cat", 480, timeout=0.02)))
            await _settled(service)

    asyncio.run(run())


def test_chat_needs_a_template_and_shares_its_prefix(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)]) as service:
            messages = [{"role": "user", "content": "hello there, how are you today? " * 3}]
            sampling = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
            request = GenerateRequest("r", "tiny", "c", ChatPrompt(messages), sampling)
            first = await collect(service.generate(request))
            second = await collect(service.generate(request))
            assert first.usage.cached_tokens == 0 and second.usage.cached_tokens >= 16
            assert first.choices[0].token_ids == second.choices[0].token_ids
            salted = GenerateRequest(
                "r", "tiny", "c", ChatPrompt(messages), sampling, cache_salt="other"
            )
            assert (await collect(service.generate(salted))).usage.cached_tokens == 0

    asyncio.run(run())


def test_two_models_are_served_side_by_side(tmp_path: Path) -> None:
    async def run() -> None:
        models = [tiny(tmp_path, "llama", "a"), tiny(tmp_path, "gemma3_text", "b")]
        async with serving(models) as service:
            alone = [
                (await collect(service.generate(want("the cat", 12, m)))).choices[0].token_ids
                for m in "ab"
            ]
            together = await asyncio.gather(
                *(collect(service.generate(want("the cat", 12, m))) for m in "abab")
            )
            assert [r.choices[0].token_ids for r in together] == alone * 2
            await service.unload("a")
            with pytest.raises(ModelNotFound):
                await collect(service.generate(want("x", model="a")))
            assert [s.name for s in service.models()] == ["b"]
            await _settled(service)

    asyncio.run(run())


def test_a_pinned_model_stays_unless_forced(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path, pinned=True)]) as service:
            with pytest.raises(Conflict, match="pinned"):
                await service.unload("tiny")
            assert not service.pin("tiny", False).pinned
            await service.unload("tiny")
            assert service.models() == []
            stats = (await service.stats())[0]
            assert stats.mapped_pages == 0

    asyncio.run(run())


def test_a_broken_model_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        broken = tiny(tmp_path, name="broken")
        weights = Path(broken.path) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        async with serving([tiny(tmp_path)]) as service:
            service.book._find_source = lambda name, source: ModelSource(name, broken.path)
            before = (await service.stats())[0].mapped_pages
            with pytest.raises(ModelFileError):
                await service.load("broken")
            assert (await service.stats())[0].mapped_pages == before
            assert service.status("broken").state == "failed"
            assert (await collect(service.generate(want("x")))).choices

    asyncio.run(run())


def test_draining_finishes_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)]) as service:
            events = service.generate(want("the cat", 100))
            first = await anext(events)
            assert isinstance(first, Delta)
            drained = asyncio.create_task(service.drain())
            await asyncio.sleep(0)
            assert not service.accepting() and not service.ready()
            with pytest.raises(Unavailable, match="draining"):
                await collect(service.generate(want("x")))
            tokens = len(first.token_ids)
            async for event in events:
                tokens += len(event.token_ids) if isinstance(event, Delta) else 0
            assert tokens == 100
            await asyncio.wait_for(drained, 5)

    asyncio.run(run())


def test_many_clients_that_vanish_leave_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving([tiny(tmp_path)], [device(memory_bytes=8 << 20)]) as service:

            async def vanish(number: int) -> None:
                events = service.generate(want(f"client {number % 7}", 60, client=f"c{number}"))
                for _ in range(number % 11):
                    await anext(events, None)
                await events.aclose()  # type: ignore[attr-defined]

            await asyncio.gather(*(vanish(i) for i in range(200)))
            await _settled(service)
            assert service.admission.waiting == Load()

    asyncio.run(run())
