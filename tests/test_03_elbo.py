"""Lesson 03: weights and gain against sums and integrals in float64, targets, training, the figure, break, bad input."""
import math
import re

import matplotlib.pyplot as plt
import moons
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste
from matplotlib.colors import same_color
from torch.distributions import Normal, kl_divergence

NAME = "03_elbo"
BETA = np.concatenate([[0], np.linspace(1e-4, 0.02, 1000)])
ABAR = np.cumprod(1 - BETA)
W = np.concatenate([[0], BETA[1:] / (2 * (1 - BETA[1:]) * (1 - ABAR[1:]))])  # equation 12, if the variance is beta


@pytest.fixture
def float64():
    """Pieces that are pasted next are in float64."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


@pytest.fixture(scope="module")
def ns(run):
    return run.ns


def posterior(x_t, x_0, t):
    """Mean and variance of q(x_{t-1} | x_t, x_0), t (n,) at least 2, as a product of two Gaussians."""
    b, before = BETA[t, None], ABAR[t - 1, None]
    precision = (1 - b) / b + 1 / (1 - before)
    return (np.sqrt(1 - b) * x_t / b + np.sqrt(before) * x_0 / (1 - before)) / precision, 1 / precision


# --- the derivation


def test_c_and_weights_are_the_papers(float64):
    piece = paste(NAME, "C", "WEIGHT", "ABAR")
    assert np.abs(piece.WEIGHT.numpy() / W[1:] - 1).max() < 1e-10 and np.abs(piece.ABAR.numpy() - ABAR).max() < 1e-12
    c = piece.C[1:].numpy()
    assert np.abs(c * np.sqrt((1 - BETA[1:]) * (1 - ABAR[1:])) / BETA[1:] - 1).max() < 1e-10
    assert 0.006 < c.min() < 0.0065 and 0.0195 < c.max() < 0.0205 and abs(1 / c.max() - 50) < 1 and abs(1 / c.min() - 160) < 2


def test_each_kl_is_a_constant_plus_w_times_the_squared_error(float64):
    """torch's own KL, t = 2 .. 1000, of Bayes' posterior and the model's step; at t = 1, -log p(x_0 | x_1), and (10) is x_0."""
    piece = paste(NAME, "C", "WEIGHT", "ALPHA", "BETA")
    (x_0, eps, guess), t = np.random.default_rng(0).standard_normal((3, 1000, 2)), np.arange(1, 1001)
    x_t = np.sqrt(ABAR[t, None]) * x_0 + np.sqrt(1 - ABAR[t, None]) * eps
    c, root, b = (piece.C[t, None], piece.ALPHA[t, None].sqrt(), piece.BETA[t, None])
    model, true = torch.tensor(x_t) / root - c * torch.tensor(guess), torch.tensor(x_t) / root - c * torch.tensor(eps)
    mean, var = (torch.tensor(part) for part in posterior(x_t[1:], x_0[1:], t[1:]))
    assert (true[1:] - mean).abs().max() < 1e-10 and (true[0] - torch.tensor(x_0[0])).abs().max() < 1e-10
    kl = kl_divergence(Normal(mean, var.sqrt()), Normal(model[1:], b[1:].sqrt()))
    ratio, squared = var / b[1:], torch.tensor((guess - eps) ** 2)
    assert (kl - (ratio - 1 - ratio.log()) / 2 - piece.WEIGHT[1:, None] * squared[1:]).abs().max() < 1e-10
    first = -Normal(model[0], b[0].sqrt()).log_prob(torch.tensor(x_0[0]))
    assert (first - (2 * math.pi * b[0]).log() / 2 - piece.WEIGHT[0] * squared[0]).abs().max() < 1e-10


