"""Engines side by side on one machine: who takes part, what is asked, how rounds interleave, what
came of it. The engines themselves are driven by ``bench/peers``, each in its own process."""
