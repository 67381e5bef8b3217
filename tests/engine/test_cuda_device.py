"""The CUDA device with everything but the device: interpreted kernels, graphs that are replayed
operation by operation, pages of main memory. Its greedy tokens are the CPU device's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.test_exact import Real
from kernels.replayed import ReplayedGraph, replayed_graphs
from models.tiny import make_tiny
from tenfold.core.errors import ConfigError
from tenfold.core.settings import DeviceSettings
from tenfold.engine.cuda_device import CudaDevice
from tenfold.engine.cuda_runner import CudaRunner, DecodeGraphs, buckets
from tenfold.engine.open_device import open_device
from tenfold.memory.backends import open_backend


class MainMemory:
    """Copies that are done when issued, and a note of each."""

    def __init__(self) -> None:
        self.waits = 0
        self.joined = 0

    def pinned(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def copying(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def mark(self) -> Callable[[], None]:
        def wait() -> None:
            self.waits += 1

        return wait

    def join(self) -> None:
        self.joined += 1


class Interpreted(CudaDevice):
    """What touches the device is replaced; what decides is not."""

    used = 0

    def _find(self, name: str) -> torch.device:
        assert name == "cuda:0"
        return torch.device("cpu")

    def _use(self) -> None:
        """There is nothing to use."""

    def _copies(self) -> MainMemory:
        return MainMemory()

    def _open_kernels(self) -> Any:
        from tenfold.kernels.triton_column import TritonKernels

        graphs = replayed_graphs() if self.settings.cuda_graphs else None
        return TritonKernels("cpu", self.dtype, graphs=graphs, uploads=self.uploads)

    def _open_backend(self) -> Any:
        return open_backend("anon", self.settings.page_bytes)

    def _graph_memory(self) -> int:
        return self.used


@pytest.fixture(autouse=True)
def interpreter(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu"):
        return
    pytest.importorskip("triton", reason="Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton compiles here; set TRITON_INTERPRET=1 to interpret")


PROMPTS = {"a": [5, 77, 9], "b": [200, 6], "c": list(range(20, 31))}


@contextlib.contextmanager
def running(path: Path, device: type[Any] | None, **settings: Any) -> Iterator[Real]:
    """An engine over one tiny model on this kind of device."""
    values = {"block_tokens": 4, "max_running": 3, "max_step_tokens": 8, **settings}
    if device is not None:
        values |= {"name": "cuda:0", "cuda_dtype": "f32"}
    with pytest.MonkeyPatch.context() as patch:
        if device is not None:
            patch.setattr("engine.test_exact.Device", device)
        real = Real(path, **values)
    yield real
    real.close()


def answers(path: Path, device: type[Any] | None, **settings: Any) -> dict[str, list[int]]:
    with running(path, device, **settings) as real:
        for name, prompt in PROMPTS.items():
            real.ask(name, prompt, 3)
        real.run()
        return real.tokens


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("family", "graphs"),
    [("llama", True), ("qwen2_moe", True), ("gemma3_text", False), ("qwen3", False)],
)
def test_the_same_tokens_as_on_the_cpu(family: str, graphs: bool, tmp_path: Path) -> None:
    path = make_tiny(family, tmp_path / family, max_position_embeddings=64)
    wanted = answers(path, None, native=False)
    assert answers(path, Interpreted, cuda_graphs=graphs) == wanted


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "qwen2_moe", "gemma3_text", "qwen3"])
def test_the_same_tokens_on_a_gpu(family: str, tmp_path: Path) -> None:
    """float32 throughout, so that nearly equal logits are as rare as on a CPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    path = make_tiny(family, tmp_path / family, max_position_embeddings=64)
    wanted = answers(path, None, native=False)
    settings = {"memory_bytes": 256 << 20, "page_bytes": 2 << 20}
    assert answers(path, CudaDevice, **settings) == wanted


@pytest.mark.slow
def test_decode_steps_are_replayed_and_padded(tmp_path: Path) -> None:
    path = make_tiny("llama", tmp_path / "m", max_position_embeddings=48)
    with running(path, Interpreted) as real:
        runner = real.recorder.inner.inner  # type: ignore[attr-defined]
        assert isinstance(runner, CudaRunner) and isinstance(runner.tapes, DecodeGraphs)
        assert runner.tapes.sizes == [1, 2, 4]
        real.ask("c", PROMPTS["c"][:5], 3)
        real.run()
        alone = real.tokens.pop("c")
        for name in ("a", "b", "c"):
            real.ask(name, PROMPTS[name][:5], 3)
        real.run()
        graphs = runner.tapes._graphs
        counts = {size: _graph(graphs[size].tape).replays for size in graphs}
        assert counts[1] > 1 and counts[4] > 1  # once when captured
        assert real.tokens["c"] == alone


def _graph(tape: Any) -> ReplayedGraph:
    graph = tape._graph
    assert isinstance(graph, ReplayedGraph)
    return graph


def test_without_graphs(tmp_path: Path) -> None:
    path = make_tiny("llama", tmp_path / "m", max_position_embeddings=48)
    with running(path, Interpreted, cuda_graphs=False) as real:
        assert real.recorder.inner.inner.tapes is None  # type: ignore[attr-defined]
        real.ask("b", PROMPTS["b"], 2)
        real.run()
        assert len(real.tokens["b"]) == 2


@pytest.mark.slow
def test_graphs_stay_within_their_memory(tmp_path: Path) -> None:
    """What is too large is left out, and such steps run as they come."""

    class Hungry(Interpreted):
        def _graph_memory(self) -> int:
            self.used += 40
            return self.used

    path = make_tiny("llama", tmp_path / "m", max_position_embeddings=48)
    with running(path, Hungry, cuda_graph_bytes=30, max_running=1) as real:
        runner = real.recorder.inner.inner  # type: ignore[attr-defined]
        assert runner.tapes.sizes == []
        real.ask("b", PROMPTS["b"], 2)
        real.run()
        assert len(real.tokens["b"]) == 2


def test_a_token_that_is_not_in_the_vocabulary_never_reaches_the_device(tmp_path: Path) -> None:
    path = make_tiny("llama", tmp_path / "m", max_position_embeddings=48)
    with running(path, Interpreted, cuda_graphs=False) as real:
        real.ask("b", [5, 304], 2)
        while real.engine.step():
            pass
        (failed,) = real.failed
        assert "304" in failed.message


def test_buckets() -> None:
    assert buckets(1) == [1]
    assert buckets(2) == [1, 2]
    assert buckets(3) == [1, 2, 4]
    assert buckets(8) == [1, 2, 4, 8]
    assert buckets(64) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    assert buckets(65)[-1] == 72


def test_devices_by_name() -> None:
    with pytest.raises(ConfigError, match="write cuda:0"):
        open_device(DeviceSettings(name="cuda:x"))
    with pytest.raises(ConfigError, match="name to cuda:0"):
        open_device(DeviceSettings(backend="cuda"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="sees 0 CUDA devices"):
            open_device(DeviceSettings(name="cuda:0"))
