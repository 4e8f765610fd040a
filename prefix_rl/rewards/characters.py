r"""Translation of mathematics in Unicode to ASCII and LaTeX.

Most of it follows Unicode's own tables: the decomposition of superscripts, subscripts and fractions such as ½; the
normal form NFKC of bold, wide and Roman letters; the value of digits in any script; the category of invisible marks.
This file adds the rest: signs that have a LaTeX command, and letters of other alphabets that look like Latin ones.
"""

from __future__ import annotations

import re
import unicodedata


def _each(characters: str, names: str, form: str = r"\%s ") -> dict[str, str]:
    """Mapping from each character to its LaTeX command; ``names`` are separated by blanks, in the same order."""
    return {c: form % name for c, name in zip(characters, names.split(), strict=True)}


def _decomposed(kind: str) -> dict[str, str]:
    """Mapping from each character that Unicode decomposes as ``<kind>`` to the characters it is composed of."""
    found = {}
    for code in (
        *range(0xA0, 0x100),
        *range(0x2B0, 0x300),
        *range(0x1D00, 0x1E00),
        *range(0x2070, 0x2190),
        *range(0x2C60, 0x2C80),
    ):
        mark, _, codes = unicodedata.decomposition(chr(code)).partition(" ")
        if mark == f"<{kind}>":
            found[chr(code)] = "".join(chr(int(c, 16)) for c in codes.split())
    return found


_SUPER = {c: plain for c, plain in _decomposed("super").items() if c not in "ªº™℠"}
_SUB = _decomposed("sub")
_FRACTIONS = _decomposed("fraction")
_UP, _DOWN = f"[{''.join(_SUPER)}]+", f"[{''.join(_SUB)}]+"
_RUNS = re.compile(
    rf"(?P<top>{_UP})[\u2044/](?P<bottom>{_DOWN})|(?P<up>{_UP})|(?P<down>{_DOWN})|(?P<part>[{''.join(_FRACTIONS)}])"
)
_OVERLINED = re.compile("(?:[0-9]\u0305)+")

_LATIN = {  # Cyrillic and Greek letters that look like a Latin one; replaced only where no other letter is beside them
    **dict(zip("АВСЕНІЈКМОРЅТХУ", "ABCEHIJKMOPSTXY", strict=True)),
    **dict(zip("асеіјорѕху", "aceijopsxy", strict=True)),
    **dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧο", "ABEZHIKMNOPTYXo", strict=True)),
}
_ALONE = re.compile(rf"(?<![^\W\d_])[{''.join(_LATIN)}](?![^\W\d_])")

