"""Lesson 13: tokens, net, training and writing by other roads; two towers; the figure, slider and break."""
import re

import numpy as np
import pytest
import torch
from conftest import page_agrees, paste
from matplotlib.colors import to_rgba
from torch import nn

NAME = "13_unified"
MODALITIES, KEYS = ["image", "audio", "text"], "123456789*0#"  # three keys in a row: a row has one low tone, a column one high tone
WORDS = "zero one two three four five six seven eight nine".split()
GRAY, BLUE, RED, YELLOW = map(to_rgba, ("lightgray", "lightblue", "lightcoral", "khaki"))
PIECES = paste(NAME, "encode", "interleave", "count_digits", "UnifiedTransformer", "train", "generate")


def label(d, modality, audio="\u266a key {}\n{} +\n{} Hz"):
    """How the figure shows digit d."""
    row, column = divmod(KEYS.index(d), 3)
    return {"image": d, "audio": audio.format(d, [697, 770, 852, 941][row], [1209, 1336, 1477][column]), "text": WORDS[int(d)]}[modality]


def by_lookup(number, modality):
    """Tokens and positions of a number, a string of digits, in plain Python."""
    j = MODALITIES.index(modality)
    return [1 + j] + [4 + 10 * j + int(d) for d in number] + [0], [0, *range(1, len(number) + 1), 0]


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


@pytest.mark.parametrize("number", ["42", "3", "902658", "1746"])
def test_tokens_and_positions_are_those_of_a_lookup(number):
    digits = torch.tensor([[*map(int, number)], [*map(int, number[::-1])]])
    for modality in MODALITIES:
        tokens = PIECES.encode(digits, modality)
        assert [*zip(tokens.tolist(), PIECES.count_digits(tokens).tolist())] == [by_lookup(text, modality) for text in (number, number[::-1])]
    if len(number) > 3:
        mixed, (image, first), (audio, then) = PIECES.interleave(digits), by_lookup(number[:3], "image"), by_lookup(number[3:], "audio")
        assert mixed[0].tolist() == image + audio
        assert PIECES.count_digits(mixed)[0].tolist() == first + [p and p + 3 for p in then]  # counts on


def by_hand(net, prompt, answer, heads):
    """The net on one sequence, with matrices written out: a pre-norm block, softmax over each token and those before it."""
    w, h = net.state_dict(), []
    norm = lambda h, name: (h - h.mean(1, True)) / (h.var(1, False, keepdim=True) + 1e-5).sqrt() * w[name + ".weight"] + w[name + ".bias"]
    linear = lambda h, name, dot=".": h @ w[name + dot + "weight"].T + w[name + dot + "bias"]
    for part, i in [(prompt, i) for i in range(len(prompt))] + [(answer, i) for i in range(len(answer))]:
        h.append(w["token.weight"][part[i]] + w["position.weight"][(part[i] > 3) * sum(t > 3 for t in part[:i + 1])])
    h = torch.stack(h)
    q, k, v = [x.unflatten(1, (heads, -1)).transpose(0, 1) for x in linear(norm(h, "layer.norm1"), "layer.self_attn.in_proj", "_").chunk(3, 1)]
    weights = (q @ k.mT / q.shape[2] ** 0.5).exp().tril()
    h = h + linear((weights / weights.sum(2, True) @ v).transpose(0, 1).flatten(1), "layer.self_attn.out_proj")
    h = h + linear(linear(norm(h, "layer.norm2"), "layer.linear1").clamp(0), "layer.linear2")
    return linear(h, "head")[len(prompt) - 1:]


@pytest.mark.parametrize("n", [0, 1, 6])
def test_the_net_is_causal_attention_by_hand(n):
    net = PIECES.UnifiedTransformer(34, dim=24, num_heads=3).requires_grad_(False)
    _ = [p.normal_(std=0.3) for p in net.parameters()]
    prompt, answer = torch.randint(34, (3, 7)), torch.randint(34, (3, n))
    logits = net(prompt, answer)
    hand = torch.stack([by_hand(net, p, a, heads=3) for p, a in zip(prompt.tolist(), answer.tolist())])
    assert logits.shape == hand.shape == (3, n + 1, 34) and (logits - hand).abs().max() < 1e-4


