"""API keys: how they are made, and the hash by which they are known. A key itself is never kept."""

from __future__ import annotations

import secrets
from hashlib import sha256

PREFIX = "tf-"


def new_key() -> str:
    """A key nobody can guess: 256 random bits behind a prefix that scanners for leaks can find."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """What to store for a key: the hex sha256 of its UTF-8 bytes.

    A fast hash is enough for what ``new_key`` makes. Keys that people choose should be as long.
    """
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
