"""Measuring: load generation, traces, side-by-side comparisons and their reports."""
