"""Graded completions a second: our workers against plain math-verify and TRL's accuracy_reward, in one run.

    python benchmarks/grading.py [FILE ...] [--column completion=solution] [--count 8000] [--each 8] [--workers 2]

Without a FILE it generates typical completions, no two alike. Golds come in the proportions of MATH-500: 62 % integers,
11 % fractions, 11 % surds and multiples of pi, 5 % expressions with letters, 4 % tuples and intervals, and so on. For
each gold there are ``--each`` completions of 200 to 9,000 characters, of which 45 % end in the gold answer to the
letter, 15 % in another form of it, 30 % in another answer and 10 % in none. A FILE is what ``prefix-rl grade`` reads;
one in three of its completions gets another row's gold, since those in a file of demonstrations are all right.

Ours is timed from the first completion to the last on workers that have started and judged nothing: no cache is warm.
A CPU second is one of all processes together; on a machine with other work it says more than a second does. The others
are slower and run in this process on the first ``--peers`` of the same completions. Their latency is that of
one call, ours that of one completion inside the worker. Nothing here passes or fails.
"""

import argparse
import json
import logging
import random
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

PHRASES = [
    *("First we note that", "the sum of both sides", "is equal to", "this value, so", "let us write it as a product"),
    *(
        "we divide by",
        "the number of ways in which each pair can be chosen,",
        "which gives",
        "$n = {0}$",
        "of the total.",
    ),
    *(
        "Wait, maybe",
        r"$\frac{{{0}}}{{{1}}}$",
        "check again with",
        "$x_{{{1}}} = {0}$,",
        r"\[ {0} + {1} = y. \]",
        "and so",
    ),
]


def problem(draw: random.Random) -> tuple[str, list[str], list[str]]:
    """A gold answer, other forms of it, and other answers."""
    a, b, c = draw.randint(2, 400), draw.randint(2, 60), draw.randint(2, 30)
    p, q = draw.choice([(1, 2), (3, 4), (7, 5), (9, 8), (11, 20), (13, 25)])
    column = r"\begin{pmatrix}%d \\ %d\end{pmatrix}"
    kinds = [
        (62, f"{a * b}", [f"{a * b:,}", f"{a * b}.0", rf"x = {a * b}"], [f"{a * b + c}", f"-{a * b}"]),
        (8, rf"\frac{{{a}}}{{{a + 1}}}", [rf"\dfrac{{{a}}}{{{a + 1}}}", f"{a}/{a + 1}"], [rf"\frac{{{a}}}{{{a + 2}}}"]),
        (3, rf"\frac{{{p}}}{{{q}}}", [f"{p / q}", f"{p}/{q}"], [f"{p / q + 1}"]),
        (7, rf"{a}\sqrt{{{b}}}", [rf"\sqrt{{{b}}} \cdot {a}", rf"\sqrt{{{a * a * b}}}"], [rf"{a}\sqrt{{{b + 1}}}"]),
        (4, rf"\frac{{{a}\pi}}{{{b}}}", [rf"\frac{{{a}}}{{{b}}} \pi"], [rf"\frac{{{a}\pi}}{{{b + 1}}}"]),
        (3, f"x^2 + {a}x - {b}", [f"-{b} + x^2 + {a}x", f"x(x + {a}) - {b}"], [f"x^2 + {a}x + {b}"]),
        (2, f"{a} - {b}i", [f"-{b}i + {a}"], [f"{a} + {b}i"]),
        (2, f"({a}, -{b}, {c})", [rf"\left( {a},-{b},{c} \right)"], [f"({b}, -{a}, {c})"]),
        (2, rf"[{b}, \infty)", [rf"\left[{b},\infty\right)"], [rf"({b}, \infty)"]),
        (2, f"{a}.{b}5", [f"{a}.{b}50"], [f"{a}.{b}6"]),
        (1, rf"\${a},{b + 100}", [f"{a},{b + 100}", f"{a}{b + 100}"], [f"{a}{b + 101}"]),
        (2, r"\text{even}", ["even", r"\text{Even}"], [r"\text{odd}"]),
        (1, f"{b}, {a + 100}", [f"{a + 100}, {b}", f"{b},{a + 100}"], [f"{b}, {a + 101}"]),
        (1, column % (a, -b), [(column % (a, -b)).replace(" ", "")], [column % (b, -a)]),
    ]
    return draw.choices(kinds, [weight for weight, *_ in kinds])[0][1:]


