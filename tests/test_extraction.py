import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl.rewards.extraction import TAIL, find
from prefix_rl.rewards.grading import final_answer


@pytest.mark.parametrize(
    ("text", "answer", "by"),
    [
        (r"so \boxed{42}", "42", "box"), (r"\boxed{1} no, \boxed{2}", "2", "box"), (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", "box"),
        (r"\fbox{7}", "7", "box"), (r"\boxed {7}", "7", "box"), (r"\boxed 5", "5", "box"), (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "box"),
        (r"\boxed{1} and then \boxed{2", "1", "box"), (r"We get \boxed{3}. Wait, that is wrong. \boxed{4}", "4", "box"),
        ("\\boxed{3}\n\nLet me check: 2 + 1 = 3 is correct.", "3", "box"),
        (r"\boxed{1} and \boxed{-2}.", "1,-2", "box"), (r"$\boxed{1}$, $\boxed{2}$ \text{ and } $\boxed{3}$", "1,2,3", "box"),
        (r"\boxed{3} or \boxed{3}", "3", "box"), (r"\boxed{x = \boxed{3}}", "3", "box"),
        ("x\n#### 1,000", "1,000", "hashes"), ("The total is 18\n#### $18", "$18", "hashes"), ("####18", "18", "hashes"),
        ("<answer>12</answer>", "12", "tags"), (r"<answer>\boxed{84}</answer>", "84", "box"),
        ("The answer is $12$.", "$12$", "statement"), ("The final answer is: 3.5. I hope so.", "3.5", "statement"),
        (r"The answer is $\$328,108$.", r"$\$328,108$", "statement"), (r"the answer is \(x^2\).", r"\(x^2\)", "statement"), ("**Answer:** 42", "42", "statement"), ("Answer: 42", "42", "statement"),
        (r"**Final Answer**: $\frac{1}{2}$.", r"$\frac{1}{2}$", "statement"), ("### Final Answer\n\n$$12$$", "$$12$$", "statement"),
        (r"Answer \( 9 \)", r"\( 9 \)", "statement"), ("Therefore, the correct answer is (B).", "(B)", "statement"),
        ("I think the answer is 3. No, the answer is 4.", "4", "statement"), ("The answer to the question is 7.", "7", "statement"),
        ("The answer is 12. Check: 3*4 = 12, so 13 is wrong.", "12", "statement"), ("The solution is x = 4.", "x = 4", "statement"),
        (r"Therefore $x \geq 5$ is the solution.", r"$x \geq 5$", "statement"), ("the answer is approximately 3.14", "3.14", "statement"),
        ("Our answer is $x=4$, $y=5$.", "$x=4$, $y=5$", "statement"), ("答案是 5", "5", "statement"),
        ("Final Answer: The largest $n$ is 34.", "34", "statement"), ("Final Answer: Jane started 3 hours ago.", "3", "statement"),
        ("The final answer: the smallest such value is x+1.", "x+1", "statement"), ("The answer is north by east.", "north by east", "statement"),
        (r"it is \boxed{255}. Final Answer: The final answer is $10,455$. I hope it is correct.", "$10,455$", "statement"),
        ("42", "42", "bare"), ("64 square feet", "64 square feet", "bare"), (r"\frac{1}{2}", r"\frac{1}{2}", "bare"), ("x = 5", "x = 5", "bare"),
        ("so we get 12", "12", "last"), (r"It equals \(\frac{2}{3}\).", r"\(\frac{2}{3}\)", "last"), ("First 6 * 7.\n42", "42", "last"),
        (r"We find that $x \lt 3$.", r"$x \lt 3$", "last"), ("Thus $T$ is 3 (independent of $T$ ).", "3", "last"),
        (r"the roots are $\frac{32}{9}$ and $\frac{1}{2}$", r"$\frac{32}{9}$, $\frac{1}{2}$", "last"),
        (r"so $d = \mathbf{1 5 0}$ workers in 2 hours.", r"$d = \mathbf{1 5 0}$", "last"), ("it is **66** after 3 steps", "66", "last"),
        ("the error increases by 100%.", "100%", "last"), (r"so \(x =\)5.", "5", "last"),
    ],
)  # fmt: skip
def test_the_final_answer_is_found_as_people_write_it(text, answer, by):
    found = find(text)
    assert (found.answer, found.by) == (answer, by)
    assert find(text, fallback=False) == (None if by == "last" else found)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"<think>\boxed{1}</think> it is \boxed{2}", "2"), (r"<think>\boxed{1}</think> I have no idea", None), ("<think>it is 3", None),
        (r"\boxed{5}<|im_end|><|im_start|>user \boxed{6}", "5"), ("Answer: 2\n\nQuestion: what is 2 + 2?\nAnswer: 4", "2"),
        (r"it is \boxed{5}. Question: is it \boxed{6}?", "6"),
    ],
)  # fmt: skip
def test_only_the_turn_of_the_policy_and_what_follows_its_thought_counts(text, answer):
    found = find(text)
    assert (found.answer if found else None) == answer


@pytest.mark.parametrize("text", ["", "I do not know.", r"\boxed{}", r"\boxed{42", r"\boxed{\frac{1}{2}", "The result is clear.",
                                  "The answer is left as an exercise.",
                                  "__import__('os').system('x') or 0", "open('marker', 'w').write('x') or 0"])  # fmt: skip
def test_a_text_that_concludes_nothing_has_no_answer(text):
    assert find(text) is None


def test_boxes_are_joined_only_on_request_and_only_by_connectors():
    assert find(r"\boxed{1} and \boxed{2}", join=False).answer == "2"
    assert find(r"\boxed{1} for part (a) and \boxed{2}").answer == "2"


def test_the_end_says_whose_answer_it_is():
    text = r"so \boxed{42} it is"
    assert text[: find(text).end] == r"so \boxed{42"


@given(st.text(alphabet=r"\boxed{}#$ answeris12,.()[]" + "\n", max_size=400))
def test_any_text_has_an_answer_or_none(text):
    found = find(text)
    assert found is None or (found.answer and 0 <= found.end <= len(text))


@given(st.text(alphabet="ab12{}\\ ", max_size=60).filter(lambda t: "\\" not in t and t.count("{") == t.count("}")))
def test_a_box_holds_what_was_put_into_it(content):
    depth = 0
    for c in content:
        depth += (c == "{") - (c == "}")
        if depth < 0:
            return  # closes the box before its end
    assert final_answer(rf"so \boxed{{{content}}}") == (content.strip() or None)


@pytest.mark.parametrize(
    "piece", [r"\boxed{", "the answer is ", "#### ", "$", r"\(", "1,", " ", "(", "\\", "**1", "</think>"]
)
def test_long_texts_are_searched_in_linear_time(piece):
    import time

    began = time.process_time()
    find(piece * (1_000_000 // len(piece)))
    find("x" + piece * (TAIL // len(piece)))
    assert time.process_time() - began < 2
