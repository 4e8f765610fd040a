"""How often the ladder's paired test rejects a true null at 5 %, and how often it finds a difference: simulated runs.

    python benchmarks/difference_power.py [simulations]

Two arms are trained with the same seeds and measured on the same problems, two samples each. A problem has a difficulty
that both share and one that differs between the arms; a run is better or worse than its arm's mean by a normal number
whose standard deviation is given in points of accuracy. "before" is the rule that the test had until now: the variance
clustered both ways, and one degree of freedom less than there are seeds.
"""

import math
import sys

import numpy as np
from scipy.stats import t

from prefix_rl.evaluation.metrics import paired_difference

SEEDS, PROBLEMS, SPREADS, SAMPLES = (2, 3, 5), (64, 256), (0.0, 0.02, 0.05, 0.1), 2
SHARED, OWN = 0.25, 0.1  # standard deviations over problems of the chance to be right: in both arms, and in each alone


def arms(seeds: int, problems: int, spread: float, effect: float, generator: np.random.Generator):
    """The shares of right samples of two arms, each ``(seeds, problems)``."""
    difficulty = generator.normal(0, SHARED, problems)
    for mean in (0.45 + effect / 2, 0.45 - effect / 2):
        own = generator.normal(0, OWN, problems)
        runs = generator.normal(mean, spread / math.sqrt(2), (seeds, 1))  # the difference of two has the spread given
        chances = np.clip(runs + difficulty + own, 0, 1)
        yield generator.binomial(SAMPLES, chances) / SAMPLES


def before(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The p value of the former rule."""
    d = ours - theirs
    seeds = len(d)

    def of_mean(means: np.ndarray) -> float:
        return float(means.var(ddof=1) / means.size)

    by_seed, by_problem, cells = of_mean(d.mean(axis=1)), of_mean(d.mean(axis=0)), of_mean(d.ravel())
    error = math.sqrt(max(by_seed + by_problem - cells, by_seed, by_problem))
    return float(2 * t.sf(abs(d.mean()) / error, seeds - 1))


def main(simulations: int) -> None:
    generator = np.random.default_rng(0)
    error = 100 * (0.0475 / simulations) ** 0.5
    print(f"{simulations} simulations each; a share of 5 % has a standard error of {error:.1f}")
    titles = ("seeds", "problems", "runs differ by", "level", "power, 5 points", "power, 10 points", "before: level")
    print(f"| {' | '.join(titles)} | power, 10 |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for seeds in SEEDS:
        for problems in PROBLEMS:
            for spread in SPREADS:
                found = []
                for effect in (0.0, 0.05, 0.1):
                    rejected = np.zeros(2)
                    for _ in range(simulations):
                        ours, theirs = arms(seeds, problems, spread, effect, generator)
                        p = paired_difference(ours.tolist(), theirs.tolist()).p
                        rejected += (p < 0.05, before(ours, theirs) < 0.05)
                    found.append(100 * rejected / simulations)
                (level, old_level), (five, _), (ten, old_ten) = found
                print(
                    f"| {seeds} | {problems} | {100 * spread:.0f} points | {level:.1f} % | {five:.0f} % | {ten:.0f} % "
                    f"| {old_level:.1f} % | {old_ten:.0f} % |",
                    flush=True,
                )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
