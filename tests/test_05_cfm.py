"""05: the path, its fields, the continuity equation, the three losses, widgets, breaks, bad flags."""
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

NAME = "05_cfm"
IDENTITIES = ["C1", "C2", "C3"]


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


@pytest.fixture(scope="module")
def ns(run):
    return run.ns


def reference(ns, xt, t, bend):
    """E[x | xt], E[eps | xt], p(xt) of ONE point by the two-block Gaussian of every component, numpy."""
    mu, sd, a, s = ns.MU.cpu().numpy(), ns.SD, t**bend, (1 - t) ** bend
    cov = a**2 * sd**2 + s**2
    weight = np.exp(-((xt - a * mu) ** 2).sum(1) / (2 * cov)) / (2 * math.pi * cov) / len(mu)  # (64,)
    posterior = weight / weight.sum()
    x_hat = posterior @ (mu + a * sd**2 / cov * (xt - a * mu))
    eps_hat = posterior @ (s / cov * (xt - a * mu))
    return x_hat, eps_hat, weight.sum()


def test_default_run(run):
    assert run.claims() == {f"C{i}": True for i in range(1, 7)}
    pixels = plt.imread(run.folder / "05_cfm.png")[..., :3]
    assert pixels.shape[:2] == (600, 1440) and pixels.std() > 0.1
    losses = [float(row.split()[3]) for row in run.text.splitlines() if row.startswith("iter")]
    assert len(losses) == 8 and losses[-1] < 1.02 * run.ns.floor and losses[0] > 1.01 * run.ns.floor


def test_net_is_as_good_as_the_exact_field(ns):
    """Loss within 1 % of the best possible; ED of samples within .001 of the exact field's from the same noise."""
    xt, t = ns.at
    assert 1 < ns.mse(ns.field("learned", xt, t), ns.easy).item() / ns.floor < 1.01
    assert abs(ns.ed["learned"] - ns.ed["velocity"]) < 0.001


def test_path_moves_at_its_velocity(ns):
    torch.manual_seed(1)
    x, eps = torch.randn(2, 500, 2, dtype=torch.float64)
    t, h = torch.rand(500, 1, dtype=torch.float64) * 0.9 + 0.05, 1e-5
    for bend in (1, 1.5, 2, 3):
        assert (ns.path(x, eps, 0 * t, bend=bend)[0] - eps).abs().max() == 0
        assert (ns.path(x, eps, 0 * t + 1, bend=bend)[0] - x).abs().max() == 0
        ahead, behind = (ns.path(x, eps, t + d, bend=bend)[0] for d in (h, -h))
        velocity = ns.path(x, eps, t, "velocity", bend)[1]
        assert ((ahead - behind) / (2 * h) - velocity).abs().max() < 1e-7
    xt, wrong = ns.path(x, eps, t, "data-xt", 1)
    assert (wrong - (1 - t) * (x - eps)).abs().max() < 1e-12  # a straight path, braked by 1 - t


@pytest.mark.parametrize("bend", [1, 2])
def test_fields_are_the_posterior_means(ns, bend):
    torch.manual_seed(2)
    xt = torch.randn(40, 2, dtype=torch.float64)
    for t in (0.05, 0.4, 0.8):
        column = torch.full((40, 1), t, dtype=torch.float64)
        fields = {kind: ns.field(kind, xt, column, bend) for kind in ("velocity", "data", "data-xt")}
        for i, point in enumerate(xt.numpy()):
            x_hat, eps_hat, _ = reference(ns, point, t, bend)
            velocity = bend * (t ** (bend - 1) * x_hat - (1 - t) ** (bend - 1) * eps_hat)
            for kind, want in (("velocity", velocity), ("data", x_hat), ("data-xt", x_hat - point)):
                assert np.abs(fields[kind][i].numpy() - want).max() < 1e-9, kind


