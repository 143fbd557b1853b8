"""Lesson 15: captions, nets, losses and scores by other roads, what features and mechanisms carry, the figure, break."""
import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste
from torch import nn

NAME = "15_hybrid"
MECHANISMS = {"cross-attention": "cross", "joint attention": "joint", "pooled (mean)": "pooled"}  # names in the figure, in the code
OTHER = {"language model": "bag of words", "bag of words": "language model"}
COLORS = {"black": (-1, -1, -1), "blue": (-1, -1, 1), "green": (-1, 1, -1), "cyan": (-1, 1, 1),
          "red": (1, -1, -1), "magenta": (1, -1, 1), "yellow": (1, 1, -1), "white": (1, 1, 1)}
FLAGS = torch.cartesian_prod(*[torch.arange(8)] * 3)  # all 512
FROM_COLORS = np.mean([max(np.bincount(flag)) / 3 for flag in FLAGS.numpy()])  # the best guess without positions: the most frequent

@pytest.fixture(scope="module")
def pieces():
    return paste(NAME, *"make_captions LanguageModel Generator pooled cross joint next_word_loss flow_loss train sample measure".split())

@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)

@pytest.fixture
def ns(run):
    return run.ns

def test_captions_say_the_flag_and_all_six_orders_are_equally_likely(pieces, monkeypatch):
    words, orders = ["left", "middle", "right", *COLORS], {}
    for row, flag in zip(pieces.make_captions(FLAGS.repeat(12, 1)).tolist(), FLAGS.repeat(12, 1).tolist()):
        said = {words[p]: words[c] for p, c in zip(row[::2], row[1::2])}
        assert [said[p] for p in words[:3]] == [list(COLORS)[c] for c in flag]
        orders[tuple(row[::2])] = orders.get(tuple(row[::2]), 0) + 1
    assert len(orders) == 6 and all(abs(n - 1024) < 150 for n in orders.values())  # five standard deviations
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.tensor([[0.4, 0.9, 0.1]]))  # the example in the comments
    assert [words[i] for i in pieces.make_captions(torch.tensor([[5, 7, 2]]))[0]] == "right green left magenta middle white".split()

def attend(m, asks, told, causal=False):  # 4 heads of 8 numbers, from tokens (M, 32) to tokens (N, 32)
    maps = zip((asks, told, told), m.in_proj_weight.chunk(3), m.in_proj_bias.chunk(3))
    q, k, v = [(z @ w.T + b).reshape(-1, 4, 8) for z, w, b in maps]
    weight = torch.einsum("ihd,jhd->hij", q, k).div(8**0.5).exp().tril(0 if causal else 99)
    mix = torch.einsum("hij,jhd->ihd", weight / weight.sum(2, keepdim=True), v)
    return mix.reshape(-1, 32) @ m.out_proj.weight.T + m.out_proj.bias

def block(z, layer):  # causal self-attention, then the MLP
    norm = lambda z: nn.functional.layer_norm(z, (32,))
    z = z + attend(layer.self_attn, norm(z), norm(z), causal=True)
    hidden = norm(z) @ layer.linear1.weight.T + layer.linear1.bias
    return z + hidden.clip(min=0) @ layer.linear2.weight.T + layer.linear2.bias

def test_the_language_model_and_its_loss_by_hand(pieces):
    lm, words, nats = pieces.LanguageModel(11, 12).double().requires_grad_(False), torch.randint(11, (3, 8)), 0
    for row, features in zip(words, lm(words)):
        z = lm.embed.weight[row] + lm.position[:8]
        for layer in lm.layers.layers:
            z = block(z, layer)
        assert (z - features).abs().max() < 1e-9
        logits = z @ lm.head.weight.T + lm.head.bias
        nats -= sum((logits[i, row[i + 1]] - logits[i].exp().sum().log()) / 21 for i in range(7))
    assert abs(pieces.next_word_loss(lm, words[:, :-1], words[:, 1:]) - nats) < 1e-9 and len(lm.layers.layers) == 2

