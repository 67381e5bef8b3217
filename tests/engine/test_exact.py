"""`exact` means it: on a real (tiny) model, greedy tokens never depend on what else is going on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from engine.harness import Recorder, costs
from models.tiny import make_tiny
from tenfold.core.clock import VirtualClock
from tenfold.core.messages import Generate, LoadModel, ModelOptions, RequestFailed, StepDone
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import EngineRequest, SamplingParams
from tenfold.engine.device import Device
from tenfold.engine.engine import Engine
from tenfold.engine.instance import GenerateInstance
from tenfold.engine.runner import TorchRunner
from tenfold.engine.sequence import Choice, StepPlan
from tenfold.engine.simulated import SimulatedRunner
from tenfold.engine.step_memory import SHARE

PAGE = 16 << 10
FAMILIES = ["llama", "gemma3_text", "qwen2_moe"]


class Real:
    """A real device with one tiny model; steps take a cost model's time on a virtual clock."""

    def __init__(self, path: Path, options: ModelOptions | None = None, **settings: object) -> None:
        values = {"memory_bytes": 24 << 20, "page_bytes": PAGE, "threads": 1}
        values |= {"kernels_mode": "exact", **settings}
        self.clock = VirtualClock()
        self.tokens: dict[str, list[int]] = {}
        self.cached: dict[str, int] = {}
        self.failed: list[RequestFailed] = []
        device = Device(DeviceSettings.of(**values))  # type: ignore[arg-type]
        self.engine = Engine(device, self.clock, self._hear)
        self.engine.handle(LoadModel("m", str(path), options or ModelOptions()))
        while self.engine.loading:
            self.engine.step()
        instance = self.engine.instances["m"]
        assert isinstance(instance, GenerateInstance)
        self.instance = instance
        self.weight_pages = instance.stats().weight_pages
        instance.batcher.steps = costs()
        self.recorder = Recorder(_Timed(instance.executor, self.clock))
        instance.executor = self.recorder

    def _hear(self, event: object) -> None:
        if isinstance(event, RequestFailed):
            self.failed.append(event)
        if isinstance(event, StepDone):
            for start in event.started:
                self.cached[start.request_id] = start.cached_tokens
            for output in event.outputs:
                self.tokens.setdefault(output.request_id, []).extend(output.token_ids)

    def ask(self, name: str, prompt: list[int], output: int = 12) -> None:
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        request = EngineRequest(name, "m", "c", prompt, sampling, self.clock.now())
        self.engine.handle(Generate(request))

    def run(self) -> None:
        while self.engine.step():
            pass
        assert not self.failed and self.engine.check() == []

    def close(self) -> None:
        self.engine.close()


class _Timed:
    def __init__(self, inner: object, clock: VirtualClock) -> None:
        self.inner = inner
        self.time = inner.time  # type: ignore[attr-defined]
        self.clock = clock

    def execute(self, plan: StepPlan) -> list[Choice]:
        self.clock.advance(costs().predict(plan.shape))
        return self.inner.execute(plan)  # type: ignore[attr-defined, no-any-return]

    def forget(self, request_id: str) -> None:
        self.inner.forget(request_id)  # type: ignore[attr-defined]


def _prompts() -> dict[str, list[int]]:
    random = np.random.default_rng(5)
    common = random.integers(3, 300, 40).tolist()
    prompts = {f"own{i}": random.integers(3, 300, 5 + 23 * i).tolist() for i in range(4)}
    prompts |= {f"shared{i}": common + random.integers(3, 300, 3 + i).tolist() for i in range(3)}
    return prompts


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exact") / request.param
    make_tiny(request.param, path)
    return path


@pytest.fixture(scope="module")
def alone(tiny: Path) -> dict[str, list[int]]:
    """Each prompt by itself, in one piece, with no cache to help."""
    real = Real(tiny, prefix_cache=False)
    for name, prompt in _prompts().items():
        real.ask(name, prompt)
        real.run()
    real.close()
    return real.tokens


def test_fast_tokens_do_not_depend_on_company_either(tiny: Path) -> None:
    prompts = _prompts()
    lone = Real(tiny, prefix_cache=False, kernels_mode="fast")
    for name, prompt in prompts.items():
        lone.ask(name, prompt)
        lone.run()
    lone.close()
    alone = lone.tokens
    for settings in ({}, {"max_step_tokens": 7, "threads": 3}, {"policy": "lpm", "max_running": 3}):
        real = Real(tiny, kernels_mode="fast", **settings)
        for name, prompt in prompts.items():
            real.ask(name, prompt)
        real.run()
        real.close()
        assert real.tokens == alone


