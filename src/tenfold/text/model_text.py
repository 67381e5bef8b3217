"""All that is text about one model: what the server process loads of it.

Knows nothing of weights, devices or requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tenfold.core.errors import ModelFileError
from tenfold.text.folder import folder_parts, read_json
from tenfold.text.gguf_metadata import read_gguf_metadata
from tenfold.text.gguf_tokenizer import gguf_parts
from tenfold.text.guard import Guard
from tenfold.text.template import (
    ChatTemplate,
    folder_template,
    gguf_template,
    missing_template,
)
from tenfold.text.tokenizer import Tokenizer

_LICENCE_CHARS = 64 << 10


@dataclass(frozen=True)
class ModelText:
    """``template`` None: a base model. ``context_length`` in tokens, where the file says.

    ``licence``: a name, or the whole text where the files hold it; empty where nothing does.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    context_length: int | None = None
    licence: str = ""

    def render(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """``ChatTemplate.render``, or InvalidRequest naming ``model`` where there is no template.

        The text already holds BOS where the model wants it: encode it with ``special=False``.
        """
        if self.template is None:
            raise missing_template(model)
        return self.template.render(messages, tools=tools, **kwargs)

    def encode_chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """``render`` and ``encode`` in one, safe against text from outside.

        What looks like a control token in messages, tools or ``kwargs`` becomes ordinary text; only
        the template's own are control tokens. Everything else is as with the two steps.
        """
        neutral = self._guard.neutral
        rendered = self.render(
            model, neutral(messages), tools=neutral(tools or ()), **neutral(kwargs)
        )
        return self._guard.encode(rendered)

    @cached_property
    def _guard(self) -> Guard:
        return Guard(self.tokenizer)


def load_model_text(path: Path | str, *, chat_template: str | None = None) -> ModelText:
    """Read a GGUF file or a model folder; never its weights. Raises ModelFileError.

    ``chat_template`` overrules the model's own: Jinja source. So does a file NAME.jinja beside
    NAME.gguf.
    """
    path = Path(path)
    try:
        found = _folder(path) if path.is_dir() else _gguf(path)
    except ModelFileError as exc:
        raise ModelFileError(f"{path}: {exc.message.removeprefix(f'{path}: ')}") from exc
    if chat_template is None:
        return found
    template = ChatTemplate(chat_template, found.tokenizer.special_tokens)
    return ModelText(found.tokenizer, template, found.context_length, found.licence)


def _gguf(path: Path) -> ModelText:
    metadata = read_gguf_metadata(path)
    tokenizer = Tokenizer(gguf_parts(metadata))
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    licence = [metadata.get(f"general.license{key}") for key in ("", ".name", ".link")]
    return ModelText(
        tokenizer,
        gguf_template(metadata, tokenizer.special_tokens, path.with_suffix(".jinja")),
        length if isinstance(length, int) else None,
        ", ".join(part for part in licence if isinstance(part, str) and part),
    )


def _folder(folder: Path) -> ModelText:
    tokenizer = Tokenizer(folder_parts(folder))
    config = read_json(folder / "config.json")
    inner = config.get("text_config")
    length = (inner if isinstance(inner, dict) else config).get("max_position_embeddings")
    return ModelText(
        tokenizer,
        folder_template(folder, tokenizer.special_tokens),
        length if isinstance(length, int) else None,
        _folder_licence(folder),
    )


def _folder_licence(folder: Path) -> str:
    """The text of a licence file, or the name in the model card's header."""
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE"):
        if (file := folder / name).is_file():
            return file.read_text("utf-8", "replace")[:_LICENCE_CHARS]
    card = folder / "README.md"
    if not card.is_file():
        return ""
    header = card.read_text("utf-8", "replace")[:_LICENCE_CHARS].partition("\n---")[0]
    named = re.search(r"^license:\s*(\S+)", header, re.MULTILINE)
    return named[1] if named and header.startswith("---") else ""
