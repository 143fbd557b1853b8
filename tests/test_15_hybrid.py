"""Lesson 15: its captions and nets by other roads, what reaches what, and small trainings that prove what it says."""
import collections
import itertools
import math
import types

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste
from matplotlib.colors import to_hex
from torch import nn

NAME = "15_hybrid"
PLACES = ["left", "middle", "right"]
COLOURS = {"black": (-1, -1, -1), "blue": (-1, -1, 1), "green": (-1, 1, -1), "cyan": (-1, 1, 1),
           "red": (1, -1, -1), "pink": (1, -1, 1), "yellow": (1, 1, -1), "white": (1, 1, 1)}


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


def test_claims_and_figure_are_those_of_the_page(run):
    page_agrees(NAME, run)


@pytest.fixture(scope="module")
def ns(run):
    return run.ns


@pytest.fixture(scope="module")
def piece():
    return paste(NAME, "tell", "LanguageModel", "pooled", "cross", "joint", "Painter", "train")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(15)


# --- small trainings, each run once


def velocity(painter, xt, t, features, w):
    """Guided: null + w (cond - null), where null is the answer to features of zeros."""
    cond = painter(xt, t, features)
    if w == 1:
        return cond
    null = painter(xt, t, 0 * features)
    return null + w * (cond - null)


@torch.no_grad()
def paint(painter, features, w=1.0, steps=10):
    xt = torch.randn(len(features), 3, 3)
    for i in range(steps):
        xt = xt + velocity(painter, xt, i / steps, features, w) / steps
    return xt


def measure(ns, xt, flags):
    """Shares: stripes in place, in place after a shuffle, whole flags; and the distance to the nearest clean colour."""
    far = (xt[:, :, None] - ns.PAINT).square().mean(3).sqrt()  # (B, 3, 8)
    colour = far.argmin(2)
    right = (colour == flags).float()
    shuffled = sum((colour[:, list(order)] == flags).float().mean() for order in itertools.permutations(range(3))) / 6
    return types.SimpleNamespace(placed=right.mean().item(), shuffled=shuffled.item(), whole=right.prod(1).mean().item(),
                                 off=far.amin(2).mean().item(), colour=colour)


def learn(ns, piece, interface, features, iters, make=None):
    """A painter trained as in the lesson on the features of its 3000 captions."""
    return piece.train((make or piece.Painter)(interface), ns.PAINT[ns.known], features, iters)


def dropping(piece):
    class Dropping(piece.Painter):
        """One caption in ten is replaced by zeros, so the net learns to paint without one, too."""
        def loss(self, x, features):
            return super().loss(x, features * (torch.rand(len(x), 1, 1) > 0.1))
    return Dropping


def pooled_for_long(ns, piece):
    painter = learn(ns, piece, piece.pooled, ns.lm(ns.captions), 600, dropping(piece))
    return {w: measure(ns, paint(painter, ns.lm(ns.asked_captions), w), ns.asked) for w in (1, 3, 6)}


def one_hot(flags):
    """(B, 1, 48): numbers 0 to 23 say which colour is at which place."""
    return 3 * nn.functional.one_hot(flags + 8 * torch.arange(3), 48).sum(1, keepdim=True).float()


def told(ns, piece):
    painter = learn(ns, piece, piece.pooled, one_hot(ns.known), 130)
    return measure(ns, paint(painter, one_hot(ns.asked)), ns.asked)


def last_word(ns, piece):
    painter = learn(ns, piece, piece.pooled, ns.lm(ns.captions)[:, -1:], 100)
    return measure(ns, paint(painter, ns.lm(ns.asked_captions)[:, -1:]), ns.asked)


class OneVector(nn.Module):
    """The mean again, but after a block that is trained to make a vector which says what is where."""
    def __init__(self, block):
        super().__init__()
        self.meet, self.say = nn.TransformerEncoderLayer(**block), nn.Linear(48, 24)

    def forward(self, features):
        return self.meet(features).mean(1, keepdim=True)

    def loss(self, flags, features):
        return nn.functional.cross_entropy(self.say(self(features)).view(-1, 3, 8).transpose(1, 2), flags)


def trained_vector(ns, piece):
    vector = piece.train(OneVector(ns.BLOCK), ns.known, ns.lm(ns.captions), 400)
    painter = learn(ns, piece, piece.pooled, vector(ns.lm(ns.captions)), 200)
    return measure(ns, paint(painter, vector(ns.lm(ns.asked_captions))), ns.asked)