@pytest.mark.parametrize("mechanism", MECHANISMS.values())
def test_the_generator_by_hand(pieces, mechanism):
    net = pieces.Generator(getattr(pieces, mechanism)).double().requires_grad_(False)
    xt, features, times = torch.randn(2, 3, 3).double(), torch.randn(2, 6, 32).double(), torch.rand(2, 1, 1).double()
    for x, seen, t, v in zip(xt, features, times, net(xt, times, features)):
        z = x @ net.embed.weight.T + net.embed.bias + t * net.time + net.position
        if mechanism == "pooled":
            seen = sum(seen)[None] / 6
        for attention in net.attentions:
            told = torch.cat([z, seen])
            if mechanism == "joint":
                z, seen = z + attend(attention, z, told), seen + attend(attention, seen, told)
            else:
                z = z + attend(attention, z, seen)
        hidden = nn.functional.gelu(z @ net.head[0].weight.T + net.head[0].bias)
        assert (hidden @ net.head[2].weight.T + net.head[2].bias - v).abs().max() < 1e-9
    assert [p.shape for p in net.parameters()] == [p.shape for p in pieces.Generator(pieces.pooled).parameters()] and len(net.attentions) == 2

def test_flow_loss_of_the_exact_velocity_is_0_and_sample_follows_it(pieces):
    x, times = 2 * pieces.COLORS[FLAGS].double().repeat(8, 1, 1), []  # told x, a net finds the velocity as (x - xt) / (1 - t)
    assert pieces.flow_loss(lambda xt, t, y: times.append(t) or (y - xt) / (1 - t), x, x) < 1e-12
    assert times[0].shape == (4096, 1, 1) and abs(np.sort(times[0].flatten()) - np.linspace(0, 1, 4096)).max() < 0.04
    assert abs(pieces.flow_loss(lambda xt, t, y: 0 * xt, x, x) - 5) < 0.2  # E|x - eps|^2
    xt, y = torch.zeros(2, 3, 3), torch.tensor([1.0, 3.0])[:, None, None]
    assert torch.allclose(pieces.sample(lambda xt, t, y: y * (xt + t), xt, y, 2)[:, 0, 0], torch.tensor([0.25, 0.75]))
    net = pieces.Generator(pieces.cross).requires_grad_(False)  # with the guidance of lesson 09
    xt, y = torch.randn(5, 3, 3), torch.randn(5, 6, 32)
    by_hand = xt + 3 * net(xt, 0, y) - 2 * net(xt, 0, torch.zeros(5, 6, 32))
    assert torch.allclose(pieces.sample(paste("09_knobs", "guide").guide(net, 3), xt, y, 1), by_hand, atol=1e-5)

def test_train_is_adam_on_random_rows_and_returns_a_frozen_net(pieces, capsys):
    x, y, net = torch.randn(50, 2).double(), torch.randn(50).double(), nn.Linear(2, 1, bias=False, dtype=torch.float64)
    w, m, v, losses = net.weight.detach().clone().numpy()[0], np.zeros(2), np.zeros(2), []
    state = torch.get_rng_state()
    pieces.train(net, lambda net, x, y: (net(x)[:, 0] - y).square().mean(), x, y, 41, batch_size=20, lr=0.01)
    torch.set_rng_state(state)
    for i in range(1, 42):
        row = torch.randint(50, (20,)).numpy()
        a, b = x.numpy()[row], y.numpy()[row]
        g = losses.append(np.mean((a @ w - b) ** 2)) or 2 * a.T @ (a @ w - b) / 20
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.01 * m / (1 - 0.9**i) / (np.sqrt(v / (1 - 0.999**i)) + 1e-8)
    assert np.abs(net.weight.numpy()[0] - w).max() < 1e-9 and not net.weight.requires_grad
    assert capsys.readouterr().out == "".join(f"Linear, iteration {i} of 41: loss {losses[i]:.4f}\n" for i in (0, 20, 40))

def score(drawn, flags):  # in place; mean over the six orders of the drawn stripes; colors asked for anywhere in their flag
    color = ((np.asarray(drawn)[:, :, None] - list(COLORS.values())) ** 2).sum(3).argmin(2)
    hits = np.array([(color[:, list(order)] == flags.numpy()).mean() for order in itertools.permutations(range(3))])
    return hits[0], hits.mean(), np.mean([c in set(flag) for row, flag in zip(color.tolist(), flags.tolist()) for c in row])

