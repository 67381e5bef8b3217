"""Fields of OpenAI's protocol that Tenfold does not serve: refused by name, never dropped.

A field that would change the answer must not be ignored; null is as good as absent.
"""

from __future__ import annotations

from typing import Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError


def refused(why: str) -> tuple[BeforeValidator, WithJsonSchema]:
    """Validators for ``Annotated[None, *refused("why")]``: null passes, anything else explains."""

    def check(value: Any) -> None:
        if value is not None:
            raise PydanticCustomError("not_supported", "is not supported: {why}", {"why": why})

    return (
        BeforeValidator(check),
        WithJsonSchema({"type": "null", "description": f"Not supported: {why}."}),
    )
