r"""Conversion of raw rows to one form with the columns ``id``, ``problem``, ``answer``, ``demonstrations``.

The layouts of these data sets are recognized by their columns:

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

A gold answer is the data set's answer column, or the boxed answer of a *published* solution. It is never taken from
text that a model wrote: then every demonstration would be right by construction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..errors import DataError, nearest
from ..rewards.grading import final_answer, gold_text
from .texts import clean, squeezed
from .turns import Chat, chat, is_chat

OURS = (
    "id", "problem", "answer", "solution", "pass_rate", "demonstrations", "completion", "messages", "system",
    "complete",
)  # fmt: skip
"""Names on the left side of ``--column OURS=THEIRS``."""
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
"""Columns that are known; any other may hold a demonstration that is not read."""
_READ = {
    "id", "uuid", "unique_id", "answer", "pass_rate", "ground_truth_solution", "deepseek_reasoning", "system",
    "is_reasoning_complete", *_ASKED, *_DEMONSTRATIONS,
}  # fmt: skip
"""Columns whose content is in the normalized row already, under the same or another name."""
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
    r"""A raw row converted to the columns ``id``, ``problem``, ``answer``, ``demonstrations`` and ``pass_rate``.

    Columns that the raw row lacks are missing; ``problem`` and ``answer`` are not checked yet. A problem of several
    turns, or with a system turn, also has its messages in ``turns``; ``problem`` is then the text of all turns but the
    system's. ``faults`` lists the reasons why a row cannot be read, ``unread`` why a demonstration cannot.

    GSM8K's calculator marks are removed and its last line becomes a box, so that its demonstrations end as the
    instruction asks. DAPO's instructions are removed from the problem. A "solution" that is only the answer is dropped.

    Args:
        columns: our name to the data set's name, ``{"problem": "question", ...}``, for columns that are not recognized
            or not wanted as they are. A dot leads into an object: ``extra_info.answer``.

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
    gold = gold_text(answer)
    solutions, pair = _solutions(row, gold)
    made |= _asked(row, pair, bool(solutions))
    if not solutions and worked is not None:
        solutions = [d for d in [worked] if not _is_bare(d, gold)]
    if answer is not None:
        made["answer"] = _answer(answer) if isinstance(answer, str) else answer
    made["demonstrations"] = solutions or made.pop("last", [])
    made.pop("last", None)
    if row.get("pass_rate") is not None:
        made["pass_rate"] = row["pass_rate"]
    return made


def with_chat(row: dict) -> tuple[dict, list[str]]:
    """A row that was not prepared, with ``problem`` and ``demonstrations`` taken from its messages or its completion.

    Returns:
        The row, unchanged if it has neither messages nor a completion; and the faults of the parts that cannot be read.
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
    """Names of columns that are not read although they could hold a demonstration: texts, lists and objects."""
    named = {theirs.partition(".")[0] for theirs in columns.values()}
    return [name for name, value in row.items() if name not in _OTHERS | named and isinstance(value, str | list | dict)]


def further_columns(row: dict, columns: dict[str, str]) -> dict:
    """Columns of a raw row other than problem, answer and demonstrations; reward functions may need them.

    >>> further_columns({"problem": "6 * 7?", "answer": "42", "level": 3, "worked": "..."}, {"solution": "worked"})
    {'level': 3}
    """
    gone = _READ | {theirs for ours, theirs in columns.items() if ours != "answer"}
    return {name: value for name, value in row.items() if name not in gone and value is not None}


def _renamed(row: dict, columns: dict[str, str]) -> dict:
    """The row with the named columns under our names, without the columns that they replace."""
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
    """Value of a column, or of a field inside an object: ``a.b``."""
    if name in row or "." not in name:
        return row.get(name)
    first, _, rest = name.partition(".")
    return _at(row[first], rest) if isinstance(row.get(first), dict) else None


def _asked(row: dict, pair: Chat | None, answered: bool) -> dict:
    """Keys ``problem``, ``turns`` and ``faults`` of a row, and ``last``: the demonstration at the end of its prompt.

    Args:
        pair: the messages that the demonstration comes from. They are the prompt, too, since their last turn answers
            all turns before it, not the first one alone.
        answered: True if the row has a demonstration.
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
    """Column names from options of the form OURS=THEIRS: ``["problem=question"]`` -> ``{"problem": "question"}``."""
    columns = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    wrong = [p for p in pairs if "=" not in p] + [c for c in columns if c not in OURS]
    if wrong:
        raise DataError(f"--column {wrong[0]}: give OURS=THEIRS, where OURS is one of {', '.join(OURS)}")
    return columns


