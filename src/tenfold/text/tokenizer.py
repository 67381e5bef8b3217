"""Text to token ids and back, for the models that are served.

``load_tokenizer`` reads a folder with tokenizer.json or a GGUF file; the ids are those the model
was trained with. Knows nothing of chat templates, requests, or the model's weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import normalizers

from tenfold.core.errors import InvalidRequest, ModelFileError
from tenfold.text.joining import Joiner, Piece, Spelling, Word, spelling_of

END_OF_TURN = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|eom_id|>", "<|end_of_turn|>")
"""Control tokens that end an answer, whether or not a file lists them as end-of-sequence."""


@dataclass(slots=True, frozen=True)
class TokenizerParts:
    """What a file says: the machine, and the roles of its special tokens.

    ``roles``: "bos_token", "eos_token", … → their text, as chat templates name them. ``eos_ids``:
    every id that ends an answer, the file's own first.
    """

    backend: tokenizers.Tokenizer
    roles: dict[str, str] = field(default_factory=dict)
    eos_ids: list[int] = field(default_factory=list)
    vocab_size: int = 0


class Tokenizer:
    """One model's tokenizer. Immutable but for caches; calls may come from any thread.

    ``vocab_size``: one more than the largest id. ``eos_ids``: ids that end an answer, best first.
    ``special_ids``: control tokens, which ``decode`` leaves out. ``special_tokens``: role → text.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self.backend = parts.backend
        self.special_tokens: Mapping[str, str] = dict(parts.roles)
        self.eos_ids = list(parts.eos_ids)
        self._added = parts.backend.get_added_tokens_decoder()
        self.special_ids = {id for id, token in self._added.items() if token.special}
        sizes = (parts.backend.get_vocab_size(), parts.vocab_size, max(self._added, default=-1) + 1)
        self.vocab_size = max(sizes)
        bos = parts.roles.get("bos_token")
        self.bos_id: int | None = None if bos is None else parts.backend.token_to_id(bos)
        self._shown = _PieceTable(self, hide_special=False)
        self._hidden = _PieceTable(self, hide_special=True)

    def encode(
        self,
        text: str,
        *,
        special: bool = True,
        parse_special: bool = True,
        param: str | None = "prompt",
    ) -> list[int]:
        """Token ids of ``text``.

        ``special`` adds what the model wants around a text (BOS, or [CLS] and [SEP]); leave it off
        for text a chat template made. ``parse_special`` False reads "<|im_end|>" and its like as
        ordinary characters, so that text from outside cannot end a turn. Raises InvalidRequest,
        blaming ``param``, for text that is not Unicode (lone surrogates).
        """
        backend = self.backend if parse_special else self._plain
        return encode_with(backend, text, special=special, param=param)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ``ids``. An id no token has is left out; a negative one is refused."""
        try:
            return self.backend.decode(ids, skip_special_tokens=skip_special)
        except OverflowError as exc:
            wrong = next(id for id in ids if not 0 <= id < self.vocab_size)
            raise InvalidRequest(
                f"token id {wrong} is not between 0 and {self.vocab_size - 1}", param="tokens"
            ) from exc

    def token_bytes(self, id: int) -> bytes:
        """The exact bytes of one token, perhaps only a part of a character. Unknown ids: none.

        A special token's bytes are its own text. Of WordPiece, what it is inside a text.
        """
        added = self._added.get(id)
        if added is not None:
            return added.content.encode()
        piece = self._shown[id]
        if isinstance(piece, bytes):
            return piece
        return (piece.later if isinstance(piece, Word) else piece or "").encode()

    def token_text(self, id: int) -> str:
        """``token_bytes`` as text, with U+FFFD for what is not UTF-8 by itself."""
        return self.token_bytes(id).decode("utf-8", "replace")

    def is_special(self, id: int) -> bool:
        return id in self.special_ids

    def least_tokens(self, text: str) -> int:
        """A lower bound on ``len(encode(text))``, found without encoding.

        It lets a prompt of megabytes be refused at once. 0 where nothing can be promised.
        """
        return 0 if self._longest_token is None else -(-len(text) // self._longest_token)

    def joiner(self) -> Joiner:
        """A fresh joiner for ``pieces``. Raises ModelFileError where text cannot be streamed."""
        return self._spelling.joiner()

    def pieces(self, ids: Iterable[int], *, skip_special: bool = True) -> list[Piece]:
        """What a joiner takes: the pieces of ``ids``, without those that make no text."""
        table = self._hidden if skip_special else self._shown
        return [piece for id in ids if (piece := table[id]) is not None]

    @cached_property
    def _spelling(self) -> Spelling:
        return spelling_of(self.backend)

    def plain_backend(self) -> tokenizers.Tokenizer:
        """A new machine, sharing the model, to which special tokens are mere text."""
        plain = tokenizers.Tokenizer(self.backend.model)
        for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            if (value := getattr(self.backend, part)) is not None:
                setattr(plain, part, value)
        plain.add_tokens([self._added[id] for id in sorted(self._added)])
        plain.encode_special_tokens = True
        return plain

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        return self.plain_backend()

    @cached_property
    def _longest_token(self) -> int | None:
        """The most characters a token may stand for, or None where there is no limit."""
        normalizer = self.backend.normalizer
        # A composed character has at most four parts; Replace writes a character for a space.
        shrinks = {type(None): 1, normalizers.Replace: 1, normalizers.NFC: 4}.get(type(normalizer))
        swallows = any(token.lstrip or token.rstrip for token in self._added.values())
        if shrinks is None or swallows or self._spelling.kind == "words":
            return None
        return shrinks * max(map(len, self.backend.get_vocab()), default=1)


class _PieceTable(dict[int, Piece | None]):
    """id → piece, filled as ids come. None: makes no text."""

    def __init__(self, owner: Tokenizer, *, hide_special: bool) -> None:
        super().__init__()
        self._owner = owner
        self._hide = owner.special_ids if hide_special else frozenset()

    def __missing__(self, id: int) -> Piece | None:
        known = 0 <= id < self._owner.vocab_size and id not in self._hide
        token = self._owner.backend.id_to_token(id) if known else None
        piece = None if token is None else self._owner._spelling.piece(token)
        self[id] = piece
        return piece


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer of a model: a folder with tokenizer.json, or a GGUF file.

    Raises ModelFileError where there is none, or one that cannot be read exactly.
    """
    path = Path(path)
    if path.is_dir():
        from tenfold.text.folder import folder_parts

        return Tokenizer(folder_parts(path))
    from tenfold.text.gguf_metadata import read_gguf_metadata
    from tenfold.text.gguf_tokenizer import gguf_parts

    try:
        return Tokenizer(gguf_parts(read_gguf_metadata(path)))
    except ModelFileError as exc:
        raise ModelFileError(f"{path}: {exc.message.removeprefix(f'{path}: ')}") from exc


def encode_with(
    backend: tokenizers.Tokenizer, text: str, *, special: bool, param: str | None
) -> list[int]:
    """Ids by a bare machine, with what it cannot take turned into InvalidRequest."""
    try:
        return backend.encode(text, add_special_tokens=special).ids
    except TypeError as exc:
        raise InvalidRequest(_why_not_text(text), param=param) from exc


def _why_not_text(text: object) -> str:
    if not isinstance(text, str):
        return f"text is expected, not {type(text).__name__}"
    for place, char in enumerate(text):
        if 0xD800 <= ord(char) <= 0xDFFF:
            return (
                f"the text is not valid Unicode: a lone surrogate U+{ord(char):04X} at character "
                f"{place}. Send UTF-8, or whole surrogate pairs"
            )
    return "the text cannot be tokenised"
