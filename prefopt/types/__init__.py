"""The nouns: what moves between sources, models, objectives and the trainer. All are frozen, and compute no more than a sum.

May be imported by every room; imports support alone.
"""

from prefopt.types.batch import AXES, ORIGINS, Axis, Batch, Completion, Message, Outputs, Prompt, axis_of, lengths_of
from prefopt.types.estimate import Estimate
from prefopt.types.feedback import Closing, Ending, Environment, Equipped, Feedback, Logging, Stopping, Turn, Verdict
from prefopt.types.objective import Adaptive, Loss, Model, Monitor, Moving, Needs, Objective, StepRewards, Targets, Unit
from prefopt.types.writing import (
    STOP_REASONS,
    Refusing,
    Remote,
    Sampled,
    Sampler,
    Source,
    StopReason,
    Synchronised,
    Written,
)

__all__ = [
    "AXES",
    "ORIGINS",
    "STOP_REASONS",
    "Adaptive",
    "Axis",
    "Batch",
    "Closing",
    "Completion",
    "Ending",
    "Environment",
    "Equipped",
    "Estimate",
    "Feedback",
    "Logging",
    "Loss",
    "Message",
    "Model",
    "Monitor",
    "Moving",
    "Needs",
    "Objective",
    "Outputs",
    "Prompt",
    "Refusing",
    "Remote",
    "Sampled",
    "Sampler",
    "Source",
    "StepRewards",
    "StopReason",
    "Stopping",
    "Synchronised",
    "Targets",
    "Turn",
    "Unit",
    "Verdict",
    "Written",
    "axis_of",
    "lengths_of",
]
