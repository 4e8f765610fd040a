"""Evaluation problems among training problems."""

import hashlib

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from small import write

from prefix_rl.data.contamination import EvaluationIndex, load_sets, overlap, sets_facts
from prefix_rl.data.sources import read
from prefix_rl.data.texts import words
from prefix_rl.errors import DataError

EVALUATION = [
    ("e1", r"Every morning Aya goes for a $9$-kilometer walk and stops at a coffee shop afterwards."),
    ("e2", r"Compute $\sin 0$."),
]
WORD = st.sampled_from(["a", "b", "c", "d"])


def test_eight_words_in_a_row_are_too_many_and_seven_are_not():
    index = EvaluationIndex({"aime": EVALUATION})
    hit = index.find(r"Once, EVERY morning \textbf{Aya} goes for a 9-kilometer run.")
    assert (hit.problem, hit.run, hit.words, hit.whole) == (0, "every morning aya goes for a 9 kilometer", 8, ())
    assert index.find("Every morning Aya goes for a 9 mile walk and stops at a bar.") is None  # seven, and six
    assert (
        EvaluationIndex({"aime": EVALUATION}, n=13).find("Every morning Aya goes for a 9-kilometer walk, then.") is None
    )


def test_a_short_problem_is_compared_as_a_whole():
    index = EvaluationIndex({"aime": EVALUATION})
    assert index.find(r"compute \( \sin{0} \)").whole == (1,)
    assert index.find("Compute sin 0 and cos 0") is None


def test_a_problem_within_a_longer_text_is_there_as_a_whole():
    index = EvaluationIndex({"aime": EVALUATION})
    hit = index.find("Solve this. " + EVALUATION[0][1] + " Think step by step.")
    assert hit.whole == (0,)
    assert hit.words == 16


@given(st.lists(st.lists(WORD, max_size=12), min_size=1, max_size=4), st.lists(WORD, max_size=14), st.integers(2, 4))
@examples(200)
def test_the_index_finds_what_comparing_every_run_of_words_finds(problems, text, n):
    index = EvaluationIndex({"s": [(str(i), " ".join(p)) for i, p in enumerate(problems)]}, n)
    best = 0  # the longest common run of any problem, by comparing all of them
    for problem in problems:
        for i in range(len(problem)):
            for j in range(len(text)):
                k = 0
                while i + k < len(problem) and j + k < len(text) and problem[i + k] == text[j + k]:
                    k += 1
                best = max(best, k)
    hit = index.find(" ".join(text))
    same = any(problem == text != [] for problem in problems)
    assert (hit is not None) == (best >= n or same)
    if hit and best >= n:
        assert hit.words >= best  # more, where a text repeats itself


PHRASED = [
    (
        "1",
        "A jar holds red marbles. The chance is frac m n where m and n are relatively prime positive integers. Find m + n.",
    ),
    (
        "2",
        "Two circles touch. Their area is frac p q where p and q are relatively prime positive integers. Find p + q.",
    ),
    (
        "3",
        "Ants walk on a cube. The mean is frac a b where a and b are relatively prime positive integers. Find a + b.",
    ),
]


def test_turns_of_phrase_can_be_spared_and_copies_cannot():
    other = "A bag of seven socks. It is frac s t where s and t are relatively prime positive integers. Find s + t."
    copied = "A jar holds red marbles. The chance is large that it is frac m n where m and n are relatively prime positive integers."
    assert EvaluationIndex({"a": PHRASED}).find(other.replace("s and t", "m and n")) is not None
    spared = EvaluationIndex({"a": PHRASED}, spare_phrases=True)
    assert spared.find(other) is None
    assert spared.find(other.replace("s and t", "m and n")) is None
    assert EvaluationIndex({"a": [*PHRASED, ("4", copied)]}, spare_phrases=True).find(copied).whole == (3,)
    assert spared.find(PHRASED[0][1]).whole == (0,)
    two = EvaluationIndex(
        {"a": PHRASED[:2], "b": [("1", PHRASED[0][1] + " Why?")]}, spare_phrases=True
    )  # forms of two problems
    assert two.find(other.replace("s and t", "m and n")) is not None


