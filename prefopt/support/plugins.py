"""Users' own classes and functions, named by path: `package.module:Name` or `file.py:Name`."""

import dataclasses
import hashlib
import importlib
import importlib.util
import sys
import traceback
import typing
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from prefopt.support.errors import PrefoptError, nearest

Record = TypeVar("Record")


def load_object(path: str, folder: Path | None = None) -> Any:
    """The object that `path` names.

    A module of the working directory is found, too, as `python` would.

    Args:
        path: `package.module:Name`, or `file.py:Name` relative to `folder` or to the working directory.
        folder: where to look for the file first: the folder of the recipe that names it.

    Raises:
        PrefoptError: no such file, module or name, or the module fails to import.
    """
    place, _, name = path.rpartition(":")
    if not place or not name:
        raise PrefoptError(f"{path!r} names no object: write `package.module:Name` or `file.py:Name`")
    module = _from_file(place, folder) if place.endswith(".py") else _from_module(place)
    try:
        return getattr(module, name)
    except AttributeError:
        public = [n for n in vars(module) if not n.startswith("_")]
        raise PrefoptError(f"{place} has no {name!r}.{nearest(name, public)}") from None


def checked_fields(record: Record, name: str) -> Record:
    """A dataclass instance with its fields brought to their declared types: a list to a tuple, "0.1" to a number.

    Dataclasses check nothing themselves, so a wrong type in a recipe would surface as a traceback in the middle of a run.

    Args:
        record: the instance.
        name: what messages call it.

    Raises:
        PrefoptError: a value that cannot be; names the field, its type and the value.
    """
    try:
        hints = typing.get_type_hints(type(record), include_extras=True)
    except NameError:  # a name that exists only for type checkers
        return record
    changed = {}
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        try:
            adapter = TypeAdapter(hints[field.name], config=_config(hints[field.name]))
            changed[field.name] = adapter.validate_python(value)
        except PydanticUserError:  # a type that pydantic does not know
            continue
        except ValidationError as error:
            what = error.errors()[0]["msg"].replace("Input should", "must").partition(", unable to")[0]
            raise PrefoptError(f"{name}: field {field.name!r} {what}, got {value!r}") from None
    changed = {n: v for n, v in changed.items() if type(v) is not type(getattr(record, n)) or v != getattr(record, n)}
    return dataclasses.replace(record, **changed) if changed else record  # type: ignore[type-var]


def _config(hint: Any) -> ConfigDict | None:
    """Pydantic lets dataclasses and models bring their own."""
    own = dataclasses.is_dataclass(hint) or hasattr(hint, "model_config")
    return None if own else ConfigDict(arbitrary_types_allowed=True)


def _from_module(place: str) -> ModuleType:
    here = str(Path.cwd())
    if not {here, ""} & set(sys.path):
        sys.path.append(here)  # last, so that it hides nothing
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(f"{error.name}.")):
            raise PrefoptError(
                f"no module {error.name!r}: install it, run prefopt where it is, or name the file: `file.py:Name`"
            ) from error
        raise _import_error(place, None, error) from error
    except (Exception, SystemExit) as error:
        raise _import_error(place, None, error) from error


def _from_file(place: str, folder: Path | None) -> ModuleType:
    places = [base / Path(place).expanduser() for base in ([folder] if folder else []) + [Path.cwd()]]
    file = next((p.resolve() for p in places if p.is_file()), None)
    if file is None:
        known = [p.name for base in places if base.parent.is_dir() for p in base.parent.glob("*.py")]
        looked = ", ".join(dict.fromkeys(str(p.parent) for p in places))
        raise PrefoptError(f"no file {place}; looked in {looked}.{nearest(Path(place).name, known)}")
    # A file has one module for as long as its text is the same, so that its classes keep their identity.
    key = f"prefopt_plugin_{hashlib.sha256(str(file).encode() + file.read_bytes()).hexdigest()[:12]}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, file)
    assert spec and spec.loader
    module = sys.modules[key] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[key]
        raise _import_error(str(file), file, error) from error
    return module


def _import_error(place: str, file: Path | None, error: BaseException) -> PrefoptError:
    """What went wrong, and in which line of the user's own file."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    for frame in traceback.extract_tb(error.__traceback__):
        line = frame.lineno if file is not None and frame.filename == str(file) else line
    what = error.msg if isinstance(error, SyntaxError) else error
    return PrefoptError(f"{place}{f':{line}' if line else ''} fails to import: {type(error).__name__}: {what}")
