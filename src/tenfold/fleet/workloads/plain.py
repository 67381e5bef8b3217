"""Single calls that share a prefix: the simplest traffic, for experiments of one's own.

Each client has prefixes of its own, or shares them with all clients, and asks questions behind
them. Synthetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tenfold.fleet.workloads.base import Call, Clients, Person, check_positive
from tenfold.fleet.workloads.prompt import Prompt


@dataclass(slots=True)
class Plain(Clients):
    """``prefixes``: how many different ones, of each client or (``shared``) of all together;
    ``prefix``, ``prompt`` and ``output`` are lengths in tokens, the latter two drawn evenly up to
    ``spread`` of their mean either way. A client that misbehaves by longer prefixes has them
    ``factor`` times as long."""

    name: str = "plain"
    prefixes: int = 1
    shared: bool = False
    prefix: int = 512
    prompt: int = 64
    output: int = 64
    spread: float = 0.5

    def calls(self, seed: int, seconds: float) -> Iterator[Call]:
        check_positive(self.name, prefixes=self.prefixes, prompt=self.prompt, output=self.output)
        ours = self._prefixes(Person(self.name, -1, seed, False)) if self.shared else []
        of: dict[str, list[Prompt]] = {}

        def start(person: Person, at: float) -> list[Call]:
            known = ours or of.get(person.name)
            if not known:
                known = of[person.name] = self._prefixes(person)
            prefix = person.random.choice(known)
            own = person.length(self.prompt, self.scale, self.spread)
            prompt = prefix.plus(person.words.tokens(own))
            output = person.length(self.output, self.scale, self.spread)
            return [Call(person.name, prompt, output, at, person.program())]

        return self.drawn(seed, seconds, start)

    def _prefixes(self, person: Person) -> list[Prompt]:
        longer = self.factor if person.misbehaves and self.scenario == "prefix" else 1.0
        length = round(self.prefix * self.scale * longer)
        return [person.words.prompt(length) for _ in range(self.prefixes)]
