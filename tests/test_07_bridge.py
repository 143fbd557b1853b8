"""Lesson 07: levels, steps and conversions on any path, one net for both paths, claims and figure, sliders, break, bad flags."""
import functools
import math
import re

import matplotlib.pyplot as plt
import moons
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste

NAME, DOUBLE = "07_bridge", functools.partial(torch.tensor, dtype=torch.float64)


@pytest.fixture(scope="module")
def pieces():
    return paste(NAME, "vp_path", "NoiseNet", "train", "ddim_step", "sample", "v_from_eps", "sample_flow", "two_moons")


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


@pytest.fixture(scope="module")
def ns(run):
    return run.ns


def pairs(n, seed=0):
    """x of the moons and eps, (n, 2) each, float64."""
    rng = np.random.default_rng(seed)
    return torch.tensor(moons.samples(n, rng)), torch.tensor(rng.standard_normal((n, 2)))


def ddpm(t):
    """DDPM's levels in continuous time, beta = 0.1 + 19.9 u per unit of u = 1 - t."""
    u = 1 - t
    return (-(0.1 * u + 9.95 * u**2) / 2).exp(), (-torch.expm1(-(0.1 * u + 9.95 * u**2))).sqrt()


PATHS = {  # (a, s) at t
    "VP": ddpm, "linear": lambda t: (t, 1 - t),
    "cosine": lambda t: ((math.pi / 2 * t).sin(), (math.pi / 2 * t).cos()),
    "exploding": lambda t: (1 + 0 * t, 20 ** (1 - 2 * t)), "bent": lambda t: (t**2, (1 - t) ** 1.5)}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
STEPS = ((0.1, 0.2), (0.4, 0.9), (0.7, 0.75))


def test_the_vp_path_is_ddpms_chain_of_1000_steps(pieces):
    abar, t = np.cumprod(1 - np.concatenate([[0], np.linspace(1e-4, 0.02, 1000)])), 1 - torch.arange(1001).double() / 1000
    path = pieces.vp_path(t)
    assert path.shape == (1001, 2) and path[0].tolist() == [1, 0] and np.abs(path[:, 0].numpy() - np.sqrt(abar)).max() < 0.004
    assert (path - torch.stack(ddpm(t), 1)).abs().max() < 1e-7


@each_path
def test_ddim_is_eulers_step_in_xt_over_a_and_s_over_a(pieces, path):
    """So a step from the true eps ends at the true a2 x + s2 eps."""
    x, eps = pairs(200)
    for t, t2 in STEPS:
        (a, s), (a2, s2) = path(DOUBLE(t)), path(DOUBLE(t2))
        for xt in (a * x + s * eps, eps.flip(0)):
            euler = a2 * (xt / a + (s2 / a2 - s / a) * eps)
            assert (pieces.ddim_step(xt, eps, a, s, a2, s2, 0) - euler).abs().max() < 1e-9
        assert (pieces.ddim_step(a * x + s * eps, eps, a, s, a2, s2, 0) - a2 * x - s2 * eps).abs().max() < 1e-9


@each_path
def test_eta_1_is_ddpms_posterior_as_a_product_of_gaussians(pieces, path):
    """q(x2 | x) q(xt | x2) with xt = (a / a2) x2 + noise of variance s^2 - (a s2 / a2)^2. No step is nan."""
    xt, eps = pairs(200)
    for t, t2 in STEPS:
        (a, s), (a2, s2) = path(DOUBLE(t)), path(DOUBLE(t2))
        x, c, extra = (xt - s * eps) / a, a / a2, s**2 - (a * s2 / a2) ** 2
        precision = 1 / s2**2 + c**2 / extra
        torch.manual_seed(3)
        got = pieces.ddim_step(xt, eps, a, s, a2, s2, 1)
        torch.manual_seed(3)
        mean = (a2 * x / s2**2 + c * xt / extra) / precision
        assert (got - mean - torch.randn_like(xt) / precision.sqrt()).abs().max() < 1e-8


