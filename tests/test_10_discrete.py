"""Lesson 10: its tokens, orders, sliders and break; a perfect net (a lookup) in the net's place; sound, text and the contest."""
import re
import contextlib
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste
from matplotlib.figure import Figure
from torch import nn

NAME = "10_discrete"


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


def test_claims_and_figure_are_those_of_the_page(run):
    page_agrees(NAME, run)


@pytest.fixture(scope="module")
def ns(run):
    return run.ns


@contextlib.contextmanager
def dice(seed):
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def lookup(ns):
    """The perfect net: the share of the 40 pictures that agree with the shown tokens (with most of them, if none agrees)."""
    onehot = nn.functional.one_hot(ns.tokens, ns.MASK).float()  # (40, 16, 88)

    def logits(xt):
        same = (xt[:, None] == ns.tokens).sum(2)  # (B, 40)
        agree = (same == same.max(1, keepdim=True).values).float()
        return (torch.einsum("bp,pnk->bnk", agree, onehot) / agree.sum(1)[:, None, None] + 1e-9).log()

    return logits


def real_and_different(ns, pictures):
    """In plain Python: how many of the pictures are on the list, and how many of the list they are."""
    known = {tuple(p.flatten().tolist()) for p in ns.PICTURES}
    drawn = [tuple(p.flatten().tolist()) for p in pictures]
    return sum(p in known for p in drawn), len(known & set(drawn))


def draw_by(ns, logits, plan, order):
    """100 pictures: plan[i] tokens are kept in call i, in the order given, or at random places of each row."""
    xt = torch.full((100, 16), ns.MASK)
    places = torch.tensor(order).expand(100, 16) if order else torch.rand(100, 16).argsort(1)
    for i, n in enumerate(plan):
        guess = torch.distributions.Categorical(logits=logits(xt)).sample()
        here = places[:, sum(plan[:i]) : sum(plan[:i]) + n]
        xt = xt.scatter(1, here, guess.gather(1, here))
    return ns.ROWS[xt]


def test_claims_and_figure(run):
    assert run.claims() == {"C1": True, "C2": True, "C3": True, "C4": True}
    picture = plt.imread(run.folder / f"{NAME}.png")
    assert picture.shape[1] > 1000 and picture[..., :3].std() > 0.05
    assert run.text.splitlines()[-1] == f"figure: {NAME}.png"
    assert run.text.count("1200 iterations, loss ") == 1


# --- the mathematics by another road


def test_a_digit_is_drawn_as_matplotlib_draws_it(ns, tmp_path):
    figure = Figure(figsize=(1, 1), dpi=16)
    figure.text(0.5, 0.5, "7", font="cmss10", size=80, ha="center", va="center_baseline")
    figure.savefig(tmp_path / "7.png", dpi=16)
    grey = 1 - plt.imread(tmp_path / "7.png")[..., 0]
    assert np.abs(ns.draw_digit("7", "cmss10").numpy() - grey).max() < 1e-6
    assert len({tuple(p.flatten().tolist()) for p in ns.PICTURES}) == 40 and set(ns.PICTURES.unique().tolist()) == {0, 1}


def test_each_row_becomes_a_token_and_comes_back(ns):
    rows = sorted({tuple(row) for picture in ns.PICTURES.tolist() for row in picture})
    assert len(rows) == 88 == ns.MASK and [tuple(row) for row in ns.ROWS.tolist()] == rows
    back = [[rows[k] for k in picture] for picture in ns.tokens.tolist()]
    assert torch.equal(torch.tensor(back), ns.PICTURES)


def test_pixels_apart_by_counting(ns):
    few = (torch.rand(3, 16, 16) < 0.3).float()
    for i, picture in enumerate(few):
        for j in (0, 17, 39):
            assert ns.pixels_apart(few)[i, j] == (picture != ns.PICTURES[j]).sum()


def test_the_trained_net_costs_less_than_a_nat_more_than_the_entropy(ns):
    """-log p of the 40 pictures by the chain rule, top to bottom; a perfect model needs log 40 = 3.69 nats."""
    nats = torch.zeros(40)
    for place in range(16):
        xt = ns.tokens.clone()
        xt[:, place:] = ns.MASK
        log_p = ns.net(xt).log_softmax(2)[:, place]
        nats -= log_p.gather(1, ns.tokens[:, place, None])[:, 0]
    assert math.log(40) - 1e-4 < nats.mean() < math.log(40) + 1


