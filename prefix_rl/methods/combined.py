"""Methods that answer some questions themselves and hand the others on to another method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import getattr_static
from typing import ClassVar

from .base import Method

QUESTIONS = tuple(name for name in vars(Method) if not name.startswith("_"))
"""Names of all questions that a method is asked."""


def _hand_on(cls: type) -> type:
    """Answers every question that ``cls`` does not answer itself as its ``of`` does."""
    for name in QUESTIONS:
        if name not in vars(cls):
            setattr(cls, name, _handed_on(name))
    return cls


def _handed_on(name: str):
    plain = getattr_static(Method, name)
    if isinstance(plain, property):
        return property(lambda self: getattr(self.of, name), doc=plain.__doc__)

    @wraps(plain)
    def ask(self, *args):
        return getattr(self.of, name)(*args)

    return ask


@_hand_on
@dataclass(frozen=True)
class Combined(Method):
    """A method that answers some questions itself and hands the others on to another one, ``of``.

    In a recipe: ``method: {name: tempo, of: {name: prefix_rl, cuts: 3}}``. A subclass gives ``of`` its default, says in
    :attr:`takes` and :attr:`refuses` which methods can stand there, and overrides what is its own.
    """

    of: Method
    """The method that answers the other questions."""

    takes: ClassVar[Sequence[str]] = ()
    """The methods that can stand in ``of``. A method of one's own can if it is a subclass of one of them."""
    refuses: ClassVar[Mapping[str, str]] = {}
    """Reasons why other methods cannot, by their names."""

    def refusal(self) -> str | None:
        """Reason why ``of`` cannot stand where it stands, None if it can."""
        names = [cls.__module__.removeprefix(f"{__package__}.") for cls in type(self.of).__mro__]
        if set(names) & set(self.takes):
            return None
        own = "a method of your own has to be a subclass of one of those" if "." in names[0] else "not tried together"
        return f"{self.refuses.get(names[0], own)}. There can stand {', '.join(self.takes)}"

    def faults(self, training: Mapping[str, object]) -> list[str]:
        inner = type(self.of).__module__.removeprefix(f"{__package__}.")
        refusal = self.refusal()
        return [f"method.of.name = {inner}: {refusal}"] * (refusal is not None) + [
            fault.replace("method.", "method.of.") for fault in self.of.faults(training)
        ]
