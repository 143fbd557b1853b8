"""Lesson 09: targets, schedules, solvers, guidance against exact velocities in numpy, the figure, breaks, bad flags."""
import re

import moons
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste
from matplotlib.colors import to_hex

NAME = "09_knobs"
C, W, END = moons.CENTRES, moons.WIDTH, np.pi / 2  # the first 32 centers are the upper moon
P = paste(NAME, "train", "convert_to_v", "linear_times", "cosine_times", "sample", "guide")


@pytest.fixture
def run(lesson):
    return lesson(NAME)


def exact_v(xt, t, y):
    """E[s x - a eps | xt, label] in float64, if one label in five is wrong; y = 0 is no label."""
    a, s = np.sin(t), np.cos(t)
    var, off = (a * W) ** 2 + s**2, xt[:, None] - a * C
    log_like = -(off**2).sum(2) / (2 * var) + np.log(np.where(np.arange(64) < 32, 0.5 + 0.3 * y, 0.5 - 0.3 * y))
    like = np.exp(log_like - log_like.max(1, keepdims=True))
    return (like[:, :, None] * (s * (C + a * W**2 / var * off) - a * s / var * off)).sum(1) / like.sum(1)[:, None]


def error(ns, t, y):  # root mean square error of the run's v at time t
    rng = np.random.default_rng(0)
    xt = np.sin(t) * moons.samples(2000, rng) + np.cos(t) * rng.standard_normal((2000, 2))
    v = ns.v(torch.tensor(xt).float(), torch.tensor(t), torch.full((2000, 1), float(y))).detach().numpy()
    return np.sqrt(((v - exact_v(xt, t, y)) ** 2).mean())


def field(ns, w=1, net=None, t_scale=1):
    """The run's net as a function of x and t, guided, without the lesson's `convert_to_v` and `guide`."""
    rows = lambda x, t, y: torch.tensor(np.column_stack([x, np.full((len(x), 2), [t_scale * t, y])])).float()
    v = lambda x, t, y: (net or ns.net)(rows(x, t, y)).detach().double().numpy()
    return lambda x, t: w * v(x, t, 1) + (1 - w) * v(x, t, 0)


def by_hand(v, x, times, order=2):
    """Where the steps of v(x, t) end, in numpy and float64: another road than `sample`. A number means equal steps."""
    x, times = np.asarray(x, dtype=float), np.linspace(0, END, times + 1) if isinstance(times, int) else times
    for start, end in zip(times[:-1], times[1:]):
        slope = v(x, start)
        x = x + (end - start) / 2 * (slope + (v(x + (end - start) * slope, end) if order == 2 else slope))
    return x


def cloud(ns, ax):  # samples, and the title's knob and share of misses, whose samples are red: over 0.1 from the upper moon
    knob, percent = re.match(r"Knob (2, t_scale = 1000|5, guidance w = \d): (\d+)% miss", ax.get_title()).groups()
    data, blue, red = (np.column_stack(line.get_data()) for line in ax.lines)
    assert [to_hex(line.get_color()) for line in ax.lines] == ["#cccccc", "#1f77b4", "#ff0000"] and np.abs(data - ns.x.numpy()).max() < 1e-6
    off = ((blue[:, None] - ns.upper.numpy())**2).sum(2).min(1) > 0.1**2
    assert ((blue[:, None] == red).all(2).any(1) == off).mean() > 0.998 and abs(off.mean() - int(percent) / 100) < 0.007
    return blue, knob[3:], int(percent) / 100


