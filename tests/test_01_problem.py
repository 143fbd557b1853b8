"""Lesson 01: guessing against brute force, the path against the exact velocity, the window and the break."""
import math

import matplotlib.pyplot as plt
import moons
import numpy as np
import pytest
import torch
from conftest import paste

NAME = "01_problem"


@pytest.fixture(scope="module")
def ns(lesson):
    return lesson(NAME).ns


def exact_velocity(xt, t):
    """E[x - eps | xt] for the walk of the lesson, in float64 inside."""
    _, x_hat, eps_hat = moons.parts(xt.double().numpy(), t, 1 - t)
    return torch.tensor(x_hat - eps_hat).to(xt)


def home(x):
    """Share of points (n, 2) with log p_data above -5: .994 of real ones."""
    return (np.log(moons.parts(np.asarray(x, dtype=float), 1.0, 0.0)[0] + 1e-300) > -5).mean()


def test_default_run_keeps_every_claim_and_draws(lesson):
    run = lesson(NAME)
    assert run.claims() == {f"C{i}": True for i in (1, 2, 3)}
    image = plt.imread(run.folder / "01_problem.png")
    assert image.shape[1] > 1000 and image[..., :3].std() > 0.05


# --- the mathematics by another road


def test_density_is_the_plain_sum_and_integrates_to_one(ns):
    xy, area = moons.grid(4, 0.02)
    mine = ns.log_p_data(torch.tensor(xy).float()).exp().double().numpy()
    plain = moons.parts(xy, 1.0, 0.0)[0]
    assert np.abs(mine - plain).max() < 1e-4 and abs(plain.sum() * area - 1) < 1e-10
    assert abs(ns.log_prior(torch.zeros(1, 2)).item() + math.log(2 * math.pi)) < 1e-6


def test_samples_have_the_moments_of_the_density(ns):
    torch.manual_seed(1)
    x = ns.two_moons(200_000).double().numpy()
    xy, area = moons.grid(4, 0.02)
    p = moons.parts(xy, 1.0, 0.0)[0] * area
    assert np.abs(x.mean(0) - p @ xy).max() < 0.012
    assert np.abs(x.T @ x / len(x) - (xy * p[:, None]).T @ xy).max() < 0.02
    assert abs((p[:, None] * xy**2).sum() / 2 - 1) < 1e-3  # mean variance 1


def test_a_guess_is_worth_187_thousandths_of_a_sample(ns):
    xy, area = moons.grid(3.5, 0.0125)
    p, q = moons.parts(xy, 1.0, 0.0)[0], np.exp(-(xy**2).sum(1) / 2) / (2 * math.pi)
    assert abs(1 / ((p**2 / q).sum() * area) - ns.exact) < 1e-4 and abs(ns.exact - 0.187) < 0.0005


def test_effective_share_of_equal_weights_is_1_and_of_one_weight_is_1_in_n(ns):
    assert abs(ns.effective_share(torch.full((50,), 300.0)) - 1) < 1e-6
    assert abs(ns.effective_share(torch.tensor([0.0] + [-1e3] * 49)) - 1 / 50) < 1e-6
    w = np.random.default_rng(0).random(1000)
    assert abs(ns.effective_share(torch.tensor(w).log()) - w.sum() ** 2 / (1000 * (w**2).sum())) < 1e-9


def test_walk_follows_the_flow_of_a_gaussian_whose_map_is_known(ns):
    mean, std = torch.tensor([0.7, -0.4], dtype=torch.float64), 0.3  # data N(mean, std^2 I)

    def v(xt, t):
        var = (t * std) ** 2 + (1 - t) ** 2
        return mean + (t * std**2 - (1 - t)) / var * (xt - t * mean)

    eps = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    error = [(ns.walk(v, eps, n) - (mean + std * eps)).abs().max().item() for n in (400, 800)]
    assert error[0] < 0.02 and 1.8 < error[0] / error[1] < 2.2  # Euler: order 1
    assert (ns.walk(v, eps, 1) - mean).abs().max() < 1e-12  # one step: everything at the mean


# --- proofs: what the course says beyond the script's claims


def test_rejection_keeps_one_guess_in_twenty_for_each_pair_of_dimensions(ns):
    """1 / max w = .04986 a pair: of 100,000 guesses 4986, 249 and 12 are kept in d = 2, 4 and 6."""
    xy, _ = moons.grid(2.6, 0.02)
    best = xy[(moons.parts(xy, 1.0, 0.0)[0] * np.exp((xy**2).sum(1) / 2)).argmax()]
    for width in (0.02, 0.002, 0.0002):  # a finer and finer grid around the peak of the weight
        near = best + moons.grid(width, width / 20)[0]
        w = moons.parts(near, 1.0, 0.0)[0] * 2 * math.pi * np.exp((near**2).sum(1) / 2)
        best = near[w.argmax()]
    kept = 1 / w.max()
    assert abs(kept - 0.04986) < 1e-4
    rng, chance = np.random.default_rng(4), np.ones(100_000)
    for pairs in (1, 2, 3):
        guess = rng.standard_normal((100_000, 2))
        chance = chance * moons.parts(guess, 1.0, 0.0)[0] * 2 * math.pi * np.exp((guess**2).sum(1) / 2) * kept
        assert chance.max() < 1 + 1e-6
        expected = 100_000 * kept**pairs
        assert abs((rng.random(100_000) < chance).sum() - expected) < 5 * math.sqrt(1 + expected)


