"""A world of facts to be looked up: questions whose answer needs one search or two, and a tiny LM that can learn to copy."""

from .data import demonstrations, facts, preferences, questions

__all__ = ["demonstrations", "facts", "preferences", "questions"]
