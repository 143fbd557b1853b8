"""Lesson 07: its closed forms, sampler, widgets and break, each against another way to compute it."""
import math

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import to_hex

NAME = "07_bridge"
IDENTITIES = {"C1", "C2"}


def test_default_run(lesson):
    run = lesson(NAME)
    assert run.claims() == {f"C{i}": True for i in range(1, 8)}
    image = plt.imread(run.folder / "07_bridge.png")
    assert image.shape[0] > 400 and image[..., :3].std() > 0.05


def brute_force(ns, xt, a, s):
    """log p(xt) and E[eps | xt] of one point by the sum over the 64 Gaussians, in plain Python."""
    var = (a * ns.SD) ** 2 + s**2
    weights, means = [], []
    for centre in ns.MU.tolist():
        d = [xt[j] - a * centre[j] for j in (0, 1)]
        weights.append(math.exp(-(d[0] ** 2 + d[1] ** 2) / (2 * var)) / (2 * math.pi * var) / 64)
        means.append([s * d[j] / var for j in (0, 1)])  # E[eps | xt, which Gaussian]
    total = sum(weights)
    return math.log(total), [sum(w * m[j] for w, m in zip(weights, means)) / total for j in (0, 1)]


def test_score_is_minus_eps_over_s(lesson):
    """Score by autograd of the lesson's density against E[eps | xt] by Bayes' rule."""
    ns = lesson(NAME).ns
    for a, s in [(0.9, 0.3), (0.5, 0.5), (0.2, 0.95)]:
        xt = torch.tensor([[0.3, -0.4], [-0.5, 0.2], [0.8, 0.1]], dtype=torch.float64, requires_grad=True)
        aa, ss = torch.full((3, 1), a, dtype=torch.float64), torch.full((3, 1), s, dtype=torch.float64)
        log_p = ns.log_density(xt, aa, ss)
        score = torch.autograd.grad(log_p.sum(), xt)[0]
        for i in range(3):
            value, eps = brute_force(ns, xt[i].tolist(), a, s)
            assert abs(value - log_p[i].item()) < 1e-10
            assert max(abs(-eps[j] / s - score[i, j].item()) for j in (0, 1)) < 1e-10


def test_density_integrates_to_one(lesson):
    ns = lesson(NAME).ns
    axis = torch.linspace(-6, 6, 301, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    ones = torch.ones(len(points), 1, dtype=torch.float64)
    mass = ns.log_density(points, 0.7 * ones, 0.5 * ones).exp().sum().item() * 0.04**2
    assert abs(mass - 1) < 1e-6


def test_paths(lesson):
    ns = lesson(NAME).ns
    k = torch.arange(1001, dtype=torch.float64)
    a, s = ns.noise_levels(k)
    beta = (0.1 + 19.9 * (torch.arange(1, 1001, dtype=torch.float64) - 0.5) / 1000) / 1000
    assert (a[1:].log() * 2 - torch.cumsum(-beta, 0)).abs().max() < 1e-10  # integral of linear beta
    assert (a**2 + s**2 - 1).abs().max() < 1e-12
    a, s = ns.noise_levels(k, chord=True)
    assert (a + s - 1).abs().max() < 1e-12 and abs(a[-1] - 0.03) < 1e-12 and s[0] == 0


def random_step(seed=0):
    g = torch.Generator().manual_seed(seed)
    xt, eps, z = torch.randn(3, 200, 2, generator=g, dtype=torch.float64)
    return xt, eps, z


def test_step_is_euler_and_posterior(lesson):
    """eta = 0: Euler in x / a over s / a (1e-12); eta = 1: the posterior as a product of Gaussians."""
    ns = lesson(NAME).ns
    xt, eps, z = random_step()
    for chord in (False, True):
        for k, k2 in [(900.0, 850.0), (400.0, 100.0), (50.0, 0.0)]:
            a, s = ns.noise_levels(torch.tensor(k, dtype=torch.float64), chord)
            a2, s2 = ns.noise_levels(torch.tensor(k2, dtype=torch.float64), chord)
            euler = a2 * (xt / a + (s2 / a2 - s / a) * eps)
            assert (ns.ddim_step(xt, eps, a, s, a2, s2, 0, z) - euler).abs().max() < 1e-12
            if s2 > 0:  # q(x2 | x) q(xt | x2) with xt = (a / a2) x2 + noise of variance s^2 - (a s2 / a2)^2
                x, c, extra = (xt - s * eps) / a, a / a2, s**2 - (a * s2 / a2) ** 2
                precision = 1 / s2**2 + c**2 / extra
                mean = (a2 * x / s2**2 + c * xt / extra) / precision
                got = ns.ddim_step(xt, eps, a, s, a2, s2, 1, z)
                assert (got - mean - z / precision.sqrt()).abs().max() < 1e-10


def test_chord_step_is_flow_matching_euler(lesson):
    ns = lesson(NAME).ns
    xt, eps, z = random_step(1)
    t, t2 = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.35, dtype=torch.float64)
    v = (xt - (1 - t) * eps) / t - eps  # x_hat - eps_hat
    got = ns.ddim_step(xt, eps, t, 1 - t, t2, 1 - t2, 0, z)
    assert (got - xt - 0.05 * v).abs().max() < 1e-12


