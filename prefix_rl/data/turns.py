r"""Chat messages of data sets: separation of the prompt from the demonstration that answers it.

Two forms can be read: lists of ``{"role", "content"}`` and lists of ``{"from", "value"}``. If the last turn is the
assistant's it is the demonstration, and all turns before it are the prompt. Other lists have faults instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError

_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "developer": "system"}
_KNOWN = ("system", "user", "assistant")
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Chat:
    """A list of messages, split into prompt and answers."""

    asked: tuple[dict[str, str], ...] = ()
    """Turns of the prompt: optionally one of the system, then turns of user and assistant."""
    answers: tuple[str, ...] = ()
    """Texts of the assistant's turns at the end."""
    faults: tuple[str, ...] = ()
    """Reasons why the messages cannot be used; then the other fields are empty."""

    @property
    def text(self) -> str:
        """Text of the prompt: all turns but the system's, with a blank line between them."""
        return "\n\n".join(turn["content"] for turn in self.asked if turn["role"] != "system")

    @property
    def plain(self) -> bool:
        """True if the prompt is a single turn."""
        return len(self.asked) == 1


def is_chat(value: object) -> bool:
    """True if a value of a column is meant as messages: a list with at least one message, or a single message."""
    if isinstance(value, Mapping):
        return _role(value) is not None
    return isinstance(value, list) and any(isinstance(turn, Mapping) and _role(turn) is not None for turn in value)


def chat(messages: object) -> Chat:
    r"""Messages of a row, split into prompt and answers.

    >>> chat([{"role": "user", "content": "6 * 7?"}, {"role": "assistant", "content": "42"}])
    Chat(asked=({'role': 'user', 'content': '6 * 7?'},), answers=('42',), faults=())
    >>> chat([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]).faults
    ("turn 2 has the role 'tool'; read are system, user, assistant",)
    """
    given = [messages] if isinstance(messages, Mapping) else messages
    if not isinstance(given, list) or not given:
        return Chat(faults=("its messages are no list of turns with role and content",))
    turns, faults = [], []
    for number, message in enumerate(given, start=1):
        turn, fault = _turn(message)
        if fault:
            faults.append(f"turn {number} {fault}")
        elif turn["role"] != "system" or turn["content"].strip():
            turns.append(turn)
    faults += [f"turn {n} is a system turn behind others" for n, turn in enumerate(turns, start=1)
               if turn["role"] == "system" and n > 1]  # fmt: skip
    if faults:
        return Chat(faults=tuple(faults))
    end = len(turns)
    while end and turns[end - 1]["role"] == "assistant":
        end -= 1
    answers = tuple(_whole(turn) for turn in turns[end:])
    asked = tuple({"role": turn["role"], "content": turn["content"]} for turn in turns[:end])
    return Chat(asked, answers)


def turn_faults(turns: Sequence[Any]) -> list[str]:
    """Faults of the turns of a problem; empty if they can be used."""
    read = chat(list(turns))
    if read.faults:
        return list(read.faults)
    if read.answers or not read.asked or read.asked[-1]["role"] != "user":
        return ["its last turn is not the user's"]
    return [] if read.asked[-1]["content"].strip() else ["its last turn is empty"]


def _role(message: Mapping) -> Any:
    return message.get("role") or message.get("from")


def _turn(message: object) -> tuple[dict, str | None]:
    """Message with the keys ``role``, ``content`` and ``thought``, and its fault (None: no fault)."""
    if not isinstance(message, Mapping):
        return {}, f"is a {type(message).__name__}, not an object of role and content"
    role = _role(message)
    role = _ROLES.get(role, role) if isinstance(role, str) else role
    if role not in _KNOWN:
        return {}, f"has the role {role!r}; read are {', '.join(_KNOWN)}"
    if message.get("tool_calls"):
        return {}, "calls tools, which are not read"
    content = message.get("content") if message.get("content") is not None else message.get("value")
    if isinstance(content, list) and all(_is_text(part) for part in content):
        content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        return {}, f"has a content that is no text ({'null' if content is None else type(content).__name__})"
    thought = next((message[name] for name in _THOUGHTS if isinstance(message.get(name), str)), "")
    return {"role": role, "content": content, "thought": thought}, None


