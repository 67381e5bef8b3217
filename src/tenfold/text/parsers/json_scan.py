"""JSON, checked character by character (RFC 8259), so that it can be passed on while it comes.

Knows nothing of what the values mean.
"""

from __future__ import annotations

import re
from enum import Enum

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LITERALS = ("true", "false", "null")
_SPACE = " \t\n\r"


class Scan(Enum):
    """What a character did. MORE and DONE took it; OVER and BAD did not."""

    MORE = "the value goes on"
    DONE = "this character completes the value"
    OVER = "the value was complete before this character"
    BAD = "no JSON value goes on like this"


class JsonScan:
    """Follows one JSON value. Feed it no more after DONE, OVER or BAD."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._expect = "value"
        self._inside = ""
        self._key = False
        self._word = ""

    def feed(self, char: str) -> Scan:
        match self._inside:
            case "string" | "escape" | "hex":
                return self._in_string(char)
            case "literal":
                return self._in_literal(char)
            case "number":
                if char in "0123456789+-.eE":
                    self._word += char
                    return Scan.MORE
                if not _NUMBER.fullmatch(self._word):
                    return Scan.BAD
                if self._value_done() is Scan.DONE:
                    return Scan.OVER
        return self._between(char)

    def _in_string(self, char: str) -> Scan:
        if self._inside == "escape":
            if char == "u":
                self._inside, self._word = "hex", ""
                return Scan.MORE
            self._inside = "string"
            return Scan.MORE if char in '"\\/bfnrt' else Scan.BAD
        if self._inside == "hex":
            self._word += char
            if len(self._word) == 4:
                self._inside = "string"
            return Scan.MORE if char in "0123456789abcdefABCDEF" else Scan.BAD
        if char == "\\":
            self._inside = "escape"
        elif char == '"':
            if not self._key:
                return self._value_done()
            self._inside, self._key, self._expect = "", False, "colon"
        return Scan.BAD if char < " " else Scan.MORE

    def _in_literal(self, char: str) -> Scan:
        self._word += char
        if self._word in _LITERALS:
            return self._value_done()
        begun = any(literal.startswith(self._word) for literal in _LITERALS)
        return Scan.MORE if begun else Scan.BAD

    def _between(self, char: str) -> Scan:
        if char in _SPACE:
            return Scan.MORE
        match self._expect, char:
            case ("first value", "]") | ("first key", "}"):
                return self._close(char)
            case (("value" | "first value"), _):
                return self._begin(char)
            case (("key" | "first key"), '"'):
                self._inside, self._key = "string", True
            case "colon", ":":
                self._expect = "value"
            case "comma", ",":
                self._expect = "key" if self._open[-1] == "}" else "value"
            case "comma", _:
                return self._close(char)
            case _:
                return Scan.BAD
        return Scan.MORE

    def _begin(self, char: str) -> Scan:
        if char == "{":
            self._open.append("}")
            self._expect = "first key"
        elif char == "[":
            self._open.append("]")
            self._expect = "first value"
        elif char == '"':
            self._inside = "string"
        elif char in "-0123456789":
            self._inside, self._word = "number", char
        elif char in "tfn":
            self._inside, self._word = "literal", char
        else:
            return Scan.BAD
        return Scan.MORE

    def _close(self, char: str) -> Scan:
        if self._open[-1] != char:
            return Scan.BAD
        self._open.pop()
        return self._value_done()

    def _value_done(self) -> Scan:
        self._inside = ""
        self._expect = "comma"
        return Scan.MORE if self._open else Scan.DONE
