"""03: the collapse, the NELBO and the read-out of the nets against independent computations."""
import math

import numpy as np
import pytest
import torch
from matplotlib.image import imread

NAME = "03_elbo"


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


def moons64():
    """The mixture once more, in numpy: centres (64, 2) and std."""
    th = (np.arange(32) + 0.5) * np.pi / 32
    mu = np.concatenate([np.stack([np.cos(th), np.sin(th)], 1),
                         np.stack([1 - np.cos(th), 0.5 - np.sin(th)], 1)])
    mu -= mu.mean(0)
    scale = np.sqrt((mu**2).mean() + 0.09**2)
    return mu / scale, 0.09 / scale


def grid_integral(a, s, f, step):
    """E f(xt, p, eps_star) over p(xt) by its own grid and plain Bayes."""
    mu, sd = moons64()
    var = (a * sd) ** 2 + s**2
    reach = 2.2 * a + 8 * math.sqrt(var)
    g = np.arange(-reach, reach, step * math.sqrt(var))
    h, total, mass = g[1] - g[0], 0.0, 0.0
    for row in g:
        xt = np.stack([np.full_like(g, row), g], 1)
        like = np.exp(-((xt[:, None] - a * mu) ** 2).sum(2) / (2 * var)) / (2 * math.pi * var) / 64
        p = like.sum(1)
        safe = np.maximum(p, 1e-290)[:, None]
        eps_star = s * (xt - a * (like @ mu) / safe) / var
        mass += p.sum() * h * h
        total += (p * f(p, eps_star)).sum() * h * h
    assert abs(mass - 1) < 1e-8
    return total


def test_default_run(run):
    assert run.claims() == {f"C{i}": True for i in range(1, 7)}
    picture = imread(run.folder / "03_elbo.png")
    assert picture[..., :3].std() > 0.05 and picture.shape[1] > 1000


def test_chain(run):
    ns = run.ns
    assert (ns.alpha.cumprod(0) - ns.abar).abs().max() < 1e-13
    assert (ns.a**2 + ns.s**2 - 1).abs().max() < 1e-14
    assert ns.beta[0] == 0 and ns.w[0] == 0 and abs(ns.beta[-1].item() - 0.02) < 5e-4
    plain = ns.beta[1:] / (2 * ns.alpha[1:] * (1 - ns.abar[1:]))
    assert (ns.w[1:] / plain - 1).abs().max() < 1e-10


def test_collapse_is_the_integral_of_the_kl(run):
    """KL of two one-dimensional Gaussians, integrated on a grid, at three times."""
    ns, x, eps, guess = run.ns, 0.7, -1.3, 0.4
    for t in (2, 50, 1000):
        a, s, s_u = (v.item() for v in (ns.a[t], ns.s[t], ns.s[t - 1]))
        beta, alpha, a_u = ns.beta[t].item(), ns.alpha[t].item(), ns.a[t - 1].item()
        xt, centre = a * x + s * eps, a_u * x
        u = centre + s_u * np.linspace(-12, 12, 200_001) + 0.0  # q(xu | x), wide enough
        log_q = -((u - centre) ** 2) / (2 * s_u**2) - (xt - math.sqrt(alpha) * u) ** 2 / (2 * beta)
        q = np.exp(log_q - log_q.max())  # Bayes, normalised by the sum
        h = u[1] - u[0]
        q /= q.sum() * h
        mean = (xt - beta / s * guess) / math.sqrt(alpha)
        log_p = -((u - mean) ** 2) / (2 * beta) - 0.5 * math.log(2 * math.pi * beta)
        kl = (q * (np.log(np.maximum(q, 1e-300)) - log_p)).sum() * h
        collapsed = ns.constant[t - 2].item() / 2 + ns.w[t].item() * (guess - eps) ** 2
        assert abs(kl - collapsed) < 1e-6


