"""Every family's logits equal transformers' in float32, however the tokens arrive."""

from __future__ import annotations

import random

import pytest
import torch

from models.oracle import Oracle
from models.paged import PagedRun, worst_share
from models.tiny import FAMILIES, make_tiny

TOLERANCE = 1e-4


def prompt(length: int, seed: int) -> list[int]:
    return [random.Random(seed + i).randrange(304) for i in range(length)]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory, load):
    """A tiny model of the family under both roofs."""
    folder = make_tiny(request.param, tmp_path_factory.mktemp(request.param), seed=3)
    return load(folder), Oracle(folder)


def test_a_whole_prompt(pair):
    loaded, oracle = pair
    tokens = prompt(70, seed=1)
    got = PagedRun(loaded.model).step({0: tokens})[0]
    assert worst_share(got, oracle.logits(tokens)) <= TOLERANCE


def test_ragged_chunks_then_decode(pair):
    """Three sequences of different lengths, cut differently, joining and leaving."""
    loaded, oracle = pair
    texts = {"a": prompt(75, 10), "b": prompt(41, 20), "c": prompt(58, 30)}
    cuts = {
        "a": [1, 7, 16, 33, *[1] * 18],
        "b": [30, *[1] * 11],
        "c": [15, 17, 2, 20, *[1] * 4],
    }
    run, got = PagedRun(loaded.model), {key: [] for key in texts}
    for turn in range(max(len(own) for own in cuts.values())):
        work = {}
        for key, own in cuts.items():
            if turn < len(own):
                first = sum(own[:turn])
                work[key] = texts[key][first : first + own[turn]]
        for key, logits in run.step(work).items():
            got[key].append(logits)
    for key, tokens in texts.items():
        assert worst_share(torch.cat(got[key]), oracle.logits(tokens)) <= TOLERANCE


def test_neighbours_and_chunks_change_no_bit(pair):
    loaded, _ = pair
    tokens, others = prompt(50, 5), {n: prompt(20 + 9 * n, 50 + n) for n in range(4)}
    alone = PagedRun(loaded.model).step({"x": tokens})["x"]
    crowd = PagedRun(loaded.model, seed=9).step({**others, "x": tokens})["x"]
    run = PagedRun(loaded.model, seed=5)
    chunks = [run.step({"x": tokens[a : a + 13]})["x"] for a in range(0, 50, 13)]
    assert torch.equal(alone, crowd)
    assert torch.equal(alone, torch.cat(chunks))


def test_only_the_wanted_rows(pair):
    loaded, _ = pair
    tokens = prompt(40, 6)
    every = PagedRun(loaded.model).step({0: tokens})[0]
    last = PagedRun(loaded.model).step({0: tokens}, "last")[0]
    assert torch.equal(every[-1:], last)


def test_no_rows_at_all(pair):
    """A chunk in the middle of a prompt wants no logits."""
    loaded, _ = pair
    run = PagedRun(loaded.model)
    batch = run._batch({0: prompt(8, 7)}, "all")
    batch.logit_rows_L = batch.logit_rows_L[:0]
    assert loaded.model.forward(batch).shape == (0, 304)


def test_small_blocks(pair):
    loaded, oracle = pair
    tokens = prompt(40, 8)
    run = PagedRun(loaded.model, block_tokens=1, blocks=64)
    got = torch.cat([run.step({0: tokens[:20]})[0], run.step({0: tokens[20:]})[0]])
    assert worst_share(got, oracle.logits(tokens)) <= TOLERANCE