def _is_text(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _whole(turn: Mapping[str, str]) -> str:
    """Text of an assistant's turn, with the thought that some data sets keep in a field of its own put in front."""
    content, thought = turn["content"].strip(), turn["thought"].strip()
    return f"<think>\n{thought}\n</think>\n\n{content}" if thought and content else turn["content"]


# --- prompts ----------------------------------------------------------------------------------------------------------


def prompt_of(problem, data, instruction: str = "") -> str | list[dict[str, str]]:
    """Prompt of a problem: chat messages, or a plain text if ``data.prompt`` is ``plain``.

    ``data.instruction`` and then ``instruction`` are appended to the last turn of the user. ``data.system_prompt`` is
    for problems without a system turn of their own.

    Raises:
        RecipeError: if a problem of several turns is to be shown as a plain text.
    """
    behind = data.instruction + instruction
    if data.prompt == "plain":
        if problem.turns:
            raise RecipeError(plain_fault([problem]))
        return problem.text + behind
    *before, last = problem.turns or ({"role": "user", "content": problem.text},)
    own = bool(problem.turns) and problem.turns[0]["role"] == "system"
    system = [] if own or data.system_prompt is None else [{"role": "system", "content": data.system_prompt}]
    return [*system, *map(dict, before), {"role": "user", "content": last["content"] + behind}]


def plain_fault(problems: Sequence[Any]) -> str:
    """Error message for problems of several messages that a recipe wants to show as plain texts."""
    places = ", ".join(p.place or p.id for p in problems[:3]) + (", ..." if len(problems) > 3 else "")
    return (
        f"data.prompt = plain shows the policy one text, but {len(problems)} problem{'s are' * (len(problems) > 1)}"
        f"{' is' * (len(problems) == 1)} messages of several turns or with a system turn ({places}); set "
        "data.prompt = chat, or `prefix-rl prepare --no-system-turns` where it is only the system turn"
    )


def shape(turns: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Roles of the turns, in their order."""
    return tuple(turn["role"] for turn in turns)


def one_of_each_shape(problems: Sequence[Any]) -> list[Any]:
    """Problems that are messages, the first one of every :func:`shape`."""
    found: dict[tuple[str, ...], Any] = {}
    for problem in problems:
        if problem.turns:
            found.setdefault(shape(problem.turns), problem)
    return list(found.values())


def refuse_unshown(prompt: Sequence[Mapping[str, str]], known: set, render: Callable[[list], str]) -> None:
    """Refuses a chat template that leaves out a turn of prompts with the roles of this one.

    The template is rendered with a probe text in each turn, and every probe must be in the result.

    Args:
        known: shapes that passed before; this prompt's is added.
        render: returns the text that the template makes of messages.

    Raises:
        RecipeError: with the number and role of the first turn that is left out.
    """
    roles = shape(prompt)
    if roles in known:
        return
    probes = [{"role": role, "content": f"turn number {n} says this"} for n, role in enumerate(roles, start=1)]
    text = trimmed(render(probes))
    for number, turn in enumerate(probes, start=1):
        if turn["content"] not in text:
            raise RecipeError(
                f"the chat template leaves turn {number} of messages of the roles {', '.join(roles)} out; the policy "
                f"would not see what the {turn['role']} says. Give another template with model.chat_template, or leave "
                "system turns out with `prefix-rl prepare --no-system-turns`"
            )
    known.add(roles)


def trimmed(text: str) -> str:
    """A text with every run of blanks as one space, since templates may trim blanks."""
    return " ".join(text.split())
