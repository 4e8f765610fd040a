r"""Parser of mathematical expressions with a small grammar, in linear time.

The grammar contains notation with a single meaning: numbers, letters, roots, powers, factorials, functions. Other
notation (:class:`Unread`) is left to a computer algebra system. Text that is no expression in any grammar
(:class:`Malformed`) is rejected at once: a tolerant parser turns ``42 41`` into a number (math-verify: the sum), and a
policy would learn to exploit that.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

Tree = tuple
"""Tree of an expression, as nested tuples: ``("n", value, True if it is a decimal)`` for a number, ``("x", name)`` for
a letter, ``("c", "pi" | "e" | "i")`` for a constant, ``(operation, operand, ...)`` for the rest."""

MAX_DEPTH = 30
"""Number of nested brackets that are read; real answers have far fewer."""


class Unread(Exception):
    """Expression that our grammar lacks."""


class Malformed(Unread):
    """Text that no grammar takes as an expression: two numbers side by side, an operator without an operand."""


class _TooLarge(Exception):
    pass


class _NoValue(Exception):
    """Expression without a value: not real at this point, or divided by zero."""


# --- reading ----------------------------------------------------------------------------------------------------------

_FUNCTIONS = (
    *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "coth"),
    *("ln", "log", "lg", "exp"),
)
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_GREEK = (
    *(
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
    ),
    *("rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Phi"),
    *("Psi", "Omega", "Sigma", "Upsilon", "ell", "hbar"),
)
_SPACE = re.compile(r"(?:\s|\\[,;:! ])*")
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|[A-Za-z]|\\.|.", re.DOTALL)
_LETTER = re.compile(r"[A-Za-z]|\\(?:" + "|".join(_GREEK) + r")(?![A-Za-z])")
_SUBSCRIPT = re.compile(r"\s*_\s*(?:\{\s*([\w,\\ ]{1,20}?)\s*\}|(\w))")
_FACE = re.compile(r"\\(?:math(?:bf|rm|it|sf|normal)|text|boldsymbol|bm)\s*\{\s*([A-Za-z])\s*\}")
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", r"\{": r"\}"}
_ENDS = frozenset({"", "+", "-", "*", "/", r"\cdot", r"\times", r"\div", *_CLOSING.values()})
_NEVER = frozenset('+-*/^!.?@#&")]}') | {r"\cdot", r"\times"}
"""Tokens that can never begin an operand."""
_APPLIED = frozenset("fghFGHPQST")
"""Letters that are read as the name of a function, not as a factor, if a bracket follows: ``f(x)``."""


@lru_cache(maxsize=65536)
def read(text: str) -> Tree:
    r"""Tree of a cleaned expression.

    Raises:
        Malformed: if the text is no expression in any grammar.
        Unread: if our grammar lacks it.

    >>> read(r"x_1 + \pi")
    ('+', ('x', 'x_1'), ('c', 'pi'))
    """
    if len(text) > 1_000:
        raise Unread("it is too long")
    return _Reader(text).whole()


class _Reader:
    """Recursive-descent parser, one method for each level: sum, product, factors side by side, power, atom.

    Factors side by side bind closer than ``/``: ``1/2x`` is ``1/(2x)``.
    """

    def __init__(self, text: str):
        self.text, self.at, self.depth = text, 0, 0
        self.bars = 0

    def peek(self) -> str:
        self.at = _SPACE.match(self.text, self.at).end()
        found = _TOKEN.match(self.text, self.at)
        return found[0] if found else ""

    def take(self, *wanted: str) -> str:
        token = self.peek()
        if token not in wanted or not token:
            return ""
        self.at += len(token)
        return token

    def need(self, wanted: str) -> None:
        if not self.take(wanted):
            raise Unread(f"{wanted} is missing")

    def whole(self) -> Tree:
        tree = self.sum()
        if rest := self.peek():
            raise (Malformed if rest in ")]}!?@#" else Unread)(rest)
        return tree

    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unread("it is too deep")
        total = self.signed()
        while sign := self.take("+", "-"):
            total = (sign, total, self.signed())
        self.depth -= 1
        return total

    def signed(self) -> Tree:
        negative = False
        while sign := self.take("+", "-"):
            negative ^= sign == "-"
        return ("neg", self.product()) if negative else self.product()

    def product(self) -> Tree:
        value = self.beside()
        while operator := self.take("*", "/", r"\cdot", r"\times", r"\div"):
            negative = self.take("-", "+") == "-"
            factor = self.beside()
            value = ("/" if operator in ("/", r"\div") else "*", value, ("neg", factor) if negative else factor)
        return value

    def beside(self) -> Tree:
        """Tree of factors side by side: a product, but ``2\\frac{1}{3}`` is the mixed number 2 + 1/3."""
        value = self.power()
        while not self.ends():
            following = self.peek()
            if value[0] == "n" and (following[0].isdigit() or following[0] == "."):
                raise Malformed("two numbers side by side")
            mixed = value[0] == "n" and value[1].denominator == 1 and following == r"\frac"
            factor = self.power()
            whole = mixed and factor[0] == "n" and 0 < factor[1] < 1
            value = ("n", value[1] + factor[1], value[2]) if whole else ("*", value, factor)
        return value

    def ends(self) -> bool:
        token = self.peek()
        return token in _ENDS and (token != "|" or self.bars > 0)

    def power(self) -> Tree:
        base = self.atom()
        while self.take("!"):
            if self.peek() == "!":
                raise Malformed("a factorial of a factorial wants brackets")
            base = ("!", base)
        if self.peek() == "'":
            raise (Malformed if base[0] == "n" else Unread)("a prime")
        if self.peek() == "_":
            raise (Malformed if base[0] == "n" else Unread)("a subscript")
        if self.take("^"):
            exponent = self.exponent()
            if base[0] == "x" and "_" not in base[1] and self.peek() == "_":  # v^2_0
                base = self.named(base[1])
            base = ("^", base, exponent)
            if self.peek() == "!":
                raise Unread("a factorial of a power wants brackets")
        return base

    def exponent(self) -> Tree:
        if self.take("-"):
            return ("neg", self.exponent())
        self.take("+")
        inner = self.atom()
        if self.take("^"):  # a tower
            return ("^", inner, self.exponent())
        return ("!", inner) if self.peek() == "!" and inner[0] != "n" and self.take("!") else inner

    def group(self, opening: str) -> Tree:
        self.bars += opening == "|"
        bars, self.bars = self.bars, self.bars if opening == "|" else 0
        inner = self.sum()
        self.bars = bars
        self.need(_CLOSING[opening])
        self.bars -= opening == "|"
        return inner

    def atom(self) -> Tree:
        if face := _FACE.match(self.text, _SPACE.match(self.text, self.at).end()):
            self.at = face.end()
            return self.named(face[1])
        token = self.peek()
        if not token:
            raise Malformed("it ends where a number is due")
        self.at += len(token)
        if token[0].isdigit() or (token[0] == "." and token != "."):
            value = Fraction(token)
            return ("n", value, "." in token and value.denominator != 1)
        if token in ("(", "[", "{"):
            return self.group(token)
        if token == "|":
            return ("abs", self.group("|"))
        if token in (r"\lfloor", r"\lceil"):
            return (token[2:], self.group(token))
        if token in (r"\frac", r"\dfrac", r"\tfrac"):
            top, bottom = self.argument(), self.argument()
            plain = top[0] == bottom[0] == "n" and bottom[1]
            return ("n", top[1] / bottom[1], top[2] or bottom[2]) if plain else ("/", top, bottom)
        if token == r"\binom":
            return ("binom", self.argument(), self.argument())
        if token == r"\sqrt":
            degree = self.group("[") if self.take("[") else ("n", Fraction(2), False)
            return ("root", self.argument(), degree)
        if token[0] == "\\" and token[1:] in _FUNCTIONS:
            return self.function(token[1:])
        if token in (r"\pi", "e", "i"):
            return ("c", token.strip("\\"))
        if _LETTER.fullmatch(token):
            return self.named(token)
        raise (Malformed if token in _NEVER else Unread)(token)

    def named(self, letter: str) -> Tree:
        if subscript := _SUBSCRIPT.match(self.text, self.at):
            self.at = subscript.end()
            return ("x", f"{letter}_{''.join((subscript[1] or subscript[2]).split())}")
        if letter in _APPLIED and self.peek() == "(":
            raise Unread("a function without a definition")
        return ("x", letter)

    def argument(self) -> Tree:
        """Tree of the argument of a command: a group in braces, or one digit, letter or command (``\\frac12``)."""
        if self.take("{"):
            return self.group("{")
        token = self.peek()
        if token[:1].isdigit():
            self.at += 1
            return ("n", Fraction(token[0]), False)
        if token in ("", "-", "+", "("):
            raise Unread("an argument wants braces")
        return self.atom()

    def function(self, name: str) -> Tree:
        base = power = None
        for _ in range(2):
            if name == "log" and base is None and self.take("_"):
                base = self.argument()
            elif power is None and self.take("^"):
                power = self.exponent() if self.peek() not in ("{",) else self.atom()
        if power == ("neg", ("n", Fraction(1), False)):
            if name not in _INVERSE:
                raise Unread("an inverse function")
            name, power = _INVERSE[name], None
        if self.peek() in ("(", "[", "{", "|"):
            argument = self.atom()
            if self.peek() == "^" and power is None and self.take("^"):  # \sin(x)^2 is the square of the sine
                power = self.exponent()
        else:
            argument = self.bare_argument()
        if name in ("log", "lg"):
            value = ("log", argument, base or ("n", Fraction(10), False))
        else:
            value = ("f", name, argument)
        return value if power is None else ("^", value, power)

    def bare_argument(self) -> Tree:
        r"""Tree of an argument without brackets, up to the next function or operator: 2x in ``\sin 2x \cos x``."""
        if self.take("-"):
            return ("neg", self.bare_argument())
        value = self.power()
        while not self.ends() and not (self.peek()[0] == "\\" and self.peek()[1:] in _FUNCTIONS):
            if self.peek()[0].isdigit() and value[0] == "n":
                raise Malformed("two numbers side by side")
            value = ("*", value, self.power())
        if self.peek() in ("/", r"\div"):
            raise Unread("an argument that is divided wants brackets")
        return value
