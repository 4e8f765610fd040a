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

OURS = ("id", "problem", "answer", "solution", "pass_rate")
"""What a column can be named as."""
_DEMONSTRATIONS = ("demonstrations", "generations", "target", "conversations", "deepseek_solution", "solution")
_DAPO = re.compile(
    r"\ASolve the following math problem step by step\. The last line of your response should be of the form Answer: "
    r"\$Answer \(without quotes\) where \$Answer is the answer to the problem\.\s*(.*?)"
    r'(?:\s*Remember to put your answer on its own line after "Answer:"\.)?\s*\Z',
    re.DOTALL,
)
_OPEN_THOUGHTS = re.compile(r"\AReturn your final response within \\boxed\{\}\.\s*")
_THOUGHT = re.compile(
    r"\A\s*<\|begin_of_thought\|>\s*(.*?)\s*<\|end_of_thought\|>\s*"
    r"<\|begin_of_solution\|>\s*(.*?)\s*(?:<\|end_of_solution\|>)?\s*\Z",
    re.DOTALL,
)


def normalize(row: dict, columns: dict[str, str]) -> dict:
    r"""A raw row with the columns ``id``, ``problem``, ``answer``, ``demonstrations`` and ``pass_rate``, as far as they
    can be found; ``answer`` and ``problem`` may still be wrong.

    Args:
        columns: ``{"problem": "question", ...}`` for what is not known by name; it goes before what is.

    GSM8K's marks are taken out and its last line becomes a box, so that the demonstrations end as the instruction asks;
    DAPO's instructions are taken off the problem; a "solution" that is nothing but the answer is no demonstration.

    >>> normalize({"question": "6 * 7?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"}, {})
    {'problem': '6 * 7?', 'answer': '42', 'demonstrations': ['6 * 7 = 42\n\\boxed{42}']}
    """
    if "solution" in columns:
        row = {name: value for name, value in row.items() if name not in _DEMONSTRATIONS or name == columns["solution"]}
    row = {**row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}}
    extra = row.get("extra_info") if isinstance(row.get("extra_info"), dict) else {}
    reward = row.get("reward_model") if isinstance(row.get("reward_model"), dict) else {}
    made = {}
    if (name := _first(row, "id", "uuid", "unique_id") or extra.get("index")) is not None:
        made["id"] = name
    turns = _turns(row.get("conversations")) or _turns(row.get("messages"))
    problem = _first(row, "problem", "question", "prompt")
    if (problem := _problem(problem if problem is not None else turns.get("user"))) is not None:
        made["problem"] = problem
    answer = _first(row, "answer", "final_answer", "ground_truth")
    answer = reward.get("ground_truth") if answer is None else answer
    published = _first(row, "ground_truth_solution", "solution")
    solutions = _solutions(row)
    if isinstance(answer, str) and "####" in answer:
        solutions = solutions or [_text(answer)]
        answer = final_answer(answer)
    elif answer is None and isinstance(published, str):
        answer = final_answer(published)
    if answer is not None:
        made["answer"] = _answer(answer) if isinstance(answer, str) else answer
    made["demonstrations"] = [d for d in solutions if not _is_bare(d, str(answer))]
    if row.get("pass_rate") is not None:
        made["pass_rate"] = row["pass_rate"]
    return made


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
        for ours, theirs in columns.items() if theirs not in there
    ]  # fmt: skip
    if wrong:
        raise DataError(f"{source} has other columns than were named:", wrong)


def _first(row: dict, *names: str):
    return next((row[name] for name in names if row.get(name) is not None), None)


def _is_bare(demonstration, answer: str) -> bool:
    """Whether a demonstration is nothing but the answer. A much longer one need not be looked at."""
    short = isinstance(demonstration, str) and len(demonstration) < 2 * len(answer) + 50
    return short and squeezed(demonstration) == squeezed(answer)


def _turns(messages) -> dict[str, str]:
    """The last text of each role, of messages in either of the two usual forms."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return {}
    roles = {"human": "user", "gpt": "assistant"}
    said = ((m.get("role") or m.get("from"), m.get("content") or m.get("value")) for m in messages)
    return {roles.get(role, role): text for role, text in said}


def _problem(given):
    """The text of a problem, out of chat messages and out of a known frame of instructions."""
    text = _turns(given).get("user") if isinstance(given, list) else given
    if not isinstance(text, str):
        return text
    framed = _DAPO.match(text)
    return clean(framed[1] if framed else _OPEN_THOUGHTS.sub("", text))


def _solutions(row: dict) -> list:
    """The demonstrations of a row, as texts or objects; what is neither stays, for the check to find."""
    if row.get("deepseek_reasoning") is not None and row.get("deepseek_solution") is not None:
        return [f"<think>\n{row['deepseek_reasoning'].strip()}\n</think>\n\n{row['deepseek_solution'].strip()}"]
    name = next((n for n in _DEMONSTRATIONS if row.get(n) is not None), None)
    if name is None:
        return []
    given = row[name]
    if name in ("conversations", "target"):
        given = [_turns(given).get("assistant")] if isinstance(given, list) else [given]
    given = given if isinstance(given, list) else [given]
    complete = row.get("is_reasoning_complete") if name == "generations" else None
    if not isinstance(complete, list) or len(complete) != len(given):
        complete = [True] * len(given)
    texts = [_text(d) for d in given]
    return [t if whole is not False else {"text": t, "complete": False}
            for t, whole in zip(texts, complete, strict=True) if t is not None and t != ""]  # fmt: skip


def _text(solution):
    """A demonstration as it is stored. One that brings ids or offsets along stays as it is."""
    if isinstance(solution, dict):
        if isinstance(solution.get("text"), str):
            return solution if set(solution) > {"text"} else _text(solution["text"])
        return _text(solution["content"]) if isinstance(solution.get("content"), str) else solution
    if not isinstance(solution, str):
        return solution
    if thought := _THOUGHT.match(solution):
        solution = f"<think>\n{thought[1]}\n</think>\n\n{thought[2]}"
    return _boxed_ending(clean(solution))


def _boxed_ending(solution: str) -> str:
    """GSM8K's calculator marks removed and its ``#### 42`` line turned into a box; other texts unchanged."""
    solution = re.sub(r"<<[^<>\n]*>>", "", solution)
    return re.sub(r"^#### *(\S.*?)\s*\Z", lambda m: rf"\boxed{{{m[1]}}}", solution, flags=re.MULTILINE)


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
