"""The OpenAPI document: FastAPI's own, corrected where it would not be true of this server."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from tenfold.server.auth import access_of
from tenfold.server.protocol.chat import ChatCompletionChunk

_SECURITY = {
    "apiKey": {"type": "http", "scheme": "bearer", "description": "Where the server has keys."},
    "adminKey": {"type": "http", "scheme": "bearer", "description": "For /v1/admin."},
}
_HEADERS = {
    "X-Request-Id": {
        "description": "The request's own X-Request-Id, or one made for it.",
        "schema": {"type": "string"},
    }
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document of ``app``: without the 422 that is never sent, with keys and headers."""
    made = get_openapi(
        title="Tenfold",
        version=app.version,
        summary="OpenAI's protocol over many models on few devices.",
        routes=app.routes,
    )
    made.setdefault("components", {})["securitySchemes"] = _SECURITY
    for path, operations in made["paths"].items():
        for operation in operations.values():
            _correct(path, operation)
    schemas = made["components"].get("schemas", {})
    schemas.update(_chunk_schemas())
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return made


def _chunk_schemas() -> dict[str, Any]:
    """The models that only ever travel inside a stream, where FastAPI does not look."""
    template = "#/components/schemas/{model}"
    schema = ChatCompletionChunk.model_json_schema(ref_template=template, mode="serialization")
    return {**schema.pop("$defs", {}), "ChatCompletionChunk": schema}


def _correct(path: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    schema = responses.get("422", {}).get("content", {}).get("application/json", {})
    if "HTTPValidationError" in schema.get("schema", {}).get("$ref", ""):
        del responses["422"]
    for response in responses.values():
        response.setdefault("headers", {}).update(_HEADERS)
    access = access_of(path)
    if access == "public":
        for status in ("401", "403"):
            responses.pop(status, None)
    else:
        scheme = "adminKey" if access == "admin" else "apiKey"
        operation["security"] = [{scheme: []}, {}]
