"""Checking what a person wrote against typed fields: every fault at once, each with what is allowed."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import importlib.util
import inspect
import itertools
import json
import math
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le, Lt

from .errors import nearest, printable

if TYPE_CHECKING:
    from pydantic import TypeAdapter

REQUIRED = dataclasses.MISSING


@dataclass(frozen=True)
class Field:
    """One key that a block of a recipe may hold."""

    type: Any
    default: Any = REQUIRED
    doc: str = ""
    """The docstring of the field in the source, if it was asked for."""


def fields_of(cls: type, docs: bool = False) -> dict[str, Field]:
    """The fields of a dataclass, by name; with ``docs`` also what the texts below them in the source say."""
    hints = typing.get_type_hints(cls, include_extras=True)
    texts = _docs(cls) if docs else {}
    return {
        f.name: Field(
            hints[f.name],
            f.default if f.default_factory is dataclasses.MISSING else f.default_factory(),
            texts.get(f.name, ""),
        )
        for f in dataclasses.fields(cls)
    }


@cache
def _docs(cls: type) -> dict[str, str]:
    """The text below each attribute of a class and its bases, or under ``Attributes:`` of its docstring."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        body = tree.body[0].body
        listed = (ast.get_docstring(tree.body[0]) or "").partition("Attributes:\n")[2]
        items = re.finditer(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE)
        found |= {item[1]: " ".join(item[2].split()) for item in items}
        for attribute, below in itertools.pairwise(body):
            if isinstance(attribute, ast.AnnAssign) and isinstance(below, ast.Expr):
                found[attribute.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


def said(doc: str) -> str:
    """A docstring as a person reads it on a terminal: without the marks of code.

    >>> said("As ``data.seed``, see :mod:`prefix_rl.cuts` and :class:`~prefix_rl.methods.base.Method`.")
    'As data.seed, see prefix_rl.cuts and Method.'
    """
    names = re.sub(r":\w+:`(~?)([^`]+)`", lambda m: m[2].rpartition(".")[2] if m[1] else m[2], doc)
    return names.replace("``", "")


def core_of(kind: Any) -> Any:
    """A type without its bounds, and without null.

    >>> core_of(Annotated[int, Ge(1)] | None)
    <class 'int'>
    """
    if typing.get_origin(kind) is Annotated:
        return core_of(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return core_of(next(a for a in typing.get_args(kind) if a is not type(None)))
    return kind


def check(
    where: str, given: object, fields: Mapping[str, Field], hints: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of the block ``given``, with their types checked, and every fault of it.

    Args:
        where: the name of the block, for the messages.
        given: what the recipe holds for it; null is an empty block.
        fields: the keys that it may hold.
        hints: what to say of keys that people write and that do not exist.

    Returns:
        The values, with the default wherever a value is absent or wrong; and the faults by the full name
        of the key. A key that is required and missing or wrong has no value.
    """
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        return {}, {where: f"must be a block of keys and values, given {shown(given)}"}
    values = {key: field.default for key, field in fields.items() if field.default is not REQUIRED}
    faults = {}
    for key in sorted(given.keys() - fields.keys(), key=str):
        listing = f"; there are {', '.join(fields) or 'none'}" if len(fields) <= 20 else ""
        faults[f"{where}.{key if len(str(key)) <= 60 else str(key)[:57] + '...'}"] = (hints or {}).get(
            key
        ) or f"no such key{nearest(key, fields)}{listing}"
    for key, field in fields.items():
        name = f"{where}.{key}"
        if key not in given:
            if field.default is REQUIRED:
                faults[name] = f"is missing: give {describe(field.type)}"
            continue
        if wrong := unfit(given[key]):
            faults[name] = f"= {shown(given[key])}: {wrong}"
            continue
        nested = dataclass_in(field.type)
        if nested and given[key] is not None:
            inner, of_block = check(name, given[key], fields_of(nested))
            faults |= of_block
            if _complete(inner, nested):
                values[key] = nested(**inner)
            continue
        element = listed_in(field.type)
        if element and isinstance(given[key], list):
            made, of_list = _check_list(name, given[key], element)
            faults |= of_list
            if made:
                values[key] = made
            continue
        try:
            value = _as(field.type, given[key])
            values[key] = given[key] if value == given[key] else value  # 100 stays 100 where a float is allowed too
        except (TypeError, ValueError, RecursionError):  # pydantic's ValidationError is a ValueError
            faults[name] = f"= {shown(given[key])}: must be {describe(field.type)}"
    return values, faults


def _complete(values: Mapping[str, Any], cls: type) -> bool:
    """True if there is a value for each key that is required."""
    return all(field.default is not REQUIRED or key in values for key, field in fields_of(cls).items())


_DEEPEST, _LARGEST = 20, 3.4e38


def unfit(value: object, depth: int = 0) -> str | None:
    """Why no setting can have a value, whatever its type; None if one can. Values within it count.

    >>> unfit({"a": [1.0, float("nan")]})
    'NaN is no value of a setting'
    >>> unfit("half of \\ud83d"), unfit(2**64)
    ('broken Unicode (half of a surrogate pair)', 'beyond the integers of 64 bits')
    """
    if depth > _DEEPEST:
        return f"nested in more than {_DEEPEST} levels"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{'NaN' if math.isnan(value) else 'infinity'} is no value of a setting"
    if isinstance(value, float) and abs(value) > _LARGEST:
        return "beyond the numbers of float32"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "beyond the integers of 64 bits"
    if isinstance(value, str):
        broken = any("\ud800" <= c <= "\udfff" for c in value)
        return (
            "broken Unicode (half of a surrogate pair)"
            if broken
            else "holds the character NUL" * ("\0" in value) or None
        )
    if isinstance(value, Mapping):
        keys = next((f"the key {key!r} is no text" for key in value if not isinstance(key, str)), None)
        return keys or _first_unfit((*value, *value.values()), depth)
    return _first_unfit(value, depth) if isinstance(value, list | tuple) else None


def _first_unfit(values: Iterable[object], depth: int) -> str | None:
    return next((wrong for value in values if (wrong := unfit(value, depth + 1))), None)


def _check_list(name: str, given: list, cls: type) -> tuple[tuple, dict[str, str]]:
    """The blocks of a list, those that can be made, and the faults. A value alone is the block's first key."""
    fields, made, faults = fields_of(cls), [], {}
    if not given:
        faults[name] = "is an empty list"
    for number, one in enumerate(given, start=1):
        one = {next(iter(fields)): one} if isinstance(one, str) else one
        values, of_block = check(f"{name}[{number}]", one, fields)
        faults |= of_block
        if _complete(values, cls):
            made.append(cls(**values))
    return tuple(made), faults


def describe(kind: Any) -> str:
    """Values that a field takes, in words.

    >>> describe(Annotated[float, Interval(ge=0, le=1)] | None)
    'a number in [0, 1], or null'
    >>> describe(Literal["pooled", "unprefixed"])
    'one of pooled, unprefixed'
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return describe(args[0]) + "".join(_bound(m) for m in args[1:])
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (types.UnionType, typing.Union):
        return ", or ".join(dict.fromkeys(describe(a) for a in sorted(args, key=lambda a: a is type(None))))
    if origin in (list, tuple):
        return f"a list, each {describe(args[0])}"
    if dataclasses.is_dataclass(kind):
        return "a block"
    words = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "a text",
        dict: "a block",
        list: "a list",
        datetime.date: "a date",
    }
    return words.get(origin or kind, "null" if kind is type(None) else "a value that TRL takes")


def _bound(m: object) -> str:
    if isinstance(m, Interval):
        return f" in {f'({m.gt}' if m.ge is None else f'[{m.ge}'}, {m.le}]"
    if isinstance(m, Le):
        return f" and at most {m.le}"
    if isinstance(m, Lt):
        return f" and below {m.lt}"
    return f" of at least {m.ge}" if isinstance(m, Ge) else f" above {m.gt}" if isinstance(m, Gt) else ""


def dataclass_in(kind: Any) -> type | None:
    """The dataclass that a field holds, if it is a block of its own."""
    return next(
        (k for k in (kind, *typing.get_args(kind)) if isinstance(k, type) and dataclasses.is_dataclass(k)), None
    )


def listed_in(kind: Any) -> type | None:
    """The dataclass of which a field holds a list, if it may hold one."""
    lists = (k for k in (kind, *typing.get_args(kind)) if typing.get_origin(k) is tuple)
    return next((k for one in lists for k in typing.get_args(one) if dataclasses.is_dataclass(k)), None)


def shown(value: object) -> str:
    """A value as a message has it: short, and whatever it is, what a terminal can print."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a value within itself
        text = f"a {type(value).__name__}"
    text = printable(text)
    return text if len(text) <= 60 else text[:57] + "..."


def fits(value: object, kind: Any) -> bool:
    """True if a value that JSON can hold is of a type.

    >>> fits(3, float), fits(True, int), fits({"a": [1]}, dict[str, list[int]]), fits(None, int | None)
    (True, False, True, True)
    """
    if isinstance(kind, Mapping):
        return False  # a block of its own
    try:
        _as(kind, value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _as(kind: Any, value: object) -> Any:
    """The value as the type has it; pydantic's ValidationError is a ValueError."""
    return _adapter(kind).validate_json(json.dumps(value), strict=True)


@cache
def _adapter(kind: Any) -> TypeAdapter:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


# --- the fields of a class that is too heavy to import ----------------------------------------------------------------


@cache
def fields_from_source(module: str, cls: str) -> dict[str, Field]:
    """The fields of a dataclass, read from its source and its bases' sources without importing them.

    Importing TRL takes seconds; a misspelt key should not. A default that is no literal counts as None.
    """
    tree = ast.parse(_source(module).read_text(encoding="utf-8"))
    definition = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls)
    found: dict[str, Field] = {}
    for base in definition.bases:
        if isinstance(base, ast.Name) and (home := _home(tree, module, base.id)):
            found |= fields_from_source(home, base.id)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            settable, default = _default(node.value)
            if settable and not node.target.id.startswith("_"):
                found[node.target.id] = Field(_type(ast.unparse(node.annotation)), default, _help(node.value))
    return found


def _source(module: str) -> Path:
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)  # of the package alone: a finder of submodules would import it
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed", name=package)
    return Path(spec.origin).parent.joinpath(*rest).with_suffix(".py")


def _home(tree: ast.Module, module: str, name: str) -> str | None:
    """The module that ``name`` is imported from."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            if node.level:
                return ".".join([*module.split(".")[: -node.level], node.module])
            # `from transformers import TrainingArguments` names the package; its module is named after the class
            return {"TrainingArguments": "transformers.training_args"}.get(name, node.module)
    return None


def _default(value: ast.expr | None) -> tuple[bool, object]:
    """True if the field can be set, and its default."""
    if isinstance(value, ast.Call):
        keywords = {k.arg: k.value for k in value.keywords}
        if "init" in keywords and ast.unparse(keywords["init"]) == "False":
            return False, None
        value = keywords.get("default")
    try:
        return True, None if value is None else ast.literal_eval(value)
    except ValueError:
        return True, None


def _help(value: ast.expr | None) -> str:
    """The help text in the metadata of a field, empty if there is none."""
    keywords = {k.arg: k.value for k in value.keywords} if isinstance(value, ast.Call) else {}
    try:
        return " ".join(ast.literal_eval(keywords["metadata"])["help"].split())
    except (KeyError, ValueError):
        return ""


class _AnyName(dict):
    def __missing__(self, name: str) -> object:
        return Any


def _type(annotation: str) -> object:
    """The type that an annotation names; names that only the heavy module knows stand for anything."""
    scope = _AnyName(
        int=int, float=float, str=str, bool=bool, dict=dict, list=list, tuple=tuple, Union=typing.Union,
        Optional=typing.Optional, Literal=Literal, Any=Any,
    )  # fmt: skip
    return eval(annotation, {"__builtins__": {}}, scope)