def test_squared_error_noises_each_row_by_its_own_t_and_sums(float64):
    piece, seen = paste(NAME, "squared_error"), {}
    net = lambda x_t, t: seen.update(x_t=x_t, t=t) or torch.full_like(x_t, 0.5)
    x_0 = torch.randn(50_000, 3)
    error, t = piece.squared_error(net, x_0, torch.arange(1000) % 7 / 3), seen["t"]
    eps = (seen["x_t"] - torch.tensor(np.sqrt(ABAR))[t] * x_0) / torch.tensor(np.sqrt(1 - ABAR))[t]
    assert t.shape == (50_000, 1) and (error - ((eps - 0.5) ** 2).sum(1)).abs().max() < 1e-6
    assert torch.bincount((t[:, 0] - 1) % 7, minlength=7).div(50_000).sub(torch.arange(7) / 21).abs().max() < 0.012
    assert eps.mean(0).abs().max() < 0.02 and (eps.T @ eps / 50_000 - torch.eye(3)).abs().max() < 0.03


def literal(point, error):
    """The ELBO at a point: all KLs of (5), for E|eps - eps_hat|^2 at t = 1 .. T."""
    ratio = (1 - ABAR[1:-1]) / (1 - ABAR[2:])
    prior = (ABAR[-1] * (point**2).sum() + 2 * (1 - ABAR[-1])) / 2 - 1 - np.log(1 - ABAR[-1])
    assert abs(prior) < 1e-4
    return -(prior + (ratio - 1 - np.log(ratio)).sum() + np.log(2 * np.pi * BETA[1]) + (W[1:] * error).sum())


def test_elbo_is_the_sum_of_kls_and_lies_below_log_p(float64):
    """For a net k x_t, E|eps - k x_t|^2 has a closed form, and p(x_0) is a Gaussian. With k = sqrt(1 - abar_t), it is N(0, I)."""
    piece, point, a2, s = paste(NAME, "elbo_gain"), np.array([0.8, -0.5]), ABAR[1:], np.sqrt(1 - ABAR[1:])
    error = lambda k: k**2 * a2 * (point**2).sum() + 2 * (k * s - 1) ** 2
    normal = -(point**2).sum() / 2 - np.log(2 * np.pi)
    assert abs(literal(point, error(s)) - normal) < 1e-9  # exact
    gain = piece.elbo_gain(lambda x_t, t: 0.9 * x_t, torch.tensor(point).repeat(400_001, 1))
    assert gain.shape == () and abs(normal + gain - literal(point, error(0.9))) < 0.14  # five standard errors
    var = 1.0  # of x_T, then of x_{t-1}
    for b, noise in zip(BETA[:0:-1], s[::-1]):
        var = ((1 - b * 0.9 / noise) / np.sqrt(1 - b)) ** 2 * var + b
    assert literal(point, error(0.9)) < -(point**2).sum() / (2 * var) - np.log(2 * np.pi * var)
    for d in (1, 5):  # eps_hat = 0 errs by D, the model N(0, I) by D abar_t
        gain = piece.elbo_gain(lambda x_t, t: 0 * x_t, torch.randn(100_000, d))
        assert abs(gain / d / (W * (ABAR - 1)).sum() - 1) < 0.1


@pytest.fixture(scope="module")
def summed():
    """summed(net): mean of |eps_hat - E[eps | x_t]|^2 at t = 0 .. T, on grids; summed(None): that of |eps - E[eps | x_t]|^2."""
    rows = []
    for t in range(1, 1001):
        a, s = math.sqrt(ABAR[t]), math.sqrt(1 - ABAR[t])
        width = math.hypot(a * moons.WIDTH, s)
        xy, area = moons.grid(2.2 * a + 5 * width, width)
        p, _, best = moons.parts(xy, a, s)
        keep = p * area > 1e-12
        rows.append((np.full(keep.sum(), t), (p * area)[keep], xy[keep], best[keep]))
    t, mass, xy, best = [np.concatenate(part) for part in zip(*rows)]

    @torch.no_grad()
    def errors(net):
        if net is None:
            return np.bincount(t, mass * (2 - (best**2).sum(1)))
        parts = zip(torch.tensor(xy).float().split(50_000), torch.tensor(t).split(50_000))
        off = torch.cat([net(x_t, k[:, None]) for x_t, k in parts]).double().numpy() - best
        return np.bincount(t, mass * (off**2).sum(1))
    return errors