def sums(ns, captions):
    """(B, 3, 48): each colour's word plus the word of its place, as bare vectors."""
    return ns.lm.word(captions).unflatten(1, (3, 2)).sum(2)


def added_by_hand(ns, piece):
    painter = learn(ns, piece, piece.cross, sums(ns, ns.captions), 120)
    return measure(ns, paint(painter, sums(ns, ns.asked_captions)), ns.asked)


def first_block(ns, words):
    mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1])
    return ns.lm.blocks.layers[0](ns.lm.word(words) + ns.lm.place[:words.shape[1]], mask)


def middle_layer(ns, piece):
    painter = learn(ns, piece, piece.cross, first_block(ns, ns.captions), 100)
    return measure(ns, paint(painter, first_block(ns, ns.asked_captions)), ns.asked)


def noisy(captions):
    """A third of the colour words are replaced by any of the eight."""
    lie = (torch.rand(captions.shape) < 1 / 3) & (captions > 2)
    return torch.where(lie, 3 + torch.randint(8, captions.shape), captions)


def liar(ns, piece):
    """Learned from noisy captions, a tenth dropped; asked by true ones, by guidance 1, 3 and 12; and the first answer."""
    painter = learn(ns, piece, piece.cross, ns.lm(noisy(ns.captions)), 400, dropping(piece))
    features, eps = ns.lm(ns.asked_captions), torch.randn(800, 3, 3)
    x_hat, x = painter(eps, 0, features) + eps, ns.PAINT[ns.asked]
    slope = ((x_hat * x).mean() / x.square().mean()).item()
    return {w: measure(ns, paint(painter, features, w), ns.asked) for w in (1, 3, 12)}, slope


class TwoStreams(nn.Module):
    """Joint attention, two blocks, in which stripes and words have their own copy of all maps (MMDiT)."""
    def __init__(self):
        super().__init__()
        sizes = dict(qkv=(48, 144), out=(48, 48), up=(48, 192), down=(192, 48))
        self.blocks = nn.ModuleList(nn.ModuleDict({f"{who}_{name}": nn.Linear(*size) for who in ("stripe", "word")
                                                   for name, size in sizes.items()}) for _ in range(2))

    def forward(self, stripes, words):
        streams = dict(stripe=stripes, word=words)
        for b in self.blocks:
            qkv = [b[f"{who}_qkv"](nn.functional.layer_norm(h, [48])) for who, h in streams.items()]
            q, k, v = torch.cat(qkv, 1).unflatten(2, (3, 8, 6)).permute(2, 0, 3, 1, 4)
            mix = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            for (who, h), part in zip(streams.items(), mix.split([h.shape[1] for h in streams.values()], 1)):
                h = h + b[f"{who}_out"](part)
                streams[who] = h + b[f"{who}_down"](b[f"{who}_up"](nn.functional.layer_norm(h, [48])).relu())
        return streams["stripe"]


def own_weights(ns, piece):
    def make(interface):
        painter = piece.Painter(interface)
        painter.blocks = TwoStreams()
        return painter

    painter = learn(ns, piece, piece.cross, ns.lm(ns.captions), 120, make)
    return painter, measure(ns, paint(painter, ns.lm(ns.asked_captions)), ns.asked)


def janus_class(piece):
    class Janus(piece.LanguageModel):
        """The stripes stand in the language model's own sequence, after the caption; one net, two losses."""
        def __init__(self):
            super().__init__()
            self.stripe, self.velocity = nn.Linear(3, 48), nn.Linear(48, 3)
            self.time, self.where = nn.Parameter(torch.randn(48)), nn.Parameter(torch.randn(3, 48))

        def both(self, words, xt, t):
            n = words.shape[1]
            blocked = torch.ones(n + 3, n + 3).triu(1) > 0  # words see no later words and no stripes
            blocked[n:] = torch.arange(n + 3) < n
            blocked[n:, :6] = False  # stripes see the caption and each other
            stripes = self.stripe(xt) + t * self.time + self.where
            h = self.blocks(torch.cat([self.word(words) + self.place[:n], stripes], 1), blocked)
            return self.next_word(h[:, :n]), self.velocity(h[:, n:])

        def forward(self, xt, t, caption):
            return self.both(caption, xt, t)[1]

        def loss(self, x, words):
            eps, t = torch.randn_like(x), torch.rand(len(x), 1, 1)
            guess, v = self.both(words[:, :-1], t * x + (1 - t) * eps, t)
            self.nats = nn.functional.cross_entropy(guess.transpose(1, 2), words[:, 1:])
            return self.nats + (v - (x - eps)).square().mean()
    return Janus


