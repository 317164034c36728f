"""How often the intervals over seeds hold the truth: `python experiments/statistics/coverage.py`; two seconds on one core."""

import math

import numpy as np
from scipy import stats

from prefopt.study.comparison.statistics import bonferroni, half_widths

REPEATS = 10_000
SEEDS = (3, 5, 8, 10)


def normal(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Differences of runs that vary by many small causes. Mean 0."""
    return draw.normal(size=shape)


def skewed(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Exponential: skewness 2. Mean 0."""
    return draw.exponential(size=shape) - 1


def collapsing(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Every tenth run falls by ten standard deviations. Its true mean, which counts the collapses, is 0."""
    return draw.normal(size=shape) - 10 * ((draw.random(shape) < 0.1) - 0.1)


def coverage(values: np.ndarray, truth: float = 0.0) -> float:
    """Share of samples [repeats, n] whose 95% Student interval holds the truth."""
    return float((abs(values.mean(-1) - truth) <= half_widths(values, 0.95)).mean())


def percentile(values: np.ndarray, draw: np.random.Generator, resamples: int = 500) -> float:
    """The same of the percentile bootstrap, which is what it is compared with."""
    n = values.shape[-1]
    means = np.stack(
        [np.take_along_axis(values, draw.integers(0, n, values.shape), -1).mean(-1) for _ in range(resamples)]
    )
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return float(((low <= 0) & (high >= 0)).mean())


def family_error(n: int, arms: int, draw: np.random.Generator, drawn=normal) -> float:
    """How often any of the intervals of equal arms, all against one baseline, excludes 0."""
    runs = drawn(draw, (REPEATS, arms, n))
    differences = runs[:, 1:] - runs[:, :1]
    out = abs(differences.mean(-1)) > half_widths(differences, bonferroni(0.95, arms - 1))
    return float(out.any(-1).mean())


def main() -> None:
    """Print the tables of docs/statistics.md."""
    print(
        "| seeds | normal | skewed (exponential) | 10% collapses | percentile bootstrap, normal |\n|---|---|---|---|---|"
    )
    for n in SEEDS:
        draw = np.random.default_rng(n)
        cells = [coverage(drawn(draw, (REPEATS, n))) for drawn in (normal, skewed, collapsing)]
        cells.append(percentile(normal(draw, (2000, n)), draw))
        print(f"| {n} | " + " | ".join(f"{cell:.1%}" for cell in cells) + " |")
    print("\n| seeds | normal | skewed (exponential) | 10% collapses |\n|---|---|---|---|")
    for n in SEEDS:
        draw = np.random.default_rng(100 + n)
        cells = [family_error(n, 5, draw, drawn) for drawn in (normal, skewed, collapsing)]
        print(f"| {n} | " + " | ".join(f"{cell:.1%}" for cell in cells) + " |")
    error = math.sqrt(0.05 * 0.95 / REPEATS)
    print(f"\nMonte-Carlo error: {error:.2%}; t of 3 seeds is {stats.t.ppf(0.975, 2):.2f} standard errors")


if __name__ == "__main__":
    main()
