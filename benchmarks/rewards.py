"""Graded samples a second and p99 latency: math_reward against TRL's accuracy_reward.

    python benchmarks/rewards.py [CASES.jsonl] [--workers 2]

CASES holds objects with ``gold`` and ``prediction``; without it a set is generated (integers, fractions, expressions,
tuples, prose). Every case is graded as a completion; one that hangs is left out for accuracy_reward, which would not
come back. Throughput counts a whole batch; latency is that of one sample at a time. Nothing here passes or fails.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def generated(count: int = 1000) -> list[tuple[str, str]]:
    draw = random.Random(0)
    cases = []
    for _ in range(count):
        a, b = draw.randint(1, 999), draw.randint(2, 99)
        pairs = [
            (f"{a}", f"{a}"),
            (f"{a}", f"{a + 1}"),
            (rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{a}}}{{{b}}}"),
            (f"x^2+{a}x+{b}", f"{b}+{a}x+x^2"),
            (f"({a}, {b})", f"({a},{b})"),
            (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{b}}}\cdot {a}"),
        ]
        gold, answer = draw.choice(pairs)
        cases.append(
            (f"Let us see. {'We compute. ' * draw.randint(1, 200)} So the answer is \\boxed{{{answer}}}.", gold)
        )
    return cases


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="?", type=Path, help="a file of cases")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()

    from trl.rewards import accuracy_reward

    from prefix_rl.rewards.grading import Outcome
    from prefix_rl.rewards.workers import Grader

    if given.cases:
        rows = [json.loads(line) for line in given.cases.open(encoding="utf-8")]
        cases = [
            (r["prediction"] if "boxed" in r["prediction"] else rf"\boxed{{{r['prediction']}}}", r["gold"])
            for r in rows
        ]
    else:
        cases = generated()
    grader = Grader(workers=given.workers, deadline=5.0)
    outcomes = grader.grade(cases)  # workers are started, gold answers parsed
    slow = [case for case, outcome in zip(cases, outcomes, strict=True) if outcome in (Outcome.TIMEOUT, Outcome.CRASH)]
    cases = [case for case in cases if case not in slow]
    grader.grade(cases)  # and workers that were killed replaced

    began = time.perf_counter()
    grader.grade(cases)
    ours = len(cases) / (time.perf_counter() - began)
    latency = []
    for case in cases:
        began = time.perf_counter()
        grader.grade([case])
        latency.append(time.perf_counter() - began)

    theirs_latency = []
    for text, gold in cases:
        began = time.perf_counter()
        accuracy_reward([[{"role": "assistant", "content": text}]], [gold])
        theirs_latency.append(time.perf_counter() - began)
    theirs = len(cases) / sum(theirs_latency)

    print(f"{len(cases)} cases ({len(slow)} that end in a timeout or crash left out), {given.workers} workers")
    for name, speed, times in (("math_reward", ours, latency), ("accuracy_reward", theirs, theirs_latency)):
        print(
            f"{name:<16}{speed:8.0f} samples a second   median {1000 * statistics.median(times):6.2f} ms   "
            f"p99 {1000 * percentile(times, 0.99):7.2f} ms"
        )
    print(f"ratio           {ours / theirs:8.2f}")


if __name__ == "__main__":
    main()