def test_every_eta_keeps_the_noise_at_the_level_of_the_path(pieces):
    """Levels may be plain numbers. At eta = 0.5 and 1 a quarter and all of DDPM's variance is fresh. At s2 = 0 no noise is left."""
    x, eps = pairs(20_000)
    a, s, a2, s2 = 0.4, 0.6, 0.7, 0.3
    for eta in (0, 0.5, 1):
        xt = pieces.ddim_step(a * x + s * eps, eps, a, s, a2, s2, eta)
        noise = (xt - a2 * x) / s2
        assert abs(noise.std() - 1) < 0.02
        fresh = 1 - (noise * eps).mean().square()
        assert abs(fresh - eta**2 * (1 - (s2 / a2 * a / s) ** 2)) < 0.03
        assert (pieces.ddim_step(a * x + s * eps, eps, a, s, 1, 0, eta) - x).abs().max() < 1e-9


@each_path
def test_v_is_the_derivative_of_xt_and_eps_comes_back_from_it(pieces, path):
    x, eps = pairs(200)
    t, h = torch.linspace(0.1, 0.9, 200, dtype=torch.float64)[:, None], 1e-5
    (a, s), (da, ds) = torch.autograd.functional.jvp(path, t, torch.ones_like(t))
    xt = a * x + s * eps
    v = pieces.v_from_eps(xt, eps, a, s, da, ds)
    ahead, behind = ((lambda a, s: a * x + s * eps)(*path(t + d)) for d in (h, -h))
    assert ((ahead - behind) / (2 * h) - v).abs().max() < 1e-6 * v.abs().max()
    assert ((da * xt - a * v) / (da * s - a * ds) - eps).abs().max() < 1e-9


def test_a_step_of_ddpm_is_one_of_its_sde_up_to_order_one_and_a_half(pieces):
    """One step of eta = 1, 1 / T long, against one Euler-Maruyama step of the reverse SDE with the same draw of noise."""
    x, eps = pairs(4000)
    t = torch.linspace(0, 0.97, 4000, dtype=torch.float64)[:, None]
    a, s = ddpm(t)
    xt, beta = a * x + s * eps, 0.1 + 19.9 * (1 - t)
    eps_hat = torch.tensor(moons.parts(xt.numpy(), a.numpy(), s.numpy())[2])
    gap = []
    for T in (100, 1000):
        torch.manual_seed(4)
        step = pieces.ddim_step(xt, eps_hat, a, s, *ddpm(t + 1 / T), 1)
        torch.manual_seed(4)
        euler = xt + beta / T * (xt / 2 - eps_hat / s) + (beta / T).sqrt() * torch.randn_like(xt)
        gap.append((step - euler).norm().item())
    assert 1.4 < math.log10(gap[0] / gap[1]) < 1.6


def test_sample_asks_the_net_once_at_each_level_but_the_last(pieces):
    """By hand in numpy, on levels that are no path of the lesson; any net(xt, a, s) will do."""
    levels, asked = DOUBLE([[0.1, 2.0], [0.3, 0.9], [0.5, 0.8], [1.0, 0.1]]), []
    net = lambda xt, a, s: asked.append((a.item(), s.item())) or torch.tanh(xt) + a
    xt = pairs(9)[1].numpy()
    got = pieces.sample(net, torch.tensor(xt), levels)
    assert asked == [tuple(row) for row in levels[:-1].tolist()]
    assert (pieces.sample(net, torch.tensor(xt), levels, 1) - got).abs().max() > 0.05
    for (a, s), (a2, s2) in zip(levels.numpy(), levels.numpy()[1:]):
        eps_hat = np.tanh(xt) + a
        xt = a2 * (xt - s * eps_hat) / a + s2 * eps_hat
    assert np.abs(got.numpy() - xt).max() < 1e-12


def test_flow_matching_by_euler_is_ddim_and_only_s_over_a_counts(pieces):
    """The exercise: levels that are divided by r, or by anything else, lead to the same ends without fresh noise."""
    torch.manual_seed(5)
    net, noise, t = pieces.NoiseNet().double(), pairs(50)[1], torch.linspace(0.05, 1, 12, dtype=torch.float64)
    levels = torch.stack([t, 1 - t], 1)
    ends, flow = pieces.sample(net, noise, levels), pieces.sample_flow(net, noise, t)
    assert (flow - ends).abs().max() < 1e-9 and (flow - noise).abs().max() > 0.1 and not (flow.requires_grad or ends.requires_grad)
    for scale in (levels.norm(dim=1, keepdim=True), torch.linspace(1, 1 / 9, 12, dtype=torch.float64)[:, None]):
        assert (pieces.sample(net, noise / scale[0], levels / scale) - ends / scale[-1]).abs().max() < 1e-9


