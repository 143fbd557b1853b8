"""Lesson 09: its closed forms, solvers, guidance, slider and breaks, each by another road."""
import math

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_hex

NAME = "09_knobs"
D = torch.float64


def num(value):
    return torch.tensor(value, dtype=D)


def test_default_run(lesson):
    run = lesson(NAME)
    assert run.claims() == {f"C{i}": True for i in range(1, 7)}
    image = plt.imread(run.folder / "09_knobs.png")
    assert image.shape[0] > 400 and image[..., :3].std() > 0.05
    assert sum(line.startswith("iter") for line in run.text.splitlines()) == 8


def brute_force(centres, sd, xt, a, s):
    """E[x | xt], E[eps | xt] of one point in plain Python: Bayes over the Gaussians, one at a time."""
    var, weights, xs, epss = (a * sd) ** 2 + s**2, [], [], []
    for c in centres:
        d = [xt[j] - a * c[j] for j in (0, 1)]
        weights.append(math.exp(-(d[0] ** 2 + d[1] ** 2) / (2 * var)))
        xs.append([c[j] + a * sd**2 / var * d[j] for j in (0, 1)])  # regression of x on xt, given c
        epss.append([s / var * d[j] for j in (0, 1)])
    total = sum(weights)
    return [[sum(w * m[j] for w, m in zip(weights, means)) / total for j in (0, 1)] for means in (xs, epss)]


POINTS = torch.tensor([[0.3, -0.4], [-0.5, 0.2], [0.8, 0.1], [-1.2, 1.0]], dtype=D)


@pytest.mark.parametrize("phi", [0.1, 0.8, 1.3])
def test_velocity_by_brute_force(lesson, phi):
    ns = lesson(NAME).ns
    a, s = math.sin(phi), math.cos(phi)
    for mu, sd in [(ns.MU, ns.SD), (ns.MU, ns.WIDE), (ns.MU[:32], ns.WIDE)]:
        got = ns.velocity(POINTS, num(phi), mu, sd)
        for row, v in zip(POINTS.tolist(), got.tolist()):
            x_hat, eps_hat = brute_force(mu.tolist(), sd, row, a, s)
            assert max(abs(s * x_hat[j] - a * eps_hat[j] - v[j]) for j in (0, 1)) < 1e-10
            back = [a * row[j] + s * v[j] for j in (0, 1)]  # the conversions that C2 is measured by
            assert max(abs(back[j] - x_hat[j]) for j in (0, 1)) < 1e-10
            assert max(abs(s * row[j] - a * v[j] - eps_hat[j]) for j in (0, 1)) < 1e-10
    assert ns.velocity(POINTS, num(math.pi / 2)).isfinite().all()  # s = 0


def test_velocity_carries_the_density(lesson):
    """Instantaneous change of variables: d log p / d phi along v is -div v (autograd, float64)."""
    ns = lesson(NAME).ns

    def log_p(xt, phi):
        a, s = phi.sin(), phi.cos()
        var = (a * ns.SD) ** 2 + s**2
        return (-((xt[:, None] - a * ns.MU) ** 2).sum(2) / (2 * var) - var.log()).logsumexp(1)

    for angle in (0.5, 1.0, 1.3):
        x, phi = POINTS.clone().requires_grad_(), num(angle).requires_grad_()
        v = ns.velocity(x, phi)
        div = sum(torch.autograd.grad(v[:, j].sum(), x, retain_graph=True)[0][:, j] for j in (0, 1))
        score = torch.autograd.grad(log_p(x, phi).sum(), x)[0]
        for i in range(len(x)):
            rate = torch.autograd.grad(log_p(x[i : i + 1], phi).sum(), phi)[0]
            assert abs(rate + (score[i] * v[i]).sum() + div[i]).item() < 1e-9


def test_follow_against_other_code(lesson):
    """Euler, RK4 and DDIM written out again; the orders; both schedules' levels."""
    ns = lesson(NAME).ns
    start = math.asin(math.exp(-5.025))

    def grid(n, schedule):
        if schedule == "cosine":
            return [start + (math.pi / 2 - start) * i / n for i in range(n + 1)]
        return [math.asin(math.exp(-(0.1 * u + 9.95 * u**2) / 2)) for u in (1 - i / n for i in range(n + 1))]

    x = ns.noise.double()
    keep = ns.noise
    ns_globals = ns.follow.__globals__
    ns_globals["noise"] = x
    try:
        for schedule in ("cosine", "linear"):
            phi = grid(5, schedule)
            euler, ddim, rk4 = x, x, x
            for p, q in zip(phi, phi[1:]):
                h = q - p
                euler = euler + h * ns.velocity(euler, num(p))
                v = ns.velocity(ddim, num(p))
                x_hat = math.sin(p) * ddim + math.cos(p) * v
                eps_hat = math.cos(p) * ddim - math.sin(p) * v
                ddim = math.sin(q) * x_hat + math.cos(q) * eps_hat  # lesson 07's step with eta = 0
                k1 = ns.velocity(rk4, num(p))
                k2 = ns.velocity(rk4 + h / 2 * k1, num(p + h / 2))
                k3 = ns.velocity(rk4 + h / 2 * k2, num(p + h / 2))
                k4 = ns.velocity(rk4 + h * k3, num(q))
                rk4 = rk4 + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            for name, want, calls in (("euler", euler, 5), ("ddim", ddim, 5), ("rk4", rk4, 20)):
                got = ns.follow(ns.velocity, calls, name, schedule)
                assert (got - want).abs().max().item() < 1e-8, (name, schedule)
        for name, order in (("euler", 1), ("ddim", 1), ("rk4", 4)):
            k = len(ns.STAGES[name])
            ends = [ns.follow(ns.velocity, k * n, name) for n in (64, 128, 256)]
            gaps = [(ends[i] - ends[i + 1]).norm(dim=1) for i in (0, 1)]
            assert abs((gaps[0] / gaps[1]).log2().median().item() - order) < 0.2, name
        fine = ns.follow(ns.velocity, 1600, "rk4")
        assert (fine - ns.home).norm(dim=1).mean().item() < 1e-5  # `home` is the exact end
    finally:
        ns_globals["noise"] = keep


