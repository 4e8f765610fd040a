r"""Search for the final answer of a completion.

Only markers that people use on purpose count: a box, a ``####`` line, ``<answer>`` tags, "the answer is". A completion
that consists of an answer and nothing else needs no marker. In a text without a marker, the last number or formula is
only a guess: it is taken only if the rules allow it, and the verdict records that it was a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

FoundBy = Literal["box", "hashes", "tags", "statement", "bare", "last"]
"""Kind of evidence for the final answer. ``last`` is the fallback, a guess; the others are markers."""


@dataclass(frozen=True)
class Found:
    """Final answer, the kind of its marker, and the offset in the completion at which it ends."""

    answer: str
    by: FoundBy
    end: int


TAIL = 20_000
"""Number of characters at the end of a completion in which tags, ``####`` lines, statements and unmarked answers are
looked for. Boxes are looked for in all of it."""

Turns = Literal["own", "all"]
Thought = Literal["closed", "required", "any"]

# Marks of a chat template. Text that a model writes after one of them belongs to another turn, not to its answer.
_END_OF_TURN = re.compile(
    r"<\|end\|>(?!\s*<\|start\|>assistant)"
    r"|<\|(?!(?:begin|end)_of_(?:thought|solution|box)\||channel\||message\||constrain\||start\||end\|)[\w ./-]{1,40}\|>"  # noqa: E501
    r"|<｜[^｜\n]{1,40}｜>|</?s>|<(?:eos|bos|pad|EOT|end_of_turn|start_of_turn|turn\|)>|<\|turn>|<extra_id_\d{1,2}>|\[/?INST\]"
)
# Beginning of another turn in plain text ("User:"), where decoding dropped the marks or the model never learned them.
_TURN = re.compile(
    r"\n[ \t]*(?:[#*>\[]{1,6}[ \t]*)?(?:human|user)\b[\]*]{0,4}[ \t]{0,4}[:：]"
    r"|(?:\n[ \t]{0,8}|(?<=[.!?})\]$]))(?:user|human)[ \t]*\n",
    re.IGNORECASE,
)
_OPENED = re.compile(
    r"<(?:seed:)?(?:[tT]hink|[tT]hinking|[tT]hought|[rR]easoning|scratchpad|analysis)>|<\|begin_of_thought\|>|\[THINK\]|◁think▷|<\|channel\|>analysis"
)
_CLOSED = re.compile(
    r"</(?:seed:)?(?:[tT]hink|[tT]hinking|[tT]hought|[rR]easoning|scratchpad|analysis)>|<\|end_of_thought\|>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed\s+(?P<bare>[^\s{}\\$]+)")
_HASHES = re.compile(r"####[ \t]*(?=\S)(?P<answer>[^\n]+)")
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
# Text between boxes that together are one answer: "\boxed{1} and \boxed{2}", "\boxed{1}, \boxed{2}".
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.]|\\[\[\]()]|\\(?:quad|qquad|,|;|!)|\\(?:text|mathrm)\s*\{\s*,?\s*(?:and|or)\s*\}|\band\b|\bor\b){0,24}",
    re.IGNORECASE,
)
_MATH = (  # bounded length: a text full of "$" that nothing closes would otherwise take quadratic time
    r"\$\$(?:[^$\\]|\\.){1,1000}\$\$|\$(?:[^$\n\\]|\\.){1,1000}\$|\\\((?:[^\\]|\\(?!\))){1,1000}\\\)|\\\[(?:[^\\]|\\(?!\])){1,1000}\\\]"
)
_STATED = re.compile(
    rf"(?P<answer>(?:{_MATH})(?:[ \t]*(?:,|and|or|,[ \t]*and)[ \t]*(?:{_MATH}))*|[^\n]+)", re.IGNORECASE
)
_STATEMENT = re.compile(
    r"(?:\b(?:(?:answer|ans|result|solution)s?|correct (?:choice|option)|respuesta|réponse|antwort|ответ)|答案)"
    r"\s{0,20}\**\s{0,20}(?:\([^()\n]{1,40}\)\s{0,20})?(?:(?:to|of|for)\b[^\n.:]{0,80}?)?\s{0,20}"
    r"(?:(?:is|are|was|equals|to be|es|est|ist)\b|[=:：]|是|为)[\s:*]{0,40}"
    r"(?:(?:therefore|thus|then|simply|just|given by|approximately|about|roughly)\b)?[\s:*]{0,40}(?=[^\n])",
    re.IGNORECASE,
)
_BARE_ANSWER = re.compile(
    rf"^[ \t*#>]{{0,20}}answer\s{{0,9}}[:\s]\s{{0,9}}(?P<answer>{_MATH}|[-+]?[\d.,/]{{0,80}}\d)[\s.*]{{0,20}}$",
    re.IGNORECASE | re.MULTILINE,
)
_HEADING = re.compile(
    rf"^[ \t*#>]{{0,20}}(?:final[ \t]{{1,9}})?answer[ \t*:]{{0,20}}\n\s{{0,20}}(?P<answer>{_MATH}|[^\n]{{1,100}}$)",
    re.IGNORECASE | re.MULTILINE,
)
_IS_ANSWER = re.compile(
    rf"(?P<answer>{_MATH}|(?<!\S)\S{{1,80}})[ \t]{{1,9}}(?:is|are)[ \t]+(?:the|our|my)[ \t]+"
    r"(?:(?:final|correct)[ \t]+)?(?:answer|solution|result)s?\b",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\\(?:math|text)bf\s*\{\s*(?:-?\s*\d[^{}]*|\(?[A-F]\)?)\s*\}|\*\*[^*\n]{0,40}\d[^*\n]{0,40}\*\*")
_SAYS = re.compile(r"^(?:\\text\s*\{)?(?:the\s+)?(?:final\s+)?answer\s*(?:is\b|[:=])\s*", re.IGNORECASE)
_REMARKS = (
    re.compile(r"\bI hope (?:it|this|that) is (?:correct|helpful|right)\.?", re.IGNORECASE),
    re.compile(
        r"(?<=[\s\d$])\([a-z][^()]{3,200}(?:\([^()]{0,100}\)[^()]{0,200})?\)(?=[\s.]*$)", re.IGNORECASE
    ),  # "(see above)"
)
# Beginning of a next task, which some models make up and solve after their answer.
_RUN_ON = re.compile(
    r"\n[ \t*#\[]*(?:question|problem|exercise|task|example|instruction|input|prompt|assistant|student|teacher|q)\b[\]*]{0,4}"  # noqa: E501
    r"[ \t]*\d{0,4}[ \t]*[:：]|\n[ \t]{0,8}(?:assistant|system)[ \t]*\n",
    re.IGNORECASE,
)
# The point in 3.5 ends no sentence; the point in "is 3. Check" does.
_SENTENCE_END = re.compile(r"(?<!\d)[.;!?](?:\s|$)|(?<=\d)\.(?:\s|$)|\n\s*\n")
_NUMBER = re.compile(
    r"(?<![\w.])[-−]?[$€£]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:\s*/\s*\d+)?(?::\d{1,6}){0,2}(?:\s?[ap]\.?m\b)?(?:\s*\\?%|\s+percent\b)?",
    re.IGNORECASE,
)
_SEGMENT = re.compile(rf"{_MATH}", re.IGNORECASE)


def find(
    text: str, fallback: bool = True, join: bool = True, turns: Turns = "own", thought: Thought = "closed"
) -> Found | None:
    r"""Final answer that a completion states, or None.

    Searched is the policy's own turn after its thought. The last of these markers wins: a box, ``<answer>`` tags, a
    ``####`` line, "the answer is ..."; but after another marker a statement counts only if it says "final". If the
    policy goes on to a next "Problem:", an answer before it wins. A short text without a marker that is only an answer
    is the answer.

    Args:
        fallback: True to take the last formula or number of the text if there is no marker.
        join: True to take boxes that only "and", "or" or a comma separate as one answer.
        turns: ``own`` to stop at the end of the policy's turn, ``all`` to search further.
        thought: rule for a thought that is opened and never closed (cut off). ``closed`` finds no answer in it;
            ``required`` finds none in a text that closes no thought; ``any`` reads it like other text.

    >>> find(r"first \boxed{3}, no: \boxed{\frac{1}{2}} it is")
    Found(answer='\\frac{1}{2}', by='box', end=39)
    >>> find(r"\boxed{1} and \boxed{-2}.").answer
    '1,-2'
    >>> find("so we get 12"), find("so we get 12", fallback=False)
    (Found(answer='12', by='last', end=12), None)
    >>> find("\\boxed{5}\nUser: and then?\nIt is \\boxed{6}").answer
    '5'
    """
    start, end = own_part(text, turns, thought)
    found = _marked(text, start, end, join)
    if found:
        run_on = _RUN_ON.search(text, start, end) if turns == "own" else None
        if run_on and (earlier := _marked(text, start, run_on.start(), join)):
            found = earlier
        weak = fallback and found.by == "statement" and text.find("bf", found.end, end) >= 0
        return (_bold(text, found.end, end) if weak else None) or (found if found.answer else None)
    return _bare(text, start, end, fallback) or (_last(text, start, end) if fallback else None)


def own_part(text: str, turns: Turns = "own", thought: Thought = "closed") -> tuple[int, int]:
    r"""Start and end offset of the part of a completion that is searched: after the thought, before the next turn.

    >>> text = "<think>6 or 7?</think> It is 7.<|im_end|>"
    >>> text[slice(*own_part(text))]
    ' It is 7.'
    """
    end = len(text)
    if turns == "own":
        end = _first(_END_OF_TURN, text, 0, end)
    opened, closed = _OPENED.search(text, 0, end), _CLOSED.search(text, 0, end)
    if turns == "own":
        outside = 0 if not closed or (opened and opened.start() < closed.start()) else closed.end()
        inside = opened.start() if opened and outside == 0 else end
        if (turn := _first(_TURN, text, outside, inside)) < inside:
            end = turn
        elif closed:
            end = _first(_TURN, text, closed.end(), end)
    start = 0
    for mark in _CLOSED.finditer(text, 0, end):
        start = mark.end()
    if thought == "required" and not start:
        return end, end
    if thought == "closed" and (opened := _OPENED.search(text, start, end)):
        end = opened.start()
    return start, end


def _first(pattern: re.Pattern, text: str, start: int, end: int) -> int:
    """Offset of the first match of a pattern that has other text before it in ``text[start:end]``; else ``end``."""
    for mark in pattern.finditer(text, start, end):
        if text[start : mark.start()].strip():
            return mark.start()
    return end


def _marked(text: str, start: int, end: int, join: bool) -> Found | None:
    """Answer of the last marker in ``text[start:end]``, or None."""
    box = _last_box(text, start, end, join)
    tail = max(start, end - TAIL)
    tags = _last_tags(text, tail, end)
    hashes = _last_match(_HASHES, text, tail, end)
    found = box
    if tags and (not found or tags[0] > found.end):
        found = _last_box(text, *tags, join) or Found(text[slice(*tags)].strip(), "tags", tags[1])
    if hashes and (not found or hashes.start() > found.end):
        found = Found(_outside(hashes["answer"]), "hashes", hashes.end())
    stated = _statement(text, max(tail, found.end) if found else tail, end, bool(found))
    return stated or found


def _last_tags(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Start and end offset of the content of the last ``<answer>...</answer>``, or None."""
    opened, found = None, None
    for tag in _TAG.finditer(text, start, end):
        if not tag[1]:
            opened = tag.end()
        elif opened is not None:
            opened, found = None, (opened, tag.start())
    return found


