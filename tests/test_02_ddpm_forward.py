"""Lesson 02: the chain and its closed form against other computations, its end, the window and the breaks."""
import math

import matplotlib.pyplot as plt
import moons
import numpy as np
import pytest
import torch
from conftest import paste

NAME = "02_ddpm_forward"


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


@pytest.fixture(scope="module")
def ns(run):
    return run.ns


def schedule(T=1000):
    """beta and abar, T + 1 of each, in float64."""
    beta = np.concatenate([[0], np.linspace(1e-4, 0.02, T)])
    return beta, np.cumprod(1 - beta)


def lowest_loss(T=1000, every=10):
    """E |E[eps | xt] - eps|^2 / 2 over xt and t: 1 minus the mean square of the exact answer, summed on grids."""
    losses = []
    for abar in schedule(T)[1][5::every]:
        a, s = math.sqrt(abar), math.sqrt(1 - abar)
        width = math.sqrt((a * moons.WIDTH) ** 2 + s**2)
        xy, area = moons.grid(2.2 * a + 5 * width, width / 2)
        p, _, eps_hat = moons.parts(xy, a, s)
        losses.append(1 - (p * (np.nan_to_num(eps_hat) ** 2).mean(1)).sum() * area)
    return np.mean(losses)


def test_default_run_keeps_every_claim_and_draws(run):
    assert run.claims() == {f"C{i}": True for i in (1, 2, 3)}
    picture = plt.imread(run.folder / f"{NAME}.png")
    assert picture.shape[1] > 1000 and picture[..., :3].std() > 0.05


# --- the mathematics by another road


def test_schedule_is_the_papers_and_begins_with_no_step(ns):
    beta, abar = schedule()
    assert np.abs(ns.beta[:, 0].numpy() - beta).max() < 1e-8
    assert np.abs(ns.abar[:, 0].numpy() - np.exp(np.cumsum(np.log1p(-beta)))).max() < 1e-6
    assert ns.beta.shape == (1001, 1) and ns.beta[0] == 0 and ns.abar[0] == 1


def test_mean_and_variance_of_a_thousand_steps_are_those_of_the_closed_form():
    """The recursion of eq. 2, in float64: mean a x, variance s^2, for noise of any shape; and variance 1 stays 1."""
    beta, abar = schedule()
    mean, var, total, off = 1.0, 0.0, 1.0, 0.0
    for t in range(1, 1001):
        mean, var, total = math.sqrt(1 - beta[t]) * mean, (1 - beta[t]) * var + beta[t], (1 - beta[t]) * total + beta[t]
        off = max(off, abs(mean - math.sqrt(abar[t])), abs(var - (1 - abar[t])), abs(total - 1))
    assert off < 1e-12


def test_a_thousand_steps_are_one_matrix_product():
    """A step as a 2 x 2 matrix on (second moment, 1), multiplied up."""
    beta, abar = schedule()
    total = np.eye(2)
    for b in beta[1:]:
        total = np.array([[1 - b, b], [0, 1]]) @ total
    assert abs(total[0, 0] - abar[-1]) < 1e-12 and abs(total[0, 1] - (1 - abar[-1])) < 1e-12


def test_steps_of_the_chain_are_eq_2(ns):
    """The noise of single steps, recovered from the path, is N(0, I), new in each step, blind to x."""
    z = []
    for t in (1, 2, 400, 1000):
        b = ns.beta[t].item()
        step = (ns.path[t].double() - math.sqrt(1 - b) * ns.path[t - 1].double()) / math.sqrt(b)
        z += [step[:, 0], step[:, 1]]
    c = np.cov(torch.stack([*z, ns.path[0][:, 0].double(), ns.path[0][:, 1].double()]).numpy())
    assert np.abs(c[:8] - np.eye(10)[:8]).max() < 0.11  # five standard errors of 2500 chains


def test_chains_that_were_run_keep_the_mean_a_x_and_variance_1(ns):
    x = ns.path[0]
    a = ns.abar[:, 0].sqrt()
    assert ((ns.path * x).mean((1, 2)) - a).abs().max() < 0.1
    assert (ns.path.square().mean((1, 2)) - 1).abs().max() < 0.1


