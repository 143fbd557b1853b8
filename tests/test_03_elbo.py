"""Lesson 03: weights and gain against sums and integrals in float64, targets, training, the figure, break, bad input."""
import math

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
    (x_0, eps), t = torch.randn(2, 5000, 3), torch.randint(1, 1001, (5000, 1))
    error, a, s = piece.squared_error(net, x_0, eps, t), torch.tensor(np.sqrt(ABAR))[t], torch.tensor(np.sqrt(1 - ABAR))[t]
    assert error.shape == (5000,) and (error - ((eps - 0.5) ** 2).sum(1)).abs().max() < 1e-10
    assert torch.equal(seen["t"], t) and (seen["x_t"] - a * x_0 - s * eps).abs().max() < 1e-10

def literal(point, error):
    """The ELBO at a point: all KLs of (5), for E|eps - eps_hat|^2 at t = 1 .. T."""
    ratio = (1 - ABAR[1:-1]) / (1 - ABAR[2:])
    prior = (ABAR[-1] * (point**2).sum() + 2 * (1 - ABAR[-1])) / 2 - 1 - np.log(1 - ABAR[-1])
    assert abs(prior) < 1e-4
    return -(prior + (ratio - 1 - np.log(ratio)).sum() + np.log(2 * np.pi * BETA[1]) + (W[1:] * error).sum())

def test_elbo_is_the_sum_of_kls_and_lies_below_log_p(float64):
    """For a net k x_t, E|eps - k x_t|^2 has a closed form, and p(x_0) is a Gaussian. With k = sqrt(1 - abar_t), it is N(0, I)."""
    piece, point, a2, s = paste(NAME, "elbo_gain", "C"), np.array([0.8, -0.5]), ABAR[1:], np.sqrt(1 - ABAR[1:])
    error = lambda k: k**2 * a2 * (point**2).sum() + 2 * (k * s - 1) ** 2
    normal = -(point**2).sum() / 2 - np.log(2 * np.pi)
    assert abs(literal(point, error(s)) - normal) < 1e-9  # exact
    gain = piece.elbo_gain(lambda x_t, t: 0.9 * x_t, torch.tensor(point).repeat(400_000, 1))
    assert gain.shape == (1000,) and np.abs((gain.numpy() - W[1:] * (error(s) - error(0.9))).cumsum()).max() < 0.08
    assert abs(normal + gain.sum() - literal(point, error(0.9))) < 0.08  # five standard errors
    off = piece.elbo_gain(lambda x_t, t: 0.9 * x_t + 0.002 * torch.randn_like(x_t) / piece.C[t], torch.tensor(point).repeat(400_000, 1))
    lost = (0.002**2 / BETA[1:]).sum()  # as the slider says of errors in each coordinate of each step's mean
    assert abs(gain.sum() - off.sum() - lost) < 0.12 and 1 < lost < 1.1
    var = 1.0  # of x_T, then of x_{t-1}
    for b, noise in zip(BETA[:0:-1], s[::-1]):
        var = ((1 - b * 0.9 / noise) / np.sqrt(1 - b)) ** 2 * var + b
    assert literal(point, error(0.9)) < -(point**2).sum() / (2 * var) - np.log(2 * np.pi * var)
    for d in (1, 5):  # eps_hat = 0 errs by D, the model N(0, I) by D abar_t
        gain = piece.elbo_gain(lambda x_t, t: 0 * x_t, torch.randn(100_000, d))
        assert abs(gain.sum() / d / (W * (ABAR - 1)).sum() - 1) < 0.1

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
    class X0Net(ns.Net):
        def forward(self, x_t, t):
            abar = torch.tensor(ABAR).float()[t]
            return (x_t - abar.sqrt() * super().forward(x_t, t)) / (1 - abar).sqrt()

    found = {"mean": ns.net}
    with torch.enable_grad():
        for name, kind, weight in (("eps", ns.Net, torch.ones(1000)), ("weighted", ns.Net, ns.WEIGHT), ("x_0", X0Net, torch.ones(1000))):
            torch.manual_seed(0)
            found[name] = ns.train(kind("eps"), weight, 700)
    return found

def on_grids(*errors):
    """The model N(0, I) errs by 2 abar_t, as data have mean 0 and variance 1."""
    return (W * (2 * ABAR - sum(errors))).sum()  # W[0] is 0