def _last_match(pattern: re.Pattern, text: str, start: int, end: int) -> re.Match | None:
    found = None
    for found in pattern.finditer(text, start, end):  # noqa: B007
        pass
    return found


def _last_box(text: str, start: int, end: int, join: bool) -> Found | None:
    """Answer in the last balanced box; with ``join``, in the last boxes with only "and", "or" or commas between."""
    opened = [m for m in _BOX.finditer(text, start, end)][-200:]
    contents: list[tuple[int, int, str]] = []  # (start of the command, end of the box, content), from the last one
    for m in reversed(opened):
        inner = (m["bare"].rstrip(".,;"), m.end()) if m["bare"] else braced(text, m.end(), end)
        if inner is None or (contents and inner[1] > contents[-1][0]):
            continue  # a box that is never closed, or one around a box that is in the list already
        if contents and not (join and _BETWEEN_BOXES.fullmatch(text, inner[1], contents[-1][0])):
            break
        contents.append((m.start(), inner[1], inner[0].strip()))
        if len(contents) == 1 and not inner[0].strip():
            break
    if not contents:
        return None
    parts = list(dict.fromkeys(_SAYS.sub("", content) for _, _, content in reversed(contents)))
    return Found(",".join(parts), "box", contents[0][1] - 1)


_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def braced(text: str, start: int, end: int | None = None) -> tuple[str, int] | None:
    """Content of the braces that open at offset ``start`` and the offset after them; None if they never close."""
    depth = 0
    for brace in _BRACE.finditer(text, start, len(text) if end is None else end):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)  # an escaped brace is no brace
        if depth == 0:
            return text[start + 1 : brace.start()], brace.end()
        if brace.start() - start > TAIL:
            return None
    return None


