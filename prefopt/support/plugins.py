"""Objects from names and fields: of the package, or users' own by path, `package.module:Name` or `file.py:Name`, or as they are."""

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from prefopt.support.errors import PrefoptError, nearest
from prefopt.support.given import Given, refuse_text_of_object

Record = TypeVar("Record")

LATER: Any = object()
"""In the place of something that a run does not have yet, while its recipe is checked: no model is loaded then."""

NOTHING: Mapping[str, Any] = MappingProxyType({})


class UnknownFieldError(PrefoptError):
    """A field that a class does not have.

    Attributes:
        field: its name.
    """

    def __init__(self, message: str, field: str):
        super().__init__(message)
        self.field = field


@dataclasses.dataclass(frozen=True)
class NotYet:
    """An object whose constructor asks for something that the run does not have yet; its fields were checked.

    Attributes:
        name: what it is called in the recipe.
    """

    name: str

    def __call__(self, *arguments: Any) -> Any:
        """Refuses: a recipe is checked without calling what it names."""
        raise PrefoptError(f"{self.name} is made when the run has loaded its models, and was called before")


def make(
    name: str,
    fields: Mapping[str, Any] = NOTHING,
    what: str = "object",
    *,
    known: Mapping[str, Any] = NOTHING,
    where: str = "",
    running: Mapping[str, Any] = NOTHING,
    folder: Path | None = None,
) -> Any:
    """The object that a recipe describes by a name and fields.

    A class is called with the fields, and with what its constructor asks for by the names of `running`. A function, or an
    object that is made already, is returned as it is; fields replace those of a dataclass.

    Args:
        name: a name in `known`, a path as `load_object` takes it, or a `Given`.
        fields: for the constructor; those of a dataclass are brought to their types.
        what: is made, for messages: "feedback".
        known: names that need no path.
        where: the key of the recipe, with which messages begin.
        running: things of the run, by parameter name: the accelerator, the policy. `LATER` stands for one that is not there yet.
        folder: where to look for a file first.

    Raises:
        PrefoptError: an unknown name or field (with the nearest known one), a missing field, a value that cannot be.
    """
    target = find(name, what, known=known, where=where, folder=folder)
    prefix = f"{where}: " if where else ""
    if isinstance(target, type):
        return _constructed(target, name, fields, prefix, running)
    if not fields:
        return target
    if not dataclasses.is_dataclass(target):
        kind = "a function" if inspect.isroutine(target) else f"made already, of class {type(target).__name__}"
        hint = "make it a dataclass with __call__" if inspect.isroutine(target) else "name its class instead"
        raise PrefoptError(f"{prefix}{name} is {kind}, which has no fields ({', '.join(fields)}); {hint}")
    instance: Any = target
    check_names(fields, [f.name for f in dataclasses.fields(target) if f.init], f"{prefix}{name}")
    return _checked(lambda: dataclasses.replace(instance, **fields), f"{prefix}{name}")


def find(
    name: str, what: str = "object", *, known: Mapping[str, Any] = NOTHING, where: str = "", folder: Path | None = None
) -> Any:
    """The class, function or object of that name; `make` says what a name can be.

    Raises:
        PrefoptError: there is none; names the nearest known one.
    """
    prefix = f"{where}: " if where else ""
    if ":" not in name:
        if name in known:
            return known[name]
        raise unknown_name(name, what, known, where)
    try:
        return load_object(name, folder)
    except PrefoptError as error:
        raise PrefoptError(f"{prefix}{error}") from error


def asks_for(thing: str, target: Any) -> bool:
    """Whether a class asks for something of the run: its constructor has a parameter of this name."""
    try:
        return isinstance(target, type) and thing in inspect.signature(target).parameters
    except ValueError:  # a class of C that does not say
        return False


def unknown_name(name: str, what: str, known: Collection[str], where: str = "") -> PrefoptError:
    """The error that a name is none of the known ones, nor a path; says the nearest one."""
    prefix = f"{where}: " if where else ""
    listed = f" Known: {', '.join(known)}." if known else ""
    return PrefoptError(
        f"{prefix}unknown {what} {name!r}.{nearest(name, known)}{listed} "
        "Your own is named `package.module:Name` or `file.py:Name`, or given as an object from Python."
    )


