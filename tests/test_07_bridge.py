"""Lesson 07: steps and conversions on any path, one net for both paths, claims and figure, slider, break, bad flags."""
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
    return paste(NAME, "make_predictor", "sample", "sample_flow")

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

def step(pieces, xt, eps_hat, level, level2, eta):
    """One step of `sample` with a net that predicts eps_hat."""
    start, end = pieces.sample(lambda xt, a, s: eps_hat, xt, [level, level2], eta)
    assert torch.equal(start, xt)
    return end

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

@each_path
def test_ddim_is_eulers_step_in_xt_over_a_and_s_over_a(pieces, path):
    """So a step from the true eps ends at the true a2 x + s2 eps."""
    x, eps = pairs(200)
    for t, t2 in STEPS:
        (a, s), (a2, s2) = path(DOUBLE(t)), path(DOUBLE(t2))
        for xt in (a * x + s * eps, eps.flip(0)):
            euler = a2 * (xt / a + (s2 / a2 - s / a) * eps)
            assert (step(pieces, xt, eps, (a, s), (a2, s2), 0) - euler).abs().max() < 1e-9
        assert (step(pieces, a * x + s * eps, eps, (a, s), (a2, s2), 0) - a2 * x - s2 * eps).abs().max() < 1e-9

@each_path
def test_eta_1_is_ddpms_posterior_as_a_product_of_gaussians(pieces, path):
    """q(x2 | x) q(xt | x2) with xt = (a / a2) x2 + noise of variance s^2 - (a s2 / a2)^2. No step is nan."""
    xt, eps = pairs(200)
    for t, t2 in STEPS:
        (a, s), (a2, s2) = path(DOUBLE(t)), path(DOUBLE(t2))
        x, c, extra = (xt - s * eps) / a, a / a2, s**2 - (a * s2 / a2) ** 2
        precision = 1 / s2**2 + c**2 / extra
        torch.manual_seed(3)
        got = step(pieces, xt, eps, (a, s), (a2, s2), 1)
        torch.manual_seed(3)
        mean = (a2 * x / s2**2 + c * xt / extra) / precision
        assert (got - mean - torch.randn_like(xt) / precision.sqrt()).abs().max() < 1e-8

def test_every_eta_keeps_the_noise_at_the_level_of_the_path(pieces):
    """Levels may be plain numbers. At eta = 0.5 and 1 a quarter and all of DDPM's variance is fresh. At s2 = 0 no noise is left."""
    x, eps = pairs(20_000)
    a, s, a2, s2 = 0.4, 0.6, 0.7, 0.3
    for eta in (0, 0.5, 1):
        xt = step(pieces, a * x + s * eps, eps, (a, s), (a2, s2), eta)
        noise = (xt - a2 * x) / s2
        assert abs(noise.std() - 1) < 0.02
        fresh = 1 - (noise * eps).mean().square()
        assert abs(fresh - eta**2 * (1 - (s2 / a2 * a / s) ** 2)) < 0.03
        assert (step(pieces, a * x + s * eps, eps, (a, s), (1, 0), eta) - x).abs().max() < 1e-9

@each_path
def test_v_is_the_derivative_of_xt_and_eps_comes_back_from_it(path):
    """The two conversions of the page, and those of the file, on the linear path."""
    x, eps = pairs(200)
    t, h = torch.linspace(0.1, 0.9, 200, dtype=torch.float64)[:, None], 1e-5
    (a, s), (da, ds) = torch.autograd.functional.jvp(path, t, torch.ones_like(t))
    xt = a * x + s * eps
    v = da * (xt - s * eps) / a + ds * eps
    ahead, behind = ((lambda a, s: a * x + s * eps)(*path(t + d)) for d in (h, -h))
    assert ((ahead - behind) / (2 * h) - v).abs().max() < 1e-6 * v.abs().max()
    assert ((da * xt - a * v) / (da * s - a * ds) - eps).abs().max() < 1e-9
    if path is PATHS["linear"]:
        assert (v - (xt - eps) / t).abs().max() < 1e-9 and (eps - (xt - t * v)).abs().max() < 1e-9