def test_velocity_is_the_mean_of_pairs_that_pass(ns):
    """Brute force: keep the pairs that pass near a point at t = .5 and average what they teach."""
    torch.manual_seed(3)
    x, eps = ns.moons(2_000_000), torch.randn(2_000_000, 2)
    xt, goal = ns.path(x, eps, torch.full((len(x), 1), 0.5), "velocity", 1)
    for spot in ([0.6, 0.4], [-0.5, 0.3]):
        near = (xt - torch.tensor(spot)).norm(dim=1) < 0.05
        error = goal[near].std(0).max() / near.sum().sqrt()  # of that mean
        exact = ns.field("velocity", torch.tensor([spot]), torch.tensor([[0.5]]), 1)[0]
        assert near.sum() > 2000 and (goal[near].mean(0) - exact).abs().max() < 5 * error + 0.01


@pytest.mark.parametrize("bend", [1, 2])
def test_continuity_against_finite_differences(ns, bend):
    """The same equation without autograd, float64 central differences on a few points of the grid."""
    t, h = 0.6, 1e-4
    rate = (lambda f: (f(h) - f(-h)) / (2 * h))
    grid = ns.GRID.cpu().numpy()
    spots = [i for i in range(0, len(grid), 97) if np.abs(grid[i]).max() < 1.6]

    def flux(point, i, kind):
        x_hat, eps_hat, p = reference(ns, point, t, bend)
        velocity = bend * (t ** (bend - 1) * x_hat - (1 - t) ** (bend - 1) * eps_hat)
        return p * {"velocity": velocity, "data": x_hat}[kind][i]

    for kind in ("velocity", "data"):
        rest, p, _ = ns.continuity(kind, t, bend)
        scale = rate(lambda d: np.array([reference(ns, q, t + d, bend)[2] for q in grid]))
        scale = np.abs(scale).mean()
        for i in spots:
            q, x, y = grid[i], np.array([1, 0]), np.array([0, 1])
            dp = rate(lambda d: reference(ns, q, t + d, bend)[2])
            dx = rate(lambda d: flux(q + d * x, 0, kind))
            dy = rate(lambda d: flux(q + d * y, 1, kind))
            assert abs((dp + dx + dy) / scale - rest[i].item()) < 1e-4
            assert abs(p[i].item() - reference(ns, q, t, bend)[2]) < 1e-12


def test_slower_velocity_leaves_its_share(ns, monkeypatch):
    """The control: a velocity that is a tenth too slow leaves a tenth of d p/dt, the exact one nothing."""
    assert ns.continuity("velocity", 0.5)[0].abs().mean() < 1e-12
    right = ns.field
    monkeypatch.setitem(ns.continuity.__globals__, "field", lambda *a: 0.9 * right(*a))
    assert abs(ns.continuity("velocity", 0.5)[0].abs().mean() - 0.1) < 1e-9


def test_loss_splits_into_floor_and_error(ns):
    """C2 and C3 once more with fresh pairs and another (random) network; a wrong mean must not pass."""
    torch.manual_seed(4)
    net = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
    x, eps, t = ns.moons(40_000), torch.randn(40_000, 2), torch.rand(40_000, 1)
    x, eps, t = torch.cat([x, -x]), torch.cat([eps, -eps]), torch.cat([t, t])
    xt, easy = ns.path(x, eps, t, "velocity", 1)
    grads, losses = {}, {}
    for kind in ("velocity", "data", "data-xt", "easy"):
        goal = easy if kind == "easy" else ns.field(kind, xt, t, 1)
        loss = ((net(torch.cat([xt, t], 1)) - goal) ** 2).mean()
        grads[kind] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, net.parameters())])
        losses[kind] = loss.item()
    size = grads["velocity"].norm()
    assert (grads["easy"] - grads["velocity"]).norm() / size < 0.05
    assert min((grads["easy"] - grads[k]).norm() / size for k in ("data", "data-xt")) > 0.1
    floor = ((easy - ns.field("velocity", xt, t, 1)) ** 2).mean().item()
    assert abs((losses["easy"] - floor) / losses["velocity"] - 1) < 0.08
    assert 1.33 < floor < 1.41


def test_mirrored_data_are_data(ns):
    """The measures use (x, eps) and (-x, -eps): allowed because the density is symmetric about 0."""
    centres = ns.MU.cpu()
    nearest = (centres[:, None] + centres).norm(dim=2).min(1).values  # (64,)
    assert nearest.max() < 1e-12