SETTINGS: dict[str, dict[str, object]] = {
    "together": {},
    "small chunks": {"max_step_tokens": 7},
    "two at a time": {"max_running": 2},
    "lpm": {"policy": "lpm", "max_running": 3},
    "k-lpm": {"policy": "k-lpm", "max_running": 3},
    "vtc": {"policy": "vtc", "max_running": 3},
    "dlpm": {"policy": "dlpm", "max_running": 3, "quantum": 50.0, "admission": "reserve"},
    "three threads": {"threads": 3},
    "short blocks": {"block_tokens": 5},
    "torch rows": {"native": False},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_do_not_depend_on_company(
    tiny: Path, alone: dict[str, list[int]], name: str
) -> None:
    real = Real(tiny, **SETTINGS[name])
    for request, prompt in _prompts().items():
        real.ask(request, prompt)
    real.run()
    assert real.tokens == alone
    for request, prompt in _prompts().items():
        real.ask("again-" + request, prompt)
    real.run()
    assert real.cached["again-shared0"] > 0
    assert {n: real.tokens["again-" + n] for n in alone} == alone
    real.close()


@pytest.mark.parametrize("dtype", ["f16", "bf16", "int8"])
def test_nor_do_they_with_smaller_keys_and_values(tiny: Path, dtype: str) -> None:
    """Beside each other, in small chunks, from the prefix cache, and after preemption."""
    lone = Real(tiny, prefix_cache=False, kv_dtype=dtype)
    for name, prompt in _prompts().items():
        lone.ask(name, prompt)
        lone.run()
    for settings in ({}, {"max_step_tokens": 7, "threads": 3, "block_tokens": 5}):
        real = Real(tiny, kv_dtype=dtype, **settings)
        for group, kv in zip(real.instance.batcher.cache.groups, _caches(real), strict=True):
            assert kv.itemsize * kv.shape[-1] == group.row_bytes < group.head_dim * 4
        for turn in ("first-", "again-"):
            for name, prompt in _prompts().items():
                real.ask(turn + name, prompt)
            real.run()
            assert {name: real.tokens[turn + name] for name in lone.tokens} == lone.tokens
        real.close()
    lone.close()


def _caches(real: Real) -> list[Tensor]:
    runner = real.recorder.inner.inner  # type: ignore[attr-defined]
    assert isinstance(runner, TorchRunner)
    return runner.kv


def test_a_model_s_own_type_comes_before_the_device_s(tiny: Path) -> None:
    real = Real(tiny, kv_dtype="f16", options=ModelOptions(kv_dtype="int8"))
    groups = real.instance.batcher.cache.groups
    assert {group.dtype for group in groups} == {"int8"}
    per_token = sum(group.block_bytes(1) for group in groups)
    assert real.instance.facts.kv_bytes_per_token == per_token
    real.close()


def with_scratch(real: Real, pages: int) -> int:
    """Bytes of a pool that leaves a model so many pages for keys and values: its weights, and room
    for the results of its steps, come on top."""
    runner = real.recorder.inner.inner  # type: ignore[attr-defined]
    least = -(-runner.model.scratch_bytes(32, 16) // PAGE)
    return (real.weight_pages + pages + max(least, pages // (SHARE - 1))) * PAGE


def test_tokens_survive_preemption(tiny: Path) -> None:
    def run(**settings: object) -> Real:
        real = Real(tiny, **settings)
        for request, prompt in _prompts().items():
            real.ask(request, prompt, output=70)
        real.run()
        real.close()
        return real

    roomy = run(prefix_cache=False)
    cache = roomy.instance.batcher.cache
    longest = max(len(p) for p in _prompts().values()) + 70
    least = 0
    for group in cache.groups:
        blocks = -(-longest // 16)
        if group.window is not None:
            blocks = min(blocks, group.window // 16 + 2)
        least += -(-blocks * group.block_bytes(16) // PAGE)
    preemptions = 0
    for slack in (6, 4, 2, 1):
        tight = run(memory_bytes=with_scratch(roomy, least + slack))
        assert tight.tokens == roomy.tokens
        preemptions += tight.instance.batcher.preemptions
    assert preemptions > 0


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "vtc", "dlpm"])
def test_a_simulated_run_makes_the_very_decisions_of_a_real_one(tiny: Path, policy: str) -> None:
    plans = []
    for simulated in (False, True):
        real = Real(tiny, policy=policy, max_running=3, memory_bytes=3 << 20, max_step_tokens=32)
        if simulated:
            replies = dict(plans[0][1])
            runner = SimulatedRunner(
                real.clock, costs(), lambda s, n, said=replies: said[s.request.id][s.generated + n]
            )
            real.recorder.inner = runner
        for request, prompt in _prompts().items():
            real.ask(request, prompt)
        real.run()
        plans.append((real.recorder.plans, real.tokens))
        real.close()
    assert len(plans[0][0]) > 20
    assert plans[0] == plans[1]


def test_an_idle_device_prepares_the_pages_that_a_prompt_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Real(make_tiny("llama", tmp_path))
    device = real.engine.device
    pool = device.pool  # type: ignore[attr-defined]
    device.watermarks.close()  # type: ignore[attr-defined]  # its work is done here, at once
    while pool.prepare():
        pass
    mine = pool.stats().owners["m"]
    assert pool.stats().reserved == mine.limit - mine.mapped
    assert real.engine.check() == []
    real.ask("a", list(range(100)))
    touched: list[int] = []
    monkeypatch.setattr(pool.backend, "touch", lambda address, length: touched.append(length))
    real.run()
    assert real.instance.stats().kv_pages > 0 and not touched
    real.close()
