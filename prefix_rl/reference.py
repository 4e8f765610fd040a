"""Every setting in tables (``docs/settings.md``) and as a JSON Schema, made of the declarations that are checked.

``python -m prefix_rl.reference > docs/settings.md`` writes the page; ``prefix-rl schema`` prints the schema.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typer.main import get_command

from . import methods
from .fields import REQUIRED, Field, dataclass_in, describe, fields_of, said
from .methods.combined import Combined
from .recipe import BLOCKS, training_fields

OPTIONS_OF = ("prepare", "evaluate", "collect", "grade")
"""The commands that have more than a few options."""


# --- the page ---------------------------------------------------------------------------------------------------------


def page() -> str:
    """``docs/settings.md``: the blocks of a recipe, and the options of the commands that have many."""
    parts = [
        "# Settings",
        "The page is made of the declarations in the code: `python -m prefix_rl.reference > docs/settings.md`.",
        "## A recipe's blocks",
        "`training` holds the fields of TRL's `GRPOConfig` by their own names, and `kl_on`: where the KL of "
        "`beta` falls, on tokens that move (`moving`, the default) or `all` of a completion; each `method`'s are on "
        "its page in [methods/](methods/). `prefix-rl schema > recipe.schema.json` writes all of them, with types, "
        "bounds and defaults, for an editor that completes YAML.",
    ]
    for block, cls in BLOCKS.items():
        if cls:
            parts += [f"### `{block}`", *_tables(fields_of(cls, docs=True))]
    parts += ["## Options of the commands", "`prefix-rl COMMAND --help` says the same."]
    for name in OPTIONS_OF:
        parts += [f"### `prefix-rl {name}`", _options(name)]
    return "\n\n".join(parts) + "\n"


def _tables(fields: Mapping[str, Field], at: str = "") -> list[str]:
    """The table of a block, and behind it those of the blocks inside."""
    rows = [(f"`{at}{name}`", describe(f.type), _shown(f.default), f.doc) for name, f in fields.items()]
    inner = [(name, cls) for name, f in fields.items() if (cls := dataclass_in(f.type))]
    return [_table(("key", "takes", "default", ""), rows)] + [
        table for name, cls in inner for table in _tables(fields_of(cls, docs=True), f"{at}{name}.")
    ]


def _options(command: str) -> str:
    from .cli import app

    rows = []
    for option in get_command(app).commands[command].params:
        if option.param_type_name == "option" and option.name != "help":
            default = REQUIRED if option.required else option.default
            rows.append((f"`{option.opts[0]}`", _shown(default), (option.help or "").replace("\n", " ")))
    return _table(("option", "default", ""), rows)


def _shown(default: Any) -> str:
    if default is REQUIRED:
        return "required"
    if default is None or default in ((), {}, ""):
        return ""
    return f"`{default if isinstance(default, str | Path) else json.dumps(default)}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(said(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


# --- the schema -------------------------------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """A JSON Schema (2020-12) of recipes, by which an editor completes and checks them while they are written."""
    blocks = {name: _block(fields_of(cls, docs=True)) for name, cls in BLOCKS.items() if cls}
    blocks["method"] = {"oneOf": [_method(name) for name in methods.names()]}
    blocks["training"] = _block(training_fields(), with_defaults=False)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of prefix-rl",
        "type": "object",
        "properties": {name: blocks[name] for name in BLOCKS},
        "required": [name for name, block in blocks.items() if block.get("required") or name == "method"],
        "additionalProperties": False,
    }


def _method(name: str) -> dict[str, Any]:
    cls = methods.find(name)
    fields = fields_of(cls, docs=True)
    inner = fields.pop("of") if issubclass(cls, Combined) and "of" in fields else None
    block = _block(fields)
    block["properties"] = {"name": {"const": name}, **block["properties"]}
    if inner:
        block["properties"]["of"] = {"oneOf": [_method(other) for other in cls.takes]}
    return block | {"required": ["name", *block.get("required", [])]}


def _block(fields: Mapping[str, Field], with_defaults: bool = True) -> dict[str, Any]:
    properties = {}
    for name, field in fields.items():
        inner = dataclass_in(field.type)
        kind = _block(fields_of(inner, docs=True)) if inner else TypeAdapter(field.type).json_schema()
        if inner and type(None) in getattr(field.type, "__args__", ()):
            kind = {"anyOf": [kind, {"type": "null"}]}
        if field.doc:
            kind["description"] = said(field.doc)
        if with_defaults and field.default is not REQUIRED and not dataclasses.is_dataclass(field.default):
            kind["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
        properties[name] = kind
    required = [name for name, field in fields.items() if field.default is REQUIRED]
    block = {"type": "object", "properties": properties, "additionalProperties": False}
    return block | ({"required": required} if required else {})


if __name__ == "__main__":
    print(page(), end="")
