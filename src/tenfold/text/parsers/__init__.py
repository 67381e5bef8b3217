"""Streaming parsers of what models write: tool calls and reasoning, told from the answer."""