def janus(ns, piece):
    net = janus_class(piece)()
    again = piece.tell(ns.known)
    piece.train(net, ns.PAINT[ns.known], torch.cat([ns.captions, again], 1), 180)
    words = torch.cat([ns.asked_captions, piece.tell(ns.asked)], 1)
    with torch.no_grad():
        guess, _ = net.both(words[:, :-1], torch.randn(800, 3, 3), 0.5)
        nats = nn.functional.cross_entropy(guess.transpose(1, 2), words[:, 1:]).item()
    answers = (guess[:, 6::2].argmax(2) == words[:, 7::2]).float().mean().item()
    return net, measure(ns, paint(net, ns.asked_captions), ns.asked), answers, nats


def clean(ns, piece):
    return learn(ns, piece, piece.cross, ns.lm(ns.captions), 150)


@torch.no_grad()
def short(ns, painter):
    """Captions that name two places, painted as they are and after the language model has gone on: for each, the share of
    the named stripes in place, the distance of the unnamed ones to the nearest clean colour; and the completed captions."""
    words = few = ns.asked_captions[:, :4]
    for _ in range(2):
        logits = ns.lm.next_word(ns.lm(words)[:, -1])
        words = torch.cat([words, torch.distributions.Categorical(logits=logits).sample()[:, None]], 1)
    named = torch.zeros(len(few), 3).scatter_(1, few[:, ::2], 1) > 0
    out = []
    for text in (few, words):
        far = (paint(painter, ns.lm(text))[:, :, None] - ns.PAINT).square().mean(3).sqrt()
        out.append(((far.argmin(2) == ns.asked)[named].float().mean().item(), far.amin(2)[~named].mean().item()))
    return out, words


@pytest.fixture(scope="module")
def cross_painter(ns, piece):
    torch.manual_seed(1)
    return clean(ns, piece)


@pytest.fixture(scope="module")
def long_pooled(ns, piece):
    torch.manual_seed(2)
    return pooled_for_long(ns, piece)


@pytest.fixture(scope="module")
def lied_to(ns, piece):
    torch.manual_seed(3)
    return liar(ns, piece)


@pytest.fixture(scope="module")
def one_net(ns, piece):
    torch.manual_seed(4)
    return janus(ns, piece)


@pytest.fixture(scope="module")
def rows(ns):
    """What the default run drew: pooled, cross, joint, bag of words."""
    return [measure(ns, xt, ns.asked) for xt in ns.drawn[1:]]


def test_claims_and_figure(run):
    assert run.claims() == {"C1": True, "C2": True, "C3": True}
    picture = plt.imread(run.folder / f"{NAME}.png")
    assert picture.shape[1] > 1000 and picture[..., :3].std() > 0.05
    lines = run.text.splitlines()
    assert lines[-1] == f"figure: {NAME}.png" and sum("200 iterations, loss" in line for line in lines) == 5


# --- the mathematics by another road


def test_the_eight_colours_are_painted_as_their_names_say(ns):
    assert ns.WORDS == PLACES + list(COLOURS) and [tuple(c) for c in ns.PAINT.tolist()] == list(COLOURS.values())


def test_captions_read_in_plain_python_are_the_flags_and_all_six_orders_are_equally_likely(ns, piece):
    flags = torch.randint(8, (6000, 3))
    orders = collections.Counter()
    for row, flag in zip(piece.tell(flags).tolist(), flags.tolist()):
        words = [ns.WORDS[i] for i in row]
        said = dict(zip(words[::2], words[1::2]))
        assert [said[place] for place in PLACES] == [ns.WORDS[3 + c] for c in flag]
        orders[tuple(words[::2])] += 1
    assert len(orders) == 6 and max(abs(n - 1000) for n in orders.values()) < 150  # five standard deviations
    assert piece.tell(flags[:1]).shape == (1, 6)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normed(z, m):
    off = z - z.mean(-1, keepdim=True)
    return off / (off.square().mean(-1, keepdim=True) + m.eps).sqrt() * m.weight + m.bias


