"""What steps need for a moment comes from the device's pool, counted, bounded and given back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.harness import Sim
from engine.test_exact import PAGE, Real, _prompts, with_scratch
from models.tiny import make_tiny
from tenfold.core.clock import VirtualClock
from tenfold.core.errors import OutOfMemory
from tenfold.core.messages import LoadModel, ModelDown, UnloadModel
from tenfold.core.settings import DeviceSettings
from tenfold.engine.device import Device
from tenfold.engine.engine import Engine
from tenfold.engine.runner import TorchRunner
from tenfold.engine.scratch import OWNER, PoolScratch
from tenfold.engine.sequence import StepPlan
from tenfold.engine.speculator import Speculator
from tenfold.kernels.native import NativeKernels
from tenfold.memory.anon import AnonBackend
from tenfold.memory.pool import PagePool

pytest.importorskip("tenfold._native", reason="the extension is not built")


class Counting:
    """Scratch memory in one piece that notes how far it is used."""

    def __init__(self) -> None:
        self.floats = 0
        self._whole = torch.empty(8 << 20)

    def grow(self, floats: int) -> Tensor:
        self.floats = max(self.floats, floats)
        return self._whole[:floats]


class Measured:
    """An executor that compares what each step takes with what was foretold."""

    def __init__(self, inner: object, runner: TorchRunner) -> None:
        self.inner, self.runner = inner, runner
        self.time = runner.time
        self.shares: list[float] = []

    def execute(self, plan: StepPlan) -> object:
        kernels = self.runner.model.kernels
        assert isinstance(kernels, NativeKernels)
        memory = Counting()
        kernels.use_scratch(memory)
        if self.runner.tapes is not None:
            self.runner.tapes._recorded.clear()  # type: ignore[attr-defined]
        result = self.inner.execute(plan)  # type: ignore[attr-defined]
        tokens = sum(piece.count for piece in plan.slices)
        rows = sum(1 + len(piece.draft) for piece in plan.slices if piece.samples)
        self.shares.append(4 * memory.floats / self.runner.model.scratch_bytes(tokens, rows))
        return result

    def forget(self, request_id: str) -> None:
        self.inner.forget(request_id)  # type: ignore[attr-defined]


def runner_of(real: Real) -> TorchRunner:
    runner = real.recorder.inner.inner  # type: ignore[attr-defined]
    assert isinstance(runner, TorchRunner)
    return runner


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3", "qwen2_moe", "mixtral"])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_step_never_takes_more_than_foretold(tmp_path: Path, family: str, recorded: bool) -> None:
    real = Real(make_tiny(family, tmp_path), speculation="ngram")
    runner = runner_of(real)
    if not recorded:
        runner.tapes = None
    measured = real.recorder.inner = Measured(real.recorder.inner, runner)  # type: ignore[assignment]
    for name, prompt in _prompts().items():
        real.ask(name, prompt, 20)
    real.run()
    assert len(measured.shares) > 10  # type: ignore[attr-defined]
    assert 0.4 < max(measured.shares) <= 1.0  # type: ignore[attr-defined]
    real.close()


def test_it_is_counted_grows_and_goes_with_the_last_model(tmp_path: Path) -> None:
    path = make_tiny("llama", tmp_path)
    real = Real(path, prefix_cache=False)
    device = real.engine.device
    assert isinstance(device, Device)
    first = device.stats("").scratch_pages
    assert 0 < first == device.pool.stats().owners[OWNER].mapped
    address = device.scratch.grow(1).data_ptr()
    for length in (20, 200):
        real.ask(f"a{length}", list(range(3, 3 + length)), 3)
        real.run()
    grown = device.stats("").scratch_pages
    assert first < grown <= device.scratch.limit("m")
    assert device.scratch.grow(1).data_ptr() == address
    stats = real.instance.stats()
    assert stats.weight_pages + stats.kv_pages + grown == device.stats("").mapped_pages
    said = dict(real.tokens)

    real.engine.handle(LoadModel("other", str(path)))
    while real.engine.loading:
        real.engine.step()
    real.engine.handle(UnloadModel("m"))
    assert device.scratch.pages == grown  # the other one's recorded steps may lie there
    real.engine.handle(UnloadModel("other"))
    assert device.pool.stats().mapped == 0 == device.scratch.pages and device.check() == []

    real.engine.handle(LoadModel("m", str(path)))
    while real.engine.loading:
        real.engine.step()
    real.tokens.clear()
    for length in (20, 200):
        real.ask(f"a{length}", list(range(3, 3 + length)), 3)
        real.run()
    assert real.tokens == said
    real.close()


def test_prompts_are_cut_to_what_scratch_there_is(tmp_path: Path) -> None:
    path = make_tiny("llama", tmp_path)
    roomy = Real(path, prefix_cache=False)
    tight = Real(path, memory_bytes=with_scratch(roomy, 60))
    device = tight.engine.device
    assert isinstance(device, Device)
    for real in (roomy, tight):
        real.ask("a", [i % 300 + 3 for i in range(400)], 4)
        real.run()
    longest = {id(real): max(c for plan in real.recorder.plans for _, _, c in plan)
               for real in (roomy, tight)}  # fmt: skip
    assert 16 <= longest[id(tight)] < longest[id(roomy)]
    assert tight.tokens == roomy.tokens and device.scratch.pages <= device.scratch.limit("m")


def test_cached_prefixes_make_way_for_it(tmp_path: Path) -> None:
    path = make_tiny("llama", tmp_path)
    roomy = Real(path, prefix_cache=False)
    real = Real(path, memory_bytes=with_scratch(roomy, 40), max_step_tokens=16)
    cache, device = real.instance.batcher.cache, real.engine.device
    assert isinstance(device, Device)
    for i in range(12):  # small steps, until caches have every page
        real.ask(f"a{i}", [(7 * i + j) % 300 + 3 for j in range(60)], 2)
        real.run()
    before = device.scratch.pages
    pool = device.pool.stats()
    assert cache.stats().cached
    if space := pool.capacity - pool.mapped:
        assert device.pool.create("filler", "f", space * PAGE).map_all()
    assert real.instance.batcher._lent(32, 16) and device.scratch.pages > before
    assert not real.instance.batcher._lent(10**6, 1)
    real.close()


def test_it_says_what_is_short() -> None:
    pool = PagePool(AnonBackend(4096), 8)
    scratch = PoolScratch(pool)
    with pytest.raises(OutOfMemory, match="range"):
        scratch.grow(1)
    scratch.admit("m", 3)
    piece = scratch.grow(1025)
    assert len(piece) == 2048 and scratch.pages == 2
    assert scratch.grow(3072).data_ptr() == piece.data_ptr()
    with pytest.raises(OutOfMemory, match="limit of 3"):
        scratch.grow(3073)
    scratch.admit("n", 9)
    assert not scratch.reserve(9 * 4096) and scratch.reserve(8 * 4096)
    assert pool.check() == []
    assert not scratch.leave("n") and scratch.pages == 3  # "m" may not take more
    assert not scratch.reserve(4 * 4096) and pool.check() == []
    assert not scratch.leave("unknown") and scratch.leave("m")
    assert pool.stats().mapped == 0 and pool.check() == []
    pool.close()


def test_a_model_without_pages_for_its_smallest_step_does_not_load(tmp_path: Path) -> None:
    path = make_tiny("llama", tmp_path)
    weights = Real(path).weight_pages
    heard: list[object] = []
    device = Device(DeviceSettings(memory_bytes=weights * PAGE, page_bytes=PAGE, threads=1))
    engine = Engine(device, VirtualClock(), heard.append)
    engine.handle(LoadModel("m", str(path)))
    while engine.loading:
        engine.step()
    (down,) = [event for event in heard if isinstance(event, ModelDown)]
    assert down.code == "out_of_memory" and "smallest step" in down.message
    assert device.pool.stats().mapped == 0
    engine.close()


class Sevens:
    def propose(self, tokens: object, most: int) -> list[int]:
        return [7] * most


class Small:
    """Step memory for so many tokens and rows; the first ``refusals`` requests find no page."""

    def __init__(self, tokens: int, rows: int, refusals: int = 0) -> None:
        self.tokens, self.rows, self.refusals = tokens, rows, refusals

    def fits(self, tokens: int, rows: int) -> bool:
        return tokens <= self.tokens and rows <= self.rows

    def reserve(self, tokens: int, rows: int) -> bool:
        self.refusals -= 1
        return self.refusals < 0


def test_no_step_is_planned_that_scratch_does_not_fit() -> None:
    """Prompts come in smaller pieces and decoding sequences take turns, and all of them end."""
    sim = Sim(max_step_tokens=64)
    sim.add(blocks=64).memory = Small(6, 2)
    for name in "abcd":
        sim.ask(name, list(range(20)))
    sim.run()
    plans = sim.recorders["m"].plans
    assert max(sum(count for _, _, count in plan) for plan in plans) == 6
    assert max(len(plan) for plan in plans) == 2
    assert sorted(sim.heard.finished) == list("abcd")


def test_nothing_is_evicted_for_the_scratch_of_guesses() -> None:
    drafts = Speculator(Sevens, 4, always=True)
    sim = Sim()
    batcher = sim.add(drafts=drafts)
    sim.ask("cached", list(range(20)), 1)
    sim.run()
    cached = batcher.cache.stats().cached
    sim.ask("a", [1, 2, 3] * 6, 12)
    for _ in range(3):
        sim.engine.step()
    batcher.memory = small = Small(100, 100)
    slices = list(batcher._decodes())
    small.refusals = 1
    shape = batcher._draft(slices, 1)
    assert small.refusals == 0 and shape.draft_tokens == 0 and not slices[0].draft
    assert slices[0].count == 1 and batcher.cache.stats().cached == cached
    assert batcher._draft(slices, 1).draft_tokens > 0
    small.refusals = 1
    assert batcher._lent(1, 1) and batcher.cache.stats().cached < cached
