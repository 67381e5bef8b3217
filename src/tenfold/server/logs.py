"""Where the server's log lines go when nobody has said otherwise."""

from __future__ import annotations

import logging
import sys


def to_stderr() -> None:
    """Send the lines of ``tenfold.*`` to stderr, one a line, unless a handler is there already."""
    logger = logging.getLogger("tenfold")
    if logger.hasHandlers():
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