def attend(m, asks, told, causal=False):
    """Attention by 8 heads of 6 numbers for one row (N, 48) of tokens, one head and one token after the other."""
    maps = zip(m.in_proj_weight.chunk(3), m.in_proj_bias.chunk(3))
    q, k, v = [z @ w.T + b for z, (w, b) in zip((asks, told, told), maps)]
    mix = torch.zeros_like(q)
    for head, i in itertools.product(range(8), range(len(q))):
        part, n = slice(6 * head, 6 * head + 6), i + 1 if causal else len(k)
        weight = [math.exp(q[i, part] @ k[j, part] / math.sqrt(6)) for j in range(n)]
        mix[i, part] = sum(w * v[j, part] for j, w in enumerate(weight)) / sum(weight)
    return mix @ m.out_proj.weight.T + m.out_proj.bias


def inside(layer, z):
    return (z @ layer.linear1.weight.T + layer.linear1.bias).clip(min=0) @ layer.linear2.weight.T + layer.linear2.bias


@torch.no_grad()
def test_the_language_model_by_plain_loops(piece, double):
    lm, words = piece.LanguageModel(), torch.randint(11, (2, 7))
    h = [torch.stack([lm.word.weight[w] + lm.place[i] for i, w in enumerate(row)]) for row in words]
    for layer in lm.blocks.layers:
        h = [z + attend(layer.self_attn, normed(z, layer.norm1), normed(z, layer.norm1), True) for z in h]
        h = [z + inside(layer, normed(z, layer.norm2)) for z in h]
    assert (torch.stack(h) - lm(words)).abs().max() < 1e-10
    log_p = [[(z @ lm.next_word.weight.T + lm.next_word.bias).log_softmax(0) for z in row] for row in h]
    nats = -sum(log_p[b][i][words[b, i + 1]] for b in (0, 1) for i in range(6))
    assert abs(nats / 12 - lm.loss(words[:, :3], words[:, 3:])) < 1e-10


@torch.no_grad()
@pytest.mark.parametrize("interface", ["pooled", "cross", "joint"])
def test_the_painter_by_plain_loops_with_each_interface(piece, double, interface):
    painter, xt, features = piece.Painter(getattr(piece, interface)), torch.randn(2, 3, 3), torch.randn(2, 5, 48)
    for row in range(2):
        z = painter.stripe(xt[row]) + 0.3 * painter.time + painter.place
        seen = features[row]
        if interface == "pooled":
            seen = sum(seen)[None] / 5
        if interface == "joint":
            z = seen = torch.cat([z, seen])
        for layer in painter.blocks.layers:
            z = z + attend(layer.self_attn, normed(z, layer.norm1), normed(z, layer.norm1))
            z = z + attend(layer.multihead_attn, normed(z, layer.norm2), seen)
            z = z + inside(layer, normed(z, layer.norm3))
        assert (painter.velocity(z[:3]) - painter(xt, 0.3, features)[row]).abs().max() < 1e-10


def test_the_painters_loss_of_a_net_that_answers_0_is_the_mean_square_of_the_velocity(ns, piece):
    """x and eps have mean square 1 and are independent, so x - eps has 2."""
    painter = piece.Painter(piece.cross)
    nn.init.zeros_(painter.velocity.weight)
    nn.init.zeros_(painter.velocity.bias)
    x = ns.PAINT[torch.randint(8, (4000, 3))]
    assert abs(painter.loss(x, torch.zeros(4000, 2, 48)).item() - 2) < 0.06


def test_train_is_adam_with_a_rate_that_falls_in_a_straight_line(piece, double):
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def loss(self, x, y):
            return (x @ self.w - y).square().mean()

    x = torch.randn(50, 2)
    y = x @ torch.tensor([0.1, -0.05])
    torch.manual_seed(0)
    net = piece.train(Line(), x, y, 30)
    torch.manual_seed(0)
    w, m, v = np.zeros(2), np.zeros(2), np.zeros(2)
    for i in range(30):
        pick = torch.randint(50, (64,)).numpy()
        a, b = x.numpy()[pick], y.numpy()[pick]
        g = 2 * a.T @ (a @ w - b) / 64
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.006 * (1 - i / 30) * m / (1 - 0.9 ** (i + 1)) / (np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-8)
    assert np.abs(net.w.numpy() - w).max() < 1e-10 and not net.w.requires_grad


def test_the_scores_of_the_chart_by_all_six_shuffles(ns, rows):
    bars, marks = [bar.get_width() for bar in ns.chart.patches], ns.chart.lines[0].get_xdata()
    for k in range(4):
        assert abs(rows[k].placed - bars[k]) < 1e-5 and abs(rows[k].shuffled - marks[k]) < 1e-5


