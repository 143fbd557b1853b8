"""Lesson 10: plans and orders of four methods, training by code length, samples by hand, a perfect net (a lookup), the page."""
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste
from torch import nn

NAME = "10_discrete"
METHODS = ["autoregressive", "hybrid", "MaskGIT", "masked diffusion"]
pieces = paste(NAME, "sample", "train", "draw_digit", "FONTS")

@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)

@pytest.fixture(scope="module")
def ns(run):
    return run.ns

def lookup(tokens, V):
    """The perfect net: the mean of the images that agree with the visible tokens (with most of them, if none agrees)."""
    def logits(x):
        same = (x[:, None] == tokens).sum(2)
        agree = (same == same.max(1, keepdim=True).values).float()
        p = torch.einsum("bn,npv->bpv", agree, nn.functional.one_hot(tokens, V).float())
        return (p / agree.sum(1)[:, None, None] + 1e-9).log()
    return logits

def count(x, tokens):
    """In plain Python: how many of x are among the images, and how many of the images occur."""
    known, drawn = {tuple(row) for row in tokens.tolist()}, [tuple(row) for row in x.tolist()]
    return sum(row in known for row in drawn), len(known & set(drawn))

def by_hand(net, method, passes, V):  # 100 samples in loops, from the same random numbers as the lesson's
    x, plan = np.full((100, 16), V), [16 // passes + (i >= passes - 16 % passes) for i in range(passes)]
    plan = {"autoregressive": [1] * 16, "hybrid": [1] * (passes - 1) + [17 - passes]}.get(method, plan)
    for keep in plan:
        p = net(torch.tensor(x)).detach().softmax(2)
        guess = torch.multinomial(p.view(-1, V), 1, True).view(100, 16).numpy()
        late = {"MaskGIT": -np.take_along_axis(p.numpy(), guess[..., None], 2)[..., 0]}.get(method, np.tile(np.arange(16), (100, 1)))
        late = -torch.rand(100, 16).numpy() if method == "masked diffusion" else late
        for b in range(100):
            for position in sorted(np.flatnonzero(x[b] == V), key=lambda j: late[b, j])[:keep]:
                x[b, position] = guess[b, position]
    return torch.tensor(x)

@pytest.mark.parametrize("method, passes, plan", [
    ("autoregressive", 3, [1] * 16), ("hybrid", 8, [1] * 7 + [9]), ("hybrid", 1, [16]), ("hybrid", 16, [1] * 16), ("MaskGIT", 5, [3, 3, 3, 3, 4]),
    ("MaskGIT", 1, [16]), ("masked diffusion", 8, [2] * 8), ("masked diffusion", 12, [1] * 8 + [2] * 4), ("masked diffusion", 16, [1] * 16)])
def test_each_pass_keeps_what_the_plan_says_and_never_changes_it(method, passes, plan):
    seen = []
    x = pieces.sample(lambda x: seen.append(x.clone()) or torch.randn(*x.shape, 7), method, 30, 16, 7, passes)
    assert len(seen) == len(plan) and x.shape == (30, 16) and (x < 7).all()
    for i, (before, after) in enumerate(zip(seen, [*seen[1:], x])):
        assert ((before != 7).sum(1) == sum(plan[:i])).all() and (after[before != 7] == before[before != 7]).all()
        assert method in ("MaskGIT", "masked diffusion") or (before[:, :sum(plan[:i])] != 7).all()  # from the top
    with pytest.raises(AssertionError):
        pieces.sample(lambda x: torch.randn(*x.shape, 7), method.upper(), 30, 16, 7, passes)

def test_maskgit_keeps_the_most_confident_guess_and_drops_a_rare_one():
    """Probabilities .6 and .4 at position 0, .5 and .5 at position 1: a .4 loses to a .5, and a .5 loses to a .6."""
    kept = {}
    for method in ("MaskGIT", "masked diffusion"):
        seen, p = [], torch.tensor([[0.6, 0.4], [0.5, 0.5]])
        pieces.sample(lambda x: seen.append(x) or p.log().expand(len(x), 2, 2), method, 4000, 2, 2, 2)
        kept[method] = seen[1][:, 0].bincount() / 4000
    assert kept["MaskGIT"][1] == 0 and abs(kept["MaskGIT"][0] - 0.6) < 0.04
    assert (kept["masked diffusion"] - torch.tensor([0.3, 0.2, 0.5])).abs().max() < 0.04

def test_the_loss_is_the_hidden_tokens_nats_over_t(monkeypatch, capsys):
    """Seen from outside: what goes into the net, the nats that come out, and the loss and rates that follow."""
    inputs, nats, rates = [], [], []
    embed, entropy, step = nn.Embedding.forward, nn.functional.cross_entropy, torch.optim.Adam.step
    monkeypatch.setattr(nn.Embedding, "forward", lambda self, x: inputs.append(x) or embed(self, x))
    monkeypatch.setattr(nn.functional, "cross_entropy", lambda *a, **k: nats.append(entropy(*a, **k)) or nats[-1])
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    net = pieces.train(torch.randint(9, (20, 6)), 9, 210, lr=0.02)
    assert isinstance(net, nn.Module) and np.allclose(rates, 0.02 * (1 - np.arange(210) / 210))
    hidden, t = torch.stack(inputs) == 9, torch.arange(1, 65) / 64
    assert (hidden.float().mean((0, 2)) - t).abs().max() < 0.07 and hidden[:, -1].all()
    said = re.findall(r"iteration (\d+) of 210: loss (\S+)\n", capsys.readouterr().out)
    assert [i for i, _ in said] == ["0", "200"]
    for i, loss in said:
        codes = [nats[int(i)][b][hidden[int(i), b]].sum().item() / t[b].item() for b in range(64)]
        assert abs(float(loss) - np.mean(codes)) < 0.006

def test_claims_figure_and_page(run):
    assert run.claims() == {"C1": True, "C2": True}
    page_agrees(NAME, run)

def test_each_row_of_the_40_images_becomes_a_token_and_comes_back(ns, tmp_path):
    figure = plt.Figure(figsize=(1, 1), dpi=16)
    figure.text(0.5, 0.5, "7", font="cmss10", size=80, ha="center", va="center_baseline")
    figure.savefig(tmp_path / "7.png", dpi=16)
    seven = 1 - plt.imread(tmp_path / "7.png")[..., 0]
    assert np.abs(pieces.draw_digit("7", "cmss10").numpy() - seven).max() < 1e-6 and (seven.round() == ns.images[31].numpy()).all()
    rows = sorted({tuple(row) for image in ns.images.tolist() for row in image})
    assert [tuple(row) for row in ns.codebook.tolist()] == rows and len(set(map(tuple, ns.tokens.tolist()))) == 40
    assert [[list(rows[k]) for k in image] for image in ns.tokens.tolist()] == ns.images.tolist()

def test_the_net_needs_at_most_a_nat_more_than_log_40(ns):
    """-log p of the 40 images, from top to bottom. With the perfect net, the loss is log 40, which is 3.69, on average."""
    nats = torch.zeros(40)
    for position in range(16):
        x = ns.tokens.clone()
        x[:, position:] = len(ns.codebook)
        nats -= ns.net(x).log_softmax(2)[:, position].gather(1, ns.tokens[:, position, None])[:, 0].detach()
    assert np.log(40) - 1e-4 < nats.mean() < np.log(40) + 1 and round(np.log(40), 2) == 3.69
    x, t, V = ns.tokens.repeat(500, 1), torch.rand(20_000, 1), len(ns.codebook)
    p = lookup(ns.tokens, V)(torch.where(torch.rand(x.shape) < t, V, x)).gather(2, x[..., None])  # 0 for a visible token
    assert abs((-p[..., 0] / t).sum(1).mean() - np.log(40)) < 0.1

def titles(ns):  # {method: (passes, correct, distinct)} as written above each row of the figure
    line = r"([\w ]+) \(passes: (\d+)\): \D+ (\d+)% correct, (\d+) of 40 images"
    written = (re.fullmatch(line, f"{ax.get_title('left')} {ax.get_title('right')}").groups() for ax in ns.axes[1:])
    return {name: tuple(map(int, found)) for name, *found in written}

def hand(ns, passes):  # the same for samples by hand, and the samples
    torch.manual_seed(0)
    x = {m: by_hand(ns.net, m, passes, len(ns.codebook)) for m in METHODS}
    return {m: (16 if m == "autoregressive" else passes, *count(x[m], ns.tokens)) for m in METHODS}, x

def test_titles_claims_and_red_images_are_those_of_samples_by_hand(run, ns):
    (want, x), values = hand(ns, 8), [value for value, _ in run.numbers().values()]
    (_, ar, _), (_, hybrid, several), (_, _, few), (_, diffusion, _) = want.values()
    assert titles(ns) == want and values == [hybrid - diffusion, several - few] and ar > 50
    assert re.findall(r"\d+", ns.axes[0].get_xlabel()) == ["16", "100", f"{40 * (1 - 0.975**100):.0f}"]
    top, *shown = [np.asarray(ax.images[0].get_array()) for ax in ns.axes]
    for line, m in zip(shown, METHODS):
        for cell, sample in zip(np.split(line, 16, 1), x[m]):
            known = min(ns.tokens, key=lambda known: (sample != known).sum())  # the first of the nearest
            paper = np.where((sample != known)[:, None, None], [1, 0.6, 0.6], 1)  # wrong rows on red
            image = np.where(ns.codebook[sample][..., None] == 1, 0, paper)
            assert np.allclose(cell, np.pad(image, [(1, 1), (1, 1), (0, 0)], constant_values=1), atol=0.02)
    grid, mean = np.split(top, [320], 1)
    assert (grid.reshape(2, 16, 20, 16).swapaxes(1, 2).reshape(40, 16, 16) == ns.images.numpy()).all()
    assert np.allclose(mean[::2, ::2], ns.images.numpy().mean(0)) and (mean[1::2, 1::2] == mean[::2, ::2]).all()

def test_bounds_are_two_standard_deviations_of_a_difference(run):
    """Of two binomials with p = 1/2, the widest; of the numbers of images in 1 to 100 fair draws."""
    n = np.arange(1, 101)  # pairs of images that are both missing: 40 * 39 * 0.95^n
    widest = np.sqrt((1560 * 0.95**n + 40 * 0.975**n - 1600 * 0.975 ** (2 * n)).max())
    assert abs(np.subtract(*np.random.default_rng(0).binomial(100, 0.5, (2, 40_000))).std() - 7) < 0.15 and round(widest, 2) == 2.02
    assert 2 < np.sqrt(2) * widest < 3 and [bound for _, bound in run.numbers().values()] == [2 * 7, 2 * 3]

def test_slider_breaks_all_but_autoregressive(ns):
    before = titles(ns)
    ns.passes.set_val(1)
    assert titles(ns) == hand(ns, 1)[0] and max(correct for _, correct, _ in list(titles(ns).values())[1:]) < 10
    ns.passes.set_val(5.0)  # a float, as from the mouse
    assert titles(ns) == hand(ns, 5)[0]
    ns.passes.set_val(8)
    assert titles(ns) == before

def test_break(lesson):
    assert lesson(NAME, "--passes", "1", "--iters", "800").claims() == {"C1": False, "C2": False}

def test_same_seed_same_numbers(lesson, first_loss, limits):
    limits(NAME)
    a, b = lesson(NAME, "--iters", "5"), lesson(NAME, "--iters", "5", "--seed", "0")
    assert a.text == b.text and first_loss(NAME, "--iters", "5", "--seed", "4294967295") not in a.text

@pytest.mark.parametrize("flags", [("--passes", "0"), ("--passes", "17"), ("--passes", "2.5"), ("--iters", "0"), ("--iters", "1000001"), ("--seed", "-1")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)

# --- what the page says besides

def test_perfect_net_one_token_a_pass_is_correct_in_any_order(ns):
    """Only MaskGIT's order looks at the guesses: it repeats itself. 100 fair draws show 37 of the 40 images."""
    net, V = lookup(ns.tokens, len(ns.codebook)), len(ns.codebook)
    found = {m: np.mean([count(by_hand(net, m, 16, V), ns.tokens) for _ in range(4)], 0) for m in METHODS}
    assert {correct for correct, _ in found.values()} == {100}
    assert found.pop("MaskGIT")[1] < 31 and min(distinct for _, distinct in found.values()) > 33.5

def test_diffusion_overtakes_maskgit_in_10_passes(ns):
    """Its first four passes keep a row each, and random rows leave one image. MaskGIT's leave many."""
    V, correct, left = len(ns.codebook), {}, {}
    for m in METHODS[2:]:
        for passes in (8, 10):
            correct[m, passes] = np.mean([count(by_hand(ns.net, m, passes, V), ns.tokens)[0] for _ in range(3)])
        seen = []
        by_hand(lambda x: seen.append(x.clone()) or ns.net(x), m, 10, V)
        left[m] = ((seen[4][:, None] == ns.tokens) | (seen[4] == V)[:, None]).all(2).sum(1).float()
    assert correct["MaskGIT", 8] > correct["masked diffusion", 8] + 15 and correct["masked diffusion", 10] > correct["MaskGIT", 10] + 3
    assert (left["masked diffusion"] <= 1).float().mean() > 0.8 and left["MaskGIT"].mean() > 3

def test_next_row_in_pixels_is_gray_and_in_tokens_one_that_can_follow(ns):
    """Where three or more rows can follow: their mean, which squared error predicts, is none of them, black and white or not."""
    off, likely = [], []
    for image in ns.tokens:
        for n in range(2, 6):
            follow = ns.tokens[(ns.tokens[:, :n] == image[:n]).all(1), n]
            if len(follow.unique()) > 2:
                off.append((ns.codebook[follow].mean(0) - ns.codebook[follow]).abs().sum(1).min().item())
                x = torch.where(torch.arange(16) < n, image, len(ns.codebook))
                likely.append(ns.net(x[None]).softmax(2)[0, n, follow.unique()].sum().item())
    assert min(off) > 0.4 and np.mean(off) > 1 and np.mean(likely) > 0.9, (min(off), np.mean(off), np.mean(likely))

def test_bytes_come_back_and_a_second_stage_leaves_a_tenth_of_the_error():
    """As in an audio codec: a tone in 16 levels, then the rest in 16 levels."""
    assert list("Why?".encode()) == [87, 104, 121, 63] and bytes([87, 104, 121, 63]).decode() == "Why?"
    y = np.exp(-4 * np.arange(8000) / 8000) * np.sin(2 * np.pi * 220 * np.arange(8000) / 8000)
    rest = y - (y * 7.5).round() / 7.5
    assert np.std(rest - (rest * 112.5).round() / 112.5) < 0.1 * np.std(rest)

def test_a_codebook_loses_gray_levels_and_a_flow_keeps_them(ns):
    """The digits before rounding, by the nearest of the rows, and by RK4 along any smooth velocity to noise and back."""
    gray = torch.stack([pieces.draw_digit(digit, font) for digit in "0123456789" for font in pieces.FONTS]).view(-1, 16)
    flow, v = paste("06_euler", "solve", "rk4"), lambda x, t: torch.sin(3 * x.roll(1, 1) + t)
    back = flow.solve(v, flow.solve(lambda x, t: -v(x, 1 - t), gray, 50, flow.rk4)[-1], 50, flow.rk4)[-1]
    lost = ns.codebook[torch.cdist(gray, ns.codebook).argmin(1)] - gray
    assert (back - gray).abs().max() < 1e-4 and lost.square().mean() > 0.1 * gray.var()
