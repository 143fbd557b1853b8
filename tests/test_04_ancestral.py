"""Lesson 04: the posterior, its variances and the sampler against independent computations."""
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

NAME = "04_ancestral"
IDENTITIES = ("C1", "C2")


def chain(n_steps):
    """abar along n_steps strides from noise to data, in numpy, by the schedule's formula alone."""
    t = np.round(np.linspace(1000, 0, n_steps + 1)) / 1000
    return np.exp(-0.1 * t - 9.95 * t**2)


def test_default_run(lesson):
    run = lesson(NAME)
    assert set(run.claims()) == {f"C{i}" for i in range(1, 6)}
    assert all(run.claims().values()), run.text
    picture = plt.imread(run.folder / f"{NAME}.png")
    assert picture.shape[1] > 1000 and picture[..., :3].std() > 0.05


@pytest.mark.parametrize("n_steps", [2, 7, 100, 1000])
def test_posterior_is_gaussian_conditioning(lesson, n_steps):
    """Joint covariance of (x_u, xt) given x, conditioned by the textbook formula."""
    _, _, beta, lower, on_x, on_xt = (v.numpy() for v in lesson(NAME).ns.strides(n_steps))
    abar = chain(n_steps)
    now, then = abar[:-1], abar[1:]
    keep = np.sqrt(now / then)  # xt = keep x_u + noise
    gain = keep * (1 - then) / (1 - now)  # Cov(x_u, xt) / Var(xt)
    assert np.abs(on_xt - gain).max() < 1e-10
    assert np.abs(on_x - (np.sqrt(then) - gain * np.sqrt(now))).max() < 1e-10
    assert np.abs(lower - ((1 - then) - gain * keep * (1 - then))).max() < 1e-10
    assert np.abs(beta - (1 - keep**2)).max() < 1e-10


@pytest.mark.parametrize("n_steps", [2, 5, 10, 50, 1000])
def test_sampled_variance_in_closed_form(lesson, n_steps):
    """The recursion run to its end: N(0, 1) and a point, by beta and by beta~."""
    _, _, beta, lower, on_x, on_xt = (v.numpy() for v in lesson(NAME).ns.strides(n_steps))
    abar = chain(n_steps)
    found = {}
    for data in (0, 1):
        for name, noise in (("upper", beta), ("lower", lower)):
            v = data * abar[0] + 1 - abar[0]
            for i in range(n_steps):
                slope = on_xt[i] + on_x[i] * np.sqrt(abar[i]) * data
                v = slope**2 * v + noise[i]
            found[data, name] = v
    lost = ((abar[1:] - abar[:-1]) ** 2 / (1 - abar[:-1])).sum()
    goal = {(1, "upper"): 1, (1, "lower"): 1 - lost, (0, "upper"): beta[-1], (0, "lower"): 0}
    assert max(abs(found[key] - goal[key]) for key in goal) < 1e-10


def test_last_step_adds_no_noise(lesson):
    """One step from T to 0 is the mean alone, whatever the variance: 1 / a (xT - s eps)."""
    ns = lesson(NAME).ns
    a = np.exp((-0.1 - 9.95) / 2)
    eps = ns.exact(ns.z, torch.tensor(a), torch.tensor(np.sqrt(1 - a**2)))[1]
    mean = (ns.z - np.sqrt(1 - a**2) * eps) / a
    for var in ("upper", "lower", "zero"):
        assert (ns.ancestral(None, ns.z, 1, var) - mean).abs().max() < 1e-3


def test_sampler_makes_that_variance(lesson):
    """2000 samples of the real sampler, with N(0, 1)'s denoiser in the exact one's place."""
    run = lesson(NAME)
    scope = run.ns.ancestral.__globals__
    kept = scope["exact"]
    scope["exact"] = lambda xt, a, s: (None, s * xt, None)
    try:
        upper = run.ns.ancestral(None, run.ns.z, 10, "upper").var().item()
        lower = run.ns.ancestral(None, run.ns.z, 10, "lower").var().item()
    finally:
        scope["exact"] = kept
    last = 1 - chain(10)[-2]  # beta of the last stride, whose noise the sampler leaves out
    assert abs(upper - (1 - last)) < 0.09 and abs(lower - 0.549) < 0.06  # four standard errors


