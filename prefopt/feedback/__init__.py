"""Where scores come from: prompts and completions in, a `Verdict` out. judges/ are language models that judge.

May import support, types, recipe, data, objectives, policy and environments.
"""

from prefopt.feedback.calling import as_scores, run_feedback, run_statistic
from prefopt.feedback.ensemble import Ensemble
from prefopt.feedback.make import (
    FEEDBACKS,
    TRANSFORMS,
    ask,
    asking_the_policy,
    bare,
    check_feedback,
    is_bare,
    judge_records,
    judges_of,
    make_feedback,
    prefetching,
    reward_models,
    reward_models_of,
    spent_by,
    together,
)
from prefopt.feedback.panel import Panel
from prefopt.feedback.reward_model import RewardModel
from prefopt.feedback.rule import Rule
from prefopt.feedback.transforms import (
    Clip,
    LengthPenalty,
    MissingEOS,
    Normalise,
    ReferenceNormalise,
    RepetitionPenalty,
    Transform,
    Transformed,
)
from prefopt.feedback.weighted import WeightedSum

__all__ = [
    "FEEDBACKS",
    "TRANSFORMS",
    "Clip",
    "Ensemble",
    "LengthPenalty",
    "MissingEOS",
    "Normalise",
    "Panel",
    "ReferenceNormalise",
    "RepetitionPenalty",
    "RewardModel",
    "Rule",
    "Transform",
    "Transformed",
    "WeightedSum",
    "as_scores",
    "ask",
    "asking_the_policy",
    "bare",
    "check_feedback",
    "is_bare",
    "judge_records",
    "judges_of",
    "make_feedback",
    "prefetching",
    "reward_models",
    "reward_models_of",
    "run_feedback",
    "run_statistic",
    "spent_by",
    "together",
]
