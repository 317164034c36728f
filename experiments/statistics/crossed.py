"""Intervals over seeds and prompts: which one holds the truth: `python experiments/statistics/crossed.py`; about two minutes.

A table of differences, seeds × prompts, is drawn from d = δ + a_s + b_p + e_sp with other seeds *and* other prompts each time.
"""

from collections.abc import Iterator

import numpy as np
from scipy import stats

from prefopt.study.comparison.crossed import common_variance, widened
from prefopt.study.comparison.statistics import half_widths

REPEATS = 4000
SIZES = [(2, 50), (2, 500), (3, 200), (5, 50), (5, 500), (10, 200)]
SHARES = {
    "seeds": (0.90, 0.05, 0.05),
    "even": (0.40, 0.40, 0.20),
    "prompts": (0.05, 0.90, 0.05),
    "rest": (0.05, 0.05, 0.90),
}
"""Of the variance of the mean, what comes from seeds, from prompts, and from neither alone."""


def normal(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return draw.normal(size=shape)


def heavy(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Student's t with 3 degrees of freedom, of variance 1."""
    return draw.standard_t(3, size=shape) / np.sqrt(3)


def skewed(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Exponential, of variance 1."""
    return draw.exponential(size=shape) - 1


def table(draw: np.random.Generator, drawn, size: tuple[int, int], shares: tuple[float, ...]) -> np.ndarray:
    """[repeats, seeds, prompts] differences whose true mean is 0 and whose mean has variance 1."""
    seeds, prompts = size
    a, b, e = np.sqrt(np.array(shares) * [seeds, prompts, seeds * prompts])
    parts = (drawn(draw, (REPEATS, *shape)) for shape in ((seeds, 1), (1, prompts), (seeds, prompts)))
    return sum(scale * part for scale, part in zip((a, b, e), parts, strict=True))


def binary(draw: np.random.Generator, _, size: tuple[int, int], shares: tuple[float, ...]) -> np.ndarray:
    """Differences in −1, 0, 1 of two right-or-wrong arms: each has its own latent seeds, prompts and noise, alike in law."""

    def right() -> np.ndarray:
        latent = table(draw, normal, size, shares)
        return (latent > 0).astype(float)

    return right() - right()


def half_of(values: np.ndarray) -> dict[str, np.ndarray]:
    """Half-widths [repeats] of every candidate for 95%."""
    _, seeds, prompts = values.shape
    cells = seeds * prompts
    centred = values - values.mean((1, 2), keepdims=True)
    of_seeds, of_prompts = centred.mean(2, keepdims=True), centred.mean(1, keepdims=True)
    rest = centred - of_seeds - of_prompts
    ms_s = prompts * (of_seeds**2).sum((1, 2)) / (seeds - 1)
    ms_p = seeds * (of_prompts**2).sum((1, 2)) / (prompts - 1)
    ms_e = (rest**2).sum((1, 2)) / ((seeds - 1) * (prompts - 1))
    moments = np.maximum(ms_s + ms_p - ms_e, np.maximum(ms_s, ms_p))
    parts = ((ms_s, seeds - 1), (ms_p, prompts - 1), (ms_e, (seeds - 1) * (prompts - 1)))
    satterthwaite = moments**2 / sum(ms**2 / df for ms, df in parts)
    conservative = (ms_s + ms_p) ** 2 / sum(ms**2 / df for ms, df in parts[:2])
    over_seeds = half_widths(values.mean(2), 0.95)
    return {
        "seeds": over_seeds,
        "prompts": half_widths(values.mean(1), 0.95),
        "moments": t(satterthwaite) * np.sqrt(moments / cells),
        "sum": t(conservative) * np.sqrt((ms_s + ms_p) / cells),
        "least df": t(np.minimum(seeds, prompts) - 1) * np.sqrt(moments / cells),
        "pigeonhole": pigeonhole(values),
        "two t": widened(over_seeds, common_variance(values), prompts, 0.95),
    }


def t(df):
    return stats.t.ppf(0.975, df)


def pigeonhole(values: np.ndarray, resamples: int = 200, repeats: int = 400) -> np.ndarray:
    """Owen's bootstrap (arXiv 0712.1111): seeds and prompts are resampled, independently; half of the percentile interval.

    For the first `repeats` tables only, because it is slow; NaN for the others.
    """
    draw = np.random.default_rng(1)
    few = values[:repeats]
    _, seeds, prompts = few.shape
    s, p = (draw.multinomial(n, [1 / n] * n, (len(few), resamples)) / n for n in (seeds, prompts))
    low, high = np.quantile(np.einsum("rks,rsp,rkp->rk", s, few, p, optimize=True), (0.025, 0.975), axis=1)
    centre = few.mean((1, 2))
    # Written as a half-width around the mean on the side of the truth, which is 0, so that coverage is the interval's own.
    half = np.where(centre > 0, centre - low, high - centre)
    return np.concatenate([half, np.full(len(values) - len(few), np.nan)])


def results() -> Iterator[tuple[str, tuple[int, int], str, dict[str, tuple[float, float]]]]:
    """Law, size, shares, and of every candidate its coverage and its width beside that of `two t`."""
    for law, drawn in {"normal": normal, "heavy tails": heavy, "skewed": skewed, "right or wrong": None}.items():
        for size in SIZES:
            for name, shares in SHARES.items():
                draw = np.random.default_rng([*size, len(name)])
                values = (table if drawn else binary)(draw, drawn, size, shares)
                halves, error = half_of(values), abs(values.mean((1, 2)))
                yield (
                    law,
                    size,
                    name,
                    {candidate: _scored(half, error, halves["two t"]) for candidate, half in halves.items()},
                )


def _scored(half: np.ndarray, error: np.ndarray, beside: np.ndarray) -> tuple[float, float]:
    known = np.isfinite(half)
    return float((error <= half)[known].mean()), float(half[known].mean() / beside[known].mean())


def main() -> None:
    """Print every case, then the least coverage of each candidate by law."""
    least: dict[str, dict[str, float]] = {}
    law = ""
    for this, (seeds, prompts), name, scores in results():
        if this != law:
            law = this
            print(f"\n{law}\n\n| seeds × prompts | variance from | " + " | ".join(scores) + " |")
            print("|---" * (len(scores) + 2) + "|")
        cells = (f"{covered:.1%} ({width:.2f})" for covered, width in scores.values())
        print(f"| {seeds} × {prompts} | {name} | " + " | ".join(cells) + " |", flush=True)
        of_law = least.setdefault(law, dict.fromkeys(scores, 1.0))
        least[law] = {candidate: min(of_law[candidate], score[0]) for candidate, score in scores.items()}
    print(
        "\nleast coverage\n\n| differences | "
        + " | ".join(least["normal"])
        + " |\n"
        + "|---" * (len(least["normal"]) + 1)
        + "|"
    )
    for law, of_law in least.items():
        print(f"| {law} | " + " | ".join(f"{covered:.1%}" for covered in of_law.values()) + " |")


if __name__ == "__main__":
    main()
