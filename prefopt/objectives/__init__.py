"""The catalogue of objectives by name and the way to a user's own; their maths, parts and terms; contract/ checks one.

May import support, types, recipe and data.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.objectives.catalogue import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Names of the catalogue on first use: whoever only asks what names there are (`names`) need not wait for torch."""
    from importlib import import_module

    return getattr(import_module("prefopt.objectives.catalogue"), name)
