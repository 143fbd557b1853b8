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
P = paste(NAME, "convert_to_v", "linear_times", "cosine_times", "sample", "guide")

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

def field(ns, w=1):
    """The run's net as a function of x and t, guided, without the lesson's `convert_to_v` and `guide`."""
    v = lambda x, t, y: ns.net(torch.tensor(np.column_stack([x, np.full((len(x), 2), [t, y])])).float()).double().numpy()
    return lambda x, t: w * v(x, t, 1) + (1 - w) * v(x, t, 0)

def by_hand(v, x, times, order=2):
    """Where the steps of v(x, t) end, in numpy and float64: another road than `sample`. A number means equal steps."""
    x, times = np.asarray(x, dtype=float), np.linspace(0, END, times + 1) if isinstance(times, int) else times
    for start, end in zip(times[:-1], times[1:]):
        slope = v(x, start)
        x = x + (end - start) / 2 * (slope + (v(x + (end - start) * slope, end) if order == 2 else slope))
    return x

def cloud(ns, ax):  # samples, and the title's w and share of misses, whose samples are red: over 0.1 from the upper moon
    w, percent = map(int, re.fullmatch(r"Knob 5, w = (\d): (\d+)% miss", ax.get_title()).groups())
    data, blue, red = (np.column_stack(line.get_data()) for line in ax.lines)
    assert [to_hex(line.get_color()) for line in ax.lines] == ["#cccccc", "#1f77b4", "#ff0000"] and np.abs(data - ns.x.numpy()).max() < 1e-6
    off = ((blue[:, None] - ns.upper.numpy())**2).sum(2).min(1) > 0.1**2
    assert ((blue[:, None] == red).all(2).any(1) == off).mean() > 0.998 and abs(off.mean() - percent / 100) < 0.007
    return blue, w, off.mean()

def test_each_target_is_converted_to_the_velocity():
    x, eps, y = torch.randn(6, 2), torch.randn(6, 2), torch.tensor([[1.0], [-1], [0], [1], [0], [-1]])
    for t in 0.1, 0.7, 1.4:
        xt, v = np.sin(t) * x + np.cos(t) * eps, np.cos(t) * x - np.sin(t) * eps
        for target, out in ("v", v), ("eps", eps), ("x0", x):
            seen = []
            assert (P.convert_to_v(lambda rows: seen.append(rows) or out, target)(xt, torch.tensor(t), y) - v).abs().max() < 1e-5
            assert torch.allclose(seen[0], torch.hstack([xt, torch.full((6, 1), t), y]))
    for target, t in ("eps", 0.0), ("x0", END):  # at the ends, an error of the output is divided by 0.02
        a, b = (P.convert_to_v(lambda rows: x + d, target)(x, torch.tensor(t), y) for d in (0, 0.1))
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

def test_training_sees_the_path_and_labels_of_which_one_in_ten_is_dropped(lesson, monkeypatch):
    """With normal numbers replaced by 5, the net must see a x + s eps, t, and the label of x or 0, and learn s x - a eps."""
    rates, seen, step, forward = [], [], torch.optim.Adam.step, torch.nn.Sequential.forward
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    monkeypatch.setattr(torch.nn.Sequential, "forward", lambda self, rows: seen.append(rows) or forward(self, rows))
    monkeypatch.setattr(torch, "randn", lambda *shape: torch.full(shape, 5.0))
    run = lesson(NAME, "--iters", "201")
    assert np.allclose(rates, 0.03 * (1 - np.arange(201) / 201)) and {len(rows) for rows in seen[:201]} == {1024}
    assert [len(weight) for weight in run.ns.net.parameters()] == [64] * 6 + [2] * 2 and not run.ns.net[0].weight.requires_grad
    assert re.findall(r"iteration (\d+) of 201: loss \d", run.text) == ["0", "100", "200"]
    xt, t, y = torch.cat(seen[:201]).split([2, 1, 1], 1)
    assert abs(t.mean() - END / 2) < 0.01 and abs(t.std() - END * 12**-0.5) < 0.01 and t.min() >= 0 and t.max() <= END
    assert abs((y == 0).float().mean() - 0.1) < 0.003 and set(y.unique().tolist()) == {-1, 0, 1}
    late, ns = t[:, 0] > 0.3, run.ns
    x, y = ((xt - 5 * t.cos()) / t.sin())[late][:9000], y[late][:9000]
    distance, row = torch.cdist(x, ns.x).min(1)
    assert distance.max() < 1e-3 and ((y == ns.y[row]) | (y == 0)).all()  # the label of the same row
    t = seen[200][:, 2:3]
    v = t.cos() * (seen[200][:, :2] - 5 * t.cos()) / t.sin() - 5 * t.sin()
    assert (ns.net(seen[200]) - v)[t[:, 0] > 0.3].abs().mean() < 0.2

