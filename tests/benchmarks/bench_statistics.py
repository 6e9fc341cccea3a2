"""How often the interval of the median holds the true median, over drawn runs.

    python tests/benchmarks/bench_statistics.py [--runs 1500] [--samples 300]

A run is some rounds of samples from a normal distribution, whose neighbours are alike (an
autoregressive process of first order) or whose rounds are shifted against each other. Nothing is
measured; printed is the share in percent, as the table of ``docs/statistics.md`` has it. It takes
about two minutes.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from wherry.stats import median_interval

ROUNDS = (1, 2, 3, 5, 10, 20)
CASES = (
    ("independent samples", 0.0, 0.0),
    ("alike 0.5", 0.5, 0.0),
    ("alike 0.9", 0.9, 0.0),
    ("rounds differ 0.1", 0.0, 0.1),
    ("rounds differ 1", 0.0, 1.0),
)
"""Words, correlation of neighbours, standard deviation between rounds over that within."""


def drawn(
    random: np.random.Generator, rounds: int, samples: int, alike: float, differ: float
) -> np.ndarray:
    """A run, [rounds * samples], whose true median is 100."""
    noise = random.normal(size=(rounds, samples))
    values = noise.copy()
    for index in range(1, samples):
        values[:, index] = alike * values[:, index - 1] + np.sqrt(1 - alike**2) * noise[:, index]
    values += differ * random.normal(size=(rounds, 1))
    return (100 + values).ravel()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=300, help="of a round")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    sys.stdout.write("| rounds | " + " | ".join(map(str, ROUNDS)) + " |\n")
    for words, alike, differ in CASES:
        shares = []
        for rounds in ROUNDS:
            held = 0
            for number in range(options.runs):
                run = drawn(random, rounds, options.samples, alike, differ)
                low, high = median_interval(run, [options.samples] * rounds, seed=number)
                held += low <= 100 <= high
            shares.append(f"{100 * held / options.runs:.1f}")
        sys.stdout.write(f"| {words} | " + " | ".join(shares) + " |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
