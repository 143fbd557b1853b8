"""Lesson 06: solvers against known ODEs and an independent integrator, data files, widget, break."""
import matplotlib.cbook
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

NAME = "06_euler"


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME, "--steps", "5")


def test_claims_and_figure(run):
    assert run.claims() == {f"C{i}": True for i in range(1, 6)}
    picture = plt.imread(run.folder / "06_euler.png")
    assert picture.shape[1] > 1000 and picture[..., :3].std() > 0.05


def test_solvers_reach_their_order_on_a_linear_ode(run):
    """dx/dt = -x + t has the solution x(1) = exp(-1) (x(0) + 1): no network involved."""
    def v(xt):
        return -xt[:, :2] + xt[:, 2:]

    x = torch.linspace(-2, 2, 10, dtype=torch.float64).reshape(5, 2)
    truth = np.exp(-1) * (x + 1)
    for solver, order in [("euler", 1), ("heun", 2), ("rk4", 4)]:
        a, b = [(run.ns.solve(v, x, n, solver)[-1] - truth).abs().max() for n in (16, 32)]
        assert abs(torch.log2(a / b).item() - order) < 0.1
    assert (run.ns.solve(v, x, 64, "rk4")[-1] - truth).abs().max() < 1e-8


def test_rk4_step_is_the_textbook_formula(run):
    def v(x, t):
        return torch.sin(3 * x) + t * x

    x, h = torch.randn(7, 2, dtype=torch.float64), 1.0
    k1 = v(x, 0.0)
    k2 = v(x + h / 2 * k1, 0.5)
    k3 = v(x + h / 2 * k2, 0.5)
    k4 = v(x + h * k3, 1.0)
    ours = run.ns.solve(lambda z: v(z[:, :2], z[:, 2:]), x, 1, "rk4")[-1]
    assert (ours - (x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))).abs().max() < 1e-12


def moons_velocity(xt, t, mu, sd):
    """E[x - eps | xt] by summing over the 64 Gaussians one at a time, in numpy float64."""
    top, bottom = 0.0, 0.0
    for m in mu:
        var = (t * sd) ** 2 + (1 - t) ** 2
        p = np.exp(-((xt - t * m) ** 2).sum(1, keepdims=True) / (2 * var))
        x = m + t * sd**2 / var * (xt - t * m)
        eps = (1 - t) / var * (xt - t * m)
        top, bottom = top + p * (x - eps), bottom + p
    return top / bottom


def test_learned_field_against_the_exact_one(run):
    """The loss is within 1 % of the best possible, and Euler lands where the exact field lands."""
    th = (np.arange(32) + 0.5) * np.pi / 32
    mu = np.concatenate([np.stack([np.cos(th), np.sin(th)], 1), np.stack([1 - np.cos(th), 0.5 - np.sin(th)], 1)])
    scale = np.sqrt(0.09**2 + mu.var(0).mean())
    mu, sd = (mu - mu.mean(0)) / scale, 0.09 / scale
    rng = np.random.default_rng(0)
    x = mu[rng.integers(64, size=20_000)] + sd * rng.standard_normal((20_000, 2))
    eps, t = rng.standard_normal((20_000, 2)), rng.random((20_000, 1))
    xt = t * x + (1 - t) * eps
    best = moons_velocity(xt, t, mu, sd)
    learned = run.ns.fields[0](torch.tensor(np.hstack([xt, t])).float()).numpy()
    floor = ((best - (x - eps)) ** 2).mean()
    assert abs(floor - 1.37) < 0.03
    assert 1 < 1 + ((learned - best) ** 2).mean() / floor < 1.01
    z = run.ns.z.numpy().astype(float)
    for i in range(20):
        z = z + moons_velocity(z, i / 20, mu, sd) / 20
    exact = run.ns.energy_distance(torch.tensor(z).float(), run.ns.real)
    assert abs(run.ns.ed(run.ns.fields[0], 20) - exact) < 0.001


def test_energy_distance_by_brute_force(run):
    x, y = torch.randn(40, 2), torch.randn(30, 2) + 0.3
    def mean(p, q, same):
        d = [(a - b).norm().item() for i, a in enumerate(p) for j, b in enumerate(q) if not (same and i == j)]
        return sum(d) / len(d)
    brute = 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)
    assert abs(run.ns.energy_distance(x, y) - brute) < 1e-5


