"""Lesson 06: solvers against textbook and exact solutions, training and reflow, the figure, data files, bad input, break."""
import re

import matplotlib.cbook
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import ROOT, page_agrees, paste

NAME = "06_euler"


@pytest.fixture(scope="module")
def pieces():
    return paste(NAME, "euler", "heun", "rk4", "solve", "train", "velocity", "read_points")


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


@pytest.fixture(scope="module")
def ns(run):
    return run.ns


def test_one_step_is_the_textbook_formula(pieces):
    """Of dx/dt = A x + b t: RK4 is exact to h^4, so its step is the Taylor series. Heun's ends at h^2, and Euler's at h."""
    A = torch.tensor([[0.3, -1.0], [0.7, 0.2]], dtype=torch.float64)
    b = torch.tensor([1.0, -2.0], dtype=torch.float64)
    x, t, h = torch.randn(5, 2, dtype=torch.float64), 0.4, 0.3

    def v(x, t):
        return x @ A.T + t * b
    d1 = v(x, t)
    d2 = d1 @ A.T + b
    d3, d4 = d2 @ A.T, d2 @ A.T @ A.T
    taylor = [x, h * d1, h**2 / 2 * d2, h**3 / 6 * d3, h**4 / 24 * d4]
    for step, order in [(pieces.euler, 1), (pieces.heun, 2), (pieces.rk4, 4)]:
        assert (step(v, x, t, h) - sum(taylor[:order + 1])).abs().max() < 1e-12


