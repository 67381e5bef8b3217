"""Token counts in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from tenfold.core.types import Usage
from tenfold.server.protocol.base import Reply


class PromptTokensDetails(Reply):
    cached_tokens: int


class UsageReply(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


def usage_dict(usage: Usage) -> dict[str, Any]:
    """A ``UsageReply`` as a plain dict."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