def test_widgets_change_picture_and_number(run):
    ns = run.ns
    def state():
        ax = ns.axes[0]
        return ax.get_title(), np.asarray(ax.lines[1].get_xydata()).copy()

    title, cloud = state()
    ns.slider.set_val(1)
    assert state()[0] != title and np.abs(state()[1] - cloud).max() > 0.1
    assert state()[1].std(0).max() < 0.5  # collapsed towards the mean
    ns.radio.set_active(2)
    assert "ED" in state()[0]
    ns.slider.set_val(5)
    assert float(state()[0].split()[-1]) < 0.005  # RK4
    ns.radio.set_active(0)
    assert state()[0] == title and np.abs(state()[1] - cloud).max() < 1e-6


def test_break(lesson):
    claims = lesson(NAME, "--steps", "1", "--iters", "400").claims()
    assert not claims["C2"] and claims["C1"] and claims["C4"]


def test_same_seed_same_numbers(lesson):
    a, b = lesson(NAME, "--iters", "20"), lesson(NAME, "--iters", "20", "--out", "b.png")
    assert a.text == b.text


def sample_files(folder):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(300, 2)) @ [[1, 0.8], [0, 0.3]] + 5
    np.savetxt(folder / "header.csv", table, delimiter=",", header="length,width", comments="")
    np.savetxt(folder / "plain.csv", table, delimiter=",")
    np.save(folder / "table.npy", table)
    return [folder / name for name in ("header.csv", "plain.csv", "table.npy")], table


def test_tables_are_the_readers_points(lesson, tmp_path):
    files, table = sample_files(tmp_path)
    scaled = (table - table.mean(0)) / np.sqrt(table.var(0).mean())
    for path in files:
        ns = lesson(NAME, "--iters", "5", "--data", str(path)).ns
        assert np.abs(ns.data.numpy() - scaled).max() < 1e-5


@pytest.mark.parametrize("name", ["grace_hopper.jpg", "logo2.png"])
def test_pictures_become_densities(lesson, name):
    """Mean and spread of the draws = moments of the darkness over the pixels, computed directly."""
    path = matplotlib.cbook.get_sample_data(name, asfileobj=False)
    ns = lesson(NAME, "--iters", "5", "--data", str(path)).ns
    image = plt.imread(path).astype(float)
    image = image / 255 if image.max() > 1 else image
    alpha = image[..., 3:4] if image.shape[2] == 4 else np.ones_like(image[..., :1])
    white = image[..., :3] * alpha + (1 - alpha)
    dark = 1 - (0.299 * white[..., 0] + 0.587 * white[..., 1] + 0.114 * white[..., 2])
    rows, columns = np.mgrid[: dark.shape[0], : dark.shape[1]]
    ratio = []
    for axis in (columns, rows):
        mean = (dark * axis).sum() / dark.sum()
        ratio.append((dark * (axis - mean) ** 2).sum() / dark.sum())
    measured = ns.data.var(0)
    assert abs(measured[0] / measured[1] / (ratio[0] / ratio[1]) - 1) < 0.05
    skew = (dark * -(rows - (dark * rows).sum() / dark.sum()) ** 3).sum()  # up is up
    assert abs(skew) < 1 or np.sign(skew) == np.sign((ns.data[:, 1] ** 3).mean().item())


def test_bad_files(refused, tmp_path):
    (tmp_path / "one.csv").write_text("a\n" + "1\n" * 20)
    (tmp_path / "words.csv").write_text("a,b\n" + "1,x\n" * 20)
    (tmp_path / "few.csv").write_text("1,2\n3,4\n")
    (tmp_path / "table.txt").write_text("1,2\n" * 20)
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    np.save(tmp_path / "nan.npy", np.full((20, 2), np.nan))
    np.save(tmp_path / "inf.npy", np.r_[np.ones((20, 2)), [[np.inf, 0]]])
    np.save(tmp_path / "same.npy", np.ones((20, 2)))
    plt.imsave(tmp_path / "white.png", np.ones((9, 9, 3)))
    names = ["none.csv", "one.csv", "words.csv", "few.csv", "table.txt", "torn.png", "nan.npy", "inf.npy",
             "same.npy", "white.png"]
    for name in names:
        assert "--data" in refused(NAME, "--data", str(tmp_path / name))


@pytest.mark.parametrize("flags", [
    ("--steps", "0"), ("--steps", "-3"), ("--steps", "2.5"), ("--iters", "-1"), ("--iters", "0"),
    ("--seed", "-1"), ("--solver", "foo"), ("--out", "/nonexistent/x.png"), ("--out", "x.xyz")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
