"""Equality of two answers.

It is decided in this order:

1. :mod:`~prefix_rl.rewards.notation` brings both answers into one notation. Rational numbers are compared exactly.
2. :mod:`~prefix_rl.rewards.structure` splits answers into parts. Lists, tuples, intervals, unions and matrices are
   compared part by part; of an equality such as ``x = 5`` the value is compared.
3. :mod:`~prefix_rl.rewards.expressions` compares the remaining single expressions as mathematics.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Literal

from annotated_types import Ge

from . import expressions
from .notation import Number, clean, cleaned, number, words
from .structure import Chain, Group, chain, parse, split
from .wording import UNITS, conflict, one_unit, singular, spoken, untexted

MAX_ANSWER_CHARACTERS = 1_000
"""Characters of the longest answer that is parsed. A longer one is right only if it is the gold answer letter by
letter: no answer of a benchmark is nearly as long, and the time of parsing has no bound."""


@dataclass(frozen=True)
class Rules:
    """Rules of grading on which graders differ. Each default is the choice of most public graders.

    Attributes:
        fallback: answer of a text without a marker (as a box): ``last`` for its last formula or number, ``none`` for no
            answer.
        turns: part of the text that is searched: ``own`` for the policy's own turn, which ends at an end-of-turn mark
            or a line ``User:``; ``all`` for everything.
        thought: rule for the text of a thought: ``closed`` finds no answer in a thought that is opened and cut off;
            ``required`` finds none in a completion that closes no thought (for a chat template that opens the thought
            in the prompt); ``any`` reads a thought that is cut off like other text.
        boxes: answer of several boxes: ``joined`` for one answer if only "and", "or" or a comma separate them; ``last``
            for the last box alone.
        tolerance: largest difference of a decimal and another number that are equal, relative to ``min(1, |value|)``.
            Two numbers without a decimal point must be equal exactly.
        percent: values of 25 %: ``either`` for 25 and 0.25, ``exact`` for 0.25 alone.
        units: unit at the end of an answer: ``ignore`` to drop it, ``same`` to require that of the gold answer.
        order: order of a bare list: ``ignore`` for 1, 2 equal to 2, 1; ``same`` to require it. Tuples always have one.
        intervals: notation of intervals: ``either`` for -2 < x < 7 equal to (-2, 7); ``same`` for the gold answer's
            alone.
        gold_list: number of answers required by a gold answer that is a list of texts (``["3", "5"]``): ``all`` of
            them, or ``any`` one of them.
        decimal_comma: True to read 1,5 as 1.5 if the other answer is a decimal.
    """

    fallback: Literal["last", "none"] = "last"
    turns: Literal["own", "all"] = "own"
    thought: Literal["closed", "required", "any"] = "closed"
    boxes: Literal["joined", "last"] = "joined"
    tolerance: Annotated[float, Ge(0)] = 1e-5
    percent: Literal["either", "exact"] = "either"
    units: Literal["ignore", "same"] = "ignore"
    order: Literal["ignore", "same"] = "ignore"
    intervals: Literal["either", "same"] = "either"
    gold_list: Literal["all", "any"] = "all"
    decimal_comma: bool = True


DEFAULT_RULES = Rules()
TRAINING_RULES = Rules(fallback="none")
"""Rules for training: a derivation that was cut off must not be rewarded for the number at which it stopped."""


@lru_cache(maxsize=65536)
def same(answer: str, gold: str, rules: Rules = DEFAULT_RULES) -> bool:
    """True if two final answers mean the same. If ``gold`` is an equality, the equalities are compared, else values."""
    if "".join(answer.split()) == "".join(gold.split()):
        return True
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return False
    if conflict(cleaned(answer)[1], cleaned(gold)[1]) or (rules.units == "same" and _unit(answer) != _unit(gold)):
        return False
    ours, theirs = _readings(answer), _readings(gold)
    ours += _without_symbol(ours[0], cleaned(gold)[1])
    theirs += _without_symbol(theirs[0], cleaned(answer)[1])
    return any(_same(a, g, rules) for g in theirs for a in ours)


def _without_symbol(text: str, unit: str) -> list[str]:
    """Reading of ``5 m`` as 5, only if the other answer has the unit metre: ``m`` alone may also be a variable."""
    found = re.fullmatch(r"(.*[\d)}])\s+([A-Za-z]{1,2})", text) if unit else None
    return [found[1]] if found and UNITS.get(found[2].lower()) == one_unit(unit) else []


def _unit(answer: str) -> str:
    """Unit of an answer, in lower case without typesetting; "" if it has none."""
    return re.sub(r"\\[A-Za-z]+|\W", "", untexted(cleaned(answer)[1])).lower()


_EQUIVALENTLY = r"\s*,?\s*\(?\s*(?:\bequivalently|\bi\.e\.|\bthat is|\bwhich (?:is|equals))(?![A-Za-z]),?\s*"


def _readings(answer: str) -> list[str]:
    r"""Readings of an answer: C and 42 for ``\textbf{(C)}\ 42``, both sides for ``\frac13 \approx 0.33``."""
    text = clean(answer)
    readings = [text]
    plain = untexted(text)
    if label := re.fullmatch(r"\(?([A-F])\)?\s*[.):]\s*(\S.*)", plain):
        readings += [label[1], clean(label[2])]
    if r"\approx" in text:
        ends = [part for part in split(text, (r"\approx",)) if part]
        readings += ends[:1] + (ends[-1:] if ends and _rounds(ends[0], ends[-1]) else [])
    first, said, second = re.sub(_EQUIVALENTLY, "\0", text, count=1).partition("\0")
    if said and first.strip():
        readings += [clean(first), clean(second)] if _same(clean(first), clean(second), DEFAULT_RULES) else []
    return list(dict.fromkeys(readings))


def _rounds(one: str, other: str) -> bool:
    """True if one of two values is the other one rounded to its digits, or if ``one`` has no value but only a name."""
    values = [(chain(end) or Chain("", end, None)).value for end in (one, other)]
    if not re.search(r"\d|\\pi|e", values[0]):
        return True
    for exact, rounded in (values, values[::-1]):
        if (n := number(rounded)) and not n.percent:
            digits = len(rounded.partition(".")[2]) if n.decimal or "." in rounded else 0
            if expressions.within(exact, n.value, Fraction(1, 2 * 10**digits)):
                return True
    return False


def _same(a: str, g: str, rules: Rules) -> bool:
    if _key(a) == _key(g):
        return True
    if rules.decimal_comma:
        a, g = _point(a, g), _point(g, a)
    x, y = number(a), number(g)
    if x and y:
        return same_number(x, y, rules)
    return _same_group(parse(a), parse(g), rules)


def _key(text: str) -> str:
    """Text without blanks, type faces and braces around one character. Answers with the same key are equal."""
    return re.sub(r"\s+|(?<=[_^])\{(?=\w\})|(?<=[_^]\{\w)\}", "", untexted(text))


def _point(text: str, other: str) -> str:
    """Text with its decimal comma as a point (``1,5`` -> ``1.5``), if the other answer is a decimal number."""
    if re.fullmatch(r"-?\d+,\d+", text) and (n := number(other)) and n.decimal and not number(text):
        return text.replace(",", ".")
    return text


def same_number(x: Number, y: Number, rules: Rules) -> bool:
    """True if two rational numbers are equal under the rules ``percent`` and ``tolerance``."""
    if rules.percent == "either" and x.percent != y.percent:
        percent, plain = (x, y) if x.percent else (y, x)
        whole = Number(percent.value * 100, percent.decimal)
        return _close(percent, plain, rules) or _close(whole, plain, rules)
    return _close(x, y, rules)


def _close(x: Number, y: Number, rules: Rules) -> bool:
    if x.value == y.value:
        return True
    if not (x.decimal or y.decimal):
        return False
    return abs(x.value - y.value) <= Fraction(rules.tolerance) * min(Fraction(1), max(abs(x.value), abs(y.value)))


def _same_group(a: Group, g: Group, rules: Rules) -> bool:
    if a.kind == "text" and g.kind in ("tuple", "list"):
        a = _as_group(a)
    elif g.kind == "text" and a.kind in ("tuple", "list"):
        g = _as_group(g)
    if a.kind == g.kind == "text":
        return _same_text(a.text, g.text, rules)
    if a.kind == g.kind == "matrix" or a.kind == g.kind == "row":
        return len(a.parts) == len(g.parts) and all(
            _same_group(_row(r), _row(s), rules) for r, s in zip(a.parts, g.parts, strict=True)
        )
    if a.kind == g.kind == "tuple" or {a.kind, g.kind} == {"tuple", "list"}:
        return _same_tuple(a, g, rules)
    if a.kind == g.kind and a.kind in ("list", "union"):
        return _same_parts(_named(a), _named(g), rules) or (
            _nested(a) != _nested(g) and _same_parts(_flat(a), _flat(g), rules)
        )
    if {a.kind, g.kind} == {"list", "union"}:  # the list "x < 1 or x > 2" for a union of intervals
        return rules.intervals == "either" and _same_parts(a, g, rules)
    if "list" in (a.kind, g.kind):  # a set of one, or an element that is repeated
        several, one = (a, g) if a.kind == "list" else (g, a)
        return all(
            _same_group(part, one, rules) if several is a else _same_group(one, part, rules) for part in several.parts
        )
    if (_is_one(a, g) and _are_several(g)) or (_is_one(g, a) and _are_several(a)):
        return False  # a quick answer: math-verify would come to it too, but slowly
    return bool(a.text and g.text) and _same_expression(_member(a.text), _member(g.text), rules)


_COLLECTS = re.compile(
    r"[,;<>|\[\]]|\\[{}\\]|\\(?:pm|mp|begin|cup|cap|setminus|in|ni|le|ge|ne|not|mathbb|infty|emptyset|bar|text|l?vert)"
    r"(?![A-Za-z])"
)
"""Signs of a set or a collection: an expression that denotes one holds at least one of them."""


_ROWS = re.compile(r"[,;\[\]]|\\[{}\\]|\\(?:pm|mp|begin|text)(?![A-Za-z])")
"""Signs of a matrix: an expression that denotes one holds at least one of them."""


def _is_one(group: Group, other: Group) -> bool:
    """True if an expression must be a single value, or an equality of single values, and cannot denote a collection.

    Args:
        other: the answer that it is compared with. An inequality may denote a set, but never a matrix.
    """
    if group.kind != "text" or (_ROWS if other.kind == "matrix" else _COLLECTS).search(group.text):
        return False
    return max(map(len, (words(group.text) or "").split()), default=1) < 2  # a word may be the name of a set


def _are_several(group: Group) -> bool:
    """True if a collection has at least two values. A determinant (``vmatrix``) is one value."""
    if group.kind == "matrix":
        return not re.search("[vV]matrix", group.text) and sum(len(row.parts) for row in group.parts) > 1
    return len(group.parts) > 1


def _as_group(text: Group) -> Group:
    """Parts of an expression that is compared with a collection: 1, 234 of ``1,234``; 1, 2 of ``(p, q) = (1, 2)``."""
    if "," in text.text and number(text.text):
        return parse(re.sub(r",\s*", ", ", text.text))
    named = chain(text.text)
    return parse(named.value) if named and named.name is not None else parse(_member(text.text))


def _row(group: Group) -> Group:
    return Group("row", group.parts) if group.kind == "list" else group


def _same_tuple(a: Group, g: Group, rules: Rules) -> bool:
    """True if two tuples have equal parts in the same order. A bare list may stand for a tuple in round brackets."""
    if len(a.parts) != len(g.parts):
        return False
    brackets = {group.brackets or "()" for group in (a, g)}
    if len(brackets) > 1 and (len(a.parts) == 2 or not brackets <= {"()", "[]"}):
        return False
    return all(_same_group(x, y, rules) for x, y in zip(a.parts, g.parts, strict=True))


def _named(group: Group) -> Group:
    """Collection without the names of its values: ``a = 4, -8`` -> ``4, -8``, ``p=5, q=2; p=7, q=2`` -> two tuples."""
    parts = group.parts
    if _nested(group):
        return Group("list", tuple(_assigned(part) for part in parts))
    named = [part.kind == "text" and (c := chain(part.text)) and c.name for part in parts]
    if named and named[0] and not any(named[1:]):
        return Group(group.kind, (parse(chain(parts[0].text).value), *parts[1:]))
    return group


def _assigned(group: Group) -> Group:
    """Tuple of the values of ``p = 5, q = 2``; the group itself if a part has no name."""
    chains = [chain(part.text) if part.kind == "text" else None for part in group.parts]
    if chains and all(c and c.name for c in chains):
        return Group("tuple", tuple(parse(c.value) for c in chains), "()")
    return group


def _nested(group: Group) -> bool:
    return group.kind == "list" and all(part.kind == "list" for part in group.parts)


def _flat(group: Group) -> Group:
    """List of the parts of a list of lists: ``p=5, q=2; p=7, q=2`` as four equalities."""
    return Group("list", tuple(p for part in group.parts for p in part.parts)) if _nested(group) else group


def _same_parts(a: Group, g: Group, rules: Rules) -> bool:
    """True if two collections have the same elements. Order and repetitions are ignored unless the rules want order."""
    if rules.order == "same" and a.kind == "list":
        return len(a.parts) == len(g.parts) and all(
            _same_group(x, y, rules) for x, y in zip(a.parts, g.parts, strict=True)
        )
    if max(len(a.parts), len(g.parts)) > 100:
        return False
    return all(any(_same_group(x, y, rules) for y in g.parts) for x in a.parts) and all(
        any(_same_group(x, y, rules) for x in a.parts) for y in g.parts
    )


# --- one expression ---------------------------------------------------------------------------------------------------


def _same_text(a: str, g: str, rules: Rules) -> bool:
    if _key(a) == _key(g):
        return True
    a, g = (
        clean(text) if re.search(r"\\text|\\math|[\d}] ?[a-z]", text) else text for text in (a, g)
    )  # a part has a unit too
    x, y = number(a), number(g)
    if x and y:
        return same_number(x, y, rules)
    based = _BASE.fullmatch(a), _BASE.fullmatch(g)
    if all(based):
        return based[0].groups() == based[1].groups()
    if any(based):
        digits, other = (based[0][1], number(g)) if based[0] else (based[1][1], number(a))
        return other is not None and other.value == int(digits)
    v, w = words(a), words(g)
    if (v and max(map(len, v.split())) > 2) or (w and max(map(len, w.split())) > 2):
        return [*map(singular, v.split())] == [*map(singular, w.split())] if v and w else _same_phrase(a, g)
    if v and w and (v == w or len(v) == len(w) == 1):
        return v == w  # single letters keep their case: x and X are two variables
    one, other = chain(a), chain(g)
    if one or other:
        return _same_chain(a, g, one, other, rules)
    if r"\equiv" in a + g or (r"\bmod" in a and r"\bmod" in g):
        return _same_congruence(a, g, rules)
    (said, rest), (wanted, left) = spoken(a), spoken(g)
    if said or wanted:
        return said == wanted and (rest == left or (bool(rest and left) and _same(rest, left, rules)))
    if ":" in a and ":" in g:  # times and ratios are equal only as text, which was compared above
        return False
    if _same_expression(_member(a), _member(g), rules):
        return True
    # 1e5 may be a number, or a product with Euler's number
    plain = [_SCIENTIFIC.sub(r"(\1) \\cdot 10^{\2}", text) if n else text for text, n in ((a, x), (g, y))]
    return plain != [a, g] and _same_expression(*plain, rules)


_SCIENTIFIC = re.compile(r"([\d.]+)[eE]([-+]?\d+)")
_BASE = re.compile(r"(\d+)\s*_\s*\{?\s*(\d{1,2})\s*\}?")
_CONGRUENCE = re.compile(r"(?:(?P<name>[^\\]{1,20})\\equiv)?(?P<value>[^\\]+)\\bmod(?P<modulus>.+)")


def _same_congruence(a: str, g: str, rules: Rules) -> bool:
    r"""True if two congruences agree in residue and modulus: ``x \equiv 10 \bmod 7`` and ``x \equiv 3 \bmod 7``."""
    if r"\bmod" not in a and r"\bmod" not in g:  # without a modulus the sign means "identical": read it as =
        return _same(a.replace(r"\equiv", "="), g.replace(r"\equiv", "="), rules)
    one, other = _CONGRUENCE.fullmatch(a), _CONGRUENCE.fullmatch(g)
    if not one or not other or not _same(one["modulus"].strip(), other["modulus"].strip(), rules):
        return False
    names = [re.sub(r"\s", "", m["name"] or "") for m in (one, other)]
    if all(names) and names[0] != names[1]:
        return False
    values = [number(m["value"].strip(" ,")) for m in (one, other)]
    modulus = number(one["modulus"].strip())
    if all(values) and modulus and modulus.value:
        return (values[0].value - values[1].value) % modulus.value == 0
    return _same(one["value"].strip(" ,"), other["value"].strip(" ,"), rules)


def _same_phrase(a: str, g: str) -> bool:
    def bare(text: str) -> str:
        return re.sub(r"[^\w]+", " ", untexted(text)).strip().casefold()

    return bool(bare(a)) and bare(a) == bare(g)


def _member(text: str) -> str:
    r"""Set of a membership: ``x \in S`` -> ``S``; any other text as it is."""
    return re.sub(r"^\(?\s*[A-Za-z](?:_\{?\w+\}?)?\s*\)?\s*\\in(?![A-Za-z])\s*", "", text)


def _same_chain(a: str, g: str, one: Chain | None, other: Chain | None, rules: Rules) -> bool:
    """True if two equalities mean the same. One may lack its name (``x =``, ``f(x) =``); two names must be equal."""
    if one and other:
        if one.name is not None and other.name is not None:
            named = one.name and other.name and _key(one.name) != _key(other.name)
            return not named and _same(one.value, other.value, rules)
        return expressions.same_relation(a, g)
    if one:  # the gold answer is no equality: compare it with the last value of the chain
        return _same(one.value, g, rules)
    return other.name is not None and _same(a, other.value, rules)


def _same_expression(a: str, g: str, rules: Rules) -> bool:
    """True if two expressions are equal. The rules may ignore a percent sign, and let an interval be an inequality."""
    if rules.percent == "either" and a.endswith(r"\%") != g.endswith(r"\%"):
        bare = a.removesuffix(r"\%"), g.removesuffix(r"\%")
        if expressions.same(*bare, rules.tolerance, rules.intervals == "either"):
            return True
    return expressions.same(a, g, rules.tolerance, rules.intervals == "either")
