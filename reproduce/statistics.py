"""Compare two losses from a few trainings: confidence interval, test, and how far to trust them.

    python -m reproduce.statistics      simulates the numbers in this text: error rates, coverage, power

The unit is a training. Two losses trained in one cell (network x scale) with one seed share initial weights and
batches: they are a pair. d (..., pairs, images) has the pairs' differences on each image; cell (pairs,) is each pair's
cell. Leading axes are independent repetitions.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student
from tabulate import tabulate
from tqdm import tqdm

import configs

LEAST = 6  # pairs; with fewer, no two-sided sign-flip test can reach 5 %: 2 / 2^5 = 0.06
EXACT = 14  # pairs; up to this many, all sign flips are tried
DRAWS = 9_999  # random flips for more pairs


def interval(d: np.ndarray, cell: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean difference and its confidence interval: mean, low, high (...); NaN bounds for one pair.

    Student's t with the variance of two crossed samples: the pairs, compared within their cells, and the images. The
    variance of the mean is V_pairs + max(0, V_images - V_rest): V_pairs is that of the pairs' own effects (their
    seeds), V_images that of an image's effect on all pairs; both include the rest, which must count once. Degrees of
    freedom are Satterthwaite's. The interval is never shorter than with the pairs alone. If a cell has a single pair,
    the spread between cells replaces the one between trainings: rather too wide than too short.

    In simulations (`python -m reproduce.statistics`), it holds the true difference in 95 % (a cell of 2 or 3 seeds) to
    98 % (4 cells of 2 seeds) of all grids; a percentile bootstrap over trainings, images within, in 66 % (2 seeds),
    77 % (3) and 90 % (4 cells of 3).
    """
    pairs, images = d.shape[-2:]
    member = (cell[:, None] == np.unique(cell)).astype(float)  # (pairs, cells)
    if (member.sum(0) < 2).any():
        member = np.ones((pairs, 1))
    n = member.sum(0)
    centre = np.eye(pairs) - member / n @ member.T  # subtracts each cell's mean
    mean = d.mean((-2, -1))
    if pairs < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    parts = ((d.mean(-1) @ centre) ** 2 @ member) / (n - 1) * n / pairs**2  # V_pairs, by cell

    def reach(*terms: tuple[np.ndarray, float]) -> np.ndarray:
        variance = sum(part for part, _ in terms)
        with np.errstate(invalid="ignore", divide="ignore"):
            freedom = variance**2 / sum(part**2 / df for part, df in terms)
        return student.ppf((1 + level) / 2, np.where(variance > 0, freedom, 1)) * np.sqrt(variance)

    of_pairs = [(parts[..., i], n[i] - 1) for i in range(len(n))]
    half = reach(*of_pairs)
    if images > 1:
        of_images = d.mean(-2).var(-1, ddof=1) / images
        rest = np.einsum("pq,...qi->...pi", centre, d)
        rest -= rest.mean(-1, keepdims=True)
        of_rest = (rest**2).sum((-2, -1)) / ((pairs - len(n)) * (images - 1)) / (pairs * images)
        more = np.maximum(0, of_images - of_rest), images - 1
        half = np.maximum(half, reach(*of_pairs, more))  # more degrees of freedom must not shorten it
    return mean, mean - half, mean + half


def bootstrap_interval(d: np.ndarray, draws: int = 500, level: float = 0.95, seed: int = 0):
    """The percentile interval of the hierarchical bootstrap: draw pairs, and images within each.

    It is often used, and too short for few pairs, which `main` shows. Arguments and result as for `interval`.
    """
    random = np.random.default_rng(seed)
    pairs, images = d.shape[-2:]
    means = []
    for _ in range(draws):
        drawn = random.integers(pairs, size=pairs)
        within = random.multinomial(images, np.full(images, 1 / images), size=pairs) / images
        means.append((d[..., drawn, :] * within).sum(-1).mean(-1))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return d.mean((-2, -1)), low, high