def test_each_target_is_converted_to_the_velocity():
    x, eps, y = torch.randn(6, 2), torch.randn(6, 2), torch.tensor([[1.0], [-1], [0], [1], [0], [-1]])
    for t, t_scale in (0.1, 1), (0.7, 1000), (1.4, 1):
        xt, v = np.sin(t) * x + np.cos(t) * eps, np.cos(t) * x - np.sin(t) * eps
        for target, out in ("v", v), ("eps", eps), ("x0", x):
            seen = []
            assert (P.convert_to_v(lambda rows: seen.append(rows) or out, target, t_scale)(xt, torch.tensor(t), y) - v).abs().max() < 1e-5
            assert torch.allclose(seen[0], torch.hstack([xt, torch.full((6, 1), t * t_scale), y]))
    for target, t in ("eps", 0.0), ("x0", END):  # at the ends, an error of the output is divided by 0.02
        a, b = (P.convert_to_v(lambda rows: x + d, target, 1)(x, torch.tensor(t), y) for d in (0, 0.1))
        assert ((a - b).abs() - 0.1 / 0.02).abs().max() < 1e-3


def test_linear_and_cosine_times_are_those_of_the_papers():
    abar = np.cumprod(1 - np.concatenate([[0], np.linspace(1e-4, 0.02, 1000)]))
    for n in 2, 4, 8, 10, 20:
        linear, cosine, u = P.linear_times(n).numpy(), P.cosine_times(n).numpy(), 1 - np.arange(n + 1) / n
        assert np.abs(linear - np.arcsin(np.sqrt(abar[np.rint(1000 * u).astype(int)]))).max() < 1e-4
        assert np.abs(np.sin(cosine) ** 2 - np.cos(u * END) ** 2).max() < 1e-6  # equation 17 without its offset
    ratio = np.diff(P.linear_times(16).numpy()) / np.diff(P.cosine_times(16).numpy())
    assert 1 / 20 < ratio[0] < 1 / 16 and 2 < ratio[-1] < 2.2


@pytest.mark.parametrize("order", [1, 2])
def test_the_sampler_has_its_order_and_evaluates_once_or_twice_a_step(order):
    seen, y = [], torch.ones(3, 1)
    def net(x, t, label):  # not linear
        assert label is y
        seen.append(t.item())
        return x * torch.cos(3 * t) + t**2 * x**2
    x = torch.linspace(-0.5, 0.5, 6, dtype=torch.float64).reshape(3, 2)
    truth = by_hand(lambda x, t: x * np.cos(3 * t) + t**2 * x**2, x, 2000)
    a, b = (np.abs(P.sample(net, x, y, P.cosine_times(n), order).numpy() - truth).max() for n in (16, 32))
    times = np.repeat(np.linspace(0, END, 17), order)[order - 1:][:16 * order]
    assert abs(np.log2(a / b) - order) < 0.3 and len(seen) == 48 * order and np.allclose(seen[:16 * order], times, atol=1e-6)


@pytest.mark.parametrize("t", [0.3, 0.8, 1.2])
def test_guidance_adds_w_times_the_gradient_of_the_label(t):
    """v with label y is v without + s / a times the gradient of log p(y | xt), here by differences on exact densities."""
    a, s = np.sin(t), np.cos(t)
    def log_p(xt):  # log p(y = 1 | xt)
        like = np.exp(-((xt[:, None] - a * C) ** 2).sum(2) / (2 * ((a * W) ** 2 + s**2)))
        return np.log((0.8 * like[:, :32].sum(1) + 0.2 * like[:, 32:].sum(1)) / like.sum(1))
    xt = a * moons.samples(50, np.random.default_rng(0)) + s * np.random.default_rng(1).standard_normal((50, 2))
    gradient = np.stack([(log_p(xt + d) - log_p(xt - d)) / 2e-5 for d in 1e-5 * np.eye(2)], 1)
    for w in 0, 1, 3:
        guided = P.guide(lambda xt, t, y: torch.tensor(exact_v(xt.numpy(), t, y[0].item())), w)(torch.tensor(xt), t, torch.ones(50, 1)).numpy()
        assert np.abs(guided - exact_v(xt, t, 0) - w * s / a * gradient).max() < 1e-5


