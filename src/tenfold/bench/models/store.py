"""The file of results, whole after every timed run: a comparison may be stopped and goes on.

Knows nothing of what the results say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tenfold.bench.report import machine
from tenfold.core.errors import ConfigError


class Store:
    """``parts[name][key]`` is one measurement. ``key``: what all measurements of a file share."""

    def __init__(self, path: Path, key: dict[str, Any], *, fresh: bool = False) -> None:
        """Raises ConfigError where the file is of another comparison, unless ``fresh`` replaces
        it."""
        self.path = path
        self.body: dict[str, Any] = {"benchmark": "models", "key": key, "commands": [], "parts": {}}
        if path.exists() and not fresh:
            found = json.loads(path.read_text())
            if found.get("key") != json.loads(json.dumps(key)):
                differ = [word for word in key if found.get("key", {}).get(word) != key[word]]
                raise ConfigError(
                    f"{path} holds a comparison with another {', '.join(differ) or 'key'}: give "
                    "--fresh to replace it, or another --out"
                )
            self.body = found
        now = machine()
        self.body["machine"] = now
        if now["command"] not in self.body["commands"]:
            self.body["commands"].append(now["command"])

    def part(self, name: str) -> dict[str, Any]:
        """The measurements of one part; what is changed in it is written with the next ``add``."""
        found: dict[str, Any] = self.body["parts"].setdefault(name, {})
        return found

    def add(self, name: str, key: str, value: Any) -> None:
        """One measurement, and write everything: all or nothing."""
        self.part(name)[key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.body, indent=1) + "\n")
        part.rename(self.path)
