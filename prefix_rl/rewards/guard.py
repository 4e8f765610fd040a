r"""Search for the first place at which a demonstration shows its answer, so that a prefix can end before it.

The pieces of mathematics in a demonstration (numbers, terms, sides of equations, brackets, lists) are compared with the
answer in the way the grader compares answers. There are three guards, from the latest place to the earliest:

- ``statement``: the place at which the answer is announced (``\boxed``, ``####``, "the answer is").
- ``mention``: the first place at which the answer stands, in any notation with no more operations than the answer
  itself (``\frac{-1}{2}`` for ``-0.5``, ``1{,}250`` for 1250), or is announced. The sign of a number is ignored:
  ``5 - 3`` and ``-3`` cannot be told apart without reading the mathematics. An answer of several parts counts as shown
  at its last part. A number that also stands in the problem counts only as a result (``= 5``, "is 5").
- ``computed``: the first place at which an expression with the value of the answer begins (``48/2 + 48`` for 72), or
  one of the places above.

Numbers in words are not recognized. The work of :func:`readable` is bounded, so it may run in any process; with
``deep`` it also asks the computer algebra system about expressions that our grammar lacks: run that in a worker.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache

from . import values
from .equality import DEFAULT_RULES, same, same_number
from .expressions import MALFORMED, tree
from .grading import parse_gold
from .notation import Number, clean, number, words
from .structure import Group, chain, parse
from .wording import untexted

GUARDS = ("mention", "statement", "computed")

# Beginning of a final statement in demonstrations. The answer follows it, in whatever notation.
_STATEMENT = re.compile(
    r"\\boxed|\\fbox|####|<answer>|\b(?:final|correct)\s{1,9}(?:answer|result)\b|\banswer\s{0,9}(?:is|:|=)",
    re.IGNORECASE,
)
_MARK = re.compile(r"\\boxed|\\fbox|####|<[aA]nswer>")
_WORDS = re.compile(r"(?:[fF]inal|FINAL|[cC]orrect|CORRECT|[aA]nswer|ANSWER)")
_SEPARATED = r"\d{1,3}(?:(?:,|\{,\}|\\,|,?\\!|\\ | )\s?\d{3}(?!\d))+(?:\.\d+)?"
_INTEGER = r"\{\s{0,3}-?\s{0,3}\d{1,30}\s{0,3}\}"
_LITERAL = re.compile(
    rf"(?:\d{{1,20}}\s{{0,3}})?\\[dtc]?frac\s{{0,3}}(?:{_INTEGER}|\d)\s{{0,3}}(?:{_INTEGER}|\d)(?:\s{{0,2}}\\?%)?"
    rf"|(?:\d{{1,20}}\s{{1,3}})?\d{{1,30}}\s?/\s?\d{{1,30}}(?:\s?\\?%)?"
    r"|\(\s?[-−]?\d{1,30}\s?\)\s?/\s?(?:\d{1,30}|\(\s?[-−]?\d{1,30}\s?\))"
    r"|\d{0,20}[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]"
    rf"|(?:{_SEPARATED}|\d+(?:\.\d+)?|\.\d+)(?:\s?\\?%|\s?(?:\\times|\\cdot|×)\s?10\s?\^\s?(?:\{{\s?-?\d{{1,3}}\s?\}}|\d))?"
)
"""Pattern of one rational number in any notation."""
_DIGITS = 400  # characters; a number as long as this or longer is not read
# Text directly before a number that is a result: "= 5", "is $5$", "x \approx 5".
_RESULT = re.compile(
    r"(?:[=≈→:]|\\(?:approx|equiv|to|implies|Rightarrow|rightarrow)|\b(?:is|are|equals?|be|was|were|gets?|gives?|yields?|obtain|leaves|makes?|"
    r"total|find|leaving|becomes))(?:[\s$*{(\-−~]|\\[(\[,;! $]|\\text(?:bf)?\{|\\mathbf\{|therefore|then|exactly|about|a total of){0,12}$"  # noqa: E501
)
_BETWEEN = re.compile(  # text between two parts of one list
    r"(?:[\s$,;.{}()\[\]\-−+]|\\[()\[\],;! ]|\\q?quad|\\pm|\\left|\\right|\\text(?:rm)?\s?\{|and|or|[A-Za-z](?:_\{?\w\}?)?\s?=){0,16}"  # noqa: E501
)
# A side of an equation: numbers, letters that stand alone, operators, brackets, commands of mathematics.
_RUN = re.compile(
    r"(?:[\d+\-*/^_(){}|!%−×·÷√∛∜π⁰¹²³⁴-⁹⁺⁻ⁿ½⅓⅔¼¾]|\[(?=[^\[\]]{1,9}\]\{)|(?<=\d)\](?=\{)|[.,](?=\d)|(?<=\S)[ ](?=\S)|\\[,;:! %]|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])"  # noqa: E501
    r"|\\(?:[dtc]?frac|sqrt|cdot|times|div|pi|left|right|sin|cos|tan|ln|log|exp|binom|theta|alpha|beta|circ)(?![A-Za-z])){1,400}"
)
_BRACKETS = re.compile(r"(?:\\[{(\[]|[(\[])(?:[^()\[\]$]|\([^()$]{0,80}\)){1,200}?(?:\\[})\]]|[)\]])")
_MATRIX = re.compile(r"\\begin\{([pbvB]?matrix|array)\}.{1,600}?\\end\{\1\}", re.DOTALL)
_FORMULA = re.compile(r"\$([^$\n]{1,300})\$|\\\(([^\n]{1,300}?)\\\)|\\\[(.{1,400}?)\\\]", re.DOTALL)
_TYPESETTING = (
    r"(?:\s|\\(?:left|right|displaystyle|mathrm|mathbf|text|textbf|operatorname)(?![A-Za-z])|\\[!,;:> ]|[${}]){0,8}"
)
_MAX_SPANS = 400  # expressions of one demonstration that are compared with an answer that is no number
_MAX_DEEP = 24  # spans that the computer algebra system is asked about


def readable(text: str, answer: str, problem: str = "", deep: bool = False, computed: bool = True) -> dict[str, int]:
    r"""Offset in a demonstration, for each guard, that no prefix may pass; the length of the text if there is no limit.

    Args:
        answer: the gold answer, as in the data.
        problem: text of the problem; a number in it is known already and counts only as a result. "": all count.
        deep: True to ask the computer algebra system as well.
        computed: True to look also for expressions with the value of the answer, which is the slowest part.

    >>> readable(r"48/2 = 24, 48 + 24 = 72, so \boxed{72}", "72")
    {'mention': 21, 'statement': 28, 'computed': 11}
    """
    statement = _statement(text)
    target = _Target(answer, problem)
    mention = target.first(text, statement, deep)
    found = {"mention": mention, "statement": statement}
    return found | ({"computed": min(mention, target.computed(text, mention))} if computed else {})


def _statement(text: str) -> int:
    """Offset at which a final statement begins; the length of the text if there is none."""
    said = _MARK.search(text)
    place = said.start() if said else len(text)
    for m in _WORDS.finditer(text, 0, place):
        if found := _STATEMENT.match(text, m.start()):
            return found.start()
    return place


def readable_from(text: str, answer: str, guard: str = "mention", problem: str = "") -> int:
    r"""Offset in a demonstration that no prefix may pass under a guard; the length of the text if there is no limit.

    >>> text = r"6 * 7 = 42, so \boxed{42}"
    >>> [readable_from(text, "42", guard) for guard in ("computed", "mention", "statement", "none")]
    [0, 8, 15, 25]
    """
    return len(text) if guard == "none" else readable(text, answer, problem, computed=guard == "computed")[guard]


def safe_cuts(
    text: str, answer: str, ends: Sequence[int], guard: str = "mention", problem: str = "", offset: int | None = None
) -> tuple[int, frozenset[int]]:
    r"""Lengths, in tokens, at which a demonstration may be cut without showing its answer.

    Args:
        text: text of the demonstration.
        answer: its final answer, as in the data (LaTeX or plain).
        ends: for each token, the offset in ``text`` at which it ends.
        guard: ``mention``, ``statement``, ``computed`` (see this module), or ``none`` for no limit.
        problem: text of the problem, see :func:`readable`.
        offset: offset that :func:`readable` returned for this guard, if it is known already.

    Returns:
        ``(safe_length, misread_lengths)`` of a :class:`~prefix_rl.prefixes.Demonstration`: the longest safe prefix, and
        the shorter prefixes that end inside a number and by that show the answer.

    >>> text = r"6 * 7 = 42, so \boxed{42}"
    >>> ends = list(range(1, len(text) + 1))  # one token a character
    >>> text[: safe_cuts(text, "42", ends)[0]]
    '6 * 7 = '
    >>> text[: safe_cuts(text, "42", ends, "statement")[0]]
    '6 * 7 = 42, so '
    """
    if guard == "none":
        return len(ends), frozenset()
    offset = readable_from(text, answer, guard, problem) if offset is None else offset
    safe = bisect_right(ends, offset) if offset < len(text) else len(ends)
    if guard == "statement":
        return safe, frozenset()
    return safe, frozenset(k for k in _Target(answer, problem).misread(text, offset, ends) if k <= safe)


@lru_cache(maxsize=65536)
def _literal(text: str) -> Number | None:
    return number(clean(text)) if len(text) < _DIGITS else None


class _Target:
    """Answer in parts, as the grader sees it, and the search for them in a demonstration."""

    def __init__(self, answer: str, problem: str):
        self.bare = clean(parse_gold(answer) or answer) if len(answer) <= 1_000 else ""
        group = parse(self.bare)
        if group.kind == "text" and (named := chain(group.text)) and named.name is not None:
            group = parse(named.value)
        self.group, self.problem = group, problem
        self.numbers = [n for part in (group.parts or (group,)) if (n := number(part.text))]
        self.tree = tree(group.text) if group.kind == "text" and not self.numbers else None
        self.tree = None if self.tree == MALFORMED else self.tree
        if self.tree and (value := values.rational(self.tree)) is not None:  # 2^{10}: also shown by 1,024
            self.numbers = [Number(value, False)]
        self._known: dict[str, frozenset[int]] = {}
        self._places: dict[str, tuple] = {}
        self.all_numbers = not self.tree and len(self.numbers) == len(group.parts or (group,))
        self._given: set[int] = set()
        if problem and (self.all_numbers or self.tree):
            for m in _LITERAL.finditer(problem):
                self._given |= self.parts_of(m[0])

    def parts_of(self, literal: str) -> frozenset[int]:
        """Indices of the parts of the answer that are equal to a number, signs ignored."""
        if literal not in self._known:
            found, n = set(), _literal(literal)
            if n:
                ours = Number(abs(n.value), n.decimal, n.percent)
                shown = [ours] + ([Number(ours.value * 100, ours.decimal)] if ours.percent else [])
                for i, part in enumerate(self.numbers):
                    theirs = Number(abs(part.value), part.decimal, part.percent)
                    if any(same_number(one, theirs, DEFAULT_RULES) for one in shown):
                        found.add(i)
            if len(self._known) < 100_000:
                self._known[literal] = frozenset(found)
            return frozenset(found)
        return self._known[literal]

    def occurrences(self, text: str, limit: int) -> Iterator[tuple[int, int, frozenset[int]]]:
        """Triples ``(start, end, indices of parts)``, one for each number in the text that is a part of the answer."""
        places = self._places
        for m in _LITERAL.finditer(text, 0, limit):
            literal = m[0]
            if literal not in places:
                places[literal] = self._inside(literal)
            for start, end, parts in places[literal]:
                yield m.start() + start, m.start() + end, parts

    def _inside(self, literal: str) -> tuple[tuple[int, int, frozenset[int]], ...]:
        """Triples as in :meth:`occurrences`, with offsets in one number: all of it, or a piece (the 24 of 24/2)."""
        if parts := self.parts_of(literal):
            return ((0, len(literal), parts),)
        if literal.isdigit():
            return ()
        return tuple(
            (m.start(), m.end(), parts)
            for m in _PLAIN.finditer(literal)
            if (parts := self.parts_of(m[0])) and m[0] != literal
        )

    def counts(self, text: str, start: int, parts: frozenset[int]) -> bool:
        """True if a number counts as a mention: it is new, or it stands in the problem and here it is a result."""
        return not parts <= self._given or bool(_RESULT.search(text[max(start - 60, 0) : start]))

    # --- where the answer stands ---

    def first(self, text: str, limit: int, deep: bool) -> int:
        if not self.bare:
            return limit
        if self.all_numbers and self.group.kind == "text":
            return next((s for s, _, parts in self.occurrences(text, limit) if self.counts(text, s, parts)), limit)
        limit = self.literally(text, limit)
        if self.group.kind in ("tuple", "union", "matrix", "list"):
            last = self.last_part(text, limit) if self.all_numbers and self.group.kind in ("list", "tuple") else limit
            limit = min(self.brackets(text, limit), last)
        if self.tree and self.numbers:
            limit = next((s for s, _, parts in self.occurrences(text, limit) if self.counts(text, s, parts)), limit)
        if self.tree:
            limit = self.expression(text, limit, values.size(self.tree))
        elif self.group.kind == "list" and not self.all_numbers:
            limit = min(limit, self.last_expression(text, limit))
        return self.deeply(text, limit) if deep and not self.tree and not self.all_numbers else limit

    def literally(self, text: str, limit: int) -> int:
        """Offset at which the answer stands as in the data, blanks and typesetting ignored; ``limit`` if nowhere."""
        tokens = re.findall(r"\\[A-Za-z]+|[^\s${}]", untexted(self.bare))
        if sum(len(t) for t in tokens) < 2 or len(tokens) > 200:
            return limit
        begins = r"(?<![^\W_])" if tokens[0].isalnum() else ""
        ends = r"(?![^\W_])" if self.bare.isalpha() or tokens[-1].isdigit() else ""
        pattern = begins + _TYPESETTING.join(map(_variants, tokens)) + ends
        if clock := re.fullmatch(r"(\d{1,2}:\d\d) ([ap])m", self.bare):
            pattern = rf"(?<!\d){clock[1]}{_TYPESETTING}{clock[2]}\.?\s?m"
        found = re.compile(pattern, re.IGNORECASE).search(text, 0, limit)
        if found and self.group.kind == "list" and self.group.parts and self.all_numbers:
            return limit  # a list of numbers is shown only at its last part: see last_part
        return found.start() if found else limit

    def last_part(self, text: str, limit: int) -> int:
        """Offset at which the last part of a list of numbers is shown: all in one list, or each one as a result."""
        wanted, results, listed, end = frozenset(range(len(self.numbers))), set(), set(), None
        for start, stop, parts in self.occurrences(text, limit):
            if end is None or not _BETWEEN.fullmatch(text, end, start):
                listed = set()
            listed |= parts
            if _RESULT.search(text[max(start - 60, 0) : start]) or (len(listed) > 1 and listed & results):
                results |= parts
            if wanted <= listed or wanted <= results:
                return start
            end = stop
        return limit

    def last_expression(self, text: str, limit: int) -> int:
        """Offset at which the last of several expressions is shown: the latest of their first places."""
        places = [_Target(part.text, self.problem).first(text, limit, False) for part in self.group.parts[:8]]
        return max(places, default=limit)

    def brackets(self, text: str, limit: int) -> int:
        patterns = (_MATRIX,) if self.group.kind == "matrix" else (_BRACKETS,)
        for pattern in patterns:
            for count, m in enumerate(pattern.finditer(text, 0, limit)):
                if count > _MAX_SPANS:
                    break
                if ("," in m[0] or ";" in m[0] or pattern is _MATRIX) and _alike(parse(clean(m[0])), self.group):
                    return m.start()
        return limit

    def expression(self, text: str, limit: int, size: int) -> int:
        """Offset of the first expression with the value of the answer and at most ``size`` operations, or ``limit``."""
        seen: dict[str, bool] = {}
        for begin, span in _spans(text, limit, self.wanted()):
            if span not in seen:
                if len(seen) > _MAX_SPANS:
                    break
                found = tree(clean(span)) if len(span) < 400 else None
                readable_ = found and found != MALFORMED and values.size(found) <= size
                seen[span] = bool(readable_) and _worth(found, self.tree)
            if seen[span]:
                return begin
        return limit

    def wanted(self) -> Callable[[str], bool]:
        """Quick test of a span before it is read: it must contain a sign or letter that the answer needs."""
        names: set[str] = set()
        for mark, variants in (("pi", ("pi", "π")), ("sqrt", ("sqrt", "√", "∛", "∜", "^"))):
            if mark in self.group.text:
                return lambda span: any(v in span for v in variants)
        names = set(re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", self.group.text))
        return lambda span: not names or any(n in span for n in names)

    def deeply(self, text: str, limit: int) -> int:
        if words(self.bare) or ":" in self.bare:  # words, times and ratios have no other notation
            return limit
        seen: set[str] = set()
        relation = chain(self.bare)
        equation = _letters(self.bare) if relation and relation.name is None else None
        for m in _FORMULA.finditer(text, 0, limit):
            span = m[1] or m[2] or m[3]
            if len(seen) >= _MAX_DEEP or span in seen or len(span) > 8 * len(self.bare) + 20:
                continue
            seen.add(span)
            if _PROSE.search(span) or (equation and _letters(span) != equation):
                continue  # the computer algebra system is not asked about prose, or about an equation in other letters
            if same(span, self.bare):
                return m.start() + 1
        return limit

    # --- where it is computed, where a cut shows it ---

    def computed(self, text: str, limit: int) -> int:
        """Offset of the first expression with the value of the answer, whole or up to an operand; else ``limit``."""
        if self.group.kind != "text" or not (self.all_numbers or self.tree):
            return limit
        value = ("n", abs(self.numbers[0].value), self.numbers[0].decimal) if self.all_numbers else self.tree
        seen: dict[str, bool] = {}
        for begin, run in _runs(text, len(text)):
            if begin >= limit:
                break
            if not _OPERATOR.search(run):
                continue
            for end in _operands(run):
                span = run[:end]
                if span not in seen:
                    if len(seen) > 20_000:
                        return limit
                    found = tree(clean(span))
                    worth = found and found != MALFORMED and values.size(found) > 0
                    seen[span] = bool(worth) and (_worth(found, value) or _worth(("neg", found), value))
                if seen[span]:
                    return begin
        return limit

    def misread(self, text: str, limit: int, ends: Sequence[int]) -> Iterator[int]:
        """Lengths in tokens of prefixes that end inside a longer number and so show the answer (``4`` of ``42``)."""
        if not self.all_numbers or self.group.kind != "text":
            return
        for m in _LITERAL.finditer(text, 0, limit):
            readable_end = min(m.end() - 1, m.start() + _DIGITS)  # a longer number is not read
            first, last = bisect_right(ends, m.start()), bisect_right(ends, readable_end)
            for k in range(first, last):  # tokens that end inside this number
                shown = _LITERAL.fullmatch(text, m.start(), ends[k])
                if shown and (parts := self.parts_of(shown[0])) and self.counts(text, m.start(), parts):
                    yield k + 1


_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,20},?(?: [A-Za-z]{2,20},?){2}|^\s?[A-Za-z]{4,20}, ?$")


def _letters(text: str) -> set[str]:
    """Letters of an expression that stand alone, as variables do."""
    return set(re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])|(?<=\d)[A-Za-z](?![A-Za-z])", text))


_PLAIN = re.compile(r"\d+(?:\.\d+)?")
_OPERATOR = re.compile(r"\d\s?[!^]|[\d)}]\s?(?:[-+*/×÷·−]|\\(?:cdot|times|div))|\)\(|\d\(|frac|sqrt|√")
_NEXT = re.compile(r"(?<=[\w)}\]!%])\s?(?:[-+*/×÷·−]|\\(?:cdot|times|div)(?![A-Za-z]))|$")


def _variants(token: str) -> str:
    """Pattern of a LaTeX token in all its spellings."""
    if token == r"\frac":
        return r"\\[dtc]?frac"
    if token in ("\\le", "\\ge", "\\ne"):
        return rf"(?:\{token}(?:q|qslant)?|{dict(zip(('le', 'ge', 'ne'), '≤≥≠', strict=True))[token[1:]]})"
    return {r"\pi": r"(?:\\pi|π)", r"\sqrt": r"(?:\\sqrt|√)", "-": "[-−]", r"\infty": r"(?:\\infty|∞)"}.get(
        token, re.escape(token)
    )


def _runs(text: str, limit: int) -> Iterator[tuple[int, str]]:
    for m in _RUN.finditer(text, 0, limit):
        run = m[0].rstrip()
        blank = len(run) - len(run.lstrip())
        while (opening := re.match(r"[A-Za-z] (?=[\d\\(])|[,. ]+", run[blank:])) and blank < len(run):  # an article
            blank += opening.end()
        if len(run) - blank > 1:
            yield m.start() + blank, run[blank:]


def _spans(text: str, limit: int, wanted: Callable[[str], bool]) -> Iterator[tuple[int, str]]:
    """Pairs ``(offset, text)`` of the sides of equations and of their terms."""
    for begin, run in _runs(text, limit):
        if not wanted(run):
            continue
        yield begin, run
        depth, start = 0, 0
        for place, c in enumerate(run):
            depth += (c in "([{") - (c in ")]}")
            if c in "+-−," and depth == 0 and place > start:
                yield begin + start, run[start:place].strip(" ,")
                start = place + 1
        if start:
            yield begin + start, run[start:]


def _operands(run: str) -> Iterator[int]:
    """Offsets in the side of an equation, below 300, at which an operand ends outside of all brackets."""
    count = 0
    for m in _NEXT.finditer(run):
        end = m.start()
        if run.count("(", 0, end) == run.count(")", 0, end) and run.count("{", 0, end) == run.count("}", 0, end):
            count += 1
            if 0 < end < 300 and count < 24:
                yield end


def _worth(found: tuple, value: tuple) -> bool:
    return values.same(found, value, Fraction(1, 10**5)) is True


def _alike(one: Group, other: Group) -> bool:
    """True if two answers with parts are equal by our grammar alone, without the computer algebra system."""
    if one.kind != other.kind or one.brackets != other.brackets or len(one.parts) != len(other.parts):
        return False
    if one.parts:
        pairs = zip(one.parts, other.parts, strict=True)
        if all(_alike(a, b) for a, b in pairs):
            return True
        return one.kind in ("list", "union") and all(any(_alike(a, b) for b in other.parts) for a in one.parts)
    if (x := number(one.text)) and (y := number(other.text)):
        return same_number(x, y, DEFAULT_RULES)
    a, b = tree(one.text), tree(other.text)
    if None in (a, b) or MALFORMED in (a, b):
        return one.text == other.text
    return _worth(a, b)