@pytest.mark.parametrize("name, order", [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_orders_on_an_equation_that_is_not_linear(pieces, name, order):
    """dx/dt = x cos(3 t) + t^2 x^2 has no closed form: against 400 steps of RK4."""
    def v(x, t):
        return x * np.cos(3 * t) + t**2 * x**2
    x = torch.linspace(-0.5, 0.5, 6, dtype=torch.float64).reshape(3, 2)
    truth = pieces.solve(v, x, 400, pieces.rk4)[-1]
    a, b = ((pieces.solve(v, x, n, getattr(pieces, name))[-1] - truth).abs().max() for n in (50, 100))
    assert abs(torch.log2(a / b).item() - order) < 0.25


def test_solve_steps_from_0_to_1_and_returns_the_path(pieces):
    calls = []
    path = pieces.solve(lambda x, t: torch.full_like(x, t), torch.zeros(3, 2), 5, lambda v, x, t, h: calls.append((t, h)) or x + h * v(x, t))
    assert path.shape == (6, 3, 2) and np.allclose(calls, [(i / 5, 1 / 5) for i in range(5)])
    assert torch.allclose(path[:, 0, 0], torch.tensor([0, 0, 0.04, 0.12, 0.24, 0.4]))


def test_a_trained_net_is_the_mean_velocity_of_two_points(pieces):
    """Data at (2, 0) and (-2, 0): v = E[x | xt] - E[eps | xt], where E[x | xt] = 2 tanh(2 t xt / (1 - t)^2) along the axis."""
    torch.manual_seed(0)
    x = torch.tensor([[2.0, 0.0], [-2.0, 0.0]]).repeat(10_000, 1)
    net = pieces.train(torch.randn(20_000, 2), x, 600)
    assert isinstance(net, torch.nn.Module)
    t = 0.1 + 0.6 * torch.rand(2000, 1)
    row = torch.randint(20_000, (2000,))
    xt = t * x[row] + (1 - t) * torch.randn(2000, 2)
    x_hat = torch.hstack([2 * torch.tanh(2 * t * xt[:, :1] / (1 - t) ** 2), torch.zeros(2000, 1)])
    exact = x_hat - (xt - t * x_hat) / (1 - t)
    with torch.no_grad():
        error = (net(torch.hstack([xt, t])) - exact).square().mean()
    assert error < 0.02 * exact.square().mean()


def test_pairs_are_kept_so_that_a_second_training_can_use_them(pieces):
    """If row i of x is eps + (3, -1), the velocity is (3, -1) everywhere. Other pairs would give a mean that bends."""
    torch.manual_seed(0)
    eps = torch.randn(5000, 2)
    net = pieces.train(eps, eps + torch.tensor([3.0, -1.0]), 200)
    with torch.no_grad():
        assert (net(torch.randn(100, 3)) - torch.tensor([3.0, -1.0])).abs().mean() < 0.03


def test_the_learning_rate_falls_in_a_line_and_progress_is_printed(pieces, monkeypatch, capsys):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    pieces.train(torch.randn(600, 2), torch.randn(600, 2), 510, batch_size=8, lr=0.1)
    assert np.allclose(rates, 0.1 * (1 - np.arange(510) / 510))
    assert re.findall(r"iteration (\d+) of 510: loss \d", capsys.readouterr().out) == ["0", "500"]


# --- the run


def test_claims_figure_and_page(run):
    assert run.claims() == {"C1": True, "C2": True}
    assert plt.imread(run.folder / "06_euler.png")[..., :3].std() > 0.05
    assert not (run.folder / "06_euler.npy").exists()  # nothing of the reader's is overwritten
    page_agrees(NAME, run)


def test_default_data_are_two_half_circles(ns):
    """Undone: the scaling of x. The upper one stands around (-0.5, -0.25), and the lower one is its negative."""
    for moon in (ns.points[:10_000], -ns.points[10_000:]):
        radius = (moon - torch.tensor([-0.5, -0.25])).norm(dim=1)
        assert abs(radius.mean() - 1) < 0.01 and abs(radius.std() - 0.09) < 0.005
        assert abs(moon[:, 0].mean() + 0.5) < 0.03 and abs(moon[:, 1].mean() - (2 / np.pi - 0.25)) < 0.02
        assert (moon[:, 1] > -0.25 - 0.4).all()
    assert ns.x.shape == (20_000, 2) and ns.x.dtype == torch.float32
    assert ns.x.mean(0).abs().max() < 0.03 and (ns.x.std(0) - 1).abs().max() < 0.03
    assert ns.noise.shape == (2000, 2) and abs(ns.noise.std() - 1) < 0.05


def by_hand(v, x, num_steps, kind):
    """Where the steps of a solver end, in numpy and in place: another road than the lesson's functions."""
    x, h = x.numpy().astype(np.float64), 1 / num_steps
    f = lambda x, t: v(torch.tensor(x).float(), t).detach().numpy().astype(np.float64)
    for i in range(num_steps):
        k = [f(x, i * h)]
        for c in {"Euler": (), "Heun": (1,), "RK4": (0.5, 0.5, 1)}[kind]:
            k.append(f(x + c * h * k[-1], (i + c) * h))
        x = x + h * np.average(k, axis=0, weights=[1, 2, 2, 1] if kind == "RK4" else None)
    return x


def test_the_chart_and_the_claims_are_distances_to_the_exact_ends(run, ns):
    exact = by_hand(ns.first, ns.noise, 50, "RK4")
    cost = {"first net, Euler": 1, "first net, Heun": 2, "first net, RK4": 4, "after reflow, Euler": 1}
    euler, heun, rk4, reflow = cost
    lines = {text.get_text(): line for text, line in zip(ns.chart.get_legend().get_texts(), ns.chart.lines)}
    assert [matplotlib.colors.to_hex(line.get_color()) for line in lines.values()] == ["#1f77b4", "#ff7f0e", "#9467bd", "#2ca02c"]
    for name, line in lines.items():
        nfe, error = map(list, line.get_data())
        assert nfe == list(range(0, 17, cost[name])) and set(lines) == set(cost)
        for n, value in list(zip(range(0, 17, cost[name]), error))[::3 if cost[name] == 1 else 1]:
            ends = by_hand(ns.second if "reflow" in name else ns.first, ns.noise, n // cost[name], name.split()[-1]) if n else ns.noise.numpy()
            assert abs(np.linalg.norm(ends - exact, axis=1).mean() - value) < 2e-3 * value + 1e-4, (name, n)
    order = [sorted(cost, key=lambda name: lines[name].get_ydata()[n // cost[name]]) for n in (4, 8, 12, 16)]  # the nearest first
    assert order == [[reflow, heun, rk4, euler], [reflow, rk4, heun, euler], [rk4, reflow, heun, euler], [rk4, heun, reflow, euler]]
    before, after = lines[euler].get_ydata(), lines[reflow].get_ydata()
    printed = [number for pair in run.numbers().values() for number in pair]  # five steps and none; one step and eight
    assert np.allclose(printed, [before[5], before[0], after[1], before[8]], rtol=1e-3)
    assert ns.chart.get_title() == f"1 step after reflow: {after[1]:.2f} off, 8 before: {before[8]:.2f}"


def test_reflow_was_trained_on_the_ends_of_paths_whose_lines_do_not_cross(ns):
    """Lines meet where x2 - x1 points against eps2 - eps1: half of random pairs point backward, and of paths' ends none."""
    ends = torch.tensor(by_hand(ns.first, ns.eps[:500], 30, "RK4"))
    assert (ns.eps[:500] + ns.second(ns.eps[:500], 0.0) - ends).norm(dim=1).mean() < 0.1
    i, j = torch.randperm(20_000).reshape(2, -1)
    backward = lambda x: (((ns.eps[i] - ns.eps[j]) * (x[i] - x[j])).sum(1) < 0).float().mean()
    assert abs(backward(ns.x) - 0.5) < 0.03 and backward(ns.ends) < 0.002


def test_each_panel_marks_the_samples_that_end_off_and_some_end_in_the_gap(ns):
    """Red: over 0.2 from where 50 steps of RK4 end: after five Euler steps four in ten, and after reflow none. Gap: 0.1 from all data."""
    exact, start, off = by_hand(ns.first, ns.noise, 50, "RK4"), ns.noise[10:16].numpy(), []
    gap = [(torch.cdist(torch.tensor(exact).float(), ns.x).amin(1) > 0.1).float().mean()]
    for ax, v, num_steps, kind in ((ns.ax_1, ns.first, 50, "RK4"), (ns.ax_2, ns.first, 5, "Euler"), (ns.ax_3, ns.second, 1, "Euler")):
        data, cloud = (np.asarray(points.get_offsets()) for points in ax.collections)
        assert np.array_equal(data, ns.x[:6000]) and np.abs(cloud - by_hand(v, ns.noise, num_steps, kind)).max() < 1e-3
        miss, red = np.linalg.norm(cloud - exact, axis=1), (ax.collections[1].get_facecolors()[:, :3] == [1, 0, 0]).all(1)
        assert (red == (miss > 0.2))[abs(miss - 0.2) > 1e-3].all() and f"{kind} steps: {num_steps} ({np.float32(red.mean()):.0%} red)" in ax.get_title()
        off, gap = off + [red.mean()], gap + [(torch.cdist(torch.tensor(cloud).float(), ns.x).amin(1) > 0.1).float().mean()]
        dashed, path = (np.stack([line.get_xydata() for line in lines]) for lines in (ax.lines[::2], ax.lines[1::2]))
        assert {(line.get_linestyle(), tuple(line.get_markevery())) for line in ax.lines[::2]} == {("--", (50,))} and dashed.shape == (6, 51, 2)
        assert np.abs(dashed[:, ::50] - np.stack([start, exact[10:16]], 1)).max() < 1e-3 and np.abs(path[:, -1] - cloud[10:16]).max() < 1e-6
        assert path.shape == (6, num_steps + 1, 2) and np.abs(path[:, 0] - start).max() < 1e-6
        assert (np.abs(ax.viewLim.get_points() - [data.min(0), data.max(0)]) < 0.1 * np.ptp(data, 0)).all()  # cropped to the data
    assert 0.2 < off[1] < 0.7 and off[0] == 0 and off[2] < 0.02 and 0.01 < gap[0] == gap[1] < gap[2] < 0.15 and 0.02 < gap[3] < 0.1


def test_slider_moves_the_first_nets_samples_until_they_collapse(ns):
    cloud = lambda ax: np.asarray(ax.collections[1].get_offsets())
    limits = ns.ax_2.axis()
    for steps in (1, np.float64(5)):  # as the mouse does
        ns.slider.set_val(steps)
        for ax, v, shown in ((ns.ax_2, ns.first, steps), (ns.ax_3, ns.second, 1)):
            assert f"steps: {shown:.0f} (" in ax.get_title() and np.abs(cloud(ax) - by_hand(v, ns.noise, int(shown), "Euler")).max() < 1e-3
        assert ns.ax_2.axis() == limits and (cloud(ns.ax_2).std(0).max() < 0.35) == (steps == 1) and cloud(ns.ax_3).std(0).min() > 0.5


def test_break(lesson):
    run = lesson(NAME, "--steps", "1", "--iters", "300")
    assert run.claims() == {"C1": False, "C2": True}


def test_same_seed_same_numbers(lesson, first_loss, limits):
    limits(NAME)
    a, b = lesson(NAME, "--iters", "20"), lesson(NAME, "--iters", "20", "--seed", "0")
    assert a.text == b.text and first_loss(NAME, "--iters", "20", "--seed", "4294967295") not in a.text


def test_the_example_on_the_page_is_what_the_run_prints(run):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    written = re.search(r"^```\n(We train on.*?)\n```$", page, re.M | re.S)[1].splitlines()
    printed, cut = run.text.splitlines(), written.index("...")  # there the page leaves out lines on training
    printed[cut:cut + 1 + len(printed) - len(written)] = ["..."]
    for a, b in zip(written, printed, strict=True):
        assert re.sub(r"\d\.\d+", "#", a) == re.sub(r"\d\.\d+", "#", b)
        for x, y in zip(re.findall(r"\d\.\d+", a), re.findall(r"\d\.\d+", b)):
            assert abs(float(x) - float(y)) <= max(float(x), float(y), 0.004) / 2, (a, b)


# --- data of the reader's own


def table(n=300):
    return np.random.default_rng(0).normal(size=(n, 2)) @ [[1, 0.8], [0, 0.3]] + [-5, -2]


@pytest.mark.parametrize("ending, mark, header, decimal", [
    (".csv", ",", "", "."), (".csv", ",", '"length","width"', "."), (".csv", ";", "Öl;Höhe", ","), (".CSV", ", ", "x, y", "."),
    (".tsv", "\t", "a\tb", "."), (".txt", "   ", "# x y", "."), (".txt", " ", "", ".")])
def test_tables_are_the_readers_points(pieces, tmp_path, ending, mark, header, decimal):
    rows = [mark.join(f"{value:.6f}".replace(".", decimal) for value in row) for row in table()]
    text = "\n".join([header, *rows] if header else rows) + "\n\n"  # with an empty line at the end
    (tmp_path / f"x{ending}").write_text(text, encoding="latin-1" if "ö" in header else "utf-8-sig")  # with the mark of spreadsheets
    assert np.abs(pieces.read_points(str(tmp_path / f"x{ending}")) - table()).max() < 1e-5


@pytest.mark.parametrize("picture, copied", [("grace_hopper.jpg", "a.JPEG"), ("logo2.png", "b.PNG")])
def test_dark_pixels_of_a_picture_become_points(pieces, tmp_path, picture, copied):
    path = matplotlib.cbook.get_sample_data(picture, asfileobj=False)
    (tmp_path / copied).write_bytes(open(path, "rb").read())
    color, alpha = np.split(plt.imread(path).astype(float), [3], 2)
    gray = (color * alpha + 1 - alpha if alpha.size else color).mean(2)  # on white
    dark = {(column, len(gray) - 1 - row) for row, column in zip(*np.nonzero(gray < gray.mean()))}
    assert {tuple(point) for point in pieces.read_points(str(tmp_path / copied)).tolist()} == dark and len(dark) > 1000
    ink = np.zeros((9, 9, 4))
    ink[3:5, 2, 3] = 1, 0.9  # black on transparent black
    plt.imsave(tmp_path / "ink.png", ink)
    assert pieces.read_points(str(tmp_path / "ink.png")).tolist() == [[2, 4], [2, 5]]


def test_own_data_leave_new_samples_in_the_units_of_the_file(lesson, tmp_path):
    np.save(tmp_path / "x.npy", table(40_000) * [1, 1000])
    run = lesson(NAME, "--data", str(tmp_path / "x.npy"), "--iters", "300")
    samples, data = np.load(run.folder / "06_euler.npy"), table(40_000) * [1, 1000]
    assert "20,000 draws, with replacement, from 40,000 points" in run.text and samples.shape == (2000, 2)
    assert (np.abs(samples.mean(0) - data.mean(0)) < 0.15 * data.std(0)).all()
    assert (np.abs(samples.std(0) / data.std(0) - 1) < 0.15).all()
    scaled = (samples - data.mean(0)) / data.std(0)
    assert np.abs(scaled - by_hand(run.ns.second, run.ns.noise, 1, "Euler")).max() < 1e-3


def test_each_bad_file_gets_one_line_that_says_what_was_found(refused, tmp_path):
    for name, text in {"three.csv": "1,2,3\n" * 50, "one.csv": "a\n" + "1\n" * 20, "word.csv": "a;b\n1;2\n1;x\n", "ragged.csv": "1,2\n1,2,3\n",
                       "quoted.csv": 'a,b\n1,2\n3,"4"\n', "empty.csv": "", "point.csv": "1,2\n", "head.csv": "x,y\n", "flat.csv": "1,2\n" * 9,
                       "nan.csv": "1,2\nnan,3\n1,4\n", "inf.csv": "1,2\n5,inf\n1,4\n", "torn.png": "nothing", "x.json": "{}"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.csv").write_bytes("Länge,Höhe\n1,2\n3,é\n".encode("latin-1"))
    np.save(tmp_path / "line.npy", np.ones(30))
    np.save(tmp_path / "point.npy", np.ones((1, 2)))
    plt.imsave(tmp_path / "white.png", np.ones((9, 9, 3)))
    plt.imsave(tmp_path / "clear.png", np.zeros((9, 9, 4)))
    expected = {"three.csv": "[50, 3]", "one.csv": "[20]", "word.csv": "'x'", "ragged.csv": "from 2 to 3", "quoted.csv": '"4"', "empty.csv": "fewer than two",
                "point.csv": "fewer than two", "head.csv": "fewer than two", "flat.csv": "equal numbers", "nan.csv": "nan", "inf.csv": "inf", "torn.png": "",
                "x.json": "", "latin.csv": "row 1, column 2", "line.npy": "[30]", "point.npy": "[1, 2]", "white.png": "[0, 2]", "clear.png": "[0, 2]",
                "none.csv": "No such file"}
    for name, words in expected.items():
        said = refused(NAME, "--data", str(tmp_path / name))
        assert words in said and name in said and said.endswith("needed are rows of two numbers or dark pixels"), said
    assert "needed are rows" in refused(NAME, "--data", "")


@pytest.mark.parametrize("flags", [
    ("--steps", "0"), ("--steps", "17"), ("--steps", "2.5"), ("--iters", "0"), ("--iters", "9" * 21), ("--seed", "-1"), ("--seed", "9" * 21), ("--solver", "rk4")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
