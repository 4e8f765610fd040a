"""Command-line options made of a dataclass, so that a setting is declared once: name, type, default and what it says.

The same declaration is what recipes are checked against (:mod:`~prefix_rl.fields`) and what the tables of
``docs/settings.md`` are made of (:mod:`~prefix_rl.reference`).
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Annotated, Any, Literal

import typer

from .fields import REQUIRED, Field, core_of, fields_of, said


def options(
    cls: type,
    *,
    omit: Collection[str] = (),
    names: Mapping[str, str] | None = None,
    commas: Collection[str] = (),
    defaults: bool = True,
    into: str | None = None,
) -> Callable[[Callable], Callable]:
    """A decorator that puts an option for each field of a dataclass in the place of a command's keyword arguments.

    The command gets the values of those options that stand on the command line, by the names of the fields; which
    value holds where an option is absent is up to what it calls. Bounds and choices are not checked here but where the
    settings are, with all that is wrong at once.

    Args:
        cls: the dataclass; the docstring of a field is the help of its option.
        omit: fields without an option.
        names: how the option of a field is called where it is not the field's name.
        commas: lists written as one value with commas; other lists are written by repeating the option.
        into: the command gets the values as a dictionary under this name; None: each under its own. So a command can
            have the options of several dataclasses.
        defaults: whether the help shows the defaults; not where something else than the class decides them.
    """
    fields = {name: field for name, field in fields_of(cls, docs=True).items() if name not in omit}

    def decorate(command: Callable) -> Callable:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        made = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=_option(field, (names or {}).get(name, name), name in commas),
                default=_default(field) if defaults else None,
            )
            for name, field in fields.items()
        ]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        inner = next((p for p in own if p.name == "context"), None)  # the command has options of another class already
        own = [p for p in own if p is not inner and p.name != into]

        @wraps(command)
        def with_options(context: typer.Context, **values: Any) -> Any:
            chosen: dict[str, Any] = {}
            for name, field in fields.items():
                source = context.get_parameter_source(name)
                if source is not None and source.name == "COMMANDLINE":
                    text = (names or {}).get(name, name)
                    chosen[name] = _split(field, text, values[name]) if name in commas else values[name]
            given = {name: value for name, value in values.items() if name not in fields}
            given |= {into: chosen} if into else chosen
            return command(context=context, **given) if inner else command(**given)

        every = [*(p.replace(kind=p.KEYWORD_ONLY) for p in own), context, *made]
        with_options.__signature__ = inspect.Signature(every)
        with_options.__annotations__ = {p.name: p.annotation for p in every}
        return with_options

    return decorate


def option_name(name: str) -> str:
    """Name of a field's option on the command line: ``--max-completion-length``."""
    return f"--{name.replace('_', '-')}"


def _option(field: Field, name: str, commas: bool) -> Any:
    """The annotation from which typer makes the option."""
    kind, text, metavar = core_of(field.type), said(field.doc), None
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if commas:
        kind, metavar = str, f"{'TEXT' if args[0] is str else 'NUMBER'},..."
    elif origin is dict:
        kind, metavar, text = list[str], "OURS=THEIRS", f"{text} May be repeated."
    elif origin is tuple and args[-1] is Ellipsis:
        kind, text = list[args[0]], f"{text} May be repeated."
    elif origin is tuple:
        kind, metavar = tuple[tuple(core_of(a) for a in args)], "LOW HIGH"
    elif origin is Literal:
        kind, metavar = str, "|".join(map(str, args))
    flags = [f"{option_name(name)}/--no-{name.replace('_', '-')}"] if kind is bool else [option_name(name)]
    return Annotated[kind | None, typer.Option(*flags, help=text, metavar=metavar)]


def _default(field: Field) -> Any:
    return None if field.default is REQUIRED or field.default in ((), {}) else field.default


def _split(field: Field, name: str, text: str) -> list:
    """The values of a list that was written with commas."""
    (element, *_) = typing.get_args(core_of(field.type))
    element, parts = core_of(element), [part.strip() for part in text.split(",")]
    if element is str:
        return [part for part in parts if part]
    try:
        values = [element(part) for part in parts]
    except ValueError:
        values = []
    if element is int and not (values and all(part.isdecimal() for part in parts) and all(values)):
        raise typer.BadParameter(f"--{name} {text}: give whole numbers above 0 with commas between them, as 4,16")
    if not values:
        raise typer.BadParameter(f"{option_name(name)} {text}: give numbers with commas between them, as 0.25,0.5")
    return values
