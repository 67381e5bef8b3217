"""The Triton column's paged attention against its definition; alike in any company and chunking."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_cases import Paged, attend, attention_definition, paged
from torch import Tensor
from triton_cases import PLACES, Place, make_place


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    return make_place(request.param)


SHAPES = [(1, 64), (3, 64), (4, 80), (7, 96), (4, 128), (16, 128), (2, 256), (5, 20), (16, 6)]


@pytest.mark.parametrize(("group", "dim"), SHAPES)
def test_shapes(place: Place, group: int, dim: int) -> None:
    """Prompts beside single tokens, and single tokens alone."""
    for lengths in ([(37, 5), (0, 9), (70, 1)], [(37, 1), (130, 1)]):
        case = paged(lengths, heads=2 * group, kv_heads=2, dim=dim, seed=dim)
        case = place.put_case(case)
        place.close(attend(place.kernels, case), _defined(case, scale=dim**-0.5))


def _defined(case: Paged, **options: Any) -> Tensor:
    """The definition, on the CPU, of what the device was given."""
    names = ("q_THD", "cache", "table_SB", "starts_S1", "context_S")
    here = replace(case, **{n: getattr(case, n).cpu() for n in names})
    here.q_THD = here.q_THD.float()
    return attention_definition(here, **options)


BLOCKS = [(None, 1), (None, 32), (1, 16), (16, 5), (100, 16), (1000, 16)]


@pytest.mark.parametrize(("window", "block_tokens"), BLOCKS)
def test_windows_and_blocks(place: Place, window: int | None, block_tokens: int) -> None:
    case = paged(
        [(270, 20), (3, 2), (255, 1), (256, 1), (20, 30)],
        heads=3, kv_heads=1, dim=16, block_tokens=block_tokens, window=window,
    )  # fmt: skip
    case = place.put_case(case)
    got = attend(place.kernels, case, window=window)
    place.close(got, _defined(case, scale=0.25, window=window))


def test_softcap_and_scale(place: Place) -> None:
    case = place.put_case(paged([(90, 33), (0, 1), (70, 1)], heads=4, kv_heads=2, dim=64))
    for scale, softcap in ((0.3, 5.0), (0.01, 30.0), (0.5, 50.0)):
        got = attend(place.kernels, case, scale=scale, softcap=softcap)
        place.close(got, _defined(case, scale=scale, softcap=softcap), factor=4)


@pytest.mark.parametrize("tokens", [1, 20])
def test_sinks_and_the_sum_of_exponentials(place: Place, tokens: int) -> None:
    """A sink is one more logit without a value; the sum it belongs to comes with the output."""
    case = place.put_case(paged([(70, tokens)], heads=6, kv_heads=2, dim=32))
    sinks = torch.tensor([-9.0, 0.0, 0.5, 2.0, 5.0, 9.0])
    lse = torch.empty(tokens, 6, device=place.device)
    plain = torch.empty_like(lse)
    got = attend(place.kernels, case, sinks_H=sinks.to(place.device), lse_TH=lse)
    without = attend(place.kernels, case, lse_TH=plain)
    keys = case.keys[0].repeat_interleave(3, 1).double()
    scores = torch.einsum("thd,phd->thp", case.q_THD.cpu().double(), keys) * 32**-0.5
    hidden = torch.arange(70 + tokens)[None] > 70 + torch.arange(tokens)[:, None]
    wanted = scores.masked_fill(hidden[:, None], -torch.inf).logsumexp(-1)
    place.close(plain, wanted)
    place.close(lse, torch.logaddexp(wanted, sinks.double()))
    share = (plain.double() - lse.double()).exp()[:, :, None].cpu()
    place.close(got, without.cpu().double() * share, factor=2)


@pytest.mark.parametrize("window", [None, 90])
def test_many_pieces(place: Place, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces longer than the shortest where there would be too many, over more merges than one."""
    from tenfold.kernels import triton_decode

    monkeypatch.setattr(triton_decode, "SPLIT", 2)
    monkeypatch.setattr(triton_decode, "MOST_SPLITS", 37)
    case = paged(
        [(n, 1) for n in (0, 1, 2, 73, 74, 75, 200)], heads=4, kv_heads=2, dim=16, window=window
    )
    case = place.put_case(case)
    place.close(
        attend(place.kernels, case, window=window), _defined(case, scale=0.25, window=window)
    )


