import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from prefix_rl.rewards import MathReward, math_reward
from prefix_rl.rewards.grading import Outcome, judge
from prefix_rl.rewards.workers import Grader, GraderError

ROOT = Path(__file__).parents[1]
HANGING = [r"\boxed{\gcd(9^{9^{9^{9}}},2)}", r"\boxed{\prod_{k=1}^{10^9} k}"]


@pytest.fixture(scope="module")
def grader():
    made = Grader(workers=2, deadline=2.0)
    made.start()
    yield made
    made.close()


def test_outcomes_come_back_in_order(grader):
    samples = [(rf"\boxed{{{i}}}", str(i if i % 3 else i + 1)) for i in range(200)]
    assert grader.grade(samples) == [Outcome.RIGHT if i % 3 else Outcome.WRONG for i in range(200)]


def test_the_pool_decides_as_one_process_would():
    answers = [
        "1",
        "2",
        "1/2",
        r"\frac{1}{2}",
        "0.5",
        "(1, 2)",
        "(2, 1)",
        r"\sqrt{2}",
        "x + 1",
        "1 + x",
        r"\text{even}",
        "",
        "{",
    ]
    samples = [(text, gold, start) for a in answers for gold in answers for start in (0, 4)
               for text in (rf"so \boxed{{{a}}}.", f"the answer is {a}", a)]  # fmt: skip
    patient = Grader(workers=2, deadline=300)  # on a busy machine a first sample takes seconds
    assert patient.judge(samples * 2) == [judge(text, gold, start=start) for text, gold, start in samples] * 2
    patient.close()


def test_a_hanging_expression_costs_its_deadline_and_nothing_else(grader):
    samples = [(text, "42") for text in HANGING] + [(r"\boxed{42}", "42"), (r"\boxed{41}", "42")] * 50
    outcomes = grader.grade(samples)
    assert outcomes[:2] == [Outcome.TIMEOUT] * 2
    assert outcomes[2:] == [Outcome.RIGHT, Outcome.WRONG] * 50


def test_code_in_an_answer_is_not_run(grader, tmp_path):
    marker = tmp_path / "marker"
    grader.grade([(rf"\boxed{{open('{marker}', 'w').write('x') or 0}}", "0")])
    assert not marker.exists()


def test_a_worker_that_dies_costs_one_sample(grader, monkeypatch):
    victim = grader._pool[0]
    victim.process.kill()
    victim.process.wait()
    outcomes = grader.grade([(r"\boxed{1}", "1")] * 20)
    assert outcomes.count(Outcome.CRASH) <= 1
    assert outcomes.count(Outcome.RIGHT) >= 19


def test_the_guard_is_asked_with_the_problem_and_with_the_computer_algebra_system(grader):
    apples = "She has 5 apples and gives 3 away twice: 11 - 6 = 5 are left"
    asked = [("so $y^2+x^2=1$ holds", "x^2+y^2=1", ""), (apples, "5", "Ann has 5 apples ..."), (apples, "5", "")]
    for computed in (False, True):
        found = grader.readable(asked, computed=computed)
        assert [one["mention"] for one in found] == [len("so $"), apples.rindex("5"), apples.index("5")]
        assert all(("computed" in one) is computed for one in found)


def test_threads_may_share_a_grader(grader):
    results = {}

    def work(n):
        results[n] = grader.grade([(rf"\boxed{{{n}}}", str(n))] * 30)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[n] == [Outcome.RIGHT] * 30 for n in range(4))


