"""Finds tool calls in streamed text, by the marks that a style puts around them.

The machine behind all styles. What a style is, is data: ``CallStyle``. The text of a call is read
by a reader; here is what surrounds it, and what becomes of text that only looked like a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tenfold.text.parsers.base import (
    NewId,
    ParsedDelta,
    Tool,
    ToolCallDelta,
    begun_tag,
    function_of,
    random_call_id,
)
from tenfold.text.parsers.readers import CallReader, JsonCall, State

_SPACE = " \t\n\r"


@dataclass(slots=True, frozen=True)
class CallStyle:
    """How a model marks its calls.

    ``open``: the tag before a call. ``close``: the tag after it, "" for none. ``bare``: at the
    start of the answer and after a call, a JSON object may be a call without any tag. ``keys``:
    what the member with the arguments may be called. ``separator``: what may part two calls.
    """

    open: str = ""
    close: str = ""
    bare: bool = False
    keys: tuple[str, ...] = ("arguments", "parameters")
    separator: str = ""


class CallParser:
    """A ToolParser for one style. Calls may also come as a JSON array of them.

    ``other``: a tag that begins a call of another form, and the maker of its reader. Whitespace
    around calls is dropped where nothing else is said, so that an answer of calls alone has no
    content.
    """

    def __init__(
        self,
        style: CallStyle,
        tools: Iterable[Tool] = (),
        new_id: NewId = random_call_id,
        other: tuple[str, Callable[[], CallReader]] | None = None,
    ) -> None:
        self._style = style
        self._new_id = new_id
        self._other = other
        # Without a tag only its form tells a call from an answer in JSON; the name helps.
        self._known = {str(function_of(tool).get("name", "")) for tool in tools} or None
        self._tags = tuple(tag for tag in (style.open, other[0] if other else "") if tag)
        self._step: Callable[[ParsedDelta], bool] = self._in_text
        self._buffer = ""
        self._held = ""
        self._fresh = True
        self._array = False
        self._tagged = False
        self._reader: CallReader | None = None
        self._calls = 0

    def push(self, text: str) -> ParsedDelta:
        out = ParsedDelta()
        self._buffer += text
        while self._step(out):
            pass
        return out

    def flush(self) -> ParsedDelta:
        out = ParsedDelta()
        rest = self._held + self._buffer
        self._buffer = self._held = ""
        reader, self._reader = self._reader, None
        if reader is not None and reader.name is not None:
            reader.end(rest)
            out.add_arguments(self._calls, reader.take())
        elif rest.strip(_SPACE) or not (self._fresh and self._calls):
            out.content = rest
        self._step = self._in_text
        return out

    # Each step looks at the buffer's start, takes what it can, and says whether more can be done.
    # ``_held`` is text whose meaning is not known yet: content if it proves to be no call.

    def _in_text(self, out: ParsedDelta) -> bool:
        if self._fresh:
            self._hold_space()
            if not self._buffer:
                return False
            if self._style.bare and self._buffer[0] in "{[":
                self._tagged = False
                self._step = self._at_start
                return True
        places = [(at, tag) for tag in self._tags if (at := self._buffer.find(tag)) >= 0]
        if not places:
            keep = begun_tag(self._buffer, self._tags)
            self._content(out, len(self._buffer) - keep)
            return False
        at, tag = min(places)
        self._content(out, at)
        if tag == self._style.open:
            self._hold(len(tag))
        self._tagged = True
        self._step = self._at_start
        return True

    def _at_start(self, out: ParsedDelta) -> bool:
        """A call is to follow."""
        self._hold_space()
        if not self._buffer:
            return False
        if self._buffer[0] == "[" and not self._array:
            self._array = True
            self._hold(1)
            return True
        if self._buffer[0] == "{":
            known = None if self._tagged else self._known
            self._reader = JsonCall(self._style.keys, known=known, bare=not self._tagged)
        elif self._other is not None and not self._array:
            tag, make = self._other
            if tag.startswith(self._buffer):
                return False
            if self._buffer.startswith(tag):
                self._reader = make()
        if self._reader is None:
            return self._back_to_text(out)
        self._step = self._in_call
        return True

    def _in_call(self, out: ParsedDelta) -> bool:
        reader = self._reader
        assert reader is not None
        certain = reader.name is not None
        taken, state = reader.feed(self._buffer)
        self._hold(taken)
        if reader.name is not None:
            self._held = ""
            index = self._calls
            if not certain:
                out.tool_calls.append(ToolCallDelta(index, self._new_id(), reader.name))
            out.add_arguments(index, reader.take())
        if state is State.MORE:
            return False
        self._reader = None
        if reader.name is not None:
            self._calls += 1
            self._fresh = True
        if state is State.BAD:
            return self._back_to_text(out)
        self._step = self._after_call
        return True

    def _after_call(self, out: ParsedDelta) -> bool:
        self._hold_space()
        text, close, separator = self._buffer, self._style.close, self._style.separator
        if not text:
            return False
        if self._array and text[0] in ",]":
            self._drop(1)
            if text[0] == ",":
                self._step = self._at_start
            else:
                self._array = False
            return True
        self._array = False
        if close != text and close.startswith(text):
            return False
        if close and text.startswith(close):
            self._drop(len(close))
        elif separator and text.startswith(separator):
            self._drop(len(separator))
        self._step = self._in_text
        return True

    def _back_to_text(self, out: ParsedDelta) -> bool:
        """What was held is no call."""
        out.content += self._held
        self._held = ""
        self._fresh = self._array = False
        self._step = self._in_text
        return True

    def _content(self, out: ParsedDelta, size: int) -> None:
        if size:
            out.content += self._held + self._buffer[:size]
            self._held, self._buffer = "", self._buffer[size:]
            self._fresh = False

    def _hold(self, size: int) -> None:
        self._held += self._buffer[:size]
        self._buffer = self._buffer[size:]

    def _hold_space(self) -> None:
        self._hold(len(self._buffer) - len(self._buffer.lstrip(_SPACE)))

    def _drop(self, size: int) -> None:
        self._held, self._buffer = "", self._buffer[size:]
