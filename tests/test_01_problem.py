"""Lesson 01: weights and effective sample size by brute force, the net beside the exact velocity, each number of the figure."""
import math
import re

import matplotlib.pyplot as plt
import moons
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste
from matplotlib.colors import to_hex

NAME = "01_problem"
FACTOR = 0.186867  # E[w]^2 / E[w^2] for one pair of dimensions, checked below


@pytest.fixture(scope="module")
def pieces():
    return paste(NAME, "two_moons", "weight", "train", "sample", "energy_distance")


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


@pytest.fixture(scope="module")
def ns(run):
    return run.ns


def weights(x, std=1):
    """p_data / p_prior at x (n, 2) in float64; the prior is N(0, std^2 I)."""
    return moons.parts(x, 1.0, 0.0)[0] * 2 * math.pi * std**2 * np.exp((x**2).sum(1) / (2 * std**2))


def exact(rows):
    """E[x - eps | xt] at rows (xt, t) of shape (n, 3), in float64 inside, as a net would give it."""
    xt, t = rows[:, :2].double().numpy(), rows[0, 2].item()
    _, x_hat, eps_hat = moons.parts(xt, t, 1 - t)
    return torch.tensor(x_hat - eps_hat).to(rows)


def distance(x, y):
    """Energy distance of x and y (n, 2), over all pairs of different points, in float64."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)

    def mean(a, b, pairs):
        return sum(np.hypot(*(a[i] - b).T).sum() for i in range(len(a))) / pairs
    return 2 * mean(x, y, len(x) * len(y)) - mean(x, x, len(x) * (len(x) - 1)) - mean(y, y, len(y) * (len(y) - 1))


def euler(net, noise, steps):
    """The path of Euler's method (steps + 1, n, 2), one point of time after the other."""
    path = np.empty((steps + 1, *noise.shape))
    path[0] = noise
    for i in range(steps):
        rows = np.column_stack([path[i], np.full(len(noise), i / steps)])
        with torch.no_grad():
            path[i + 1] = path[i] + net(torch.tensor(rows).float()).numpy() / steps
    return path


# --- the pieces


def test_weights_are_the_ratio_of_two_densities(pieces):
    x = np.random.default_rng(0).normal(size=(3, 500, 2)) * 1.3
    mine = pieces.weight(torch.tensor(x).float())
    assert mine.shape == (3, 500)
    assert np.abs(mine.double().numpy() - [weights(points) for points in x]).max() < 1e-3


def test_guesses_picked_by_weight_are_distributed_like_data(pieces):
    x, data = torch.randn(50_000, 2), moons.samples(2000, np.random.default_rng(0))
    w = pieces.weight(x)
    assert abs(distance(x[torch.multinomial(w, 2000)], data)) < 0.005 < 0.03 < distance(x[:2000], data)
    assert abs(w.mean() - 1) < 0.05 and abs((w * x[:, 0] * x[:, 1]).mean() - (data[:, 0] * data[:, 1]).mean()) < 0.06


def test_samples_have_the_moments_of_the_density(pieces):
    x = pieces.two_moons(200_000).double().numpy()
    xy, area = moons.grid(4, 0.02)
    p = moons.parts(xy, 1.0, 0.0)[0] * area
    assert abs(p.sum() - 1) < 1e-9 and abs((p[:, None] * xy**2).sum() / 2 - 1) < 1e-3 and np.abs(p @ xy).max() < 1e-9
    assert np.abs(x.mean(0)).max() < 0.012 and np.abs(x.T @ x / len(x) - (xy * p[:, None]).T @ xy).max() < 0.02
    assert abs(distance(x[:2000], moons.samples(2000, np.random.default_rng(0)))) < 0.004


def test_a_weighted_mean_is_as_good_as_m_samples():
    """Var(sum(w f) / sum(w)) = Var(f) / m, where f is drawn anew and does not depend on w."""
    rng = np.random.default_rng(0)
    w = np.exp(rng.normal(size=200))
    m = w.sum() ** 2 / (w**2).sum()
    means = rng.normal(size=(20_000, 200)) @ w / w.sum()
    assert abs(means.var() * m - 1) < 0.05 and m < 130


