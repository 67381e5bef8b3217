"""Both real models through the whole engine, against an independent float32 oracle.

Slow: transformers takes half a minute or more to read such a file.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from models.oracle import Oracle
from tenfold.client.llm import LLM
from tenfold.core.types import SamplingParams
from tenfold.text.model_text import load_model_text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLOSE = 0.05
"""Where the oracle's two best logits are nearer than this, either may be chosen."""

QUESTIONS = [
    "What is the capital of France?",
    "Write a short poem about a lighthouse.",
    "Explain to a child why the sky is blue.",
    "List three uses of a paper clip.",
]
TEXTS = [
    "The three most important inventions of the nineteenth century were",
    "def quicksort(values):\n    ",
    "Il était une fois, dans une petite ville au bord de la mer,",
    "1, 1, 2, 3, 5, 8, 13,",
    "In 1969, " + "the crew looked at the Earth and said nothing for a while. " * 40,
]


def _agree(oracle: Oracle, prompt: list[int], output: list[int]) -> int:
    """How many tokens of ``output`` were checked before the oracle itself was in doubt."""
    rows = oracle.logits([*prompt, *output])[len(prompt) - 1 : -1]
    for position, (row, token) in enumerate(zip(rows, output, strict=True)):
        best, second = row.topk(2).values.tolist()
        if best - second < CLOSE:
            return position
        assert token == int(row.argmax()), f"token {position} of {len(output)}"
    return len(output)


def _check(path: Path, prompts: list[list[int]], **settings: object) -> None:
    sampling = SamplingParams(max_tokens=48, temperature=0.0)
    with LLM(f"model={path}", memory_bytes=2 << 30, max_step_tokens=96, **settings) as llm:
        answers = [out.outputs[0].token_ids for out in llm.generate(prompts, sampling)]
        again = [out.outputs[0].token_ids for out in llm.generate(prompts, sampling)]
    assert again == answers
    oracle = Oracle(path)
    checked = [_agree(oracle, p, o) for p, o in zip(prompts, answers, strict=True)]
    assert sum(checked) > 10 * len(prompts), checked


def test_smollm2_answers_as_the_oracle_would(smollm2_path: Path) -> None:
    pytest.importorskip("accelerate")
    text = load_model_text(smollm2_path)
    prompts = [
        text.encode_chat("smollm2", [{"role": "user", "content": question}])
        for question in QUESTIONS
    ]
    prompts += [text.tokenizer.encode(one) for one in TEXTS]
    _check(smollm2_path, prompts)


def test_gemma3_continues_as_the_oracle_would(gemma3_path: Path) -> None:
    pytest.importorskip("accelerate")
    text = load_model_text(gemma3_path)
    _check(gemma3_path, [text.tokenizer.encode(one) for one in TEXTS])
