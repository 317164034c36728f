"""Users' own classes and functions, named by path: `package.module:Name` or `file.py:Name`."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from prefopt.errors import PrefoptError, nearest


def load_object(path: str, folder: Path | None = None) -> Any:
    """The object that `path` names.

    Args:
        path: `package.module:Name`, or `file.py:Name` relative to `folder` or to the working directory.
        folder: where to look for the file first: the folder of the recipe that names it.

    Raises:
        PrefoptError: no such file, module or name, or the module fails to import.
    """
    place, _, name = path.partition(":")
    if not place or not name:
        raise PrefoptError(f"{path!r} names no object: write `package.module:Name` or `file.py:Name`")
    module = _from_file(place, folder) if place.endswith(".py") else _from_module(place)
    try:
        return getattr(module, name)
    except AttributeError:
        public = [n for n in vars(module) if not n.startswith("_")]
        raise PrefoptError(f"{place} has no {name!r}.{nearest(name, public)}") from None


def _from_module(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise PrefoptError(f"cannot import {place}: {type(error).__name__}: {error}") from error


def _from_file(place: str, folder: Path | None) -> ModuleType:
    places = [base / Path(place).expanduser() for base in ([folder] if folder else []) + [Path.cwd()]]
    file = next((p.resolve() for p in places if p.is_file()), None)
    if file is None:
        raise PrefoptError(f"no file {place}; looked in {', '.join(str(p.parent) for p in places)}")
    # A file has one module for as long as its text is the same, so that its classes keep their identity.
    key = f"prefopt_plugin_{hashlib.sha256(str(file).encode() + file.read_bytes()).hexdigest()[:12]}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, file)
    assert spec and spec.loader
    module = sys.modules[key] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise PrefoptError(f"{file} fails to import: {type(error).__name__}: {error}") from error
    return module
