"""Where scores come from: prompts and completions in, a `Verdict` out."""

from prefopt.feedback.rule import Rule, run_feedback

__all__ = ["Rule", "run_feedback"]
