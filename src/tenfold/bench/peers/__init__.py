"""Engines measured side by side, each a process in a Python environment of its own.

A peer is one file here: a class ``Engine`` that ``runner.py`` drives, importing the standard
library and the engine's own package only, so that packages never mix. What it is started with, and
in which cases it takes part, stands in ``bench/sidebyside/specs.py``.
"""
