"""Packages that not every installation has."""

import importlib
import random
from types import ModuleType

from prefopt.support.errors import PrefoptError


def extra(package: str, name: str, what: str) -> ModuleType:
    """The package, imported.

    Args:
        package: as it is imported.
        name: of the extra that installs it.
        what: needs it, for the message.

    Raises:
        PrefoptError: it is not installed, or fails to import.
    """
    state = random.getstate()
    try:
        return importlib.import_module(package)
    except Exception as error:  # packages raise all kinds of things while they are imported
        raise PrefoptError(
            f"{what} needs the package {package} ({error}): pip install 'prefopt-research[{name}]'"
        ) from error
    finally:
        random.setstate(state)  # reasoning-gym draws numbers while it is imported