def test_one_net_serves_both_paths(lesson):
    """On one ray the net answers alike, and on the chord it is near Bayes' answer by brute force."""
    ns = lesson(NAME).ns
    g = torch.Generator().manual_seed(2)
    worst = []
    for t in (0.2, 0.5, 0.8):
        x = ns.real[:100]
        xt = t * x + (1 - t) * torch.randn(100, 2, generator=g)
        a, s = torch.tensor([t]), torch.tensor([1 - t])
        r = math.hypot(t, 1 - t)
        with torch.no_grad():
            eps, on_arc = ns.eps_net(xt, a, s), ns.eps_net(xt / r, a / r, s / r)
        assert (eps - on_arc).abs().max() < 1e-4
        exact = torch.tensor([brute_force(ns, row, t, 1 - t)[1] for row in xt.tolist()])
        worst.append((eps - exact).square().mean().item())
    assert max(worst) < 0.02


def test_energy_distance(lesson):
    ns = lesson(NAME).ns
    x, y = (ns.real[:40] + 0.3).tolist(), ns.real[:300].tolist()

    def mean(p, q, same):
        return sum(math.dist(u, w) for u in p for w in q) / (len(p) * (len(q) - same))

    brute = 2 * mean(x, y, 0) - mean(x, x, 1) - mean(y, y, 1)
    assert abs(ns.energy_distance(torch.tensor(x), torch.tensor(y)) - brute) < 1e-5


def test_walk_is_the_same_walk_twice_and_eta_1_draws_noise(lesson):
    ns = lesson(NAME).ns
    assert torch.equal(ns.walk(5, 1), ns.walk(5, 1))
    assert (ns.walk(5, 1) - ns.walk(5, 0)).abs().max() > 0.5


def test_chord_is_the_arc_at_other_ratios(lesson):
    """Walking the arc through the chord's ratios a : s by hand gives the chord's samples."""
    ns = lesson(NAME).ns
    t = 1 - 0.97e-3 * torch.linspace(1000, 0, 11)[:, None]
    r = (t**2 + (1 - t) ** 2).sqrt()
    a, s, xt = t / r, (1 - t) / r, ns.prior[:500]
    for i in range(10):
        with torch.no_grad():
            eps = ns.eps_net(xt, a[i], s[i])
        xt = ns.ddim_step(xt, eps, a[i], s[i], a[i + 1], s[i + 1], 0, 0)
    assert (xt - ns.walk(10, 0, True)[:500]).abs().max() < 1e-3


def test_sliders(lesson):
    ns = lesson(NAME).ns
    def state():
        return [(ax.get_title(), cloud.get_xydata().copy()) for ax, cloud in zip(ns.axes, ns.clouds)]
    before = state()
    ns.steps.set_val(3)
    after = state()
    for (title, cloud), (title2, cloud2) in zip(before, after):
        assert title != title2 and abs(cloud - cloud2).max() > 0.1
        assert float(title2.split()[-1]) > float(title.split()[-1]) + 0.02  # 3 steps break it
    ns.steps.set_val(10)
    ode = state()
    ns.eta.set_val(1.0)
    sde = state()
    assert float(sde[0][0].split()[-1]) > float(ode[0][0].split()[-1]) + 0.005
    assert abs(sde[0][1] - ode[0][1]).max() > 0.1
    ns.eta.set_val(0.0)
    ns.steps.set_val(20)


def test_break(lesson):
    run = lesson(NAME, "--forget", "--iters", "1200")
    claims = run.claims()
    assert not claims["C6"] and all(claims[c] for c in IDENTITIES)
    assert [to_hex(cloud.get_color()) for cloud in run.ns.clouds] == [to_hex("tab:blue"), to_hex("tab:red")]


def test_refused(refused):
    for flags in [("--steps", "0"), ("--steps", "201"), ("--eta", "1"),
                  ("--iters", "0"), ("--seed", "-1"), ("--out", "/nonexistent/x.png"), ("--out", "x.xyz")]:
        refused(NAME, *flags)