def test_calls_are_counted(lesson):
    ns, seen = lesson(NAME).ns, []

    def v(xt, phi):
        seen.append(phi)
        return 0 * xt

    for name in ns.STAGES:
        for calls in ns.CALLS:
            seen.clear()
            ns.follow(v, calls, name)
            assert len(seen) == calls, name


def test_chord_has_no_crossing(lesson):
    """README: on the straight path x_t = t x + (1 - t) eps RK4 beats Euler at 8 calls already."""
    ns = lesson(NAME).ns

    def straight(xt, t):
        angle = torch.atan2(t, 1 - t)  # the chord laid on the arc: divide by r
        r = (t**2 + (1 - t) ** 2).sqrt()
        v = ns.velocity(xt / r, angle)
        x_hat = angle.sin() * xt / r + angle.cos() * v
        eps_hat = angle.cos() * xt / r - angle.sin() * v
        return x_hat - eps_hat

    miss = {}
    for name in ("euler", "rk4"):
        x, n = ns.noise, 8 // len(ns.STAGES[name])
        for i in range(n):
            slope, move = 0, 0
            for ahead, weight in ns.STAGES[name]:
                slope = straight(x + ahead / n * slope, torch.tensor((i + ahead) / n))
                move = move + weight * slope
            x = x + move / n
        miss[name] = (x - ns.home).norm(dim=1).mean().item()
    assert miss["rk4"] < 0.8 * miss["euler"]


def class_log_p(ns, xt, a, s):
    """log p(class | xt) as a ratio of two sums of densities."""
    near = -((xt[:, None] - a * ns.MU) ** 2).sum(2) / (2 * ((a * ns.WIDE) ** 2 + s**2))
    return near[:, :32].logsumexp(1) - near.logsumexp(1)


def test_guidance_is_a_classifier_gradient(lesson):
    """w = 0: the unlabelled field, exactly; w = 1: the labelled; between and beyond, w grad log p(c | xt) / tan."""
    ns = lesson(NAME).ns
    xt = (1.2 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=D)).requires_grad_()
    for w in (0, 1, 1.5, 8):
        ns.slider.set_val(w)
        for phi in (num(0.4), num(0.9), num(1.4)):
            null = ns.velocity(xt, phi, ns.MU, ns.WIDE)
            slope = torch.autograd.grad(class_log_p(ns, xt, phi.sin(), phi.cos()).sum(), xt)[0]
            gap = ns.guided(xt, phi) - null - w * slope / phi.tan()
            assert gap.abs().max().item() < 1e-10
            if w == 0:
                assert torch.equal(ns.guided(xt, phi), null)
            if w == 1:
                assert (ns.guided(xt, phi) - ns.velocity(xt, phi, ns.MU[:32], ns.WIDE)).abs().max() < 1e-12
    ns.slider.set_val(1.5)


def test_in_class_and_its_best_share(lesson):
    """p(class | x) against densities; .915 by a grid over the plane; the rejection against weights."""
    ns = lesson(NAME).ns
    assert (ns.in_class(POINTS).log() - class_log_p(ns, POINTS, 1.0, 0.0)).abs().max() < 1e-10
    axis = torch.linspace(-5, 5, 301, dtype=D)
    grid = torch.cartesian_prod(axis, axis)
    near = -((grid[:, None] - ns.MU[:32]) ** 2).sum(2) / (2 * ns.WIDE**2)
    p = near.exp().sum(1) / (32 * 2 * math.pi * ns.WIDE**2) * (axis[1] - axis[0]) ** 2  # p(x | class)
    assert abs(p.sum().item() - 1) < 1e-6
    assert abs(p[ns.in_class(grid) > 0.5].sum().item() - 0.915) < 0.001
    other = -((grid[:, None] - ns.MU[32:]) ** 2).sum(2) / (2 * ns.WIDE**2)
    q = p + other.exp().sum(1) / (32 * 2 * math.pi * ns.WIDE**2) * (axis[1] - axis[0]) ** 2
    weight = q * ns.in_class(grid) ** 1.5  # p(x) p(class | x)^w
    mean = (weight[:, None] * grid).sum(0) / weight.sum()
    drawn = []
    for _ in range(8):
        ns.draw(1.5)
        drawn.append(torch.tensor(ns.axes["e"].lines[0].get_xydata()).mean(0))
    assert (torch.stack(drawn).mean(0) - mean).abs().max().item() < 0.06  # the grey cloud


