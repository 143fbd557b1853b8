"""Lesson 14: tasks, sequences, net and generation by loops, float64 and a lookup net; the staircase, wrong thoughts, figure, break."""
import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste
from matplotlib.colors import to_hex

NAME = "14_reasoning_gen"
L = paste(NAME, "make_tasks", "make_sequences", "Thinker", "train", "generate")
LENGTHS = []  # of the inputs of lookup
PAIRS = [(b, k) for k in range(1, 6) for b in range(k)]  # thoughts and hops

@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)

@pytest.fixture(scope="module")
def ns(run):
    return run.ns

def by_hand(a, b, start, hops, thoughts):
    """Tokens, positions, and hops of one task, as the lesson's comment says: 9 is black, 10 to 12 are <image>, <text>, <end>."""
    cells = [start]
    for _ in range(hops):
        cells.append(a[cells[-1]])
    answer = [9 if cell == cells[-1] else digit for cell, digit in enumerate(b)]
    text = [*cells[:thoughts + 1], cells[-1]]
    rows = [*range(21), *[21] * thoughts, *range(21, 34)], [0] * 21 + [1] * thoughts + [hops - thoughts] + [0] * 12
    return [10, *a, 10, *b, 11, *text, 10, *answer, 12], *rows

def lookup(tokens, positions, hops):
    """A net that knows the task."""
    LENGTHS.append(len(positions))
    wanted, positions = torch.zeros_like(tokens), positions.tolist()
    for row, seen in zip(wanted, tokens.tolist()):
        for i, (position, distance) in enumerate(zip(positions, hops.tolist())):
            if position == 21:
                row[i] = seen[i]
                for _ in range(distance):
                    row[i] = seen[1 + row[i]]
            elif position >= 22:
                c, goal = position - 23, seen[positions.index(22)]
                row[i] = 10 if c < 0 else 12 if c > 8 else 9 if c == goal else seen[11 + c]
    return torch.nn.functional.one_hot(wanted, 13).float()

def test_a_map_is_one_path_through_all_cells_and_b_any_digits():
    path, a, b = L.make_tasks(3000)
    for walk, digits in zip(path.tolist(), a.tolist()):
        assert sorted(walk) == list(range(9)) and [digits[cell] for cell in walk] == walk[1:] + walk[:1]
    for numbers in (path[:, 0], path[:, 5], b[:, 0], b[:, 8]):
        assert (torch.bincount(numbers, minlength=9) / 3000 - 1 / 9).abs().max() < 0.03  # five standard errors

@pytest.mark.parametrize("thoughts, hops", PAIRS)
def test_sequences_are_those_of_a_plain_loop_and_generate_writes_them(thoughts, hops):
    """b thoughts, the goal, <image>, nine cells and <end> are b + 12 forward passes, each with one token more."""
    path, a, b = L.make_tasks(5)
    tokens, *rows = L.make_sequences(path, a, b, hops, thoughts)
    for got, *task in zip(tokens.tolist(), a.tolist(), b.tolist(), path[:, 0].tolist()):
        assert (got, *[row.tolist() for row in rows]) == by_hand(*task, hops, thoughts)
    LENGTHS.clear()
    assert torch.equal(L.generate(lookup, tokens[:, :22], *rows), tokens)
    assert LENGTHS == list(range(22, 22 + thoughts + 12))