def test_a_script_without_a_main_guard_can_grade(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from prefix_rl.rewards import math_reward\nprint(math_reward([r'\\boxed{1}'], ['1']))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[1.0]", done.stderr


def test_workers_end_with_their_parent(tmp_path):
    script = (
        "import os, sys, time\nfrom prefix_rl.rewards.workers import Grader\ng = Grader(workers=2, deadline=1.0)\n"
        "g.grade([(r'\\boxed{1}', '1')] * 4)\nprint([w.process.pid for w in g._pool], flush=True)\n"
        "g.grade([(r'\\boxed{9^{9^{9^{9}}}}', '42')] * 8)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    workers = json.loads(process.stdout.readline())
    time.sleep(0.3)  # both workers hang now
    process.kill()
    process.wait()
    while any(_alive(pid) for pid in workers):  # the test's own limit ends it: workers that go on without their parent
        time.sleep(0.1)


def _alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1]
    except OSError:
        return False


def test_all_workers_are_ready_once_they_are_started(grader):
    grader.start()
    assert [worker.ready for worker in grader._pool] == [True, True]
    assert grader.grade([(r"\boxed{1}", "1")]) == [Outcome.RIGHT]


def test_workers_that_cannot_start_say_why(monkeypatch):
    monkeypatch.setattr(sys, "path", ["/nowhere"])
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.chdir("/")
    broken = Grader(workers=1)
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable)
    with pytest.raises(GraderError, match="could not start"):
        broken.grade([("x", "1")])
    broken._pool.clear()


# --- the reward function ----------------------------------------------------------------------------------------------


def test_the_reward_takes_plain_and_conversational_completions():
    texts, answers = [r"\boxed{1}", r"\boxed{2}", "?"], ["1", "1", "1"]
    conversations = [[{"role": "assistant", "content": text}] for text in texts]
    assert math_reward(texts, answers) == math_reward(conversations, answers) == [1.0, 0.0, 0.0]


def test_the_reward_counts_outcomes_and_skips_bad_golds():
    logged, extra = {}, {}
    reward = MathReward(Grader(workers=1))
    rewards = reward([r"\boxed{1}", r"\boxed{2}", "?", r"\boxed{1}"], ["1", "1", "1", ""],
                     log_metric=logged.__setitem__, log_extra=extra.__setitem__, prompts=["p"] * 4)  # fmt: skip
    reward.grader.close()
    assert rewards == [1.0, 0.0, 0.0, None]
    assert logged == {"outcome/right": 0.25, "outcome/wrong": 0.25, "outcome/no_answer": 0.25, "outcome/bad_gold": 0.25,
                      "outcome/timeout": 0.0, "outcome/crash": 0.0}  # fmt: skip
    assert extra == {"outcome": ["right", "wrong", "no_answer", "bad_gold"], "found": ["1", "2", None, None]}


def test_the_reward_takes_whatever_a_data_set_holds():
    said_nothing = [[{"role": "assistant", "content": None}], [{"role": "assistant", "content": r"\boxed{42}"}]]
    assert math_reward(said_nothing, [42, 42]) == [0.0, 1.0]
    assert math_reward([r"\boxed{42}"] * 3, [42, None, "42"]) == [1.0, None, 1.0]


def test_no_robustness_case_hangs_or_crashes_the_grader(grader, shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in (shared_data / "verifier-cases.jsonl").open()]
    hostile = [row for row in rows if row["tag"] == "robustness"]
    outcomes = grader.grade([(rf"\boxed{{{row['prediction']}}}", row["gold"]) for row in hostile])
    assert len(outcomes) == len(hostile)
    assert Outcome.CRASH not in outcomes
    assert not list(tmp_path.iterdir())


def test_most_core_cases_grade_as_they_should(grader, shared_data):
    rows = [json.loads(line) for line in (shared_data / "verifier-cases.jsonl").open()]
    core = [row for row in rows if row["tag"] == "core"]
    texts = [row["prediction"] if "boxed" in row["prediction"] or row["kind"] == "completion"
             else rf"\boxed{{{row['prediction']}}}" for row in core]  # fmt: skip
    outcomes = grader.grade(list(zip(texts, [row["gold"] for row in core], strict=True)))
    agreed = sum((o is Outcome.RIGHT) is row["expected"] for o, row in zip(outcomes, core, strict=True))
    assert agreed / len(core) > 0.88  # plain math-verify: 0.88