def test_targets(run):
    """c0 xt + c1 eps is eps, x and the mean of the product of two Gaussians; eps_hat inverts it."""
    ns, g = run.ns, torch.Generator().manual_seed(5)
    x, eps = torch.randn(2, 999, 2, generator=g, dtype=torch.float64)
    t = torch.arange(2, 1001)
    xt = ns.a[t] * x + ns.s[t] * eps
    precision = ns.alpha[t] / ns.beta[t] + 1 / ns.s[t - 1] ** 2  # of q(xu | xt, x)
    mu = (ns.alpha[t].sqrt() * xt / ns.beta[t] + ns.a[t - 1] * x / ns.s[t - 1] ** 2) / precision
    for name, target in [("eps", eps), ("eps by w", eps), ("x0", x), ("mu", mu)]:
        c0, c1 = ns.NETS[name][:2]
        assert (c0[t] * xt + c1[t] * eps - target).abs().max() < 1e-10
        kept, ns.nets[name] = ns.nets[name], lambda _, target=target: target
        assert (ns.eps_hat(name, xt, t) - eps).abs().max() < 1e-9
        ns.nets[name] = kept


def test_nelbo_of_the_exact_denoiser(run):
    """Entropy, masses and E|eps_star|^2 on a finer grid of another code."""
    ns = run.ns
    entropy = grid_integral(1, 0, lambda p, _: -np.log(np.maximum(p, 1e-290)), 0.5)
    assert abs(entropy - 1.578465) < 2e-6
    assert (torch.bincount(ns.t, ns.mass[:, 0])[1:] - 1).abs().max() < 1e-6
    have = torch.bincount(ns.t, (ns.mass * ns.eps_star**2).sum(1))
    for t in (1, 30, 200, 1000):
        want = grid_integral(ns.a[t].item(), ns.s[t].item(), lambda _, e: (e**2).sum(1), 0.5)
        assert abs(have[t].item() - want) < 1e-3
    assert 0.012 < ns.gap < 0.016  # 0 or less would be no bound


def test_nats_by_monte_carlo(run):
    ns, g = run.ns, torch.Generator().manual_seed(6)
    t = torch.multinomial(ns.w[:, 0], 60_000, replacement=True, generator=g)
    x = ns.MU[torch.randint(64, (60_000,), generator=g)]
    x = x + ns.SD * torch.randn(60_000, 2, generator=g, dtype=torch.float64)
    xt = ns.a[t] * x + ns.s[t] * torch.randn(60_000, 2, generator=g, dtype=torch.float64)
    star = torch.cat([ns.exact(p, ns.a[k], ns.s[k])[1] for p, k in zip(xt.split(9999), t.split(9999))])
    for name in ns.nets:
        each = ns.w.sum() * (ns.eps_hat(name, xt, t) - star).square().sum(1)
        assert abs(each.mean() - ns.nats[name]) < 6 * each.std() / 60_000**0.5


def test_radio(run):
    ns = run.ns
    before, title = np.array(ns.dots.get_xydata()), ns.cloud.get_title()
    ns.radio.set_active(2)  # mu
    assert not np.array_equal(before, ns.dots.get_xydata(), equal_nan=True)
    assert ns.cloud.get_title().startswith("net mu") and ns.draw("mu") > 4
    ns.radio.set_active(0)
    assert np.array_equal(before, ns.dots.get_xydata()) and ns.cloud.get_title() == title


@pytest.mark.parametrize("flags, broken", [(("--target", "mu"), {"C3", "C6"}), (("--target", "x0"), {"C3"}),
                                           (("--T", "10"), {"C2", "C4", "C5", "C6"})])
def test_break(lesson, flags, broken):
    claims = lesson(NAME, *flags, "--iters", "400").claims()
    assert claims["C1"] and {name for name in broken if not claims[name]} == broken
    assert claims["C2"] == ("--T" not in flags)


def test_same_seed_same_claims(lesson):
    flags = ("--T", "20", "--iters", "20")
    first, second = lesson(NAME, *flags), lesson(NAME, *flags, "--seed", "0")
    assert first.text == second.text != lesson(NAME, *flags, "--seed", "1").text


@pytest.mark.parametrize("flags", [("--T", "1"), ("--T", "1001"), ("--T", "nan"), ("--iters", "0"),
                                   ("--iters", "100001"), ("--seed", "-1"), ("--target", "v"),
                                   ("--out", "/nonexistent/x.png"), ("--out", "x.xyz")])
def test_refused(refused, flags):
    assert flags[0] in refused(NAME, *flags)
