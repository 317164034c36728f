"""What a policy acts in: making environments, checking their shape, episodes of one turn, and functions as tools.

May import support, types, recipe, data, objectives and policy.
"""

from prefopt.environments.checking import check_environment
from prefopt.environments.child import Limits
from prefopt.environments.episodes import SingleTurn
from prefopt.environments.in_child import Python
from prefopt.environments.making import environment_factory, is_environment
from prefopt.environments.tools import Tools

__all__ = [
    "Limits",
    "Python",
    "SingleTurn",
    "Tools",
    "check_environment",
    "environment_factory",
    "is_environment",
]
