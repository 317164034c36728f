"""Models behind one call: the policy, the scorer, the reference, and what draws completions.

May import support, types, recipe, data and objectives.
"""

from prefopt.policy.decode.making import check_sampler, check_stops, make_sampler
from prefopt.policy.decode.sampler import TransformersSampler
from prefopt.policy.finding import commit_of, find_model
from prefopt.policy.head import DIVERGENCES
from prefopt.policy.loading import check_policy, load_critic, load_policy, load_tokenizer
from prefopt.policy.policy import Policy
from prefopt.policy.reference import Following, Reference, make_reference
from prefopt.policy.scorer import Reading, Scorer, reading_of
from prefopt.policy.scorer_loading import find_scorer, load_scorer

__all__ = [
    "DIVERGENCES",
    "Following",
    "Policy",
    "Reading",
    "Reference",
    "Scorer",
    "TransformersSampler",
    "check_policy",
    "check_sampler",
    "check_stops",
    "commit_of",
    "find_model",
    "find_scorer",
    "load_critic",
    "load_policy",
    "load_scorer",
    "load_tokenizer",
    "make_reference",
    "make_sampler",
    "reading_of",
]
