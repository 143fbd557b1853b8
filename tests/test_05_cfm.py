"""Lesson 05: density, mean velocity and continuity equation by other roads, training, each number of the figure, break."""
import contextlib
import io
import re

import moons
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste
from matplotlib.colors import same_color

NAME = "05_cfm"


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)  # as the lesson does


@pytest.fixture
def pieces():
    return paste(NAME, "two_moons", "log_likelihoods", "mean_data", "mean_velocity", "continuity_error", "train", "sample")


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


@pytest.fixture(scope="module")
def broken(lesson):
    return lesson(NAME, "--target", "x")


def velocity(xt, t):
    """E[x - eps | xt] and E[x | xt] (n, 2) in numpy, one Gaussian after the other."""
    _, x_hat, eps_hat = moons.parts(np.asarray(xt, dtype=float), t, 1 - t)
    return x_hat - eps_hat, x_hat


def on_path(n):
    """n points of random lines with their times, in float64."""
    rng, t = np.random.default_rng(0), np.random.default_rng(1).random((n, 1))
    return torch.tensor(t * moons.samples(n, rng) + (1 - t) * rng.standard_normal((n, 2))), torch.tensor(t)


def differences(v, xt, t, h=1e-5):
    """dp/dt and div(p v) at xt (n, 2) and t (n, 1), in numpy, by central differences."""
    def p(xt, t):
        return moons.parts(xt, t, 1 - t)[0]

    def flow(step, i):
        return p(xt + step, t) * v(xt + step, t)[:, i]
    dp_dt = (p(xt, t + h) - p(xt, t - h)) / (2 * h)
    return dp_dt, sum(flow(step, i) - flow(-step, i) for i, step in enumerate(h * np.eye(2))) / (2 * h)


