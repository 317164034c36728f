"""Objectives that learn from the policy's own completions. The parts: advantage.py, surrogate.py, kl.py."""
