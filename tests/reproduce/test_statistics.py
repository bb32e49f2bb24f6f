"""Interval, test and correction: against enumeration, SciPy and formulas; error rates and power, simulated."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from reproduce.statistics import (
    LEAST,
    bootstrap_interval,
    compare,
    error_rates,
    holm,
    interval,
    main,
    null_rates,
    power,
    sign_flip_p,
    simulate,
)

GRIDS = 2000
# What chance alone allows, 99.9 % of the time, in the rate of GRIDS grids.
NOISE = 3.3 * math.sqrt(0.05 * 0.95 / GRIDS)


# --- what they compute ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [2, 5, 7])
def test_all_sign_flips(pairs):
    d = np.random.default_rng(pairs).normal(0.4, 1, (pairs, 3))
    means = d.mean(1)
    sums = [abs(sum(s * m for s, m in zip(signs, means))) for signs in itertools.product([-1, 1], repeat=pairs)]
    assert sign_flip_p(d) == sum(s >= abs(means.sum()) - 1e-12 for s in sums) / 2**pairs
    found = stats.permutation_test((means,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(d) == pytest.approx(found.pvalue)


def test_many_pairs_are_flipped_at_random():
    d = np.random.default_rng(0).normal(0.45, 1, (30, 1))
    exact = stats.ttest_1samp(d[:, 0], 0).pvalue  # so near for normal differences
    assert sign_flip_p(d) == pytest.approx(exact, abs=0.01) and sign_flip_p(d + 10) == 1e-4
    assert sign_flip_p(np.zeros((30, 1))) == sign_flip_p(np.zeros((6, 1))) == 1


def test_the_interval_of_one_cell_and_image_is_students():
    d = np.random.default_rng(1).normal(1, 2, (5, 1))
    mean, low, high = interval(d, np.zeros(5))
    wanted = stats.ttest_1samp(d[:, 0], 0).confidence_interval()
    assert (mean, low, high) == pytest.approx((d.mean(), wanted.low, wanted.high))


def test_cells_are_compared_within():
    """Of two cells of equal size: Welch's interval for the sum of two means, halved."""
    d = np.random.default_rng(2).normal(0, 1, (8, 1))
    d[4:] = 3 * d[4:] + 7
    _, low, high = interval(d, np.repeat([0, 1], 4))
    wanted = stats.ttest_ind(d[:4, 0], -d[4:, 0], equal_var=False).confidence_interval()
    assert (low, high) == pytest.approx((wanted.low / 2, wanted.high / 2))
    _, apart, _ = interval(d, np.array([0, 0, 0, 0, 1, 1, 1, 2]))  # a cell of one pair: the spread between cells counts
    assert d.mean() - apart > 2 * (d.mean() - low)


def test_what_an_image_does_to_all_widens_the_interval():
    random = np.random.default_rng(3)
    d, of_images = random.normal(0, 0.01, (6, 10)), random.normal(0, 1, 10)
    _, low, high = interval(d + of_images, np.zeros(6))
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 9) * of_images.std(ddof=1) / math.sqrt(10), rel=0.05)
    _, low, high = interval(d, np.zeros(6))
    assert high - low < 0.02


def test_holm():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([[0.5, 0.9], [0.2, 0.01]])) == pytest.approx(np.array([[1, 1], [0.2, 0.02]]))
    assert holm(np.array([])).size == 0


def test_what_is_printed_of_how_many_trainings():
    d = np.random.default_rng(4).normal(1, 0.1, (6, 4))
    of = {n: compare({"a": d[:n]}) for n in (1, 2, 6)}
    assert math.isnan(of[1].low) and math.isnan(of[1].p) and of[1].gain == pytest.approx(d[0].mean())
    assert of[2].low < 1 < of[2].high and math.isnan(of[2].p)
    assert of[6].p == 2 / 2**6 and (of[6].won, of[6].pairs, of[6].seeds, of[6].cells) == (6, 6, 6, 1)
    one_seed = compare({name: d[i : i + 1] for i, name in enumerate("abcdef")})
    assert math.isnan(one_seed.p) and one_seed.seeds == 1 and one_seed.low < 1 < one_seed.high
    assert math.isnan(compare({"a": np.full((6, 4), np.nan)}).p)
    assert LEAST == 6 and compare({"a": -d}).won == 0


