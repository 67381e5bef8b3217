"""/v1/embeddings: its body and its answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.server.protocol.base import Body, ModelName, Reply
from tenfold.server.protocol.prompts import Prompts
from tenfold.server.protocol.spans import KeepAlive


class EmbeddingBody(Body):
    model: ModelName
    input: Prompts = Field(description="At most 2048 texts or lists of token ids.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: little-endian float32."
    )
    dimensions: int | None = Field(
        None, ge=1, le=2**31 - 1, description="Only the model's own size is accepted."
    )
    user: str | None = Field(None, max_length=256)
    keep_alive: KeepAlive | None = None


class Embedding(Reply):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Reply):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Reply):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