def test_scores_by_all_six_orders_and_by_all_512_flags(pieces):
    drawn, flags = torch.randn(600, 3, 3), torch.randint(8, (600, 3))
    (marks, *shares), (in_place, shuffled, asked) = pieces.measure(drawn, flags), score(drawn, flags)
    assert np.allclose(shares, [asked, in_place, shuffled], atol=1e-6) and abs((marks == 2).float().mean() - in_place) < 1e-6
    assert np.allclose(pieces.measure(pieces.COLORS[FLAGS], FLAGS)[1:], [1, 1, 5 / 12]) and np.allclose(score(pieces.COLORS[FLAGS], FLAGS), [1, 5 / 12, 1])
    assert np.allclose(pieces.COLORS, list(COLORS.values()))
    chance = pieces.measure(pieces.COLORS[FLAGS].repeat(512, 1, 1), FLAGS.repeat_interleave(512, 0))
    assert np.allclose(chance[1:], [1 - (7 / 8) ** 3, 1 / 8, 1 / 8], atol=1e-3) and abs(chance[1] - 0.33) < 0.001
    assert abs((chance[0] > 0).double().mean() - 1 + (7 / 8) ** 3) < 1e-3 and abs((chance[0] == 2).double().mean() - 1 / 8) < 1e-3

def test_claims_figure_and_page(run):
    assert run.claims() == {"C1": True, "C2": True, "C3": True} and plt.imread(run.folder / f"{NAME}.png")[..., :3].std() > 0.05
    page_agrees(NAME, run)

def check_figure(ns, encoder):  # flags and labels; returns the scores of cross, joint, pooled, and cross with the other encoder
    keys = [("goal", "the first 5 of 800"), *((encoder, name) for name in MECHANISMS), (OTHER[encoder], "cross-attention")]
    assert ns.axes.shape == (5, 5) and [t.get_text() for t in ns.radio.labels] == list(OTHER) and ns.radio.value_selected == encoder
    assert {name: f.__name__ for name, f in ns.mechanisms.items()} == MECHANISMS and ns.encoders["bag of words"] is ns.lm.embed
    assert torch.equal(ns.drawn[keys[0]], ns.COLORS[ns.asked]) and len(ns.drawn) == 7
    for row, key in zip(ns.axes, keys):
        percent = re.fullmatch(re.escape(", ".join(key)) + r"\nasked for: (\d+)%\nin place: (\d+)%", row[0].get_ylabel()).groups()
        assert np.allclose(np.array(percent, float) / 100, score(ns.drawn[key], ns.asked)[::-2], atol=0.006)
        for ax, flag, colors in zip(row, ns.drawn[key], ns.asked.tolist()):
            shown = {round(line.get_xdata().item()): line.get_marker() for line in ax.lines if line.get_marker() != "None"}
            seen = [list(COLORS.values()).index(tuple(np.sign(stripe.tolist()))) for stripe in flag]
            assert shown == {i: "o" if c in colors else "X" for i, c in enumerate(seen) if c != colors[i]} and len(ax.images) == 1
            image = np.asarray(ax.images[0].get_array())
            assert image.shape == (1, 3, 3) and np.allclose(image[0], (flag.clip(-1, 1) + 1) / 2, atol=1e-5)
    for ax, flag, words in zip(ns.axes[0], ns.asked.tolist(), ns.prompts):
        assert ax.get_title().split() == [ns.WORDS[i] for i in words]
        said = dict(line.split() for line in ax.get_title().splitlines())
        assert [list(COLORS).index(said[p]) for p in ("left", "middle", "right")] == flag
    return np.array([score(ns.drawn[key], ns.asked) for key in keys[1:]])

def test_figure_and_claims_are_the_scores_of_the_drawn_flags(run, ns):
    scores = check_figure(ns, "language model")
    assert np.allclose(list(run.numbers().values()), [(scores[:2, 0].min(), 0.9), (scores[2, 2], 0.5), (scores[2, 0] - scores[2, 1], 0.05)], atol=1e-3)
    assert 0.5 < scores[2, 2] < 0.85 and abs(scores[2, 0] - scores[2, 1]) < 0.05  # pooled: some of WHAT (chance: 0.33), nothing of WHERE
    assert (len(ns.asked), len(ns.flags)) == (800, 3000) and np.isin(ns.asked @ torch.tensor([64, 8, 1]), ns.flags @ torch.tensor([64, 8, 1])).mean() > 0.98
    new = ~np.isin(ns.prompts @ 11 ** torch.arange(6), ns.captions @ 11 ** torch.arange(6))  # captions that no generator was trained on
    assert 0.25 < new.mean() < 0.5 and score(ns.drawn["language model", "cross-attention"][new], ns.asked[new])[0] > 0.95
    once, again = ns.texts.split(6, 1)
    assert (once == ns.captions).all() and (once.sort(1)[0] == again.sort(1)[0]).all() and 0.1 < (once == again).all(1).float().mean() < 0.25