def _statement(text: str, start: int, end: int, only_final: bool) -> Found | None:
    """Answer of the last "the answer is ..." in ``text[start:end]``; with ``only_final`` only of a "final" answer."""
    best = None
    for pattern in (_STATEMENT, _BARE_ANSWER, _HEADING, _IS_ANSWER):
        head = match = _last_match(pattern, text, start, end)
        if head is None or (best and head.start() <= best[0]):
            continue
        if pattern is _STATEMENT and not (match := _STATED.match(text, head.end(), end)):
            continue
        if only_final and not re.search(
            r"final\s{0,9}(?:\*\*)?\s{0,9}$", text[max(start, head.start() - 12) : head.start()], re.IGNORECASE
        ):
            continue
        answer = _outside(match["answer"])
        if _is_answer(answer, head[0]):
            best = (head.start(), Found(answer, "statement", match.end("answer")))
    return best[1] if best else None


def _is_answer(answer: str, statement: str) -> bool:
    """True if a text after "is" can be an answer: mathematics or one character, or up to 3 words after "answer"."""
    if not any(c.isalnum() for c in answer):
        return False
    if re.search(r"[\d$\\=]", answer) or len(answer) == 1:
        return True
    return "ans" in statement.lower() and len(answer.split()) <= 3


def _behind_the_verb(sentence: str) -> str:
    """Rest of a sentence's last line behind its last "is", "are", "equals" or "="; empty if there is none.

    A verb at the end of the line before counts first: what it says stands on the last line.
    """
    last = sentence.rfind("\n")
    verbs = [m for m in re.finditer(r"\b(?:is|are|equals?|=)\s+(?=\S)", sentence) if m.end() > last]
    if not verbs:
        return ""
    return sentence[verbs[0 if "\n" in verbs[0][0] else -1].end() :]


