"""Lesson 02: chain, closed form, KS, and the lowest loss against other computations, the training, the run, the slider, the break."""
import math
import re

import moons
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste
from matplotlib.colors import to_hex

NAME = "02_ddpm_forward"
DATA_COV = np.cov(moons.CENTRES.T, ddof=0) + moons.WIDTH**2 * np.eye(2)


@pytest.fixture(scope="module")
def pieces():
    return paste(NAME, "linear_schedule", "simulate_chain", "training_batch", "train")


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


@pytest.fixture(scope="module")
def ns(run):
    return run.ns


def schedule(T=1000):
    """beta, a, s in float64, T + 1 of each: a and s by sums of logarithms."""
    beta = np.array([0] + [1e-4 + (0.02 - 1e-4) * i / (T - 1) for i in range(T)])
    abar = np.exp(np.cumsum(np.log1p(-beta)))
    return beta, np.sqrt(abar), np.sqrt(-np.expm1(np.log(abar)))


def gap(z):
    """The KS statistic of the numbers z and N(0, 1), by its definition: both sides of every jump of the sample's CDF."""
    z = np.sort(np.asarray(z, dtype=float).ravel())
    exact = np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in z])
    i = np.arange(len(z))
    return max(np.abs(exact - i / len(z)).max(), np.abs(exact - (i + 1) / len(z)).max())


def lowest_loss(beta):
    """The mean over t of E |E[eps | xt] - eps|^2 / 2, which is 1 minus the mean square of E[eps | xt], summed on grids."""
    losses, abar = [], np.cumprod(1 - beta)[1:]
    for value in abar[len(abar) // 200::max(1, len(abar) // 100)]:
        a, s = math.sqrt(value), math.sqrt(1 - value)
        width = math.sqrt((a * moons.WIDTH) ** 2 + s**2)
        xy, area = moons.grid(2.2 * a + 5 * width, width / 2)
        p, _, eps_hat = moons.parts(xy, a, s)
        losses.append(1 - (p * (np.nan_to_num(eps_hat) ** 2).mean(1)).sum() * area)
    return np.mean(losses)


def test_data_are_64_equal_gaussians_of_mean_variance_1(pieces):
    assert np.abs(pieces.CENTERS.numpy() - moons.CENTRES).max() < 1e-6 and abs(pieces.STD - moons.WIDTH) < 1e-9
    x = pieces.two_moons(200_000)
    distance, place = torch.cdist(x, pieces.CENTERS).min(1)
    assert (torch.bincount(place, minlength=64) / 200_000 * 64 - 1).abs().max() < 0.35 and distance.max() < 5.5 * pieces.STD
    assert np.abs(np.cov(x.T) - DATA_COV).max() < 0.02 and abs(np.trace(DATA_COV) - 2) < 1e-3 and x.mean(0).abs().max() < 0.015


def test_schedule_is_the_papers_and_begins_with_no_step(pieces):
    for T in (10, 1000):
        beta, a, _ = schedule(T)
        mine, abar = pieces.linear_schedule(T)
        assert mine.shape == abar.shape == (T + 1, 1) and mine[0] == 0 and abar[0] == 1
        assert np.abs(mine[:, 0].numpy() - beta).max() < 1e-8 and np.abs(abar[:, 0].numpy() - a**2).max() < 1e-6


def test_steps_are_equation_2_with_fresh_noise(pieces):
    """The z of each step, solved from the path: N(0, 1), unrelated to the data and to one another."""
    beta = torch.tensor([0, 0.1, 0.5, 0.9, 0.02])[:, None].double()
    path = pieces.simulate_chain(torch.randn(40_000, 3).double() + 2, beta)
    assert path.shape == (5, 40_000, 3)
    z = [(path[t] - math.sqrt(1 - beta[t]) * path[t - 1]) / math.sqrt(beta[t]) for t in range(1, 5)]
    moments = np.cov(torch.hstack([*z, path[0]]).numpy().T)
    assert np.abs(moments - np.eye(15)).max() < 0.03 and max(gap(step[:3000, 0]) for step in z) < 0.04


def test_one_pulse_of_noise_a_chain_gives_the_closed_form(pieces, monkeypatch):
    """Chain k gets noise 1 in step k alone, and the last gets none: all factors of (4), enumerated."""
    steps = iter(range(40))
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.eye(41, dtype=x.dtype)[next(steps)][:, None])
    beta, a, s = schedule(40)
    x = torch.tensor([0.0] * 40 + [1.0]).double()[:, None]
    response = pieces.simulate_chain(x, torch.tensor(beta)[:, None])[:, :, 0].numpy()  # (41, 41)
    assert np.abs(response[:, 40] - a).max() < 1e-12
    assert np.abs((response[:, :40] ** 2).sum(1) - s**2).max() < 1e-12
    assert np.abs((response**2).sum(1) - 1).max() < 1e-12  # variance 1 is preserved