def generated(count: int, each: int, seed: int) -> list[tuple[str, str]]:
    draw, samples = random.Random(seed), []
    while len(samples) < count:
        gold, same, other = problem(draw)
        for _ in range(each):
            phrases = draw.choices(PHRASES, k=min(int(draw.lognormvariate(4.0, 0.9)) + 15, 450))
            text = " ".join(phrase.format(draw.randint(2, 99), draw.randint(2, 99)) for phrase in phrases)
            shown = draw.choices([gold, draw.choice(same), draw.choice(other), None], [45, 15, 30, 10])[0]
            endings = [
                rf"The final answer is $\boxed{{{shown}}}$.",
                rf"So \boxed{{{shown}}}",
                f"\n#### {shown}",
                f"The answer is ${shown}$.",
            ]
            ending = draw.choices(endings, [60, 30, 5, 5])[0] if shown else "and then we have to go on with"
            samples.append((f"{text} {ending}", gold))
    return samples[:count]


def read(files: list[str], columns: list[str], count: int, seed: int) -> list[tuple[str, str]]:
    from prefix_rl.grade import parse_columns, rows_of

    rows = [row for file in files for row, _ in rows_of(file, "train", parse_columns(columns)) if row]
    draw = random.Random(seed)
    draw.shuffle(rows)
    return [(row.text, draw.choice(rows).gold if draw.random() < 1 / 3 else row.gold) for row in rows[:count]]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended; they stand still while others are served."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def one_by_one(decide, samples: list[tuple[str, str]]) -> list[float]:
    seconds = []
    for text, gold in samples:
        began = time.perf_counter()
        decide(text, gold)
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--column", action="append", default=[])
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--each", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=int, default=500, help="completions for the others; 0: leave them out")
    parser.add_argument("--slowest", type=int, default=0, help="show the slowest completions")
    given = parser.parse_args()

    from math_verify import parse, verify
    from trl.rewards import accuracy_reward

    from prefix_rl.rewards.workers import Grader

    logging.disable(logging.WARNING)

    def math_verify(text: str, gold: str) -> None:
        verify(parse(f"${gold}$"), parse(text))

    def trl(text: str, gold: str) -> None:
        accuracy_reward([[{"role": "assistant", "content": text}]], [f"${gold}$"])

    peers = {"math-verify, one process": math_verify, "TRL accuracy_reward": trl}
    for decide in peers.values():
        decide(r"\boxed{1}", "1")

    def ours(samples: list[tuple[str, str]]) -> tuple[float, float, list]:
        """Seconds from the first to the last completion, CPU seconds of all that grading took, and the verdicts."""
        grader, before = Grader(given.workers), cpu_seconds()
        grader.start()
        began = time.perf_counter()
        timed = grader.timed(samples)
        elapsed = time.perf_counter() - began
        grader.close()  # the workers' time is counted once they have ended
        return elapsed, cpu_seconds() - before, timed

    starting = ours([])[1]
    for seed in range(given.rounds):
        draw = read(given.files, given.column, given.count, seed) if given.files else None
        samples = draw or generated(given.count, given.each, seed)
        elapsed, busy, timed = ours(samples)
        length = sum(len(text) for text, _ in samples) / len(samples)
        counts = {str(o): sum(v.outcome is o for v, _ in timed) for o in {v.outcome for v, _ in timed}}
        print(f"round {seed + 1}: {len(samples):,} completions, mean {length:,.0f} characters; {json.dumps(counts)}")
        latency = [seconds for _, seconds in timed]
        found = {f"prefix_rl, {given.workers} workers": (len(samples), elapsed, busy - starting, latency)}
        for name, decide in peers.items() if given.peers else ():
            before = cpu_seconds()
            latency = one_by_one(decide, samples[: given.peers])
            found[name] = (len(latency), sum(latency), cpu_seconds() - before, latency)
        for name, (count, elapsed, busy, latency) in found.items():
            p50, p99, longest = (1000 * percentile(latency, share) for share in (0.5, 0.99, 1))
            print(
                f"  {name:<26}{count / elapsed:7,.0f} a second {count / busy:7,.0f} a CPU second   "
                f"p50 {p50:6.2f}   p99 {p99:6.2f}   longest {longest:6.1f} ms"
            )
        slowest = sorted(zip(timed, samples, strict=True), key=lambda pair: -pair[0][1])[: given.slowest]
        for (verdict, seconds), (_, gold) in slowest:
            print(f"    {1000 * seconds:7.1f} ms  {verdict.outcome}: {gold[:60]}  |  {str(verdict.answer)[:60]}")


if __name__ == "__main__":
    main()
