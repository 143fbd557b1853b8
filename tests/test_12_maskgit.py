"""Lesson 12: tokens, training and both samplers by enumeration and by Bayes' rule, the numbers of run and figure, sliders, breaks."""
import itertools
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste

NAME = "12_maskgit"
MASK = 16

@pytest.fixture(scope="module")
def piece():
    return paste(NAME, "d3pm", "maskgit", "train", "sample", "score", "draw_digit")

@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)

@pytest.fixture(scope="module")
def ns(run):
    return run.ns

def lookup(rows, weights=None, vocab=MASK):
    """The perfect net of a world of few rows: Bayes' rule among those that agree best with the visible tokens."""
    hot = torch.nn.functional.one_hot(rows, vocab + 1).double()[:, :, :vocab].flatten(1)  # (n, N * V)
    weights = torch.ones(len(rows)).double() if weights is None else weights

    def net(xt):
        seen = torch.nn.functional.one_hot(xt, vocab + 1).double()[:, :, :vocab].flatten(1)
        agree = seen @ hot.T  # (B, n)
        share = weights * (agree == agree.max(1, keepdim=True).values)
        return (share / share.sum(1, keepdim=True) @ hot).clamp(min=1e-30).log().view(len(xt), -1, vocab)
    return net

def wrong_and_images(x, rows):
    """The mean number of wrong tokens and how many rows occur, one sample after the other in numpy."""
    x, rows = x.numpy(), rows.numpy()
    least = [min(int((one != row).sum()) for row in rows) for one in x]
    return np.mean(least), len({tuple(row) for row in rows} & {tuple(one) for one in x})

def tiny_world():
    """Two tokens of three symbols that depend on each other: their table of probabilities, and the perfect net."""
    p = torch.tensor([[0.3, 0.02, 0.08], [0.05, 0.2, 0.05], [0.02, 0.03, 0.25]]).double()
    return p, lookup(torch.cartesian_prod(torch.arange(3), torch.arange(3)), p.flatten(), 3)

def law(x):
    return torch.bincount(3 * x[:, 0] + x[:, 1], minlength=9).double().view(3, 3) / len(x)

@pytest.mark.parametrize("rounds", [1, 3])
def test_d3pm_samples_two_tokens_in_one_round_with_probability_one_in_T(piece, rounds):
    """Then from the product of the marginals, and otherwise one after the other, which is exact."""
    p, net = tiny_world()
    exact = torch.outer(p.sum(1), p.sum(0)) / rounds + p * (1 - 1 / rounds)
    assert (law(piece.d3pm(net, torch.full((100_000, 2), 3), rounds, 3)) - exact).abs().max() < 0.0075  # five standard errors

@pytest.mark.parametrize("noise, rounds", [(0, 2), (1, 2), (5, 3)])
def test_maskgit_samples_from_the_distribution_that_enumeration_finds(piece, noise, rounds):
    """The first token is revealed when two rounds are left. A difference of Gumbels is logistic, and so is the chance to lead."""
    p, net = tiny_world()
    one, two, exact = p.sum(1), p.sum(0), torch.zeros(3, 3).double()
    for a, b in itertools.product(range(3), range(3)):
        lead = math.log(one[a] / two[b])
        first = float(lead > 0) if noise == 0 else 1 / (1 + math.exp(-lead / (noise / rounds)))
        exact[a] += two[b] * first * p[a]
        exact[:, b] += one[a] * (1 - first) * p[:, b]
    assert (law(piece.maskgit(net, torch.full((100_000, 2), 3), rounds, 3, noise)) - exact).abs().max() < 0.0075
    assert noise or (exact - p).abs().max() > 0.012  # confidence changes the distribution, though each token has its round

