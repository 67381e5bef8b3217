"""What every request body shares: strict types, finite numbers, unknown fields kept for a header.

Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

INT64 = 2**63 - 1
TOKEN_ID_MAX = 2**31 - 1

ModelName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=256),
    Field(description="Name of a served model, see /v1/models."),
]
TokenId = Annotated[int, Field(ge=0, le=TOKEN_ID_MAX)]
Identifier = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Body(BaseModel):
    """A request body. No coercion ("5" is not 5), no NaN or infinity; unknown fields are kept."""

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class Reply(BaseModel):
    """A response body, for the OpenAPI document and for tests; handlers send plain dicts."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


def ignored_fields(body: Body, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields that carried a value and that nothing here reads."""
    for name, value in (body.model_extra or {}).items():
        if value is not None:
            yield prefix + name
    for name in type(body).model_fields:
        value = getattr(body, name)
        if isinstance(value, Body):
            yield from ignored_fields(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield from _ignored_in(value, prefix + name)


def _ignored_in(values: list[Any], name: str) -> Iterator[str]:
    for position, value in enumerate(values):
        if not isinstance(value, Body):
            continue
        yield from ignored_fields(value, f"{name}[{position}].")
