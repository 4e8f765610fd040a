"""What the main process does with texts of a model or a file takes time in proportion to their length."""

import time

import pytest
from hostile import Hang, cpu_budget

from prefix_rl.data.columns import normalize
from prefix_rl.data.contamination import EvaluationIndex
from prefix_rl.data.duplicates import bands
from prefix_rl.data.problems import row_faults
from prefix_rl.errors import printable
from prefix_rl.rewards.characters import ascii_
from prefix_rl.rewards.extraction import find
from prefix_rl.rewards.guard import readable, safe_cuts
from prefix_rl.rewards.notation import cleaned, matching, words
from prefix_rl.rewards.structure import chain, parse
from prefix_rl.rewards.wording import conflict, droppable, one_unit, spoken, untexted

PATTERNS = ["9", "1.", "9.", "1,000,", " ", "\n", "\\text{", "\\mathrm{", "\\textbf{1", "\\frac{", "\\boxed{", "(", "#### ", "<<1",
            "x+", "$", "<|begin_of_thought|> ", "<|end_of_thought|> ", "final answer ", "\x1b["]  # fmt: skip
OF_ANSWERS = ["\\(", "\\[", "{", "\\begin{", "\nUser:", "<answer>", "answer is ", "**1", "\\boxed{1} and ", "cm ", "minus ", "a=", "½",
              "9\u0305", "а"]  # fmt: skip
INDEX = EvaluationIndex({"e": [("1", "Find the sum of all primes below ten and of nine more.")]}, n=8)
DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer "
    "(without quotes) where $Answer is the answer to the problem."
)
ANSWER_READERS = {  # one with a cache is called around it, by __wrapped__: its second call would take no time
    # number and read are not here: they refuse texts of more than about a thousand characters.
    "final answers": find,
    "notation": cleaned.__wrapped__,
    "brackets": matching,
    "characters": lambda text: ascii_(f"é{text}"),
    "words": lambda text: (words(text), untexted(text), spoken(text)),
    "units": lambda text: (droppable(text, True), one_unit(text), conflict(text, f"odd {text}")),
    "structure": lambda text: (parse(text), chain(text)),
}
READERS = {
    "the answer guard": lambda text: readable(text, "72", "what is 72 of 3?"),
    "the answer guard, of a word": lambda text: readable(text, "\\text{five apples}", text),
    "the answer guard, of a pair": lambda text: readable(text, "(1, 2)"),
    "cuts": lambda text: safe_cuts(text, "72", range(1, len(text) + 1), offset=len(text)),
    "demonstrations": lambda text: normalize(
        {"problem": text, "answer": "4", "generations": [text, f"#### 4{text}x"]}, {}
    ),
    "solutions": lambda text: normalize({"question": f"{DAPO}{text}x", "answer": f"#### {text}x"}, {}),
    "thoughts": lambda text: normalize({"problem": "p", "answer": "4", "target": f"<|begin_of_thought|>{text}x"}, {}),
    "near-duplicates": lambda text: bands(text, text),
    "contamination": INDEX.find,
    "rows": lambda text: row_faults({"problem": text, "answer": text, "demonstrations": [text]}),
    "messages": printable,
}


def seconds(reader, text, calls=3):
    """CPU time of a call; the least of several, as whatever disturbs it only adds."""
    least = float("inf")
    for _ in range(calls):
        began = time.process_time()
        reader(text)
        least = min(least, time.process_time() - began)
    return least


def grows_with_its_square(reader, pattern, length=8_000):
    """Whether four times the text takes more than nine times as long: in proportion it is 4, by the square 16."""
    short, long = ((pattern * n)[:n] for n in (length, 4 * length))
    try:
        with cpu_budget():
            if seconds(reader, long, calls=1) <= 0.1:  # what is quicker cannot be told apart
                return False
            after = seconds(reader, long)
            return after > 0.1 and after > 9 * seconds(reader, short)
    except Hang:
        return True


@pytest.mark.parametrize("name", ANSWER_READERS)
def test_reading_four_times_the_answer_takes_four_times_as_long(name):
    assert [p for p in PATTERNS + OF_ANSWERS if grows_with_its_square(ANSWER_READERS[name], p)] == []


@pytest.mark.parametrize("name", READERS)
def test_four_times_the_text_takes_four_times_as_long(name):
    assert [pattern for pattern in PATTERNS if grows_with_its_square(READERS[name], pattern)] == []


def test_the_square_is_seen():
    def squares(text):
        return sum(text.count("9", 0, i) for i in range(0, len(text), 2))

    assert grows_with_its_square(squares, "9", 20_000)