def test_sample_is_eulers_method_from_0_to_1_and_keeps_the_path(pieces):
    times, noise = [], torch.randn(3, 2)
    path = pieces.sample(lambda rows: times.append(rows[:, 2].tolist()) or rows[:, 2:] - rows[:, :2], noise, 5)
    assert path.shape == (6, 3, 2) and np.allclose(times, np.arange(5)[:, None] / 5 * np.ones(3))
    xt = noise.clone()
    for i in range(6):
        assert torch.allclose(path[i], xt, atol=1e-6)
        xt += (i / 5 - xt) / 5


def test_sample_follows_the_flow_of_a_gaussian_whose_map_is_known(pieces):
    mean, std = torch.tensor([0.7, -0.4], dtype=torch.float64), 0.3  # data N(mean, std^2 I)

    def v(rows):
        xt, t = rows[:, :2], rows[:, 2:].double()
        return mean + (t * std**2 - (1 - t)) / ((t * std) ** 2 + (1 - t) ** 2) * (xt - t * mean)
    eps = torch.randn(200, 2, dtype=torch.float64)
    error = [(pieces.sample(v, eps, n)[-1] - (mean + std * eps)).abs().max() for n in (400, 800)]
    assert error[0] < 0.02 and 1.8 < error[0] / error[1] < 2.2  # Euler's order is 1
    assert (pieces.sample(v, eps, 1)[-1] - mean).abs().max() < 1e-12  # one step leads to the mean


def test_energy_distance_is_that_of_all_pairs(pieces):
    x, y = torch.randn(60, 2), torch.randn(90, 2) + 0.5
    assert abs(pieces.energy_distance(x, y) - distance(x, y)) < 1e-5


def test_train_takes_other_data_and_its_learning_rate_falls_in_a_line(pieces, monkeypatch):
    rates, step, mean = [], torch.optim.Adam.step, torch.tensor([0.9, -0.5, 0, 0.3, 1.2, -1])
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    net = pieces.train(lambda n: mean + 0.1 * torch.randn(n, 6), 6, 410, width=32, batch_size=256)
    x = pieces.sample(net, torch.randn(2000, 6), 20)[-1]
    assert (x.mean(0) - mean).abs().max() < 0.06 and 0.04 < x.std(0).min() and x.std(0).max() < 0.2
    assert np.allclose(rates, 0.03 * (1 - np.arange(410) / 410))


# --- measurements of the section


def test_the_exact_factor_is_0_187_by_a_grid_and_by_data():
    xy, area = moons.grid(4, 0.02)
    p = moons.parts(xy, 1.0, 0.0)[0]
    assert abs(1 / ((p * weights(xy)).sum() * area) - FACTOR) < 2e-6
    assert abs(1 / weights(moons.samples(400_000, np.random.default_rng(0))).mean() - FACTOR) < 0.001
    assert 1e5 * FACTOR**6 > 4 and abs(1e5 * FACTOR**7 - 0.8) < 0.01  # less than one sample from d = 14 on


def test_a_wider_prior_helps_a_little_and_changes_no_law():
    """The exercise: a factor of 0.201 at the best width, near 1.17; one effective sample of 100,000 guesses at d = 14.4."""
    xy, area = moons.grid(5, 0.04)
    p = moons.parts(xy, 1.0, 0.0)[0]
    factor = {std: 1 / ((p * weights(xy, std)).sum() * area) for std in (1.0, 1.1, 1.17, 1.25, 1.4)}
    assert abs(factor[1.0] - FACTOR) < 1e-4 and max(factor, key=factor.get) == 1.17
    assert abs(factor[1.17] - 0.201) < 0.001
    assert abs(2 * math.log(1e5) / -math.log(factor[1.17]) - 14.4) < 0.1 > abs(2 * math.log(1e5) / -math.log(FACTOR) - 13.7)


def test_the_exact_velocity_fails_in_one_step_too_and_arrives_in_20(pieces):
    rng = np.random.default_rng(5)
    noise, x = torch.tensor(rng.standard_normal((2000, 2))).float(), moons.samples(2000, rng)
    ends = [distance(pieces.sample(exact, noise, n)[-1], x) for n in (1, 20)]
    assert abs(ends[0] - 0.86) < 0.05 and abs(ends[1]) < 0.005 and 0.035 < distance(noise, x) < 0.065


