"""Lesson 14: its tasks, masks, staircase, captions, sliders and breaks, by plain Python, float64 and enumeration."""
import contextlib
import itertools
import math
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

NAME = "14_reasoning_gen"
BLUE, RED = to_hex("tab:blue"), to_hex("tab:red")


@contextlib.contextmanager
def replaced(function, **names):
    """The lesson's function with other globals for a while."""
    before = {k: function.__globals__[k] for k in names}
    function.__globals__.update(names)
    try:
        yield
    finally:
        function.__globals__.update(before)


def hop(A, cell, k):
    """k hops through one picture A (list of 9 tokens)."""
    for _ in range(k):
        cell = A[cell] // 4
    return cell


def answer(A, B, start, k):
    place = hop(A, start, k)
    return [B[place] if cell == place else A[cell] for cell in range(9)]


def rows(*tensors):
    return zip(*(t.tolist() for t in tensors))


def test_default_run(lesson):
    run = lesson(NAME)
    assert run.claims() == {f"C{i}": True for i in range(1, 7)}
    image = plt.imread(run.folder / f"{NAME}.png")
    assert image.shape[0] > 400 and image[..., :3].std() > 0.05
    assert sum(line.startswith("iter") for line in run.text.splitlines()) == 8


def test_tasks_by_brute_force(lesson):
    ns = lesson(NAME).ns
    torch.manual_seed(7)
    for new in (False, True):
        path, A, B = ns.tasks(4000, new)
        for p, a, b in rows(path, A, B):
            assert sorted(p) == list(range(9)) and sorted(t // 4 for t in a) == list(range(9))
            assert [hop(a, p[0], k) for k in range(10)] == p + p[:1]  # one cycle through all cells
            assert all(0 <= t < 36 for t in a + b)
            assert all(((cell + t) % 7 == 0) == new for cell, t in enumerate(b))
        # every cell is as often the start and the place; A's shades are uniform, so a caption of hues tells nothing of them
        for values, n in ((path[:, 0], 9), (path[:, 5], 9), (A.flatten() % 4, 4)):
            share = torch.bincount(values, minlength=n) / len(values)
            assert (share - 1 / n).abs().max() < 5 * math.sqrt(1 / n / len(values))
        assert (torch.bincount(B.flatten(), minlength=36) > 0).sum() >= (35 if new else 36)


def test_wanted_by_brute_force(lesson):
    ns = lesson(NAME).ns
    for k in range(9):
        want = [answer(a, b, s, k) for a, b, (s,) in rows(ns.A, ns.B, ns.start)]
        assert ns.wanted[k].tolist() == want


def reference(ns, A, B, heard, roles):
    """The transformer on explicit inputs, float64, one head and one row at a time: logits (S, 45)."""
    def linear(layer, x):
        return x @ layer.weight.double().T.detach() + layer.bias.double().detach()

    def norm(x):
        return (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    table = ns.word.weight.double().detach()
    x = [table[cell] + table[9 + t] + table[51] for cell, t in enumerate(A)]
    x += [table[cell] + table[9 + t] + table[52] for cell, t in enumerate(B)]
    x = torch.stack(x + [table[c] + table[45 + r] for c, r in zip(heard, roles)])
    qkv, out, up, down = ns.layers
    parts = linear(qkv, norm(x))
    mixed = torch.zeros(len(x), 48).double()
    for head in range(4):
        q, k, v = [parts[:, 48 * i + 12 * head : 48 * i + 12 * head + 12] for i in range(3)]
        for i in range(len(x)):
            weight = (k[: i + 1] @ q[i] / math.sqrt(12)).softmax(0)
            mixed[i, 12 * head : 12 * head + 12] = weight @ v[: i + 1]
    x = x + linear(out, mixed)
    hidden = linear(up, norm(x))
    x = x + linear(down, hidden * hidden.sigmoid())
    return linear(ns.head, norm(x))[18:]


def inputs(said, b, ends):
    """What the slots hear, and their roles: the last word heard, and the hops since; DRAW hears the last word of all."""
    heard, roles = [], []
    for i in range(len(said)):
        if ends and i == len(said) - 1:
            heard, roles = heard + [said[i]], roles + [5]
        elif i <= b:
            heard, roles = heard + [said[i]], roles + [0]
        else:
            heard, roles = heard + [said[b]], roles + [i - b]
    return heard, roles


@pytest.mark.parametrize("b, ends", [(0, False), (2, False), (4, False), (0, True), (1, True), (4, True)])
def test_network_by_another_road(lesson, b, ends):
    ns = lesson(NAME).ns
    said = ns.path[:3, :6]
    got = ns.think(ns.A[:3], ns.B[:3], said, b, ends).detach()
    for i, (p, a, x) in enumerate(rows(said, ns.A[:3], ns.B[:3])):
        want = reference(ns, a, x, *inputs(p, b, ends))
        assert (got[i] - want).abs().max() < 2e-4


def test_edit_by_another_road(lesson):
    """Word after word in plain Python: what is said, what is drawn, and that the other eight tokens are A's."""
    ns = lesson(NAME).ns
    for b, k in [(4, 5), (0, 5), (2, 4), (3, 5), (1, 1)]:
        x, said = ns.edit(ns.A[:4], ns.B[:4], ns.start[:4], k, b)
        for picture, words, a, c, (s,) in rows(x, said, ns.A, ns.B, ns.start):
            mine = [s]
            for _ in range(k):
                mine.append(int(reference(ns, a, c, *inputs(mine, b, False))[-1, :9].argmax()))
            token = int(reference(ns, a, c, *inputs(mine, b, True))[-1, 9:].argmax())
            assert words == mine
            assert picture == [token if cell == mine[-1] else t for cell, t in enumerate(a)]


def test_nothing_leaks(lesson):
    """A slot's answer does not move with any word after it, nor with a thought that is not heard."""
    ns = lesson(NAME).ns
    said = ns.path[:50, :6]
    for b in range(5):
        full = ns.think(ns.A[:50], ns.B[:50], said, b, False)
        for i in range(1, 7):  # a prefix gives the same answers
            assert (ns.think(ns.A[:50], ns.B[:50], said[:, :i], b, False) - full[:, :i]).abs().max() < 1e-4
        other = said.clone()
        other[:, b + 1 :] = (other[:, b + 1 :] + 4) % 9
        assert torch.equal(ns.think(ns.A[:50], ns.B[:50], other, b, False), full)  # silence hears nothing of them
        if b:
            other = said.clone()
            other[:, b] = (other[:, b] + 4) % 9
            moved = ns.think(ns.A[:50], ns.B[:50], other, b, False) - full
            assert moved[:, :b].abs().max() < 1e-4 and moved[:, b].abs().max() > 1  # the last that is heard counts
        drawn = ns.think(ns.A[:50], ns.B[:50], said, b, True)
        assert (drawn[:, :5] - full[:, :5]).abs().max() < 1e-4 and (drawn[:, 5] - full[:, 5]).abs().max() > 1


def test_silence_costs_the_same_calls(lesson):
    ns, calls = lesson(NAME).ns, []

    def spy(*task):
        calls.append(task[2].shape[1])
        return ns.think(*task)

    with replaced(ns.edit.__wrapped__, think=spy):
        for b in range(5):
            for k in range(1, 6):
                calls.clear()
                ns.edit(ns.A[:5], ns.B[:5], ns.start[:5], k, b)
                assert calls == [*range(1, k + 2)]  # k words for cells, one for the token


def test_guess_by_enumeration(lesson):
    """All 8! cycles: given the start and b + 1 hops, each cell that is left is the k-th with 1 / (7 - b)."""
    ns = lesson(NAME).ns
    cycles = np.array(list(itertools.permutations(range(1, 9))))  # start 0; the hops after it
    for b in range(4):
        known = (cycles[:, : b + 1] == np.arange(1, b + 2)).all(1)
        for k in range(b + 2, 6):
            count = Counter(cycles[known][:, k - 1].tolist())
            assert len(count) == 7 - b and set(count.values()) == {known.sum() // (7 - b)}
        assert abs(ns.guess[b, 0].item() - 1 / (7 - b)) < 1e-7
    assert [[k <= b + 1 for k in range(1, 6)] for b in range(5)] == ns.inside.tolist()
    worst = max((ns.stairs[b, k - 1].item() - 1 / (7 - b)) / math.sqrt((6 - b) / (7 - b) ** 2 / 500)
                for b in range(5) for k in range(b + 2, 6))
    assert abs(worst - ns.excess.max().item()) < 1e-3 and ns.excess.numel() == 10


def test_floors(lesson):
    """Blind: a cell that is not the start, a token: 1/8 x 1/36. B's own token at a random such cell: 1/8."""
    ns = lesson(NAME).ns
    g = torch.Generator().manual_seed(1)
    right, n = 0, 40
    for _ in range(n):
        place = (ns.start + torch.randint(1, 9, (500, 1), generator=g)) % 9
        right += ns.right(ns.A.scatter(1, place, ns.B.gather(1, place)), ns.wanted[5]) / n
    assert abs(right - 1 / 8) < 5 * math.sqrt(7 / 64 / 500 / n) + 0.03  # + chance of the right token elsewhere
    assert ns.stairs[~ns.inside].max() < 0.3 and ns.stairs[4].min() > 0.95
    # the loss's floor: k hops, b of 0 .. 4 heard: slots after b + 1 guess among 7 - b, the token's slot is certain
    floor = sum(math.log(7 - b) * max(0, 5 - b - 1) for b in range(5)) / 5 / 6
    lines = [line.split() for line in lesson(NAME).text.splitlines() if line.startswith("iter")]
    assert all(int(line[1]) % 5 == 0 for line in lines)  # so k = 5 in each
    floors = [float(line[6].strip("),")) for line in lines]
    assert abs(sum(floors) / len(floors) - floor) < 0.06
    assert float(lines[-1][3]) < floors[-1] + 0.2 and float(lines[0][3]) > float(lines[-1][3]) + 0.2


def test_staircase_on_other_tasks(lesson):
    ns = lesson(NAME).ns
    torch.manual_seed(11)
    path, A, B = ns.tasks(1000, True)
    for b in range(5):
        for k in range(1, 6):
            x, said = ns.edit(A, B, path[:, :1], k, b)
            share = sum(p == answer(a, c, s, k) for p, a, c, (s,) in rows(x, A, B, path[:, :1])) / 1000
            if k <= b + 1:
                assert share > 0.95
            else:
                assert share < 1 / (7 - b) + 4 * math.sqrt((6 - b) / (7 - b) ** 2 / 1000)


def test_thoughts_are_causes(lesson):
    """Any wrong cell for thought 2: the place follows it, never the truth; without a repeated cell the token does, too."""
    ns = lesson(NAME).ns
    for shift in range(1, 9):
        wrong = (ns.path[:, 2:3] + shift) % 9
        x, said = ns.edit(ns.A, ns.B, torch.cat([ns.path[:, :2], wrong], 1), 5, 4)
        ends = torch.tensor([hop(a, w, 3) for a, (w,) in rows(ns.A, wrong)])
        assert (said[:, -1] == ends).double().mean() > 0.95 and ns.right(x, ns.wanted[5]) < 0.01
    for far in (1, 2, 3):
        wrong = ns.path[:, 2 + far]
        x, _ = ns.edit(ns.A, ns.B, ns.path[:, [0, 1, 2 + far]], 5, 4)
        want = torch.tensor([answer(a, b, w, 3) for a, b, w in rows(ns.A, ns.B, wrong)])
        assert ns.right(x, want) >= ns.follows - 1e-9 > 0.95
    x, _ = ns.edit(ns.A, ns.B, ns.path[:, [0, 1, 4]], 5, 1)  # not heard: it changes nothing
    assert torch.equal(x, ns.edit(ns.A, ns.B, ns.start, 5, 1)[0])


def test_captions_and_renderer(lesson):
    ns = lesson(NAME).ns
    words = {}
    for r in range(10):
        for x, w in rows(ns.wanted[5], ns.caption(ns.wanted[5], r)):
            assert w == [t if cell < r else 36 + t // 4 for cell, t in enumerate(x)]
        drawn = ns.renderer(ns.caption(ns.wanted[5], r)).argmax(2)
        assert torch.equal(drawn[:, :r], ns.wanted[5][:, :r])  # what is named comes back
        assert torch.equal(drawn // 4, ns.wanted[5] // 4)  # the hue always does
        words[r] = drawn
        exact = sum(1 if cell < r else 0.25 for cell in range(9)) / 9
        untouched = [[d == a for cell, (d, a) in enumerate(zip(x, y)) if cell != g] for x, y, (g,) in rows(drawn, ns.A, ns.goal)]
        share = sum(map(sum, untouched)) / 4000
        assert abs(share - ns.kept[r].item()) < 1e-6 and abs(share - exact) < 0.05
        assert abs(exact - (r + 3) / 12) < 1e-12
    assert torch.equal(words[9], ns.wanted[5])  # a caption of everything loses nothing
    assert ns.right(words[0], ns.wanted[5]) < 0.02
    # no renderer does better: the four shades of a hue are equally likely, whatever else the caption says
    loss = ns.F.cross_entropy(ns.renderer(ns.caption(ns.A, 0)).mT, ns.A).item()
    assert math.log(4) - 0.03 < loss < math.log(4) + 0.06


def test_tokens_to_dyes_and_back(lesson):
    ns = lesson(NAME).ns
    dyes = ns.dyes[:36].double()
    gap = torch.cdist(dyes, dyes) + torch.eye(36)
    assert gap.min() > 0.02
    for name, want in (("A", ns.A[0]), ("B", ns.B[0]), ("w", ns.wanted[5][0])):
        shown = (torch.tensor(np.asarray(ns.axes[name].images[0].get_array())).double().view(9, 3) - 0.3) / 0.7
        assert torch.equal(torch.cdist(shown, dyes).argmin(1), want)


def test_two_pictures(lesson):
    """Another B: the same cells are said; another A with the same start: other cells."""
    ns = lesson(NAME).ns
    x, said = ns.edit(ns.A, ns.B, ns.start, 5, 4)
    y, same = ns.edit(ns.A, ns.other, ns.start, 5, 4)
    assert (said == same).all(1).double().mean() > 0.95 and not torch.equal(x, y)
    want = torch.tensor([answer(a, b, s, 5) for a, b, (s,) in rows(ns.A, ns.other, ns.start)])
    assert abs(ns.right(y, want) - ns.swap) < 1e-9
    A = ns.A.roll(1, 0)
    z, _ = ns.edit(A, ns.B, ns.start, 5, 4)
    want = torch.tensor([answer(a, b, s, 5) for a, b, (s,) in rows(A, ns.B, ns.start)])
    assert ns.right(z, want) > 0.95


def state(ns):
    panels = [(ax.get_title(), to_hex(ax.spines["left"].get_edgecolor()), ax.images[0].get_array().tobytes(),
               [int(v) for line in ax.lines for v in (line.get_xdata() + 3 * line.get_ydata())]) for ax in ns.axes.values()]
    return panels, [int(v[0]) for v in ns.mark.get_data()], to_hex(ns.mark.get_color())


def test_sliders(lesson):
    ns = lesson(NAME).ns
    hops, thoughts, skips, shades = ns.bars
    before = state(ns)
    assert before[0][3][:2] == ("4 thoughts: 1.00 right", BLUE) and before[1:] == ([5, 4], BLUE)
    assert before[0][0][3] == before[0][3][3] == ns.path[0, :6].tolist()
    try:
        thoughts.set_val(0)
        panels, mark, colour = state(ns)
        assert mark == [5, 0] and colour == RED
        assert panels[3][0] == f"0 thoughts: {ns.stairs[0, 4]:.2f} right" and panels[3][1:] == panels[4][1:]
        hops.set_val(1)
        panels, mark, colour = state(ns)
        assert mark == [1, 0] and colour == BLUE and panels[3][:2] == ("0 thoughts: 1.00 right", BLUE)
        assert panels[3][3] == ns.path[0, :2].tolist()
        hops.set_val(5)
        thoughts.set_val(4)
        skips.set_val(2)
        panels = state(ns)[0]
        assert panels[3][:2] == ("4 thoughts: 0.00 right", RED) and panels[4] == before[0][4]
        assert panels[3][3] == ns.path[0, [0, 1, 4, 5, 6, 7]].tolist()  # the path goes astray
        thoughts.set_val(1)
        assert state(ns)[0][3][0] == f"1 thoughts: {ns.stairs[1, 4]:.2f} right"  # not heard
        for bar in ns.bars:
            bar.set_val(bar.valmin)
            assert state(ns)[0][3][0].endswith("right")
        for bar in ns.bars:
            bar.set_val(bar.valmax)
        assert state(ns)[0][5][:2] == ("caption: 1.00 kept", BLUE)
        shades.set_val(0)
        assert state(ns)[0][5][:2] == (f"caption: {ns.kept[0]:.2f} kept", RED)
    finally:
        for bar in ns.bars:
            bar.reset()
    assert state(ns) == before


def test_break(lesson):
    run = lesson(NAME, "--thoughts", "0", "--named", "9", "--iters", "400")
    assert {c for c, ok in run.claims().items() if not ok} == {"C1", "C4", "C6"}
    panels, mark, colour = state(run.ns)
    assert mark == [5, 0] and colour == RED and panels[3][1] == RED and panels[5][1] == BLUE
    assert run.ns.stairs[0, 0] > 0.95 and run.ns.stairs[0, 1:].max() < 0.25


def test_refused(refused):
    for flags in [("--thoughts", "-1"), ("--thoughts", "5"), ("--thoughts", "nan"), ("--named", "-1"), ("--named", "10"),
                  ("--named", "1.5"), ("--iters", "0"), ("--seed", "-1"), ("--seed", "9999999999"),
                  ("--out", "/nonexistent/x.png"), ("--out", "x.xyz")]:
        refused(NAME, *flags)
