"""OpenAI's error body."""

from __future__ import annotations

from typing import Literal

from tenfold.server.protocol.base import Reply

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "server_error",
]


class ErrorDetail(Reply):
    """``param`` names the field at fault, where there is one: ``messages[0].content``."""

    message: str
    type: ErrorType
    param: str | None
    code: str


class ErrorBody(Reply):
    error: ErrorDetail
