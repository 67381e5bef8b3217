"""The measure itself, against plain torch on logits of an independent implementation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from models.oracle import Oracle
from models.tiny import make_tiny
from tenfold.core.errors import ConfigError
from tenfold.engine.forced import Feed, ForcedModel
from tenfold.engine.quality import (
    LIMIT,
    Compared,
    Plan,
    compare,
    compare_logits,
    fixed_text,
    main,
    measure,
    run_json,
    split_lead,
    steps_of,
)
from tenfold.text.tokenizer import load_tokenizer

PLAN = Plan(window=60, chunk=17, sequences=3, context=9, steps=11)
TOKENS = [(7 * i * i + 3 * i + 11) % 304 for i in range(150)]


def damaged(source: Path, target: Path, tensor: str, factor: float) -> Path:
    """A copy in which one tensor is multiplied."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    weights[tensor] = weights[tensor] * torch.tensor(factor).numpy()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("quality")
    whole = make_tiny(request.param, folder / "whole")
    hurt = damaged(whole, folder / "hurt", "model.layers.1.mlp.gate_proj.weight", 1.5)
    return [whole, hurt]


def by_hand(oracle: Oracle) -> dict[str, list[Tensor]]:
    """Logits and targets in the order of the measure: window by window; then step by step."""
    windows = [TOKENS[start : start + PLAN.window] for start in range(0, 150, PLAN.window)]
    prefill = [(oracle.logits(ids)[:-1], ids[1:]) for ids in windows]
    rows = [TOKENS[start : start + 21] for start in (0, 50, 100)]
    stack = torch.stack([oracle.logits(ids)[9:20] for ids in rows], 1).flatten(0, 1)
    following = torch.tensor([token for _, ids in prefill for token in ids])
    stepwise = torch.tensor([ids[at + 1] for at in range(9, 20) for ids in rows])
    return {
        "prefill": [torch.cat([logits for logits, _ in prefill]), following],
        "decode": [stack, stepwise],
    }


def test_the_measure_is_what_torch_says_of_an_oracle_s_logits(pair: list[Path]) -> None:
    with ForcedModel(pair[0], threads=1) as base, ForcedModel(pair[1], threads=1) as other:
        found = compare(base, other, TOKENS, plan=PLAN)
    ours, theirs = (by_hand(Oracle(path)) for path in pair)
    for part, compared in found.items():
        a, targets = ours[part]
        b, _ = theirs[part]
        wanted = [F.cross_entropy(x.double(), targets, reduction="none") for x in (a, b)]
        assert torch.allclose(torch.from_numpy(compared.base_nll_N), wanted[0], atol=2e-4)
        assert torch.allclose(torch.from_numpy(compared.nll_N), wanted[1], atol=2e-4)
        assert compared.base_best_N.tolist() == a.argmax(-1).tolist()
        assert compared.best_N.tolist() == b.argmax(-1).tolist()
        logs = [x.double().log_softmax(-1) for x in (b, a)]
        divergence = F.kl_div(*logs, reduction="none", log_target=True).sum(-1)
        assert torch.allclose(torch.from_numpy(compared.divergence_N), divergence, atol=2e-4)
        summary = compared.summary()
        assert summary.tokens == len(targets)
        assert summary.perplexity == pytest.approx(math.exp(wanted[1].mean()), rel=1e-3)
        assert summary.ratio == pytest.approx(summary.perplexity / summary.base_perplexity)
        assert summary.divergence == pytest.approx(float(divergence.mean()), rel=1e-2)


def test_a_model_is_its_own_equal(pair: list[Path]) -> None:
    with ForcedModel(pair[0], threads=1) as base, ForcedModel(pair[0], threads=2) as same:
        found = run_json(compare(base, same, TOKENS, plan=PLAN))
    whole = found["parts"]["all"]
    assert found["met"] and whole["ratio"] == 1.0 and whole["error"] == 0.0
    assert whole["agreement"] == 1.0 and whole["divergence"] == 0.0
    assert whole["tokens"] == 147 + 33


def test_a_damaged_weight_is_found(tmp_path: Path) -> None:
    """A head that is surer of its noise than it was: surely worse."""
    whole = make_tiny("llama", tmp_path / "whole")
    hurt = damaged(whole, tmp_path / "hurt", "lm_head.weight", 1.03)
    text = fixed_text()
    found = measure(
        hurt, ["exact"], ["f32"], text=text, base_path=whole, most_tokens=500, threads=1
    )
    (run,) = found["runs"]
    assert not run["met"] and run["parts"]["all"]["ratio"] > 1 + LIMIT
    assert found["base"]["model"] == "whole" and found["model"] == "hurt"