def test_a_wider_prior_helps_a_little_and_changes_no_law():
    """Effective share .201 a pair at the best width, near 1.2, where N(0, I) has .187."""
    xy, area = moons.grid(5, 0.02)
    p = moons.parts(xy, 1.0, 0.0)[0]
    share = {}
    for width in (1.0, 1.1, 1.2, 1.3, 1.4):
        q = np.exp(-(xy**2).sum(1) / (2 * width**2)) / (2 * math.pi * width**2)
        share[width] = 1 / ((p**2 / q).sum() * area)
    assert max(share, key=share.get) in (1.1, 1.2, 1.3) and abs(max(share.values()) - 0.201) < 0.002
    assert math.log(1e5) / -math.log(max(share.values())) * 2 < 14.5  # one effective guess of 100,000 in d = 14.4


def test_the_exact_velocity_brings_nearly_all_home_and_noise_starts_with_a_quarter(ns):
    """Home: log p > -5 in every pair. In d = 4: unmoved .2365, exact velocity .98 and more."""
    xy, area = moons.grid(4, 0.02)
    p, q = moons.parts(xy, 1.0, 0.0)[0], np.exp(-(xy**2).sum(1) / 2) / (2 * math.pi)
    unmoved = q[np.log(p + 1e-300) > -5].sum() * area
    assert abs(unmoved**2 - 0.2365) < 0.003
    noise = torch.tensor(np.random.default_rng(5).standard_normal((4000, 2))).float()
    assert home(ns.walk(exact_velocity, noise, 20)) ** 2 > 0.97
    assert home(moons.samples(20_000, np.random.default_rng(6))) > 0.99


def test_shares_that_get_home_fall_by_a_fifth_a_pair_and_not_twentyfold():
    """One net of the lesson's size and budget for d / 2 pairs at once: about .9, .8, .6, .45 in d = 2, 4, 6, 8."""
    torch.manual_seed(0)
    piece, shares = paste(NAME, "two_moons"), []
    for pairs in (1, 2, 3, 4):
        d = 2 * pairs
        net = torch.nn.Sequential(torch.nn.Linear(d + 1, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(),
                                  torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, d))
        optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95))
        for i in range(900):
            optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / 900)
            x, eps, t = piece.two_moons(1024 * pairs).view(1024, d), torch.randn(1024, d), torch.rand(1024, 1)
            loss = (net(torch.cat([t * x + (1 - t) * eps, t], 1)) - (x - eps)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            x = torch.randn(4000, d)
            for i in range(20):
                x = x + net(torch.cat([x, torch.full_like(x[:, :1], i / 20)], 1)) / 20
        inside = np.log(moons.parts(x.view(-1, 2).double().numpy(), 1.0, 0.0)[0] + 1e-300) > -5
        shares.append(inside.reshape(4000, pairs).all(1).mean())
    assert shares[0] > 0.85 and shares == sorted(shares, reverse=True)
    assert all(b / a > 0.5 for a, b in zip(shares, shares[1:])) and shares[3] > 0.2


def test_the_loss_is_within_1_percent_of_the_best_possible(ns):
    rng = np.random.default_rng(0)
    x, eps = moons.samples(4000, rng), rng.standard_normal((4000, 2))
    excess, floors = [], []
    for t in (np.arange(25) + 0.5) / 25:
        xt = t * x + (1 - t) * eps
        best = exact_velocity(torch.tensor(xt), t).numpy()
        learned = ns.path(torch.tensor(xt).float(), t).numpy()
        excess.append(((learned - best) ** 2).mean())
        floors.append(((best - (x - eps)) ** 2).mean())
    assert 1 < 1 + np.mean(excess) / np.mean(floors) < 1.011


# --- the window and the break


def test_slider_breaks_and_mends_the_path(ns):
    def state():
        return ns.right.get_title(), ns.right.lines[1].get_color(), ns.right.lines[1].get_xydata().std(0).max()

    before = state()
    ns.slider.set_val(1)
    try:
        title, colour, spread = state()
        assert title != before[0] and colour == "tab:red" and spread < 0.5 < before[2]
    finally:
        ns.slider.set_val(20)
    assert state() == before and before[1] == "tab:blue"


def test_break_one_step(lesson):
    run = lesson(NAME, "--steps", "1", "--iters", "400")
    assert run.claims() == {"C1": True, "C2": True, "C3": False}
    assert run.ns.right.lines[1].get_color() == "tab:red"


def test_same_seed_same_numbers_and_another_seed_others(lesson):
    texts = [lesson(NAME, "--iters", "50", *more).text for more in ((), ("--seed", "0"), ("--seed", "1"))]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("flags", [("--steps", "0"), ("--steps", "51"), ("--iters", "0"), ("--seed", "-1"), ("--copies", "2")])
def test_refuses(refused, flags):
    assert flags[0] in refused(NAME, *flags)
