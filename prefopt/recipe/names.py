"""Fields of a recipe that name something, and take the thing itself from Python."""

import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from prefopt.support.given import Given, as_rows

PLAIN = str | int | float | bool | list | tuple | dict | BaseModel | None
"""What a recipe file can hold, or a part of a recipe: everything else is an object."""


LONGEST_NAME = 200
"""Bytes of a name of which folders and files are named: they add to it, and file systems take 255."""


def file_name(name: str) -> str:
    """The name, if a file whose name begins with it can be made everywhere.

    Raises:
        ValueError: it is blank or too long, or has characters that names of files should not have.
    """
    if not name.strip():
        raise ValueError("a blank cannot name a folder: write letters, digits, - and _")
    if "/" in name or "\\" in name:
        raise ValueError(f"{name!r} cannot name a folder: leave out slashes")
    if not name.isprintable():
        raise ValueError(f"{name!r} cannot name a folder: leave out line breaks and characters that cannot be seen")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} cannot name a folder: it cannot be written in UTF-8") from None
    if size > LONGEST_NAME:
        short = f"{name[:60]!r}…"
        raise ValueError(f"{short} cannot name a folder: it has {size} bytes, and there is room for {LONGEST_NAME}")
    return name


def folder_name(name: str) -> str:
    """The name, if a folder can be called just that.

    Raises:
        ValueError: `file_name` refuses it, or it begins with a dot: `..` is another folder, and `.x` is not shown.
    """
    if name.startswith("."):
        raise ValueError(f"{name!r} cannot name a folder: leave out the dot that it begins with")
    return file_name(name)


FileName = typing.Annotated[str, AfterValidator(file_name)]
"""What a run or a labelling is called; its folder's name begins so."""

FolderName = typing.Annotated[str, AfterValidator(folder_name)]
"""What a study is called, and its folder."""


def given(value: Any) -> Any:
    """An object as a recipe holds it; what a file could hold is left as it is."""
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, PLAIN) else Given(value)


def _named(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Pydantic would make a plain string of a `Given`."""
    value = given(value)
    if value == "":
        raise ValueError("is empty and names nothing: write a name, a file or a folder, or leave the key out")
    return value if isinstance(value, Given) else check(value)


Named = typing.Annotated[str, WrapValidator(_named)]
"""A name or a path, or an object."""


def listed(value: Any) -> Any:
    """One name or object as a list of one; rows, of whatever kind, are one object."""
    if as_rows(value) is not None:
        return [Given(value)]
    value = given(value)
    return [value] if isinstance(value, str) else value


Names = typing.Annotated[tuple[Named, ...], BeforeValidator(listed)]
"""One name or several."""


def _any(names: tuple[Any, ...]) -> tuple[Any, ...]:
    if not names:
        raise ValueError("is an empty list: name at least one")
    return names


SomeNames = typing.Annotated[Names, AfterValidator(_any)]
"""One name or several, where none is no answer."""


def named_section(value: Any) -> Any:
    """`DPO` written out as `{name: DPO}`, and an object likewise."""
    value = given(value)
    return {"name": value} if isinstance(value, str) else value


def named_sections(value: Any) -> Any:
    """A list of named sections, of which each may be just its name, and one may stand alone."""
    value = value if isinstance(value, list | tuple) else [value]
    return [named_section(term) for term in value]


class WithFields(BaseModel):
    """A section whose further keys are fields of what it names."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, content: Any) -> Any:
        return _throughout(given, dict(content)) if isinstance(content, Mapping) else content

    @property
    def fields(self) -> dict[str, Any]:
        """What is given to the constructor of what the section names."""
        fields: dict[str, Any] = _throughout(_object, self.__pydantic_extra__ or {})
        return fields


def _object(value: Any) -> Any:
    return value.object if isinstance(value, Given) else value


def _throughout(change: Callable[[Any], Any], value: Any) -> Any:
    """A value with whatever its dicts, lists and tuples hold changed, and they themselves left as they are."""
    if isinstance(value, dict):
        return {key: _throughout(change, item) for key, item in value.items()}
    return type(value)(_throughout(change, item) for item in value) if type(value) in (list, tuple) else change(value)


class Callback(WithFields):
    """Something called after every step; keys other than its name are its fields."""

    name: Named = Field(description="your function or class, `package.module:name` or `file.py:name`")
