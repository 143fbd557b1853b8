"""Lesson 04: the posterior and the sampler against other formulas, the three variances, training, the figure, break."""
import math
import re

import matplotlib.pyplot as plt
import moons
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste

NAME = "04_ancestral"
ABAR = torch.tensor(np.cumprod(1 - np.concatenate([[0], np.linspace(1e-4, 0.02, 1000)])))[:, None]  # in float64
PAIRS = [(1000, 0), (1000, 500), (667, 333), (300, 200), (100, 50), (100, 0), (2, 1), (1, 0), (1000, 999)]  # t, u
VARIANCES = ["zero", "beta-tilde", "beta"]

@pytest.fixture(scope="module")
def pieces():
    return paste(NAME, "ABAR", "train", "posterior", "sample", "energy_distance", "two_moons")

@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)

def of_points(centers, width):
    """E[eps | xt], called as net(xt, t / 1000), for data that are Gaussians of one width around centers (k, D)."""
    centers = torch.as_tensor(np.asarray(centers, float))

    def net(xt, t):
        a, s = ABAR[round(t * 1000)].sqrt(), (1 - ABAR[round(t * 1000)]).sqrt()
        var = (a * width) ** 2 + s**2
        share = (-torch.cdist(xt.double(), a * centers) ** 2 / (2 * var)).softmax(1)
        return (s / var * (xt.double() - a * share @ centers)).to(xt)
    return net

def joined(net):
    return lambda rows: net(rows[:, :-1], rows[0, -1].item())  # as the lesson calls a net: xt and t / T in one tensor

def by_hand(net, x, abar, num_steps, variance):
    """Algorithm 2 as Ho et al. write it, with eps instead of x_hat, in float64: (xt - beta / s eps) / sqrt(1 - beta)."""
    T = len(abar) - 1
    times = [round(T - T * i / num_steps) for i in range(num_steps + 1)]
    for t, u in zip(times, times[1:]):
        now, earlier = float(abar[t]), float(abar[u])
        beta = 1 - now / earlier
        var = {"beta-tilde": beta * (1 - earlier) / (1 - now), "beta": beta, "zero": 0}[variance]
        mean = (x.double() - beta / math.sqrt(1 - now) * net(x, t / T).double()) / math.sqrt(1 - beta)
        x = (mean + math.sqrt(var) * torch.randn_like(x)).to(x)  # as the lesson draws them
    return mean.to(x)

def energy(x, y):
    def total(p, q):
        return sum((p.double() - row.double()).norm(dim=1).sum().item() for row in q)
    n, m = len(x), len(y)
    return 2 * total(x, y) / (n * m) - total(x, x) / (n * (n - 1)) - total(y, y) / (m * (m - 1))

def weights_of(pieces, t, u):
    """The factors of x and of xt in the posterior mean, its variance, and beta."""
    one, beta = torch.ones(1, 1).double(), 1 - ABAR[t] / ABAR[u]
    on_x, var = pieces.posterior(0 * one, one, beta, ABAR[u])
    return on_x.item(), pieces.posterior(one, 0 * one, beta, ABAR[u])[0].item(), var.item(), beta.item()

def test_schedule_and_data_are_those_of_the_course(pieces):
    assert pieces.ABAR.shape == (1001,) and (pieces.ABAR.double() - ABAR[:, 0]).abs().max() < 1e-6 and pieces.ABAR[0] == 1
    x = pieces.two_moons(200_000).double()
    cov = torch.tensor(moons.CENTRES.T @ moons.CENTRES / 64 + moons.WIDTH**2 * np.eye(2))
    assert x.mean(0).abs().max() < 0.012 and (x.T @ x / len(x) - cov).abs().max() < 0.02
    nearest = torch.cdist(x[:4000], torch.tensor(moons.CENTRES)).amin(1)
    assert abs(nearest.square().mean().sqrt() - 0.1345) < 0.006  # as in a numpy draw, also of this width
    assert abs(pieces.STD - moons.WIDTH) < 1e-9 and np.abs(np.sort(pieces.CENTERS, 0) - np.sort(moons.CENTRES, 0)).max() < 1e-6