def test_a_second_noise_gives_the_same_share_to_a_twentieth(ns, rows):
    """ns.painter is the last one, the bag of words."""
    again = measure(ns, paint(ns.painter, ns.lm.word(ns.asked_captions)), ns.asked)
    assert abs(again.placed - rows[3].placed) < 0.05


def test_no_word_of_the_language_model_sees_a_later_one(ns):
    words = ns.captions[:1].clone()
    before = ns.lm(words)
    for i in range(6):
        other = words.clone()
        other[0, i] = (other[0, i] + 1) % 11
        moved = (ns.lm(other) - before).abs().amax(2)[0] > 1e-6
        assert moved.tolist() == [False] * i + [True] * (6 - i)


def test_only_pooled_is_a_function_of_the_mean_and_to_all_three_the_features_are_a_set(piece):
    """Their order is not told again: places are in the features, or nowhere. Batches, times and lengths are free."""
    xt, features, t = torch.randn(20, 3, 3), torch.randn(20, 9, 48), torch.rand(20, 1, 1)
    for name in ("pooled", "cross", "joint"):
        painter = piece.Painter(getattr(piece, name)).requires_grad_(False)
        v = painter(xt, t, features)
        assert v.shape == (20, 3, 3) and (painter(xt, t, features[:, torch.randperm(9)]) - v).abs().max() < 1e-4
        flat = painter(xt, t, features.mean(1, keepdim=True).expand(-1, 9, -1))
        assert ((flat - v).abs().max() < 1e-4) == (name == "pooled")


# --- proofs: what the course says beyond the script's claims


def test_painters_of_all_interfaces_have_the_same_number_of_weights(piece):
    n = {sum(p.numel() for p in piece.Painter(i).parameters()) for i in (piece.pooled, piece.cross, piece.joint)}
    assert len(n) == 1 and abs(n.pop() - 75_000) < 3000


def test_all_colours_right_and_shuffled_are_5_of_12_in_place_and_the_best_guess_from_colours_alone_is_29_of_64():
    shuffled, boxes = [], collections.defaultdict(list)
    for flag in itertools.product(range(8), repeat=3):
        orders = list(itertools.permutations(flag))
        shuffled.append(sum(a == b for order in orders for a, b in zip(flag, order)) / 18)
        boxes[tuple(sorted(flag))].append(flag)
    best = sum(max(sum(flag[i] == c for flag in flags) for c in range(8)) for flags in boxes.values() for i in range(3))
    assert abs(np.mean(shuffled) - 5 / 12) < 1e-12 and abs(best / 512 / 3 - 29 / 64) < 1e-12


def test_the_next_word_costs_793_thousandths_of_a_nat_and_the_language_model_one_fiftieth_more(ns, piece):
    """All flags, told in two orders, are different and equally likely, and the first word is not guessed."""
    seen = set()
    for flag in itertools.product(range(8), repeat=3):
        for first, second in itertools.product(itertools.permutations(range(3)), repeat=2):
            seen.add(tuple((p, flag[p]) for p in first + second))
    floor = (math.log(len(seen)) - math.log(3)) / 11
    assert abs(floor - 0.793) < 5e-4
    again = piece.tell(ns.asked)
    assert -0.01 < ns.lm.loss(ns.asked_captions, again) - floor < 0.03
    words = torch.cat([ns.asked_captions, again], 1)
    answers = ns.lm.next_word(ns.lm(words[:, :-1]))[:, 6::2].argmax(2)
    assert (answers == words[:, 7::2]).float().mean() > 0.97


def test_a_colours_feature_is_a_sum_of_colour_and_place_to_96_percent_at_each_slot_of_the_caption(ns):
    """Of the variance that all 72 combinations explain. One sum for all three slots explains 7 tenths and more."""
    features = ns.lm(ns.captions)[:, 1::2].flatten(0, 1).double()
    colour, place = ns.captions[:, 1::2].flatten() - 3, ns.captions[:, ::2].flatten()
    slot = torch.arange(3).repeat(3000)

    def explained(*columns):
        columns = torch.cat(columns, 1).double().numpy()
        fit = columns @ np.linalg.lstsq(columns, features.numpy(), rcond=None)[0]
        return ((fit - features.numpy().mean(0)) ** 2).mean()

    hot = nn.functional.one_hot
    every = explained(hot(24 * slot + 8 * place + colour, 72))
    assert 0.96 < explained(hot(8 * slot + colour, 24), hot(3 * slot + place, 9)) / every < 1
    assert 0.7 < explained(hot(colour, 8), hot(place, 3), hot(slot, 3)) / every < 0.9
    assert explained(hot(8 * slot + colour, 24)) / every < 0.8


