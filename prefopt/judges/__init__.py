"""Judges: language models whose opinions are feedback."""

from prefopt.judges.judge import Judge
from prefopt.judges.local import Live, Local
from prefopt.judges.question import Answer, Backend, Question
from prefopt.judges.rubric import Rubric
from prefopt.judges.rubric_file import load_rubric, parse_rubric

__all__ = ["Answer", "Backend", "Judge", "Live", "Local", "Question", "Rubric", "load_rubric", "parse_rubric"]