def test_equation_7_and_why_beta_is_exact_for_n01(pieces):
    """If Var(x | xt) = 1 - abar, the total variance is beta, and the mean of x_u is sqrt(1 - beta) xt, the guess of the bound."""
    abar = ABAR[:, 0].numpy()
    for t, u in PAIRS:  # u = 0 too, where the posterior is the point x
        on_x, on_xt, var, beta = weights_of(pieces, t, u)
        assert abs(on_x - math.sqrt(abar[u]) * beta / (1 - abar[t])) < 1e-10
        assert abs(on_xt - math.sqrt(1 - beta) * (1 - abar[u]) / (1 - abar[t])) < 1e-10
        assert abs(var - beta * (1 - abar[u]) / (1 - abar[t])) < 1e-10
        assert abs(var + on_x**2 * (1 - abar[t]) - beta) < 1e-10
        assert abs(on_xt + on_x * math.sqrt(abar[t]) - math.sqrt(1 - beta)) < 1e-10
    assert [len(part.T) for part in pieces.posterior(torch.ones(4, 3), torch.ones(4, 3), ABAR[2], ABAR[1])] == [3, 1]

def test_on_the_moons_the_best_variance_is_nearer_to_beta_at_every_t():
    """E Var(x | xt) / (1 - abar), summed on a grid: 0 would be beta-tilde, 1 is beta. The lowest is 0.70."""
    second, found = (moons.CENTRES**2).sum() / 64 + 2 * moons.WIDTH**2, []
    for t in [1, 3, 10, 20, 40, 64, 90, 140, 250, 500, 1000]:
        a, s = ABAR[t].item() ** 0.5, (1 - ABAR[t].item()) ** 0.5
        xy, area = moons.grid(1.9 * a + 6 * s + 0.8, 0.06 if t < 200 else 0.12)
        p, x_hat, _ = moons.parts(xy, a, s)
        found.append((second - (p[:, None] * np.nan_to_num(x_hat) ** 2).sum() * area) / (2 * s**2))
    assert abs(min(found) - 0.697) < 0.004 and max(found) < 1.001  # the data's scale has four digits

@pytest.mark.parametrize("variance", VARIANCES)
def test_sample_is_algorithm_2(pieces, variance):
    """Any net, any dimension, any schedule, against the formula with eps, with the same noise."""
    def net(xt, t):
        return torch.sin(2 * xt) * (1 + t) - t * xt.roll(1, 1)
    for abar, num_steps in [(ABAR, 1), (ABAR, 7), (ABAR, 100), (ABAR[:21] ** 9, 20)]:
        x = torch.randn(50, 3).double()
        torch.manual_seed(1)
        wanted = by_hand(net, x, abar, num_steps, variance)
        torch.manual_seed(1)
        before = x.clone()
        found = pieces.sample(joined(net), x, abar, num_steps, variance)
        assert (found - wanted).abs().max() < 1e-8 * wanted.abs().max() and torch.equal(x, before)

def test_each_step_is_one_forward_pass_and_fresh_noise_from_1_to_T(pieces):
    for num_steps in (1, 3, 1000):
        calls = []
        a, b = (pieces.sample(joined(lambda xt, t: calls.append(t) or xt), torch.ones(4, 2), ABAR.float(), num_steps, "beta") for _ in "ab")
        times = np.round(np.linspace(1000, 0, num_steps + 1))[:-1] / 1000
        assert np.allclose(calls, [*times, *times]) and not a.requires_grad
        assert torch.equal(a, b) == (num_steps == 1)  # no noise in the last step
    for steps in (0, 21):
        with pytest.raises(AssertionError, match=f"1 to 20, not {steps}"):
            pieces.sample(None, torch.ones(4, 2), ABAR[:21], steps, "beta")

def test_on_n01_beta_keeps_the_variance_and_the_others_lose_it(pieces):
    """beta: 1 minus the noise that the last step leaves out. beta-tilde: 1 - sum (abar_u - abar_t)^2 / (1 - abar_t)."""
    def net(xt, t):
        return (1 - abar[round(t * 1000)].item()) ** 0.5 * xt
    for num_steps, left in [(10, 0.548), (1000, 0.991)]:
        x, abar = torch.randn(10_000, 2), ABAR[:, 0]
        times = np.round(np.linspace(1000, 0, num_steps + 1)).astype(int)
        lost = sum((abar[u] - abar[t]) ** 2 / (1 - abar[t]) for t, u in zip(times, times[1:]))
        assert abs(1 - lost - left) < 0.0006
        for variance, wanted in [("beta-tilde", left), ("beta", abar[times[-2]].item()), ("zero", abar[-1].item())]:
            assert abs(pieces.sample(joined(net), x, ABAR.float(), num_steps, variance).var().item() / wanted - 1) < 0.05
    assert abs(abar[-1].sqrt() - 0.00635) < 1e-4