def test_exact_is_the_score(lesson):
    ns = lesson(NAME).ns
    with torch.enable_grad():
        xt = torch.randn(50, 2, dtype=torch.float64, requires_grad=True)
        _, eps, log_p = ns.exact(xt, 0.8, 0.6)
        score, = torch.autograd.grad(log_p.sum(), xt)
    assert (eps + 0.6 * score).abs().max().item() < 1e-10


def test_optimal_loss_by_quadrature(lesson):
    """E|eps - eps_hat|^2 on a grid of xt against the points that C3 is measured on, near three t."""
    ns = lesson(NAME).ns
    side = torch.linspace(-6, 6, 601, dtype=torch.float64)
    xt = torch.cartesian_prod(side, side)
    for t in (60, 200, 500):
        _, eps, log_p = ns.exact(xt, ns.a[t].item(), ns.s[t].item())
        p = log_p.exp() * (side[1] - side[0]) ** 2
        assert abs(p.sum().item() - 1) < 1e-5
        loss = 1 - (p * eps**2).sum().item() / 2
        near = (ns.t - t).abs() <= 20
        assert abs((ns.best - ns.eps)[near].square().mean().item() - loss) < 0.1 * loss + 0.01


def test_sampled_loss_of_the_net(lesson):
    """C3 on fresh points, as plain losses without the closed form in the numerator."""
    ns = lesson(NAME).ns
    generator = torch.Generator().manual_seed(9)
    x, t = ns.moons(200_000, generator), torch.randint(1, 1001, (200_000,), generator=generator)
    eps = torch.randn(200_000, 2, generator=generator)
    xt = ns.a[t, None] * x + ns.s[t, None] * eps
    loss = (ns.net(torch.cat([xt.float(), ns.clock[t]], 1)) - eps).square().mean().item()
    assert abs(loss - ns.floor - ns.excess) < 0.01 and abs(ns.floor - 0.226) < 0.01


def test_samples_are_as_near_as_the_exact_denoisers(lesson):
    """Loss within 1 % of the best; ED of 100 calls, four draws, within .001 of the exact denoiser's on the same noise."""
    ns = lesson(NAME).ns
    assert 1 + ns.excess / ns.floor < 1.01
    generator, gaps = torch.Generator().manual_seed(10), []
    for _ in range(4):
        z, real = torch.randn(2500, 2, generator=generator), ns.moons(2500, generator)
        learned, exact = (ns.energy_distance(ns.ancestral(net, z, 100, "upper"), real) for net in (ns.net, None))
        gaps.append(learned - exact)
    assert abs(np.mean(gaps)) < 0.001


def test_energy_distance_by_brute_force(lesson):
    ns = lesson(NAME).ns
    x, y = ns.real[:, [1, 0]].double().numpy(), ns.real.double().numpy()
    n = len(x)

    def total(p, q):
        return np.sqrt(((p[:, None] - q[None]) ** 2).sum(2)).sum()
    brute = 2 * total(x, y) / n**2 - (total(x, x) + total(y, y)) / (n * (n - 1))
    assert abs(ns.energy_distance(ns.real[:, [1, 0]], ns.real) - brute) < 1e-4


def test_slider_changes_picture_and_number(lesson):
    ns = lesson(NAME).ns

    def look():
        return ns.cloud.get_title(), ns.cloud.lines[1].get_xydata().copy()
    seen = [look()]
    ns.slider.set_val(5)
    seen.append(look())
    for (title, dots), (title2, dots2) in zip(seen, seen[1:]):
        assert title.split("ED")[1] != title2.split("ED")[1] and np.abs(dots - dots2).max() > 0.1
    ns.slider.set_val(100)
    assert look()[0] == seen[0][0] and np.abs(look()[1] - seen[0][1]).max() == 0


@pytest.mark.parametrize("flags", [("--var", "zero"), ("--steps", "3")])
def test_break(lesson, flags):
    run = lesson(NAME, "--iters", "300", *flags)
    claims = run.claims()
    assert not claims["C4"]
    assert all(claims[name] for name in IDENTITIES)
    if "zero" in flags:  # no noise: the cloud has shrunk
        assert run.ns.cloud.lines[1].get_xydata().std() < 0.6 * run.ns.cloud.lines[0].get_xydata().std()


@pytest.mark.parametrize("flags", [
    ("--steps", "0"), ("--steps", "1001"), ("--var", "middle"), ("--iters", "0"), ("--seed", "-1"),
    ("--out", "/nonexistent/x.png"), ("--out", "x.xyz")])
def test_refused(refused, flags):
    assert flags[0] in refused(NAME, *flags)
