import json

import pytest

from prefix_rl.rewards.equality import Rules
from prefix_rl.rewards.grading import Outcome, equal, final_answer, grade, judge, parse_gold


@pytest.mark.parametrize(
    ("text", "gold", "outcome"),
    [
        (r"\boxed{42}", "42", Outcome.RIGHT), (r"\boxed{41}", "42", Outcome.WRONG), ("I do not know", "42", Outcome.NO_ANSWER),
        (r"\boxed{42}", "", Outcome.BAD_GOLD), (r"\boxed{42}", r"\frac{1", Outcome.BAD_GOLD), ("", "42", Outcome.NO_ANSWER),
        (r"\boxed{42}", "???", Outcome.BAD_GOLD), (r"\boxed{" + "1" * 100_000 + "}", "42", Outcome.WRONG),
    ],
)  # fmt: skip
def test_each_sample_has_one_outcome(text, gold, outcome):
    assert grade(text, gold) is outcome


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("We have 3 apples and 4 oranges, so 7 fruits in total.", "7", True), ("The sum is 15.", "15", True),
        ("Hence, $x=4$ or $x=-2$.", "4,-2", True), (r"Therefore the probability is $\frac{3}{8}$.", "3/8", True),
        (r"The final answer is $\boxed{\text{(D)}}$", "D", True), ("Answer: (D) 12", "D", True),
        ("Answer: (D) 12", "12", True), ("The answer is (D) $12$.", "12", True),
        (r"So the correct choice is \textbf{(C)}.", "C", True), ("Option B is correct. The answer is B", "B", True),
        (r"**Answer:** $\frac{1}{2}$", "0.5", True), ("Answer:\n\\[\\frac{1}{2}\\]", "0.5", True),
        ("**Final Answer:**\n\n$$\\boxed{27}$$", "27", True), ("The final answer is:\n\n$\\boxed{27}$", "27", True),
        ("Final answer: 27.", "27", True), ("FINAL ANSWER: 27", "27", True),
        ("My final answer is **27**.", "27", True), (r"The answer is \boxed{27} apples.", "27", True),
        ("The answer: $x = 3$", "3", True), ("answer = 3", "3", True),
        (r"The result is $3\sqrt{2}$.", r"3\sqrt{2}", True), ("ans: 3", "3", True), ("Ans = 3", "3", True),
        ("A: 3", "3", True), (r"Thus the area equals $12\pi$ square units.", r"12\pi", True),
        ("it costs $12.50.", "12.50", True), ("The total cost is $12.50 per person.", "12.50", True),
        ("So she has $120 left.", "120", True), ("So he needs 20 minutes.\n\n#### 20 minutes", "20", True),
        ("#### 1,200 dollars", "1200", True), ("I get 5. Wait, no. I get 6.", "6", True),
        ("I get 5. Wait, no. I get 6.", "5", False), ("The answer is 5 or 6.", "5", False),
        ("The answer is between 5 and 6.", "5", False), ("x = 5\ny = 6", "6", True),
        (r"\(\boxed{5}\) is the answer to 5+0=6", "5", True), (r"\boxed{5} \boxed{5}", "5", True),
        (r"\boxed{\boxed{5}}", "5", True), (r"$\boxed{x=5}$", "5", True), (r"\boxed{5\text{ km}}", "5", True),
        (r"\boxed{\$5}", "5", True), (r"\boxed{5, 6}", "6,5", True), (r"\boxed{The answer is 5}", "5", True),
        (r"\boxed{Answer: 5}", "5", True), (r"\boxed{x \approx 5.0}", "5", True),
        ("\\boxed{5}\n\nThis is my final answer.", "5", True), (r"\boxed{5}. The final answer is 5.", "5", True),
        (r"\boxed{5}. Therefore the final answer is $\boxed{5}$.", "5", True),
        ("<think>\nlong\n</think>\n\nThe answer is **5**.", "5", True),
        (r"<|begin_of_solution|>x<|end_of_solution|> \boxed{5}", "5", True), ("Solution: 5", "5", True),
        ("Solution:\n5", "5", True), (r"The answer is 5\%", r"5\%", True), ("The probability is 25%", "1/4", True),
        (r"Therefore, the answer is $\frac{1}{2}$, which is 50%.", "1/2", True),
        ("So the ratio is 3:4.", "3:4", True), ("The time is 12:30 PM.", "12:30 PM", True),
        ("The answer is Monday.", "Monday", True), ("So it is Monday.", "Monday", False),
        ("The answer is yes.", "Yes", True), ("Yes, because 3 > 2.", "Yes", False),
        (r"The answer is $\{1,2,3\}$.", r"\{1,2,3\}", True), ("The solutions are 1, 2, and 3.", "1,2,3", True),
        ("The solutions are $x=1$, $x=2$ and $x=3$.", "1,2,3", True),
        ("The possible values are 1 and 2.", "1,2", True), ("So $(x,y)=(1,2)$.", "(1,2)", True),
        (r"The matrix is $$\begin{pmatrix}1&2\\3&4\end{pmatrix}$$", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", True),
        (r"\[ x = \boxed{\frac{3}{4}} \]", "0.75", True), ("答案：5", "5", True), (r"所以答案是\boxed{5}", "5", True),
        ("Die Antwort ist 5.", "5", True), ("La respuesta es 5.", "5", True), ("La réponse est 5.", "5", True),
        ("Ответ: 5", "5", True), ("The answer is 1234567", "1,234,567", True), ("The answer is 3 1/2", "3.5", True),
        ("The answer is 3.5 hours", "3.5", True), ("the answer is x^2+1", "x^2+1", True),
        ("the answer is 2x + 3y", "2x+3y", True), ("The answer is sqrt(2)/2.", r"\frac{\sqrt2}{2}", True),
        ("the answer is pi/4", r"\pi/4", True), ("the answer is 2^10", "1024", True),
    ],
)  # fmt: skip
def test_completions_are_graded_as_a_person_would(text, gold, right):
    assert (grade(text, gold) is Outcome.RIGHT) is right


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        (r"\boxed{1, 2, 3, 42}", "42"), (r"\boxed{41 \text{ or } 42}", "42"), (r"\boxed{41} or \boxed{42}", "42"),  # every candidate
        (r"\boxed{42}, no, \boxed{41}", "42"), (r"\boxed{42}\boxed{41}", "42"),  # several boxes
        ("#### 42\n#### 41", "42"), ("The answer is 42. The answer is 41.", "42"), (r"42 \approx 41", "41"),
        (r"\boxed{(-\infty, \infty)}", "42"), (r"\boxed{x}", "42"), (r"\boxed{n \in \mathbb{Z}}", "42"),  # something that holds 42
        (r"\boxed{\text{the answer}}", "42"), (r"\boxed{42 \text{ if } 41}", "41"), (r"\boxed{A, B, C, D}", "B"),
        ("Problem: the answer is 42 or 41, which? I choose 41.", "42"),  # the question's text
    ],
)  # fmt: skip
def test_what_hedges_earns_nothing(text, gold):
    assert grade(text, gold) is not Outcome.RIGHT


