"""Licence texts as plain text, and which licences the user has agreed to.

Knows nothing of how a text was fetched.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from tenfold.fleet.catalogue import Licence

Accept = Callable[[str, Licence, str], bool]
"""Asked before a first fetch: the model, its licence, the text ("" when it could not be had)."""


class AcceptedLicences:
    """The licences this user has agreed to, in one small file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def __contains__(self, licence: object) -> bool:
        return isinstance(licence, Licence) and licence.name in self._read()

    def add(self, licence: Licence) -> None:
        accepted = self._read()
        accepted[licence.name] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(accepted, indent=2) + "\n")


_BLOCKS = frozenset(("p", "div", "li", "ul", "ol", "h1", "h2", "h3", "h4", "tr", "br", "section"))
_SKIPPED = frozenset(("script", "style", "nav", "header", "footer", "head", "template", "svg"))


class _Text(HTMLParser):
    """Keeps the words of a page's article; scripts and navigation go."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._skipping: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIPPED:
            self._skipping.append(tag)
        elif tag in _BLOCKS:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._skipping and tag == self._skipping[-1]:
            self._skipping.pop()
        elif tag in _BLOCKS:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self.pieces.append(re.sub(r"\s+", " ", data))


def plain_text(text: str) -> str:
    """``text`` as it is, or the words of an HTML page, one paragraph a line."""
    if "<html" not in text[:2000].lower():
        return text.strip()
    start, end = text.find("<article"), text.rfind("</article>")
    start = max(start, text.find("<h1", start))
    parser = _Text()
    parser.feed(text[start:end] if 0 <= start < end else text)
    lines = (" ".join(line.split()) for line in "".join(parser.pieces).splitlines())
    return "\n".join(line for line in lines if line)
