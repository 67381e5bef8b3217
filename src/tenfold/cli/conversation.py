"""A conversation at a terminal: what was said so far, the slash commands, the streaming answer."""

from __future__ import annotations

import sys
from typing import Any

import typer

from tenfold.cli.output import note
from tenfold.cli.talk import Talker
from tenfold.core.errors import ModelNotFound, TenfoldError
from tenfold.core.types import SamplingParams
from tenfold.fleet.types import ChatPrompt, TextPrompt

_HELP = "/clear  /model [NAME]  /system [TEXT]  /help  /exit"


class Conversation:
    """``model`` None takes the first one served. Raises ModelNotFound for one that is not."""

    def __init__(
        self, talker: Talker, model: str | None, system: str, sampling: SamplingParams
    ) -> None:
        self.talker = talker
        self.sampling = sampling
        self.system = system
        self.turns: list[dict[str, Any]] = []
        self.model = ""
        self.chats = True
        self.choose(model)

    def choose(self, name: str | None) -> None:
        """Talk to another model from now on."""
        served = self.talker.models()
        found = [model for model in served if name is None or model.name == name]
        if not found:
            names = ", ".join(model.name for model in served) or "none"
            wanted = f"{name!r} is no model" if name else "there is no model"
            raise ModelNotFound(f"{wanted} that generates text here; there are: {names}")
        self.model, self.chats = found[0]
        if not self.chats:
            note(
                f"{self.model} is a base model without a chat template: "
                "it continues your text and does not answer."
            )

    def answer(self, text: str) -> None:
        """Print the answer as it comes. Ctrl-C stops it, and what was said so far is kept."""
        self.turns.append({"role": "user", "content": text})
        said = ""
        thinking = False
        try:
            for delta in self.talker.stream(self.model, self._prompt(text), self.sampling):
                if delta.reasoning:
                    thinking = True
                    typer.secho(delta.reasoning, dim=True, nl=False, err=True)
                if delta.text:
                    if thinking and not said:
                        note("")
                    said += delta.text
                    sys.stdout.write(delta.text)
                    sys.stdout.flush()
        except TenfoldError:
            self.turns.pop()
            raise
        finally:
            if said and not said.endswith("\n"):
                sys.stdout.write("\n")
                sys.stdout.flush()
            if self.turns and said:
                self.turns.append({"role": "assistant", "content": said})

    def _prompt(self, text: str) -> ChatPrompt | TextPrompt:
        if not self.chats:
            return TextPrompt(text)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return ChatPrompt(system + self.turns)

    def repl(self) -> None:
        """Read and answer until /exit or the end of input."""
        import readline  # noqa: F401  (line editing and history for input())

        note(f"Talking to {self.model}. {_HELP}")
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                note("")
                return
            if line in ("/exit", "/quit"):
                return
            try:
                if line.startswith("/"):
                    self.command(line)
                elif line:
                    self.answer(line)
            except TenfoldError as exc:
                note(f"Error: {exc.message}")
            except KeyboardInterrupt:
                note("(stopped)")

    def command(self, line: str) -> None:
        """Do what a line that begins with a slash says."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word == "/clear":
            self.turns.clear()
        elif word == "/model":
            if rest:
                self.choose(rest)
            served = [model.name for model in self.talker.models()]
            others = [name for name in served if name != self.model]
            note(self.model + (f" (also served: {', '.join(others)})" if others else ""))
        elif word == "/system":
            self.system = rest or self.system
            note(f"system: {self.system or '(none)'}")
        else:
            note(_HELP)