def test_of_128_sines_of_time_22_move_at_t_scale_1_and_118_at_1000(run, lesson):
    for t_scale, count in (1, 22), (1000, 118):  # 64 frequencies; moved by more than 0.1 while t goes from 0 to 1
        angle = t_scale * np.linspace(0, 1, 20_001)[:, None] * 10_000.0 ** (-np.arange(64) / 64)
        assert sum((np.ptp(f(angle), axis=0) > 0.1).sum() for f in (np.sin, np.cos)) == count
    for ns, t_scale in (run.ns, 1000), (lesson(NAME, "--target", "eps", "--t-scale", "10").ns, 10):
        size = [np.abs(np.sin(k * np.linspace(0.03, 1.54, 3000) * 10_000.0 ** (-np.arange(32)[:, None] / 31))).max(1) for k in (1, t_scale)]
        assert np.abs([line.get_ydata() for line in ns.waves.lines] - np.array(size)).max() < 1e-3 and ns.waves.get_legend().texts[1].get_text() == f"t_scale {t_scale}"
        assert sum(size[0] > 0.1) < 16 and (t_scale < 1000 or sum(size[1] > 0.1) > 24)  # most hardly move; most move

def test_a_net_that_reads_sines_errs_less_with_t_scale_1000_than_with_1_and_more_with_a_million():
    waves = lambda t, k: torch.hstack([f(k * t * 10_000 ** (-torch.arange(32) / 32)) for f in (torch.sin, torch.cos)])
    found = []
    for k in 1, 1000, 10**6:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(66, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(),
                                  torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2))
        optimizer, rng, gaps = torch.optim.Adam(net.parameters()), np.random.default_rng(0), []
        for i in range(600):
            optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / 600)
            x, eps, t = torch.tensor(moons.samples(1024, rng)).float(), torch.randn(1024, 2), END * torch.rand(1024, 1)
            loss = (net(torch.hstack([t.sin() * x + t.cos() * eps, waves(t, k)])) - t.cos() * x + t.sin() * eps).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for t in np.linspace(0.05, 1.5, 12):
            xt = np.sin(t) * moons.samples(1000, rng) + np.cos(t) * rng.standard_normal((1000, 2))
            v = net(torch.hstack([torch.tensor(xt).float(), waves(torch.full((1000, 1), float(t)), k)])).detach().numpy()
            gaps.append(((v - exact_v(xt, t, 0)) ** 2).mean())
        found.append(np.sqrt(np.mean(gaps)))
    assert np.allclose(found, (0.16, 0.09, 0.24), atol=0.05) and found[1] < 0.85 * found[0]

def test_data_are_two_moons_with_wrong_labels_and_the_net_knows_v(run):
    ns, radius = run.ns, np.linalg.norm(run.ns.upper.numpy() * 0.7107 + (0.5, 0.25), axis=1)
    assert abs(radius.mean() - 1.004) < 0.006 and abs(radius.std() - 0.09) < 0.005
    is_upper = np.linalg.norm(ns.x.numpy()[:, None] - C, axis=2).argmin(1) < 32
    assert abs(is_upper.mean() - 0.5) < 0.04 and abs((ns.y[:, 0].numpy() != 2 * is_upper - 1).mean() - 0.2) < 0.03
    assert max(error(ns, t, y) for t in (0.05, 0.3, 0.8, 1.3, END - 0.05) for y in (1, -1, 0)) < 0.25