def test_the_mean_changes_less_when_two_colours_change_places_than_when_one_colour_is_another(ns):
    left_right = ns.asked[:, [2, 1, 0]]
    other = ns.asked.clone()
    other[:, 0] = (other[:, 0] + 1 + torch.randint(7, (800,))) % 8
    differ = ns.asked[:, 0] != ns.asked[:, 2]

    def mean(flags):
        place = ns.asked_captions[:, ::2]  # the same order of places
        return ns.lm(torch.stack([place, 3 + flags.gather(1, place)], 2).flatten(1)).mean(1)

    swap, change = [(mean(flags) - mean(ns.asked))[differ].square().sum(1).mean() for flags in (left_right, other)]
    assert 0.02 * change < swap < 0.6 * change  # small, and not 0: the features are not quite sums


def without(ns, piece, left_out, *interfaces):
    """The lesson's trainings, reader and painters, on the captions of the flags that are not left_out(flags): for each
    interface the shares of whole flags right, of those left out and of the others."""
    known = ns.known[~left_out(ns.known)]
    captions = piece.tell(known)
    lm = piece.train(piece.LanguageModel(), captions, piece.tell(known), 200)
    flags = torch.cartesian_prod(*[torch.arange(8)] * 3)  # all 512
    new = left_out(flags)
    assert not left_out(known).any() and len(known) > 2000
    whole = []
    for interface in interfaces:
        painter = piece.train(piece.Painter(interface), ns.PAINT[known], lm(captions), 200)
        right = (measure(ns, paint(painter, lm(piece.tell(flags))), flags).colour == flags).all(1).float()
        whole.append((right[new].mean().item(), right[~new].mean().item()))
    return whole


def test_a_quarter_of_all_flags_that_no_net_has_seen_are_drawn_like_the_others(ns, piece):
    """128 of the 512, left out of the reader's and the painters' training. Seeds 10 to 19, cross and joint: 1.00, all others
    1.00."""
    for new, seen in without(ns, piece, lambda flags: flags.sum(1) % 4 == 0, piece.cross, piece.joint):
        assert new > 0.95 and seen > 0.95


def test_a_colour_never_seen_at_a_place_is_drawn_there_on_some_seeds_only(ns, piece):
    """No pink on the left in any caption. Whole flags with it, seeds 0 to 4 and 10 to 19: cross .41 to 1.00, joint .08 to 1.00;
    all others 1.00."""
    (new, seen), = without(ns, piece, lambda flags: flags[:, 0] == 5, piece.cross)
    assert new > 0.15 and seen > 0.95


