"""LLM-as-judge programs, branch-solve-merge, as in the DLPM paper (arXiv 2501.14312, section 6).

An article is judged along several dimensions at once, each by a call of its own; one more call,
which waits for all of them, merges what they said. Articles are 2701 tokens on average and answers
256. A client that misbehaves judges 16 dimensions where the others judge 2, or puts 600 tokens
before every article. The merging call is this page's reading of the paper; articles are synthetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tenfold.fleet.workloads.base import Call, Clients, Person, Program, check_positive
from tenfold.fleet.workloads.prompt import Prompt

DIMENSION_TOKENS = 32
"""Behind the article: what to judge."""


@dataclass(slots=True)
class Judge(Clients):
    """Lengths in tokens; ``bad_dimensions`` and ``bad_prefix`` are of clients that misbehave."""

    name: str = "judge"
    dimensions: int = 2
    bad_dimensions: int = 16
    article: int = 2701
    bad_prefix: int = 600
    output: int = 256
    spread: float = 0.2

    def calls(self, seed: int, seconds: float) -> Iterator[Call]:
        check_positive(self.name, dimensions=self.dimensions, bad_dimensions=self.bad_dimensions)
        check_positive(self.name, article=self.article, output=self.output)
        return self.drawn(seed, seconds, self._judgement)

    def pace(self, person: Person) -> float:
        return self.rate or self.concurrent  # misbehaving is in the judgements, not in their number

    def _judgement(self, person: Person, at: float) -> list[Call]:
        bad = self.scenario if person.misbehaves else "none"
        dimensions = self.bad_dimensions if bad == "requests" else self.dimensions
        words = person.words
        article = words.prompt(person.length(self.article, self.scale, self.spread))
        if bad == "prefix":
            article = words.prompt(person.length(self.bad_prefix, self.scale)).plus(article.own)
        work = _Judgement(self, person, article, person.program(dimensions + 1), dimensions)
        return [work.call(words.tokens(DIMENSION_TOKENS), at) for _ in range(dimensions)]


@dataclass(slots=True)
class _Judgement:
    shape: Judge
    person: Person
    article: Prompt
    program: Program
    open: int
    said: list[int] = field(default_factory=list)

    def call(self, question: object, at: float, *, merges: bool = False) -> Call:
        prompt = self.article.plus(question)  # type: ignore[arg-type]
        output = self.person.length(self.shape.output, self.shape.scale)
        then = None if merges else self.solved
        return Call(self.person.name, prompt, output, at, self.program, then)

    def solved(self, call: Call, tokens: list[int], now: float) -> list[Call]:
        self.said += tokens
        self.open -= 1
        return [] if self.open else [self.call(self.said, now, merges=True)]
