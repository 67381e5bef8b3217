"""Prompts that are text or token ids, one or several: the shape completions and embeddings share.

Checked by hand rather than by a union of four types: one clear message, and speed on long lists.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from tenfold.server.protocol.base import TOKEN_ID_MAX

_SHAPES = "a string, a list of strings, a list of token ids, or a list of lists of token ids"


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("prompt", "{message}", {"message": message})


def _is_ids(value: list[Any]) -> bool:
    """Whether every item is a token id. bool is an int to Python, but not to us."""
    return all(type(item) is int and 0 <= item <= TOKEN_ID_MAX for item in value)


def check_prompts(value: Any) -> list[str] | list[list[int]]:
    """One or several prompts, always as a list. Raises pydantic's custom error."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise _wrong(f"should be {_SHAPES}")
    if not value:
        raise _wrong("should not be an empty list")
    if all(isinstance(item, str) for item in value):
        if not all(value):
            raise _wrong("should not hold an empty text")
        return value
    if type(value[0]) is int:
        value = [value]
    for position, ids in enumerate(value):
        if not isinstance(ids, list):
            raise _wrong(f"should be {_SHAPES}")
        if not ids:
            raise _wrong(f"holds an empty list of token ids (item {position})")
        if not _is_ids(ids):
            raise _wrong(f"token ids should be whole numbers from 0 to {TOKEN_ID_MAX}")
    lists: list[list[int]] = value
    return lists


_IDS_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "integer", "minimum": 0, "maximum": TOKEN_ID_MAX},
}

Prompts = Annotated[
    list[str] | list[list[int]],
    PlainValidator(check_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
                _IDS_SCHEMA,
                {"type": "array", "minItems": 1, "items": _IDS_SCHEMA},
            ]
        }
    ),
]
