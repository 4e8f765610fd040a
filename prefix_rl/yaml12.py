"""YAML read as people mean it: version 1.2, no key twice, with the place of each fault.

Whatever the file holds, reading it ends soon: it is a regular file of at most :data:`MAX_BYTES`, of few levels, and
aliases cannot make much of little (:class:`_Loader`).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import yaml

from .errors import RecipeError, printable

MAX_BYTES = 256 * 1024
"""Size of the largest recipe that is read. Those that people write have a few thousand bytes."""
_LEVELS, _NODES = 30, 20_000  # of one document, what aliases stand for included
_IN_AN_OVERRIDE = 10  # levels of a name with dots


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, in which 1e-6 is a number and ``off`` a word, and in which no key stands twice.

    Nodes are counted while they are composed: an alias counts as often as all that it stands for.
    """

    # emptied: PyYAML's own are those of version 1.1, where ``off`` is false and 1e-6 a text
    yaml_implicit_resolvers: ClassVar[dict] = {}
    # emptied: no tag but those of the core schema; an unknown one is refused
    yaml_constructors: ClassVar[dict] = {None: yaml.constructor.SafeConstructor.construct_undefined}

    def __init__(self, stream):
        super().__init__(stream)
        self._open: list[str | None] = []  # anchors of the nodes that are being composed
        self._sizes: dict[int, int] = {}  # nodes inside of each node, itself included
        self._count = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        alias = isinstance(event, yaml.AliasEvent)
        if alias and event.anchor in self._open:
            raise _fault(f"the alias *{event.anchor} stands inside of what it names", event)
        if len(self._open) >= _LEVELS:
            raise _fault(f"it is nested in more than {_LEVELS} levels", event)
        before = self._count
        self._open.append(None if alias else event.anchor)
        node = super().compose_node(parent, index)
        self._open.pop()
        self._count += self._sizes[id(node)] if alias else 1
        if self._count > _NODES:
            raise _fault(f"it holds more than {_NODES:,} values{', counting what aliases stand for' * alias}", event)
        if not alias:
            self._sizes[id(node)] = self._count - before
        return node

    def construct_mapping(self, node, deep=False):
        keys = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise _fault(f"a {'list' if isinstance(key, list) else 'mapping'} is no key", key_node)
            # PyYAML would take the last one without a word
            if key in keys and key_node.tag != _MERGE:
                raise _fault(f"the key {key!r} stands twice", key_node)
            keys.add(key)
        return super().construct_mapping(node, deep=deep)


def _fault(what: str, at) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, what, at.start_mark)


_CORE = {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "null": r"~|null|Null|NULL|",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "merge": "<<",
}
_STARTS = {"bool": "tTfF", "null": ["~", "n", "N", ""], "int": "-+0123456789", "float": "-+0123456789.", "merge": "<"}
_MERGE = "tag:yaml.org,2002:merge"


def _integer(text: str) -> int:
    if len(text) > 40:  # far beyond 64 bits; Python reads no more than 4,300 digits
        raise ValueError("an integer of so many digits")
    # PyYAML's own reads 010 as octal, as version 1.1 has it
    return int(text, 0 if text.startswith(("0o", "0x")) else 10)


_OF_TEXT = {
    "bool": lambda text: text.lower() == "true",
    "null": lambda text: None,
    "int": _integer,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "merge": str,
    "str": str,
}


def _scalar(tag: str):
    def construct(loader, node):
        text = loader.construct_scalar(node)
        if tag in _CORE and not re.fullmatch(_CORE[tag], text):
            raise _fault(f"{text[:40]!r} is no {tag}", node)
        try:
            return _OF_TEXT[tag](text)
        except (ValueError, OverflowError) as error:
            raise _fault(f"{text[:40]}... is {error}", node) from None

    return construct


for _tag in _OF_TEXT:
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _scalar(_tag))
for _tag in ("seq", "map"):
    _Loader.add_constructor(
        f"tag:yaml.org,2002:{_tag}", getattr(yaml.constructor.SafeConstructor, f"construct_yaml_{_tag}")
    )
for _tag, _pattern in _CORE.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), [*_STARTS[_tag]])


def load(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        yaml.YAMLError: if it is none, or beyond the limits.
    """
    if len(text) > MAX_BYTES:
        raise yaml.YAMLError(f"it has {len(text):,} characters; at most {MAX_BYTES:,} are read")
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, OverflowError) as error:  # "\U00110000", which is no character
        raise yaml.YAMLError(str(error)) from error


def text_of(path: str | os.PathLike, what: str, limit: int = MAX_BYTES) -> str:
    """The text of a regular file in UTF-8. Nothing else is opened: a pipe or a device might never end.

    Files of /proc are regular and say that they are empty; some of them wait for more, or have no end.

    Args:
        what: what it should be, for the messages: "the recipe".
        limit: most bytes that are read.

    Raises:
        RecipeError: if it cannot be read, is no regular file, is too large, or no UTF-8.
    """
    name = printable(os.fsdecode(path))
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
            raise RecipeError(f"cannot read {what} {name}: it is {kind}, not a file")
        with open(path, "rb", opener=lambda at, flags: os.open(at, flags | os.O_NONBLOCK)) as file:
            raw = file.read(limit + 1)
        if raw is None or len(raw) > limit:
            size = f"has {max(found.st_size, len(raw)):,} bytes" if raw else "would have to be waited for"
            raise RecipeError(f"cannot read {what} {name}: it {size}; at most {limit:,} are read")
        return raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:  # UnicodeDecodeError, or a path with NUL
        raise RecipeError(f"cannot read {what} {name}: {error}") from error


def read(path: str | os.PathLike, blocks: Collection[str]) -> dict:
    """The mapping in a YAML file. ``blocks`` are the keys that it may have, for the messages.

    Raises:
        RecipeError: if there is no such file, it is no UTF-8, no YAML, empty, too large, or other than a mapping.
    """
    text = text_of(path, "the recipe")
    try:
        content = load(text)
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
        node = yaml.compose(text_of(path, "the recipe"), Loader=_Loader)
    except (RecipeError, yaml.YAMLError):
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
            faults.append(
                f"{_cut(override)!r}: an override is block.key=value, for example training.learning_rate=1e-6"
            )
            continue
        if len(within) > _IN_AN_OVERRIDE:
            faults.append(f"{_cut(override)!r}: no key of a recipe stands so deep")
            continue
        try:
            value = load(text)
        except yaml.YAMLError as error:
            faults.append(f"{_cut(override)!r}: the value is not YAML ({_first_line(error)})")
            continue
        target = recipe
        for block in within:
            if not isinstance(target.get(block), dict):
                target[block] = {}
            target = target[block]
        target[key] = value
    return faults


def _cut(override: str) -> str:
    return override if len(override) <= 100 else override[:97] + "..."


def _first_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or error}{place}"