@pytest.mark.parametrize("method, calls, plan", [
    ("AR", 3, [1] * 16), ("hybrid", 8, [1] * 7 + [9]), ("hybrid", 1, [16]), ("MaskGIT", 5, [3, 3, 3, 3, 4]),
    ("diffusion", 8, [2] * 8), ("diffusion", 16, [1] * 16)])
def test_each_call_keeps_what_its_plan_says_and_changes_nothing_that_is_kept(ns, method, calls, plan):
    seen = []

    def spy(xt):
        seen.append(xt.clone())
        return ns.net(xt)

    end = ns.write(spy, method, calls, 1)
    assert len(seen) == len(plan) and end.shape == (100, 16, 16)
    for i, xt in enumerate(seen):
        assert ((xt != ns.MASK).sum(1) == sum(plan[:i])).all()
        if method in ("AR", "hybrid"):
            assert (xt[:, : sum(plan[:i])] != ns.MASK).all()
        later = seen[i + 1] if i + 1 < len(seen) else None
        if later is not None:
            assert (later[xt != ns.MASK] == xt[xt != ns.MASK]).all()


def test_maskgit_keeps_what_the_net_is_surest_of(ns):
    """A made-up net that is surer of lower rows: MaskGIT begins at the bottom, diffusion anywhere."""
    seen = []

    def fake(xt):
        seen.append(xt.clone())
        return (1.2 * torch.arange(1.0, 17)[:, None] * torch.eye(ns.MASK)[0]).expand(len(xt), 16, ns.MASK)

    ns.write(fake, "MaskGIT", 8, 1)
    assert (seen[3][:, 10:] != ns.MASK).float().mean() > 0.95
    seen.clear()
    ns.write(fake, "diffusion", 16, 1)
    assert (seen[1] != ns.MASK).float().mean(0).gt(0).all()  # among 100 pictures, each place comes first once


def test_temperature_is_a_power_of_p(ns):
    blank = torch.full((1, 16), ns.MASK)
    one = ns.net(blank).softmax(2)[0, 8]
    for t in (0.5, 2.0):
        want = one ** (1 / t) / (one ** (1 / t)).sum()
        with dice(0):
            drawn = torch.cat([ns.write(ns.net, "hybrid", 1, t)[:, 8] for _ in range(20)])
        got = (drawn[:, None] == ns.ROWS).all(2).float().mean(0)
        assert (got - want).abs().max() < 0.04
    assert len(ns.write(ns.net, "hybrid", 1, 0).unique(dim=0)) == 1


# --- proofs: what the course says beyond the script's claims


def test_exact_draws_show_37_of_the_40_pictures_in_100():
    """40 (1 - (39 / 40)^100) = 36.8; over many hundreds, the standard deviation is 1.6."""
    rng = np.random.default_rng(0)
    kinds = [len(set(rng.integers(40, size=100))) for _ in range(2000)]
    assert abs(np.mean(kinds) - 40 * (1 - 0.975**100)) < 0.2 and 1.3 < np.std(kinds) < 1.9


def test_with_the_perfect_net_one_token_a_call_is_always_real_in_any_order(ns):
    """What is left is the order's own choice: in 16 calls all methods are legal, and only MaskGIT is poor in variety."""
    with dice(1):
        draws = {m: [real_and_different(ns, ns.write(lookup(ns), m, 16, 1)) for _ in range(4)] for m in ns.METHODS}
    assert all(real == 100 for several in draws.values() for real, _ in several), draws
    kinds = {m: np.mean([kinds for _, kinds in several]) for m, several in draws.items()}
    assert min(kinds[m] for m in ("AR", "hybrid", "diffusion")) > 33.5 and 23 < kinds["MaskGIT"] < 30, kinds


def test_with_the_perfect_net_few_calls_break_random_places_and_not_the_hybrid(ns):
    with dice(2):
        result = {m: real_and_different(ns, ns.write(lookup(ns), m, 8, 1)) for m in ns.METHODS}
        one = real_and_different(ns, ns.write(lookup(ns), "MaskGIT", 1, 1))
    assert result["hybrid"][0] > 90 and result["diffusion"][0] < 70 and one[0] < 5, (result, one)
    assert result["MaskGIT"][0] > result["diffusion"][0] + 10


def test_equal_blocks_of_two_rows_are_seldom_real_so_the_hybrid_owes_its_result_to_its_plan(ns):
    """Top to bottom by twos: neighbours are drawn without knowing each other. Random places, by the hybrid's plan: mostly real,
    and with the trained net (ten seeds) 88 to 91, 35 to 37 different ones."""
    with dice(3):
        real, different = real_and_different(ns, draw_by(ns, ns.net, [1] * 7 + [9], None))
        blocks = real_and_different(ns, draw_by(ns, lookup(ns), [2] * 8, list(range(16))))[0]
        plan = real_and_different(ns, draw_by(ns, lookup(ns), [1] * 7 + [9], None))[0]
    assert blocks < 40 and plan > 75, (blocks, plan)
    assert real > 75 and different > 28, (real, different)