def test_exact_answers_in_few_steps_and_c1_of_real_data(pieces):
    """0.16 in 3 steps with beta, 0.009 in 10, and 0.027 with beta-tilde."""
    trials = [[pieces.two_moons(2000) for _ in range(3)] for _ in range(15)]
    gaps = [pieces.energy_distance(x, real) - pieces.energy_distance(y, real) for x, y, real in trials]  # C1 of real data
    assert max(gaps) < 0.006 and abs(np.mean(gaps)) < 0.001 and 0.001 < np.std(gaps) < 0.0022
    net, real = of_points(moons.CENTRES, moons.WIDTH), pieces.two_moons(4000)
    for num_steps, variance, wanted, room in [(3, "beta", 0.16, 0.02), (10, "beta", 0.009, 0.004), (10, "beta-tilde", 0.027, 0.006)]:
        samples = pieces.sample(joined(net), torch.randn(4000, 2), ABAR.float(), num_steps, variance)
        assert abs(pieces.energy_distance(samples, real) - wanted) < room, (num_steps, variance)

def test_the_learning_rate_falls_in_a_line(pieces, monkeypatch):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    drawn, randint = [], torch.randint
    monkeypatch.setattr(torch, "randint", lambda *shape: drawn.append(shape) or randint(*shape))
    pieces.train(ABAR[:11, 0].float(), 201, batch_size=8, lr=0.1)
    assert np.allclose(rates, 0.1 * (1 - np.arange(201) / 201)) and (1, 11, (8, 1)) in drawn

def test_the_net_is_near_the_mean_of_eps(run):
    """Its loss is at most 6% above the lowest, on new points at random t."""
    rng = np.random.default_rng(0)
    t, x, eps = rng.integers(1, 1001, (20_000, 1)), moons.samples(20_000, rng), rng.standard_normal((20_000, 2))
    a, s = np.sqrt(ABAR.numpy()[t[:, 0]]), np.sqrt(1 - ABAR.numpy()[t[:, 0]])
    exact = moons.parts(a * x + s * eps, a, s)[2]
    with torch.no_grad():
        found = run.ns.net(torch.tensor(np.hstack([a * x + s * eps, t / 1000])).float()).double().numpy()
    assert 1 < ((found - eps) ** 2).mean() / ((exact - eps) ** 2).mean() < 1.06 and isinstance(run.ns.net, torch.nn.Module)

def test_claims_figure_and_page(run):
    assert run.claims() == {"C1": True, "C2": True, "C3": True} and [n[1] for n in run.numbers().values()][:2] == [0.006, 1.25]
    page_agrees(NAME, run)

def grid(ns):
    return np.array([[ns.panels[name] for name in row] for row in ("abc", "def", "ghi")])

def cloud(ax, number=1):
    return torch.tensor(np.asarray(ax.lines[number].get_xydata()))

def shown(ax, limit):
    """A panel's steps, and its distance divided by the noise's: the words and the color are checked against its two clouds."""
    steps, distance = re.fullmatch(r"(\d+) steps: distance (\d+\.\d\d)", ax.get_xlabel()).groups()
    found = energy(cloud(ax), cloud(ax, 0)) / limit
    assert abs(max(found, 0) - float(distance)) < 0.008 + 0.001 * found and ax.lines[1].get_color() == f"tab:{'blue' if found < 1 else 'red'}"
    return int(steps), found

def test_the_top_panel_is_bayes_rule_on_a_grid(run):
    step, x_u = run.ns.panels["s"], np.linspace(-4, 6, 501)  # x = 2, xt = -1, abar_prev = 0.49, beta = 0.36
    prior = np.exp(-(x_u - 0.7 * 2) ** 2 / (2 * 0.51)) / math.sqrt(2 * math.pi * 0.51)
    likelihood = np.exp(-(-1 - 0.8 * x_u) ** 2 / (2 * 0.36)) / math.sqrt(2 * math.pi * 0.36)
    curves = [prior, likelihood * 0.8, prior * likelihood / ((prior * likelihood).sum() * 0.02)]  # of area 1 over x_u
    for line, curve in zip(step.lines, curves, strict=True):
        assert np.abs(line.get_xydata() - np.stack([x_u, curve], 1)).max() < 1e-4
    labels = [text.get_text() for text in step.get_legend().get_texts()]
    assert [label.split()[0] for label in labels] == ["prior", "likelihood", "posterior"] and "$x_t=-1$" in step.get_title() and "$x=2$" in step.get_title()

