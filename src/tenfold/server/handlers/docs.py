"""What the OpenAPI document says of answers: errors that any endpoint may give, and streams."""

from __future__ import annotations

from typing import Any

from tenfold.server.protocol.base import Reply
from tenfold.server.protocol.errors import ErrorBody

Responses = dict[int | str, dict[str, Any]]

_REF = "#/components/schemas/"
_MEANING = {
    400: "A field is wrong; `param` names it.",
    401: "No API key, or an unknown one.",
    403: "This key, or this caller, may not do that; or the client is disabled.",
    404: "No such model, or no such path.",
    405: "The path does not answer this method.",
    408: "The body did not arrive in time.",
    409: "The state of the model, or of the client, forbids it now.",
    413: "The body is larger than the server's limit.",
    415: "The body is not `application/json`.",
    422: "The model's files cannot be used.",
    429: "A queue is full, or the client at a limit; `Retry-After` says when to come back.",
    500: "The server failed: a bug.",
    502: "A worker, or a source of models, was lost on the way.",
    503: "Draining, or no worker is ready; `Retry-After` says when to come back.",
    504: "The request's deadline passed.",
    507: "The memory budget cannot hold what was asked.",
}
_READ = (401, 403, 500, 503)
_WORK = (400, 401, 403, 404, 408, 413, 415, 429, 500, 502, 503, 504, 507)


def reading(*more: int) -> Responses:
    """Errors of endpoints that only look."""
    return _errors(*_READ, *more)


def working(*more: int) -> Responses:
    """Errors of endpoints that take a body."""
    return _errors(*_WORK, *more)


def streaming(chunk: type[Reply]) -> Responses:
    """The 200 of an endpoint that may stream. The schema is that of one server-sent event."""
    json_text = {"type": "string", "contentMediaType": "application/json"}
    schema = {
        "type": "object",
        "required": ["data"],
        "properties": {
            "event": {
                "enum": ["message", "error"],
                "description": "error: the stream ends early, `data` is an `ErrorBody`.",
            },
            "data": {
                "anyOf": [
                    {**json_text, "contentSchema": {"$ref": _REF + chunk.__name__}},
                    {**json_text, "contentSchema": {"$ref": _REF + "ErrorBody"}},
                    {"const": "[DONE]"},
                ]
            },
        },
    }
    return {
        200: {
            "description": "The answer: one object, or with `stream` server-sent events.",
            "content": {"text/event-stream": {"schema": schema}},
        }
    }


def _errors(*statuses: int) -> Responses:
    made: Responses = {}
    for status in sorted(set(statuses)):
        made[status] = {"model": ErrorBody, "description": _MEANING[status]}
        if status in (429, 503):
            header = {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
            made[status]["headers"] = {"Retry-After": header}
    return made