def test_what_overlaps_a_turn_of_phrase_by_its_last_word_is_spared():
    tail = ("1", PHRASED[0][1] + " Then paint the jar and sell it to Bob.")
    spared = EvaluationIndex({"a": [tail, *PHRASED[1:]]}, spare_phrases=True)
    text = "They are relatively prime positive integers. Find m + n. Then paint the jar and sell it "
    assert spared.find(text + "quickly.") is None  # behind the n seven words are shared
    assert spared.find(text + "to Eve.").problem == 0  # and now eight


def test_a_dropped_row_is_shown_with_what_it_shares():
    index = EvaluationIndex({"aime": EVALUATION})
    text = "Every morning Aya goes for a 9-kilometer run."
    assert index.shown(text, index.find(text)) == {
        "words": 8, "shared": "every morning aya goes for a 9 kilometer", "problem": text,
        "evaluation_id": "e1", "evaluation_problem": EVALUATION[0][1],
    }  # fmt: skip


def test_the_manifest_names_a_sets_content_where_it_is_a_file(tmp_path):
    path = write(tmp_path / "e.jsonl", [{"problem": "p"}])
    sha = hashlib.sha256((tmp_path / "e.jsonl").read_bytes()).hexdigest()
    assert sets_facts([path, "some/set"]) == [{"set": path, "sha256": sha}, {"set": "some/set", "sha256": None}]


def test_an_evaluation_set_inside_is_refused_unless_forced():
    index = EvaluationIndex({"small": [(str(n), f"problem {n}") for n in range(10)], "other": [("1", "none")]})
    with pytest.raises(DataError, match="small: 9 of its 10 problems") as error:
        index.refuse_if_inside(range(9))
    assert "--force" in str(error.value)
    assert "other" not in str(error.value)
    assert index.refuse_if_inside(range(9), force=True)["small"]["found whole"] == 9
    assert index.refuse_if_inside(range(8))["small"]["problems"] == 10


def test_an_evaluation_set_may_be_a_benchmark_by_its_name(tmp_path, monkeypatch):
    write(tmp_path / "aime24.jsonl", [{"id": "I-1", "problem": "How many?", "answer": "1"}])
    monkeypatch.setenv("PREFIX_RL_BENCHMARKS", str(tmp_path))
    assert load_sets(["aime24"]) == {"aime24": [("I-1", "How many?")]}


def test_evaluation_sets_are_read_in_any_known_form(tmp_path):
    path = write(tmp_path / "e.jsonl", [{"question": "p", "answer": "#### 1"}, {"id": "x", "problem": "q"}])
    assert load_sets([path]) == {path: [("0", "p"), ("x", "q")]}
    with pytest.raises(DataError, match=r"no text of a problem in .*bad\.jsonl:1"):
        load_sets([write(tmp_path / "bad.jsonl", [{"text": "p"}])])


def test_overlap_sees_through_typesetting():
    assert overlap([r"Find $\dfrac{1}{2} x$.", "B"], [r"find \(\frac{1}{2}x\).", "c"]) == [r"find \(\frac{1}{2}x\)."]


def test_real_evaluation_problems_are_found_among_themselves(shared_data):
    names = ["aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "gsm8k-test"]
    sets = load_sets([str(shared_data / f"{name}.jsonl") for name in names])
    for n, spare in ((8, False), (8, True), (13, False)):
        index = EvaluationIndex(sets, n, spare_phrases=spare)
        for number, (_, _, text) in enumerate(index.problems):
            assert number in index.find("Solve: " + text if len(words(text)) >= n else text).whole


def test_what_real_training_problems_share_with_real_evaluation_sets(shared_data):
    names = ["aime24", "aime25", "amc22-23", "math500", "minerva", "olympiadbench", "gsm8k-test"]
    sets = load_sets([str(shared_data / f"{name}.jsonl") for name in names])
    problems = [row["problem"] for _, row in read(str(shared_data / "gsm8k-train.jsonl.gz"))]
    for n, dropped in ((8, 80), (13, 3)):
        index = EvaluationIndex(sets, n)
        assert sum(index.find(problem) is not None for problem in problems) == dropped
