"""YAML read as people mean it: version 1.2, no key twice, with the place of each fault."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar

import yaml

from .errors import RecipeError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, in which 1e-6 is a number and ``off`` a word, and in which no key stands twice."""

    # emptied: PyYAML's own are those of version 1.1, where ``off`` is false and 1e-6 a text
    yaml_implicit_resolvers: ClassVar[dict] = {}

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key_node, _), key in zip(node.value, keys, strict=True):
            # PyYAML would take the last one without a word
            if keys.count(key) > 1 and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


for _tag, _pattern, _starts in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
     "-+0123456789."),
    ("merge", "<<", "<"),
):  # fmt: skip
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), [c if c != "\0" else "" for c in _starts]
    )
# PyYAML's own reads 010 as octal, as version 1.1 has it
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(node.value, 0 if node.value.startswith(("0o", "0x")) else 10)
)


def read(path: str | os.PathLike, blocks: Collection[str]) -> dict:
    """The mapping in a YAML file. ``blocks`` are the keys that it may have, for the messages.

    Raises:
        RecipeError: if there is no such file, it is no UTF-8, no YAML, empty, or something other than a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {os.fspath(path)}: {error}") from error
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        tab = next((n for n, line in enumerate(text.splitlines(), 1) if re.match(r" *\t", line)), None)
        hint = f"\n  Line {tab} is indented with a tab; YAML wants blanks." if tab else ""
        raise RecipeError(f"{os.fspath(path)} is not YAML: {_first_line(error)}{hint}") from error
    if content is None:
        raise RecipeError(f"{os.fspath(path)} is empty; a recipe has the blocks {', '.join(blocks)}")
    if not isinstance(content, dict):
        raise RecipeError(
            f"{os.fspath(path)} holds a {type(content).__name__}; a recipe is a mapping with the blocks "
            f"{', '.join(blocks)}"
        )
    return content


def line_of(path: str | os.PathLike, keys: Sequence[str | int]) -> int | None:
    """The line in which a value of a file begins; ``keys`` lead to it. None if there is no such value, or no file.

    Args:
        path: a file that :func:`read` has read.
        keys: keys of mappings, and numbers of the items of lists.
    """
    try:
        node = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    mark = None
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = next(((k.start_mark, v) for k, v in node.value if k.value == key), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            found = (node.value[key].start_mark, node.value[key])
        else:
            found = None
        if found is None:
            return None
        mark, node = found
    return mark.line + 1 if mark else None


def apply(overrides: Sequence[str], recipe: dict, blocks: Collection[str]) -> list[str]:
    """Sets each ``block.key=value`` in the recipe, in place; the faults of those that are not of this form."""
    faults = []
    for override in overrides:
        path, equals, text = override.partition("=")
        *within, key = path.strip().removeprefix("--").split(".")
        if not equals or not (within or key in blocks):
            faults.append(f"{override!r}: an override is block.key=value, for example training.learning_rate=1e-6")
            continue
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            faults.append(f"{override!r}: the value is not YAML ({_first_line(error)})")
            continue
        target = recipe
        for block in within:
            if not isinstance(target.get(block), dict):
                target[block] = {}
            target = target[block]
        target[key] = value
    return faults


def _first_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or error}{place}"
