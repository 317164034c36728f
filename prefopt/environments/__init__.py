"""What a policy acts in: making and containing environments, how what they say becomes tokens, tools, and adapters to others'.

May import support, types, recipe, data, objectives and policy.
"""

from prefopt.environments.checking import check_environment
from prefopt.environments.child import Limits
from prefopt.environments.episodes import EnvironmentReward
from prefopt.environments.gymnasium import Gymnasium
from prefopt.environments.in_child import Python
from prefopt.environments.making import asks_for_models, environment_factory, is_environment
from prefopt.environments.search import Search
from prefopt.environments.textarena import TextArena
from prefopt.environments.tools import Tools
from prefopt.environments.trl import TRLEnvironment

__all__ = [
    "EnvironmentReward",
    "Gymnasium",
    "Limits",
    "Python",
    "Search",
    "TRLEnvironment",
    "TextArena",
    "Tools",
    "asks_for_models",
    "check_environment",
    "environment_factory",
    "is_environment",
]