def energy_distance(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'|, 0 if both clouds have one density."""
    return (2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()).item()


def trained(pieces, iters, target="v", **more):
    """The net of the lesson's train, and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        net = pieces.train(iters, target, **more)
    return net, text.getvalue()


def test_density_and_means_are_plain_sums_over_64_gaussians(pieces):
    xt, t = on_path(300)
    t[:20] = 0
    p, x_hat, eps_hat = moons.parts(xt.numpy(), t.numpy(), 1 - t.numpy())
    assert np.abs(pieces.log_likelihoods(xt, t).exp().mean(1).numpy() / p - 1).max() < 1e-9
    assert np.abs(pieces.mean_data(xt, t).numpy() - x_hat).max() < 1e-9
    assert np.abs(pieces.mean_velocity(xt, t).numpy() - (x_hat - eps_hat)).max() < 1e-9


def test_velocity_is_the_mean_of_the_pairs_that_pass_a_place(pieces):
    """Of two million pairs, those near a place at t = 0.5."""
    rng = np.random.default_rng(3)
    x, eps = moons.samples(2_000_000, rng), rng.standard_normal((2_000_000, 2))
    for spot in ([1.0, 0.5], [-0.5, 0.3]):
        u = (x - eps)[np.hypot(*((x + eps) / 2 - spot).T) < 0.05]
        exact = pieces.mean_velocity(torch.tensor([spot]), torch.tensor([[0.5]]))[0].numpy()
        assert len(u) > 1000 and (np.abs(u.mean(0) - exact) < 5 * u.std(0) / len(u) ** 0.5 + 0.01).all()


def test_samples_have_the_mean_covariance_and_width_of_the_moons(pieces):
    clouds = [pieces.two_moons(50_000).numpy(), moons.samples(50_000, np.random.default_rng(0))]
    near = [np.linalg.norm(x[:5000, None] - moons.CENTRES, axis=2).min(1).mean() for x in clouds]
    assert np.abs(clouds[0].mean(0) - clouds[1].mean(0)).max() < 0.03 and abs(near[0] / near[1] - 1) < 0.05
    assert np.abs(np.cov(clouds[0].T) - np.cov(clouds[1].T)).max() < 0.04


def test_mean_velocity_obeys_the_equation_and_slower_ones_do_not(pieces):
    """For c v, what is left is (1 - c) dp/dt."""
    xt, t = on_path(500)
    for c, left in ((1, 0), (0.9, 0.1), (1.1, 0.1), (0, 1)):
        assert abs(pieces.continuity_error(lambda xt, t: c * pieces.mean_velocity(xt, t), xt, t) - left) < 1e-10
    assert not xt.requires_grad and not t.requires_grad and xt.grad is None


def test_error_is_that_of_differences_for_any_field(pieces):
    xt, t = on_path(2000)
    for field in (lambda xt, t: torch.stack([xt[:, 1] * t[:, 0] + xt[:, 0] ** 2, (2 * xt[:, 0] * xt[:, 1]).sin()], 1), pieces.mean_data):
        dp_dt, div = differences(lambda xt, t: field(torch.tensor(xt), torch.tensor(t)).numpy(), xt.numpy(), t.numpy())
        expected = np.linalg.norm(dp_dt + div) / np.linalg.norm(dp_dt)
        assert abs(pieces.continuity_error(field, xt, t) / expected - 1) < 1e-4


def test_another_field_obeys_the_equation_and_ends_as_data(pieces):
    """The exercise: v plus xt - t v = E[eps | xt], turned by 90 degrees."""
    def field(xt, t):
        v = pieces.mean_velocity(xt, t)
        return v + (xt - t * v).flip(1) * torch.tensor([1, -1])
    assert pieces.continuity_error(field, *on_path(500)) < 1e-10
    noise, data = torch.randn(2000, 2), pieces.two_moons(2000)
    ends, exact = pieces.sample(field, noise, 200)[-1], pieces.sample(pieces.mean_velocity, noise, 200)[-1]
    assert energy_distance(ends, data) < 0.008 and (ends - exact).norm(dim=1).mean() > 0.5


def test_noise_that_follows_v_has_the_density_of_the_lines(pieces):
    """Energy distance to fresh points of the lines at t = 0.24, 0.5, 0.76, 1. With E[x | xt]: 0.02 and more."""
    noise = torch.randn(2000, 2)
    right, wrong = pieces.sample(pieces.mean_velocity, noise), pieces.sample(pieces.mean_data, noise)
    for i in (12, 25, 38, 50):
        fresh = i / 50 * pieces.two_moons(2000) + (1 - i / 50) * torch.randn(2000, 2)
        assert energy_distance(right[i], fresh) < 0.006 and energy_distance(wrong[i], fresh) > 0.015


def test_single_targets_give_the_gradient_of_their_mean(pieces):
    """Each xt with all targets that it can have: four points stand for each Gaussian, with its mean and variance."""
    xt, t = (z[:40] for z in on_path(40))
    mu, corners = torch.tensor(moons.CENTRES), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    var = (t * moons.WIDTH) ** 2 + (1 - t) ** 2  # (B, 1)
    off = xt[:, None] - t[:, None] * mu  # (B, 64, 2)
    weight = torch.softmax(-(off**2).sum(2) / (2 * var), 1).repeat_interleave(4, 1)[..., None] / 4
    x = (mu + (t * moons.WIDTH**2 / var)[:, None] * off)[:, :, None] + (moons.WIDTH * (1 - t) / var.sqrt())[:, None, None] * corners
    x = x.flatten(1, 2)  # (B, 256, 2)
    target = x - (xt[:, None] - t[:, None] * x) / (1 - t)[:, None]
    net, v = trained(pieces, 1)[0], pieces.mean_velocity(xt, t)
    answer = net(torch.cat([xt, t], 1))
    single, whole = (weight * (answer[:, None] - target) ** 2).sum(1).mean(), ((answer - v) ** 2).mean()
    rest = (weight * (v[:, None] - target) ** 2).sum(1).mean()  # the best possible loss at these places
    assert abs(single - whole - rest) < 1e-9 and rest > 0.1
    grads = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, net.parameters(), retain_graph=True)]) for loss in (single, whole)]
    assert (grads[0] - grads[1]).abs().max() < 1e-9 < 1e-3 < grads[0].abs().max()


@pytest.mark.parametrize("target", ["v", "x"])
def test_first_step_of_training_and_the_loss_that_it_prints(pieces, target):
    """The first step of Adam is its rate times g / (|g| + 1e-8), in each weight."""
    torch.manual_seed(5)
    net, text = trained(pieces, 1, target, lr=0.0)
    torch.manual_seed(5)
    moved, _ = trained(pieces, 1, target, lr=0.01)
    torch.manual_seed(5)
    for layer in net:
        if isinstance(layer, torch.nn.Linear):
            layer.reset_parameters()
    x, eps, t = pieces.two_moons(1024), torch.randn(1024, 2), torch.rand(1024, 1)
    loss = ((net(torch.cat([eps + t * (x - eps), t], 1)) - x + (target == "v") * eps) ** 2).sum() / 2048
    assert abs(float(re.search(r"iteration 0 of 1: loss (\S+)", text)[1]) - loss) < 1e-4
    for a, b, g in zip(net.parameters(), moved.parameters(), torch.autograd.grad(loss, net.parameters())):
        assert ((b - a + 0.01 * g / (g.abs() + 1e-8)).abs()[g.abs() > 1e-4]).max() < 1e-4


def test_learning_rate_falls_in_a_line_and_progress_is_printed(pieces, monkeypatch):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    _, text = trained(pieces, 210, batch_size=8, lr=0.1)
    assert np.allclose(rates, 0.1 * (1 - np.arange(210) / 210)) and pieces.train.__defaults__ == (32, 1024, 0.04)  # as measured
    assert re.findall(r"iteration (\d+) of 210: loss \d", text) == ["0", "100", "200"]


def test_sample_takes_equal_steps_from_0_to_1_along_the_field(pieces):
    """dx/dt = t x in five steps: factors 1 + 0.2 t."""
    noise, times = torch.randn(4, 2), []
    path = pieces.sample(lambda xt, t: times.append(t) or t * xt, noise, 5)
    assert path.shape == (6, 4, 2) and all(t.shape == (4, 1) for t in times) and np.allclose([t[0, 0] for t in times], [0, 0.2, 0.4, 0.6, 0.8])
    assert torch.allclose(path[-1], noise * np.prod([1, 1.04, 1.08, 1.12, 1.16])) and torch.equal(path[0], noise)


def test_claims_figure_and_page(run, broken):
    assert run.claims() == {"C1": True, "C2": True, "C3": True}
    assert broken.claims() == {"C1": True, "C2": True, "C3": False} and broken.numbers()["C3"][0] > 0.8
    middle, wrong = (r.ns.axes[1].get_title() for r in (run, broken))
    assert middle == "A net learns the mean velocity (orange).\nMoved with it, noise (blue) ends as data (gray)"
    assert wrong == middle.replace("velocity", "of x").replace("ends as", "misses")
    page_agrees(NAME, run)


def exact_path(noise, field=0):
    """Fifty steps along v, or along E[x | xt] for field 1, in numpy."""
    path = [noise.numpy()]
    for i in range(50):
        path.append(path[-1] + velocity(path[-1], i / 50)[field] / 50)
    return np.stack(path)


def test_claims_are_what_plain_loops_measure(run):
    """C2 by differences at the run's own points, C3 by the ends. Points off the data: the net's error, as v with its steps has none."""
    ns, exact = run.ns, exact_path(run.ns.eps)
    assert all(torch.equal(path[0], noise) for path, noise in zip(ns.paths, (ns.eps, ns.eps), strict=True))
    assert np.nanmax(np.abs(ns.paths[1].numpy() - exact_path(ns.eps, 1))) < 1e-6
    off = [(np.linalg.norm(ends[:, None] - moons.CENTRES, axis=2).min(1) > 0.4).mean() for ends in (ns.paths[0][50].numpy(), exact[50], ns.x.numpy())]
    assert off[0] < 0.05 and max(off[1:]) < 0.005 and off[0] > 4 * max(off[1:])
    moved = ns.paths[0][20] + ns.net(torch.cat([ns.paths[0][20], torch.full((2000, 1), 0.4)], 1)).detach() / 50
    assert (moved - ns.paths[0][21]).abs().max() < 1e-9
    gap, numbers = np.linalg.norm(ns.paths[0][50].numpy() - exact[50], axis=1).mean(), run.numbers()
    assert abs(numbers["C3"][0] - gap) < 1e-4 and abs(numbers["C3"][1] - moons.WIDTH) < 1e-4 and numbers["C1"][1] == 1e-10 and numbers["C2"][1] == 0.1
    t, x, eps = (z.numpy() for z in (ns.t, ns.x, ns.eps))
    dp_dt, div = (side[t[:, 0] < 0.999] for side in differences(lambda xt, t: velocity(xt, t)[1], t * x + (1 - t) * eps, t))
    assert abs(np.linalg.norm(dp_dt + div) / np.linalg.norm(dp_dt) - numbers["C2"][0]) < 0.02


def test_slider_moves_points_from_noise_along_their_paths_and_position_overshoots_data(run):
    """Gray: data. Points: moved by the net, by E[x | xt]. Ends of v are hardly ever over 0.2 from all data."""
    ns = run.ns
    off = [(np.linalg.norm(ends[:, None] - ns.x.numpy(), axis=2).min(1) > 0.2).mean() for ends in (
        moons.samples(2000, np.random.default_rng(1)), exact_path(ns.eps)[50], ns.paths[0][50].numpy(), ns.paths[1][50].numpy())]
    assert max(off[:2]) < 0.005 and 0 < off[2] < 0.05 and off[3] > 0.5 and "noise overshoots" in ns.axes[2].get_title()
    assert (ns.paths[1][50] ** 2).sum(1).mean() > 1.5 * (ns.x**2).sum(1).mean()
    for value, i in ((0, 0), (0.5, 25), (0.97, 48), (1, 50)):
        ns.slider.set_val(value)
        for ax, path in zip(ns.axes[1:], ns.paths, strict=True):
            gray, points = ax.collections[:2]
            assert (gray.get_offsets() == ns.x.numpy()).all() and same_color(gray.get_facecolor(), "0.85") and (*ax.axis(), ax.get_aspect()) == (-3, 3, -2.5, 2.5, 1)
            assert np.abs(points.get_offsets() - path[i].numpy()).max() < 1e-9 and same_color(points.get_facecolor()[0], "tab:blue")
            for k, line in zip(range(20), ax.lines, strict=True):  # hollow at its start
                assert np.abs(line.get_xydata() - path[:i + 1, k].numpy()).max() < 1e-9 and (line.get_markevery(), line.get_marker(), line.get_mfc(), line.get_color()) == ([0], "o", "w", "k")


def test_arrows_show_lines_that_cross_their_mean_velocity_and_the_field_of_the_net(run):
    """The ten end at data, and their noise is likely. The net's field is near v where points are dense. Axes are 6 wide."""
    ns, spot, (gray, thin, thick) = run.ns, np.array([-0.9, -1]), run.ns.axes[0].collections
    start, way = thin.get_offsets(), np.stack([thin.U, thin.V], 1)  # (10, 2)
    assert np.abs(start + way / 2 - spot).max() < 1e-9 and np.hypot(*start.T).max() < 4 and len(way) == 10 and "meet at t = 0.5" in ns.axes[0].get_title()
    (dots,), near = ns.axes[0].lines, ((ns.x + ns.eps) / 2 - torch.tensor(spot)).norm(dim=1).argsort()[:10]
    assert (gray.get_offsets() == ns.x.numpy()).all() and (dots.get_xydata() == start).all() and (dots.get_marker(), dots.get_linestyle()) == ("o", "None")
    assert np.abs(start + way - ns.x[near].numpy()).max() < 1e-9 and np.linalg.norm(start - ns.eps[near].numpy(), axis=1).max() < 0.7  # starts move a little
    assert np.abs(velocity(spot[None], 0.5)[0][0] - [thick.U[0], thick.V[0]]).max() < 1e-9 and (thick.get_offsets() == spot).all() and (thin.pivot, thick.pivot) == ("tail", "middle")
    for t in (0, 0.5, 0.9):
        ns.slider.set_val(t)
        field = ns.axes[1].collections[2]
        places, shown = field.get_offsets(), np.stack([field.U, field.V], 1)  # (64, 2)
        near = moons.parts(places, t, 1 - t)[0] > 0.03
        assert np.abs(shown - [ns.net(torch.tensor([*place, t])).tolist() for place in places]).max() < 1e-9 and len(places) == 64
        assert near.sum() > 8 and np.abs(shown - velocity(places, t)[0])[near].mean() < 0.4
    assert thick.width > 3 * thin.width and [(z.units, z.scale_units) for z in (thin, thick, field)] == [("width", None)] * 3 and field.pivot == "tail"
    assert [z.scale for z in (thin, thick, field)] == [6, 6, 30] and same_color(thick.get_facecolor()[0], "C1")


def test_same_seed_same_numbers(lesson, first_loss, limits):
    limits(NAME)
    a, b = lesson(NAME, "--iters", "20"), lesson(NAME, "--iters", "20", "--seed", "0")
    assert a.text == b.text and not a.claims()["C3"] and "noise (blue) misses data" in a.ns.axes[1].get_title()
    assert first_loss(NAME, "--iters", "20", "--seed", "4294967295") not in a.text


@pytest.mark.parametrize("flags", [("--iters", "0"), ("--iters", "9" * 21), ("--iters", "2.5"), ("--seed", "-1"), ("--seed", str(2**32)), ("--target", "eps")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