def test_one_moon_or_one_gaussian_would_not_pass(ns):
    """Energy distance of 2000 points on one moon 0.4, of a Gaussian with the data's mean and covariance 0.02."""
    rng, x = np.random.default_rng(6), moons.samples(5000, np.random.default_rng(7))
    one = x[((x[:, None] - moons.CENTRES) ** 2).sum(2).argmin(1) < 32]
    assert distance(one[:2000], x[:2000]) > 0.3
    ends = [distance(rng.multivariate_normal(x.mean(0), np.cov(x.T), 2000), x[i:i + 2000]) for i in (0, 1000, 2000, 3000)]
    gaussian, data = ns.gaussian.double().numpy(), ns.x.double().numpy()
    assert abs(np.mean(ends) - ns.limit) < 0.006 and abs(distance(gaussian, data) - ns.limit) < 2e-5 and gaussian.shape == (2000, 2)
    assert np.abs(gaussian.mean(0) - data.mean(0)).max() < 0.08 and np.abs(np.cov(gaussian.T) - np.cov(data.T)).max() < 0.12


def test_the_loss_is_within_2_percent_of_the_best_possible(ns):
    rng = np.random.default_rng(0)
    x, eps = moons.samples(4000, rng), rng.standard_normal((4000, 2))
    excess, best = [], []
    for t in (np.arange(25) + 0.5) / 25:
        rows = torch.tensor(np.column_stack([t * x + (1 - t) * eps, np.full(4000, t)])).float()
        v = exact(rows).numpy()
        with torch.no_grad():
            excess.append(((ns.net(rows).numpy() - v) ** 2).mean())
        best.append(((v - (x - eps)) ** 2).mean())
    assert np.mean(excess) < 0.02 * np.mean(best)


def test_moved_noise_has_the_distribution_of_the_path_at_every_t(ns):
    path, rng = euler(ns.net, ns.noise.numpy(), 20), np.random.default_rng(1)
    for i in (5, 10, 15):
        fresh = i / 20 * moons.samples(2000, rng) + (1 - i / 20) * rng.standard_normal((2000, 2))
        assert abs(distance(path[i], fresh)) < 0.006


def test_a_few_points_end_between_the_moons(ns):
    """More than 3 STD from every center: 7 of 100 here, 0.3 of 100 new data."""
    def far(x):
        return (((x[:, None] - moons.CENTRES) ** 2).sum(2).min(1) > 9 * moons.WIDTH**2).mean()
    assert 0.03 < far(euler(ns.net, ns.noise.numpy(), 20)[-1]) < 0.12 and far(moons.samples(9000, np.random.default_rng(2))) < 0.01


# --- the run


def test_claims_figure_and_page(run):
    assert run.claims() == {"C1": True, "C2": True}
    assert plt.imread(run.folder / f"{NAME}.png")[..., :3].std() > 0.05
    page_agrees(NAME, run)


def test_the_chart_and_c1_are_those_of_the_first_numbers_of_the_seed(run, ns):
    torch.manual_seed(0)
    w = np.stack([weights(x) for x in torch.randn(3, 100_000, 2).double().numpy()])
    w[1] *= w[0]
    w[2] *= w[1]
    m = w.sum(1) ** 2 / (w**2).sum(1)
    assert np.allclose(ns.m, m, rtol=1e-3)
    factor = m[0] / 1e5
    law, dots = (line.get_xydata() for line in ns.chart.lines)
    assert abs(factor - FACTOR) < 0.005 and np.allclose(law, [[0, 1e5], [14, 1e5 * factor**7]], rtol=0.01)
    assert np.allclose(dots[:, 0], [2, 4, 6]) and np.allclose(dots[:, 1], m, rtol=0.01)
    assert all(0.6 < m[k] / (1e5 * FACTOR ** (k + 1)) < 1.6 for k in range(3))
    value, bound = run.numbers()["C1"]
    assert abs(value - 1e5 * factor**7) < 0.01 and bound == 1
    assert [text.get_text() for text in ns.chart.get_legend().get_texts()] == ["predicted", "measured"]
    assert ns.chart.get_title() == f"Guessing fails: at d = 14,\n{1e5 * factor**7:.1f} of 100,000 guesses count"
    assert (ns.chart.get_ylabel(), ns.chart.get_yscale(), ns.chart.get_ylim()) == ("effective sample size (red: below 1)", "log", (0.01, 1e5))
    band = ns.chart.transData.inverted().transform(ns.chart.patches[0].get_window_extent())[:, 1]
    assert np.allclose(sorted(band), [0.01, 1], rtol=0.01)


