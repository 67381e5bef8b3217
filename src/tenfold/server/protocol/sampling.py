"""The fields that chat and text completions share, and their translation to SamplingParams.

Knows nothing of prompts and of HTTP. Ranges are OpenAI's; vLLM's names where OpenAI has none.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, WithJsonSchema

from tenfold.core.errors import InvalidRequest
from tenfold.core.types import Constraint, SamplingParams
from tenfold.server.protocol.base import INT64, TOKEN_ID_MAX, Body, Identifier, ModelName, TokenId
from tenfold.server.protocol.spans import KeepAlive

MAX_N = 128
StopString = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


def _check_logit_bias(bias: dict[str, float]) -> dict[str, float]:
    for key, value in bias.items():
        if not re.fullmatch(r"[0-9]{1,10}", key) or int(key) > TOKEN_ID_MAX:
            raise ValueError(f"keys should be token ids, not {key[:40]!a}")
        if not -100 <= value <= 100:
            raise ValueError(f"values should be between -100 and 100, not {value} (token {key})")
    return bias


LogitBias = Annotated[
    dict[str, float],
    Field(max_length=1024),
    AfterValidator(_check_logit_bias),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": 1024,
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        }
    ),
]


class StreamOptions(Body):
    include_usage: bool | None = Field(
        None, description="Send one more chunk, with the usage and no choices, at the end."
    )


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]


class JsonSchemaSpec(Body):
    name: Identifier
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="A JSON schema.")
    strict: bool | None = None


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchemaSpec


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class SamplingBody(Body):
    """Everything about how tokens are chosen, when to stop, and how the answer is sent."""

    model: ModelName
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy. Default 1.")
    top_p: float | None = Field(None, gt=0, le=1, description="Default 1: off.")
    top_k: int | None = Field(None, ge=-1, le=TOKEN_ID_MAX, description="0 or -1: off.")
    min_p: float | None = Field(None, ge=0, le=1, description="Default 0: off.")
    seed: int | None = Field(None, ge=-INT64 - 1, le=INT64)
    n: int | None = Field(None, ge=1, le=MAX_N, description="Choices to make. Default 1.")
    max_tokens: int | None = Field(None, ge=1, le=TOKEN_ID_MAX)
    min_tokens: int | None = Field(None, ge=0, le=TOKEN_ID_MAX)
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = Field(
        None, description="Up to 4 texts that end the answer; they are not part of it."
    )
    stop_token_ids: list[TokenId] | None = Field(None, max_length=128)
    ignore_eos: bool | None = Field(None, description="Go on past the end-of-sequence token.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2, description="Default 1: off.")
    logit_bias: LogitBias | None = Field(None, description="Token id to bias, -100 to 100.")
    response_format: ResponseFormat | None = None
    guided_regex: str | None = Field(
        None, min_length=1, description="The answer matches this regular expression."
    )
    guided_grammar: str | None = Field(
        None, min_length=1, description="The answer matches this Lark grammar."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    user: str | None = Field(
        None,
        max_length=256,
        description="Names the client where the server has no API keys and no X-Client-Id came.",
    )
    priority: int | None = Field(None, ge=-1000, le=1000, description="Smaller runs first.")
    timeout: float | None = Field(
        None, gt=0, le=1e9, description="Seconds from now until the whole answer must be there."
    )
    ttft_target: float | None = Field(
        None, gt=0, le=1e9, description="Wished seconds to the first token. Default the model's."
    )
    tpot_target: float | None = Field(
        None, gt=0, le=1e9, description="Wished seconds between tokens. Default the model's."
    )
    keep_alive: KeepAlive | None = None
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Requests share cached prefixes only with requests of the same salt.",
    )

    def constraint(self) -> Constraint | None:
        """The one thing the output must match. Raises InvalidRequest when there are two."""
        found: list[tuple[str, Constraint]] = []
        match self.response_format:
            case JsonObjectFormat():
                found.append(("response_format", Constraint("json_object")))
            case JsonSchemaFormat(json_schema=spec):
                schema = {} if spec.schema_ is None else spec.schema_
                text = json.dumps(schema, ensure_ascii=False)
                found.append(("response_format", Constraint("json_schema", text)))
        if self.guided_regex is not None:
            found.append(("guided_regex", Constraint("regex", self.guided_regex)))
        if self.guided_grammar is not None:
            found.append(("guided_grammar", Constraint("grammar", self.guided_grammar)))
        if len(found) > 1:
            names = " and ".join(name for name, _ in found)
            raise InvalidRequest(f"{names} exclude each other; send one", param=found[1][0])
        return found[0][1] if found else None

    def params(self, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """Everything but the prompt. Raises InvalidRequest where two fields contradict."""
        if self.min_tokens is not None and max_tokens is not None and self.min_tokens > max_tokens:
            raise InvalidRequest(
                f"min_tokens ({self.min_tokens}) is more than max_tokens ({max_tokens})",
                param="min_tokens",
            )
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "stream_options is only allowed with stream: true", param="stream_options"
            )
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            n=self.n or 1,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens or 0,
            temperature=_or(self.temperature, 1.0),
            top_p=_or(self.top_p, 1.0),
            top_k=max(0, self.top_k or 0),
            min_p=_or(self.min_p, 0.0),
            seed=self.seed,
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            logit_bias={int(key): value for key, value in (self.logit_bias or {}).items()},
            logprobs=logprobs,
            ignore_eos=bool(self.ignore_eos),
            constraint=self.constraint(),
        )

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)