def test_gains_of_the_run_are_those_on_grids(ns, nets, summed):
    exact = summed(None)
    for name, (_, gain) in zip(("weighted", "eps", "mean"), ns.gains):
        sums = (W * (2 * ABAR - exact - summed(nets[name]))).cumsum()[1:]
        assert np.abs(gain.cumsum(0).numpy() - sums).max() < 0.15, name  # four standard deviations
    best = math.log(2 * math.pi) + 1 - moons.entropy()
    assert abs(best - ns.best) < 0.012 and ns.low.lines[0].get_label() == f"best possible: {ns.best:.2f}" and set(ns.low.lines[0].get_ydata()) == {ns.best} and 0.01 < best - on_grids(exact) < 0.02

def test_predicting_x0_loses_nats_in_the_first_steps_only(ns, nets, summed):
    """Nats lost to the exact answer: about 8, of which three quarters at t = 1 to 5."""
    lost, grown = W * summed(nets["x_0"]), np.sqrt(ABAR[[1, 1000]] / (1 - ABAR[[1, 1000]]))
    assert 5 < lost.sum() < 25 and lost[:6].sum() > 0.75 * lost.sum() and np.abs(grown - [100, 0.0064]).max() < 0.1

def test_weights_help_at_small_t_and_hurt_in_the_middle(nets, summed):
    """Ratio of squared errors, with the weights and without: about 0.7 for t = 1 to 50, 1.4 for t = 100 to 600."""
    a, b = summed(nets["weighted"]), summed(nets["eps"])
    gain = W * (b - a)
    assert 0.5 < a[1:51].sum() / b[1:51].sum() < 0.85 and 1.1 < a[100:601].sum() / b[100:601].sum() < 2
    assert gain[1:51].sum() > 0.6 * gain.sum() > 0.05

def test_a_net_for_the_mean_solves_equation_10_for_eps(float64):
    piece = paste(NAME, "Net")
    net, x_t, t = piece.Net("mean"), torch.randn(6, 2), torch.tensor([1, 2, 30, 400, 999, 1000])[:, None]
    a, b, s = (torch.tensor(part)[t] for part in (np.sqrt(1 - BETA), BETA, np.sqrt(1 - ABAR)))
    raw = torch.nn.Sequential(*net)(torch.cat([x_t, s], 1))
    assert ((x_t - b / s * net(x_t, t)) / a - raw).abs().max() < 1e-10
    net.predict = "eps"
    assert (net(x_t, t) - raw).abs().max() < 1e-10 and piece.Net("eps").predict == "eps"