def test_a_step_of_ddpm_is_one_of_its_sde_up_to_order_one_and_a_half(pieces):
    """One step of eta = 1, 1 / T long, against one Euler-Maruyama step of the reverse SDE with the same draw of noise."""
    x, eps = pairs(200)
    gap = torch.zeros(2)
    for t in torch.linspace(0, 0.97, 20, dtype=torch.float64):
        a, s = ddpm(t)
        xt, beta = a * x + s * eps, 0.1 + 19.9 * (1 - t)
        eps_hat = torch.tensor(moons.parts(xt.numpy(), a.numpy(), s.numpy())[2])
        for i, T in enumerate((100, 1000)):
            torch.manual_seed(4)
            got = step(pieces, xt, eps_hat, (a, s), ddpm(t + 1 / T), 1)
            torch.manual_seed(4)
            euler = xt + beta / T * (xt / 2 - eps_hat / s) + (beta / T).sqrt() * torch.randn_like(xt)
            gap[i] += (got - euler).square().sum()
    assert 1.4 < math.log10(gap[0] / gap[1]) / 2 < 1.6

def test_flow_matching_by_euler_is_ddim_and_only_s_over_a_counts(pieces):
    """Levels that are divided by r, or by anything else, lead to the same ends without fresh noise."""
    torch.manual_seed(5)
    net, noise, t = torch.nn.Linear(4, 2).double(), pairs(50)[1], torch.linspace(0.05, 1, 12, dtype=torch.float64)
    levels = torch.stack([t, 1 - t], 1)
    predict = pieces.make_predictor(net)
    ends, flow = pieces.sample(predict, noise, levels), [noise]
    for now, then in zip(t, t[1:]):
        flow.append(flow[-1] + (then - now) * (flow[-1] - predict(flow[-1], now, 1 - now)) / now)
    flow = torch.stack(flow)  # (12, 50, 2)
    assert (flow - ends).abs().max() < 1e-9 and (flow[-1] - noise).abs().max() > 0.1 and not ends.requires_grad
    assert (pieces.sample_flow(predict, noise, t) - flow).abs().max() < 1e-9
    assert (pieces.sample_flow(pieces.make_predictor(net, 0), noise, t) - flow)[-1].abs().max() > 0.01
    for scale in (levels.norm(dim=1, keepdim=True), torch.linspace(1, 1 / 9, 12, dtype=torch.float64)[:, None]):
        assert (pieces.sample(predict, noise / scale[0], levels / scale) - ends / scale[:, None]).abs().max() < 1e-9
    image = torch.randn(3, 2, 5, 4).double()  # a net of images: eps_hat = xt / 2, as by hand
    a, b = (piece(lambda xt, a, s: xt / 2, image, path) for piece, path in ((pieces.sample, levels), (pieces.sample_flow, t)))
    factor = torch.prod(1 + (t[1:] - t[:-1]) / (2 * t[:-1]))
    assert (a[-1] - factor * image).abs().max() < 1e-9 and (b[-1] - factor * image).abs().max() < 1e-9 and len(a) == len(b) == 12

def test_the_net_answers_alike_along_a_ray_and_only_if_it_divides(pieces):
    xt, see = pairs(6)[1], lambda inputs: inputs
    for a, s in ((0.9, 0.1), (0.5, 0.5), (0.02, 0.98), (3.0, 4.0)):
        expected = torch.hstack([xt, DOUBLE([[a, s]] * 6)]) / math.hypot(a, s)
        for scale in (1, 7):
            assert (pieces.make_predictor(see)(scale * xt, scale * a, scale * s) - expected).abs().max() < 1e-12
        half = pieces.make_predictor(see, power=0.5)(xt, DOUBLE(a), DOUBLE(s))
        assert (half - expected * math.hypot(a, s) ** 0.5).abs().max() < 1e-12
        assert torch.equal(pieces.make_predictor(see, power=0)(xt, a, s), torch.hstack([xt, DOUBLE([[a, s]] * 6)]))