def test_training_shows_all_nine_pairs_with_1_to_6_digits(monkeypatch, capsys):
    rates, step, loss, wanted, seen, pairs = [], torch.optim.Adam.step, nn.functional.cross_entropy, [], [], []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    monkeypatch.setattr(nn.functional, "cross_entropy", lambda logits, target: wanted.append((logits, target)) or loss(logits, target))

    class Spy(nn.Linear):  # its logits say which sequence and token they belong to, and are alike for all 34 tokens
        def forward(self, prompt, answer):
            seen.append((prompt, answer))
            return (torch.arange(8 * (answer.shape[1] + 1)).view(8, -1, 1) + 0 * self.bias).expand(-1, -1, 34)
    assert isinstance(PIECES.train(Spy(1, 34), 120, batch_size=8, lr=0.02), Spy) and np.allclose(rates, 0.02 * (1 - np.arange(120) / 120))
    assert re.findall(r"iteration (\d+) of 120: loss (\S+)", capsys.readouterr().out) == [(i, f"{np.log(34):.4f}") for i in ("0",)]
    for (prompt, shown), (logits, target) in zip(seen, wanted):
        answer = target.view(8, -1)
        assert torch.equal(shown, answer[:, :-1]) and torch.equal(logits[:, 0], torch.arange(len(target)))
        a, b = [MODALITIES[x[0, 0] - 1] for x in (prompt, answer)]
        for p, t in zip(prompt.tolist(), answer.tolist()):
            number = "".join(str((token - 4) % 10) for token in p[1:-1])
            assert by_lookup(number, a)[0] == p and by_lookup(number, b)[0] == t
        pairs.append((a, b, len(number)))
    assert len({pair[:2] for pair in pairs}) == 9 and {m for *_, m in pairs} == {1, 2, 3, 4, 5, 6}


def shares(ns, net, digits, prompts=None):
    """Of prompts and modalities: the share of numbers that are right if the net sees the right answer up to each token."""
    spelled = [ns.encode(digits, modality) for modality in MODALITIES]
    table = [(net(p, a[:, :-1]).argmax(2) == a)[:, 1:].all(1).double().mean().item() for p in prompts or spelled for a in spelled]
    return np.reshape(table, (-1, 3))


def test_claims_figure_and_page(run):
    ns, claims = run.ns, run.numbers()
    assert run.claims() == {"C1": True, "C2": True} and claims["C1"][1] == claims["C2"][1] == 0.8
    assert ns.digits.shape == (100, 6) and ns.digits.unique().tolist() == [*range(10)] and re.findall(r"iteration (\d+)", run.text) == [*map(str, range(0, 800, 120))]
    for name, prompts in (("C1", None), ("C2", [ns.interleave(ns.digits)])):
        assert abs(claims[name][0] - shares(ns, ns.net, ns.digits, prompts).min()) < 0.011
    page_agrees(NAME, run)


def test_1_to_6_digits_are_right_and_7_and_8_are_not(run, monkeypatch):
    worst = [shares(run.ns, run.ns.net, torch.randint(10, (50, m))).min() for m in range(1, 9)]
    assert min(worst[:6]) > 0.8 and max(worst[6:]) < 0.1, worst
    digits, count = torch.randint(10, (50, 6)), run.ns.count_digits
    prompts = [run.ns.encode(digits, modality) for modality in MODALITIES] + [run.ns.interleave(digits)]
    down = lambda tokens: (7 - count(tokens)) * (tokens > 3) if any(tokens is x for x in prompts) else count(tokens)  # so it should write the reverse
    monkeypatch.setitem(run.ns.UnifiedTransformer.forward.__globals__, "count_digits", down)
    assert shares(run.ns, run.ns.net, digits.flip(1), prompts).mean() > 0.9