def test_the_net_answers_alike_along_a_ray_and_only_if_it_divides(pieces):
    """u = xt / r and the level are all it sees: eps_hat = u + (a / r) net(u, a / (a + s)), with numbers or columns as levels."""
    torch.manual_seed(5)
    net, xt = pieces.NoiseNet(16).double(), pairs(6)[1]
    for a, s in ((0.9, 0.1), (0.5, 0.5), (0.02, 0.98), (3.0, 4.0)):
        r = math.hypot(a, s)
        h = torch.hstack([xt / r, torch.full((6, 1), a / (a + s), dtype=torch.float64)])
        for layer in net:
            h = layer(h)
        expected = xt / r + a / r * h
        columns = net(xt, DOUBLE([[a]] * 6), DOUBLE([[s]] * 6))
        assert (net(xt, a, s) - expected).abs().max() < 1e-12 and (columns - expected).abs().max() < 1e-12
        assert (net(7 * xt, 7 * a, 7 * s) - expected).abs().max() < 1e-12
        assert ((xt - s * expected) / a - (r - s) / a * xt / r + s / r * h).abs().max() < 1e-9  # x_hat: no error of h is divided by a
    assert (net(xt, 0.0, 3.0) - xt / 3).abs().max() < 1e-12
    net.power = 0
    assert (net(7 * xt, 3.5, 3.5) - net(xt, 0.5, 0.5)).abs().max() > 0.1


def test_training_draws_levels_of_the_path_and_prints_progress(pieces, monkeypatch, capsys):
    """A linear net on a path of one level: asked at a x + s eps for times from 0 to 1, it learns the best linear guess of eps."""
    rates, times, asked, step = [], [], [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))

    class Net(torch.nn.Linear):
        def forward(self, xt, a, s):
            asked.append(torch.hstack([a, s, xt]))
            return super().forward(xt)
    net, first = Net(2, 2), torch.tensor([0.6, 0.8])
    assert pieces.train(net, lambda t: times.append(t) or torch.stack([first] * len(t)), 210, batch_size=500, lr=0.1) is net
    times = torch.cat(times)
    assert np.allclose(rates, 0.1 * (1 - np.arange(210) / 210)) and abs(times.mean() - 0.5) < 0.01 and abs(times.std() - 12**-0.5) < 0.01
    assert re.findall(r"iteration (\d+) of 210: loss \d", capsys.readouterr().out) == ["0", "100", "200"]
    a, s, xt = torch.cat(asked).split([1, 1, 2], 1)
    cov = 0.36 * moons.CENTRES.T @ moons.CENTRES / 64 + (0.36 * moons.WIDTH**2 + 0.64) * np.eye(2)
    assert (a == first[0]).all() and (s == first[1]).all() and np.abs(xt.T.cov().numpy() - cov).max() < 0.02
    assert np.abs(net.weight.detach().numpy() - 0.8 * np.linalg.inv(cov)).max() < 0.05


def energy_distance(x, y):
    far = [torch.cdist(p.double(), q.double()).sum() / len(p) / (len(q) - (p is q)) for p, q in ((x, y), (x, x), (y, y))]
    return (2 * far[0] - far[1] - far[2]).item()


def test_samples_of_both_paths_are_distributed_like_the_data(ns):
    """Energy distance, where noise has about 0.05 and another draw of data 0 +- 0.001; and how far apart the same noise ends."""
    torch.manual_seed(6)
    noise, data, gap = torch.randn(3000, 2), pairs(3000, 7)[0].float(), {}
    assert 0.04 < energy_distance(noise, data) < 0.06
    for steps, eta, low, high in ((30, 0, -0.002, 0.004), (30, 1, -0.002, 0.01), (10, 0, 0.001, 0.02), (10, 1, 0.01, 0.05)):
        t = torch.linspace(0.001, 1, steps + 1)
        ends = [ns.sample(ns.net, noise, levels, eta) for levels in (ns.vp_path(t), torch.stack([t, 1 - t], 1))]
        assert all(low < energy_distance(x, data) < high for x in ends), (steps, eta)
        gap[steps, eta] = (ends[0] - ends[1]).norm(dim=1).mean()
    assert gap[30, 0] < 0.03 < gap[10, 0] < 0.1 and min(gap[10, 1], gap[30, 1]) > 1


def test_claims_figure_and_page(run):
    assert run.claims() == {"C1": True, "C2": True}
    assert plt.imread(run.folder / f"{NAME}.png")[..., :3].std() > 0.05
    page_agrees(NAME, run)


