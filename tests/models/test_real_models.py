"""Both catalogue models against transformers on the same file, made float32; and what they say.

Slow: transformers takes half a minute or more to read such a file.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from models.oracle import Oracle
from models.paged import PagedRun, greedy, worst_share
from tenfold.kernels.table import build_kernels

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def table():
    """The native kernels where they are built: the torch rows are a definition, not a runtime."""
    kernels = build_kernels(threads=2)
    yield kernels
    kernels.close()


def prompt(length: int, vocab: int) -> list[int]:
    return [random.Random(length * 1000 + i).randrange(3, vocab) for i in range(length)]


def compare(model, oracle, length: int, chunk: int) -> float:
    """Worst share over a prompt in chunks, its last five tokens one at a time."""
    tokens = prompt(length, model.spec.vocab)
    run, got = PagedRun(model), []
    edges = [*range(0, length - 5, chunk), *range(length - 5, length + 1)]
    for first, last in pairwise(edges):
        got.append(run.step({0: tokens[first:last]})[0])
    return worst_share(torch.cat(got), oracle.logits(tokens))


@pytest.fixture(scope="module")
def smollm2(smollm2_path, load, table):
    return load(smollm2_path, kernels=table)


@pytest.fixture(scope="module")
def gemma3(gemma3_path, load, table):
    return load(gemma3_path, kernels=table)


def test_smollm2_equals_transformers(smollm2, smollm2_path):
    pytest.importorskip("accelerate")
    oracle = Oracle(smollm2_path)
    assert compare(smollm2.model, oracle, 200, 64) <= TOLERANCE


def test_gemma3_equals_transformers_past_its_window(gemma3, gemma3_path):
    pytest.importorskip("accelerate")
    oracle = Oracle(gemma3_path)
    assert compare(gemma3.model, oracle, 560, 200) <= TOLERANCE


def test_smollm2_by_the_torch_rows(smollm2, smollm2_path, load):
    """The definition and the native rows agree on a real model."""
    tokens = prompt(24, 49152)
    reference = PagedRun(load(smollm2_path).model).step({0: tokens})[0]
    assert worst_share(PagedRun(smollm2.model).step({0: tokens})[0], reference) <= TOLERANCE


def text_tools(path):
    """The project's own tokeniser for this file."""
    from tenfold.text.tokenizer import load_tokenizer

    return load_tokenizer(path)


def test_smollm2_knows_a_capital(smollm2, smollm2_path):
    tokenizer = text_tools(smollm2_path)
    text = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    answer = greedy(smollm2.model, tokenizer.encode(text), 24)
    assert "Paris" in tokenizer.decode(answer)


def test_gemma3_continues_a_story(gemma3, gemma3_path):
    tokenizer = text_tools(gemma3_path)
    answer = greedy(gemma3.model, tokenizer.encode("Once upon a time,"), 24)
    words = tokenizer.decode(answer).split()
    assert len(words) >= 10 and "a" in words
