"""Judges: language models whose opinions are feedback."""

from prefopt.judges.question import Answer, Backend, Question

__all__ = ["Answer", "Backend", "Question"]