def test_maskgit_beats_random_places_in_8_calls_and_not_in_10(ns):
    """The trained net. With 10 calls the first four draw one row each, and at random places these nearly decide the picture."""
    gain = {}
    for calls in (8, 10):
        with dice(4):
            maskgit = np.mean([real_and_different(ns, ns.write(ns.net, "MaskGIT", calls, 1))[0] for _ in range(3)])
            diffusion = np.mean([real_and_different(ns, ns.write(ns.net, "diffusion", calls, 1))[0] for _ in range(3)])
        gain[calls] = maskgit - diffusion
    assert gain[8] > 15 and gain[10] < -3, gain


def test_total_variation_to_the_list_tells_maskgit_from_the_others(ns):
    """Half of sum |share - 1 / 40| over 400 pictures; what is not real counts as wrong. 400 exact draws: .12."""
    def tv(method):
        with dice(5):
            pictures = torch.cat([ns.write(ns.net, method, 8, 1) for _ in range(4)])
        hits = (ns.pixels_apart(pictures) == 0).float().sum(0) / 400
        return ((hits - 1 / 40).abs().sum() + 1 - hits.sum()).item() / 2

    exact = np.random.default_rng(0).multinomial(400, np.full(40, 1 / 40)) / 400
    assert np.abs(exact - 1 / 40).sum() / 2 < 0.16
    score = {m: tv(m) for m in ns.METHODS}
    assert max(score["AR"], score["hybrid"]) < 0.4 and score["MaskGIT"] > 0.6, score


def train_next(tokens, rows, pixels, iters=300):
    """The next row from the rows above: as 16 pixels by squared error, or as one of the 88 rows by categories. Same body."""
    n = len(rows)
    shown, goal = [], []
    for place in range(16):
        xt = tokens.clone()
        xt[:, place:] = n
        shown.append(xt)
        goal.append(tokens[:, place])
    shown, goal = torch.cat(shown), torch.cat(goal)
    net = nn.Sequential(nn.Embedding(n + 1, 16), nn.Flatten(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 16 if pixels else n))
    adam = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95))
    for i in range(iters):
        adam.param_groups[0]["lr"] = 0.01 * (1 - i / iters)
        answer = net(shown)
        loss = (answer - rows[goal]).square().mean() if pixels else nn.functional.cross_entropy(answer, goal)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return net.requires_grad_(False)


def test_asked_for_the_next_row_pixels_give_a_grey_mixture_and_tokens_a_row_that_occurs(ns):
    """Same body, same budget. Where several rows can follow, the answer in pixels is their mean; a drawn token is one of them."""
    with dice(6), torch.enable_grad():
        pixels, kinds = train_next(ns.tokens, ns.ROWS, True), train_next(ns.tokens, ns.ROWS, False)
        off, occurs, mean = [], [], []
        for picture in range(0, 40, 3):
            for place in range(2, 6):
                alike = (ns.tokens[:, :place] == ns.tokens[picture, :place]).all(1)
                follow = ns.tokens[alike, place].unique()
                if len(follow) < 3:
                    continue
                xt = ns.tokens[picture].clone()
                xt[place:] = ns.MASK
                answer = pixels(xt[None])[0]
                off.append((answer - ns.ROWS[follow]).abs().sum(1).min().item())
                mean.append((answer - ns.ROWS[ns.tokens[alike, place]].mean(0)).abs().sum().item())
                drawn = torch.distributions.Categorical(logits=kinds(xt[None])[0]).sample((50,))
                occurs.append(torch.isin(drawn, follow).float().mean().item())
    assert len(off) >= 8
    assert np.mean(mean) < 0.3 and np.mean(off) > 2 and np.mean(occurs) > 0.97, (np.mean(mean), np.mean(off), np.mean(occurs))


def mu_law(y):
    """Sound from -1 to 1 as 256 levels whose steps are fine near 0."""
    return ((1 + y.sign() * (255 * y.abs()).log1p() / math.log(256)) * 127.5).round().long()


def mu_law_back(level):
    z = level / 127.5 - 1
    return z.sign() * (256 ** z.abs() - 1) / 255


def tone(peak):
    t = torch.arange(8000) / 8000
    return peak * (torch.sin(2 * torch.pi * 440 * t) + 0.5 * torch.sin(2 * torch.pi * 660 * t)) / 1.5 * torch.exp(-3 * t)


