"""Turns the settings of the service into command-line flags.

The flag `--max-batch-size 8` sets the environment variable SHOAL_MAX_BATCH_SIZE of this process to
8. Child processes inherit the variable. Secrets have no flags, because all users of a machine can
read the command lines of its processes.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import types
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from service.settings import PREFIX, Settings, default_of, one_line

METAVARS = {int: "N", float: "NUMBER", str: "TEXT", pathlib.Path: "PATH"}
"""Placeholder for a setting's value in `--help`, by the type of the setting."""
SECONDS = ("delay", "seconds", "timeout")
"""Ends of the names of settings in seconds. The placeholder for their values is SECONDS."""


def add(parser: argparse.ArgumentParser, names: Iterable[str] = Settings.model_fields) -> None:
    """Adds flags for settings to a parser. Parsed options contain only the flags that were given.

    Args:
        parser: Parser that the flags are added to.
        names: Names of settings. Default: all settings.
    """
    for name in names:
        field = Settings.model_fields[name]
        kind = _kind(field.annotation)
        if kind is SecretStr:
            continue
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field)}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        else:
            in_seconds = kind is float and name.endswith(SECONDS)
            options["metavar"] = "SECONDS" if in_seconds else METAVARS.get(kind, "VALUE")
            options["type"] = _checked(field)
        parser.add_argument(flag(name), **options)


def apply(options: argparse.Namespace) -> None:
    """Sets the environment variables of the settings that were given as flags."""
    for name in Settings.model_fields.keys() & vars(options).keys():
        os.environ[f"{PREFIX}{name.upper()}"] = str(getattr(options, name))


def flag(name: str) -> str:
    """Returns the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def _kind(annotation: Any) -> Any:
    """Returns the type of a setting without its limits and without None."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _kind(next(kind for kind in get_args(annotation) if kind is not types.NoneType))
    return annotation


def _checked(field: FieldInfo) -> Callable[[str], str]:
    """Returns a function that checks the text of a flag and returns the text unchanged."""

    def check(text: str) -> str:
        bounded: Any = Annotated[field.annotation, *field.metadata]
        try:
            TypeAdapter(bounded).validate_python(text)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(error.errors()[0]["msg"]) from None
        return text

    return check


def _help(field: FieldInfo) -> str:
    default = default_of(field)
    shown = f" (default: {default})" if default else ""
    return (one_line(field.description) + shown).replace("%", "%%")
