r"""Whether a completion's final answer equals the gold answer: math-verify, and what stands before it.

This module decides one sample and may take forever on a hostile one; :mod:`prefix_rl.rewards.workers` runs it in
processes that can be killed. The order of decisions:

1. The final answer is cut out of the text by :func:`final_answer`; math-verify never searches a whole completion.
2. Equal strings and pairs of plain integers (or tuples of them) are decided without a computer algebra system.
3. math-verify parses both sides and compares them.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

VERSION = "2"
"""Of the decisions of this module; it changes whenever a verdict may."""

MAX_ANSWER_CHARACTERS = 1_000
"""A longer answer is wrong unless it is the gold answer to the letter: no answer of a benchmark comes near, and
parsing time grows without bound."""


class Outcome(StrEnum):
    """How one sample ended. ``timeout`` and ``crash`` are set by the worker pool."""

    RIGHT = "right"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    BAD_GOLD = "bad_gold"
    TIMEOUT = "timeout"
    CRASH = "crash"


@dataclass(frozen=True)
class Rules:
    """What people differ on. The defaults are those of the benchmarks' own graders."""


@dataclass(frozen=True)
class Verdict:
    """What was decided of one completion, and of which answer in it."""

    outcome: Outcome
    answer: str | None = None
    found_by: str | None = None


_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S[^\n]*)$", re.MULTILINE)
_STATED = re.compile(r"\banswer\s*(?:is|:|=)\s*:?\s*(?P<answer>[^\n]+)", re.IGNORECASE)
_INTEGERS = re.compile(r"\(?\s*(-?\d{1,18}(?:\s*,\s*-?\d{1,18})*)\s*\)?")


def final_answer(text: str) -> str | None:
    r"""The final answer that a completion states, or None.

    After a ``</think>`` only what follows counts. There, in this order: the last balanced ``\boxed{...}``, the last
    ``####`` line, the last "answer is ...". A text that states nothing has no answer: the last number of a derivation
    is not taken for one.

    >>> final_answer(r"first \boxed{3}, no: \boxed{\frac{1}{2}} it is")
    '\\frac{1}{2}'
    >>> final_answer("6 * 7 = 42\n#### 42")
    '42'
    >>> final_answer("The answer is $12$.")
    '12'
    >>> final_answer("so we get 12") is None
    True
    """
    text = text.rpartition("</think>")[2]
    boxes = [content for content in (_braced(text, m.end()) for m in _BOX.finditer(text)) if content is not None]
    if boxes:
        return boxes[-1].strip() or None
    if hashes := _HASHES.findall(text):
        return hashes[-1].strip()
    if stated := list(_STATED.finditer(text)):
        return _strip_sentence(stated[-1]["answer"]) or None
    return None


def _braced(text: str, start: int) -> str | None:
    """The content of the group that opens at ``start``, None if it never closes."""
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)  # an escaped brace is no brace
        if depth == 0:
            return text[start + 1 : brace.start()]
    return None


def _strip_sentence(answer: str) -> str:
    """``$12$.`` -> ``12``; ``12. Check: ...`` -> ``12``; ``3.5`` stays."""
    answer = re.split(r"[.;](?:\s|$)", answer.strip(), maxsplit=1)[0].strip().rstrip(".")
    dollars = re.fullmatch(r"\$+([^$]+)\$+", answer) or re.fullmatch(r"\\[(\[](.+)\\[)\]]", answer)
    return (dollars[1] if dollars else answer).strip(" *")


@lru_cache(maxsize=65536)
def parse_gold(gold: str) -> tuple:
    """The gold answer as math-verify's candidates, parsed once in each process; empty if it cannot be parsed.

    Words are an answer too ("even"). Where math-verify makes nothing of a gold answer but the string itself, the string
    must at least hold a letter or digit and close its braces.
    """
    candidates = _parse(gold) if gold.strip() else ()
    if all(isinstance(candidate, str) for candidate in candidates):
        return candidates if gold.count("{") == gold.count("}") and any(c.isalnum() for c in gold) else ()
    return candidates


def grade(text: str, gold: str, rules: Rules | None = None) -> Outcome:
    r"""The outcome of one completion: :func:`judge` without its reasons.

    >>> grade(r"The answer is \boxed{0.5}", r"\frac{1}{2}")
    <Outcome.RIGHT: 'right'>
    >>> grade("I do not know", "42")
    <Outcome.NO_ANSWER: 'no_answer'>
    >>> grade(r"\boxed{42}", "")
    <Outcome.BAD_GOLD: 'bad_gold'>
    """
    return judge(text, gold, rules).outcome


def judge(text: str, gold: str, rules: Rules | None = None, start: int = 0) -> Verdict:
    """The outcome of one completion, its final answer and how it was found.

    Args:
        start: the offset in ``text`` at which the policy's own text begins, after an injected prefix.
    """
    if _integers(gold) is None and not parse_gold(gold):
        return Verdict(Outcome.BAD_GOLD)
    answer = final_answer(text)
    if answer is None:
        return Verdict(Outcome.NO_ANSWER)
    return Verdict(Outcome.RIGHT if equal(answer, gold) else Outcome.WRONG, answer, "marker")


def equal(answer: str, gold: str) -> bool:
    """Whether two answers denote the same thing. Not symmetric: ``gold`` decides what kind of thing it is."""
    bare_gold = final_answer(gold) or gold.strip().strip("$").strip()
    if answer == bare_gold or "".join(answer.split()) == "".join(bare_gold.split()):
        return True
    ours, theirs = _integers(answer), _integers(bare_gold)
    if ours is not None and theirs is not None:
        return ours == theirs
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return False
    from math_verify import verify

    candidates = _parse(answer)
    return bool(candidates) and verify(list(parse_gold(gold)), list(candidates), timeout_seconds=None)


def _integers(answer: str) -> tuple[int, ...] | None:
    """``12`` -> (12,), ``(1, 2)`` -> (1, 2); None for anything else, ``1,000`` included, which may be one number."""
    match = _INTEGERS.fullmatch(answer)
    if not match or (answer.lstrip()[:1] == "(") != (answer.rstrip()[-1:] == ")"):
        return None
    numbers = tuple(int(n) for n in match[1].split(","))
    if len(numbers) > 1 and not answer.lstrip().startswith("("):
        return None
    return numbers


def _parse(answer: str) -> tuple:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we own the deadline
    answer = answer.replace(r"\$", "")  # a currency, where a bare $ is a delimiter
    marked = answer if re.search(r"\$|\\boxed|\\\(|\\\[", answer) else rf"\boxed{{{answer}}}"
    found = parse(
        marked,
        extraction_config=(LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()),
        parsing_timeout=None,
    )
    return tuple(found)