def test_an_answer_that_only_the_injected_prefix_holds_is_no_answer():
    prefix = r"so \boxed{42}"
    assert judge(prefix + " Done.", "42").outcome is Outcome.RIGHT
    assert judge(prefix + " Done.", "42", start=len(prefix)).outcome is Outcome.NO_ANSWER
    assert (
        judge(prefix[:-1] + "}", "42", start=len(prefix) - 1).outcome is Outcome.NO_ANSWER
    )  # the policy closed the box
    assert judge(prefix[:-3] + "42}", "42", start=len(prefix) - 3).outcome is Outcome.RIGHT  # and here it filled it
    assert judge(prefix + r" so \boxed{42}", "42", start=len(prefix)).outcome is Outcome.RIGHT


def test_without_the_fallback_an_answer_must_be_marked():
    strict = Rules(fallback="none")
    assert judge("so it is 42", "42").found_by == "last"
    assert judge("so it is 42", "42", strict).outcome is Outcome.NO_ANSWER
    assert judge("42", "42", strict).found_by == "bare"
    assert judge("the answer is 42", "42", strict).outcome is Outcome.RIGHT


def test_boxes_are_one_answer_or_the_last_counts():
    text = r"\boxed{1} and \boxed{2}"
    assert judge(text, "1,2").outcome is Outcome.RIGHT
    assert judge(text, "2", Rules(boxes="last")).outcome is Outcome.RIGHT


@pytest.mark.parametrize(
    ("gold", "bare"),
    [("42", "42"), (r"so it is \boxed{7}", "7"), ("6 * 7 = 42\n#### 42", "42"), ("$x = 5$", "$x = 5$"), ("", ""), ("?", ""), ("{1", ""),
     ('["64", "5"]', "64, 5"), ('["64", "?"]', "")],
)  # fmt: skip
def test_a_gold_answer_may_come_with_its_solution(gold, bare):
    assert parse_gold(gold) == bare


@pytest.mark.parametrize(
    ("answer", "alone", "together"), [("5", True, False), ("3, 5", False, True), ("4", False, False)]
)
def test_of_a_list_of_gold_answers_all_are_asked_for_or_any(answer, alone, together):
    assert equal(answer, "['3', '5']", Rules(gold_list="any")) is alone
    assert equal(answer, "['3', '5']", Rules(gold_list="all")) is together


