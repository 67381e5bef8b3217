"""What a kernel mode or a type of keys and values costs in quality, measured on a fixed text.

usage: python -m tenfold.engine.quality MODEL [--mode exact|fast] [--kv f32|f16|bf16|int8] ...

A base, by default the same file in exact mode with float32 keys and values, and a candidate are fed
the same tokens side by side; what is compared is how likely each holds the text's own next token
(perplexity), how far apart their distributions are (Kullback-Leibler divergence of the candidate
from the base, in nats), and how often their best tokens agree. Prompts and single tokens run
through different code, so both are measured: long windows in chunks, then some sequences together
token by token. Shape letters as in ``models.batch``; N positions. Knows nothing of servers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.core.errors import ConfigError, TenfoldError
from tenfold.core.types import KVDtype
from tenfold.engine.forced import Feed, ForcedModel
from tenfold.kernels.kv_rows import KV_DTYPES
from tenfold.kernels.table import Mode
from tenfold.text.tokenizer import Tokenizer, load_tokenizer

LIMIT = 0.005
"""How far a candidate's perplexity may be from its base's, as a share of it."""

MODES: tuple[Mode, ...] = ("exact", "fast")
Part = Literal["prefill", "decode"]
PARTS: tuple[Part, ...] = ("prefill", "decode")

_ROWS = 32
"""Logits compared at a time: a vocabulary is large, and several copies are made."""


@dataclass(slots=True, frozen=True)
class Plan:
    """How the text is fed. All are tokens but ``sequences``.

    Prefill: ``window`` after ``window``, each begun afresh and fed in chunks. Decode: from
    ``sequences`` places of the text, ``context`` tokens unscored and then ``steps`` single ones."""

    window: int = 1024
    chunk: int = 128
    sequences: int = 4
    context: int = 64
    steps: int = 128


@dataclass(slots=True, frozen=True)
class Step:
    """One forward pass: ``targets`` are the tokens that follow each one fed, in order.

    ``part`` None: only context, nothing is scored. ``done``: sequences that end with it."""

    part: Part | None
    feeds: list[Feed]
    targets: list[int]
    done: list[Hashable] = field(default_factory=list)


@dataclass(slots=True)
class Compared:
    """Position by position: -ln p of the text's token, each model's best token, divergence."""

    base_nll_N: NDArray[np.float64]
    nll_N: NDArray[np.float64]
    base_best_N: NDArray[np.int64]
    best_N: NDArray[np.int64]
    divergence_N: NDArray[np.float64]

    @classmethod
    def joined(cls, pieces: Sequence[Compared]) -> Compared:
        columns = ("base_nll_N", "nll_N", "base_best_N", "best_N", "divergence_N")
        return cls(*(np.concatenate([getattr(p, name) for p in pieces]) for name in columns))

    def summary(self) -> Summary:
        change = self.nll_N - self.base_nll_N
        count = len(change)
        return Summary(
            tokens=count,
            nll=float(self.nll_N.mean()),
            perplexity=math.exp(self.nll_N.mean()),
            base_perplexity=math.exp(self.base_nll_N.mean()),
            ratio=math.exp(change.mean()),
            error=float(change.std(ddof=1) / math.sqrt(count)) if count > 1 else math.inf,
            divergence=float(self.divergence_N.mean()),
            agreement=float((self.best_N == self.base_best_N).mean()),
        )


@dataclass(slots=True)
class Summary:
    """``ratio``: perplexity over the base's; ``error``: the standard error of its logarithm.

    ``nll`` and ``divergence`` are means, in nats; ``agreement`` is a share of the positions."""

    tokens: int
    nll: float
    perplexity: float
    base_perplexity: float
    ratio: float
    error: float
    divergence: float
    agreement: float

    def within(self, limit: float, errors: float = 0.0) -> bool:
        """Whether the ratio is so near one, ``errors`` standard errors forgiven."""
        return abs(self.ratio - 1.0) <= limit + errors * self.error


def fixed_text() -> str:
    """The text that comes with the package: prose, talk, a recipe, a program, a letter."""
    return resources.files("tenfold.engine").joinpath("quality.txt").read_text("utf-8")


def split_lead(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """The tokens that the model wants before a text, and those of the text."""
    whole, plain = tokenizer.encode(text), tokenizer.encode(text, special=False)
    extra = len(whole) - len(plain)
    return (whole[:extra], plain) if whole[extra:] == plain else ([], plain)


def steps_of(tokens: list[int], lead: list[int], plan: Plan) -> Iterator[Step]:
    """All forward passes over a text. Raises ConfigError where it is too short for the plan."""
    stride = len(tokens) // plan.sequences
    if stride < 3:
        raise ConfigError(f"{len(tokens)} tokens are too few for {plan.sequences} sequences")
    for start in range(0, len(tokens), plan.window):
        yield from _prefill(start, lead + tokens[start : start + plan.window], plan.chunk)
    context = min(plan.context, stride // 2)
    length = min(stride, context + plan.steps + 1)
    rows = [lead + tokens[i * stride : i * stride + length] for i in range(plan.sequences)]
    yield from _decode(rows, context + len(lead))


def _prefill(key: int, ids: list[int], chunk: int) -> Iterator[Step]:
    name, last = ("prefill", key), len(ids) - 1
    for start in range(0, last, chunk):
        end = min(start + chunk, last)
        feeds = [Feed(name, ids[start:end])]
        done = [name] if end == last else []
        yield Step("prefill", feeds, ids[start + 1 : end + 1], list(done))


def _decode(rows: list[list[int]], context: int) -> Iterator[Step]:
    names = [("decode", row) for row in range(len(rows))]
    for name, ids in zip(names, rows, strict=True):
        yield Step(None, [Feed(name, ids[:context])], [])
    last = len(rows[0]) - 1
    for at in range(context, last):
        feeds = [Feed(name, ids[at : at + 1]) for name, ids in zip(names, rows, strict=True)]
        targets = [ids[at + 1] for ids in rows]
        yield Step("decode", feeds, targets, [*names] if at + 1 == last else [])


def compare(
    base: ForcedModel,
    candidate: ForcedModel,
    tokens: list[int],
    lead: list[int] | None = None,
    plan: Plan | None = None,
) -> dict[Part, Compared]:
    """Feed both the same text. Both must have one vocabulary."""
    pieces: dict[Part, list[Compared]] = {part: [] for part in PARTS}
    for step in steps_of(tokens, lead or [], plan or Plan()):
        wanted = step.part is not None
        ours = base.step(step.feeds, wanted=wanted)
        theirs = candidate.step(step.feeds, wanted=wanted)
        for model in (base, candidate):
            for key in step.done:
                model.drop(key)
        if step.part is not None:
            pieces[step.part].append(compare_logits(ours, theirs, step.targets))
    return {part: Compared.joined(found) for part, found in pieces.items()}


def compare_logits(base_TV: Tensor, logits_TV: Tensor, targets: list[int]) -> Compared:
    """Raises ConfigError for vocabularies that differ."""
    if base_TV.shape != logits_TV.shape:
        raise ConfigError(
            f"a base of {base_TV.shape[-1]} tokens and a candidate of {logits_TV.shape[-1]} "
            "cannot be compared"
        )
    targets_T = torch.tensor(targets)
    cuts = [slice(start, start + _ROWS) for start in range(0, len(targets), _ROWS)]
    return Compared.joined(
        [_compare_rows(base_TV[cut], logits_TV[cut], targets_T[cut]) for cut in cuts]
    )


def _compare_rows(base_TV: Tensor, logits_TV: Tensor, targets_T: Tensor) -> Compared:
    ours_TV, theirs_TV = base_TV.log_softmax(-1), logits_TV.log_softmax(-1)
    at = targets_T[:, None]
    return Compared(
        base_nll_N=-ours_TV.gather(-1, at)[:, 0].double().numpy(),
        nll_N=-theirs_TV.gather(-1, at)[:, 0].double().numpy(),
        base_best_N=base_TV.argmax(-1).numpy(),
        best_N=logits_TV.argmax(-1).numpy(),
        divergence_N=(ours_TV.exp() * (ours_TV - theirs_TV)).sum(-1).double().numpy(),
    )


def run_json(parts: dict[Part, Compared]) -> dict[str, Any]:
    """Summaries of each part and of all positions; ``met``: all of them together are within LIMIT,
    and so is each part, as far as two standard errors of its fewer positions can tell."""
    found = {part: compared.summary() for part, compared in parts.items()}
    whole = Compared.joined(list(parts.values())).summary()
    met = whole.within(LIMIT) and all(one.within(LIMIT, errors=2.0) for one in found.values())
    summaries = {**{str(part): asdict(one) for part, one in found.items()}, "all": asdict(whole)}
    return {"parts": summaries, "met": met}


def measure(
    path: Path,
    modes: Sequence[Mode],
    kv_types: Sequence[KVDtype],
    *,
    text: str,
    base_path: Path | None = None,
    most_tokens: int = 0,
    threads: int = 0,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Every mode with every type of keys and values against one base. Plain values, for JSON.

    A pair that this build does not have is listed with the reason as ``refused``."""
    plan = plan or Plan()
    lead, tokens = split_lead(load_tokenizer(path), text)
    tokens = tokens[: most_tokens or None]
    with ForcedModel(base_path or path, threads=threads) as base:
        runs = []
        for mode, kv in ((mode, kv) for mode in modes for kv in kv_types):
            run: dict[str, Any] = {"mode": mode, "kv": kv, "refused": None}
            with ExitStack() as stack:
                try:
                    model = ForcedModel(path, mode=mode, kv=kv, threads=threads)
                except ConfigError as error:
                    run["refused"] = error.message
                else:
                    stack.enter_context(model)
                    run["kernels"] = model.kernels
                    run |= run_json(compare(base, model, tokens, lead, plan))
            runs.append(run)
        about = {"model": (base_path or path).name, "kernels": base.kernels}
    return {
        "model": path.name,
        "base": {**about, "mode": "exact", "kv": "f32"},
        "tokens": len(tokens),
        "plan": asdict(plan),
        "limit": LIMIT,
        "runs": runs,
    }


def main(arguments: Sequence[str]) -> int:
    """Print the measurement as JSON. Returns the exit code."""
    parser = argparse.ArgumentParser("python -m tenfold.engine.quality", description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file or a Hugging Face folder")
    parser.add_argument("--mode", choices=MODES, action="append", help="again for several")
    parser.add_argument("--kv", choices=KV_DTYPES, action="append", help="again for several")
    parser.add_argument("--base", type=Path, help="another file to compare with")
    parser.add_argument("--text", type=Path, help="another text than the package's own")
    parser.add_argument("--tokens", type=int, default=0, help="only so many of the text; 0: all")
    parser.add_argument("--threads", type=int, default=0, help="0: every core")
    asked = parser.parse_args(arguments)
    try:
        found = measure(
            asked.model,
            asked.mode or ["exact"],
            asked.kv or ["f32"],
            text=asked.text.read_text("utf-8") if asked.text else fixed_text(),
            base_path=asked.base,
            most_tokens=asked.tokens,
            threads=asked.threads,
        )
    except (TenfoldError, OSError) as error:
        print(error, file=sys.stderr)
        return error.exit_code if isinstance(error, TenfoldError) else 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
