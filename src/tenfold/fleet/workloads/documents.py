"""Questions about long documents, with the published means of LooGLE in the DLPM paper: documents
of 21449 tokens, answers of 15 (arXiv 2501.14312, section 6). Synthetic: the data is not used.

A client has a few documents open and asks about one of them at a time; when a document has had all
of its questions, another takes its place. Clients that misbehave ask more, or have documents twice
as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tenfold.fleet.workloads.base import Call, Clients, Person, check_positive
from tenfold.fleet.workloads.prompt import Prompt


@dataclass(slots=True)
class LongContextQA(Clients):
    """``open``: documents that a client asks about at a time; ``questions``: about each, before the
    next one. Lengths in tokens. The rate is of questions."""

    name: str = "qa"
    rate: float = 0.5
    open: int = 2
    questions: int = 8
    document: int = 21_449
    question: int = 40
    output: int = 15
    spread: float = 0.3
    longer: float = 2.0

    def calls(self, seed: int, seconds: float) -> Iterator[Call]:
        check_positive(self.name, open=self.open, questions=self.questions, longer=self.longer)
        check_positive(self.name, document=self.document, question=self.question)
        check_positive(self.name, output=self.output)
        shelves: dict[str, list[_Document]] = {}

        def start(person: Person, at: float) -> list[Call]:
            shelf = shelves.setdefault(person.name, [])
            while len(shelf) < self.open:
                shelf.append(_Document(self._document(person), self.questions))
            chosen = person.random.choice(shelf)
            chosen.questions -= 1
            if not chosen.questions:
                shelf.remove(chosen)
            own = person.words.tokens(person.length(self.question, self.scale, self.spread))
            output = person.length(self.output, self.scale, self.spread)
            return [Call(person.name, chosen.text.plus(own), output, at, person.program())]

        return self.drawn(seed, seconds, start)

    def _document(self, person: Person) -> Prompt:
        longer = self.longer if person.misbehaves and self.scenario == "prefix" else 1.0
        return person.words.prompt(person.length(self.document * longer, self.scale, self.spread))


@dataclass(slots=True, eq=False)
class _Document:
    text: Prompt
    questions: int
