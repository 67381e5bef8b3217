"""Chat prompts in which text from outside cannot write control tokens.

A user may send "<|im_end|>" and mean seven characters. The control tokens of a rendered prompt are
those the template wrote; what looks like one in a message is read as ordinary text. Knows nothing
of requests. A template that glues a token together from a role's name is not seen through: roles
must be checked before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from os.path import commonprefix
from typing import Any

from tokenizers import AddedToken

from tenfold.text.tokenizer import Tokenizer, encode_with

_BREAK, _REAL = "\ufdd0", "\ufdd1"
"""Two noncharacters, which Unicode keeps out of interchange: text from outside loses them."""


class Guard:
    """For one tokenizer: ``neutral`` what goes into a template, ``encode`` what comes out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.backend.get_added_tokens_decoder()
        # A token of one character could not be broken apart; no model has one.
        special = {
            id: added[id] for id in sorted(tokenizer.special_ids) if len(added[id].content) > 1
        }
        words = [token.content for token in special.values()]
        self._words = re.compile(_any_of(words) or r"(?!)")
        self._begun = {word[:size] for word in words for size in range(1, len(word))}
        self._longest = max(map(len, words), default=0)
        self._backend = tokenizer.plain_backend()
        self._backend.add_tokens([_real(token) for token in special.values()])
        self._ids = {
            self._backend.token_to_id(_REAL + token.content): id for id, token in special.items()
        }

    def neutral(self, value: Any) -> Any:
        """A copy of plain data whose texts hold no control token, nor the first part of one."""
        if isinstance(value, str):
            value = value.replace(_BREAK, "").replace(_REAL, "")
            value = self._words.sub(lambda found: found[0][:1] + _BREAK + found[0][1:], value)
            tails = (value[-size:] for size in range(1, min(self._longest, len(value) + 1)))
            return value + _BREAK if any(tail in self._begun for tail in tails) else value
        if isinstance(value, Mapping):
            return {self.neutral(key): self.neutral(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.neutral(item) for item in value]
        return value

    def encode(self, rendered: str) -> list[int]:
        """Ids of a prompt made of ``neutral`` data: exactly those of ``Tokenizer.encode`` with
        ``special=False``, were the control tokens of the data not control tokens.

        Raises InvalidRequest, blaming ``messages``, for text that is not Unicode.
        """
        marked = self._words.sub(lambda found: _REAL + found[0], rendered)
        text = marked.replace(_BREAK, "")
        ids = encode_with(self._backend, text, special=False, param="messages")
        return [self._ids.get(id, id) for id in ids]


def _real(token: AddedToken) -> AddedToken:
    return AddedToken(
        _REAL + token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=False,
        special=False,
    )


def _any_of(words: Iterable[str]) -> str:
    """A pattern for any of ``words``, the longest first.

    A tree of common beginnings: Gemma's 6,249 control tokens as flat alternatives would be tried
    one by one at every "<".
    """
    groups: dict[str, list[str]] = {}
    for word in words:
        groups.setdefault(word[:1], []).append(word)
    ends = groups.pop("", None) is not None
    branches = []
    for group in groups.values():
        shared = commonprefix(group)  # noqa: RUF071  (by character is meant)
        branches.append(re.escape(shared) + _any_of(word[len(shared) :] for word in group))
    if not branches:
        return ""
    return f"(?:{'|'.join(branches)})" + ("?" if ends else "")