def test_with_b_thoughts_the_goal_is_one_of_7_minus_b_cells():
    """All 8! paths from cell 0: whoever knows the start, b thoughts and the next cell is left with 7 - b equally likely goals."""
    for b, k in ((0, 2), (0, 5), (1, 3), (2, 5), (3, 5)):
        counts = {}
        for path in itertools.permutations(range(1, 9)):
            counts.setdefault(path[:b + 1], []).append(path[k - 1])
        assert {tuple(np.unique(goals, return_counts=True)[1]) for goals in counts.values()} == {(40320 // len(counts) // (7 - b),) * (7 - b)}

def reference(net, tokens, positions, hops):
    """The net in float64 numpy, one row, one head and one token at a time."""
    p = {name.replace("layer.", ""): value.detach().double().numpy() for name, value in net.state_dict().items()}

    def linear(x, name, w="weight", b="bias"):
        return x @ p[name + w].T + p[name + b]

    def norm(x, name):
        return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * p[name + "weight"] + p[name + "bias"]
    x = p["token.weight"][tokens] + p["position.weight"][positions] + p["hops.weight"][hops]
    q, k, v = np.split(linear(norm(x, "norm1."), "self_attn.in_proj_"), 3, axis=1)
    mix, size = np.zeros_like(x), x.shape[1] // net.layer.self_attn.num_heads
    for i, j in itertools.product(range(len(x)), range(0, x.shape[1], size)):
        weight = np.exp(k[:i + 1, j:j + size] @ q[i, j:j + size] / np.sqrt(size))
        mix[i, j:j + size] = weight / weight.sum() @ v[:i + 1, j:j + size]
    x = x + linear(mix, "self_attn.out_proj.")
    return linear(x + linear(np.maximum(linear(norm(x, "norm2."), "linear1."), 0), "linear2."), "head.")

@pytest.mark.parametrize("sizes", [(), (16, 2)])
def test_the_net_is_one_causal_layer_in_plain_numpy(sizes):
    net = L.Thinker(13, 34, 5, *sizes)
    tokens, positions, hops = L.make_sequences(*L.make_tasks(2), 4, 1)
    for row, logits in zip(tokens, net(tokens, positions, hops)):
        assert np.abs(logits.detach().numpy() - reference(net, row.numpy(), positions.numpy(), hops.numpy())).max() < 1e-5

def test_training_counts_all_written_tokens_of_all_15_kinds(monkeypatch, capsys):
    """Its first loss is -log p of each token after the start, by numpy. The rate falls from lr to nearly 0."""
    rates, seen, step = [], [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *a: rates.append(self.param_groups[0]["lr"]) or step(self, *a))
    net, first = L.Thinker(13, 34, 5, 16, 2), L.Thinker(13, 34, 5, 16, 2)
    first.load_state_dict(net.state_dict())
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    assert L.train(net, 120, 4, 0.02) is net
    printed = re.findall(r"iteration (\d+) of 120: loss (\d\.\d+)", capsys.readouterr().out)
    kinds = [(len(positions) - 34, int(hops.sum())) for _, positions, hops in seen]
    assert [i for i, _ in printed] == ["0", "100"] and set(kinds) == set(PAIRS) and np.allclose(rates, 0.02 * np.arange(120, 0, -1) / 120)
    tokens, positions, hops = seen[0]
    logits = np.stack([reference(first, row.numpy(), positions.numpy(), hops.numpy()) for row in tokens])[:, 21:-1]
    wanted = np.array([by_hand(row[1:10], row[11:20], row[21], *kinds[0][::-1])[0][22:] for row in tokens.tolist()])
    p = np.take_along_axis(np.exp(logits), wanted[..., None], 2)[..., 0] / np.exp(logits).sum(2)
    assert abs(-np.log(p).mean() - float(printed[0][1])) < 1e-3 and len(tokens) == 4

def share(net, tokens, positions, hops, first=22):
    """Sequences that the net writes exactly from index first on, in one forward pass: no token may differ from the most probable."""
    return (net(tokens, positions, hops).argmax(2)[:, :-1] == tokens[:, 1:])[:, first - 1:].all(1).double().mean().item()

def test_claims_figure_and_page(run):
    assert run.claims() == {"C1": True, "C2": True, "C3": True}
    assert plt.imread(run.folder / f"{NAME}.png")[..., :3].std() > 0.05
    page_agrees(NAME, run)

def test_staircase_and_claims_in_one_forward_pass_each(run, ns):
    """No guess is better than 1/7, 1/6, 1/5, 1/4, by four standard errors."""
    shown = np.array([float(text.get_text()) for text in ns.axes["S"].texts]).reshape(5, 5)
    cells = ns.axes["S"].collections[0]
    assert [text.get_position() for text in ns.axes["S"].texts] == [(k, b) for b in range(5) for k in range(1, 6)] and len(ns.path) == 100
    assert np.allclose(np.reshape(cells.get_array(), (5, 5)), shown, atol=0.0051)
    assert np.allclose(cells.get_coordinates()[0, :, 0], np.arange(0.5, 6)) and np.allclose(cells.get_coordinates()[:, 0, 1], np.arange(-0.5, 5))
    for b, k in itertools.product(range(5), range(1, 6)):
        sequences = L.make_sequences(ns.path, ns.image_a, ns.image_b, k, min(b, k - 1))
        assert abs(shown[b, k - 1] - share(ns.net, *sequences)) < 0.0151  # rounded; and one task may turn on float32
    for b, guess in enumerate((1 / 7, 1 / 6, 1 / 5, 1 / 4, 1)):
        assert (shown[b, :b + 1] > 0.95).all() and (shown[b, b + 1:] < guess + 4 * (guess * (1 - guess) / 100) ** 0.5).all()
    numbers = run.numbers()
    assert abs(numbers["C1"][0] - shown[4].min()) < 0.0051 and abs(numbers["C2"][0] - shown[0, 1]) < 0.0051
    assert np.allclose([bound for _, bound in numbers.values()], [0.95, 2 / 7, 0.95], atol=1e-4)

def test_any_wrong_thought_is_followed(ns):
    """The text goes on from it by the map, and the answer is black where this ends. For path[:, 3], as in the exercise, it is path[:, 7]."""
    prompt, positions, hops = L.make_sequences(*ns.tasks, 5, 4)
    for skip in (1, 2, 3):
        output = L.generate(ns.net, torch.cat([prompt[:, :22], ns.path[:, 1 + skip, None]], 1), positions, hops)
        wanted = ns.image_b.clone()
        wanted[range(100), ns.path[:, 5 + skip]] = 9
        follows = (output[:, 22:27] == ns.path[:, 1 + skip:6 + skip]).all(1) & (output[:, 28:37] == wanted).all(1)
        assert follows.double().mean() > 0.95
        if skip == 2:  # C3, and the last button
            assert torch.equal(ns.outputs["wrong thought"], output[1]) and ns.follows == follows.float().mean()

def test_a_caption_with_the_goal_ties_if_the_image_generator_sees_b(ns):
    """The goal is given, without thoughts: right with B, which may be a map too. Without B, one cell in nine is right."""
    path, a, b = *L.make_tasks(200)[:2], L.make_tasks(200)[1]
    assert share(ns.net, *L.make_sequences(path, a, b, 5, 4)) > 0.95
    tokens, *rows = L.make_sequences(path, a, b, 5, 0)
    assert share(ns.net, tokens, *rows, 23) > 0.95
    tokens[:, 11:20] = torch.randint(9, (200, 9))
    same = L.generate(ns.net, tokens[:, :23], *rows)[:, 24:33] == tokens[:, 24:33]
    assert abs((same.double().mean() * 9 - 1) / 8 - 1 / 9) < 0.05

def board(ax):
    """The nine tokens of a board, by cell; other texts are left."""
    digits = {text.get_position(): text.get_text() for text in ax.texts if text.get_ha() == "center" and text.get_text()}
    assert ax.get_ylim() == (2.5, -0.5) and ax.get_xlim() == (-0.5, 2.5) and ax.get_aspect() == 1 and set(digits) == {(c % 3, c // 3) for c in range(9)}
    return [digits[c % 3, c // 3] for c in range(9)]

def test_boards_show_what_is_written_for_each_button(ns):
    """Titles: thoughts, above the drawn image, and the goal, red if it is not that of the map. All other tokens are right, or follow from
    our wrong thought. The map has digits, names, and an arrow for each hop of the button. Only four right thoughts reach the goal."""
    path, a, b = ns.path[1].tolist(), ns.image_a[1].tolist(), ns.image_b[1].tolist()
    labels, ax = [*[f"thoughts: {n}" for n in range(5)], "wrong thought"], ns.axes["M"]
    assert board(ns.axes["B"]) == [str(digit) for digit in b] and ns.axes["B"].get_title() == "Image B"
    assert ns.radio.value_selected == "thoughts: 4" and [label.get_text() for label in ns.radio.labels] == labels and ns.radio.ax is ns.axes["R"]
    for n in (5, 3, 2, 1, 0, 4):
        ns.radio.set_active(n)
        tokens, *rows = L.make_sequences(ns.path[1:2], ns.image_a[1:2], ns.image_b[1:2], 5, min(n, 4))
        prompt = torch.cat([tokens[:, :22], ns.path[1:2, 3:4]], 1) if n == 5 else tokens[:, :22]
        output, right = L.generate(ns.net, prompt, *rows)[0].tolist(), by_hand(a, b, path[2 * (n == 5)], 5, min(n, 4))[0]
        text, answer = output[21:-11], output[-10:-1]
        assert (text[-1] == path[5]) == (n == 4) and answer.index(9) == text[-1] and (n < 5 or text[1] == path[3]) and text[1:-1] == right[22:20 + len(text)] and (output[22:] == right[22:]) == (n > 3)
        assert not ns.fig.stale and f'"{labels[n]}"' in ax.get_title()  # a click redraws it
        drawn, goal = ns.axes[str(n)], ns.axes[str(n)].xaxis.label
        assert drawn.get_title() == f"{labels[n]}\n{text[1:-1]}" and goal.get_text() == f"goal: {text[-1]}" and goal.get_color() == "rk"[n == 4]
        assert board(drawn) == ["012345678\u25a0"[token] for token in answer] and len(drawn.texts) == 9 and board(ax) == [str(digit) for digit in a]
        wanted = [(round(c % 3 - 0.45, 5), round(c // 3 - 0.2, 5), f"cell {c}\n{({path[0]: 'start', path[5]: 'goal'}).get(c, '')}") for c in range(9)]
        assert sorted((*np.round([float(z) for z in t.get_position()], 5), t.get_text()) for t in ax.texts if t.get_ha() == "left" and t.get_text()) == sorted(wanted)
        centers, arrows = [(cell % 3, cell // 3) for cell in text], [t for t in ax.texts if not t.get_text()]
        assert [point for t in arrows for point in (t.xyann, t.xy)] == [p for pair in zip(centers, centers[1:]) for p in pair]

def test_break_only_takes_the_thoughts_away(lesson):
    run = lesson(NAME, "--thoughts", "0", "--iters", "400")
    assert run.claims()["C1"] is False and run.claims()["C2"] and run.ns.radio.value_selected == "thoughts: 0"
    assert run.numbers()["C1"][0] == pytest.approx(run.ns.accuracy[0].min().item(), abs=1e-3) and run.ns.accuracy[4].min() > 0.5

def test_same_seed_same_numbers(lesson, first_loss, limits):
    limits(NAME)
    a, b = lesson(NAME, "--iters", "5"), lesson(NAME, "--iters", "5", "--seed", "0")
    assert a.text == b.text and first_loss(NAME, "--iters", "5", "--seed", "4294967295") not in a.text and not any(a.claims()[c] for c in ("C1", "C3"))
    prompt, *rows = L.make_sequences(*a.ns.tasks, 5, 4)  # the net is hardly trained, so it writes other tokens than ours after one that we give
    assert torch.equal(a.ns.outputs["wrong thought"], L.generate(a.ns.net, torch.cat([prompt[:, :22], a.ns.path[:, 3:4]], 1), *rows)[1])

@pytest.mark.parametrize("flags", [("--thoughts", "5"), ("--thoughts", "-1"), ("--thoughts", "1.5"), ("--iters", "0"),
                                   ("--iters", "1000001"), ("--seed", "-1"), ("--seed", "4294967296"), ("--hops", "2")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
