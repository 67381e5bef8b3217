"""Readers of one tool call each, written as a JSON object or in XML.

A reader is fed the text from the call's first character on. It says how much it took, and gives the
name and the arguments as soon as they are certain. Knows nothing of what surrounds a call.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from enum import Enum
from typing import NamedTuple, Protocol

from tenfold.text.parsers.json_scan import JsonScan, Scan

_SPACE = " \t\n\r"


class State(Enum):
    MORE = "more text is needed"
    DONE = "the call is complete"
    BAD = "what follows belongs to no call"


class Progress(NamedTuple):
    """``taken``: characters used up; the rest is to be offered again, with more."""

    taken: int
    state: State


class CallReader(Protocol):
    """``name`` is None until the call is certain: only from then on are there arguments."""

    name: str | None

    def feed(self, text: str) -> Progress: ...

    def take(self) -> str:
        """The JSON text of the arguments that came since the last time."""
        ...

    def end(self, text: str) -> None:
        """The answer stops here, within the call; ``text`` is what ``feed`` did not take."""
        ...


class JsonCall:
    """``{"name": …, "arguments": {…}}``, in either order, other members ignored.

    ``keys``: the names that the arguments' member may have. ``known``: the names that a call may
    have, None for any. ``bare``: nothing but its form says that it is a call, so that it must have
    arguments. Arguments may also be a string that holds a JSON object, or null.
    """

    def __init__(
        self, keys: Collection[str], *, known: Collection[str] | None = None, bare: bool = False
    ) -> None:
        self.name: str | None = None
        self._arguments: list[str] = []
        self._keys = keys
        self._known = known
        self._bare = bare
        self._at = "start"
        self._scan = JsonScan()
        self._word: list[str] = []
        self._role = ""
        self._found_name = ""
        self._started = False

    def feed(self, text: str) -> Progress:
        for taken, char in enumerate(text):
            state = self._feed(char)
            if state is State.BAD:
                return Progress(taken, state)
            if state is State.DONE:
                return Progress(taken + 1, state)
        return Progress(len(text), State.MORE)

    def take(self) -> str:
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def end(self, text: str) -> None:
        self._arguments.append(text)

    def _feed(self, char: str) -> State:
        match self._at:
            case "key":
                return self._in_key(char)
            case "value":
                return self._in_value(char)
        if char in _SPACE:
            return State.MORE
        match self._at, char:
            case "start", "{":
                self._at = "first"
            case (("first" | "next"), '"'):
                self._at, self._scan, self._word = "key", JsonScan(), []
                return self._in_key(char)
            case (("first" | "comma"), "}"):
                return self._end()
            case "colon", ":":
                self._at = "begin"
            case "begin", _:
                self._at, self._scan, self._word = "value", JsonScan(), []
                return self._in_value(char)
            case "comma", ",":
                self._at = "next"
            case _:
                return State.BAD
        return State.MORE

    def _in_key(self, char: str) -> State:
        scan = self._scan.feed(char)
        self._word.append(char)
        if scan is Scan.DONE:
            self._at, self._role = "colon", self._role_of(json.loads("".join(self._word)))
        return State.BAD if scan is Scan.BAD else State.MORE

    def _role_of(self, key: str) -> str:
        if key == "name" and not self._found_name:
            return "name"
        return "arguments" if key in self._keys and not self._started else ""

    def _in_value(self, char: str) -> State:
        scan = self._scan.feed(char)
        if scan is Scan.BAD:
            return State.BAD
        if scan is not Scan.OVER:
            self._take(char)
        if scan is Scan.MORE:
            return State.MORE
        self._at = "comma"
        if not self._value_over():
            return State.BAD
        return self._feed(char) if scan is Scan.OVER else State.MORE

    def _take(self, char: str) -> None:
        """A character of a member's value. An object's go straight to the arguments."""
        if self._role == "arguments" and char == "{" and not self._word:
            self._role, self._started = "object", True
        if self._role == "object":
            self._arguments.append(char)
            self._settle()
        elif self._role:
            self._word.append(char)

    def _value_over(self) -> bool:
        """Whether the value just read is fit for its role."""
        word = "".join(self._word)
        if self._role == "name":
            self._found_name = _string(word)
            if not self._found_name:
                return False
            if self._known is not None and self._found_name not in self._known:
                return False
        elif self._role == "arguments":
            self._started = True
            text = "{}" if word == "null" else _object(_string(word))
            if not text:
                return False
            self._arguments.append(text)
        self._role = ""
        self._settle()
        return True

    def _end(self) -> State:
        if not self._found_name or (self._bare and not self._started):
            return State.BAD
        if not self._started:
            self._started = True
            self._arguments.append("{}")
        self._settle()
        return State.DONE

    def _settle(self) -> None:
        """The call is certain once it has a name and its arguments have begun."""
        if self._found_name and self._started:
            self.name = self._found_name


def _string(word: str) -> str:
    """The JSON string that ``word`` is. Empty if it is none, or holds half of a surrogate pair."""
    if not word.startswith('"'):
        return ""
    value = str(json.loads(word))
    try:
        value.encode()
    except UnicodeEncodeError:
        return ""
    return value


def _object(text: str) -> str:
    """``text`` if it is JSON of an object, else empty."""
    text = text.strip(_SPACE)
    scan = JsonScan()
    if not text.startswith("{") or any(scan.feed(char) is not Scan.MORE for char in text[:-1]):
        return ""
    return text if scan.feed(text[-1]) is Scan.DONE else ""
