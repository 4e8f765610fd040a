"""Chat templates are programs that come with a model: each is tried where it can be ended, before it is rendered here.

transformers renders templates in a sandbox, from which they reach nothing; but a loop or a power in them may take all
the time and memory that there is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from ..errors import RecipeError

_SECONDS, _MIB, _CHARACTERS = 5, 1024, 10_000_000
_TOO_LONG, _TOO_LARGE = 77, 78  # exit statuses
_TRIAL = f"""
import json, re, resource, sys
from jinja2.sandbox import ImmutableSandboxedEnvironment

template, variables = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_AS, ({_MIB} << 20,) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, ({_SECONDS},) * 2)
def raise_exception(what):
    raise ValueError(what)
try:
    loops = ["jinja2.ext.loopcontrols"]
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=loops)
    sandbox.globals |= {{"raise_exception": raise_exception, "strftime_now": lambda form: form}}
    sandbox.filters["tojson"] = lambda value, **how: json.dumps(value)
    made = sandbox.from_string(re.sub(r"{{%-?\\s*(end)?generation\\s*-?%}}", "", template)).render(**variables)
except MemoryError:
    sys.exit({_TOO_LARGE})
except Exception:  # what is wrong with it is told where it is rendered
    sys.exit()
sys.exit({_TOO_LONG} if len(made) > {_CHARACTERS} else 0)
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
    asked = json.dumps([template, given]).encode()
    ended = subprocess.run([sys.executable, "-I", "-c", _TRIAL], input=asked, capture_output=True).returncode
    if ended < 0:  # the system ended it
        return f"takes more than {_SECONDS} seconds"
    return {
        _TOO_LARGE: f"takes more than {_MIB} MiB",
        _TOO_LONG: f"makes more than {_CHARACTERS:,} characters",
    }.get(ended)
