"""Engines measured side by side, each in a process of its own Python environment.

A peer script reads one JSON job a line on standard input and answers with one JSON line, so that an
engine's packages never mix with ours and rounds can be interleaved while all peers stay loaded.
"""