def test_the_printed_numbers_in_numpy(run, ns):
    """With the distances that give C1 its bound: 0.11 for data and 0.47 for noise."""
    def off(x):
        return np.linalg.norm(x.numpy()[:, None] - moons.CENTRES, axis=2).min(1).mean()
    t = np.linspace(0.001, 1, 31)
    assert np.abs(ns.linear.numpy() - np.stack([t, 1 - t], 1)).max() < 1e-6
    assert np.abs(ns.vp.numpy() - np.stack(ddpm(torch.tensor(t)), 1)).max() < 1e-3
    both = torch.cat([ns.sample(ns.net, ns.noise, levels) for levels in (ns.vp, ns.linear)])
    assert abs(run.numbers()["C1"][0] - off(both)) < 1e-3
    assert abs(off(ns.two_moons(20_000)) - 0.11) < 0.005 and abs(off(torch.randn(20_000, 2)) - 0.47) < 0.01
    assert np.abs(ns.CENTERS[:32].numpy() - moons.CENTRES[:32]).max() < 1e-6 and abs(ns.noise.std() - 1) < 0.1
    xt = (ns.real + ns.noise).double().numpy() / 2
    score = -moons.parts(xt, 0.5, 0.5)[2] / 0.5
    with torch.no_grad():
        learned = -ns.net(torch.tensor(xt).float(), 0.5, 0.5).numpy() / 0.5
    assert abs(run.numbers()["C2"][0] - np.linalg.norm(learned - score) / np.linalg.norm(score)) < 1e-3


def look(ns):
    """The number in the title; the ends on the VP path and on the linear path, (n, 2) each. Lines join them."""
    data, *lines, rings, crosses = [np.asarray(line.get_xydata()) for line in ns.right.lines]
    assert np.array_equal(data, ns.real.numpy()) and np.array_equal(np.stack(lines), np.stack([rings, crosses], 1))
    shown = float(re.search(r"(\d\.\d\d) apart", ns.right.get_title())[1])
    assert abs(np.linalg.norm(rings - crosses, axis=1).mean() - shown) < 0.0051
    return shown, rings, crosses


def test_sliders_bring_fresh_noise_and_break_the_linear_path(ns):
    shown, vp, linear = look(ns)
    assert 0.005 < shown < 0.03 and np.abs(vp - ns.sample(ns.net, ns.noise, ns.vp).numpy()).max() < 1e-5
    try:
        ns.power.set_val(0)
        broken = look(ns)
        assert broken[0] > 0.4 and np.abs(broken[1] - vp).max() < 1e-4
        ns.power.set_val(1)
        ns.eta.set_val(1)
        fresh = look(ns)
        assert fresh[0] > 1 and all(np.linalg.norm(a - b, axis=1).mean() > 1 for a, b in ((fresh[1], vp), (fresh[2], linear)))
    finally:
        ns.power.set_val(1)
        ns.eta.set_val(0)
    assert np.array_equal(look(ns)[2], linear)


def test_gray_lines_lead_from_the_linear_path_to_the_vp_path(ns):
    *rays, vp, linear = [np.asarray(line.get_xydata()) for line in ns.left.lines]
    assert np.array_equal(vp, ns.vp.numpy()) and np.array_equal(linear, ns.linear.numpy()) and len(rays) == len(linear) == 31
    for ray, level in zip(rays, linear):
        assert np.abs(ray[0] - level).max() < 1e-6 and np.abs(ray[1] - level / np.hypot(*level)).max() < 1e-6


def test_break_and_a_net_of_one_iteration(lesson):
    broken = lesson(NAME, "--no-rescale", "--iters", "300", "--seed", "1")
    assert broken.claims() == {"C1": False, "C2": False} and look(broken.ns)[0] > 0.3
    assert lesson(NAME, "--iters", "1").claims() == {"C1": False, "C2": False}


def test_same_seed_same_numbers(lesson):
    a, b, c = lesson(NAME, "--iters", "20"), lesson(NAME, "--iters", "20", "--seed", "0"), lesson(NAME, "--iters", "20", "--seed", "1")
    assert a.text == b.text != c.text


@pytest.mark.parametrize("flags", [
    ("--iters", "0"), ("--iters", "2.5"), ("--iters", "9" * 21), ("--seed", "-1"), ("--seed", "9" * 21), ("--steps", "5")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