def check_columns(columns: dict[str, str], source: str, first: Sequence[dict]) -> None:
    """Refuses column names (``--column``) that do not occur in the first rows of a source."""
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
    """True if a demonstration is only the answer, without a solution."""
    # a much longer text cannot be only the answer, so it is not squeezed
    short = isinstance(demonstration, str) and len(demonstration) < 2 * len(answer) + 50
    return short and squeezed(demonstration) == squeezed(answer)


def _problem(given):
    """Text of a problem without the instructions that DAPO and OpenThoughts put around it."""
    if not isinstance(given, str):
        return given
    if given.startswith(_DAPO):
        return clean(given.removeprefix(_DAPO).strip().removesuffix(_DAPO_END))
    return clean(_OPEN_THOUGHTS.sub("", given))


def _solutions(row: dict, answer: str) -> tuple[list, Chat | None]:
    """Demonstrations of a row, as texts or objects, and the messages that they come from (None: from no messages).

    Values of other types are returned unchanged; the check of the row reports them.
    """
    if isinstance(row.get("deepseek_reasoning"), str) and isinstance(row.get("deepseek_solution"), str):
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
    """Demonstrations in a column that holds a text or a list of them."""
    given = row[name] if isinstance(row[name], list) else [row[name]]
    complete = row.get("is_reasoning_complete") if name in ("generations", "demonstrations") else None
    complete = [complete] if isinstance(complete, bool) else complete
    if not isinstance(complete, list) or len(complete) != len(given):
        complete = [True] * len(given)
    texts = [_text(d) for d in given]
    return [t if whole is not False else {"text": t, "complete": False}
            for t, whole in zip(texts, complete, strict=True) if t is not None and t != ""]  # fmt: skip


def _ends(read: Chat, alone: bool = False) -> list:
    """List with the demonstration that ends the messages; with ``alone`` the messages may hold nothing else."""
    if read.faults:
        return [{"text": "", "unread": "; ".join(read.faults)}]
    if len(read.answers) > 1 or (alone and (read.asked or not read.answers)):
        return [{"text": "", "unread": "it is not one turn of the assistant"}]
    return [_text(text) for text in read.answers if text != ""]


def _text(solution):
    """A demonstration in the form that is stored; an object with token ids or offsets stays unchanged."""
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
    """A solution without GSM8K's calculator marks and with its line ``#### 42`` turned into a box."""
    solution = re.sub(r"<<[^<>\n]*>>", "", solution)
    body = solution.rstrip()
    last = body.rfind("\n") + 1
    marked = re.fullmatch(r"#### *(\S.*)", body[last:])
    return rf"{body[:last]}\boxed{{{marked[1]}}}" if marked else solution


def _answer(answer: str) -> str:
    r"""An answer without the math delimiters or the box around the whole of it.

    >>> _answer(r"$\frac{1}{2}$"), _answer(r"\boxed{3}"), _answer("$5 and $6")
    ('\\frac{1}{2}', '3', '$5 and $6')
    """
    answer = clean(answer)
    if inner := re.fullmatch(r"\$\$?([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\]", answer, re.DOTALL):
        answer = next(part for part in inner.groups() if part is not None).strip()
    boxed = re.fullmatch(r"\\boxed\{(.*)\}", answer, re.DOTALL)
    return final_answer(answer) or answer if boxed else answer
