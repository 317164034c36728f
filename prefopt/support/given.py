"""Python objects where a recipe has a name: what stands in recipe.yaml for them, and a hash that tells one from another."""

import hashlib
import inspect
import json
import marshal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from prefopt.support.errors import PrefoptError

MARK = "<python object: "
"""How the text of every object begins."""


class Given(str):
    """The text that stands for an object in a recipe, with the object itself.

    A string, so that whatever shows, compares or writes names does the same with it:
    `<python object: module.Words, 1a2b3c4d5e6f>`. The hash is of the source of classes and functions, of the values of rows and
    fields, and of the weights of models. Two objects with one text are taken to be the same; a resumed run is compared by it.

    Attributes:
        object: what was given.
        digest: the hash.
    """

    object: Any
    digest: str

    def __new__(cls, given: Any) -> Self:
        """The text for an object; one that is such a text already keeps its object."""
        if isinstance(given, cls):
            return given
        digest = _digest(given)
        text = super().__new__(cls, f"{MARK}{_title(given)}, {digest}>")
        text.object, text.digest = given, digest
        return text

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # a recipe that is copied means the same object

    def __reduce__(self) -> tuple[Any, ...]:
        return Given, (self.object,)


def refuse_text_of_object(name: str, where: str = "") -> None:
    """A recipe that was read from a file cannot bring back an object: only the text for it is there.

    Raises:
        PrefoptError: the name is such a text; says how to go on.
    """
    if name.startswith(MARK) and not isinstance(name, Given):
        raise PrefoptError(
            f"{where + ': ' if where else ''}this was {name}, which a recipe file cannot hold. Pass the object again, from Python: "
            "prefopt.run(recipe, …, folder=…, resume=True)"
        )


def as_rows(value: Any) -> Sequence[Mapping[str, Any]] | None:
    """The rows of a list of dicts, a `pandas.DataFrame` (its NaN as None) or a `datasets.Dataset`; None for anything else."""
    if _is(value, "pandas", "DataFrame"):
        return value.astype(object).where(value.notna(), None).to_dict("records")
    if _is(value, "datasets", "Dataset"):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(row, Mapping) for row in value):
        return value
    return None


def _is(value: Any, module: str, name: str) -> bool:
    """Whether it is of a class of a library, which need not be imported to tell."""
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))


def _title(given: Any) -> str:
    """What a person would call it."""
    if (rows := as_rows(given)) is not None:
        return f"{len(rows)} rows of a {type(given).__name__}"
    named = given if isinstance(given, type) or inspect.isroutine(given) else type(given)
    return f"{named.__module__}.{named.__qualname__}"


def _digest(given: Any) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for part in _parts(given):
        digest.update(part.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _parts(given: Any) -> Iterator[str]:
    """The texts that make an object what it is."""
    if (rows := as_rows(given)) is not None:
        for row in rows:
            yield json.dumps(row, sort_keys=True, default=repr)
    elif _is(given, "torch.nn", "Module"):
        from prefopt.support.fingerprints import fingerprint_weights

        yield fingerprint_weights(given)
    elif _is(given, "transformers", "PreTrainedTokenizerBase"):
        yield repr((sorted(given.get_vocab().items()), given.chat_template))
    elif isinstance(given, type) or inspect.isroutine(given):
        yield _source(given)
    else:
        yield f"an object of {_source(type(given))}"
        for name, value in getattr(given, "__dict__", {}).items():  # objects of classes with slots have none
            yield f"{name}={_value(value)}"


def _value(value: Any) -> str:
    """A field's value; an object by its class, for its address would differ from process to process."""
    plain = isinstance(value, str | int | float | bool | list | tuple | dict | set | frozenset | None)
    return repr(value) if plain else type(value).__qualname__


def _source(code: Any) -> str:
    """The text of a class or function, or its bytecode where the text is nowhere, as in an interactive session."""
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        functions = vars(code).values() if isinstance(code, type) else [code]
        return "".join(marshal.dumps(f.__code__).hex() for f in functions if inspect.isfunction(f)) or repr(code)