def sign_flip_p(d: np.ndarray, seed: int = 0) -> np.ndarray:
    """Two-sided p (...) of the sign-flip permutation test on the pairs' mean differences.

    Exact if the two losses are equivalent: then either sign of a pair's difference is equally likely, whatever its
    cell. It is about other trainings on these images; the interval is about other images too. Up to EXACT pairs all
    flips are tried, for more DRAWS random ones and the one observed.
    """
    means = d.mean(-1)
    pairs = means.shape[-1]
    if pairs <= EXACT:
        signs = np.array(list(itertools.product([1, -1], repeat=pairs - 1)))  # half of them: the others mirror these
        signs = np.hstack([np.ones((len(signs), 1)), signs])
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (DRAWS, pairs))
    as_large = []
    for rows in np.array_split(means.reshape(-1, pairs), max(1, means.size // 2**14)):  # a few MB of sums at once
        observed = np.abs(rows.sum(-1, keepdims=True))
        tolerance = 1e-9 * np.abs(rows).sum(-1, keepdims=True)  # rounding must not make equal sums differ
        as_large.append((np.abs(rows @ signs.T) >= observed - tolerance).sum(-1))
    count = np.concatenate(as_large).reshape(means.shape[:-1])
    return count / len(signs) if pairs <= EXACT else (count + 1) / (len(signs) + 1)


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p (..., tests) by Holm's method, which bounds the chance of any false positive in a table."""
    order = np.argsort(p, axis=-1)
    factors = np.arange(p.shape[-1], 0, -1)
    adjusted = np.maximum.accumulate(np.take_along_axis(p, order, -1) * factors, axis=-1).clip(max=1)
    result = np.empty_like(adjusted)
    np.put_along_axis(result, order, adjusted, -1)
    return result


class Comparison(NamedTuple):
    """One loss against another in one metric; if gain > 0, the first is better."""

    gain: float
    low: float  # of the 95 % interval; NaN for a single pair
    high: float
    won: int  # pairs in which the first is better, of `pairs`
    pairs: int
    cells: int
    seeds: int  # of the cell with the fewest
    p: float  # NaN for fewer than LEAST pairs, a single seed, or a difference that is not finite


def compare(gains: dict) -> Comparison:
    """Compare two losses from the gains {cell: (seeds, images)}, all cells with the same images."""
    d = np.concatenate(list(gains.values()))
    cell = np.repeat(np.arange(len(gains)), [len(rows) for rows in gains.values()])
    seeds = min(len(rows) for rows in gains.values())
    finite = np.isfinite(d).all()
    p = float(sign_flip_p(d)) if finite and seeds > 1 and len(d) >= LEAST else math.nan
    return Comparison(*map(float, interval(d, cell)), int((d.mean(-1) > 0).sum()), len(d), len(gains), seeds, p)


def null_rates(scores: dict, draws: int = 1000, level: float = 0.05, seed: int = 0) -> dict[str, float]:
    """The error rates of `compare` among trainings of one loss, paired at random.

    scores: {cell: (an even number of seeds, images)}. Returns the shares of `draws` pairings in which p is at most
    level (NaN if there is no p) and in which the interval holds 0.
    """
    random = np.random.default_rng(seed)
    d = []
    for of in scores.values():
        order = random.permuted(np.tile(np.arange(len(of)), (draws, 1)), axis=1)
        half = len(of) // 2
        d.append(of[order[:, :half]] - of[order[:, half:]])
    cell = np.repeat(np.arange(len(d)), [rows.shape[1] for rows in d])
    d = np.concatenate(d, axis=1)
    _, low, high = interval(d, cell)
    tested = d.shape[1] >= LEAST and len(d[0]) > len(scores)
    positives = float((sign_flip_p(d) <= level).mean()) if tested else math.nan
    return {"false positives": positives, "coverage": float(((low <= 0) & (high >= 0)).mean())}


# --- error rates and power, simulated -----------------------------------------------------------------------


def simulate(
    repetitions: int,
    cells: int,
    seeds: int,
    images: int = 19,
    *,
    effect: float = 0.0,
    of_images: float = 0.0,
    noise: float = 1.0,
    unequal: bool = False,
    metrics: int = 1,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate differences d (repetitions, metrics, pairs, images) of two losses, and the pairs' cells.

    Every training has its own random effect (its seed) and random noise on each image, scaled so that a pair's mean
    difference has standard deviation 1.

    Args:
        effect: the true difference, in that standard deviation.
        of_images: standard deviation of an image's effect on the difference, in all trainings alike.
        noise: standard deviation on an image, relative to the training's effect.
        unequal: every second cell has three times the spread of the others; the average variance stays 1.
        metrics: number of scores of the same trainings; their training effects are correlated by a half.
    """
    random = np.random.default_rng(seed)
    spread = np.where(np.arange(cells) % 2, 3.0, 1.0) if unequal else np.ones(cells)
    spread = np.repeat(spread / np.sqrt((spread**2).mean()), seeds)[:, None]
    normal = random.standard_normal
    common, own = normal((repetitions, 1, cells * seeds, 2)), normal((repetitions, metrics, cells * seeds, 2))
    training = np.sqrt(0.5) * (common + own) if metrics > 1 else own  # effects of the two trainings of a pair
    scores = training[..., None] + noise * normal((repetitions, metrics, cells * seeds, 2, images))
    d = (scores[..., 0, :] - scores[..., 1, :]) / np.sqrt(2 + 2 * noise**2 / images)
    return d * spread + effect + of_images * normal((repetitions, metrics, 1, images)), np.repeat(
        np.arange(cells), seeds
    )


def error_rates(layouts: Sequence[tuple[int, int]], repetitions: int, metrics: int, **options) -> list[dict]:
    """Simulate without a difference; return for each layout (cells, seeds) shares of the repetitions.

    interval, bootstrap: the interval holds the true 0; p: p is at most 5 %; Holm: any metric's adjusted p is.
    """
    rows = []
    for cells, seeds in tqdm(layouts, "no difference", disable=None, leave=False):
        d, cell = simulate(repetitions, cells, seeds, metrics=metrics, **options)
        rates = {}
        for name, (_, low, high) in {
            "interval": interval(d[:, 0], cell),
            "bootstrap": bootstrap_interval(d[:500, 0]),
        }.items():
            rates[name] = float(((low <= 0) & (high >= 0)).mean())
        p = sign_flip_p(d) if cells * seeds >= LEAST and seeds > 1 else np.full(d.shape[:2], np.nan)
        rates |= {"p": float((p[:, 0] <= 0.05).mean()), "Holm": float((holm(p) <= 0.05).any(-1).mean())}
        rows.append(
            {"cells": cells, "seeds": seeds, **rates} | ({} if np.isfinite(p).all() else {"p": None, "Holm": None})
        )
    return rows


def power(effects: Sequence[float], layouts: Sequence[tuple[int, int]], repetitions: int, tests: int = 1) -> list[dict]:
    """The share of repetitions with p of at most 5 % / tests, for each layout (cells, seeds) and effect.

    effects: in standard deviations of a pair. tests: the number of tests in the table (Holm's first step).
    """
    rows = []
    for cells, seeds in tqdm(layouts, "power", disable=None, leave=False):
        d, _ = simulate(repetitions, cells, seeds)
        found = {effect: float((sign_flip_p(d[:, 0] + effect) <= 0.05 / tests).mean()) for effect in effects}
        rows.append({"cells": cells, "seeds": seeds, **found})
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = configs.OneLineParser(
        prog="reproduce.statistics", description="Error rates, coverage and power, simulated."
    )
    parser.add_argument("--repetitions", type=int, default=4000, metavar="N", help="grids per layout (default: 4000)")
    parser.add_argument("--tests", type=int, default=8, metavar="N", help="tests in a table (default: 8)")
    args = parser.parse_args(argv)
    with configs.one_line_errors("reproduce.statistics"):
        for name in ("repetitions", "tests"):
            configs.expect(getattr(args, name) > 0, name, getattr(args, name), "1 or more")
    layouts = [(1, 2), (1, 3), (2, 3), (4, 2), (3, 3), (4, 3), (6, 3), (6, 6)]

    def show(title: str, rows: list[dict]) -> None:
        shown = [
            {name: x if name in ("cells", "seeds") else "" if x is None else f"{x:.1%}" for name, x in row.items()}
            for row in rows
        ]
        print(f"\n{title}\n" + tabulate(shown, "keys", stralign="right"))

    noise = 1.96 * math.sqrt(0.05 * 0.95 / args.repetitions)
    print(f"{args.repetitions} grids of every layout; 5 % is within {0.05 - noise:.1%} and {0.05 + noise:.1%}")
    for unequal in (False, True):
        show(
            f"No difference{', cells of unequal spread' * unequal}: how often the interval holds 0, p is at most 5 %, "
            f"any of {args.tests} p (Holm) is",
            error_rates(layouts, args.repetitions, args.tests, unequal=unequal),
        )
    effects = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    tested = [layout for layout in layouts if layout[0] * layout[1] >= LEAST]
    for tests in dict.fromkeys((1, args.tests)):
        show(
            "A difference, in standard deviations of a pair: how often it is found"
            f"{f' among {tests} tests' * (tests > 1)}",
            power(effects, tested, args.repetitions, tests),
        )


if __name__ == "__main__":
    main()
