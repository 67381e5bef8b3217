"""Tells a model's thinking from its answer: ``<think>…</think>`` at the start of what it writes.

Knows nothing of prompts but their end, where some chat templates have opened the tag already.
"""

from __future__ import annotations

from tenfold.text.parsers.base import ReasonedDelta, ReasoningParser, begun_tag

_SPACE = " \t\n\r"
_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


def reasoning_parser(template_text: str, prompt_tail: str = "") -> ReasoningParser | None:
    """A fresh parser for one answer, or None where the model does not think in tags.

    ``template_text`` is the source of the chat template. ``prompt_tail`` is the end of the rendered
    prompt: where it ends in the opening tag, the answer begins as thinking (DeepSeek R1, Qwen 3).
    """
    for opening, closing in _TAGS:
        begun = prompt_tail.rstrip(_SPACE).endswith(opening)
        if begun or opening in template_text or closing in template_text:
            return TagReasoning(opening, closing, begun=begun)
    return None


class TagReasoning:
    """One block of thinking at the start of the answer, which may be preceded by whitespace.

    The line breaks at its borders belong to neither side. A block that is never closed is all
    thinking. Later tags are content. ``begun``: the prompt has opened the block.
    """

    def __init__(
        self, opening: str = "<think>", closing: str = "</think>", *, begun: bool = False
    ) -> None:
        self._opening = opening
        self._closing = closing
        self._begun = begun
        self._at = "start"
        self._buffer = ""

    def push(self, text: str) -> ReasonedDelta:
        out = ReasonedDelta()
        self._buffer += text
        if self._at == "start":
            self._start()
        if self._at == "margin":
            self._skip_lines("thinking")
        if self._at == "thinking":
            self._think(out)
        if self._at == "gap":
            self._skip_lines("content")
        if self._at == "content":
            out.content += self._buffer
            self._buffer = ""
        return out

    def flush(self) -> ReasonedDelta:
        rest, self._buffer = self._buffer, ""
        if self._at == "thinking" or (self._at == "start" and self._begun):
            return ReasonedDelta(reasoning=rest)
        return ReasonedDelta(content=rest if self._at == "start" else "")

    def _start(self) -> None:
        """Is this a block of thinking? A tag that the prompt has opened may be repeated."""
        text = self._buffer.lstrip(_SPACE)
        if text.startswith(self._opening):
            self._buffer = text[len(self._opening) :]
            self._at = "margin"
        elif text and not self._opening.startswith(text):
            self._at = "margin" if self._begun else "content"

    def _think(self, out: ReasonedDelta) -> None:
        end = self._buffer.find(self._closing)
        if end >= 0:
            out.reasoning += self._buffer[:end].rstrip("\n")
            self._buffer = self._buffer[end + len(self._closing) :]
            self._at = "gap"
            return
        # Line breaks are held too: they are dropped if the closing tag follows.
        sure = len(self._buffer) - begun_tag(self._buffer, (self._closing,))
        sure = len(self._buffer[:sure].rstrip("\n"))
        out.reasoning += self._buffer[:sure]
        self._buffer = self._buffer[sure:]

    def _skip_lines(self, then: str) -> None:
        self._buffer = self._buffer.lstrip("\n")
        if self._buffer:
            self._at = then