@pytest.fixture(scope="module")
def nets(ns):
    """The run's three nets, two of them trained once more, and the exercise's for x_0."""
    class X0Net(ns.EpsNet):
        def forward(self, x_t, t):
            abar = torch.tensor(ABAR).float()[t]
            return (x_t - abar.sqrt() * super().forward(x_t, t)) / (1 - abar).sqrt()

    found = {"mean": ns.net}
    with torch.enable_grad():
        for name, kind, weight in (("eps", ns.EpsNet, torch.ones(1000)), ("weighted", ns.EpsNet, ns.WEIGHT), ("x_0", X0Net, torch.ones(1000))):
            torch.manual_seed(0)
            found[name] = ns.train(kind(), weight, 700)
    return found


def on_grids(*errors):
    """The model N(0, I) errs by 2 abar_t, as data have mean 0 and variance 1."""
    return (W * (2 * ABAR - sum(errors))).sum()  # W[0] is 0


def test_gains_of_the_run_are_those_on_grids(ns, nets, summed):
    for name, value in zip(("eps", "weighted", "mean"), ns.gains):
        assert abs(on_grids(summed(None), summed(nets[name])) - value) < 0.2, name  # four standard deviations
    best = math.log(2 * math.pi) + 1 - moons.entropy()
    assert abs(best - float(re.search(r"at most (\S+)\. ", ns.fig._suptitle.get_text())[1])) < 0.005
    assert 0.01 < best - on_grids(summed(None)) < 0.02


def near(x):
    return (torch.cdist(x, torch.tensor(moons.CENTRES).float()).amin(1) < 4 * moons.WIDTH).float().mean()


def test_predicting_x0_loses_nats_in_the_first_steps_only(ns, nets, summed):
    """Nats lost to the exact answer: about 8, of which three quarters at t = 1 to 5. Its samples are as good as those of eps."""
    lost, grown, noise = W * summed(nets["x_0"]), np.sqrt(ABAR[[1, 1000]] / (1 - ABAR[[1, 1000]])), torch.randn(2000, 2)
    assert 5 < lost.sum() < 25 and lost[:6].sum() > 0.75 * lost.sum() and np.abs(grown - [100, 0.0064]).max() < 0.1
    assert near(ns.sample(nets["x_0"], noise)[0]) > 0.88 and near(ns.paths[0][0]) > 0.85 and near(noise) < 0.7


def test_weights_help_at_small_t_and_hurt_in_the_middle(nets, summed):
    """Ratio of squared errors, with the weights and without: about 0.7 for t = 1 to 50, 1.4 for t = 100 to 600."""
    a, b = summed(nets["weighted"]), summed(nets["eps"])
    gain = W * (b - a)
    assert 0.5 < a[1:51].sum() / b[1:51].sum() < 0.85 and 1.1 < a[100:601].sum() / b[100:601].sum() < 2
    assert gain[1:51].sum() > 0.6 * gain.sum() > 0.05


def test_a_net_for_the_mean_solves_equation_10_for_eps(float64):
    piece = paste(NAME, "MeanNet", "EpsNet")
    net, x_t, t = piece.MeanNet(), torch.randn(6, 2), torch.tensor([1, 2, 30, 400, 999, 1000])[:, None]
    a, b, s = (torch.tensor(part)[t] for part in (np.sqrt(1 - BETA), BETA, np.sqrt(1 - ABAR)))
    raw = torch.nn.Sequential(*net)(torch.cat([x_t, s], 1))
    assert ((x_t - b / s * net(x_t, t)) / a - raw).abs().max() < 1e-10
    assert (piece.EpsNet.forward(net, x_t, t) - raw).abs().max() < 1e-10


def test_sample_steps_to_the_mean_of_bayes_and_adds_noise(float64, monkeypatch):
    """With the net that knows x_0, and z = 1: the posterior mean plus sqrt(beta_t), down to x_0 + sqrt(beta_1)."""
    piece = paste(NAME, "sample")
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    x_0, noise, times = torch.tensor([[0.3, -1.1], [2.0, 0.4]]), torch.randn(2, 2), []
    net = lambda x_t, t: times.append(t) or (x_t - torch.tensor(ABAR)[t].sqrt() * x_0) / (1 - torch.tensor(ABAR)[t]).sqrt()
    path = piece.sample(net, noise)
    assert torch.equal(path[1000], noise) and (path[0] - x_0 - math.sqrt(BETA[1])).abs().max() < 1e-8
    assert torch.equal(torch.stack(times), torch.arange(1000, 0, -1)[:, None, None].expand(-1, 2, 1))
    for t in range(2, 1001, 37):
        mean, _ = posterior(path[t].numpy(), x_0.numpy(), np.full(2, t))
        assert np.abs(path[t - 1].numpy() - mean - math.sqrt(BETA[t])).max() < 1e-8


