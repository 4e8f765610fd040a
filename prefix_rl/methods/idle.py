"""Settings of a method that say nothing beside others: they are refused, for nobody sets them to no end."""

from __future__ import annotations

from dataclasses import MISSING, fields

from .base import Method


def idle(method: Method, path: str = "method") -> list[str]:
    """Faults of settings that nothing reads, of this method and of the one in its ``of``, in words.

    They follow from ``_read_with`` of each class: by field, another field and the values beside which it is read. One
    at its default may stand there, as in a recipe that is written out in full.

    >>> from .prefix_rft import PrefixRFT
    >>> idle(PrefixRFT(tokens="all", share=0.5))
    ['method.share = 0.5 says nothing with method.tokens = all: leave it out, or set tokens = top_entropy, low_entropy, random']
    """  # noqa: E501
    found = []
    for field in fields(method):
        value, (other, values) = getattr(method, field.name), method._read_with.get(field.name, (None, ()))
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if other and value != default and getattr(method, other) not in values:
            found.append(
                f"{path}.{field.name} = {_said(value)} says nothing with {path}.{other} = "
                f"{_said(getattr(method, other))}: leave it out, or set {other} = {', '.join(map(_said, values))}"
            )
    return found + (idle(method.of, f"{path}.of") if isinstance(getattr(method, "of", None), Method) else [])


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