def test_the_chart_and_claims_are_distances_to_the_exact_ends(run):
    ns, found = run.ns, {}
    exact, nfe = by_hand(field(ns), ns.noise, 150), [2, 4, 8, 16, 32, 64]
    times = {"Euler, linear": lambda n: P.linear_times(n).double().numpy(), "Euler, cosine": lambda n: n, "Heun, cosine": lambda n: n // 2}
    for line, text in zip(ns.errors.lines, ns.errors.get_legend().get_texts(), strict=True):
        name = text.get_text()
        found[name] = np.array([np.linalg.norm(by_hand(field(ns), ns.noise, times[name](n), 1 + (name[0] == "H")) - exact, axis=1).mean() for n in nfe])
        assert np.allclose(line.get_ydata(), found[name], rtol=0.03, atol=2e-4) and [*map(int, line.get_xdata(orig=True))] == nfe
    linear, cosine, heun = (found[name] for name in times)
    assert np.allclose(run.numbers()["C1"] + run.numbers()["C2"], (cosine[3], linear[3], heun[3], cosine[3]), rtol=0.03, atol=3e-4)
    numbers = re.fullmatch(r"Knob 3, cosine: (\d+)% of linear's error\nKnob 4, Heun: (\d+)% of Euler's error", ns.errors.get_title()).groups()
    assert np.allclose([int(n) for n in numbers], [100 * (cosine / linear)[3], 100 * (heun / cosine)[3]], atol=1.5)
    assert (cosine < linear).all() and heun[0] > 2 * cosine[0] and 2 * heun[3] < cosine[3] and 3 < heun[4] / heun[5] < 6 and 1.6 < cosine[4] / cosine[5] < 2.4

def test_the_curves_are_what_convert_to_v_makes_of_an_error_of_1(run):
    parts = run.ns.factors.lines, run.ns.factors.get_legend().get_texts(), ("eps", "x0"), ("1 / a (a: share of data)", "1 / s (s: share of noise)")
    for line, name, target, factor in zip(*parts, strict=True):
        v = lambda t: P.convert_to_v(lambda rows: torch.ones(1, 1), target)(torch.zeros(1, 2), torch.tensor(t), torch.ones(1, 1)).abs().max().item()
        assert name.get_text() == f"{target}: {factor}" and np.allclose([v(t) for t in line.get_xdata()], line.get_ydata(), rtol=1e-3)

def test_clouds_titles_and_slider_are_guided_samples(run):
    ns, off = run.ns, {}
    for w in 2, 0, 1, 8, 4:
        ns.slider.set_val(w) if off else None  # the default comes first
        for ax, v in zip(ns.dots, (1, w, 8), strict=True):
            blue, shown, off[v] = cloud(ns, ax)
            assert shown == v and np.abs(blue[:200] - by_hand(field(ns, v), ns.noise[:200], 40)).mean() < 0.002 * (v + 1)
    assert abs(off[1] - 0.23) < 0.04 and off[8] > 0.3 and run.numbers()["C3"] == (2000 * off[2], 400)

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
    eps, x0 = lesson(NAME, "--target", "eps", "--t-scale", "10"), lesson(NAME, "--target", "x0")
    noise, half, data = ([error(n, t, 1) for n in (run.ns, eps.ns, x0.ns)] for t in (0.05, 0.7, END - 0.05))  # near noise, near data
    assert eps.claims() == {"C1": False, "C2": True, "C3": True} and x0.claims() == {"C1": True, "C2": False, "C3": True} and max(half) < 0.25
    assert noise[1] > 4 * max(noise[::2]) and data[2] > 4 * max(data[:2])

def test_claims_figure_page_and_seeds(run, first_loss, limits):
    assert run.claims() == {"C1": True, "C2": True, "C3": True} and limits(NAME) is None
    page_agrees(NAME, run)
    assert first_loss(NAME, "--seed", "0") in run.text and first_loss(NAME, "--seed", "4294967295") not in run.text

@pytest.mark.parametrize("flags", [("--target", "x"), ("--t-scale", "0"), ("--t-scale", "1000001"), ("--iters", "0"), ("--iters", "1000001"), ("--seed", "-1"), ("--seed", "9" * 21)])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