def test_chance_exceeds_the_limit_in_one_of_10000_runs(run):
    """DKW: P(KS > e) <= 2 exp(-2 n e^2), summed over 1000 times."""
    at_one_t = 2 * math.exp(-2 * 5000 * run.numbers()["C1"][1] ** 2)
    assert 0.95e-7 < at_one_t < 1.05e-7 and run.ns.ks.shape == (1001,) and run.ns.ks[0].isnan()  # t = 0 has no eps


def test_uniform_steps_are_seen_at_t_1_and_not_later(lesson, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", lambda x: 12**0.5 * (torch.rand_like(x) - 0.5))
    for seed in "12":
        run = lesson(NAME, "--iters", "2", "--seed", seed)
        assert 0.045 < run.ns.ks[1] < 0.075 and run.ns.ks[2:].max() < 0.041 and not run.claims()["C1"]
        assert "at 999 of 1000 times" in run.ns.chart.get_title()
    assert abs(gap(np.linspace(-(3**0.5), 3**0.5, 20_001)) - 0.057) < 0.0005  # of the distribution itself


def test_from_a_chain_that_is_too_short_no_way_leads_back():
    """From N(0, I), taken for x_T, with exact answers and the steps of lesson 07: error of the samples' covariance."""
    error = {}
    for T in (50, 1000):
        _, a, s = schedule(T)
        xt, times = np.random.default_rng(0).standard_normal((4000, 2)), np.linspace(T, 0, min(T, 100) + 1).round().astype(int)
        for t, u in zip(times, times[1:]):
            _, x_hat, eps_hat = moons.parts(xt, a[t], s[t])
            xt = a[u] * x_hat + s[u] * eps_hat
        error[T] = np.abs(np.cov(xt.T) - DATA_COV).max()
    assert error[1000] < 0.1 and error[50] > 0.25


def test_a_training_batch_is_the_closed_form_at_random_times(pieces):
    _, a, s = (torch.tensor(column)[:, None] for column in schedule(20))
    xt, st, eps = pieces.training_batch(a, s, 100_000)
    assert xt.shape == eps.shape == (100_000, 2) and st.shape == (100_000, 1)
    t = (st - s.T).abs().argmin(1)
    assert (torch.bincount(t, minlength=21)[1:] / 5000 - 1).abs().max() < 0.08 and t.min() == 1 and t.max() == 20
    x = (xt - s[t] * eps) / a[t]
    assert torch.cdist(x.float(), pieces.CENTERS).amin(1).max() < 5.5 * moons.WIDTH
    moments = np.cov(torch.hstack([x, eps, t[:, None]]).numpy().T)
    assert np.abs(moments[2:4, 2:4] - np.eye(2)).max() < 0.02 and np.abs(moments[:2, 2:4]).max() < 0.02
    assert np.abs(moments[:4, 4]).max() < 0.1 and abs(moments[0, 0] + moments[1, 1] - 2) < 0.03


def test_training_steps(pieces, monkeypatch):
    rates, sizes, step, batch = [], [], torch.optim.Adam.step, pieces.train.__globals__["training_batch"]
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    monkeypatch.setitem(pieces.train.__globals__, "training_batch", lambda a, s, n: sizes.append(n) or batch(a, s, n))
    _, a, s = (torch.tensor(column).float()[:, None] for column in schedule(20))
    net = pieces.train(a, s, 201)
    assert np.allclose(rates, 0.03 * (1 - np.arange(201) / 201)) and set(sizes) == {1024}
    assert sum(p.numel() for p in net.parameters()) == 4 * 64 + 2 * 65 * 64 + 65 * 2


def test_lowest_loss_and_best_multiple_of_xt(run, ns):
    """E (eps - c xt)^2 = 1 - 2 c s + c^2 is lowest, abar, for c = s. The lowest loss of all is 0.8 of this, for any T."""
    st = ns.st.double().numpy()
    exact = moons.parts(ns.xt.double().numpy(), np.sqrt(1 - st**2), st)[2]
    best = ns.best_eps(ns.xt, ns.st)
    assert np.abs(best.numpy() - exact).max() < 2e-4
    xt = np.random.default_rng(0).standard_normal((200, 2))
    _, x_hat, eps_hat = moons.parts(xt, 0.6, 0.8)
    assert np.abs((xt - 0.8 * eps_hat) / 0.6 - x_hat).max() < 1e-10  # the mean of eps gives the mean of x
    lowest = {T: lowest_loss(schedule(T)[0]) for T in (10, 50, 300, 1000)}
    ratio = {T: (schedule(T)[1][1:] ** 2).mean() / lowest[T] for T in lowest}
    assert abs(lowest[1000] - 0.226) < 0.0015 and abs(ratio[1000] - 1.22) < 0.01 and min(ratio.values()) > 1.19
    assert abs(((best - ns.eps) ** 2).mean() - lowest[1000]) < 0.006


def test_claims_figure_and_page(run):
    assert run.claims() == {"C1": True, "C2": True, "C3": True}
    page_agrees(NAME, run)


def test_printed_numbers_come_from_another_computation(run, ns):
    _, a, s = schedule()
    x = ns.path[0].double().numpy()  # (2500, 2)
    eps = [(ns.path[t].double().numpy() - a[t] * x) / s[t] for t in range(1, 1001)]
    numbers, late = run.numbers(), ns.path[1000].double().numpy()
    largest = ns.ks[1:].argmax().item() + 1  # the lesson's KS may be 1 / n smaller, the jumps of the sample's CDF
    assert all(-2e-5 < gap(eps[t - 1]) - ns.ks[t].item() < 2.2e-4 for t in (1, 2, 100, 500, 1000, largest))
    assert abs(numbers["C2"][0] - np.corrcoef(x.ravel(), late.ravel())[0, 1]) < 5e-4 + 0.03 * abs(numbers["C2"][0])
    assert 3.9 < numbers["C2"][1] / (x * np.roll(late, 1, 0)).std() * 5000**0.5 < 4.6  # standard errors of unrelated pairs
    losses = [((guess - ns.eps) ** 2).mean().item() for guess in (ns.net(torch.hstack([ns.xt, ns.st])), ns.best_eps(ns.xt, ns.st))]
    assert abs(numbers["C1"][0] - ns.ks[largest].item()) < 1e-5 and abs(numbers["C3"][0] - losses[0] / losses[1]) < 6e-4
    assert [bound for _, bound in numbers.values()] == [0.041, 0.06, 1.1] and len(ns.xt) == 50_000 and len(x) == 2500
    assert abs(np.cov(np.stack([eps[0][:, 0], eps[999][:, 0], x[:, 0]]))[np.triu_indices(3, 1)]).max() < 0.12


def test_the_net_is_near_the_exact_mean_on_simulated_chains(run, ns):
    """Its distance from E[eps | xt], squared, adds to the lowest loss: 2 to 4 percent of it, on chains that it never saw."""
    _, a, s = schedule()
    excess = []
    for t in range(5, 1001, 10):
        exact = moons.parts(ns.path[t].double().numpy(), a[t], s[t])[2]
        learned = ns.net(torch.hstack([ns.path[t], torch.full((2500, 1), s[t], dtype=torch.float32)])).detach().numpy()
        excess.append(((learned - exact) ** 2).mean())
    assert 0 < np.mean(excess) < 0.06 * 0.226 and abs(run.numbers()["C3"][0] - 1 - np.mean(excess) / 0.226) < 0.01


def shown(ns):
    """(t, percent of data, if red, points of the chain, of the closed form, one point's steps, its start and draw) of each pair of clouds."""
    assert len(ns.clouds) == 8 and "red: over 0.36% data" in ns.clouds[4].get_ylabel()
    for ax, below in zip(ns.clouds, ns.clouds[4:]):
        t, data = re.fullmatch(r"t = (\d+)\nvariance: (\S+)% data", ax.get_title()).groups()
        (chain, steps), (draws, pair) = ax.lines, below.lines
        red = to_hex(draws.get_color()) == to_hex("C3")
        assert [to_hex(line.get_color()) for line in (chain, steps, draws, pair)] == [to_hex(color) for color in ("0.6", "C1", "C3" if red else "C0", "C1")]
        assert steps.get_markevery() == pair.get_markevery() == [-1]
        yield int(t), float(data), red, *(np.stack(line.get_data(), 1) for line in (chain, draws, steps, pair))


def test_slider_shows_chains_of_any_length_and_turns_red(ns):
    before = list(shown(ns))
    for T in (50, 10, 556, 557, 1000):  # red up to 556
        ns.slider.set_val(float(T))  # as the mouse does
        _, a, s = schedule(T)
        clouds, (distance, chance), path = list(shown(ns)), ns.chart.lines, (torch.manual_seed(0), ns.measure(T)[2].double().numpy())[1]
        assert [cloud[0] for cloud in clouds] == [0, T // 10, T // 4, T] and np.array_equal(distance.get_xdata(), range(T + 1))
        for t, data, red, chain, draws, steps, pair in clouds:
            assert abs(data - 100 * a[t] ** 2) < 0.51 and red == (t == T and a[T] ** 2 > 0.0036) and np.array_equal(chain, path[t, :500])
            exact, z = a[t] ** 2 * DATA_COV + s[t] ** 2 * np.eye(2), (draws - a[t] * path[0, :500]) / max(s[t], 1e-9)
            assert np.abs(np.cov(chain.T) - exact).max() < 0.3 and np.abs(np.cov(draws.T) - exact).max() < 0.3 and len(draws) == 500
            assert np.array_equal(steps, path[:t + 1, 0]) and np.array_equal(pair, [path[0, 0], draws[0]])
            assert t == 0 or gap(z) < 0.07 and np.abs((z * (chain - a[t] * path[0, :500]) / s[t]).mean()) < 0.13  # fresh noise
            assert t == 0 or -1e-4 < gap((path[t] - a[t] * path[0]) / s[t]) - distance.get_ydata()[t] < 3e-4
        assert np.array_equal(chance.get_xydata(), [(0, 0.041), (T, 0.041)]) and f"at {T} of {T} times" in ns.chart.get_title()
    for old, cloud in zip(before, clouds):  # the same chains, which the claims measure
        assert old[:2] == cloud[:2] and np.array_equal(old[3], cloud[3]) and np.array_equal(old[3], ns.path[old[0], :500].numpy())


def test_breaks_of_a_short_chain_and_of_a_short_training(lesson):
    run = lesson(NAME, "--T", "50", "--iters", "300", "--seed", "1")
    assert run.claims() == {"C1": True, "C2": False, "C3": True} and abs(run.numbers()["C2"][0] - 0.603**0.5) < 0.04
    last = list(shown(run.ns))[3]
    assert last[2] and abs(last[1] - 60.3) < 0.3 and np.array_equal(last[3], run.ns.path[50, :500].numpy())  # the slider keeps the seed
    run = lesson(NAME, "--iters", "50", "--seed", "6")  # the largest KS is late, at t = 741
    assert run.claims() == {"C1": True, "C2": True, "C3": False} and abs(run.numbers()["C1"][0] - run.ns.ks[1:].max()) < 1e-5


def test_same_seed_same_numbers(lesson, limits):
    limits(NAME)
    runs = [lesson(NAME, "--T", "10", "--iters", "1", *more).text for more in ((), ("--seed", "0"), ("--seed", str(2**32 - 1)))]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("flags", [
    ("--T", "9"), ("--T", "1001"), ("--T", "2.5"), ("--iters", "0"), ("--iters", "1000001"), ("--seed", "-1"),
    ("--seed", str(2**32)), ("--noise", "cauchy")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
