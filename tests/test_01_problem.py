"""Lesson 01: weights and effective sample size by brute force, the net beside the exact velocity, each number of the figure."""
import re

import matplotlib.pyplot as plt
import moons
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste
from matplotlib.colors import to_hex

NAME = "01_problem"
FILMS = np.array([np.concatenate([moons.CENTRES[(i + 9 * k) % 64] for k in range(7)]) for i in range(64)])


@pytest.fixture(scope="module")
def pieces():
    return paste(NAME, "films", "weight", "train", "sample", "energy_distance")


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


@pytest.fixture(scope="module")
def ns(run):
    return run.ns


def data(n, rng):
    """n samples of p_data, (n, 14)."""
    return FILMS[rng.integers(64, size=n)] + moons.WIDTH * rng.standard_normal((n, 14))


def log_normal(x, mean, cov):
    """Log density of N(mean, cov) at x (n, d)."""
    off = x - mean
    return -((off @ np.linalg.inv(cov) * off).sum(1) + np.linalg.slogdet(2 * np.pi * cov)[1]) / 2


def weights(x, mean=0, cov=None):
    """p_data / p_prior at x (n, d) in float64, one Gaussian after the other; the prior is N(0, I) or N(mean, cov)."""
    d = x.shape[1]
    p = [np.exp(log_normal(x, film[:d], moons.WIDTH**2 * np.eye(d))) for film in FILMS]
    return np.mean(p, 0) / np.exp(log_normal(x, mean, np.eye(d) if cov is None else cov))


def exact(rows):
    """E[x - eps | xt] at rows (xt, t) of shape (n, 15), in float64 inside, as a net would give it."""
    xt, t = rows[:, :14].double().numpy(), rows[0, 14].item()
    var = (t * moons.WIDTH) ** 2 + (1 - t) ** 2
    log_p = -((xt[:, None] - t * FILMS) ** 2).sum(2) / (2 * var)  # (n, 64)
    p = np.exp(log_p - log_p.max(1, keepdims=True))
    film = p @ FILMS / p.sum(1, keepdims=True)
    return torch.tensor(film + (t * moons.WIDTH**2 - (1 - t)) / var * (xt - t * film)).to(rows)


def distance(x, y):
    """Energy distance of x and y (n, d), over all pairs of different points, in float64."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)

    def mean(a, b, pairs):
        return sum(np.sqrt(((row - b) ** 2).sum(1)).sum() for row in a) / pairs
    return 2 * mean(x, y, len(x) * len(y)) - mean(x, x, len(x) * (len(x) - 1)) - mean(y, y, len(y) * (len(y) - 1))


def euler(net, noise, steps):
    """The path of Euler's method (steps + 1, n, 14), one point of time after the other."""
    path = np.empty((steps + 1, *noise.shape))
    path[0] = noise
    for i in range(steps):
        rows = np.column_stack([path[i], np.full(len(noise), i / steps)])
        with torch.no_grad():
            path[i + 1] = path[i] + net(torch.tensor(rows).float()).numpy() / steps
    return path


# --- the pieces


def test_weights_are_the_ratio_of_two_densities(pieces):
    x = data(500, np.random.default_rng(0)) * 1.1
    for d in (2, 6, 14):
        assert np.allclose(pieces.weight(torch.tensor(x[:, :d]).float()).numpy(), weights(x[:, :d]), rtol=1e-3, atol=1e-6)


def test_films_have_the_moments_of_the_mixture(pieces):
    x = pieces.films(100_000).double().numpy()
    cov = np.cov(FILMS.T, bias=True) + moons.WIDTH**2 * np.eye(14)
    assert np.abs(x.mean(0)).max() < 0.02 and np.abs(np.cov(x.T) - cov).max() < 0.02 and abs(np.trace(cov) / 14 - 1) < 1e-3
    assert abs(distance(x[:2000], data(2000, np.random.default_rng(0)))) < 0.006


def test_guesses_are_worth_n_divided_by_the_mean_weight_of_data(pieces):
    """The lesson's law by guessing: sum(w)^2 / sum(w^2) at d = 2 and 4, and picks by weight are distributed like data."""
    for d, width in ((2, 0.02), (4, 0.3)):
        x = torch.randn(500_000, d)
        w = pieces.weight(x).double()
        mean = weights(data(20_000, np.random.default_rng(1))[:, :d]).mean()
        assert abs((w.sum() ** 2 / w.square().sum()).item() * mean / 500_000 - 1) < width and abs(w.mean() - 1) < 0.15
        assert abs(distance(x[torch.multinomial(w, 1000)], data(1000, np.random.default_rng(2))[:, :d])) < 0.03