def test_the_mean_still_holds_where_for_a_net_that_is_trained_on_nothing_else(ns, piece):
    """600 iterations on fresh captions read .9 of the colours at their places from the mean; without places, 29/64 at best.
    So pooling does not destroy WHERE: it makes it faint, and the painter does not find it in the lesson's time."""
    net = nn.Sequential(nn.Linear(48, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 24))
    optimizer = torch.optim.Adam(net.parameters())
    with torch.enable_grad():
        for i in range(600):
            optimizer.param_groups[0]["lr"] = 0.003 * (1 - i / 600)
            flags = torch.randint(8, (256, 3))
            loss = nn.functional.cross_entropy(net(ns.lm(piece.tell(flags)).mean(1)).view(-1, 8), flags.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    read = net(ns.lm(ns.asked_captions).mean(1)).view(-1, 3, 8).argmax(2)
    assert (read == ns.asked).float().mean() > 0.7


def test_three_times_the_training_teaches_pooled_nearly_all_colours_and_no_place(long_pooled):
    got = long_pooled[1]
    assert got.shuffled > 0.32 and got.placed - got.shuffled < 0.06


def test_guidance_leads_pooled_towards_29_of_64_and_not_beyond(long_pooled):
    guided = [long_pooled[w].placed for w in (3, 6)]
    assert long_pooled[1].placed + 0.015 < max(guided) < 29 / 64 + 0.04


def test_a_vector_is_not_too_narrow_one_that_lists_what_is_where_places_all_colours(ns, piece):
    assert told(ns, piece).placed > 0.9


def test_the_feature_of_the_last_word_alone_places_less_than_the_mean_of_all(ns, piece, rows):
    assert last_word(ns, piece).placed < rows[0].placed - 0.03


def test_a_mean_that_was_trained_to_say_what_is_where_places_colours(ns, piece, rows):
    assert trained_vector(ns, piece).placed > max(0.8, rows[0].placed + 0.3)


def test_without_a_language_model_words_added_to_their_places_by_hand_are_enough_and_a_bag_is_not(ns, piece, rows):
    assert added_by_hand(ns, piece).placed > 0.9 and rows[3].placed < 29 / 64 + 0.06


def test_the_mean_of_words_added_to_their_places_does_not_change_if_colours_change_places(ns):
    swapped = ns.asked_captions[:, [0, 3, 2, 5, 4, 1]]
    assert (sums(ns, swapped).mean(1) - sums(ns, ns.asked_captions).mean(1)).abs().max() < 1e-5
    assert (sums(ns, swapped) - sums(ns, ns.asked_captions)).abs().max() > 1


def test_the_middle_of_the_language_model_serves_as_well_as_its_end_and_its_words_do_not(ns, piece, rows):
    assert middle_layer(ns, piece).placed > 0.9 and rows[1].placed > 0.9 and rows[3].placed < 0.6


def test_noisy_captions_teach_a_distribution_of_which_17_of_24_are_right(lied_to):
    """2/3 + 1/3 x 1/8 of the stripes and its cube of the flags; and the first answer is 2/3 of the colour, its mean."""
    right, (got, slope) = 2 / 3 + 1 / 24, lied_to
    assert abs(right - 17 / 24) < 1e-12 and abs(got[1].placed - right) < 0.15 and abs(got[1].whole - right**3) < 0.22
    assert abs(slope - 2 / 3) < 0.12


def test_guidance_of_3_repairs_most_of_what_noisy_captions_taught(lied_to):
    got, _ = lied_to
    assert got[3].placed > 0.9 and got[3].whole - got[1].whole > 0.4


def test_guidance_of_12_spoils_the_pixels_and_leaves_colours_in_place(lied_to):
    got, _ = lied_to
    assert got[1].off < 0.3 and got[3].off < 0.5 and got[12].off > 1 and got[12].placed > 0.9


def test_recaptioning_by_the_words_said_most_often_gives_back_the_true_captions(ns, rows):
    """Each colour gets the word that is said most often of stripes of its pixels. Lies without a favourite cancel."""
    said, lies = noisy(ns.captions)[:, 1::2], ns.captions[:, 1::2].clone()
    stripes = ns.known.gather(1, ns.captions[:, ::2])
    lies[(stripes == 2) & (torch.rand(3000, 3) < 0.6)] = 6  # most of green is called cyan

    def most(words):
        return torch.stack([torch.bincount(words[stripes == c], minlength=11).argmax() for c in range(8)])

    recaptioned = ns.captions.clone()
    recaptioned[:, 1::2] = most(said)[stripes]
    assert abs((said == ns.captions[:, 1::2]).float().mean() - 17 / 24) < 0.025
    assert torch.equal(recaptioned, ns.captions) and rows[1].placed > 0.9
    assert most(lies)[2] == 6


def test_a_short_caption_leaves_the_unnamed_stripe_a_muddy_colour_and_a_completed_one_a_clean_one(ns, cross_painter):
    """The named stripes are right in both; the language model completes nearly all captions with the missing place."""
    (few, completed), words = short(ns, cross_painter)
    legal = (words[:, ::2].sort(1).values == torch.arange(3)).all(1) & (words[:, 1::2] > 2).all(1)
    assert legal.float().mean() > 0.95 and len(words[:, 5].unique()) >= 8
    assert few[0] > 0.95 and completed[0] > 0.95
    assert few[1] > completed[1] + 0.08


def test_cross_can_keep_the_keys_of_the_words_for_all_steps_and_joint_cannot(piece):
    """What the second block sees of the words: in joint, the tokens have looked at the noisy stripes."""
    features, early, late = torch.randn(4, 6, 48), torch.randn(4, 3, 3), torch.randn(4, 3, 3)
    for interface, moves in ((piece.cross, False), (piece.joint, True)):
        painter, seen = piece.Painter(interface).requires_grad_(False), []
        hook = lambda module, inputs: seen.append(inputs[0 if moves else 1][:, -6:])
        handle = painter.blocks.layers[1].register_forward_pre_hook(hook)
        painter(early, 0.1, features)
        painter(late, 0.8, features)
        handle.remove()
        assert ((seen[0] - seen[1]).abs().max() > 0.01) == moves


def test_words_with_weights_of_their_own_in_joint_attention_place_all_at_half_as_many_weights_more(ns, piece):
    """As in MMDiT: half as many weights again, nothing gained here."""
    painter, got = own_weights(ns, piece)
    n = [sum(p.numel() for p in net.parameters()) for net in (painter, piece.Painter(piece.joint))]
    assert got.placed > 0.9 and 1.4 < n[0] / n[1] < 1.6


def test_one_net_with_two_losses_reads_answers_and_paints(ns, one_net):
    """As in JanusFlow: the stripes stand in the language model's own sequence, and no interface is needed."""
    net, got, answers, nats = one_net
    assert got.placed > 0.9 and answers > 0.95 and nats < 0.793 + 0.05
    n = [sum(p.numel() for p in m.parameters()) for m in (net, ns.lm, ns.painter)]
    assert n[0] < (n[1] + n[2]) / 2


def test_in_the_one_net_stripes_see_the_caption_and_not_the_answers_and_words_see_no_stripes(ns, one_net):
    net, words = one_net[0], torch.cat([ns.captions[:1], ns.captions[:1]], 1)
    xt = torch.randn(1, 3, 3)
    before = net.both(words, xt, 0.3)
    for i in range(12):
        other = words.clone()
        other[0, i] = (other[0, i] + 1) % 11
        after = net.both(other, xt, 0.3)
        assert ((after[0] - before[0]).abs().amax(2)[0] > 1e-6).tolist() == [False] * i + [True] * (12 - i)
        assert ((after[1] - before[1]).abs().max() > 1e-6) == (i < 6)
    assert (net.both(words, -xt, 0.9)[0] - before[0]).abs().max() < 1e-5


# --- the window and the breaks


def look(ns):
    """The title, and the colours (rows, 5 flags, 3 stripes, RGB) in view."""
    low, high = ns.left.get_xlim()
    image = np.asarray(ns.left.images[0].get_array())[:, round(low + 0.5):round(high + 0.5)]
    return ns.left.get_title(), np.pad(image, ((0, 0), (0, 1), (0, 0))).reshape(5, 5, 4, 3)[:, :, :3]


def test_the_slider_shows_other_flags_in_which_pooled_is_wrong_and_goes_back(ns):
    before, wrong = look(ns), 0
    assert [t.get_text() for t in ns.left.get_yticklabels()] == ["asked", "pooled", "cross", "joint", "cross with\na bag of\nwords"]
    try:
        for k in (0, 7, 300, 795):
            ns.slider.set_val(k)
            title, view = look(ns)
            words = " ".join(ns.WORDS[i] for i in ns.asked_captions[k])
            assert title == f"the first asks for: {words}"
            said = dict(zip(words.split()[::2], words.split()[1::2]))
            for i, place in enumerate(PLACES):
                assert (view[0, 0, i] * 2 - 1 == COLOURS[said[place]]).all()
            far = np.abs(view - view[0]).max(3) > 0.5
            assert not far[2:4].any()
            wrong += far[1].any(1).sum()
        assert wrong >= 12  # of 20 flags
    finally:
        ns.slider.set_val(0)
    after = look(ns)
    assert after[0] == before[0] and (after[1] == before[1]).all()


def test_pooled_paints_fewer_than_one_whole_flag_in_four_and_cross_all(rows):
    assert rows[0].whole < 0.25 and rows[1].whole > 0.9


def test_break_a_bag_of_words(lesson):
    broken = lesson(NAME, "--bag", "--iters", "60")
    assert broken.claims() == {"C1": True, "C2": True, "C3": False}
    assert max(bar.get_width() for bar in broken.ns.chart.patches) < 0.6
    assert {to_hex(bar.get_facecolor()) for bar in broken.ns.chart.patches} == {to_hex("tab:red")}


def test_nets_of_50_iterations_place_too_few(lesson):
    assert lesson(NAME, "--iters", "50").claims()["C3"] is False


def test_same_seed_same_numbers_and_another_seed_others(lesson):
    texts = [lesson(NAME, "--iters", "2", *more).text for more in ((), ("--seed", "0"), ("--seed", "1"))]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("flags", [
    ("--iters", "0"), ("--iters", "2.5"), ("--seed", "-1"), ("--seed", "x"), ("--interface", "joint")])
def test_bad_flags_end_in_one_line(refused, flags):
    assert flags[0] in refused(NAME, *flags)