def test_slider(lesson):
    ns = lesson(NAME).ns
    seen = {}
    for w in (0, 1, 1.5, 8):
        ns.slider.set_val(w)
        grey, cloud = ns.axes["e"].lines
        title = ns.axes["e"].get_title()
        seen[w] = (float(title.split()[-1]), float(title.split()[4].rstrip("%")), cloud.get_xydata().copy(),
                   to_hex(cloud.get_color()), title)
    assert len({s[4] for s in seen.values()}) == 4
    assert abs(seen[0][0]) < 0.01 and abs(seen[1][0]) < 0.01  # w = 0, 1: exact densities
    assert abs(seen[0][1] - 50) < 5 and abs(seen[1][1] - 91.5) < 2.5  # of two equal moons; of its own
    assert seen[1][0] < seen[1.5][0] < seen[8][0] and seen[8][0] > 0.5 and seen[8][1] > 99.5
    assert seen[8][3] == to_hex("tab:red") and seen[1.5][3] == to_hex("tab:blue")
    assert abs(seen[8][2] - seen[1.5][2]).max() > 0.5
    spread = {w: seen[w][2].std(0).mean() for w in seen}
    assert spread[8] < 0.75 * spread[1]
    ns.slider.set_val(1.5)


def test_energy_distance_in_the_title(lesson):
    ns = lesson(NAME).ns
    _, ed = ns.draw(8.0)  # the slider says 1.5: only the grey cloud is asked for w = 8
    x, y = [torch.tensor(line.get_xydata()).double() for line in ns.axes["e"].lines[::-1]]
    n, m = len(x), len(y)
    want = 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).sum() / (n * (n - 1)) - torch.cdist(y, y).sum() / (m * (m - 1))
    assert abs(want.item() - ed) < 1e-4
    ns.slider.set_val(1.0)
    ns.slider.set_val(1.5)


def test_nets_against_bayes(lesson):
    """C2, C4 from fresh points: the nets' answers turned into v by solving two linear equations."""
    ns = lesson(NAME).ns
    torch.manual_seed(5)
    errors = {}
    for t in (0.02, 0.5, 0.98):
        with torch.no_grad():
            a, s, xt, target, out = ns.batch(torch.full((4000, 1), t))
        assert (a[0] - math.sin(math.pi / 2 * t)).abs().max() < 1e-6
        assert (a * target[1] + s * target[0] - xt).abs().max() < 1e-5  # a x + s eps
        assert (s * target[1] - a * target[0] - target[2]).abs().max() < 1e-5 and torch.equal(target[2], target[3])
        v = ns.velocity(xt.double(), num(math.pi / 2 * t))
        x_of_eps, eps_of_x = (xt - s * out[0]) / a, (xt - a * out[1]) / s
        guess = [s * x_of_eps - a * out[0], s * out[1] - a * eps_of_x, out[2], out[3]]
        errors[t] = [(g - v).square().mean().sqrt().item() for g in guess]
    assert errors[0.02][0] > 3 * errors[0.02][2] and errors[0.98][1] > 3 * errors[0.98][2]
    curves = [ns.de, ns.dx, ns.dv, ns.still]
    for k, t in ((0, 0.02), (24, 0.5), (48, 0.98)):
        for curve, want in zip(curves, errors[t]):
            assert abs(curve[k].item() - want) < 0.35 * want
    assert len(ns.de) == 49


def test_break_w(lesson):
    claims = lesson(NAME, "--w", "8", "--iters", "800").claims()
    assert {c for c, ok in claims.items() if not ok} == {"C6"}


def test_break_t_scale(lesson):
    run = lesson(NAME, "--t-scale", "1", "--iters", "500")
    assert {c for c, ok in run.claims().items() if not ok} == {"C4"}
    one, two = run.ns.axes["d"].lines
    assert abs(one.get_ydata() - two.get_ydata()).max() < 1e-6  # the figure: two curves are one


def test_w_0_puts_half_into_the_class(lesson):
    claims = lesson(NAME, "--w", "0", "--iters", "20").claims()
    assert not claims["C5"] and claims["C6"]


def test_refused(refused):
    for flags in [("--w", "-0.1"), ("--w", "8.1"), ("--w", "nan"), ("--t-scale", "0.5"), ("--t-scale", "1e6"),
                  ("--t-scale", "nan"), ("--iters", "0"), ("--seed", "-1"), ("--seed", "9999999999"),
                  ("--out", "/nonexistent/x.png"), ("--out", "x.xyz")]:
        refused(NAME, *flags)