def _outside(answer: str) -> str:
    """Answer without the sentence around it: ``12. Check: ...`` -> ``12``; ``$12$ and $13$`` and ``3.5`` stay."""
    answer = answer.strip().strip("*\"'“”`").strip()
    if segments := list(_SEGMENT.finditer(answer)):
        first = segments[0]
        if not answer[: first.start()].strip(" \"'\\(["):
            whole = [first]
            for segment in segments[1:]:
                between = answer[whole[-1].end() : segment.start()].strip(" \t")
                if between not in (",", "and", "or", ", and", ", or", ",and"):
                    break
                whole.append(segment)
            rest = re.match(r"\s*(?:\\?%|percent\b|pct\b)", answer[whole[-1].end() :])
            return answer[first.start() : whole[-1].end()] + (rest[0] if rest else "")
    sentence = _SENTENCE_END.split(answer, maxsplit=1)[0].strip().rstrip(".").strip(" *\"'“”`")
    words = re.findall(r"[A-Za-z]{2,}", _SEGMENT.sub(" ", re.sub(r"\\\w+(?:\{[^{}]*\})?", " ", sentence)))
    if len(words) >= 3:  # "Final answer: the largest $n$ is 34"
        after = _behind_the_verb(sentence)
        if after and len(re.findall(r"[A-Za-z]{3,}", after)) <= 2 and any(c.isalnum() for c in after):
            return _outside(after)
        candidates = list(_SEGMENT.finditer(sentence)) or [m for m in _NUMBER.finditer(sentence) if m[0].strip()]
        if candidates:
            return candidates[-1][0].strip()
    return sentence