def test_training_draws_angles_of_the_vp_path_and_prints_progress(lesson, monkeypatch):
    """With normal numbers replaced by 5, the net must see a x + s eps, a, s on the quarter circle, and learn eps = 5."""
    rates, seen, step, forward = [], [], torch.optim.Adam.step, torch.nn.Sequential.forward
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    monkeypatch.setattr(torch.nn.Sequential, "forward", lambda self, inputs: seen.append(inputs) or forward(self, inputs))
    monkeypatch.setattr(torch, "randn", lambda n, d: torch.full((n, d), 5.0))
    run = lesson(NAME, "--iters", "101")
    assert np.allclose(rates, 0.03 * (1 - np.arange(101) / 101)) and isinstance(run.ns.net, torch.nn.Module)
    assert re.findall(r"iteration (\d+) of 101: loss \d", run.text) == ["0", "100"]
    xt, a, s = torch.cat(seen[:101]).split([2, 1, 1], 1)
    angle = torch.atan2(a, s) / (math.pi / 2)
    assert (a**2 + s**2 - 1).abs().max() < 1e-6 and len(xt) == 101 * 1024
    assert abs(angle.mean() - 0.5) < 0.01 and abs(angle.std() - 12**-0.5) < 0.01 and angle.min() >= 0 and angle.max() <= 1
    xt, a, s = xt[-500:], a[-500:], s[-500:]
    off = (xt[:, None] - 5 * s[:, None] - a[:, None] * (run.ns.CENTERS + 5 * run.ns.STD)).norm(dim=2).amin(1)
    assert off.max() < 1e-5 and (run.ns.net(seen[100]) - 5).abs().mean() < 0.5

def energy_distance(x, y):
    far = [torch.cdist(p.double(), q.double()).sum() / len(p) / (len(q) - (p is q)) for p, q in ((x, y), (x, x), (y, y))]
    return (2 * far[0] - far[1] - far[2]).item()

def test_samples_of_both_paths_are_distributed_like_the_data(ns):
    """Energy distance, where noise has about 0.05 and another draw of data 0 +- 0.001."""
    torch.manual_seed(6)
    noise, data = torch.randn(3000, 2), pairs(3000, 7)[0].float()
    assert 0.04 < energy_distance(noise, data) < 0.06
    for steps, eta, low, high in ((30, 0, -0.002, 0.006), (30, 1, -0.002, 0.006), (10, 0, 0.003, 0.03), (10, 1, 0.003, 0.03)):
        t = torch.linspace(0.05, 1, steps + 1)
        levels = torch.stack([t, 1 - t], 1)
        r = levels.norm(dim=1, keepdim=True)
        ends = []
        for start, path in ((noise, levels / r), (r[0] * noise, levels)):
            torch.manual_seed(8)
            ends.append(ns.sample(ns.predict, start, path, eta)[-1])
        assert low < energy_distance(ends[0], data) < high, (steps, eta)
        assert (ends[0] - ends[1]).abs().max() < 1e-3

def test_claims_figure_and_page(run):
    assert run.claims() == {"C1": True, "C2": True, "C3": True}
    assert plt.imread(run.folder / f"{NAME}.png")[..., :3].std() > 0.05
    page_agrees(NAME, run)

def test_the_printed_numbers_in_numpy(run, ns):
    """The gap is rounding, so it is compared with a bound."""
    t = np.linspace(0.05, 1, 31)
    levels = np.stack([t, 1 - t], 1)
    assert np.abs(ns.linear.numpy() - levels).max() < 1e-6
    assert np.abs(ns.vp.numpy() - levels / np.hypot(*levels.T)[:, None]).max() < 1e-6
    vp, flow = ns.sample(ns.predict, ns.noise, ns.vp).numpy(), ns.sample_flow(ns.predict, ns.noise * ns.r[0], ns.t).numpy()
    assert np.abs(ns.ddim.numpy() - vp).max() < 1e-5 and abs(run.numbers()["C1"][0] - np.linalg.norm((vp - flow)[-1], axis=1).mean()) < 1e-5
    torch.manual_seed(9)
    ends = ns.sample(ns.predict, torch.randn(5000, 2), ns.vp, 1)[-1].numpy()  # other draws than the run's 300
    nearest = np.linalg.norm(ends[:, None] - moons.CENTRES, axis=2).min(1).mean()
    assert abs(run.numbers()["C2"][0] - nearest) < 0.03 and abs(run.numbers()["C2"][1] - 2 * 0.09 / 0.7107) < 1e-4
    assert np.abs(ns.CENTERS[:32].numpy() - moons.CENTRES[:32]).max() < 1e-6 and abs(ns.noise.std() - 1) < 0.1
    xt = ns.halfway.detach().double()
    score = -moons.parts(xt.numpy(), 0.5, 0.5)[2] / 0.5
    assert abs(np.cov(2 * xt.T).trace() / 2 - 2) < 0.3 and np.abs(ns.exact.numpy() - score).max() < 1e-3
    with torch.no_grad():
        learned = -ns.predict(xt.float(), 0.5, 0.5).numpy() / 0.5
    assert abs(run.numbers()["C3"][0] - np.linalg.norm(learned - score) / np.linalg.norm(score)) < 1e-3