def test_the_last_line_of_a_derivation_may_be_the_answer():
    text = "We get\n$$\\begin{aligned} x &= 3 + 4 \\\\ &= 7 \\end{aligned}$$"
    assert judge(text, "7").outcome is Outcome.RIGHT
    assert judge(text, "3").outcome is Outcome.WRONG


def test_grading_is_idempotent_and_an_answer_grades_as_itself():
    for answer in ("12", r"\frac{1}{2}", "(1, 2]", "x = 5", r"\text{even}", "1, 2, 3", r"x^2 + \sqrt{2}"):
        assert grade(rf"\boxed{{{answer}}}", answer) is Outcome.RIGHT
        once = final_answer(rf"so \boxed{{{answer}}}.")
        assert final_answer(rf"\boxed{{{once}}}") == once == answer


# --- real problems, solutions and cases -------------------------------------------------------------------------------


def rows_of(path):
    return [json.loads(line) for line in path.open(encoding="utf-8")]


@pytest.mark.parametrize(
    "name", ["math500", "aime24", "aime25", "amc23", "amc22-23", "gsm8k-test", "minerva", "olympiadbench"]
)
def test_every_gold_answer_of_the_benchmarks_equals_itself(shared_data, name):
    for row in rows_of(shared_data / f"{name}.jsonl"):
        assert parse_gold(row["answer"]), row["answer"]
        assert grade(rf"\boxed{{{row['answer']}}}", row["answer"]) is Outcome.RIGHT, row["answer"]


@pytest.mark.parametrize(
    "name", ["math500", "gsm8k-test", "minerva", "demonstrations-qwen2.5-math", "demonstrations-r1-sample"]
)
def test_published_solutions_that_mark_their_answer_grade_right(shared_data, name):
    rows = rows_of(shared_data / f"{name}.jsonl")
    assert [
        row["id"] for row in rows if grade(row["solution"], row["answer"], Rules(fallback="none")) is not Outcome.RIGHT
    ] == []


def test_most_published_solutions_in_prose_grade_right_with_the_fallback(shared_data):
    rows = rows_of(shared_data / "olympiadbench.jsonl")
    right = sum(grade(row["solution"], row["answer"]) is Outcome.RIGHT for row in rows)
    assert right > 0.75 * len(rows)  # 514 of 674: the others end in a proof, a remark or a check


def test_no_two_answers_of_math500_are_taken_for_one(shared_data):
    answers = sorted({row["answer"] for row in rows_of(shared_data / "math500.jsonl") if not row["answer"].isdigit()})[
        :120
    ]
    alike = {(a, b) for i, a in enumerate(answers) for b in answers[i + 1 :] if equal(a, b)}
    assert {frozenset(pair) for pair in alike} == {
        frozenset(pair)
        for pair in [(r"2 \sqrt{5}", r"2\sqrt{5}"), (r"36^\circ", r"\$36"), ("(-2,1)", "-2,1"), ("-2,1", "1,-2")]
    }  # of 7,140 pairs: one twice, units ignored, a list for a tuple, a list in another order


def cases(shared_data, tag):
    return [row for row in rows_of(shared_data / "verifier-cases.jsonl") if row["tag"] == tag]


def disagreements(rows, text):
    return [row["id"] for row in rows if (grade(text(row), row["gold"]) is Outcome.RIGHT) != row["expected"]]


def test_the_cases_of_other_graders_get_their_verdicts(shared_data):
    # TRL's accuracy_reward decides 57 % of these as expected, plain math-verify 88 %
    core = cases(shared_data, "core")
    assert len(disagreements(core, lambda row: row["prediction"])) <= 0.01 * len(core)

    def boxed(row):
        bare = row["kind"] == "answer" and "boxed" not in row["prediction"]
        return rf"\boxed{{{row['prediction']}}}" if bare else row["prediction"]

    assert len(disagreements(core, boxed)) <= 0.01 * len(core)


@pytest.mark.parametrize("gold", ["proof omitted", "Not applicable", "unanswerable", "None given"])
def test_a_sentinel_is_no_gold(gold):
    assert judge(rf"\boxed{{{gold}}}", gold).outcome == "bad_gold"


@pytest.mark.parametrize("mark", ["<Think>", "<seed:think>", "<scratchpad>", "<analysis>", "<Thinking>"])
def test_a_thought_by_another_name_that_was_cut_off_concludes_nothing(mark):
    assert judge(rf"{mark}so \boxed{{4}}", "4").outcome == "no_answer"
    assert judge(rf"{mark}\boxed{{3}}{mark.replace('<', '</')}\boxed{{4}}", "4").outcome == "right"