@pytest.mark.parametrize("name, rounds", [("maskgit", 1), ("maskgit", 3), ("maskgit", 5), ("d3pm", 4)])
def test_each_sequence_reveals_its_share_and_keeps_visible_tokens(piece, name, rounds):
    """6, 4, 0 and 0 of 12 tokens are hidden. With t rounds left, MaskGIT reveals n // t of n, and D3PM each with 1 / t."""
    start, states, left = torch.randint(MASK, (4, 12)), [], [6, 4, 0, 0]
    start[0, 1::2], start[1, 8:] = MASK, MASK
    start = start.repeat(1000, 1)
    noise = [1] if name == "maskgit" else []
    reveal = lambda n: getattr(piece, name)(lambda xt: states.append(xt) or 9 * torch.randn(4000, 12, MASK), start.clone(), n, MASK, *noise)
    with pytest.raises(AssertionError, match=f"^{name} needs at least one round"):
        reveal(0)
    states.append(reveal(rounds))
    assert len(states) == rounds + 1 and torch.equal(states[0], start) and states[-1].max() < MASK
    for t, before, after in zip(range(rounds, 0, -1), states, states[1:]):
        assert torch.equal(after[before != MASK], before[before != MASK])
        left = [n - n // t for n in left]
        assert not noise or (after == MASK).sum(1).tolist() == 1000 * left
        assert noise or abs((after == MASK).sum() / (before == MASK).sum() - (t - 1) / t) < 0.03

def test_a_trained_net_is_bayes_rule_in_a_world_of_four_sequences(piece):
    rows = torch.tensor([[0, 5, 19], [0, 5, 19], [0, 6, 2], [1, 5, 2]])
    net, exact = piece.train(rows, 20, 400), lookup(rows, vocab=20)
    for xt in torch.tensor([[20, 20, 20], [0, 20, 20], [20, 5, 20], [20, 20, 2], [0, 5, 20], [20, 6, 2]])[:, None]:
        assert (net(xt).softmax(2) - exact(xt).exp())[xt == 20].abs().max() < 0.12, xt

def test_training_hides_uniform_fractions_and_prints_the_loss(piece, monkeypatch, capsys):
    rates, inputs, step, embed = [], [], torch.optim.Adam.step, torch.nn.Embedding.forward
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    monkeypatch.setattr(torch.nn.Embedding, "forward", lambda self, x: inputs.append(x.clone()) or embed(self, x))
    piece.train(torch.arange(32).repeat(3, 2) % 8, 8, 210, lr=0.02)
    assert np.allclose(rates, 0.02 * (1 - np.arange(210) / 210))
    fractions = (torch.cat(inputs) == 8).double().mean(1)  # of 64 tokens, in each of 210 * 64 sequences
    assert len(fractions) == 210 * 64 and np.abs(np.quantile(fractions, np.arange(0.1, 1, 0.1)) - np.arange(0.1, 1, 0.1)).max() < 0.03
    printed = re.findall(r"iteration (\d+) of 210: loss (\S+)", capsys.readouterr().out)
    assert [i for i, _ in printed] == ["0", "100", "200"] and abs(float(printed[0][1]) - math.log(8)) < 0.3 and float(printed[2][1]) < 0.01  # first a guess, then known

def test_score_is_the_count_by_brute_force(piece):
    x, rows = torch.randint(3, (40, 7)), torch.randint(3, (5, 7))
    x[:3] = rows[[3, 1, 3]]
    is_wrong, wrong, images = piece.score(x, rows)
    assert np.allclose((wrong, images), wrong_and_images(x, rows), atol=1e-6) and images >= 2
    assert is_wrong.sum(1).tolist() == [min(int((a != b).sum()) for b in rows) for a in x]
    assert all(any(torch.equal(a != b, w) for b in rows) for a, w in zip(x, is_wrong))

def test_claims_figure_and_page(run):
    assert run.claims() == {"C1": True, "C2": True} and plt.imread(run.folder / f"{NAME}.png")[..., :3].std() > 0.05
    page_agrees(NAME, run)

def test_tokens_are_the_patches_in_numpy(ns, piece):
    images = np.stack([piece.draw_digit(digit, font).numpy() for digit in "0123456789" for font in ns.FONTS]) > 0.5
    assert images.shape == (40, 16, 16) and np.array_equal(images, ns.images.numpy() == 1) and not ((ns.images != 0) & (ns.images != 1)).any()
    p = images.reshape(40, 8, 2, 8, 2).swapaxes(2, 3).reshape(40, 64, 4)  # patches of 2 x 2, row by row
    assert np.array_equal(p, ns.codebook[ns.tokens].numpy() == 1) and len(ns.codebook.unique(dim=0)) == len(ns.codebook)
    assert len(np.unique(ns.tokens.numpy(), axis=0)) == 40 and ns.mask_token == len(ns.codebook) == 16

def test_titles_and_claims_are_counts_of_the_samples_by_brute_force(run, ns, piece):
    assert isinstance(ns.net, torch.nn.Module) and ns.blank.shape == (200, 64) and (ns.blank == MASK).all()
    rows = [piece.sample(ns.net, ns.blank, n, MASK, 1, 0) for n in (1, 10, 64)]
    other = piece.sample(ns.net, ns.blank, 10, MASK, 1, 1)  # another seed
    assert list(other) == ["D3PM", "MaskGIT without noise", "MaskGIT with noise"] and not any(torch.equal(x, rows[1][name]) for name, x in other.items())
    counts = [[wrong_and_images(x, ns.tokens) for x in row.values()] for row in rows]
    for axes, row, rounds in zip(ns.axes, counts, (1, 10, 64)):
        assert axes[0].get_ylabel() == f"rounds: {rounds}"
        for ax, (wrong, images), name in zip(axes, row, rows[0]):
            a, b = re.fullmatch(r"(\S+) of 64 tokens wrong, (\d+) of 40 images drawn right\n", ax.get_xlabel()).groups()
            assert abs(float(a) - wrong) < 0.051 and int(b) == images and ax.get_title() == (name if rounds == 1 else "")  # once, on top
    (one, _), (ten, images) = counts[0][2], counts[1][2]
    (value, bound), (occur, half) = run.numbers()["C1"], run.numbers()["C2"]
    assert abs(value - ten) < 1e-3 * ten and abs(bound - one / 5) < 1e-3 * one and (occur, half) == (images, 20)
    assert ten < counts[1][0][0] / 2 and counts[2][1][1] <= 12 < 20 < counts[2][2][1]  # less than half of D3PM; without noise, few images come again and again

def test_panels_show_10_samples_with_their_wrong_tokens_red(ns, piece):
    for n, name, ax in [(1, "D3PM", ns.axes[0, 0]), (10, "MaskGIT with noise", ns.axes[1, 2]), (64, "MaskGIT without noise", ns.axes[2, 1])]:
        x = piece.sample(ns.net, ns.blank, n, MASK, 1, 0)[name][:10]
        near = ns.tokens[(x[:, None] != ns.tokens).sum(2).argmin(1)]
        lines = ax.images[-1].get_array().data.reshape(2, 8, 2, 5, 8, 2)  # line, row, y, sample, column, x
        for i, k in itertools.product(range(10), range(64)):
            patch, code = lines[i // 5, k // 8, :, i % 5, k % 8].flatten(), ns.codebook[x[i, k]].numpy()
            assert np.allclose(patch, code if x[i, k] == near[i, k] else -0.4 - 0.5 * code, atol=1e-6)
        paper, ink, light, red = (ax.images[-1].to_rgba(value)[:3] for value in (0.0, 1.0, -0.4, -0.9))
        assert min(paper) > 0.95 and max(ink) < 0.2 and red[0] > 2 * max(red[1:]) and light[0] > 1.4 * max(light[1:])

def test_eight_rounds_with_noise_do_most_and_without_it_few_images_occur(ns, piece):
    """What the page's picture of 1 to 64 rounds shows."""
    found = {n: [piece.score(x, ns.tokens)[1:] for x in piece.sample(ns.net, ns.blank, n, MASK, 1, 0).values()] for n in (1, 8, 16, 32, 64)}
    wrong, images = ({n: [pair[k] for pair in row] for n, row in found.items()} for k in (0, 1))
    assert wrong[8][2] < wrong[1][2] / 7 and images[8][2] > 20 and 0.8 < wrong[64][0] < 2  # one token a round: an autoregressive model in random order
    assert max(images[n][1] for n in found) < 20 and all(wrong[n][2] < 0.7 * wrong[n][0] for n in (8, 16, 32, 64))

def test_a_perfect_net_does_as_badly_in_one_round_and_better_in_ten(ns, piece):
    """Then each token comes from another image. D3PM's ten rounds with the trained net, written down again, leave as many as in the run."""
    one, ten = ([piece.score(x, ns.tokens)[1] for x in piece.sample(ns.net, ns.blank, n, MASK, 1, 0).values()] for n in (1, 10))
    x = torch.full((400, 64), MASK)
    independent = ns.tokens[torch.randint(40, x.shape), torch.arange(64)]
    assert abs(piece.score(independent, ns.tokens)[1] - one[2]) < 1.5
    perfect = piece.score(piece.maskgit(lookup(ns.tokens), x, 10, MASK, 1), ns.tokens)[1]
    assert perfect < 0.9 and perfect < ten[2], (perfect, ten)
    turn = torch.randint(10, x.shape)  # each token has one of ten rounds
    for k in range(10):
        p = ns.net(x).detach().softmax(2).flatten(0, 1)
        x[turn == k] = torch.multinomial(p, 1).view(x.shape)[turn == k]
    assert abs(piece.score(x, ns.tokens)[1] - ten[0]) < 0.8

def test_sliders_draw_the_middle_row_until_it_breaks(ns):
    def row():
        return [[float(n) for n in re.findall(r"(\S+) of 64 tokens wrong, (\d+) of 40", ax.get_xlabel())[0]] for ax in ns.axes[1]]
    first, others = row(), [ax.get_xlabel() for ax in ns.axes[[0, 2]].flat]  # these rows stay
    ns.rounds.set_val(np.float64(1))  # a mouse sets floats
    assert ns.axes[1, 0].get_ylabel() == "rounds: 1" and all(wrong > 12 and images == 0 for wrong, images in row())
    ns.rounds.set_val(10)
    assert row() == first and row()[2][0] < 2.5 and row()[2][1] > 20 and row()[1][1] <= 14
    ns.noise.set_val(0)
    assert row()[2][1] <= 14 and ns.axes[1, 0].get_ylabel() == "rounds: 10" and [ax.get_xlabel() for ax in ns.axes[[0, 2]].flat] == others
    ns.noise.set_val(1)

def test_break(lesson):
    assert lesson(NAME, "--rounds", "1", "--iters", "300").claims() == {"C1": False, "C2": False}

def test_same_seed_same_numbers(lesson, first_loss, limits):
    limits(NAME)
    a, b = lesson(NAME, "--iters", "5", "--rounds", "2"), lesson(NAME, "--iters", "5", "--rounds", "2", "--seed", "0")
    assert a.text == b.text and first_loss(NAME, "--iters", "5", "--rounds", "2", "--seed", "4294967295") not in a.text

@pytest.mark.parametrize("flags", [("--rounds", "0"), ("--rounds", "65"), ("--iters", "0"), ("--iters", "9" * 21), ("--seed", "-1"), ("--seed", "9" * 21), ("--rounds", "2.5")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
