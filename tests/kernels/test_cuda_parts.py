"""Graphs, staging and the FlashInfer adapter, each against a stand-in for what it drives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kernel_cases import attend, attention_definition, paged
from torch import Tensor

from tenfold.core.errors import Conflict
from tenfold.kernels.cuda_graphs import Graphs
from tenfold.kernels.cuda_staging import StepInputs, Uploads
from tenfold.kernels.flashinfer_adapter import FlashInfer


class _FakeGraph:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def replay(self) -> None:
        self.heard.append("replay")


@contextmanager
def _capture(graph: _FakeGraph, pool: object) -> Iterator[None]:
    graph.heard.append(f"begin in {pool}")
    yield
    graph.heard.append("end")


def test_a_tape_captures_runs_and_replays() -> None:
    made: list[_FakeGraph] = []

    def new() -> _FakeGraph:
        made.append(_FakeGraph())
        return made[-1]

    graphs = Graphs(new, _capture, "the pool")
    tape = graphs.tape()
    with pytest.raises(Conflict, match="nothing was recorded"):
        tape.replay()
    with tape.recording():
        made[0].heard.append("work")
    tape.replay()
    assert made[0].heard == ["begin in the pool", "work", "end", "replay", "replay"]
    with pytest.raises(Conflict, match="once"), tape.recording():
        pass


def test_a_failed_capture_leaves_no_graph() -> None:
    tape = Graphs(_FakeGraph, _capture, "p").tape()
    with pytest.raises(ValueError, match="no"), tape.recording():
        raise ValueError("no")
    with pytest.raises(Conflict):
        tape.replay()


class LateCopies:
    """Copies that happen only when somebody waits for them: what is overwritten early shows."""

    def __init__(self) -> None:
        self.pending: list[Callable[[], object]] = []
        self.joined = False

    def pinned(self, nbytes: int) -> Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    @contextmanager
    def copying(self) -> Iterator[None]:
        copy = Tensor.copy_

        def later(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
            if not non_blocking:
                return copy(to, source)
            self.pending.append(lambda: copy(to, source))
            return to

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "copy_", later)
            yield

    def mark(self) -> Callable[[], None]:
        mine, self.pending = self.pending, []

        def wait() -> None:
            for one in mine:
                one()
            mine.clear()

        return wait

    def join(self) -> None:
        self.joined = True


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100])
def test_uploads_arrive_whole_and_in_their_place(count: int) -> None:
    copies = LateCopies()
    uploads = Uploads(copies, chunk=64)
    first, second = torch.arange(float(count)), torch.arange(float(count)).half() + 3
    there = torch.zeros(count), torch.zeros(count, dtype=torch.float16)
    uploads.copy(there[0], first)
    uploads.copy(there[1], second)
    wanted = second.clone()
    second.fill_(-1)  # the caller may reuse its memory at once
    uploads.finish()
    assert torch.equal(there[0], first) and torch.equal(there[1], wanted) and copies.joined


def test_step_inputs_wait_for_the_last_copy() -> None:
    order: list[str] = []

    class Noted(LateCopies):
        def mark(self) -> Callable[[], None]:
            order.append("sent")
            return lambda: order.append("waited")

    inputs = StepInputs(Noted(), torch.device("cpu"))
    tables = torch.arange(12, dtype=torch.int32).view(3, 4)
    small = torch.tensor([7], dtype=torch.int32)
    for size in (1, 5000):  # the second one needs more room
        long = torch.arange(size, dtype=torch.int32)
        sent = inputs.send([small, tables, tables[:, 1:3], long, long[:0]])
        for got, want in zip(sent, [small, tables, tables[:, 1:3], long, long[:0]], strict=True):
            assert torch.equal(got, want) and got.is_contiguous() and got.data_ptr() % 16 == 0
    assert order == ["sent", "waited", "sent"]


class FakeFlashInfer:
    """Takes what the package documents, and computes it from the definition."""

    def __init__(self) -> None:
        self.plans: list[dict[str, Any]] = []
        self.layout = ""

    def BatchPrefillWithPagedKVCacheWrapper(self, workspace: Tensor, layout: str) -> Any:
        assert workspace.dtype is torch.uint8
        self.layout = layout
        return SimpleNamespace(plan=self._plan, run=self._run)

    def _plan(
        self, qo_indptr: Tensor, paged_kv_indptr: Tensor, paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor, num_qo_heads: int, num_kv_heads: int, head_dim_qk: int,
        page_size: int, **options: Any,
    ) -> None:  # fmt: skip
        for x in (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len):
            assert x.dtype is torch.int32 and x.dim() == 1
        assert options["causal"] and options["q_data_type"] is options["kv_data_type"]
        shape = (num_qo_heads, num_kv_heads, head_dim_qk, page_size)
        self.plans.append(
            {"q": qo_indptr, "pages": paged_kv_indptr, "indices": paged_kv_indices,
             "last": paged_kv_last_page_len, "shape": shape, **options}
        )  # fmt: skip

    def _run(self, q: Tensor, cache: Tensor, out: Tensor) -> Tensor:
        plan = self.plans[-1]
        heads, kv_heads, dim, size = plan["shape"]
        assert cache.shape[1:] == (2, kv_heads, size, dim) and q.shape[1:] == (heads, dim)
        scale, window = plan["sm_scale"], plan["window_left"]
        for s in range(len(plan["q"]) - 1):
            rows = slice(int(plan["q"][s]), int(plan["q"][s + 1]))
            pages = plan["indices"][plan["pages"][s] : plan["pages"][s + 1]].long()
            length = (len(pages) - 1) * size + int(plan["last"][s])
            keys, values = cache[pages].float().permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length]
            grouped = q[rows].float().unflatten(1, (kv_heads, heads // kv_heads))
            scores = torch.einsum("tkgd,kpd->tkgp", grouped, keys) * scale
            if plan["logits_soft_cap"]:
                scores = torch.tanh(scores / plan["logits_soft_cap"]) * plan["logits_soft_cap"]
            at = torch.arange(length)
            here = torch.arange(length - (rows.stop - rows.start), length)[:, None]
            hidden = at > here
            if window >= 0:
                hidden |= at < here - window
            weights = scores.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1)
            # What is not seen may be anything, NaN too.
            mixed = torch.einsum("tkgp,kpd->tkgd", weights, values.nan_to_num())
            out[rows] = mixed.flatten(1, 2).to(out.dtype)
        return out


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (20, None), (None, 5.0)])
def test_flashinfer_is_given_what_it_documents(window: int | None, softcap: float | None) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from tenfold.kernels.triton_column import TritonKernels

    module = FakeFlashInfer()
    adapter = FlashInfer(module, torch.device("cpu"))
    kernels = TritonKernels("cpu", torch.float16, adapter)
    assert "FlashInfer" in kernels.describe() and module.layout == "HND"
    case = paged([(37, 5), (0, 16), (64, 1)], heads=4, kv_heads=2, dim=64, window=window)
    case.q_THD, case.cache = case.q_THD.half(), case.cache.half()
    want = attention_definition(case, scale=0.125, window=window, softcap=softcap)
    for layer_again in range(2):  # layers of a step share one plan
        got = attend(kernels, case, scale=0.125, window=window, softcap=softcap)
        assert (got.double() - want).abs().max() < 4e-3, layer_again
    assert len(module.plans) == 1
    case.table_SB = case.table_SB.clone()
    attend(kernels, case, scale=0.125, window=window, softcap=softcap)
    assert len(module.plans) == 2


def test_flashinfer_leaves_what_it_cannot() -> None:
    adapter = FlashInfer(FakeFlashInfer(), torch.device("cpu"))
    half = torch.zeros(2, 4, 64, dtype=torch.float16)
    cache = torch.zeros(1, 1, 2, 2, 16, 64, dtype=torch.float16)
    assert adapter.takes(half, cache, None, None)
    assert not adapter.takes(half[..., :48], cache[..., :48], None, None)
    assert not adapter.takes(half.float(), cache.float(), None, None)
    assert not adapter.takes(half, cache.float(), None, None)
    assert not adapter.takes(half, cache, torch.zeros(4), None)
    assert not adapter.takes(half, cache, None, torch.zeros(2, 4))