def test_training_draws_t_by_weight_and_learns_the_exact_answer(monkeypatch):
    """Data N(0, I): E[eps | x_t] is sqrt(1 - abar_t) x_t. Times without weight are never drawn. The rate falls in a line."""
    piece, seen, rates, step = paste(NAME, "train", "Net"), [], [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    monkeypatch.setitem(piece.train.__globals__, "two_moons", lambda n: torch.randn(n, 2))

    class Spy(piece.Net):
        def forward(self, x_t, t):
            seen.append(torch.as_tensor(t).flatten())
            return super().forward(x_t, t)
    weight = torch.zeros(1000)
    weight[[0, 499, 999]] = torch.tensor([1.0, 2.0, 1.0])
    net, x_t = piece.train(Spy("eps"), weight, 310, batch_size=200, lr=0.02), torch.randn(1000, 2)
    assert (torch.bincount(torch.cat(seen))[[1, 500, 1000]] / 310 / 200 - weight[[0, 499, 999]] / 4).abs().max() < 0.01
    for t in (1, 500, 1000):
        assert (net(x_t, torch.full((1000, 1), t)) - math.sqrt(1 - ABAR[t]) * x_t).square().mean() < 0.03
    assert np.allclose(rates, 0.02 * (1 - np.arange(310) / 310)) and not net(x_t, t=torch.ones(1000, 1).long()).requires_grad

def test_claims_figure_and_page(run):
    assert run.claims() == {"C1": True, "C2": True, "C3": True}
    assert plt.imread(run.folder / f"{NAME}.png")[..., :3].std() > 0.05
    page_agrees(NAME, run)

def shown(ns):
    """Lower chart: label of each net, its total, nats up to t, color. The legend shows all five labels, and the nats at the end of each curve."""
    assert [text.get_text() for text in ns.low.get_legend().get_texts()] == [line.get_label() for line in ns.low.lines] and len(ns.low.lines) == 5
    assert ns.low.lines[1].get_label() == "N(0, I): 0 (red ends below)" and set(ns.low.lines[1].get_ydata()) == {0}
    found = []
    for line in ns.low.lines[2:]:
        label, total = line.get_label().rsplit(": ", 1)
        assert np.array_equal(line.get_xdata(), np.arange(1, 1001)) and total == f"{line.get_ydata()[-1]:.2f}"
        found.append((label, np.asarray(line.get_ydata()), next(c for c in ("C3", "C0", "C1") if same_color(line.get_color(), c))))
    return found

def test_claims_and_charts_show_the_gains(run, ns):
    weighted, eps, mean = gains = np.stack([gain for _, gain in ns.gains]).astype(float)
    for name, pair in {"C1": (eps.sum(), 0), "C2": (weighted.sum(), eps.sum()), "C3": (mean.sum(), 0)}.items():
        assert np.abs(np.subtract(run.numbers()[name], pair)).max() < 1e-3
    kinds = [("eps", "ELBO", "C0"), ("eps", "L_simple", "C1"), ("mean", "ELBO", "C3")]
    for (target, loss, color), gain, (label, nats, found) in zip(kinds, gains, shown(ns)):
        assert label == f"predicts {target}, loss {loss}" and found == color and np.abs(nats - np.cumsum(gain)).max() < 1e-4
    assert mean.sum() < -0.5 < 0.4 < eps.sum()
    line, flat = ns.top.lines  # as shares of their sum: w_t, and 1 / T for each t
    assert np.array_equal(line.get_xdata(), np.arange(1, 1001)) and np.abs(line.get_ydata() / 1000 / (W[1:] / W.sum()) - 1).max() < 1e-3
    assert (np.asarray(flat.get_ydata()) == 1).all() and [ns.top.get_xscale(), ns.top.get_yscale(), ns.low.get_xscale(), ns.low.get_yscale()] == ["log", "log", "log", "linear"]
    assert same_color(line.get_color(), "C0") and same_color(flat.get_color(), "C1")  # the colors of both losses, in both charts

def test_the_mean_loses_without_the_weights_too(ns, capsys):
    """So the division is to blame, and not how seldom the weights draw some t. Here, the first steps lose most."""
    net = ns.train(ns.Net("mean"), torch.ones(1000), 700)
    gain = ns.elbo_gain(net, ns.two_moons(200_000))
    assert -5 < gain.sum() < -0.8 and gain[:10].sum() < -0.3 and -1 < ns.gains[2][1][:10].sum() < -0.03

def test_slider_takes_nats_from_every_net(ns):
    before = [nats for _, nats, _ in shown(ns)]
    for error in (0.003, 0.001, 0):
        ns.slider.set_val(error)
        lost = np.cumsum([2 * error**2 / (2 * beta) for beta in BETA[1:]])
        for k, (old, (label, nats, color)) in enumerate(zip(before, shown(ns))):
            assert np.abs(old - nats - lost).max() < 1e-4 and color == ("C3" if nats[-1] < 0 else f"C{k}")
    assert (ns.slider.valmin, ns.slider.valmax, ns.slider.valinit) == (0, 0.003, 0) and ns.low.get_ylim() == (-3, 1.5)

def test_break(lesson):
    run = lesson(NAME, "--predict", "mean")
    assert run.claims()["C1"] is False and "Predicting mean" in run.text
    assert [(label, color) for label, _, color in shown(run.ns)] == [(f"predicts mean, loss {loss}", "C3") for loss in ("ELBO", "L_simple", "ELBO")]
    assert torch.equal(run.ns.gains[0][1], run.ns.gains[2][1])

def test_same_seed_same_numbers(lesson, first_loss, limits):
    limits(NAME)
    a, b = lesson(NAME, "--iters", "20"), lesson(NAME, "--iters", "20", "--seed", "0")
    assert a.text == b.text and first_loss(NAME, "--iters", "20", "--seed", "4294967295") not in a.text and not a.claims()["C1"]
    assert {color for *_, color in shown(a.ns)} == {"C3"}

@pytest.mark.parametrize("flags", [("--iters", "0"), ("--iters", "9" * 21), ("--seed", "-1"), ("--seed", "9" * 21), ("--predict", "x0")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