_BEFORE = str.maketrans(  # replaced before NFKC, which would turn these into something else
    _each("ℝℤℕℚℂℙ", "R Z N Q C P", r"\mathbb{%s}")
    | _each("℃℉", "C F", r"^\circ %s")
    | {
        "º": r"^\circ ",
        "˚": r"^\circ ",
        "´": "'",
        "…": r"\ldots ",
        "‥": "..",
        "∬": r"\iint ",
        "″": "''",
        "‴": "'''",
        "⋯": r"\ldots ",
    }
    | {"\u2062": r"\cdot ", "\u2064": "+", "\u2061": "", "\u2063": ","}
)
_AFTER = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\u2796\u02d7\u00af", "-")
    | {"\u2795": "+", "\u00ac": r"\neg ", "\u2213": r"\mp "}
    | dict.fromkeys("\u00d7\u2715\u2716\u2a2f\u2a09", r"\times ")
    | dict.fromkeys("\u00b7\u22c5\u2219\u2022\u2217\u204e\u2a30\u30fb\u0387\u26ac", r"\cdot ")
    | dict.fromkeys("\u00f7\u2797", r"\div ")
    | dict.fromkeys("\u2215\u2044\u29f8\u2571", "/")
    | dict.fromkeys("\u2236\ua789\u02d0", ":")
    | dict.fromkeys("\u2223\u2758\u01c0\u23d0", "|")
    | dict.fromkeys("\u2216\u29f5", r"\setminus ")
    | dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"')
    | dict.fromkeys("\u2018\u2019\u2032\u02b9\u02bc", "'")
    | dict.fromkeys("\u3002\uff61", ".")
    | dict.fromkeys("\u3001\u060c\uff64", ",")
    | dict.fromkeys("\u3010\u27e6", "[")
    | dict.fromkeys("\u3011\u27e7", "]")
    | dict.fromkeys("\u27e8\u2329\u3008\u276c\u2768", r"\langle ")
    | dict.fromkeys("\u27e9\u232a\u3009\u276d\u2769", r"\rangle ")
    | dict.fromkeys("≤⩽≦⪯≲", r"\le ")
    | dict.fromkeys("≥⩾≧⪰≳", r"\ge ")
    | dict.fromkeys("≈≃≅∼≒", r"\approx ")
    | dict.fromkeys("∅⌀", r"\emptyset ")
    | dict.fromkeys("∆△Δ", r"\Delta ")
    | {"°": r"^\circ ", "√": r"\sqrt ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ", "¢": " cents"}  # noqa: E501
    | _each("≠≡∝∞∪∩∈∉∖±∀∃∂∇⊂⊆∧∨→⇒⇔↔⌊⌋⌈⌉∠∥⊥", "ne equiv propto infty cup cap in notin setminus pm forall exists partial nabla "  # noqa: E501
            "subset subseteq land lor to implies iff leftrightarrow lfloor rfloor lceil rceil angle parallel perp")
    | _each("αβγδεζηθικλμνξπρστυφχψωϕϵϑς", "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "  # noqa: E501
            "upsilon phi chi psi omega phi epsilon theta sigma")
    | _each("ΓΘΛΞΠΣΦΨΩ", "Gamma Theta Lambda Xi Pi Sigma Phi Psi Omega")
)  # fmt: skip


def _run(m: re.Match) -> str:
    if m["top"]:
        return rf"\frac{{{_plain(m['top'], _SUPER)}}}{{{_plain(m['bottom'], _SUB)}}}"
    if m["up"]:
        above = _plain(m["up"], _SUPER)
        return f"^{above}" if len(above) == 1 and not m.string[m.end() : m.end() + 1].isdigit() else f"^{{{above}}}"
    if m["down"]:
        return f"_{{{_plain(m['down'], _SUB)}}}"
    above, _, below = _FRACTIONS[m["part"]].partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}" if below else m[0]


def _plain(run: str, table: dict[str, str]) -> str:
    return "".join(table[c] for c in run)


def ascii_(text: str) -> str:
    r"""Text with its mathematics in ASCII and LaTeX. Letters of other alphabets are kept.

    >>> ascii_("2¹⁰"), ascii_("‑3½"), ascii_("𝑥₁₂ ≡ ４"), ascii_("∆µ")
    ('2^{10}', '-3\\frac{1}{2}', 'x_{12} \\equiv  4', '\\Delta \\mu ')
    """
    if text.isascii():
        return text
    text = _RUNS.sub(_run, text)
    text = _OVERLINED.sub(lambda m: rf"\overline{{{m[0].replace(chr(0x305), '')}}}", text)
    text = unicodedata.normalize("NFKC", text.translate(_BEFORE)).translate(_AFTER)
    if text.isascii():
        return text
    return "".join(map(_seen, _ALONE.sub(lambda m: _LATIN[m[0]], text)))


def _seen(c: str) -> str:
    """ASCII digit for a digit of any script, a blank for any blank, "" for an invisible mark; else the character."""
    if c.isascii():
        return c
    category = unicodedata.category(c)
    if category == "Nd":
        return str(unicodedata.decimal(c))
    if category in ("Zs", "Zl", "Zp"):
        return " "
    return "" if category == "Cf" or "\ufe00" <= c <= "\ufe0f" or c in "\u034f\u20e3\u115f\u3164" else c
