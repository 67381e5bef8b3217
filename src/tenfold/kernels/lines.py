"""Where tensors may begin. Known without torch, for those who only count."""

CACHE_LINE = 64
"""Bytes."""
