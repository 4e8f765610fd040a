"""Grading of one completion: its final answer is searched and compared with the gold answer.

A hostile completion may take forever, so :mod:`prefix_rl.rewards.workers` runs this in processes that can be killed.
:mod:`~prefix_rl.rewards.extraction` searches the final answer (math-verify's own search is not used), and
:mod:`~prefix_rl.rewards.equality` compares the two answers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache

from . import extraction
from .equality import DEFAULT_RULES, Rules, same
from .structure import split
from .wording import untexted

VERSION = "4"
"""Version of the grading rules of this package. It must change whenever a change of the code may change a verdict."""


_FEW_DIGITS = 30


class Outcome(StrEnum):
    """Outcome of grading one sample. Only the worker pool sets ``timeout`` and ``crash``."""

    RIGHT = "right"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    BAD_GOLD = "bad_gold"
    TIMEOUT = "timeout"
    CRASH = "crash"


@dataclass(frozen=True)
class Verdict:
    """Outcome of one completion, its final answer, and the kind of marker of that answer."""

    outcome: Outcome
    answer: str | None = None
    found_by: extraction.FoundBy | None = None


def final_answer(text: str, fallback: bool = False) -> str | None:
    r"""Final answer that a completion states, or None; see :func:`prefix_rl.rewards.extraction.find`.

    >>> final_answer(r"first \boxed{3}, no: \boxed{\frac{1}{2}} it is")
    '\\frac{1}{2}'
    >>> final_answer("6 * 7 = 42\n#### 42")
    '42'
    >>> final_answer("so we get 12") is None
    True
    """
    found = extraction.find(text, fallback)
    return found.answer if found else None


def grade(text: str, gold: str, rules: Rules | None = None) -> Outcome:
    r"""Outcome of one completion: :func:`judge` without the answer.

    >>> grade(r"The answer is \boxed{0.5}", r"\frac{1}{2}")
    <Outcome.RIGHT: 'right'>
    >>> grade("I do not know", "42")
    <Outcome.NO_ANSWER: 'no_answer'>
    >>> grade(r"\boxed{42}", "")
    <Outcome.BAD_GOLD: 'bad_gold'>
    """
    return judge(text, gold, rules).outcome


def judge(text: str, gold: str, rules: Rules | None = None, start: int = 0) -> Verdict:
    r"""Verdict on one completion: its outcome, its final answer and the kind of marker of that answer.

    Args:
        rules: rules of grading; None for the defaults of :class:`Rules`.
        start: offset in ``text`` at which the policy's own text begins. An answer that ends before it comes from the
            injected prefix and counts as no answer.

    >>> judge("so it is 12.", "12")
    Verdict(outcome=<Outcome.RIGHT: 'right'>, answer='12', found_by='last')
    >>> judge(r"\boxed{12}, done", "12", start=10).outcome
    <Outcome.NO_ANSWER: 'no_answer'>
    """
    rules = rules or DEFAULT_RULES
    if gold_fault(gold):
        return Verdict(Outcome.BAD_GOLD)
    found = extraction.find(text, rules.fallback == "last", rules.boxes == "joined", rules.turns, rules.thought)
    if found is None or (start and found.end <= start):
        return Verdict(Outcome.NO_ANSWER)
    right = equal(found.answer, gold, rules)
    if not right and found.by == "last":
        right = any(equal(part, gold, rules) for part in _last_parts(found.answer))
    return Verdict(Outcome.RIGHT if right else Outcome.WRONG, found.answer, found.by)


def _last_parts(formula: str) -> list[str]:
    """Last parts of a guessed formula, each a possible answer: ``n = 19`` of ``$T = 17, n = 19$``, a last line."""
    ends = []
    if "," in formula:
        ends.append(split(formula.strip("$"), (",",))[-1])
    if "\\\\" in formula and r"\begin{" in formula:
        lines = [line.replace("&", " ") for line in formula.split("\\\\") if any(c.isalnum() for c in line)]
        ends.append(re.sub(r"\\end\{[^{}]*\}.*|^\s*(?:\\[A-Z][a-z]+arrow)", "", lines[-1], flags=re.DOTALL))
    return ends


_SENTINELS = frozenset(
    "proof proofs prove proved proven proofneeded proofrequired proofproblem seeproof proofomitted "  # noqa: SIM905
    "proofbelow theproofisinthesolution qed notfound answernotfound noanswer noanswerfound "
    "noanswerprovided noanswergiven notavailable notprovided notgiven unavailable notapplicable "
    "unanswerable nonegiven unknown null nan undefinedanswer missing missinganswer tbd todo "
    "seesolution seeabove seeexplanation seethesolution solution omitted placeholder error invalid".split()
)
"""Words of data sets in the place of a missing answer (NuminaMath: ``proof``, ``notfound``), lower-case letters only."""  # noqa: E501


@lru_cache(maxsize=65536)
def gold_fault(gold: str) -> str | None:
    r"""Reason why completions cannot be graded against a gold answer; None if they can.

    >>> gold_fault("proof"), gold_fault("42"), gold_fault(r"\frac{1")
    ("'proof' stands where an answer is missing", None, 'it cannot be parsed')
    """
    bare = parse_gold(gold)
    if not bare:
        return "it cannot be parsed" if gold.strip() else "it is empty"
    said = re.sub(r"[^a-z]", "", untexted(bare[:200]).lower())
    if (said in _SENTINELS and not re.search(r"[\d=]", bare)) or re.fullmatch(
        r"\W*n\s*[/.]\s*a\W*", untexted(bare[:200]).lower()
    ):
        return f"{bare[:40]!r} stands where an answer is missing"
    return None


_LISTED = re.compile(r"""\[\s*(?:"[^"]*"|'[^']*')(?:\s*,\s*(?:"[^"]*"|'[^']*'))*\s*,?\s*\]""")
_ITEM = re.compile(r"""(?<=[\[,\s])(?:"([^"]*)"|'([^']*)')""")


def gold_items(gold: str) -> list[str]:
    r"""Answers in a gold answer that is a list of texts in JSON or Python; for any other gold answer, itself alone.

    >>> gold_items('["64"]'), gold_items("['3', '5']"), gold_items(r'["\\frac{1}{2}"]'), gold_items("[3, 5]")
    (['64'], ['3', '5'], ['\\frac{1}{2}'], ['[3, 5]'])
    """
    text = gold.strip()
    if not text.startswith("[") or len(text) > 10_000 or not _LISTED.fullmatch(text):
        return [gold]
    items = [(double or single).replace("\\\\", "\\").strip() for double, single in _ITEM.findall(text)]
    return [item for item in items if item] or [""]


def gold_text(value: object) -> str:
    r"""The text of a gold answer that a file holds as a number, or as a text: a number as people write it, without an
    exponent where it has few digits, and without the point of a whole one. Empty for None.

    >>> gold_text(7.0), gold_text(0.1), gold_text(1e21), gold_text(-1.5e300), gold_text(" 7.0"), gold_text(None)
    ('7', '0.1', '1000000000000000000000', '-1.5 \\times 10^{300}', ' 7.0', '')
    """
    if not isinstance(value, float) or not math.isfinite(value):
        return "" if value is None else str(value)
    if value == 0:
        return "0"
    shortest = Decimal(repr(value))
    power = shortest.adjusted()
    if abs(power) > _FEW_DIGITS:
        return rf"{gold_text(float(shortest.scaleb(-power)))} \times 10^{{{power}}}"
    plain = format(shortest, "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


@lru_cache(maxsize=65536)
def parse_gold(gold: str) -> str:
    """Gold answer without the text around it (such as a box); "" if it cannot be an answer.

    An answer has balanced braces and at least one letter, digit, ∞ or ∅. Words are answers too ("even"). The answers
    of a list of texts are joined with commas.
    """
    items = [_bare_gold(item) for item in gold_items(gold)]
    return ", ".join(items) if all(items) else ""


def _bare_gold(gold: str) -> str:
    found = (
        extraction.find(gold, fallback=False)
        if len(gold) > 80 or re.search(r"\\boxed|\\fbox|####|<answer>|answer", gold)
        else None
    )
    bare = found.answer if found and found.answer else gold.strip()
    if bare.count("{") - bare.count(r"\{") != bare.count("}") - bare.count(r"\}"):
        return ""
    return bare if any(c.isalnum() or c in "∞∅" for c in bare) else ""


def equal(answer: str, gold: str, rules: Rules | None = None) -> bool:
    r"""True if two answers mean the same.

    >>> equal("(0.6, 8/3]", r"\left(\frac{3}{5},\frac{8}{3}\right]"), equal("x = 5", "5"), equal("x = 5", "y = 5")
    (True, True, False)
    """
    rules = rules or DEFAULT_RULES
    if answer.lstrip().startswith("["):
        answer = ", ".join(gold_items(answer))
    items = gold_items(gold) if rules.gold_list == "any" else [gold]
    return any(same(answer, parse_gold(item) or item, rules) for item in items)
