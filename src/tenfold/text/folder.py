"""A tokenizer from a model folder as Hugging Face lays it out. Knows nothing of templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from tenfold.core.errors import ModelFileError
from tenfold.text.tokenizer import END_OF_TURN, TokenizerParts

_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, empty where there is no file. Raises ModelFileError for bad JSON."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise ModelFileError(f"{path}: not readable JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise ModelFileError(f"{path}: a JSON object is expected")
    return found


def folder_parts(folder: Path) -> TokenizerParts:
    """Read tokenizer.json and the files beside it. Raises ModelFileError.

    What is added around a text (BOS, [CLS]) is tokenizer.json's own; ``add_bos_token`` in
    tokenizer_config.json says nothing beside it, as in transformers.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelFileError(
            f"{folder}: no tokenizer.json. A tokenizer.model or vocab.txt alone cannot be read; "
            "load the folder with transformers and save it again"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as exc:  # the Rust side raises bare Exception
        raise ModelFileError(f"{file}: not a readable tokenizer: {exc}") from exc
    backend.no_truncation()
    backend.no_padding()
    config = read_json(folder / "tokenizer_config.json")
    roles = _roles(config, read_json(folder / "special_tokens_map.json"))
    _add_missing(backend, config, roles)
    return TokenizerParts(backend, roles, _eos_ids(folder, backend, roles))


def _roles(config: dict[str, Any], special_map: dict[str, Any]) -> dict[str, str]:
    roles = {}
    for role in _ROLES:
        value = config.get(role) or special_map.get(role)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text:
            roles[role] = text
    return roles


def _add_missing(
    backend: tokenizers.Tokenizer, config: dict[str, Any], roles: dict[str, str]
) -> None:
    """Tokens that only tokenizer_config.json knows of, as transformers adds them."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    tokens = [
        AddedToken(**{flag: token[flag] for flag in flags if flag in token})
        for _, token in sorted(listed.items(), key=lambda item: int(item[0]))
        if token["content"] not in known
    ]
    known.update(token.content for token in tokens)
    named = dict.fromkeys(text for text in roles.values() if text not in known)
    backend.add_tokens(tokens + [AddedToken(text, special=True) for text in named])


def _eos_ids(folder: Path, backend: tokenizers.Tokenizer, roles: dict[str, str]) -> list[int]:
    """generation_config.json's list where it has one; else what the other files say."""
    own = _ids(read_json(folder / "generation_config.json"))
    if own:
        return own
    found = _ids(read_json(folder / "config.json"))
    special = {t.content: id for id, t in backend.get_added_tokens_decoder().items() if t.special}
    names = [roles.get("eos_token"), *END_OF_TURN]
    found += [special[name] for name in names if name in special]
    return list(dict.fromkeys(found))


def _ids(config: dict[str, Any]) -> list[int]:
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    return [id for id in ids if isinstance(id, int)]
