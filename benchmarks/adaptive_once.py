"""AdaBack's intervals where each problem is seen once, as with large data: the share of groups of mixed outcome.

    python benchmarks/adaptive_once.py [steps]

A problem is solved from the share f of its demonstration with the chance ``1 / (1 + exp(-steep * (f - threshold)))``;
thresholds are normal. 64 problems a step, 8 rollouts each, no problem twice; the first 20 steps are left out. "whole
range": every problem draws from [0, 1]. "moving average": from that over problems; with "unaided" nothing is given one
time in ten, which is the default. An idealized model: it shows a direction, not a size.
"""

import math
import random
import sys
from statistics import fmean, stdev

from prefix_rl.controllers import Interval

RULES = {
    "whole range": Interval(0.5),
    "moving average": Interval(0.5, average=0.8),
    "moving average, unaided": Interval(0.5, average=0.8, unaided=0.1),
}
CURVES = [(0.3, 0.05), (0.5, 0.05), (0.7, 0.05), (0.5, 0.2), (0.7, 0.2)]  # mean and deviation of the thresholds
STEEP, PROBLEMS, ROLLOUTS, LEFT_OUT, SEEDS = 12.0, 64, 8, 20, 5


def mixed(rule: Interval, mean: float, deviation: float, steps: int, seed: int) -> float:
    """The share of groups in which some rollouts are right and some are wrong."""
    draw, common, found = random.Random(seed), rule.common, []
    for step in range(steps):
        successes, new = [], []
        for _ in range(PROBLEMS):
            fraction = rule.fraction(rule.unseen(common), common, draw.random())
            right = 1 / (1 + math.exp(-STEEP * (fraction - draw.gauss(mean, deviation))))
            success = sum(draw.random() < right for _ in range(ROLLOUTS)) / ROLLOUTS
            new.append(rule.seen(rule.own, common, fraction, success))
            successes.append(success)
            if step >= LEFT_OUT:
                found.append(0 < success < 1)
        common = rule.after(common, successes, new)
    return fmean(found)


def main(steps: int) -> None:
    print(f"| thresholds | {' | '.join(RULES)} |")
    print("|---|---:|---:|---:|")
    for mean, deviation in CURVES:
        cells = []
        for rule in RULES.values():
            shares = [100 * mixed(rule, mean, deviation, steps, seed) for seed in range(SEEDS)]
            cells.append(f"{fmean(shares):.1f} % (sd {stdev(shares):.1f})")
        print(f"| {mean} +- {deviation} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 150)