def test_the_slider_breaks_flow_matching_in_the_figure(ns):
    """All 300 ends, and the path of the first, and in red always without the division. Paths are stepped here in xt / a, which moves by eps times the change of s / a."""
    for power in (1, 0.5, 0, 1):
        ns.slider.set_val(power)
        data, *lines = ns.right.lines
        assert len(lines) == 5 and np.linalg.norm(data.get_xydata()[:, None] - moons.CENTRES, axis=2).min(1).mean() < 0.25
        for levels, ends, shown, color, exponent in ((ns.vp, lines[0], lines[2], "C0", 1), (ns.linear, lines[1], lines[3], "C1", power), (ns.linear, None, lines[4], "r", 0)):
            a, s = levels.numpy().T
            path = [ns.noise.numpy() * np.hypot(a[0], s[0])]
            for n in range(30):
                inputs = np.hstack([path[n], np.full((300, 2), [a[n], s[n]])]) / np.hypot(a[n], s[n]) ** exponent
                eps = ns.net(torch.tensor(inputs).float()).detach().numpy()
                path.append(a[n + 1] * (path[n] / a[n] + (s[n + 1] / a[n + 1] - s[n] / a[n]) * eps))
            assert np.abs(shown.get_xydata() - np.array(path)[:, 0]).max() < 1e-3 and plt.matplotlib.colors.same_color(shown.get_color(), color)
            assert ends is None or np.abs(ends.get_xydata() - path[-1]).max() < 1e-3 and plt.matplotlib.colors.same_color(ends.get_color(), color)
        gap = np.linalg.norm(lines[0].get_xydata() - lines[1].get_xydata(), axis=1).mean()
        assert gap < 1e-3 if power == 1 else gap > 0.1
    assert ns.right.get_aspect() == 1 and (ns.slider.valmin, ns.slider.valmax) == (0, 1)

def test_rays_from_the_origin_lead_through_the_linear_path_to_the_vp_path(ns):
    """Each point of orange is r times that of blue, on a gray ray."""
    rays, blue, orange = [np.asarray(line.get_xydata()) for line in ns.left.lines]
    assert np.array_equal(blue, ns.vp.numpy()) and np.array_equal(orange, ns.linear.numpy()) and ns.left.get_aspect() == 1
    assert np.abs(orange - blue * np.hypot(*ns.linear.numpy().T)[:, None]).max() < 1e-4 and (rays[::2] == 0).all() and np.array_equal(rays[1::2], blue)

def test_break_and_a_net_of_one_iteration(lesson):
    broken = lesson(NAME, "--power", "0", "--iters", "200", "--seed", "1")
    assert broken.claims() == {"C1": False, "C2": True, "C3": False} and broken.numbers()["C1"][0] > 0.3 and broken.ns.slider.val == 0
    assert lesson(NAME, "--iters", "1").claims() == {"C1": True, "C2": False, "C3": False}

def test_same_seed_same_numbers(lesson, first_loss, limits):
    limits(NAME)
    a, b = lesson(NAME, "--iters", "1"), lesson(NAME, "--iters", "1", "--seed", "0")
    assert a.text == b.text and first_loss(NAME, "--iters", "1", "--seed", "4294967295") not in a.text

@pytest.mark.parametrize("flags", [
    ("--iters", "0"), ("--iters", "2.5"), ("--power", "2"), ("--seed", "-1"), ("--seed", "9" * 21), ("--steps", "5")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