_PROSE = re.compile(
    r"\b(?:we|so|thus|hence|therefore|then|get|find|have|is|are|was|the|its?|that|this|answer|reply|result|because|since)\b",
    re.IGNORECASE,
)
_UNFINISHED = re.compile(r"[-+*/=(^]\s*$|\d\s+\d+\s+\d")  # "6 * 7 =", or numbers on their way: 3 7 12
_CODE = re.compile(
    r"__\w+__|\b(?:import|exec|eval|open|getattr|lambda|compile|subprocess)\b\s*[('\"]|\b(?:os|sys)\.\w+\("
)


def _formulas(text: str, start: int, end: int) -> list[re.Match]:
    """Matches of all formulas in ``text[start:end]``. Prose between two dollar signs (as of two prices) is none."""
    found = []
    for m in _SEGMENT.finditer(text, start, end):
        bare = re.sub(r"\\[a-zA-Z]+\s*(?:\{[^{}]*\})?", " ", m[0])
        if len(re.findall(r"[^\W\d_]{3,}", bare)) < 2:
            found.append(m)
    return found


def _bare(text: str, start: int, end: int, fallback: bool) -> Found | None:
    """Answer of a text that is one short line with an answer alone; with ``fallback``, of a last line like that."""
    lines = [line for line in text[max(start, end - 400) : end].split("\n") if line.strip()]
    only = len(lines) == 1 and end - start <= 400
    if not lines or not (only or fallback) or r"\boxed" in lines[-1] or _CODE.search(lines[-1]):
        return None
    line = prose = lines[-1].strip()
    for formula in reversed(_formulas(line, 0, len(line))):
        prose = prose[: formula.start()] + " " + prose[formula.end() :]
    allowed = 2 if only and not _PROSE.search(prose) else 0
    words = re.findall(r"[^\W\d_]{2,}", re.sub(r"\\[a-zA-Z]+", " ", prose))
    if _UNFINISHED.search(line):
        return None
    if len(line) <= 200 and len(words) <= allowed and any(c.isalnum() for c in line):
        return Found(line.strip("* "), "bare" if only else "last", end)
    return None


def _bold(text: str, start: int, end: int) -> Found | None:
    """Answer in the last bold number: the formula around it, or else the number alone."""
    bold = _last_match(_BOLD, text, start, end)
    if not bold:
        return None
    around = next((m for m in _SEGMENT.finditer(text, start, end) if m.start() < bold.start() < m.end()), bold)
    return Found(around[0].strip("*"), "last", around.end())


def _last(text: str, start: int, end: int) -> Found | None:
    """Guess at an answer: the last formula or number of the last sentence that contains one."""
    tail = text[max(start, end - 2_000) : end]
    if r"\boxed" in tail:
        return None  # a box that was never closed: the answer was cut off
    if _CODE.search(tail):
        return None
    for remark in _REMARKS:  # blanks keep the offsets
        tail = remark.sub(lambda m: " " * len(m[0]), tail)
    base = end - len(tail)
    if bold := _bold(text, max(base, end - 600), end):
        return bold
    spans, begin = [], 0
    for boundary in _SENTENCE_END.finditer(tail):
        spans.append((begin, boundary.start()))
        begin = boundary.end()
    spans.append((begin, len(tail)))
    for low, high in reversed(spans):
        formulas = _formulas(tail, low, high)
        numbers = [m for m in _NUMBER.finditer(tail, low, high) if m[0].strip()]
        outside = [m for m in numbers if not any(f.start() <= m.start() < f.end() for f in formulas)]
        if candidates := sorted([*formulas, *outside], key=lambda m: m.end()):
            first = re.match(r"[-−]?\d[\d.,/]*(?=\s+(?:because|since|as)\b)", tail[low:high].strip())
            if first:
                return Found(candidates[0][0].strip(), "last", base + candidates[0].end())
            chosen = [candidates[-1]]
            for earlier in reversed(candidates[:-1]):  # "are $\\frac{32}{9}$ and $\\frac{1}{2}$"
                if not re.fullmatch(r"\s*(?:,|and|or|,\s*and|,\s*or)\s*", tail[earlier.end() : chosen[0].start()]):
                    break
                chosen.insert(0, earlier)
            return Found(", ".join(m[0].strip() for m in chosen), "last", base + chosen[-1].end())
    return None