def one(change: float, noise: float, count: int) -> Compared:
    base = torch.full((count,), 3.0, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0]).repeat(count // 2)
    zeros = torch.zeros(count, dtype=torch.int64)
    nll = (base + change + noise * signs).numpy()
    return Compared(base.numpy(), nll, zeros.numpy(), zeros.numpy(), base.numpy())


def test_each_part_is_judged_as_far_as_its_noise_allows() -> None:
    good, small = one(0.001, 0.1, 1000), one(0.03, 0.055, 40)
    assert not run_json({"prefill": good, "decode": small})["met"]
    noisy = one(0.03, 0.2, 40)
    assert run_json({"prefill": good, "decode": noisy})["met"]
    assert not run_json({"prefill": one(0.006, 1.0, 1000), "decode": noisy})["met"]
    assert not run_json({"prefill": one(-0.006, 0.0, 1000), "decode": one(0, 0, 40)})["met"]
    assert not run_json({"prefill": one(math.nan, 0.0, 1000), "decode": one(0, 0, 40)})["met"]


@given(
    count=st.integers(12, 90),
    lead=st.lists(st.just(-1), max_size=2),
    window=st.integers(2, 40),
    chunk=st.integers(1, 50),
    sequences=st.integers(1, 4),
    context=st.integers(1, 20),
    steps=st.integers(1, 20),
)
def test_every_step_is_followed_by_its_targets(
    count: int, lead: list[int], window: int, chunk: int, sequences: int, context: int, steps: int
) -> None:
    tokens = list(range(1000, 1000 + count))
    fed: dict[object, list[int]] = {}
    ended: list[object] = []
    scored = []
    for step in steps_of(tokens, lead, Plan(window, chunk, sequences, context, steps)):
        given_ = [token for feed in step.feeds for token in feed.tokens]
        assert given_ and all(feed.key not in ended for feed in step.feeds)
        assert sum(len(feed.tokens) for feed in step.feeds) <= max(chunk, sequences, context + 2)
        for feed in step.feeds:
            fed.setdefault(feed.key, []).extend(feed.tokens)
        if step.part is not None:
            after = [tokens[0] if t == -1 else t + 1 for t in given_]
            pairs = zip(given_, after, step.targets, strict=True)
            assert all(got == wanted or -1 in (token, got) for token, wanted, got in pairs)
        if step.part == "prefill":
            scored += step.targets
        ended += step.done
    firsts = range(1000, 1000 + count, window)
    left_out = set() if lead else set(firsts)
    if lead:
        scored = [token for token in scored if token != -1]
    assert sorted(scored) == [t for t in tokens if t not in left_out]
    assert set(ended) == set(fed) and len(ended) == len(fed)


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="8 tokens are too few for 4"):
        list(steps_of(list(range(8)), [], Plan()))


def test_vocabularies_must_agree() -> None:
    with pytest.raises(ConfigError, match="base of 5 tokens and a candidate of 6"):
        compare_logits(torch.zeros(2, 5), torch.zeros(2, 6), [0, 1])


def test_sequences_come_and_go_in_one_cache(tmp_path: Path) -> None:
    with ForcedModel(make_tiny("llama", tmp_path), threads=1) as model:
        first = model.step([Feed("a", TOKENS[:40])])
        model.drop("a")
        assert model.step([Feed("b", TOKENS[:30])], wanted=False).shape == (0, 304)
        again = model.step([Feed("c", TOKENS[:25]), Feed("b", TOKENS[30:40])])
        assert torch.equal(again[25:], first[30:]) and torch.equal(again[:25], first[:25])


def test_what_a_build_lacks_is_listed(pair: list[Path]) -> None:
    found = measure(
        pair[0], ["exact", "careless"], ["f32"], text=fixed_text(), most_tokens=60, threads=1
    )  # type: ignore[list-item]
    assert [bool(run["refused"]) for run in found["runs"]] == [False, True]
    assert "careless" in found["runs"][1]["refused"]


def test_the_text_and_what_goes_before_it(pair: list[Path]) -> None:
    text = fixed_text()
    assert 1700 <= len(text.split()) <= 2200 and text.isascii()
    tokenizer = load_tokenizer(pair[0])
    assert split_lead(tokenizer, text) == ([], tokenizer.encode(text))

    class WithStart:
        def encode(self, text: str, *, special: bool = True) -> list[int]:
            return [0] * special + tokenizer.encode(text)

    assert split_lead(WithStart(), text) == ([0], tokenizer.encode(text))  # type: ignore[arg-type]


def test_as_a_program(pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(pair[0]), "--tokens", "60", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 60 and found["limit"] == LIMIT and len(found["runs"]) == 1
    assert found["runs"][0]["parts"]["all"]["ratio"] == 1.0
    assert main([str(tmp_path / "nowhere.gguf")]) == 2
    assert "nowhere.gguf" in capsys.readouterr().err


def test_all_logits_of_a_long_text_do_not_come_out_of_a_servers_scratch(tmp_path: Path) -> None:
    """16 MiB: an eighth of it, which is what serving would take, does not hold these results."""
    path = make_tiny("llama", tmp_path, max_position_embeddings=1024)
    with ForcedModel(path, threads=1, memory_bytes=16 << 20) as model:
        logits = model.step([Feed("a", [i % 300 + 3 for i in range(900)])])
    assert logits.shape == (900, 304)
