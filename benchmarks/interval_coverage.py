"""How often 95 % intervals hold the truth, on simulated evaluations: ours, and the BCa bootstrap over problems.

    python benchmarks/interval_coverage.py [runs]

Each problem has a chance of its own, drawn from a Beta distribution; small `alike` puts many near 0 and 1, as on AIME.
"""

import sys

import numpy as np

from prefix_rl.evaluation.metrics import bootstrap, estimate
from prefix_rl.evaluation.pairs import Measured, compare

SETTINGS = [  # problems, samples, mean accuracy, alike
    (30, 32, 0.02, 0.5), (30, 32, 0.05, 0.5), (30, 32, 0.1, 0.5), (30, 32, 0.3, 0.5), (30, 32, 0.3, 2),
    (30, 32, 0.7, 0.5), (30, 32, 0.95, 0.5), (500, 1, 0.02, 1), (500, 1, 0.5, 1), (500, 1, 0.98, 1), (500, 4, 0.8, 1),
]  # fmt: skip


def main(runs: int) -> None:
    generator = np.random.default_rng(0)
    print("problems samples  mean alike | coverage and width: ours      bootstrap | paired test, level at 5 %")
    for problems, samples, mean, alike in SETTINGS:

        def shares(chances, samples=samples):
            return (generator.binomial(samples, chances) / samples).tolist()

        held, widths, rejected = np.zeros(2), np.zeros(2), 0
        for _ in range(runs):
            chances = generator.beta(alike * mean, alike * (1 - mean), problems)
            ours = shares(chances)
            found = estimate(ours, samples=samples)
            for i, (low, high) in enumerate(((found.low, found.high), bootstrap(ours) or (mean + 1, mean + 1))):
                held[i] += low <= mean <= high
                widths[i] += high - low
            other = generator.beta(alike * mean, alike * (1 - mean), problems)  # a third of the problems differ
            theirs = shares(np.where(generator.random(problems) < 1 / 3, other, chances))
            rejected += compare(Measured(ours, theirs, samples, samples)).p <= 0.05
        held, widths = 100 * held / runs, 100 * widths / runs
        print(
            f"{problems:8} {samples:7} {mean:5} {alike:5} | {held[0]:14.1f} %{widths[0]:5.1f} {held[1]:9.1f} %"
            f"{widths[1]:5.1f} | {100 * rejected / runs:5.1f} %"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