def test_sample_is_eulers_method_from_0_to_1_and_keeps_the_path(pieces):
    times, noise = [], torch.randn(3, 2)
    path = pieces.sample(lambda rows: times.append(rows[:, 2].tolist()) or rows[:, 2:] - rows[:, :2], noise, 5)
    assert path.shape == (6, 3, 2) and np.allclose(times, np.arange(5)[:, None] / 5 * np.ones(3))
    xt = noise.clone()
    for i in range(6):
        assert torch.allclose(path[i], xt, atol=1e-6)
        xt += (i / 5 - xt) / 5


def test_energy_distance_is_that_of_all_pairs(pieces):
    x, y = torch.randn(60, 14), torch.randn(90, 14) + 0.5
    assert abs(pieces.energy_distance(x, y) - distance(x, y)) < 1e-5


def test_train_takes_other_data_and_its_learning_rate_falls_in_a_line(pieces, monkeypatch):
    rates, step, mean = [], torch.optim.Adam.step, torch.tensor([0.9, -0.5, 0, 0.3, 1.2, -1])
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    net = pieces.train(lambda n: mean + 0.1 * torch.randn(n, 6), 6, 410, width=32, batch_size=256)
    x = pieces.sample(net, torch.randn(2000, 6), 20)[-1]
    assert (x.mean(0) - mean).abs().max() < 0.06 and 0.04 < x.std(0).min() and x.std(0).max() < 0.2
    assert np.allclose(rates, 0.01 * (1 - np.arange(410) / 410))


# --- measurements of the section


def test_the_exact_factor_of_one_frame_is_0_187_by_a_grid():
    xy, area = moons.grid(4, 0.02)
    assert abs(1 / ((moons.parts(xy, 1.0, 0.0)[0] * weights(xy)).sum() * area) - 0.186867) < 2e-6


def test_a_fitted_gaussian_prior_fails_later(pieces):
    """The exercise: a billion guesses from it are worth 53,000 samples at d = 14, and each frame divides it by about 3."""
    x = data(50_000, np.random.default_rng(0))
    worth = {d: 1e9 / weights(x[:, :d], x[:, :d].mean(0), np.cov(x[:, :d].T)).mean() for d in (8, 10, 12, 14)}
    assert abs(worth[14] / 53_000 - 1) < 0.06 and abs((worth[8] / worth[14]) ** (1 / 3) - 3.2) < 0.2, worth


def test_the_exact_velocity_fails_in_one_step_too_and_arrives_in_20(pieces):
    rng = np.random.default_rng(5)
    noise, x = torch.tensor(rng.standard_normal((2000, 14))).float(), data(2000, rng)
    ends = [pieces.sample(exact, noise, n)[-1] for n in (1, 20)]
    assert ends[0].abs().max() < 1e-5 and abs(distance(ends[1], x)) < 0.006


def test_the_loss_is_near_the_best_possible(ns):
    rng = np.random.default_rng(0)
    x, eps = data(2000, rng), rng.standard_normal((2000, 14))
    excess, best = [], []
    for t in (np.arange(25) + 0.5) / 25:
        rows = torch.tensor(np.column_stack([t * x + (1 - t) * eps, np.full(2000, t)])).float()
        v = exact(rows).numpy()
        with torch.no_grad():
            excess.append(((ns.net(rows).numpy() - v) ** 2).mean())
        best.append(((v - (x - eps)) ** 2).mean())
    assert np.mean(excess) < 0.12 * np.mean(best), np.mean(excess) / np.mean(best)


def test_moved_noise_has_the_distribution_of_the_path_at_every_t(ns):
    path, rng = euler(ns.net, ns.noise.numpy(), 20), np.random.default_rng(1)
    for i in (5, 10, 15):
        fresh = i / 20 * data(2000, rng) + (1 - i / 20) * rng.standard_normal((2000, 14))
        assert abs(distance(path[i], fresh)) < 0.012


# --- the run


def test_claims_figure_and_page(run):
    assert run.claims() == {"C1": True, "C2": True}
    assert plt.imread(run.folder / f"{NAME}.png")[..., :3].std() > 0.05
    page_agrees(NAME, run)