@pytest.mark.parametrize("target", ["v", "eps", "x0"])
def test_a_trained_net_is_the_mean_of_the_target_with_and_without_label(target, monkeypatch, capsys):
    """Data at (2, 0) and (-2, 0), labels 1 and -1. With a label, x is known; without, E[x | xt] = 2 tanh(2 a xt / s^2)."""
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    y, at = torch.tensor([1, -1]).repeat(500)[:, None], torch.tensor([[2.0, 0.0]])
    net = P.train(y * at, y, target, 1, 410)
    assert np.allclose(rates, 0.03 * (1 - np.arange(410) / 410))
    assert re.findall(r"iteration (\d+) of 410: loss \d", capsys.readouterr().out) == ["0", "100", "200", "300", "400"]
    t = 0.2 + torch.rand(2000, 1)
    a, s, sign = t.sin(), t.cos(), 1.0 - 2 * torch.randint(2, (2000, 1))
    xt = a * sign * at + s * torch.randn(2000, 2)
    for label, side, room in (sign, sign, 0.03), (0 * sign, torch.tanh(2 * a * xt[:, :1] / s**2), 0.1):
        eps = (xt - a * side * at) / s
        mean = {"v": s * side * at - a * eps, "eps": eps, "x0": side * at}[target]
        assert (net(torch.hstack([xt, t, label])) - mean).square().mean() < room * mean.square().mean()


def test_of_128_sines_of_time_22_move_at_t_scale_1_and_118_at_1000():
    for t_scale, count in (1, 22), (1000, 118):  # 64 frequencies; moved by more than 0.1 while t goes from 0 to 1
        angle = t_scale * np.linspace(0, 1, 20_001)[:, None] * 10_000.0 ** (-np.arange(64) / 64)
        assert sum((np.ptp(f(angle), axis=0) > 0.1).sum() for f in (np.sin, np.cos)) == count


def test_data_are_two_moons_with_wrong_labels_and_the_net_knows_v(run):
    ns, radius = run.ns, np.linalg.norm(run.ns.upper.numpy() * 0.7107 + (0.5, 0.25), axis=1)
    assert abs(radius.mean() - 1.004) < 0.006 and abs(radius.std() - 0.09) < 0.005
    is_upper = np.linalg.norm(ns.x.numpy()[:, None] - C, axis=2).argmin(1) < 32
    assert abs(is_upper.mean() - 0.5) < 0.04 and abs((ns.y[:, 0].numpy() != 2 * is_upper - 1).mean() - 0.2) < 0.03
    assert max(error(ns, t, y) for t in (0.05, 0.3, 0.8, 1.3, END - 0.05) for y in (1, -1, 0)) < 0.25


def test_the_chart_and_claims_are_distances_to_the_exact_ends(run):
    ns, found = run.ns, {}
    exact = by_hand(field(ns), ns.noise, 150)
    for name, nfe, times, order in (("Euler, linear", 16, P.linear_times(16).double().numpy(), 1), ("Euler, cosine", 16, 16, 1),
                                    ("Heun, cosine", 16, 8, 2), ("Euler, cosine", 2, 2, 1), ("Heun, cosine", 2, 1, 2)):
        found[name, nfe] = np.linalg.norm(by_hand(field(ns), ns.noise, times, order) - exact, axis=1).mean()
    linear, cosine, heun = truth = [found[text.get_text(), 16] for text in ns.bars.get_xticklabels()]
    assert np.allclose([patch.get_height() for patch in ns.bars.patches], truth, rtol=0.03, atol=3e-4)
    assert np.allclose(run.numbers()["C1"] + run.numbers()["C2"], (cosine, linear, heun, cosine), rtol=0.03, atol=3e-4)
    assert np.allclose([int(n) for n in re.findall(r"error: (\d+)%", ns.bars.get_title())], [100 * cosine / linear, 100 * heun / cosine], atol=1.5)
    assert found["Heun, cosine", 2] > 2 * found["Euler, cosine", 2] and 2 * heun < cosine  # few evaluations, and many


def test_the_curves_are_what_convert_to_v_makes_of_an_error_of_1(run):
    parts = run.ns.factor.lines, run.ns.factor.get_legend().get_texts(), ("eps", "x0"), ("1 / a (a: share of data)", "1 / s (s: share of noise)")
    for line, name, target, factor in zip(*parts, strict=True):
        v = lambda t: P.convert_to_v(lambda rows: torch.ones(1, 1), target, 1)(torch.zeros(1, 2), torch.tensor(t), torch.ones(1, 1)).abs().max().item()
        assert name.get_text() == f"{target}: {factor}" and np.allclose([v(t) for t in line.get_xdata()], line.get_ydata(), rtol=1e-3)


