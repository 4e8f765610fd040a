"""A JSON Schema of recipes, generated from the declarations that are checked (``prefix-rl schema``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from . import methods
from .fields import REQUIRED, Field, dataclass_in, fields_of, listed_in, said
from .includes import INCLUDE
from .methods.combined import Combined
from .recipe import BLOCKS, model_fields, training_fields


def schema() -> dict[str, Any]:
    """A JSON Schema (2020-12) of recipes, by which an editor completes and checks them while they are written.

    A recipe that includes another need not say what is required: that may stand there.
    """
    blocks = {name: block_schema(fields_of(cls, docs=True)) for name, cls in BLOCKS.items() if cls}
    blocks["method"] = {"anyOf": [{"oneOf": [_method(name) for name in methods.names()]}, _unnamed_method()]}
    blocks["model"] = block_schema(model_fields(docs=True))
    blocks["training"] = block_schema(training_fields(), with_defaults=False)
    required = {name: block.pop("required") for name, block in blocks.items() if "required" in block}
    required["method"] = ["name"]
    name = {
        "type": "string",
        "description": "A file, relative to this one, whose values hold where this one is silent.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of prefix-rl",
        "type": "object",
        "properties": {
            INCLUDE: {"anyOf": [name, {"type": "array", "items": name}]},
            **{name: blocks[name] for name in BLOCKS},
        },
        "additionalProperties": False,
        "anyOf": [
            {"required": [INCLUDE]},
            {
                "required": [name for name in BLOCKS if name in required],
                "properties": {name: {"required": keys} for name, keys in required.items()},
            },
        ],
    }


def _unnamed_method() -> dict[str, Any]:
    """Settings of a method that an included recipe names: those of any."""
    keys = {key: {} for name in methods.names() for key in fields_of(methods.find(name))}
    return {"type": "object", "properties": keys, "additionalProperties": False}


def _method(name: str) -> dict[str, Any]:
    cls = methods.find(name)
    fields = fields_of(cls, docs=True)
    inner = fields.pop("of") if issubclass(cls, Combined) and "of" in fields else None
    block = block_schema(fields)
    block["properties"] = {"name": {"const": name}, **block["properties"]}
    if inner:
        block["properties"]["of"] = {"oneOf": [_method(other) for other in cls.takes]}
    return block | {"required": ["name", *block.get("required", [])]}


def block_schema(fields: Mapping[str, Field], with_defaults: bool = True) -> dict[str, Any]:
    """The schema of a block with these keys."""
    properties = {}
    for name, field in fields.items():
        inner = dataclass_in(field.type)
        kind = block_schema(fields_of(inner, docs=True)) if inner else TypeAdapter(field.type).json_schema()
        if element := listed_in(field.type):
            one = {"anyOf": [{"type": "string"}, block_schema(fields_of(element, docs=True))]}
            kind = {"anyOf": [{"type": "string"}, {"type": "array", "items": one, "minItems": 1}]}
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