def test_cdf_gap_is_the_brute_force_gap(ns):
    z = ns.noise[6].flatten().double()
    grid = np.linspace(-4, 4, 2001)
    share = np.array([(z.numpy() <= g).mean() for g in grid])
    phi = np.array([0.5 * math.erfc(-g / math.sqrt(2)) for g in grid])
    assert abs(np.abs(share - phi).max() - ns.cdf_gap(z[None]).item()) < 2e-3


def test_cdf_gap_sees_noise_a_tenth_too_strong_or_shifted_by_a_tenth(ns):
    z = ns.noise[499].flatten()[None]
    assert ns.cdf_gap(z).item() < 0.03
    rows = torch.randn(20, 20_000)
    assert ns.cdf_gap(rows).max() < 0.0177 < ns.cdf_gap(1.1 * rows).min()
    assert ns.cdf_gap(rows + 0.1).min() > 0.0177


def test_kl_of_the_end_by_integration():
    """E_x KL(q(x_t | x) || N(0, I)) = -log(1 - abar), by a sum on a grid; and the KL of p(x_t) lies below it."""
    a, var = math.sqrt(schedule()[1][200]), 1 - schedule()[1][200]  # at t = 200 it is large enough to be seen
    y = np.linspace(-9, 9, 6001)

    def kl(m):  # one dimension: N(m, var) against N(0, 1)
        log_q = -(y - m) ** 2 / (2 * var) - 0.5 * math.log(2 * math.pi * var)
        return (np.exp(log_q) * (log_q + y**2 / 2 + 0.5 * math.log(2 * math.pi))).sum() * (y[1] - y[0])

    nodes, weights = np.polynomial.hermite_e.hermegauss(8)  # exact for the square of a Gaussian
    mean = sum(w / weights.sum() * kl(a * (m + moons.WIDTH * z)) for m in moons.CENTRES.ravel()
               for z, w in zip(nodes, weights)) / 64  # 64 centres; two coordinates add
    assert abs(mean + math.log(var)) < 1e-4  # the scale .7107 has four digits
    xy, area = moons.grid(7, 0.08)
    p = moons.parts(xy, a, math.sqrt(var))[0]
    marginal = (p * (np.log(p + 1e-300) + (xy**2).sum(1) / 2 + math.log(2 * math.pi))).sum() * area
    assert 0 < marginal < mean


def test_the_lowest_possible_loss_is_226_thousandths():
    assert abs(lowest_loss() - 0.226) < 0.0015


# --- proofs: what the course says beyond the script's claims


def test_a_training_point_costs_a_chain_five_hundred_draws_and_the_closed_form_one():
    times = torch.randint(1, 1001, (100_000,), generator=torch.Generator().manual_seed(0))
    assert abs(times.double().mean().item() - 500.5) < 5


def test_the_net_is_within_two_percent_of_the_lowest_loss_on_the_chains(ns):
    a, s = ns.abar[:, 0].sqrt().double().numpy(), (1 - ns.abar[:, 0]).sqrt().double().numpy()
    excess, floors = [], []
    for t in range(5, 1001, 10):
        best = moons.parts(ns.path[t].double().numpy(), a[t], s[t])[2]
        learned = ns.eps_net(ns.path[t], torch.full((2500,), t)).numpy()
        excess.append(((learned - best) ** 2).mean())
        floors.append(((best - ns.noise[t - 1].numpy()) ** 2).mean())
    assert 1 < 1 + np.mean(excess) / np.mean(floors) < 1.02


def way_back(start, n_hops, T, seed=0):
    """From N(0, I), taken for the chain at t = start, back to data with the exact answers and no fresh noise (lesson 07)."""
    abar = schedule(T)[1]
    xt = np.random.default_rng(seed).standard_normal((4000, 2))
    times = np.unique(np.linspace(0, start, n_hops + 1).round().astype(int))[::-1]
    for t, u in zip(times, times[1:]):
        _, x_hat, eps_hat = moons.parts(xt, math.sqrt(abar[t]), math.sqrt(1 - abar[t]))
        xt = math.sqrt(abar[u]) * x_hat + math.sqrt(1 - abar[u]) * eps_hat
    xy, area = moons.grid(4, 0.02)
    p = moons.parts(xy, 1.0, 0.0)[0] * area
    return np.abs(np.cov(xt.T) - (xy * p[:, None]).T @ xy).max()


