"""Chat templates are programs that come with a model: each is tried where it can be ended, before it is rendered here.

transformers renders templates in a sandbox, from which they reach nothing; but a loop or a power in them may take all
the time and memory that there is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from ..errors import RecipeError
from ..trials import tried

_SECONDS, _MIB, _CHARACTERS = 5, 1024, 10_000_000
_TRIAL = f"""
import re
from jinja2.sandbox import ImmutableSandboxedEnvironment

def raise_exception(what):
    raise ValueError(what)

template, variables = given
loops = ["jinja2.ext.loopcontrols"]
sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=loops)
sandbox.globals |= {{"raise_exception": raise_exception, "strftime_now": lambda form: form}}
sandbox.filters["tojson"] = lambda value, **how: json.dumps(value)
made = sandbox.from_string(re.sub(r"{{%-?\\s*(end)?generation\\s*-?%}}", "", template)).render(**variables)
status = TOO_LONG if len(made) > {_CHARACTERS} else ENDED
"""


def refuse_endless(template: str, variables: Mapping[str, Any]) -> None:
    """Refuses a chat template that takes too long, or too much memory, for one short message.

    Args:
        variables: what the template gets besides the messages.

    Raises:
        RecipeError: if it takes more than 5 seconds of CPU time, 1 GiB, or makes more than 10 million characters.
    """
    if what := _tried(template, json.dumps(dict(variables), default=str, sort_keys=True)):
        raise RecipeError(
            f"the chat template {what} for one short message; a template comes with a model and runs as a program: "
            "look at it, or give another one with model.chat_template"
        )


@cache
def _tried(template: str, variables: str) -> str | None:
    given = {
        "messages": [{"role": "user", "content": "1 + 1?"}],
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        **json.loads(variables),
    }
    limits = {"cpu_seconds": _SECONDS, "mib": _MIB, "characters": _CHARACTERS}
    return tried(_TRIAL, [template, given], 12 * _SECONDS, **limits)