@contextmanager
def users_code(name: str) -> Iterator[None]:
    """Code of the user's is called within: whatever it raises becomes an error that names it, and its line.

    `sys.exit` is no exception: a run that it ended would have the exit status of one that is done. Ctrl-C goes through.

    Args:
        name: of the function, for the message.

    Raises:
        PrefoptError: as it is, or in the place of what was raised.
    """
    try:
        yield
    except (PrefoptError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise PrefoptError(f"{name} raised {type(error).__name__}: {error}{_at(error)}") from error


def _at(error: BaseException) -> str:
    """The last line of a file that is neither prefopt's nor of an installed package, in brackets; nothing where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(("<", *_INSTALLED))]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""


_INSTALLED = (
    str(Path(__file__).parents[1]),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)


def check_call(function: Any, arguments: Sequence[str], name: str) -> None:
    """Refuse a function that does not take as many arguments as it will be given, or that is `async def`.

    Args:
        function: anything that can be called.
        arguments: what it is called with, in words.
        name: what messages call it.

    Raises:
        PrefoptError: it cannot be called, or with other arguments.
    """
    if not callable(function):
        raise PrefoptError(f"{name} cannot be called: {_article(function)} is no function, and no class with __call__")
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        raise PrefoptError(
            f"{name} is `async def`, so a call of it gives a coroutine and no result: write a plain `def` that calls asyncio.run(…)"
        )
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function of C that does not say
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise PrefoptError(
            f"{name} is called with ({', '.join(arguments)}), and its parameters are {signature}"
        ) from None


def _article(value: Any) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def _constructed(cls: type, name: str, given: Mapping[str, Any], prefix: str, running: Mapping[str, Any]) -> Any:
    """An object of a class with these fields, and with what its constructor asks for of the run."""
    try:
        parameters = inspect.signature(cls).parameters
    except ValueError:  # a class of C that does not say
        return _checked(lambda: cls(**given), f"{prefix}{name}")
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not open_ended:
        check_names(given, [n for n in named if n not in running], f"{prefix}{name}")
    needed = [n for n, p in named.items() if p.default is p.empty and n not in given]
    if missing := [n for n in needed if n not in running]:
        raise PrefoptError(f"{prefix}{name} needs {' and '.join(map(repr, missing))}{_offered(running)}")
    if any(running[n] is LATER for n in needed):
        return NotYet(name)
    asked = {n: value for n, value in running.items() if n in named and n not in given and value is not LATER}
    return _checked(lambda: cls(**given, **asked), f"{prefix}{name}")


def _offered(running: Mapping[str, Any]) -> str:
    """What a constructor can ask for, where it asks for something else."""
    return f"; beside fields of the recipe, it can ask for {', '.join(running)}" if running else ""


def check_names(given: Mapping[str, Any], known: Sequence[str], name: str) -> None:
    """Refuse fields that a class does not have.

    Raises:
        UnknownFieldError: names the nearest one that it has.
    """
    for field in given:
        if field not in known:
            listed = ", ".join(known) or "none"
            raise UnknownFieldError(f"{name} has no field {field!r}.{nearest(field, known)} It has: {listed}.", field)


def _checked(construct: Callable[[], Any], name: str) -> Any:
    """What is constructed, its fields brought to their types where it is a dataclass."""
    try:
        record = construct()
    except (TypeError, ValueError) as error:
        raise PrefoptError(f"{name} cannot be made: {error}") from error
    except (PrefoptError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a constructor of the user's raises what it likes
        raise PrefoptError(f"{name} cannot be made: {type(error).__name__}: {error}{_at(error)}") from error
    return checked_fields(record, name) if dataclasses.is_dataclass(record) else record


def load_object(path: str, folder: Path | None = None) -> Any:
    """The object that `path` names.

    A module of the working directory is found, too, as `python` would.

    Args:
        path: `package.module:Name`, or `file.py:Name` relative to `folder` or to the working directory; or a `Given`.
        folder: where to look for the file first: the folder of the recipe that names it.

    Raises:
        PrefoptError: no such file, module or name, or the module fails to import.
    """
    if isinstance(path, Given):
        return path.object
    refuse_text_of_object(path)
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
            first = error.errors()[0]
            what = (
                first["msg"].replace("Input should", "must").partition(", unable to")[0].removeprefix("Value error, ")
            )
            what = what.replace("Unexpected keyword argument", "is not known")
            inner = [part for part in first["loc"][1:] if isinstance(part, str)]  # of a section within the field
            raise PrefoptError(f"{name}: field {'.'.join([field.name, *inner])!r} {what}, got {value!r}") from None
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


def file_of(place: str, folder: Path | None = None) -> Path:
    """The file of a plug-in, `file.py` of `file.py:Name`: looked for in the folder, then in the current one.

    Raises:
        PrefoptError: there is none; names the nearest one.
    """
    places = [base / Path(place).expanduser() for base in ([folder] if folder else []) + [Path.cwd()]]
    file = next((p.resolve() for p in places if p.is_file()), None)
    if file is None:
        known = [p.name for base in places if base.parent.is_dir() for p in base.parent.glob("*.py")]
        looked = ", ".join(dict.fromkeys(str(p.parent) for p in places))
        raise PrefoptError(f"no file {place}; looked in {looked}.{nearest(Path(place).name, known)}")
    return file


def refuse_missing(path: str, folder: Path | None = None) -> None:
    """Refuse `file.py:Name` where there is no such file, or its text gives nothing that name; nothing of it is run.

    Raises:
        PrefoptError: no file or name, with the nearest one; or the text is no Python.
    """
    place, _, name = path.rpartition(":")
    file = file_of(place, folder)
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise _import_error(str(file), file, error) from error
    given = list(_named_in(tree))
    if name and name not in given and not {"*", "globals", "__getattr__"} & set(given):
        public = [one for one in given if not one.startswith("_")]
        raise PrefoptError(f"{place} has no {name!r}.{nearest(name, public)}")


def _named_in(tree: ast.Module) -> Iterator[str]:
    """Whatever a text defines, assigns or imports, at any depth, and `globals` where that may define more."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.Name) and (isinstance(node.ctx, ast.Store) or node.id == "globals"):
            yield node.id


def _from_file(place: str, folder: Path | None) -> ModuleType:
    file = file_of(place, folder)
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
