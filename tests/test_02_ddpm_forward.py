"""Lesson 02: its chain, closed form and measures against other computations; widget, breaks, bad flags."""
import math
import pathlib
import runpy

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAME = "02_ddpm_forward"
ALL = {f"C{i}" for i in range(1, 8)}


def failed(run):
    return {name for name, ok in run.claims().items() if not ok}


@pytest.fixture(scope="module")
def default(lesson):
    return lesson(NAME)


def test_default_run_keeps_every_claim_and_draws(default):
    assert default.claims() == dict.fromkeys(ALL, True)
    picture = plt.imread(default.folder / f"{NAME}.png")
    assert picture.shape[1] > 1000 and picture[..., :3].std() > 0.05


def test_schedule_is_the_papers(default):
    ns = default.ns
    beta = np.concatenate([[0], np.linspace(1e-4, 0.02, 1000)])
    abar = np.exp(np.cumsum(np.log1p(-beta)))  # by logarithms, not by products
    assert np.abs(ns.beta.cpu().numpy() - beta).max() < 1e-8
    assert np.abs(ns.abar.cpu().numpy() - abar).max() < 1e-7
    assert ns.abar[0] == 1 and ns.beta[0] == 0 and len(ns.beta) == ns.T + 1


def test_t_steps_are_one_matrix_product(default):
    """Each step as a 2 x 2 matrix on (second moment, 1): 1000 of them multiplied against abar."""
    ns, total = default.ns, np.eye(2)
    for b in ns.beta[1:].cpu().numpy():
        total = np.array([[1 - b, b], [0, 1]]) @ total
    assert abs(total[0, 0] - ns.abar[-1].item()) < 1e-12
    assert abs(total[0, 1] - (1 - ns.abar[-1].item())) < 1e-12
    assert abs(total.sum() - 2) < 1e-12  # variance 1 in, variance 1 out
    assert abs(float(ns.var) - total[0, 1]) < 1e-12 and ns.off < 1e-12


def test_steps_of_the_chain_are_eq_2(default):
    """The noise of single steps, recovered from the path, is N(0, I), new in each step, blind to x."""
    ns = default.ns
    z = []
    for t in (1, 2, 400, 1000):
        b = ns.beta[t].item()
        step = (ns.path[t].double() - math.sqrt(1 - b) * ns.path[t - 1].double()) / math.sqrt(b)
        z += [step[:, 0], step[:, 1]]
    c = np.cov(torch.stack(z + [ns.x[:, 0].double(), ns.x[:, 1].double()]).cpu().numpy())
    assert np.abs(c[:8] - np.eye(10)[:8]).max() < 0.08  # 5 standard errors and more


def test_kolmogorov_is_the_brute_force_gap(default):
    ns = default.ns
    eps = ((ns.path[7] - ns.a[7] * ns.x) / ns.s[7]).double().cpu().numpy().ravel()
    grid = np.linspace(-4, 4, 2001)
    ecdf = np.array([(eps <= g).mean() for g in grid])
    phi = np.array([0.5 * math.erfc(-g / math.sqrt(2)) for g in grid])
    assert abs(np.abs(ecdf - phi).max() - ns.kolmogorov(7)) < 1e-3


def test_c3_sees_a_wrong_shape(default):
    """Noise 10 % too strong, or shifted by a tenth of its std, is beyond C3's bound."""
    ns = default.ns
    keep = ns.path[500].clone()
    try:
        for wrong in (keep + 0.1 * (keep - ns.a[500] * ns.x), keep + 0.1 * ns.s[500]):
            ns.path[500] = wrong
            assert ns.kolmogorov(500) > 0.0177
    finally:
        ns.path[500] = keep
    assert ns.kolmogorov(500) < 0.0177


@pytest.mark.parametrize("right, wrong", [("alpha[t].sqrt() * path", "path"),  # nothing shrinks
                                          ("beta[t].sqrt() * noise", "beta[t] * noise")])
def test_claims_catch_a_wrong_chain(right, wrong, tmp_path, monkeypatch, capsys):
    text = (ROOT / f"{NAME}.py").read_text()
    assert text.count(right) == 1
    (tmp_path / "wrong.py").write_text(text.replace(right, wrong))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["wrong.py", "--iters", "20", "--T", "300"])
    runpy.run_path("wrong.py", run_name="__main__")
    printed = capsys.readouterr().out
    assert "FAIL  C2" in printed and "FAIL  C3" in printed and "ok    C1" in printed


def test_exact_is_autograd_and_a_sum_over_components(default):
    ns = default.ns
    torch.manual_seed(3)
    a, s = ns.abar[300].sqrt(), (1 - ns.abar[300]).sqrt()
    xt = torch.randn(50, 2, dtype=torch.float64, device=ns.device).requires_grad_()
    x_hat, eps_hat, log_p = ns.exact(xt, a, s)
    score, = torch.autograd.grad(log_p.sum(), xt)
    assert (eps_hat + s * score).abs().max() < 1e-10
    assert (a * x_hat + s * eps_hat - xt).abs().max() < 1e-10
    var = (a * ns.SD) ** 2 + s**2
    d2 = ((xt[:, None] - a * ns.MU) ** 2).sum(2)
    p = (torch.exp(-d2 / (2 * var)) / (2 * math.pi * var)).mean(1)
    assert (p.log() - log_p[:, 0]).abs().max() < 1e-10