def test_clouds_titles_and_slider_are_guided_samples(run):
    ns, off = run.ns, {}
    for w in 2, 0, 1, 8, 4:
        ns.slider.set_val(w) if off else None  # the default comes first
        for ax, v in zip(ns.dots, (1, w, 8), strict=True):
            blue, shown, off[v] = cloud(ns, ax)
            assert shown == f"guidance w = {v}" and np.abs(blue[:200] - by_hand(field(ns, v), ns.noise[:200], 40)).mean() < 0.002 * (v + 1)
    assert abs(off[1] - 0.23) < 0.04 and off[8] > 0.3 and np.allclose(run.numbers()["C3"], (off[2], 0.2), atol=0.006)


def test_exact_guidance_keeps_to_the_moon_and_empties_its_right_foot(run):
    share, foot = {}, {}  # on the upper moon; of these, in its quarter in the bend of the lower moon
    for w in 1, 2, 8:
        end = by_hand(lambda x, t: (1 - w) * exact_v(x, t, 0) + w * exact_v(x, t, 1), run.ns.noise[:400], 30)
        distance = np.linalg.norm(end[:, None] - C, axis=2)
        nearest = distance.argmin(1)
        share[w], foot[w] = (nearest < 32).mean(), (nearest[nearest < 32] < 8).mean()
    assert abs(share[1] - 0.8) < 0.05 and abs(share[2] - 16 / 17) < 0.04 and share[8] > 0.99
    assert abs(foot[1] - 0.25) < 0.06 and foot[2] > 0.1 and foot[8] < 0.01 and (distance.min(1) < 0.5).all()


def test_breaks_and_other_targets_err_where_they_are_divided(lesson, run):
    eps, x0 = lesson(NAME, "--target", "eps"), lesson(NAME, "--target", "x0")
    noise, data = ([error(n, t, 1) for n in (run.ns, eps.ns, x0.ns)] for t in (0.05, END - 0.05))  # near noise, near data
    assert eps.claims() == {"C1": False, "C2": True, "C3": True} and x0.claims() == {"C1": True, "C2": False, "C3": True}
    assert noise[1] > 4 * max(noise[::2]) and data[2] > 4 * max(data[:2])


def test_t_scale_1000_keeps_units_off_their_bend_and_the_loss_high(run):
    for net, t_scale, bent, low, high in (run.ns.net, 1, 1, 0.7, 0.92), (run.ns.net_2, 1000, 0, 0.92, 1.2):
        rows = torch.cat([torch.randn(500, 2), torch.full((500, 1), 0.8 * t_scale), torch.ones(500, 1)], 1)
        assert abs((net[0](rows).abs() < 6).float().mean() - bent) < 0.1  # beyond 6, SiLU is 0 or linear to 0.015
        assert low < float(re.findall(rf"iteration 500 .*: loss (\S+) \(t_scale {t_scale}\)", run.text)[0]) < high
    ns, (blue, shown, off) = run.ns, cloud(run.ns, run.ns.blob)
    assert shown == "t_scale = 1000" and abs(off - 0.56) < 0.1
    assert np.abs(blue[:200] - by_hand(field(ns, net=ns.net_2, t_scale=1000), ns.noise[:200], 20)).mean() < 0.002


def test_claims_figure_page_and_seeds(run, first_loss, limits):
    assert run.claims() == {"C1": True, "C2": True, "C3": True} and limits(NAME) is None
    page_agrees(NAME, run)
    assert first_loss(NAME, "--seed", "0") in run.text and first_loss(NAME, "--seed", "4294967295") not in run.text


@pytest.mark.parametrize("flags", [("--target", "x"), ("--t-scale", "0"), ("--iters", "0"), ("--iters", "1000001"), ("--seed", "-1"), ("--seed", "9" * 21)])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
