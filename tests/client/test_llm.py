"""``LLM`` over a tiny model: plain calls, order, streams that are left early, errors."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from models.tiny import make_tiny
from tenfold import LLM, SamplingParams
from tenfold.client.base import ask
from tenfold.core.errors import InvalidRequest, ModelNotFound, PullError
from tenfold.core.types import Constraint
from tenfold.fleet.types import Delta, TextPrompt

GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("llm")
    make_tiny("llama", folder / "tiny")
    make_tiny("bert", folder / "vectors")
    models = [f"tiny={folder / 'tiny'}", f"vectors={folder / 'vectors'}"]
    with LLM(models, memory_bytes=32 << 20, page_bytes=64 << 10, threads=1) as made:
        yield made


def test_prompts_run_together_and_keep_their_order(llm: LLM) -> None:
    prompts = ["the cat", "a dog sat", "in the house of"]
    alone = [llm.generate(p, GREEDY)[0].outputs[0].token_ids for p in prompts]
    together = llm.generate(prompts, GREEDY)
    assert [o.outputs[0].token_ids for o in together] == alone
    assert [o.prompt for o in together] == prompts
    ids = llm.generate([[5, 6, 7], [8, 9]], GREEDY)
    assert [o.prompt for o in ids] == [[5, 6, 7], [8, 9]]


def test_chat_streams_and_embeds(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hello"}]
    reply = llm.chat(messages, GREEDY)[0]
    assert len(reply.outputs[0].token_ids) == 6
    pieces = [e for e in llm.stream(messages, GREEDY) if isinstance(e, Delta)]
    assert "".join(p.text for p in pieces) == reply.text
    (one, two) = llm.embed(["a cat", "a cat"], model="vectors")
    assert one == two and abs(sum(x * x for x in one) - 1) < 1e-5


def test_a_stream_that_is_left_is_cancelled(llm: LLM) -> None:
    long = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)
    events = llm.stream("the cat", long)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert llm.client.service.queue() == []


def test_what_is_wrong_is_raised_here(llm: LLM) -> None:
    with pytest.raises(ModelNotFound):
        llm.generate("x", model="nobody")
    with pytest.raises(InvalidRequest):
        llm.generate("x", SamplingParams(constraint=Constraint("json_schema", '{"type": 5}')))
    with pytest.raises(PullError):
        LLM("no-such-model")


def test_one_failure_ends_the_prompts_beside_it(llm: LLM) -> None:
    long = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)
    with pytest.raises(InvalidRequest, match="vocabulary"):
        llm.generate([[5, 6], [7, 8], [10**6]], long)
    assert llm.client.service.queue() == []


def test_requests_have_ids_of_their_own() -> None:
    made = {ask("tiny", TextPrompt("x")).id for _ in range(100)}
    assert len(made) == 100 and all(re.fullmatch("ask-[0-9a-f]{12}", id) for id in made)


def test_a_regex_is_kept(llm: LLM) -> None:
    sampling = SamplingParams(max_tokens=20, seed=1, constraint=Constraint("regex", "[0-9]{4}-x"))
    text = llm.generate("a", sampling)[0].text
    assert text[:4].isdigit() and text[4:] == "-x"
