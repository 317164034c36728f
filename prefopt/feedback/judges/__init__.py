"""Judges: language models whose verdicts are feedback."""

from prefopt.feedback.judges.judge import Judge
from prefopt.feedback.judges.local import Local, TrainedPolicy
from prefopt.feedback.judges.question import Answer, Backend, Question
from prefopt.feedback.judges.rubric import Rubric
from prefopt.feedback.judges.rubric_file import load_rubric, make_rubric

__all__ = ["Answer", "Backend", "Judge", "Local", "Question", "Rubric", "TrainedPolicy", "load_rubric", "make_rubric"]