def test_no_lead_of_the_scale_or_the_sign():
    d = np.random.default_rng(5).normal(0.3, 1, (9, 4))
    cell = np.repeat([0, 1, 2], 3)
    mean, low, high = interval(d, cell)
    assert interval(-5 * d, cell) == pytest.approx((-5 * mean, -5 * high, -5 * low))
    assert sign_flip_p(-5 * d) == sign_flip_p(d)


# --- A/A: there is nothing to be found --------------------------------------------------------------------------------


@pytest.mark.parametrize("cells, seeds, unequal", [(1, 6, False), (3, 3, False), (6, 3, True), (4, 5, False)])
def test_false_positives(cells, seeds, unequal):
    """Of the share 5 %, or of the next one below that so few trainings can give; likewise of any p after Holm."""
    d, _ = simulate(GRIDS, cells, seeds, metrics=6, unequal=unequal, noise=3, seed=cells)
    pairs = cells * seeds
    steps = 2 ** (pairs - 1)
    reachable = math.floor(0.05 * steps) / steps
    p = sign_flip_p(d)
    assert [rate for rate in (p <= 0.05).mean(0)] == pytest.approx([reachable] * 6, abs=NOISE)
    assert (holm(p) <= 0.05).any(-1).mean() <= 0.05 + NOISE
    if pairs > 6:  # of six trainings and six tests nothing can be found
        assert (p <= 0.05).any(-1).mean() > 0.1 > (holm(p) <= 0.05).any(-1).mean() > 0.005


def test_images_are_no_trainings():
    """Why the tests are not over images: there most of what is nothing is significant."""
    d, _ = simulate(300, 1, 1, images=70)
    p = [stats.wilcoxon(one[0, 0]).pvalue for one in d]
    assert np.mean(np.array(p) <= 0.05) > 0.5


@pytest.mark.parametrize("cells, seeds", [(1, 2), (1, 3), (2, 3), (4, 2), (6, 3), (6, 1)])
@pytest.mark.parametrize("of_images, unequal", [(0, False), (0, True), (1, False)])
def test_coverage(cells, seeds, of_images, unequal):
    """Never below 95 %, and never far above; also where images differ in what they show."""
    d, cell = simulate(GRIDS, cells, seeds, effect=1, of_images=of_images, unequal=unequal and cells > 1)
    _, low, high = interval(d[:, 0], cell)
    covered = ((low <= 1) & (1 <= high)).mean()
    assert 0.94 - NOISE / 2 <= covered <= 0.99


def test_the_bootstrap_is_too_short():
    d, _ = simulate(GRIDS, 1, 3)
    _, low, high = bootstrap_interval(d[:, 0])
    assert ((low <= 0) & (high >= 0)).mean() < 0.85


def test_a_loss_against_itself_in_trainings_at_hand():
    scores = np.random.default_rng(6).normal(0, 1, (3, 8, 1)) + np.random.default_rng(7).normal(0, 0.3, (3, 8, 10))
    found = null_rates(dict(enumerate(scores)))
    assert found["false positives"] == pytest.approx(0.05, abs=0.025) and 0.93 < found["coverage"] < 0.99
    few = null_rates({0: scores[0, :4]})
    assert math.isnan(few["false positives"]) and few["coverage"] > 0.8
    assert math.isnan(
        null_rates({i: scores[i % 3, :2] for i in range(8)})["false positives"]
    )  # a pair of each: one seed


# --- a true difference ------------------------------------------------------------------------------------------------


def test_power():
    """As many differences are found as the paired t-test finds, which knows that they are normal."""
    (row,) = power([0.5, 1.0], [(4, 3)], GRIDS)
    for effect in (0.5, 1.0):
        reached = stats.nct.sf(stats.t.ppf(0.975, 11), 11, effect * math.sqrt(12))
        assert row[effect] == pytest.approx(reached, abs=0.04)
    (among_eight,) = power([1.0], [(4, 3)], 500, tests=8)
    assert among_eight[1.0] < row[1.0] - 0.1


def test_the_command(capsys):
    main(["--repetitions", "60", "--tests", "2"])
    shown = capsys.readouterr().out
    for words in ("60 grids of every layout", "bootstrap", "unequal spread", "found among 2 tests"):
        assert words in shown, words
    with pytest.raises(SystemExit):
        main(["--tests", "0"])
    (row,) = error_rates([(1, 2)], 50, 2)
    assert row["p"] is None and row["interval"] > 0.8
