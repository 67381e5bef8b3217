"""Tree-of-thoughts programs, as the DLPM paper runs them on GSM8K (arXiv 2501.14312, section 6).

A question, then ``levels`` expansions: every thought of one level is continued by ``branch`` calls
of the next, which wait for it and carry its whole path as their prompt. Four levels of four
branches are 4 + 16 + 64 + 256 = 340 requests, of two 30. Questions are 546 tokens on average and
answers 256. Questions and thoughts are synthetic: only their lengths are the paper's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tenfold.fleet.workloads.base import Call, Clients, Person, Program, check_positive
from tenfold.fleet.workloads.prompt import Prompt

BRANCH_TOKENS = 8
"""Behind the path so far: which of the branches this is."""


@dataclass(slots=True)
class TreeOfThoughts(Clients):
    """``branch``: of the clients that behave, ``bad_branch`` of those that misbehave by more
    requests; those that misbehave by longer prefixes have ``factor`` times the question."""

    name: str = "tree"
    branch: int = 2
    bad_branch: int = 4
    levels: int = 4
    question: int = 546
    output: int = 256
    spread: float = 0.2
    factor: float = 10.0

    def calls(self, seed: int, seconds: float) -> Iterator[Call]:
        check_positive(self.name, branch=self.branch, bad_branch=self.bad_branch)
        check_positive(self.name, levels=self.levels, question=self.question, output=self.output)
        return self.drawn(seed, seconds, self._tree)

    def pace(self, person: Person) -> float:
        return self.rate or self.concurrent  # misbehaving is in the trees, not in their number

    def _tree(self, person: Person, at: float) -> list[Call]:
        more = person.misbehaves and self.scenario == "requests"
        branch = self.bad_branch if more else self.branch
        longer = self.factor if person.misbehaves and self.scenario == "prefix" else 1.0
        question = person.length(self.question * longer, self.scale, self.spread)
        program = person.program(sum(branch**level for level in range(1, self.levels + 1)))
        tree = _Tree(self, person, branch, program)
        return tree.expand(person.words.prompt(question), at, 1)


@dataclass(slots=True)
class _Tree:
    shape: TreeOfThoughts
    person: Person
    branch: int
    program: Program

    def expand(self, path: Prompt, at: float, level: int) -> list[Call]:
        """The calls that continue a path, at this level."""
        last = level == self.shape.levels

        def grow(call: Call, tokens: list[int], now: float) -> list[Call]:
            return self.expand(call.prompt.plus(tokens), now, level + 1)

        words = self.person.words
        return [
            Call(
                self.person.name,
                path.plus(words.tokens(BRANCH_TOKENS)),
                self.person.length(self.shape.output, self.shape.scale),
                at,
                self.program,
                None if last else grow,
            )
            for _ in range(self.branch)
        ]