def test_the_radio_swaps_in_the_bag_of_words_and_it_places_nothing(pieces, ns):
    bag = ns.radio.set_active(1) or check_figure(ns, "bag of words")[:3]
    assert (abs(bag[:, 0] - bag[:, 1]) < 0.05).all() and (bag[:, 0] < FROM_COLORS + 0.03).all() and bag[:2, 2].min() > 0.95 > bag[2, 2] > 0.5  # attention: most of WHAT
    assert ns.radio.set_active(0) or (check_figure(ns, "language model")[:2, 0] > 0.9).all()
    losses = [pieces.flow_loss(ns.net, ns.COLORS[ns.flags], encode(ns.captions)) for encode in (ns.lm.embed, ns.lm)]
    assert losses[0] < losses[1] - 0.1  # the last net was trained on words alone, too

def test_break_and_same_seed_same_numbers(lesson, first_loss, limits):
    limits(NAME)
    a, b = lesson(NAME, "--iters", "3"), lesson(NAME, "--bag", "--iters", "3", "--seed", "0")
    losses = [line for line in a.text.splitlines() if " loss " in line]
    assert len(losses) == 7 and b.text.startswith("\n".join(losses)) and first_loss(NAME, "--iters", "3", "--seed", "4294967295") not in a.text
    assert b.claims() == {"C1": False, "C2": False, "C3": True} and b.ns.radio.value_selected == "bag of words"  # trained for 200: see the radio
    scores = check_figure(b.ns, "bag of words")
    assert np.allclose([value for value, _ in b.numbers().values()], [scores[:2, 0].min(), scores[2, 2], scores[2, 0] - scores[2, 1]], atol=1e-3)

@pytest.mark.parametrize("flags", [("--iters", "0"), ("--iters", "9" * 21), ("--seed", "-1"), ("--seed", "9" * 21), ("--bag=2",)])
def test_bad_flags(refused, flags):
    assert flags[0].split("=")[0] in refused(NAME, *flags)

def test_features_say_positions_and_words_alone_do_not(ns):
    """By least squares: a color's position (chance: 1/3), its color, and the flag from the mean (from its colors: 29/64)."""
    def read(z, target, test, n):
        w = torch.linalg.lstsq(z[:-test], nn.functional.one_hot(target[:-test], n).float(), driver="gelsd").solution
        return ((z[-test:] @ w).argmax(1) == target[-test:]).float().mean()
    for encode, n, low, high in ((ns.lm, 3, 0.9, 1), (ns.lm.embed, 3, 0.28, 0.39), (ns.lm.embed, 8, 0.95, 1)):
        target = ns.captions[:, int(n == 8)::2].reshape(-1) - 3 * (n == 8)
        assert low < read(encode(ns.captions)[:, 1::2].reshape(-1, 32), target, 4500, n) <= high
    flags, mean = ns.flags[ns.flags[:, 0] != ns.flags[:, 1]], lambda flags: ns.lm(torch.stack([torch.arange(3).expand_as(flags), flags + 3], 2).flatten(1)).mean(1)
    swapped, other = (mean(flags[:, [1, 0, 2]]) - mean(flags)).norm(dim=1).mean(), (mean(flags.roll(1, 0)) - mean(flags)).norm(dim=1).mean()
    assert 0.2 < swapped / other < 0.4
    for encode, low, high in ((ns.lm, 0.75, 1), (ns.lm.embed, 0.38, 0.5)):
        mean = nn.functional.pad(encode(ns.captions).mean(1), (0, 1), value=1)
        assert low < np.mean([read(mean, ns.flags[:, i], 800, 8) for i in range(3)]) <= high

def test_sums_of_bare_words_are_enough_for_cross_and_not_for_pooled(pieces, ns):
    sums = lambda captions: ns.lm.embed(captions).unflatten(1, (3, 2)).sum(2)  # the exercise: their mean has no order
    assert (sums(ns.captions).mean(1) - sums(ns.captions[:, [0, 3, 2, 1, 4, 5]]).mean(1)).abs().max() < 1e-5 and FROM_COLORS == 29 / 64
    for mechanism, low, high in ((pieces.cross, 0.97, 1), (pieces.pooled, 0.1, 0.49)):
        net = pieces.train(pieces.Generator(mechanism), pieces.flow_loss, ns.COLORS[ns.flags], sums(ns.captions), 200)
        assert low < score(pieces.sample(net, torch.randn(800, 3, 3), sums(ns.prompts), 10), ns.asked)[0] <= high
