"""Several tokens in one engine output: a choice reads them as if they had come one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.tiny import make_tiny
from tenfold.core.messages import TokenOutput
from tenfold.core.types import SamplingParams, TokenLogprob
from tenfold.fleet.generation import ChoiceStream, Parsers
from tenfold.fleet.types import ChoiceEnd, Delta, GenerateRequest, TextPrompt
from tenfold.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = make_tiny("llama", tmp_path_factory.mktemp("runs") / "m")
    return load_tokenizer(folder)


def _read(tokenizer: Tokenizer, ids: list[int], cut: int, **knobs: object) -> dict[str, object]:
    """What a client ends up with when the engine sends ``cut`` tokens at a time."""
    sampling = SamplingParams(logprobs=0, **knobs)  # type: ignore[arg-type]
    request = GenerateRequest("q", "m", "c", TextPrompt("x"), sampling)
    choice = ChoiceStream(0, request, [5], tokenizer, Parsers())
    text, tokens, logprobs, ends = "", [], [], []
    for at in range(0, len(ids), cut):
        part = ids[at : at + cut]
        last = at + cut >= len(ids)
        entries = [TokenLogprob(token, -float(at + i)) for i, token in enumerate(part)]
        output = TokenOutput("r", part, "length" if last else None, entries)
        for event in choice.push(output):
            if isinstance(event, Delta):
                text += event.text
                tokens += event.token_ids
                logprobs += [(one.token_id, one.logprob) for one in event.logprobs or []]
            elif isinstance(event, ChoiceEnd):
                ends.append((event.finish, event.stop_reason))
    return {
        "text": text,
        "tokens": tokens,
        "logprobs": logprobs,
        "ends": ends,
        "generated": choice.generated,
    }


@pytest.mark.parametrize("knobs", [{}, {"stop": ("fox",)}, {"stop": ("fox",), "min_tokens": 14}])
@pytest.mark.parametrize("cut", [2, 3, 5, 50])
def test_a_run_of_tokens_reads_like_its_tokens(
    tokenizer: Tokenizer, cut: int, knobs: dict[str, object]
) -> None:
    ids = tokenizer.encode("The fox and the fox sat on a wall, and the fox left.", special=False)
    one_by_one = _read(tokenizer, ids, 1, **knobs)
    assert _read(tokenizer, ids, cut, **knobs) == one_by_one
    assert (one_by_one["generated"] == len(ids)) == ("stop" not in knobs)
    assert len(one_by_one["ends"]) == 1  # type: ignore[arg-type]
