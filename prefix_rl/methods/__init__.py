"""Methods, found by the name of their module: ``method: {name: prefix_rft}`` is ``methods/prefix_rft.py``."""

from __future__ import annotations

import inspect
import pkgutil

from ..trials import import_module
from .base import Method

_SHARED = {"base", "combined", "cutting", "idle", "imitation", "needs", "stage"}  # what methods are made of


def names() -> list[str]:
    """The methods that this package brings."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED)


def name_of(method: Method) -> str:
    """The name that :func:`find` knows it by.

    >>> name_of(find("dr_grpo")())
    'dr_grpo'
    """
    return type(method).__module__.removeprefix(f"{__name__}.")


def find(name: str) -> type[Method]:
    """The method class of module ``name``: one of :func:`names`, or a dotted module path of your own.

    Raises:
        LookupError: if there is no such module, or not exactly one method in it.

    >>> find("dr_grpo").__name__
    'DrGRPO'
    """
    path = name if "." in name else f"{__name__}.{name}"
    dotted = len(name) < 1000 and all(part.isidentifier() for part in path.split("."))
    if not dotted or ("." not in name and name not in names()):
        raise LookupError(
            f"no method {name[:60]!r}; there are {', '.join(names())}, or give your own module's dotted path"
        )
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        raise LookupError(f"no module {name!r} to take a method from ({error})") from error
    except (Exception, SystemExit) as error:  # whatever the module of somebody else does when it is imported
        raise LookupError(
            f"module {name!r} cannot be imported ({type(error).__name__}: {error}); one in this folder is found with "
            "export PYTHONPATH=."
        ) from error
    found = [
        cls for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Method) and cls.__module__ == module.__name__
    ]  # fmt: skip
    if len(found) != 1:
        listing = ", ".join(cls.__name__ for cls in found) or "none"
        raise LookupError(f"module {name!r} must define one subclass of Method, it defines {listing}")
    return found[0]