def test_the_chart_and_c1_are_those_of_the_first_numbers_of_the_seed(run, ns):
    torch.manual_seed(0)
    worth = []
    for d in range(2, 15, 2):
        x = FILMS[torch.randint(64, (10_000,)).numpy()] + moons.WIDTH * torch.randn(10_000, 14).double().numpy()
        worth.append(1e9 / weights(x[:, :d]).mean())
    assert np.allclose(ns.expected, worth, rtol=1e-3) and abs(worth[0] / 186_867_000 - 1) < 0.05
    assert np.allclose(ns.chart.lines[0].get_xydata(), np.column_stack([range(2, 15, 2), worth]), rtol=1e-3)
    (value, bound), log = run.numbers()["C1"], np.log(worth)
    assert abs(value / worth[-1] - 1) < 1e-3 and bound == 1 and "1,000,000,000 guesses at d = 14" in run.text
    assert np.abs(np.diff(log) - (log[-1] - log[0]) / 6).max() < 0.3  # nearly a line
    title = ns.chart.get_title()
    assert f"replace {worth[-1]:.3f} samples" in title and "14 dimensions, a billion guesses" in title
    assert (ns.chart.get_xlabel(), ns.chart.get_ylabel(), ns.chart.get_yscale()) == ("dimension d", "samples that a billion\nguesses replace", "log")


def test_c2_is_measured_at_the_end_of_the_path_and_its_bound_is_a_gaussian(run, ns):
    (value, bound), noise, x = run.numbers()["C2"], ns.noise.double().numpy(), ns.x.double().numpy()
    assert noise.shape == x.shape == ns.gaussian.shape == (2000, 14) and abs(noise.std() - 1) < 0.05
    assert abs(value - distance(euler(ns.net, noise, 20)[-1], x)) < 3e-5 and abs(bound - ns.limit) < 1e-4
    gaussian = ns.gaussian.double().numpy()
    assert abs(distance(gaussian, x) - ns.limit) < 3e-5 and np.abs(gaussian.mean(0) - x.mean(0)).max() < 0.12
    assert np.abs(np.cov(gaussian.T) - np.cov(x.T)).max() < 0.15


@pytest.mark.parametrize("steps, stops", [(20, [0, 5, 20, 10, 15]), (3, [0, 1, 3, 2, 2]), (1, [0, 0, 1, 0, 1])])
def test_slider_shows_the_path_until_it_collapses(ns, steps, stops):
    ns.slider.set_val(steps)
    noise, x = ns.noise.double().numpy(), ns.x.double().numpy()
    path = euler(ns.net, noise, steps)
    one, limit = euler(ns.net, noise, 1), distance(ns.gaussian, x)
    off = [distance(moved[-1], x) for moved in (path, one)]
    for ax, i, moved, k in zip([ns.panel, *ns.panels], [1, *stops], [one] + 5 * [path], [1] + 5 * [0], strict=True):
        (gray, points, *tracks), t = ax.lines, i / (len(moved) - 1)
        assert np.abs(gray.get_xydata() - (t * x + (1 - t) * noise)[:, :2]).max() < 1e-5 and to_hex(gray.get_color()) == "#cccccc"
        assert np.abs(points.get_xydata() - moved[i, :, :2]).max() < 1e-4 and to_hex(points.get_color()) == to_hex("C3" if t == 1 and off[k] > limit else "C0")
        for j, track in zip(range(10), tracks, strict=True):  # hollow at its start
            assert np.abs(track.get_xydata() - moved[:i + 1, j, :2]).max() < 1e-4 and (track.get_markevery(), track.get_marker(), track.get_mfc(), track.get_color()) == ([0], "o", "w", "k")
        assert ax.get_xlabel() == f"t = {t:.2f}" and ax.get_xlim() == ax.get_ylim() == (-3, 3)
    assert off[1] > limit and (off[0] > limit) == (steps == 1)
    words = ns.panel.get_title() + ns.panels[2].get_title()
    assert np.abs(np.array(re.findall(r"\d+\.?\d*", words.replace(". ", " ")), float) - [off[1], limit, steps, off[0]]).max() < 0.0006
    ns.slider.set_val(20)


def test_break_one_step(lesson):
    run = lesson(NAME, "--steps", "1")
    assert run.claims() == {"C1": True, "C2": False}
    assert "--steps 1: " in run.text and run.ns.panels[2].lines[1].get_xydata().std() < 0.5


def test_an_untrained_net_fails(lesson):
    run = lesson(NAME, "--iters", "1", "--steps", "50", "--seed", str(2**32 - 1))  # the largest that are allowed
    assert run.claims() == {"C1": True, "C2": False}


def test_same_seed_same_numbers(lesson, limits):
    limits(NAME)
    a, b, c = lesson(NAME, "--iters", "20"), lesson(NAME, "--iters", "20", "--seed", "0"), lesson(NAME, "--iters", "20", "--seed", "1")
    assert a.text == b.text != c.text


@pytest.mark.parametrize("flags", [
    ("--steps", "0"), ("--steps", "51"), ("--steps", "2.5"), ("--iters", "0"), ("--iters", "9" * 21), ("--seed", "-1"), ("--seed", "9" * 21), ("--copies", "2")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