def test_positions_that_count_special_tokens_fail_on_a_mix_only(monkeypatch):
    pieces, digits = paste(NAME, "train", "UnifiedTransformer", "interleave"), torch.randint(10, (50, 6))
    monkeypatch.setitem(pieces.train.__globals__, "count_digits", lambda tokens: torch.arange(tokens.shape[1]).expand(tokens.shape))
    net = pieces.train(pieces.UnifiedTransformer(34), 400)
    assert shares(pieces, net, digits).mean() > 0.8 and shares(pieces, net, digits, [pieces.interleave(digits)]).mean() < 0.2


def test_generate_writes_the_most_probable_token_until_the_length():
    net = lambda prompt, answer: nn.functional.one_hot((answer.sum(1) + prompt[:, 0])[:, None].expand(-1, answer.shape[1] + 1) % 34, 34)
    written = PIECES.generate(net, torch.tensor([[1, 9], [2, 9]]), torch.tensor([[3], [5]]), 4)
    assert written.tolist() == [[3, 4, 8, 16], [5, 7, 14, 28]] and torch.equal(PIECES.generate(net, None, written, 4), written)


def look(ns):
    """Of each row of the figure: title, columns, colors, words, and indices of its tiles. An image of a digit is white on black."""
    rows, middle = [], lambda tile: (round(tile.get_x() + tile.get_width() / 2, 3), round(tile.get_y() + tile.get_height() / 2, 3))
    for y in range(5):
        tiles, (title,) = [tile for tile in ns.ax.patches if middle(tile)[1] == y], [text for text in ns.ax.texts if text.get_position() == (-0.6, y)]
        columns, colors = [middle(tile)[0] for tile in tiles], [tile.get_facecolor() for tile in tiles]
        texts, below = [[text for text in ns.ax.texts if text.get_position()[1] == y + d] for d in (-0.1, 0.4)]
        words, at = [text.get_text() for text in texts], [[text.get_position()[0] for text in line] for line in (texts, below)]
        assert at == [columns, columns] and [word.isdigit() for word in words] == [text.get_color() == "w" for text in texts]
        rows.append((title.get_text(), columns, colors, words, [text.get_text() for text in below]))
    return rows


def test_slider_reaches_lengths_that_were_not_trained(run):
    labels = lambda number, modality: [f"<{modality}>", *[label(d, modality) for d in number], "<end>"]
    ns, before, digit, key = run.ns, look(run.ns), {label(d, m): d for m in MODALITIES for d in "0123456789"}, run.ns.fig.legends[0]
    shown = ["<end>", "<image>", "<audio>", "<text>"] + [label(str(d), m) for m in MODALITIES for d in range(10)]
    assert ns.VOCAB == shown[:14] + [label(str(d), m, "{1}+{2}") for m in MODALITIES[1:] for d in range(10)]
    assert [name.get_text() for name in key.get_texts()] == ["given", "right", "wrong", "guessed"] and [tile.get_facecolor() for tile in key.get_patches()] == [GRAY, BLUE, RED, YELLOW]
    for m in (4, 6, 7, 8, 6):
        ns.slider.set_val(m)
        number, (prompt, *answers) = "31415926"[:m], look(ns)
        assert prompt[1:4] == ([*range(m + 4)], (m + 4) * [GRAY], labels("314", "image") + labels(number[3:], "audio"))
        assert all(indices == [str(shown.index(word)) for word in words] for *_, words, indices in (prompt, *answers))
        p = by_hand(ns.net, [1, 7, 5, 8, 0, 2, *[14 + int(d) for d in number[3:]], 0], [], heads=4)[0].softmax(0)
        for modality, given, (title, columns, colors, words, _) in zip(MODALITIES + ["text"], (1, 1, 1, 0), answers):
            right = [digit.get(a, a) == digit.get(b, b) for a, b in zip(words, labels(number, modality))]
            assert columns == [*range(m + 2)] and colors == [GRAY if given else YELLOW] + [BLUE if good else RED for good in right[1:]]
            assert all(right[1:]) == (words == labels(number, words[0][1:-1])) == (m < 7)
            assert title == (f"Wanted: {modality}.\nGiven: {words[0]}" if given else "Nothing given. Chances:\n<image> {:.0%}, <audio> {:.0%},\n<text> {:.0%}".format(*p[1:4])) and (given == 0 or right[0])
    assert before == look(ns) and ns.ax.axis() == (-0.5, 11.5, 4.8, -0.5)  # row 0 is the upper one