def test_training_draws_t_by_weight_and_learns_the_exact_answer(monkeypatch):
    """Data N(0, I): E[eps | x_t] is sqrt(1 - abar_t) x_t. Times without weight are never drawn. The rate falls in a line."""
    piece, seen, rates, step = paste(NAME, "train", "EpsNet"), [], [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    monkeypatch.setitem(piece.train.__globals__, "two_moons", lambda n: torch.randn(n, 2))

    class Spy(piece.EpsNet):
        def forward(self, x_t, t):
            seen.append(torch.as_tensor(t).flatten())
            return super().forward(x_t, t)
    weight = torch.zeros(1000)
    weight[[0, 499, 999]] = torch.tensor([1.0, 2.0, 1.0])
    net, x_t = piece.train(Spy(), weight, 310, batch_size=200, lr=0.02), torch.randn(1000, 2)
    assert (torch.bincount(torch.cat(seen))[[1, 500, 1000]] / 310 / 200 - weight[[0, 499, 999]] / 4).abs().max() < 0.01
    for t in (1, 500, 1000):
        assert (net(x_t, torch.full((1000, 1), t)) - math.sqrt(1 - ABAR[t]) * x_t).square().mean() < 0.03
    assert np.allclose(rates, 0.02 * (1 - np.arange(310) / 310)) and not net(x_t, t=torch.ones(1000, 1).long()).requires_grad


# --- the run


def test_claims_figure_and_page(run):
    assert run.claims() == {"C1": True, "C2": True, "C3": True}
    assert plt.imread(run.folder / f"{NAME}.png")[..., :3].std() > 0.05
    page_agrees(NAME, run)


def test_claims_and_titles_show_the_gains(run, ns):
    eps, weighted, mean = gains = [gain.item() for gain in ns.gains]
    for name, pair in {"C1": (eps, 0), "C2": (weighted, eps), "C3": (mean, 0)}.items():
        assert np.abs(np.subtract(run.numbers()[name], pair)).max() < 1e-3
    words = [("eps", "L_simple"), ("eps", "ELBO"), ("the mean", "ELBO")]
    assert [ax.get_title() for ax in ns.axes] == [f"Predicts {a}, loss {b}: {gain:+.2f} nats" for (a, b), gain in zip(words, gains)]


def test_slider_shows_the_samples_on_their_way(ns):
    for t in (0, 1000, 300, 0):
        ns.slider.set_val(t)
        for ax, path, gain in zip(ns.axes, ns.paths, ns.gains):
            gray, dots = ax.lines
            assert np.array_equal(dots.get_xydata(), path[t].numpy(), equal_nan=True) and path.shape == (1001, 400, 2)
            assert same_color(dots.get_color(), "tab:red" if gain < 0 else "tab:blue") and near(torch.tensor(gray.get_xydata()).float()) > 0.99
    assert (ns.slider.valmin, ns.slider.valmax, ns.slider.valinit) == (0, 1000, 0)
    assert min(near(path[0]) for path in ns.paths[:2]) > near(ns.paths[2][0].nan_to_num(99)) + 0.1


def test_break(lesson):
    run = lesson(NAME, "--iters", "20")
    assert run.claims()["C1"] is False and all(same_color(ax.lines[1].get_color(), "tab:red") for ax in run.ns.axes)


def test_same_seed_same_numbers(lesson, first_loss, limits):
    limits(NAME)
    a, b = lesson(NAME, "--iters", "20"), lesson(NAME, "--iters", "20", "--seed", "0")
    assert a.text == b.text and first_loss(NAME, "--iters", "20", "--seed", "4294967295") not in a.text and not a.claims()["C1"]


@pytest.mark.parametrize("flags", [("--iters", "0"), ("--iters", "9" * 21), ("--seed", "-1"), ("--seed", "9" * 21)])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