def test_all_printed_numbers_and_panels_are_replayed(pieces, lesson):
    """A net that is hardly trained, so that the numbers are large: the whole run once more, with the formula by hand."""
    run, ns = lesson(NAME, "--iters", "20"), lesson(NAME, "--iters", "20").ns
    torch.manual_seed(0)
    net = pieces.train(pieces.ABAR, 20)

    def predict(xt, t):
        with torch.no_grad():
            return net(torch.hstack([xt, torch.full((len(xt), 1), t)]))
    noise, real = torch.randn(2000, 2), pieces.two_moons(2000)
    hundred, thousand, beta, tilde = [energy(by_hand(predict, noise, ns.ABAR, *how), real) for how in [
        (100, "beta"), (1000, "beta"), (10, "beta"), (10, "beta-tilde")]]
    for row, num_steps in zip(grid(ns), (3, 10, 100)):
        for ax, variance in zip(row, VARIANCES):
            wanted = by_hand(predict, noise, ns.ABAR, num_steps, variance)
            assert torch.equal(cloud(ax, 0).float(), real) and shown(ax, ns.limit)[0] == num_steps
            assert num_steps > 3 or ax.get_title().split(":")[0] == variance
            assert (cloud(ax) - wanted).abs().max() < 0.01 * wanted.abs().max(), (num_steps, variance)
    limit, expected = energy(noise, real), {"C1": hundred - thousand, "C2": tilde / beta, "C3": thousand}
    assert thousand > limit and max(abs(number - limit) for number in (ns.limit, run.numbers()["C3"][1])) < 1e-4
    for name, (value, bound) in run.numbers().items():
        assert abs(value - expected[name]) < 0.01 * abs(expected[name]) + 3e-4, (name, value, expected[name])

def test_slider_moves_the_last_row_until_it_breaks(run):
    ns, axes = run.ns, grid(run.ns)
    fixed = [shown(ax, ns.limit) for ax in axes[:2].flat]
    for value in (4, 1, 50):
        torch.manual_seed(5)
        ns.slider.set_val(value)
        torch.manual_seed(5)
        for ax, variance in zip(axes[2], VARIANCES):
            assert shown(ax, ns.limit)[0] == value and ax.get_xlim() == (-3, 3) and ax.get_ylim() == (-1.7, 1.7)
            wanted = by_hand(lambda xt, t: ns.net(torch.hstack([xt, torch.full((2000, 1), t)])).detach(), ns.noise,
                             ns.ABAR, value, variance)
            assert (cloud(ax) - wanted).abs().max() < 0.02
        assert [shown(ax, ns.limit)[1] > 1 for ax in axes[2]] == ([True] * 3 if value < 5 else [True, False, False])
    ns.slider.set_val(100)
    assert [shown(ax, ns.limit) for ax in axes[:2].flat] == fixed and shown(axes[2, 0], ns.limit)[0] == 100
    assert fixed[0][1] > fixed[1][1] > fixed[2][1] and fixed[3][1] > fixed[4][1] > fixed[5][1]  # beta is best

def test_break_all_samples_end_in_one_small_spot(lesson):
    run = lesson(NAME, "--var", "zero", "--iters", "300")
    assert run.claims() == {"C1": False, "C2": True, "C3": True} and run.numbers()["C1"][0] > 0.5
    assert "100 steps with zero match" in run.text and cloud(grid(run.ns)[2, 0]).std(0).max() < 0.15

def test_same_seed_same_numbers_and_untrained_nets_fail(lesson, first_loss, limits):
    limits(NAME)
    a, b = (lesson(NAME, "--iters", "20", *seed) for seed in ([], ["--seed", "0"]))
    assert a.text == b.text and not a.claims()["C2"] and not a.claims()["C3"]
    assert first_loss(NAME, "--iters", "20", "--seed", "4294967295") not in a.text

@pytest.mark.parametrize("flags", [
    ("--var", "gamma"), ("--iters", "0"), ("--iters", "9" * 21), ("--iters", "1.5"), ("--seed", "-1"), ("--seed", "9" * 21)])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