def test_kl_of_the_end_by_integration(default):
    """C5's -log(1 - abar): E_x KL(q(xT | x) || N(0, I)) on a grid, and the KL of p(xT) lies below it."""
    ns = default.ns
    t = 200  # large enough a KL to be seen by a grid sum
    a, var = ns.abar[t].sqrt().item(), 1 - ns.abar[t].item()
    y = np.linspace(-9, 9, 6001)
    def kl(m):  # one dimension: N(m, var) against N(0, 1)
        log_q = -(y - m) ** 2 / (2 * var) - 0.5 * math.log(2 * math.pi * var)
        return (np.exp(log_q) * (log_q + y**2 / 2 + 0.5 * math.log(2 * math.pi))).sum() * (y[1] - y[0])
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)  # exact for the square of a Gaussian
    mean = sum(w / weights.sum() * kl(a * (m + ns.SD * z)) for m in ns.MU.cpu().numpy().ravel()
               for z, w in zip(nodes, weights)) / 64  # 64 centres; two coordinates add
    assert abs(mean + math.log(var)) < 1e-6
    u = torch.linspace(-7, 7, 181, dtype=torch.float64, device=ns.device)
    grid = torch.cartesian_prod(u, u)
    log_p = ns.exact(grid, ns.abar[t].sqrt(), (1 - ns.abar[t]).sqrt())[2][:, 0]
    marginal = (log_p.exp() * (log_p + (grid**2).sum(1) / 2 + math.log(2 * math.pi))).sum() * (u[1] - u[0]) ** 2
    assert 0 < marginal < mean


def test_floor_is_the_bayes_loss(default):
    """Fresh draws have C7's floor and its net's loss; the best guess is a mean over 20000 data points."""
    ns = default.ns
    g = torch.Generator(ns.device).manual_seed(5)
    t = torch.randint(1, ns.T + 1, (20000,), generator=g, device=ns.device)
    eps = torch.randn(20000, 2, generator=g, device=ns.device)
    xt = ns.a[t] * ns.moons(20000, g) + ns.s[t] * eps
    loss = (ns.exact(xt, ns.a[t], ns.s[t])[1] - eps).square().mean(1)
    assert abs(loss.mean().item() - ns.floor) < 0.02
    with torch.no_grad():
        learned = (ns.net(torch.cat([xt, ns.clock[t]], 1)) - eps).square().mean(1)
    assert abs((learned.mean() / loss.mean()).item() - 1) < 0.04  # new points, new noise
    data, t = ns.moons(20000, g), 400
    one = ns.a[t] * data[:1] + ns.s[t] * eps[:1]
    weight = (-((one - ns.a[t] * data) ** 2).sum(1) / (2 * ns.s[t] ** 2)).softmax(0)
    brute = ((one - ns.a[t] * data) / ns.s[t] * weight[:, None]).sum(0)
    assert (brute - ns.exact(one, ns.a[t], ns.s[t])[1][0]).abs().max() < 0.05


def test_slider_moves_cloud_histogram_and_numbers(default):
    ns = default.ns
    seen = {}
    for t in (1, 300, 1000):
        ns.slider.set_val(t)
        cloud = np.asarray(ns.axes[0].collections[0].get_offsets())
        assert np.abs(cloud - ns.path[t].cpu().numpy()).max() < 1e-6
        assert f"t = {t}" in ns.axes[0].get_title() and f"{ns.kolmogorov(t):.4f}" in ns.axes[1].get_title()
        ns.fig.canvas.draw()
        seen[t] = np.asarray(ns.fig.canvas.buffer_rgba())[..., :3].copy()
    assert np.abs(seen[1].astype(int) - seen[1000]).mean() > 0.5
    off = {}
    for t in (100, 1000):  # a way back from N(0, I) exists where the chain has ended there, and the bars are blue
        ns.slider.set_val(t)
        off[t] = float(ns.axes[3].get_title().split()[-1])
        assert ns.axes[3].patches[-1].get_facecolor() == matplotlib.colors.to_rgba("tab:red" if t == 100 else "tab:blue")
    assert off[1000] < 0.15 and 0.4 < off[100] < 0.8
    x, y = ns.axes[2].lines[0].get_data()  # the SNR curve belongs to its t
    assert x[0] == 1 and abs(y[0] / (ns.abar[1] / (1 - ns.abar[1])).item() - 1) < 1e-9


@pytest.mark.parametrize("seed", ["1", "2"])
def test_break_short_chain(lesson, seed):
    assert failed(lesson(NAME, "--T", "50", "--iters", "700", "--seed", seed)) == {"C4", "C5", "C6"}


def test_break_ten_steps_is_worse(lesson):
    ten, fifty = (lesson(NAME, "--T", n, "--iters", "700", "--seed", "1") for n in ("10", "50"))
    assert failed(ten) == {"C4", "C5", "C6"} and ten.ns.bias > fifty.ns.bias > 0.1


@pytest.mark.parametrize("seed, iters", [("1", "1500"), ("2", "20")])
def test_break_uniform_noise(lesson, seed, iters):
    run = lesson(NAME, "--noise", "uniform", "--iters", iters, "--seed", seed)
    assert failed(run) == ({"C3"} if iters == "1500" else {"C3", "C7"})  # 20 iterations train nothing
    assert run.ns.slider.val == 1 and run.ns.kolmogorov(1) > 0.0177 > run.ns.kolmogorov(1000)


def test_one_seed_one_answer(lesson):
    first, second = (lesson(NAME, "--iters", "20", "--T", "20", *more) for more in ((), ("--seed", "0")))
    tables = [[line for line in run.text.splitlines() if line[:4] in ("ok  ", "FAIL")] for run in (first, second)]
    assert len(tables[0]) == 7 and tables[0] == tables[1] and "C7" in failed(first)


@pytest.mark.parametrize("flags", [("--T", "1"), ("--iters", "0"), ("--seed", "-1"),
                                   ("--noise", "cauchy"), ("--out", "x.xyz"),
                                   ("--out", "/nonexistent/x.png")])
def test_bad_flags_end_in_one_line(refused, flags):
    assert flags[0] in refused(NAME, *flags)
