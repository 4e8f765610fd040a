r"""Raw rows of the usual data sets in one form: ``id``, ``problem``, ``answer``, ``demonstrations``.

Known by their columns:

==================  ====================================================================================================
GSM8K               ``question``, ``answer`` with ``#### 42`` and ``<<6*7=42>>``
MATH, NuminaMath    ``problem``, ``solution`` with a box
OpenR1-Math         ``problem``, ``answer``, ``generations`` (not cut off: ``is_reasoning_complete``), ``uuid``
OpenR1-Math-46k     ``prompt``, ``target``, ``reward_model`` (LUFFY)
DAPO-Math           ``prompt`` in its frame of instructions, ``reward_model``, ``extra_info.index``
OpenThoughts        ``conversations`` with ``solution``, or ``problem``, ``deepseek_reasoning``, ``deepseek_solution``
                    and ``ground_truth_solution``
Chat messages       ``messages`` or ``conversations``; the last turn of the assistant is the demonstration, all before
                    it the problem
TRL                 ``prompt`` and ``completion``, each a text or messages
==================  ====================================================================================================

A gold answer is what a data set gives as such, or the box of a *published* solution. It is never taken from a model's
own text: every demonstration would be right by construction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..errors import DataError, nearest
from ..rewards.grading import final_answer
from .texts import clean, squeezed
from .turns import Chat, chat, is_chat

OURS = (
    "id", "problem", "answer", "solution", "pass_rate", "demonstrations", "completion", "messages", "system",
    "complete",
)  # fmt: skip
"""What a column can be named as."""
_ASKED = ("problem", "question", "prompt")
_CHATS = ("conversations", "messages")
_DEMONSTRATIONS = (
    "demonstrations", "generations", "target", "completion", "conversations", "deepseek_solution", "solution",
    "messages",
)  # fmt: skip
_OTHERS = {
    "id", "uuid", "unique_id", "extra_info", "reward_model", "answer", "final_answer", "ground_truth", "pass_rate",
    "ground_truth_solution", "deepseek_reasoning", "is_reasoning_complete", *_ASKED, *_DEMONSTRATIONS,
}  # fmt: skip
"""The columns that are looked at."""
_READ = {
    "id", "uuid", "unique_id", "answer", "pass_rate", "ground_truth_solution", "deepseek_reasoning", "system",
    "is_reasoning_complete", *_ASKED, *_DEMONSTRATIONS,
}  # fmt: skip
"""The columns that stand in the made row under their own or another name."""
_BARE = "it is nothing but the answer"
_DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem."
)
_DAPO_END = 'Remember to put your answer on its own line after "Answer:".'
_OPEN_THOUGHTS = re.compile(r"\AReturn your final response within \\boxed\{\}\.\s*")
_THOUGHT, _END_OF_SOLUTION = "<|begin_of_thought|>", "<|end_of_solution|>"
_SOLUTION = re.compile(r"<\|end_of_thought\|>\s*<\|begin_of_solution\|>")


def normalize(row: dict, columns: dict[str, str]) -> dict:
    r"""A raw row with the columns ``id``, ``problem``, ``answer``, ``demonstrations`` and ``pass_rate``, as far as they
    can be found; ``answer`` and ``problem`` may still be wrong.

    A problem of several turns, or with a system turn, has them as ``turns`` also; ``problem`` is then the text of all
    but the system's. What cannot be read has its reasons in ``faults``; a demonstration that cannot, in ``unread``.

    Args:
        columns: ``{"problem": "question", ...}`` for what is not known by name; it goes before what is. A dot leads
            into an object: ``extra_info.answer``.

    GSM8K's marks are taken out and its last line becomes a box, so that the demonstrations end as the instruction asks;
    DAPO's instructions are taken off the problem; a "solution" that is nothing but the answer is no demonstration.

    >>> normalize({"question": "6 * 7?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"}, {})
    {'problem': '6 * 7?', 'answer': '42', 'demonstrations': ['6 * 7 = 42\n\\boxed{42}']}
    >>> normalize({"prompt": "6 * 7?", "completion": "It is 42.", "answer": "42"}, {})
    {'problem': '6 * 7?', 'answer': '42', 'demonstrations': ['It is 42.']}
    """
    row = _renamed(row, columns)
    extra = row.get("extra_info") if isinstance(row.get("extra_info"), dict) else {}
    reward = row.get("reward_model") if isinstance(row.get("reward_model"), dict) else {}
    made = {}
    if (name := _first(row, "id", "uuid", "unique_id") or extra.get("index")) is not None:
        made["id"] = name
    answer = _first(row, "answer", "final_answer", "ground_truth")
    answer = reward.get("ground_truth") if answer is None else answer
    published, worked = _first(row, "ground_truth_solution", "solution"), None
    if isinstance(answer, str) and "####" in answer:
        worked, answer = _text(answer), final_answer(answer)
    elif answer is None and isinstance(published, str):
        answer = final_answer(published)
    solutions, pair = _solutions(row, str(answer))
    made |= _asked(row, pair, bool(solutions))
    if not solutions and worked is not None:
        solutions = [d for d in [worked] if not _is_bare(d, str(answer))]
    if answer is not None:
        made["answer"] = _answer(answer) if isinstance(answer, str) else answer
    made["demonstrations"] = solutions or made.pop("last", [])
    made.pop("last", None)
    if row.get("pass_rate") is not None:
        made["pass_rate"] = row["pass_rate"]
    return made


def with_chat(row: dict) -> tuple[dict, list[str]]:
    """A row that was not prepared, with the problem and the demonstration of its messages or its completion; and what
    of these cannot be read. Rows without them come back as they are.
    """
    done = row.get("problem") is not None and _first(row, "demonstrations", "solution") is not None
    if done or not any(row.get(name) is not None for name in ("prompt", "completion", *_CHATS)):
        return row, []
    made = normalize(row, {})
    faults = made.pop("faults", [])
    if turns := made.pop("turns", None):
        made["problem"] = turns
    elif "problem" in row:
        made["problem"] = row["problem"]
    for demonstration in made["demonstrations"]:
        if isinstance(demonstration, dict) and (demonstration.get("unread") or demonstration.get("complete") is False):
            faults.append(f"a demonstration cannot be used: {demonstration.get('unread') or 'it is not complete'}")
    return {**row, **({"answer": row["answer"]} if "answer" in row else {}), **made}, faults


def unread_columns(row: dict, columns: dict[str, str]) -> list[str]:
    """The columns of a row that nothing is read from and that could hold a demonstration: texts and lists."""
    named = {theirs.partition(".")[0] for theirs in columns.values()}
    return [name for name, value in row.items() if name not in _OTHERS | named and isinstance(value, str | list | dict)]


def further_columns(row: dict, columns: dict[str, str]) -> dict:
    """The columns of a raw row beside problem, answer and demonstrations, which are kept for reward functions.

    >>> further_columns({"problem": "6 * 7?", "answer": "42", "level": 3, "worked": "..."}, {"solution": "worked"})
    {'level': 3}
    """
    gone = _READ | {theirs for ours, theirs in columns.items() if ours != "answer"}
    return {name: value for name, value in row.items() if name not in gone and value is not None}


def _renamed(row: dict, columns: dict[str, str]) -> dict:
    """The row with the columns that were named by ours; what they take the place of is gone."""
    taken = {theirs: _at(row, theirs) for theirs in columns.values()}
    demonstrations = [ours for ours in columns if ours in _DEMONSTRATIONS]
    gone = set(_DEMONSTRATIONS) if demonstrations else set()
    gone -= {columns[ours] for ours in demonstrations}
    if "messages" in columns and "problem" not in columns:
        gone |= {*_ASKED, *_CHATS}
    if "system" in columns:
        gone.add("system")
    kept = {name: value for name, value in row.items() if name not in gone}
    named = {ours: taken[theirs] for ours, theirs in columns.items() if taken[theirs] is not None}
    if "complete" in named:
        named["is_reasoning_complete"] = named.pop("complete")
    return kept | named | ({"named": {"system"}} if "system" in named else {})


def _at(row: dict, name: str):
    """The value of a column, or inside of one: ``a.b``."""
    if name in row or "." not in name:
        return row.get(name)
    first, _, rest = name.partition(".")
    return _at(row[first], rest) if isinstance(row.get(first), dict) else None


def _asked(row: dict, pair: Chat | None, answered: bool) -> dict:
    """``problem``, ``turns``, ``faults``, and as ``last`` the demonstration that ends the messages of the prompt.

    Args:
        pair: the messages that the demonstration comes from. They are the prompt, too: to answer their first turn by
            their last one would be wrong.
        answered: whether there is a demonstration.
    """
    given = _first(row, *_ASKED)
    if pair is not None and (given is None or not pair.plain):
        asked = pair
    else:
        given = given if given is not None else next((row[n] for n in _CHATS if is_chat(row.get(n))), None)
        given = given if given is not None else _first(row, *_CHATS)
        asked = chat(given) if isinstance(given, list | dict) else None
    system = row.get("system") if "named" in row else None
    system = system if isinstance(system, str) and system.strip() else None
    if asked is None and system is None:
        return {} if given is None else {"problem": _problem(given)}
    asked = asked or Chat(({"role": "user", "content": given},))
    if asked.faults:
        return {"faults": list(asked.faults)}
    if asked.answers and answered and asked is not pair and _first(row, "completion", "target") is not None:
        return {"faults": ["its prompt ends with a turn of the assistant, and there is a demonstration besides"]}
    turns = [{**t, "content": _problem(t["content"]) if t["role"] == "user" else clean(t["content"])}
             for t in asked.asked if t["role"] != "system" or system is None]  # fmt: skip
    turns = [{"role": "system", "content": clean(system)}, *turns] if system is not None else turns
    if not turns or turns[-1]["role"] != "user":
        return {"faults": ["its messages ask nothing: no turn of the user stands before the last of the assistant"]}
    made = {"problem": Chat(tuple(turns)).text}
    if len(turns) > 1:
        made["turns"] = turns
    return made | ({"last": _ends(asked)} if asked.answers else {})


def parse_columns(pairs: Iterable[str]) -> dict[str, str]:
    """``["problem=question"]`` -> ``{"problem": "question"}``."""
    columns = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    wrong = [p for p in pairs if "=" not in p] + [c for c in columns if c not in OURS]
    if wrong:
        raise DataError(f"--column {wrong[0]}: give OURS=THEIRS, where OURS is one of {', '.join(OURS)}")
    return columns


def check_columns(columns: dict[str, str], source: str, first: Sequence[dict]) -> None:
    """Refuses names of columns that the first rows of a source do not have."""
    there = list(dict.fromkeys(name for row in first for name in row))
    wrong = [
        f"--column {ours}={theirs}: no such column{nearest(theirs, there)}; there are {', '.join(there)}"
        for ours, theirs in columns.items() if theirs not in there and all(_at(row, theirs) is None for row in first)
    ]  # fmt: skip
    if wrong:
        raise DataError(f"{source} has other columns than were named:", wrong)


def _first(row: dict, *names: str):
    return next((row[name] for name in names if row.get(name) is not None), None)


def _is_bare(demonstration, answer: str) -> bool:
    """Whether a demonstration is nothing but the answer. A much longer one need not be looked at."""
    short = isinstance(demonstration, str) and len(demonstration) < 2 * len(answer) + 50
    return short and squeezed(demonstration) == squeezed(answer)


def _problem(given):
    """The text of a problem, out of a known frame of instructions."""
    if not isinstance(given, str):
        return given
    if given.startswith(_DAPO):
        return clean(given.removeprefix(_DAPO).strip().removesuffix(_DAPO_END))
    return clean(_OPEN_THOUGHTS.sub("", given))


def _solutions(row: dict, answer: str) -> tuple[list, Chat | None]:
    """The demonstrations of a row, as texts or objects, and the messages that they come from. What is neither stays,
    for the check to find.
    """
    if row.get("deepseek_reasoning") is not None and row.get("deepseek_solution") is not None:
        text = f"<think>\n{row['deepseek_reasoning'].strip()}\n</think>\n\n{row['deepseek_solution'].strip()}"
        return ([] if _is_bare(text, answer) else [text]), None
    bare: list = []
    for name in (n for n in _DEMONSTRATIONS if row.get(n) is not None):
        given = row[name]
        if name in _CHATS:
            read = chat(given)
            if found := _ends(read):
                if not _is_bare(found[0], answer):
                    return found, None if read.faults else read
                bare = [{"text": "", "unread": _BARE}]
            continue
        if name in ("target", "completion", "solution") and is_chat(given):
            return [{"text": "", "unread": _BARE} if _is_bare(d, answer) else d for d in _ends(chat(given), True)], None
        if name == "completion" and _is_bare(given, answer):
            bare = [{"text": "", "unread": _BARE}]
        found = [d for d in _listed(row, name) if not _is_bare(d, answer)]
        if found or name in ("demonstrations", "generations", "target"):
            return found, None
    return bare, None


def _listed(row: dict, name: str) -> list:
    """The demonstrations of a column that holds a text or a list."""
    given = row[name] if isinstance(row[name], list) else [row[name]]
    complete = row.get("is_reasoning_complete") if name in ("generations", "demonstrations") else None
    complete = [complete] if isinstance(complete, bool) else complete
    if not isinstance(complete, list) or len(complete) != len(given):
        complete = [True] * len(given)
    texts = [_text(d) for d in given]
    return [t if whole is not False else {"text": t, "complete": False}
            for t, whole in zip(texts, complete, strict=True) if t is not None and t != ""]  # fmt: skip


def _ends(read: Chat, alone: bool = False) -> list:
    """The demonstration at the end of messages; ``alone``: they should hold nothing else."""
    if read.faults:
        return [{"text": "", "unread": "; ".join(read.faults)}]
    if len(read.answers) > 1 or (alone and (read.asked or not read.answers)):
        return [{"text": "", "unread": "it is not one turn of the assistant"}]
    return [_text(text) for text in read.answers if text != ""]


def _text(solution):
    """A demonstration as it is stored. One that brings ids or offsets along stays as it is."""
    if isinstance(solution, dict):
        if isinstance(solution.get("text"), str):
            return solution if set(solution) > {"text"} else _text(solution["text"])
        return _text(solution["content"]) if isinstance(solution.get("content"), str) else solution
    if not isinstance(solution, str):
        return solution
    stripped = solution.strip()
    if stripped.startswith(_THOUGHT) and (between := _SOLUTION.search(stripped)):
        thought, told = (
            stripped[len(_THOUGHT) : between.start()],
            stripped[between.end() :].removesuffix(_END_OF_SOLUTION),
        )
        solution = f"<think>\n{thought.strip()}\n</think>\n\n{told.strip()}"
    return _boxed_ending(clean(solution))


def _boxed_ending(solution: str) -> str:
    """GSM8K's calculator marks removed and its ``#### 42`` line turned into a box; other texts unchanged."""
    solution = re.sub(r"<<[^<>\n]*>>", "", solution)
    body = solution.rstrip()
    last = body.rfind("\n") + 1
    marked = re.fullmatch(r"#### *(\S.*)", body[last:])
    return rf"{body[:last]}\boxed{{{marked[1]}}}" if marked else solution


def _answer(answer: str) -> str:
    r"""An answer without the delimiters around the whole of it.

    >>> _answer(r"$\frac{1}{2}$"), _answer(r"\boxed{3}"), _answer("$5 and $6")
    ('\\frac{1}{2}', '3', '$5 and $6')
    """
    answer = clean(answer)
    if inner := re.fullmatch(r"\$\$?([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\]", answer, re.DOTALL):
        answer = next(part for part in inner.groups() if part is not None).strip()
    boxed = re.fullmatch(r"\\boxed\{(.*)\}", answer, re.DOTALL)
    return final_answer(answer) or answer if boxed else answer