def test_c2_is_measured_at_the_end_of_the_path_and_one_step_at_the_mean(run, ns):
    (value, bound), noise = run.numbers()["C2"], ns.noise.double().numpy()
    assert noise.shape == (2000, 2) and abs(noise.std() - 1) < 0.05 and ns.x.shape == (2000, 2)
    assert abs(value - distance(euler(ns.net, noise, 20)[-1], ns.x)) < 2e-5 and abs(bound - ns.limit) < 1e-5
    assert (euler(ns.net, noise, 1)[-1] ** 2).mean() < moons.WIDTH**2  # narrower than one of the 64 Gaussians


@pytest.mark.parametrize("steps, stops", [(20, [0, 5, 10, 15, 20]), (3, [0, 1, 2, 2, 3]), (1, [0, 0, 0, 1, 1]), (50, [0, 12, 25, 38, 50])])
def test_slider_shows_the_path_until_it_collapses(ns, steps, stops):
    ns.slider.set_val(steps)
    noise, x = ns.noise.double().numpy(), ns.x.double().numpy()
    path = euler(ns.net, noise, steps)
    for ax, i in zip(ns.panels, stops):
        gray, blue, *orange = ax.lines
        assert [to_hex(line.get_color()) for line in (gray, blue)] == ["#cccccc", "#1f77b4"] and len(orange) == (ax is ns.panels[4])
        assert np.abs(gray.get_xydata() - (i / steps * x + (1 - i / steps) * noise)).max() < 1e-5
        assert np.abs(blue.get_xydata() - path[i]).max() < 1e-4
        assert ax.get_xlabel() == f"t = {i / steps:.2f}" and ax.get_xlim() == ax.get_ylim() == (-3, 3)
    assert to_hex(orange[0].get_color()) == "#ff7f0e" and np.abs(orange[0].get_xydata() - euler(ns.net, noise, 1)[-1]).max() < 1e-4
    end, gaussian = re.findall(r"\d\.\d+", ns.panels[4].get_title())
    assert abs(float(end) - distance(path[-1], x)) < 0.0006 and abs(float(gaussian) - ns.limit) < 0.0006
    word = "follows" if steps >= 20 else "misses"
    assert (float(end) < ns.limit) == (steps >= 20) and f"At d = 2, moved noise (blue) {word} the path" in ns.panels[2].get_title()
    ns.slider.set_val(20)


def test_break_one_step(lesson):
    run = lesson(NAME, "--steps", "1")
    assert run.claims() == {"C1": True, "C2": False}
    assert "--steps 1: " in run.text and run.ns.panels[4].lines[1].get_xydata().std() < 0.2


def test_an_untrained_net_fails(lesson):
    run = lesson(NAME, "--iters", "1", "--steps", "50", "--seed", str(2**32 - 1))  # the largest that are allowed
    assert run.claims() == {"C1": True, "C2": False}


def test_same_seed_same_numbers(lesson):
    a, b, c = lesson(NAME, "--iters", "20"), lesson(NAME, "--iters", "20", "--seed", "0"), lesson(NAME, "--iters", "20", "--seed", "1")
    assert a.text == b.text != c.text


@pytest.mark.parametrize("flags", [
    ("--steps", "0"), ("--steps", "51"), ("--steps", "2.5"), ("--iters", "0"), ("--iters", "9" * 21), ("--seed", "-1"), ("--seed", "9" * 21), ("--copies", "2")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
