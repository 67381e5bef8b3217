"""The printable alphabet that byte-level BPE vocabularies are written in (GPT-2).

Every byte has one printable character: itself where Latin-1 prints it, and otherwise the next free
code point from U+0100 on, in byte order. So a space (0x20) is written "Ġ" (U+0120).
"""

from __future__ import annotations

from functools import cache


@cache
def byte_to_char() -> dict[int, str]:
    """Byte → its character, all 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + place) for place, byte in enumerate(hidden)
    }


@cache
def char_to_byte() -> dict[str, int]:
    return {char: byte for byte, char in byte_to_char().items()}


def spelled_bytes(token: str) -> bytes | None:
    """The bytes a token stands for, or None where a character is not of the alphabet."""
    table = char_to_byte()
    try:
        return bytes([table[char] for char in token])
    except KeyError:
        return None


def spell(raw: bytes) -> str:
    table = byte_to_char()
    return "".join([table[byte] for byte in raw])