@pytest.mark.parametrize("window", [None, 48])
def test_company_and_chunks_change_nothing(place: Place, window: int | None) -> None:
    """A prompt in one call, in chunks, and beside others; a single token beside anything."""
    total = 110
    case = place.put_case(paged([(0, total)], heads=3, kv_heads=1, dim=32, seed=3))
    whole = attend(place.kernels, case, window=window)

    def part(pieces: list[tuple[int, int]]) -> list[Tensor]:
        """Rows [at, end) of several copies of the sequence in one call."""
        rows = torch.cat([case.q_THD[at:end] for at, end in pieces])
        edges = torch.tensor([0, *(end - at for at, end in pieces)]).cumsum(0).to(torch.int32)
        context = torch.tensor([at for at, _ in pieces], dtype=torch.int32)
        out = place.kernels.paged_attention(
            rows, case.cache, 1, case.table_SB.expand(len(pieces), -1),
            edges.to(place.device), context.to(place.device), scale=32**-0.5, window=window,
        )  # fmt: skip
        return list(out.split([end - at for at, end in pieces]))

    for pieces in ([(0, 64), (64, 67), (67, total)], [(30, 50), (0, total), (70, 90)]):
        for (at, end), got in zip(pieces, part(pieces), strict=True):
            assert torch.equal(got, whole[at:end])
    alone = {at: part([(at, at + 1)])[0] for at in (0, 17, 48, 109)}
    beside = part([(at, at + 1) for at in alone])
    mixed = part([(0, 1), (20, 60), (17, 18), (48, 49), (109, 110), (3, 5)])
    for got, at in zip(beside, alone, strict=True):
        assert torch.equal(got, alone[at])
    for index, at in ((0, 0), (2, 17), (3, 48), (4, 109)):
        assert torch.equal(mixed[index], alone[at])
        place.close(alone[at], whole[at : at + 1].cpu().float(), factor=2)


def test_nan_reaches_only_those_who_see_it(place: Place) -> None:
    case = place.put_case(paged([(30, 40)], heads=3, kv_heads=1, dim=16))
    clean = attend(place.kernels, case, window=20)
    block, slot = int(case.table_SB[0, 50 // 16]), 50 % 16
    for part in (0, 1):
        dirty = case.cache[block, 1, part, 0, slot, 3].clone()
        case.cache[block, 1, part, 0, slot, 3] = torch.nan
        got = attend(place.kernels, case, window=20)
        case.cache[block, 1, part, 0, slot, 3] = dirty
        assert torch.equal(got[:20], clean[:20])  # positions 30..49 come before 50
        assert torch.isnan(got[20:40, :, 3]).all()


def test_padding_rows(place: Place) -> None:
    """A padded decode step: rows with context -1 read nothing, write nothing and come out zero."""
    case = place.put_case(paged([(37, 1), (9, 1)], heads=4, kv_heads=2, dim=16))
    alone = attend(place.kernels, case)
    pad = 2
    q = torch.cat([case.q_THD, case.q_THD[:pad]])
    table = torch.nn.functional.pad(case.table_SB, (0, 0, 0, pad), value=-1)
    starts = torch.arange(5, dtype=torch.int32, device=place.device)
    context = torch.nn.functional.pad(case.context_S, (0, pad), value=-1)
    got = place.kernels.paged_attention(q, case.cache, 1, table, starts, context, scale=0.25)
    assert torch.equal(got[:2], alone) and not got[2:].any()

    slots = place.kernels.slots(table, starts, context, 4, 16)
    assert slots[2:].tolist() == [-1, -1]
    assert slots[:2].tolist() == [int(table[0, 2]) * 16 + 5, int(table[1, 0]) * 16 + 9]
    before = case.cache.nan_to_num().clone()
    fresh = torch.ones(4, 2, 16, dtype=place.dtype, device=place.device)
    place.kernels.store_kv(fresh, fresh, case.cache, 1, slots)
    changed = (case.cache.nan_to_num() != before).any(-1).sum()
    assert int(changed) == 2 * 2 * 2  # two tokens, keys and values, two heads


def test_slots_of_prompts(place: Place) -> None:
    table = torch.tensor([[5, 2, 9], [7, 1, 3]], dtype=torch.int32, device=place.device)
    starts = torch.tensor([0, 6, 7], dtype=torch.int32, device=place.device)
    context = torch.tensor([3, 8], dtype=torch.int32, device=place.device)
    got = place.kernels.slots(table, starts, context, 7, 4)
    assert got.tolist() == [5 * 4 + 3, 8, 9, 10, 11, 9 * 4, 3 * 4]


def test_strided_queries(place: Place) -> None:
    case = place.put_case(paged([(70, 9)], heads=6, kv_heads=2, dim=24))
    wide = place.put(torch.randn(9, 10, 24))
    case.q_THD = wide[:, 2:8]
    place.close(attend(place.kernels, case), _defined(case, scale=24**-0.5))
