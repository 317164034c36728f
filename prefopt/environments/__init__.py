"""What a policy acts in: making environments, checking their shape, and episodes of one turn.

May import support, types, recipe, data, objectives and policy.
"""

from prefopt.environments.checking import check_environment
from prefopt.environments.episodes import SingleTurn
from prefopt.environments.making import environment_factory, is_environment

__all__ = ["SingleTurn", "check_environment", "environment_factory", "is_environment"]
