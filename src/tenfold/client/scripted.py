"""A client that answers from a script: stands in for a model wherever logic is proven."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable

from tenfold.client.base import Client
from tenfold.core.errors import TenfoldError
from tenfold.core.types import Usage
from tenfold.fleet.types import (
    ChatPrompt,
    ChoiceEnd,
    Delta,
    Finished,
    GenerateEvent,
    GenerateRequest,
)

Script = Callable[[GenerateRequest], str | list[str] | TenfoldError]


class ScriptedClient(Client):
    """Answers with the next of ``answers``, or with what ``answers(request)`` returns.

    An answer is a text, one text a choice, or an error to raise. ``asked`` keeps every request.
    Counts a word as a token. Raises AssertionError when the script has run out.
    """

    def __init__(self, answers: Script | Iterable[str | list[str] | TenfoldError]) -> None:
        self._answers = answers if callable(answers) else _in_order(answers)
        self.asked: list[GenerateRequest] = []

    async def stream(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        self.asked.append(request)
        answer = self._answers(request)
        if isinstance(answer, TenfoldError):
            raise answer
        texts = [answer] * request.sampling.n if isinstance(answer, str) else answer
        words = 0
        for index, text in enumerate(texts):
            for word in text.splitlines(keepends=True) or [""]:
                words += len(word.split())
                yield Delta(index, word)
            yield ChoiceEnd(index, "stop")
        yield Finished(Usage(_words(request), words))

    async def embed(self, model: str, texts: list[str]) -> list[list[float]]:
        """A bag of letters, scaled to unit length: equal texts are equal, similar ones are near."""
        return [_letters(text) for text in texts]

    async def models(self) -> list[str]:
        return ["scripted"]


def _in_order(answers: Iterable[str | list[str] | TenfoldError]) -> Script:
    left = iter(answers)

    def following(request: GenerateRequest) -> str | list[str] | TenfoldError:
        for answer in left:
            return answer
        raise AssertionError(f"the script has no answer left for {request.id}")

    return following


def _words(request: GenerateRequest) -> int:
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        return sum(len(str(m.get("content", "")).split()) for m in prompt.messages)
    return len(prompt.text.split()) if isinstance(prompt.text, str) else len(prompt.text)


def _letters(text: str) -> list[float]:
    counts = [0.0] * 26
    for letter in text.lower():
        if "a" <= letter <= "z":
            counts[ord(letter) - ord("a")] += 1.0
    length = sum(c * c for c in counts) ** 0.5
    return [c / length for c in counts] if length else [1.0] + [0.0] * 25
