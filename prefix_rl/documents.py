"""JSON files that this package wrote, read again: of the shape that they were written in, or what is wrong is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .fields import describe, fits, shown, unfit
from .parts import Damaged, regular

Shape = Any
"""A type (``int``, ``dict[str, int]``, ``str | None``), or a dictionary with the shape of each key that is read. A key
that may be null may be absent; further keys do not matter."""


def read(path: Path, shape: Shape) -> Any:
    """The content of a JSON file. NaN and infinity, which a log may hold, are null.

    Raises:
        Damaged: if it is not there, is no JSON in UTF-8, or is of another shape; the message says where.
    """
    regular(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: None)
    except RecursionError:
        raise Damaged(path, "nested too deeply") from None
    except OSError as error:
        raise Damaged(path, error.strerror or error) from error
    except ValueError as error:
        raise Damaged(path, f"not JSON: {str(error).partition(';')[0]}") from error
    if wrong := unfit(found) or misfit(found, shape):
        raise Damaged(path, wrong)
    return found


def misfit(value: Any, shape: Shape, at: str = "") -> str | None:
    """What is wrong with a value of another shape; None if it fits.

    >>> misfit({"step": "5", "files": {}}, {"step": int, "files": dict[str, int]})
    'step is "5", not an integer'
    >>> misfit({"files": {"a": None}}, {"step": int | None, "files": dict[str, int]})
    'files is {"a": null}, not a block'
    >>> misfit([], {"step": int})
    'it is [], not a block'
    """
    if not isinstance(shape, Mapping):
        return None if fits(value, shape) else f"{at or 'it'} is {shown(value)}, not {describe(shape)}"
    if not isinstance(value, dict):
        return f"{at or 'it'} is {shown(value)}, not a block"
    for key, inner in shape.items():
        name = f"{at}.{key}" if at else key
        if key not in value and not fits(None, inner):
            return f"{name} is missing"
        if wrong := misfit(value.get(key), inner, name):
            return wrong
    return None


def metrics_line(text: str) -> dict[str, Any] | None:
    """A line of ``metrics.jsonl``: a step and what was logged at it; None if it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int or not 0 <= found["step"] < 2**53:
        return None
    too_large = any(isinstance(value, int) and abs(value) >= 2**63 for value in found.values())
    return None if too_large else found
