"""What hostile text, and a grader that goes wrong in every way, cost: one outcome, one deadline, no other sample."""

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from prefix_rl.rewards.grading import Outcome, Verdict
from prefix_rl.rewards.workers import _BATCH, _BATCH_CHARACTERS, Grader, _take

ROOT = Path(__file__).parents[1]
MEGABYTE = 2**20
DEADLINE, SLACK = 0.5, 60.0  # seconds; the slack is for a busy machine: without a deadline these take hours


def box(answer):
    return rf"\boxed{{{answer}}}"


def repeated(piece):
    return piece * (MEGABYTE // len(piece))


HOSTILE = {
    # what sympy would evaluate without end
    "tower": box("9^{9^{9^{9}}}"), "python tower": box("9**9**9**9"), "shallow tower": box("9^{9^9}"),
    "factorial": box("(10^9)!"), "factorials": box("100!!!!!"), "binomial": box(r"\binom{10^9}{5 \cdot 10^8}"),
    "sum": box(r"\sum_{i=1}^{10^{12}} \frac{1}{i^2}"), "product": box(r"\prod_{k=1}^{10^9} k"),
    "integral": box(r"\int_0^{\infty} \frac{\sin(x^{x})}{x^{e^{x}}} dx"), "limit": box(r"\lim_{x\to 0} x^{x^{x^{x}}}"),
    "root": box(r"\sqrt[10^9]{10^{10^9}}"), "mod": box(r"7^{7^{7^{7}}} \mod 10^9"), "expansion": box("(a+b+c+d+e+f)^{500}"),
    "exponent": box("1e999999999"), "logarithm": box(r"\log_{2}(2^{10^{10^{10}}})"), "primes": box(str(2**607 - 1) + "!"),
    # size
    "digits": box("9" * 100_000), "a million digits": box("7" * 10**6), "fraction of digits": box(r"\frac{" + "1" * 5000 + "}{" + "3" * 5000 + "}"),
    "list": box(",".join(map(str, range(150_000)))), "set": box(r"\{" + ",".join(["x"] * 300_000) + r"\}"),
    "polynomial": box("+".join(f"x^{{{i}}}" for i in range(5_000))), "power of ten": box("x+10^{10^{9}}"),
    "matrix": box(r"\begin{pmatrix}" + r" \\ ".join(["1 & 2"] * 50_000) + r"\end{pmatrix}"),
    # depth
    "nested boxes": r"\boxed{" * 20_000 + "1" + "}" * 20_000, "nested powers": box("x^{" * 200 + "1" + "}" * 200),
    "nested fractions": box(r"\frac{1}{" * 150 + "2" + "}" * 150), "nested roots": box(r"\sqrt{" * 150 + "2" + "}" * 150),
    "nested brackets": box("(" * 400 + "1" + ")" * 400), "nested lists": box("[" * 400 + "1,2" + "]" * 400),
    "minus signs": box("-" * 900 + "1"), "open brackets": "(" * 50_000, "unclosed": box("(((((((((((1)"),
    # shapes on which a regular expression could go back and forth
    "boxes": repeated(r"\boxed{"), "empty boxes": repeated(r"\boxed{}"), "boxes of 1": repeated(r"\boxed{1}"), "hashes": repeated("####"),
    "hash lines": repeated("#### 1\n"), "statements": repeated("answer is "), "the answer": repeated("the answer is the answer "),
    "final": repeated("final answer: "), "blanks": repeated(" ") + "42", "lines": repeated("\n"), "digits and commas": repeated("1,"),
    "thousands": repeated("1,000,"), "dots": repeated("1."), "dollars": repeated("$"), "dollar pairs": repeated("$ $"), "stars": repeated("**"),
    "fractions": box(r"\frac{\frac{\frac{1}{}}{}}{}"), "opened fractions": box(repeated(r"\frac{")), "braces": repeated("{"),
    "closing braces": repeated("}"), "backslashes": repeated("\\"), "thoughts": repeated("</think>"), "tags": repeated("<answer>"),
    "open formulas": repeated(r"\("), "letters": repeated("a"), "text commands": box(repeated(r"\text{")), "brackets (": repeated("("),
    "minus": repeated("-"), "words": repeated("so we get "), "is": repeated("is "), "percents": repeated("% "),
    # characters
    "NUL": "\0" * 1000 + box("\0"), "lone surrogates": box("\ud800\udfff" * 10) + "\udc80", "replacements": box("\ufffd" * 1000),
    "directions": box("\u202e24\u202c"), "combining": box("1" + "\u0301" * 5000), "wide digits": box("４２" * 500),
    # code
    "import": box("__import__('os').system('touch marker')"), "open": box("open('marker', 'w').write('x') or 0"),
    "lambda": box("(lambda f: f(f))(lambda f: f(f))"), "input": r"\boxed{\input{/etc/passwd}}", "write": r"\boxed{\write18{touch marker}}",
}  # fmt: skip


@pytest.fixture(scope="module")
def grader():
    made = Grader(workers=1, deadline=DEADLINE, memory_mb=512)
    made.start()
    yield made
    made.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_ends_in_time_and_takes_no_other_sample_with_it(grader, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grader.start()  # the one before may have killed its worker
    ((hostile, seconds),) = grader.timed([(HOSTILE[name], "42")])
    assert seconds < DEADLINE + SLACK
    assert hostile.outcome is not Outcome.RIGHT or name == "blanks"
    assert grader.grade([(r"\boxed{42}", "42"), (r"\boxed{41}", "42")]) == [Outcome.RIGHT, Outcome.WRONG]
    assert not list(tmp_path.iterdir())


def test_hostile_samples_in_one_batch_cost_each_other_nothing():
    made = Grader(workers=2, deadline=0.5, memory_mb=512)
    good = [(box(i), str(i)) for i in range(200)]
    samples = [sample for i, text in enumerate(HOSTILE.values()) for sample in ((text, "42"), good[i])]
    verdicts = made.judge(samples)
    made.close()
    assert [v.outcome for v in verdicts[1::2]] == [Outcome.RIGHT] * len(HOSTILE)


def test_no_worker_ever_holds_more_memory_than_its_cap(tmp_path):
    (tmp_path / "program.py").write_text(
        "import resource\n"
        "from prefix_rl.rewards.workers import Grader\n"
        "from test_workers_hostile import HOSTILE\n"
        "made = Grader(workers=2, deadline=0.5, memory_mb=300)\n"
        "made.grade([(text, '42') for text in HOSTILE.values()])\n"
        "made.close()\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"  # KiB, the largest of all that ended
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 30 * 1024 < int(done.stdout) < 300 * 1024


# --- the pool, with a grader that does what the text says -------------------------------------------------------------

STRANGE = """
import os, time
from prefix_rl.rewards import workers
from prefix_rl.rewards.grading import Outcome, Verdict

class Odd(Exception):
    def __reduce__(self):
        raise TypeError("does not pickle")

hoard = []

def judge(text, gold, rules=None, start=0):
    with open(os.environ["JUDGED"], "a") as file:
        file.write(text.split()[0] + "\\n")
    match text.split()[0]:
        case "sleep":
            time.sleep(float(text.split()[1]))
        case "spin":
            10 ** 10 ** 9  # one call into C that never gives the interpreter back
        case "exit":
            os._exit(1)
        case "raise":
            raise Odd
        case "recurse":
            return judge("recurse", gold)
        case "bomb":
            bytearray(10**10)
        case "hoard":
            hoard.append(bytearray(100 * 2**20))
        case "unpicklable":
            return Verdict(Outcome.RIGHT, lambda: 0)
        case "pid":
            return Verdict(Outcome.RIGHT, str(os.getpid()))
    return Verdict(Outcome.RIGHT if start == 0 else Outcome.NO_ANSWER, text, rules)

workers.judge = judge
"""


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """Makes graders whose workers judge by doing what the text says."""
    (tmp_path / "sitecustomize.py").write_text(STRANGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("JUDGED", str(tmp_path / "judged"))
    made = []

    def make(**settings):
        made.append(Grader(**{"workers": 1, "deadline": 1.5, "memory_mb": 512, **settings}))
        made[-1].start()
        (tmp_path / "judged").write_text("")
        return made[-1]

    make.judged = lambda: (tmp_path / "judged").read_text().split()
    yield make
    for grader in made:
        grader.close()


def fine(count):
    return [(f"fine {i}", "") for i in range(count)]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [("sleep 60", Outcome.TIMEOUT), ("spin", Outcome.TIMEOUT), ("exit", Outcome.CRASH), ("raise", Outcome.CRASH),
     ("recurse", Outcome.CRASH), ("bomb", Outcome.CRASH), ("unpicklable", Outcome.CRASH)],
)  # fmt: skip
def test_one_bad_sample_of_a_batch_is_the_only_one_blamed(strange, text, outcome):
    grader = strange()
    samples = [*fine(30), (text, ""), *fine(60)[30:], (text + " ", ""), *fine(90)[60:]]
    outcomes = grader.grade(samples)
    assert [i for i, o in enumerate(outcomes) if o is not Outcome.RIGHT] == [30, 61]
    assert {outcomes[30], outcomes[61]} == {outcome}


def test_the_deadline_is_that_of_a_sample_and_not_of_a_batch(strange):
    grader = strange()
    timed = grader.timed([(f"sleep 0.05 {i}", "") for i in range(60)])  # 60 * 0.05 = 3 s, two deadlines
    assert {verdict.outcome for verdict, _ in timed} == {Outcome.RIGHT}
    assert all(0.05 <= seconds < 1.5 for _, seconds in timed)
    ((_, seconds),) = grader.timed([("sleep 60", "")])
    assert seconds >= 1.5


def test_what_waits_behind_a_hanging_sample_goes_to_other_workers_when_it_is_killed(strange):
    grader = strange(workers=2)
    outcomes = grader.grade([("sleep 600", ""), *fine(300)])
    assert outcomes == [Outcome.TIMEOUT] + [Outcome.RIGHT] * 300
    assert strange.judged().count("fine") == 300  # nothing was judged twice


def test_nobody_waits_behind_a_hanging_sample_while_there_are_workers_to_start(strange):
    grader, seconds = strange(workers=2, deadline=9.0), []
    began = time.monotonic()
    # one worker ends at once, the other is busy: a third is started for what is left
    outcomes = grader.grade(
        [("exit", ""), ("sleep 8", ""), ("fine", "")], lambda n: seconds.append(time.monotonic() - began)
    )
    assert outcomes == [Outcome.CRASH, Outcome.RIGHT, Outcome.RIGHT]
    assert seconds[1] < 7.0


def test_an_error_ends_no_worker_but_memory_that_is_kept_does(strange):
    grader = strange(deadline=5.0)

    def pid():
        return grader.judge([("pid", "")])[0].answer

    first = pid()
    grader.grade([("raise", ""), ("recurse", "")])
    assert pid() == first
    # 100 MiB each, and a cap of 512: without replacement the fifth would not fit
    assert grader.grade([(f"hoard {i}", "") for i in range(10)]) == [Outcome.RIGHT] * 10
    assert pid() != first


def test_equal_samples_are_judged_once_and_counted_each(strange):
    grader, seen = strange(), []
    verdicts = grader.judge(
        [("fine", "a"), ("fine", "b"), ("fine", "a"), ("fine", "a", 3), ("fine", "a", 0)] * 20, seen.append
    )
    assert len(verdicts) == sum(seen) == 100
    assert strange.judged() == ["fine"] * 3  # (a, 0), (b, 0), (a, 3)
    assert [v.outcome for v in verdicts[:5]] == [Outcome.RIGHT] * 3 + [Outcome.NO_ANSWER, Outcome.RIGHT]


def test_the_rules_reach_the_workers(strange):
    assert strange(rules=("any", "value")).judge(fine(1)) == [Verdict(Outcome.RIGHT, "fine 0", ("any", "value"))]


def test_a_call_that_is_interrupted_leaves_nothing_for_the_next(strange):
    grader = strange(workers=2)

    def stop(n):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grader.judge([(f"sleep 0.1 {i}", "") for i in range(50)], stop)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    threading.Timer(0.3, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):  # between sending and receiving
        grader.judge([(f"sleep 0.5 {i}", "") for i in range(50)])
    signal.signal(signal.SIGINT, before)
    assert [v.answer for v in grader.judge(fine(200))] == [f"fine {i}" for i in range(200)]


def test_an_interrupt_between_receiving_and_counting_moves_no_verdict_to_another_sample(strange):
    grader = strange(workers=2)
    connection = grader._pool[0].connection
    receive = connection.recv

    def interrupted():
        receive()
        raise KeyboardInterrupt

    connection.recv = interrupted
    with pytest.raises(KeyboardInterrupt):
        grader.judge(fine(100))
    connection.recv = receive
    assert [v.answer for v in grader.judge(fine(100))] == [f"fine {i}" for i in range(100)]
    assert strange.judged().count("fine") >= 100  # all of them anew


def test_a_sample_that_is_no_text_is_refused_before_anything_is_judged(strange):
    grader = strange()
    for sample in ((None, "1"), ("1", 1), ("1", None)):
        with pytest.raises(TypeError, match="sample 1"):
            grader.judge([("fine", "1"), sample])
    assert strange.judged() == []


def test_batches_are_small_in_number_and_in_characters():
    short, long = ("1", "", 0), ("x" * (_BATCH_CHARACTERS // 2), "", 0)
    from collections import deque

    assert len(_take(deque([short] * 100), 200)) == _BATCH
    assert len(_take(deque([short] * 100), 7)) == 7
    assert len(_take(deque([short] * 100), 0)) == 1  # the last ones go out one by one
    assert len(_take(deque([long] * 10), 10)) == 2  # two halves
    assert len(_take(deque([("x" * 10 * _BATCH_CHARACTERS, "", 0)] * 3), 3)) == 1


def test_surrogates_and_zeros_come_back_as_they_went(strange):
    text = "fine \ud800 \0 \udfff"
    assert strange().judge([(text, "\udc80")])[0].answer == text