def test_from_the_prior_a_way_leads_back_and_from_a_short_chain_it_does_not():
    """Covariance off the data's by .04 at most from T = 1000, by .3 and more from T = 50, by more from t = 100 of 1000."""
    assert way_back(1000, 100, 1000) < 0.1
    assert way_back(50, 50, 50) > 0.25
    assert way_back(100, 50, 1000) > 0.4


def test_a_constant_beta_of_the_same_end_spends_more_steps_on_nearly_pure_noise():
    """beta = .010067 has the abar[T] of the linear schedule; its lowest loss is .085 instead of .23."""
    abar = schedule()[1]
    constant = (1 - 0.010067) ** np.arange(1001)
    assert abs(constant[-1] / abar[-1] - 1) < 0.01
    losses = []
    for value in constant[5::10]:
        a, s = math.sqrt(value), math.sqrt(1 - value)
        width = math.sqrt((a * moons.WIDTH) ** 2 + s**2)
        xy, area = moons.grid(2.2 * a + 5 * width, width / 2)
        p, _, eps_hat = moons.parts(xy, a, s)
        losses.append(1 - (p * (np.nan_to_num(eps_hat) ** 2).mean(1)).sum() * area)
    assert abs(np.mean(losses) - 0.085) < 0.01


def test_many_small_uniform_noises_look_gaussian_again(lesson):
    run = lesson(NAME, "--noise", "uniform", "--iters", "20")
    gaps = run.ns.cdf_gap(run.ns.noise.flatten(1))
    assert gaps[0] > 0.05 and gaps[999] < 0.03


# --- the window and the breaks


def colours(ns):
    return [ax.lines[0].get_color() for ax in ns.axes]


def test_slider_leaves_data_at_the_end_of_a_short_chain(ns):
    assert colours(ns) == ["0.6"] * 5
    ns.length.set_val(50)
    try:
        assert colours(ns) == ["0.6"] * 3 + ["tab:red", "0.6"]
        end = ns.axes[3].lines[0].get_xydata()
        assert np.cov(end.T)[0, 0] > 1.2  # a disc of N(0, I) has 1, the moons 1.5
        assert ns.axes[3].get_title().startswith("t = 50")
    finally:
        ns.length.set_val(1000)
    assert colours(ns) == ["0.6"] * 5


def test_radio_shows_the_square_of_uniform_noise(ns):
    ns.radio.set_active(1)
    try:
        first = ns.axes[4].lines[0]
        assert first.get_color() == "tab:red" and np.abs(first.get_xydata()).max() < 1.75
    finally:
        ns.radio.set_active(0)
    assert ns.axes[4].lines[0].get_color() == "0.6" and np.abs(ns.axes[4].lines[0].get_xydata()).max() > 2.5


@pytest.mark.parametrize("seed", ["1", "2"])
def test_break_short_chain(lesson, seed):
    run = lesson(NAME, "--T", "50", "--iters", "20", "--seed", seed)
    assert run.claims() == {"C1": True, "C2": False, "C3": False} and colours(run.ns)[3] == "tab:red"


@pytest.mark.parametrize("seed", ["1", "2"])
def test_break_uniform_noise(lesson, seed):
    run = lesson(NAME, "--noise", "uniform", "--iters", "400", "--seed", seed)
    claims = run.claims()
    assert not claims["C1"] and claims["C2"] and colours(run.ns)[4] == "tab:red"


def test_a_net_of_20_iterations_finds_no_noise(lesson):
    assert not lesson(NAME, "--iters", "20").claims()["C3"]


def test_same_seed_same_numbers_and_another_seed_others(lesson):
    texts = [lesson(NAME, "--iters", "20", "--T", "20", *more).text for more in ((), ("--seed", "0"), ("--seed", "1"))]
    assert texts[0] == texts[1] != texts[2]


def test_simulate_and_closed_form_paste():
    piece = paste(NAME, "simulate", "schedule", "noise_of")
    beta, abar = piece.schedule(30)
    path = piece.simulate(torch.randn(7, 3), beta, "gauss")  # in any dimension
    assert path.shape == (31, 7, 3) and piece.noise_of(path, abar).shape == (30, 7, 3)


@pytest.mark.parametrize("flags", [("--T", "1"), ("--T", "1001"), ("--iters", "0"), ("--seed", "-1"), ("--noise", "cauchy")])
def test_bad_flags_end_in_one_line(refused, flags):
    assert flags[0] in refused(NAME, *flags)