def test_sampler_and_energy_distance(ns):
    """`ends` by a plain loop over the independent float64 field, `ed` by summing all pairs."""
    x = ns.noise[:8].double().cpu()
    for i in range(50):
        step = [np.subtract(*reference(ns, q, i / 50, 1)[:2]) for q in x.numpy()]
        x = x + torch.tensor(np.array(step)) / 50
    assert (x - ns.ends["velocity"][:8].cpu()).abs().max() < 1e-3
    x, y = ns.ends["learned"].double().cpu().numpy(), ns.real.double().cpu().numpy()
    mean = lambda p, q: np.mean([np.linalg.norm(q - r, axis=1).mean() for r in p])
    n = len(x)
    brute = 2 * mean(x, y) - (mean(x, x) + mean(y, y)) * n / (n - 1)
    assert abs(brute - ns.ed["learned"]) < 2e-5


def test_slider_moves_density_field_and_numbers(ns):
    seen = []
    for t in (0.1, 0.5, 0.9):
        ns.slider.set_val(t)
        ns.fig.canvas.draw()
        image = np.asarray(ns.fig.canvas.buffer_rgba()).copy()
        seen.append((ns.axes[0].get_title(), ns.axes[1].get_title(), image))
        assert f"t = {t:.2f}" in seen[-1][0] and len(ns.axes[0].collections) == 3
    for i, j in ((0, 1), (1, 2)):
        assert seen[i][0] != seen[j][0] and seen[i][1] != seen[j][1]
        assert np.abs(seen[i][2].astype(int) - seen[j][2]).max() > 100


def test_buttons_choose_the_field(ns):
    ns.slider.set_val(0.6)
    left, ends = {}, {}
    for i, kind in enumerate(ns.ends):
        ns.radio.set_active(i)
        assert ns.axes[0].get_title().startswith(kind + " at")
        left[kind] = float(ns.axes[1].get_title().split("\n")[1].split()[0])
        ends[kind] = ns.axes[2].lines[1].get_xydata().copy(), ns.axes[2].lines[1].get_color()
        assert f"ED {ns.ed[kind]:.4f}" in ns.axes[2].get_title()
    ns.radio.set_active(0)
    assert left["velocity"] < 1e-10 and left["learned"] < 0.5
    assert left["data"] > 0.5 and abs(left["data-xt"] - 0.6) < 0.01  # (1 - t) v leaves t of d p/dt
    assert ends["data"][1] == ends["data-xt"][1] == "tab:red" and ends["learned"][1] == "tab:blue"
    assert np.abs(ends["data"][0] - ends["learned"][0]).max() > 0.5


@pytest.mark.parametrize("kind", ["data", "data-xt"])
def test_break(lesson, kind):
    broken = lesson(NAME, "--target", kind, "--iters", "400")
    claims = broken.claims()
    assert not claims["C5"] and not claims["C6"]
    assert all(claims[name] for name in IDENTITIES)
    assert (broken.ns.axes[2].lines[1].get_color()) == "tab:red"


def test_bent_path_trains_as_well(lesson):
    bent = lesson(NAME, "--bend", "2", "--iters", "400")
    claims = bent.claims()
    assert all(claims[name] for name in IDENTITIES) and claims["C5"]
    assert bent.ns.ed["velocity"] < 0.01 and bent.ns.floor < 1


def test_same_seed_same_measures(run, lesson):
    """What is measured before training repeats to the digit, however long the training."""
    short = lesson(NAME, "--iters", "20")
    rows = [[row for row in text.splitlines() if row[6:8] in IDENTITIES] for text in (run.text, short.text)]
    assert len(rows[0]) == 3 and rows[0] == rows[1]
    assert run.ns.ed["velocity"] == short.ns.ed["velocity"] and not short.claims()["C4"]


@pytest.mark.parametrize("flags", [
    ("--target", "noise"), ("--bend", "0.5"), ("--bend", "nan"), ("--iters", "0"), ("--seed", "-1"),
    ("--out", "/nonexistent/x.png"), ("--out", "x.xyz")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
