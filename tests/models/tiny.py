"""The makers of tiny models, where tests look for them: ``from models.tiny import make_tiny``."""

from tenfold.models.tiny import (
    CHAT_TEMPLATE,
    EOS,
    EOS_ID,
    FAMILIES,
    SPECIALS,
    make_tiny,
    tiny_config,
    tiny_tokenizer,
    tiny_weights,
)

__all__ = [
    "CHAT_TEMPLATE",
    "EOS",
    "EOS_ID",
    "FAMILIES",
    "SPECIALS",
    "make_tiny",
    "tiny_config",
    "tiny_tokenizer",
    "tiny_weights",
]
