"""The same problem twice."""

import random
from itertools import combinations

import numpy as np
import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st

from prefix_rl.data import duplicates
from prefix_rl.data.duplicates import INDEX, KEPT, NEAR, OTHER_ANSWER, SAME, bands, find
from prefix_rl.data.sources import read
from prefix_rl.data.texts import hash64, numbers, similarity, squeezed

APPLES = "Tim buys 12 apples at 3 dollars each. He pays with a note of 50 dollars. How much does he get back in total?"


def found(rows, threshold=0.8):
    """What :func:`find` says of (problem, answer) rows."""
    table = np.zeros(len(rows), INDEX)
    for i, (problem, answer) in enumerate(rows):
        table[i] = (i, hash64(squeezed(problem)), hash64(squeezed(answer)), 0, 0, bands(problem, answer))
    column = lambda name, band: table[name] if band is None else table[name][:, band]  # noqa: E731
    kind, of = find(column, lambda i: rows[i][0], threshold)
    return kind.tolist(), of.tolist()


def slowly(rows, threshold):
    """The same by comparing every row with every kept one before it."""
    kind, of = [KEPT] * len(rows), list(range(len(rows)))
    firsts = {}
    for j, (problem, answer) in enumerate(rows):
        first = firsts.setdefault(squeezed(problem), j)
        if first != j:
            kind[j], of[j] = (SAME if squeezed(rows[first][1]) == squeezed(answer) else OTHER_ANSWER), first
            if kind[first] == NEAR:
                kind[j], of[j] = NEAR, of[first]
            continue
        for i in range(j):
            agree = squeezed(rows[i][1]) == squeezed(answer) and numbers(rows[i][0]) == numbers(problem)
            if kind[i] == KEPT and agree and similarity(rows[i][0], problem) >= threshold:
                kind[j], of[j] = NEAR, i
                break
    return kind, of


def test_the_first_of_the_same_problems_is_kept():
    rows = [
        ("What is $6 \\cdot 7$?", "42"),
        ("Other", "1"),
        ("what is \\( 6\\cdot 7 \\)?", "42"),
        ("What is $6\\cdot7$?", "41"),
    ]
    assert found(rows) == ([KEPT, KEPT, SAME, OTHER_ANSWER], [0, 1, 0, 0])


def test_a_rewording_is_a_near_duplicate_and_another_number_or_answer_makes_another_problem():
    reworded = APPLES.replace("in total", "then")
    assert 0.8 <= similarity(APPLES, reworded) < 1
    rows = [
        (APPLES, "14"),
        (reworded, "14"),
        (reworded + " ", "15"),
        (APPLES.replace("3", "4"), "14"),
        (APPLES.replace("3", "4"), "2"),
    ]
    kind, of = found(rows)
    assert kind == [KEPT, NEAR, NEAR, KEPT, OTHER_ANSWER]  # the third is the second's copy, and goes with it
    assert of == [0, 0, 0, 3, 3]
    assert found(rows, threshold=None)[0] == [KEPT, KEPT, OTHER_ANSWER, KEPT, OTHER_ANSWER]


def test_numbers_count_in_their_order():
    rows = [
        (f"He has {a} red, {b} blue balls and one green ball in a large box. How many balls has he in all?", "9")
        for a, b in ((3, 5), (5, 3))
    ]
    assert found(rows, 0.3)[0] == [KEPT, KEPT]


def test_likeness_does_not_chain():
    words = [3 * chr(97 + i) for i in range(26)]
    first = " ".join(words)
    second = " ".join([*words[:23], "x", "y", "z"])  # 21 of the 24 three-grams are shared: 21 / 27
    third = " ".join(["x", "y", "z", *words[3:23], "x", "y", "z"])
    ab, bc, ac = similarity(first, second), similarity(second, third), similarity(first, third)
    assert ab == pytest.approx(21 / 27)
    assert ac < min(ab, bc)
    kind, of = found([(t, "1") for t in (first, second, third)], threshold=min(ab, bc))
    assert (kind, of) == ([KEPT, NEAR, KEPT], [0, 0, 2])  # the third is like the second only, which is not kept


@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.8, 1.0]))
@examples(25)
def test_banding_finds_what_comparing_all_pairs_finds(seed, threshold):
    draw = random.Random(seed)
    vocabulary = [f"{c}{d}" for c in "abcdefgh" for d in "klmnop"]
    rows = []
    for _ in range(12):
        if rows and draw.random() < 0.6:  # a changed copy of an earlier row
            text = draw.choice(rows)[0].split()
            for _ in range(draw.randrange(3)):
                text[draw.randrange(len(text))] = draw.choice(vocabulary)
            rows.append((" ".join(text), draw.choice("12")))
        else:
            rows.append((" ".join(draw.choices(vocabulary, k=120)) + draw.choice([" 7", " 8"]), draw.choice("12")))
    # from 0.88 on a pair is found with probability 1 - 1e-8, below it may be missed
    assume(not any(threshold <= similarity(a, b) < 0.88 for (a, _), (b, _) in combinations(rows, 2)))
    assert found(rows, threshold) == slowly(rows, threshold)


def test_banding_finds_pairs_at_its_stated_rate():
    # 1 - (1 - s^5)^25 at s = 1/2: 1 - (31/32)^25 = 0.548; over 300 pairs, within three standard errors
    draw, hits, rates = random.Random(0), 0, []
    for pair in range(300):
        names = [f"q{pair}x{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(60)]
        draw.shuffle(names)
        first, second = " ".join(names[:40]), " ".join(names[13:53])
        rates.append(similarity(first, second))
        hits += (bands(first, "1") == bands(second, "1")).any()
    expected = np.mean([1 - (1 - s**5) ** 25 for s in rates])
    assert 0.4 < np.mean(rates) < 0.6
    assert abs(hits / 300 - expected) < 3 * (expected * (1 - expected) / 300) ** 0.5


def test_bands_are_the_same_in_every_process():
    assert bands(APPLES, "14")[:2].tolist() == [1380243590565705059, 13093555144791302533]
    assert duplicates.BANDS * duplicates.ROWS == 125


def test_real_problems_are_hardly_ever_dropped(shared_data):
    rows = [(r["problem"], r["answer"]) for _, r in read(str(shared_data / "gsm8k-train.jsonl.gz"))]
    kind, of = found(rows)
    (dropped,) = np.flatnonzero(np.array(kind) != KEPT)
    assert kind[dropped] == NEAR
    assert rows[dropped][0].replace("Amanda", "Josie") == rows[of[dropped]][0]
    rows = [(r["problem"], r["answer"]) for _, r in read(str(shared_data / "math500.jsonl"))]
    assert set(found(rows)[0]) == {KEPT}


def test_similarity_in_numbers():
    assert similarity("", "") == 1.0
    assert similarity("", "a") == 0.0
    assert similarity("a b c d e", "a b c x y") == 1 / 5  # abc of abc, bcd, cde, bcx, cxy