def decibel(error, reference):
    return 10 * math.log10((reference.square().mean() / error.square().mean()).item())


def test_text_is_bytes_and_comes_back():
    assert list("Why?".encode()) == [87, 104, 121, 63] and bytes([87, 104, 121, 63]).decode() == "Why?"
    assert bytes(list("Why? 为什么?".encode())).decode() == "Why? 为什么?"


def test_a_quiet_sound_in_256_levels_is_15_dB_better_by_mu_law_than_by_equal_steps_and_a_loud_one_is_worse():
    for peak, better in ((0.01, True), (1.0, False)):
        y = tone(peak)
        assert mu_law(y).min() >= 0 and mu_law(y).max() <= 255
        law = decibel(mu_law_back(mu_law(y)) - y, y)
        even = decibel(((y * 127.5).round() / 127.5) - y, y)
        assert (law > even + 15) if better else (law < even - 1), (peak, law, even)


def test_a_second_stage_that_codes_what_the_first_left_over_leaves_a_tenth_of_the_error():
    """Residual quantisation, as in neural audio codecs: 16 levels, then 16 levels for the rest, 8 bits in all."""
    y = tone(1.0)
    first = (y * 7.5).round() / 7.5
    rest = y - first
    second = (rest * 7.5 * 15).round() / (7.5 * 15)
    ratio = ((rest - second).square().mean() / rest.square().mean()).sqrt().item()
    assert ratio < 0.1 and (first + second - y).abs().max() < 0.005


def test_where_data_are_continuous_64_codes_lose_what_a_flow_keeps():
    """The moons as numbers of 64 codes (k-means): a squared error of .015 a point that no model of the codes can remove.
    In energy distance .0006 to .0019."""
    piece, moons = paste("11_vq", "nearest", "update_codes"), paste("04_ancestral", "two_moons", "energy_distance")
    x = moons.two_moons(8000)
    codes = x[:64].clone()
    for _ in range(30):
        codes = piece.update_codes(codes, x, piece.nearest(x, codes), 0)
    error = (codes[piece.nearest(x, codes)] - x).square().sum(1).mean().item()
    assert abs(error - 0.015) < 0.003
    coded, real = codes[piece.nearest(x[:4000], codes)], moons.two_moons(4000)
    assert 0.0003 < moons.energy_distance(coded, real) < 0.003


# --- the window and the break


def state(ns):
    rows = []
    for ax in ns.axes[1:]:
        words = re.match(r"(\w+), \d+ calls: (\d+) of 100 are real .*, (\d+) different ones", ax.get_title()).groups()
        rows.append((words[0], int(words[1]), int(words[2])))
    return rows


def test_sliders_break_all_but_ar_and_at_temperature_0_one_picture_is_left(ns):
    before = state(ns)
    assert [name for name, _, _ in before] == ns.METHODS
    assert [real for _, real, _ in before] == [ns.real[m] for m in ns.METHODS]  # the figure shows what was measured
    try:
        ns.calls.set_val(1)
        one = state(ns)
        assert one[0] == before[0] and max(real for _, real, _ in one[1:]) < 10
        ns.calls.set_val(8)
        ns.heat.set_val(0)
        cold = state(ns)
        assert [kinds for _, _, kinds in cold[:3]] == [1, 1, 1] or max(kinds for _, _, kinds in cold[:3]) <= 1
    finally:
        ns.heat.set_val(1)
        ns.calls.set_val(8)
    assert state(ns) == before


def test_wrong_pictures_are_red(ns):
    image = ns.axes[4].images[0].get_array()
    pictures = image.reshape(16, 20, 16).transpose(1, 0, 2)
    real = (ns.pixels_apart(torch.tensor(np.abs(np.asarray(pictures))).float()) == 0).any(1).numpy()
    assert all((picture >= 0).all() if good else (picture <= 0).all() for picture, good in zip(pictures, real)) and not real.all()


def test_break(lesson):
    run = lesson(NAME, "--calls", "1", "--iters", "700")
    assert run.claims() == {"C1": True, "C2": False, "C3": False, "C4": True}


def test_same_seed_same_numbers(lesson):
    a, b = lesson(NAME, "--iters", "5"), lesson(NAME, "--iters", "5", "--seed", "0")
    assert a.text == b.text != lesson(NAME, "--iters", "5", "--seed", "1").text


@pytest.mark.parametrize("flags", [("--calls", "0"), ("--calls", "17"), ("--calls", "2.5"), ("--iters", "0"), ("--seed", "-1"),
                                   ("--temperature", "1")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