def test_the_loss_ends_at_log_3_for_the_first_token_and_0_for_the_others(run):
    spelled = [run.ns.encode(torch.randint(10, (100, 5)), modality) for modality in MODALITIES]
    p = np.mean([run.ns.net(x, x[:, :0])[:, 0].softmax(1)[:, 1:4].mean(0).numpy() for x in spelled], 0)
    loss = np.mean([nn.functional.cross_entropy(run.ns.net(x, x[:, :-1]).mT, x).item() for x in spelled])
    assert np.abs(p - 1 / 3).max() < 0.12 and abs(loss - np.log(3) / 7) < 0.02, (p, loss)


class TwoTowers(nn.Module):
    """One layer reads the prompt, without a mask. Another writes, and sees all vectors of the first, or only their sum."""
    def __init__(self, one_vector, dim=48):
        super().__init__()
        self.one_vector, self.token, self.position, self.head = one_vector, nn.Embedding(34, dim), nn.Embedding(32, dim), nn.Linear(dim, 34)
        self.encoder, self.decoder = [nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0, batch_first=True, norm_first=True) for _ in "12"]

    def forward(self, prompt, answer):
        seen, h = [self.token(x) + self.position(PIECES.count_digits(x)) for x in (prompt, answer)]
        seen = self.encoder(seen).sum(1, keepdim=True) / 3 if self.one_vector else self.encoder(seen)
        mask = nn.Transformer.generate_square_subsequent_mask(seen.shape[1] + h.shape[1])
        return self.head(self.decoder(torch.cat([seen, h], 1), mask)[:, seen.shape[1] - 1:])


def test_two_towers_nearly_tie_if_all_vectors_pass_and_fail_if_one_does(run):
    mean, count = [], lambda net: sum(p.numel() for p in net.parameters())
    for net in (TwoTowers(one_vector=False), TwoTowers(one_vector=True)):
        assert abs(count(net) / count(run.ns.net) - 1) < 0.1
        mean.append(shares(run.ns, run.ns.train(net, 400), torch.randint(10, (50, 6))).mean())
    assert mean[0] > 0.95 and mean[1] < 0.05, mean


def test_break_one_answer_of_three_can_be_right(lesson, monkeypatch):
    broken = lesson(NAME, "--no-special-tokens", "--iters", "400")
    ns, rows = broken.ns, look(broken.ns)[1:]
    assert broken.claims() == {"C1": False, "C2": False}
    table = np.array([[ns.measure(ns.net, p, a, 0).item() for a in ns.answers] for p in [*ns.answers, ns.interleave(ns.digits)]])
    assert 0.9 < table.sum(1).min() <= table.sum(1).max() < 1 + 1e-6
    assert broken.numbers()["C1"][0] == pytest.approx(table[:3].min()) and broken.numbers()["C2"][0] == pytest.approx(table[3].min())
    assert all(row[3] == rows[0][3] and ("Given: nothing" in row[0]) == (row is not rows[3]) and GRAY not in row[2] for row in rows) and sum(row[2][0] == BLUE for row in rows[:3]) == 1
    monkeypatch.setitem(ns.draw.__globals__, "generate", lambda *_: ns.encode(torch.tensor([[9, 1, 4, 1]]), "text"))  # should be 3141
    ns.draw(4)
    assert [row[2] for row in look(ns)[1:]] == [[x, RED, *4 * [BLUE]] for x in (RED, RED, BLUE, YELLOW)]


def test_same_seed_same_numbers(lesson, limits):
    limits(NAME)
    a, b, c = [lesson(NAME, "--iters", "2", *more).text for more in ((), ("--seed", "0"), ("--seed", "4294967295"))]
    assert a == b != c


@pytest.mark.parametrize("flags", [("--iters", "0"), ("--iters", "2.5"), ("--iters", "9" * 21), ("--seed", "-1"), ("--seed", "9" * 21), ("--any", "x")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
