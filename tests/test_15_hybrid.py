"""Lesson 15: its pictures, captions, masks, doors and floors by enumeration and in plain Python; a control; sliders and breaks."""
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

NAME = "15_hybrid"
COLOURS, SHAPES = ["red", "green", "blue", "black"], ["square", "frame", "plus", "cross"]
RGB = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "black": (-1, -1, -1)}


def parse(ns, row):
    """Words of a caption (10 numbers) -> {place: (colour, shape)}."""
    words = [ns.WORDS[i] for i in row]
    assert words[0] == "."
    return {words[i]: (words[i + 1], words[i + 2]) for i in (1, 4, 7)}


def test_default_run(lesson):
    run = lesson(NAME)
    assert run.claims() == {f"C{i}": True for i in range(1, 5)}
    image = plt.imread(run.folder / "15_hybrid.png")
    assert image.shape[0] > 400 and image[..., :3].std() > 0.05
    rows = {line.split()[0]: line.split() for line in run.text.splitlines() if " weights, loss " in line}
    assert list(rows) == ["LM", "pooled", "cross", "joint", "janus", "noisy"]
    assert rows["pooled"][1] == rows["cross"][1] == rows["joint"][1]  # equal weights
    assert int(rows["janus"][1]) < int(rows["cross"][1])
    for question in ("WHERE does not matter?", "the LM stays?", "one net for all?", "captions bad"):
        assert question in run.text


def test_cells_pixel_by_pixel(lesson):
    ns = lesson(NAME).ns
    inside = {"square": lambda r, c: 1 <= r <= 4 and 1 <= c <= 4, "frame": lambda r, c: r in (0, 5) or c in (0, 5),
              "plus": lambda r, c: r in (2, 3) or c in (2, 3), "cross": lambda r, c: r == c or r + c == 5}
    for n, (colour, shape) in enumerate(itertools.product(COLOURS, SHAPES)):
        assert [ns.WORDS[i] for i in ns.NAMES[n]] == [colour, shape]
        for channel, r, c in itertools.product(range(3), range(6), range(6)):
            want = RGB[colour][channel] if inside[shape](r, c) else 1
            assert ns.CELLS[n].view(3, 6, 6)[channel, r, c] == want


def test_captions_round_trip(lesson):
    """Parsed in plain Python, the caption is the scene, whatever the order; each question has its answer after it."""
    ns = lesson(NAME).ns
    scene = torch.randint(16, (300, 3))
    orders = set()
    for row, objects in zip(ns.enter("janus", ns.NAMES[scene]).tolist(), scene.tolist()):
        wish = {p: (COLOURS[o // 4], SHAPES[o % 4]) for p, o in zip(("left", "middle", "right"), objects)}
        assert parse(ns, row[:10]) == wish
        orders.add(tuple(row[1:10:3]))
        words = [ns.WORDS[i] for i in row[10:]]
        assert {words[i]: words[i + 1] for i in (0, 2, 4)} == {p: w[0] for p, w in wish.items()}
        assert {words[i]: words[i + 1] for i in (6, 8, 10)} == {p: w[1] for p, w in wish.items()}
    assert len(orders) == 6


def test_noise_and_recaptions(lesson):
    """Three words of four stay true; and what the noisy captions say most often of like cells IS the truth."""
    ns = lesson(NAME).ns
    assert abs((ns.noisy == ns.true).double().mean() - 0.75) < 0.01
    assert ns.noisy[..., 0].min() == 4 and ns.noisy[..., 0].max() == 7 and ns.noisy[..., 1].min() == 8
    votes = {}
    for pixels, (colour, shape) in zip(ns.x.flatten(0, 1).numpy(), ns.noisy.flatten(0, 1).tolist()):
        votes.setdefault(pixels.tobytes(), ([], []))
        votes[pixels.tobytes()][0].append(colour)
        votes[pixels.tobytes()][1].append(shape)
    assert len(votes) == 16
    for pixels, said in votes.items():
        n = [cell.numpy().tobytes() for cell in ns.CELLS].index(pixels)
        assert [max(set(words), key=words.count) for words in said] == ns.NAMES[n].tolist()


def test_floors_by_enumeration():
    """Words in place: a random order of the right words; the best guess of one who knows the bag; noisy captions."""
    random = best = 0.0
    for asked in itertools.product(range(4), repeat=3):
        drawn = [sum(a == b for a, b in zip(asked, order)) / 3 for order in itertools.permutations(asked)]
        random += sum(drawn) / 6 / 64
        best += max(asked.count(k) for k in range(4)) / 3 / 64
    assert abs(random - 0.5) < 1e-12 and abs(best - 9 / 16) < 1e-12
    truth, lies = 2 / 3, [1 / 3 / 4] * 4  # a lie is any of four words, the true one among them
    assert abs(truth + lies[0] - 0.75) < 1e-12 and abs(truth + sum(lies) - 1) < 1e-12 and abs((truth + lies[0]) ** 6 - 0.178) < 1e-3


def test_attention_by_loops(lesson):
    ns = lesson(NAME).ns
    torch.manual_seed(0)
    q, k, v, mask = torch.randn(2, 5, ns.C).double(), *torch.randn(2, 2, 7, ns.C).double(), torch.rand(5, 7) < 0.6
    mask[:, 0] = True
    got, d = ns.heads(q, k, v, mask), ns.C // 4
    for b, head, row in itertools.product(range(2), range(4), range(5)):
        part = slice(head * d, (head + 1) * d)
        weight = [math.exp(q[b, row, part] @ k[b, col, part] / math.sqrt(d)) if mask[row, col] else 0 for col in range(7)]
        want = sum(w * v[b, col, part] for col, w in enumerate(weight)) / sum(weight)
        assert (got[b, row, part] - want).abs().max() < 1e-10


def test_masks_by_disturbance(lesson):
    """What reaches what, found by changing one token at a time."""
    ns = lesson(NAME).ns
    net, text = ns.nets["janus"], ns.tests["janus"][:1].clone()
    xt, t = torch.randn(1, 3, 108), torch.full((1, 1), 0.3)
    before = ns.run(net, "janus", xt, t, text)[1]

    def moved(xt, t, text):
        return ((ns.run(net, "janus", xt, t, text)[1] - before).abs().amax(2)[0] > 1e-6).tolist()

    other = xt.clone()
    other[:, 1] += 1
    assert moved(other, t, text) == [True] * 3 + [False] * 22  # patches see patches, words do not
    assert moved(xt, t + 0.1, text) == [True] * 25  # adaLN tells the time to all
    for word in (0, 4, 9):
        new = text.clone()
        new[0, word] = (new[0, word] + 1) % 12
        assert moved(xt, t, new) == [True] * 3 + [False] * word + [True] * (22 - word)
    new = text.clone()
    new[0, 10] = (new[0, 10] + 1) % 12
    assert moved(xt, t, new) == [False] * 13 + [True] * 12  # answers are no part of the picture


def test_doors(lesson):
    """Only pooled is a function of the mean; every door takes the words as a set, so places are in the features."""
    ns = lesson(NAME).ns
    xt, t = torch.randn(50, 3, 108), torch.full((50, 1), 0.2)
    for door in ("pooled", "cross", "joint"):
        text = ns.tests[door][:50]
        x_hat = ns.run(ns.nets[door], door, xt, t, text)[0]
        mixed = ns.run(ns.nets[door], door, xt, t, text[:, torch.randperm(10)])[0]
        assert (mixed - x_hat).abs().max() < 1e-3
        flat = ns.run(ns.nets[door], door, xt, t, text.mean(1, keepdim=True).expand(-1, 10, -1))[0]
        assert ((flat - x_hat).abs().max() < 1e-3) == (door == "pooled")


def test_both_language_models_answer(lesson):
    """The LM, and janus while it looks at a noisy picture: each answer, after its place."""
    ns = lesson(NAME).ns
    text = ns.enter("janus", ns.NAMES[torch.randint(16, (400, 3))])
    for name, xt, t in (("LM", torch.zeros(400, 3, 108), 0.0), ("janus", torch.randn(400, 3, 108), 0.5)):
        h = ns.run(ns.nets[name], "janus", xt, torch.full((400, 1), t), text)[1]
        said = ns.nets[name].answer(h[:, 13:24]).argmax(2)
        assert (said[:, ::2] == text[:, 11::2]).double().mean() > 0.95


@pytest.fixture(scope="module")
def told_painter(lesson):
    """The control: the pooled door, given ONE vector that says what is where; the training of the lesson."""
    ns = lesson(NAME).ns

    def facts(said):
        slot = said - 4 + 8 * torch.arange(3)[:, None]
        return 3.0 * torch.nn.functional.one_hot(slot, ns.C).sum((1, 2))[:, None]

    torch.manual_seed(0)
    with torch.enable_grad():
        net, text = ns.build(), facts(ns.true)
        adam = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99), fused=True)
        for i in range(300):
            adam.param_groups[0]["lr"] = 8e-3 * min((i + 1) / 60, 1) * (1 - i / 300)
            pick, t = torch.randint(6000, (48,)), torch.rand(48, 1, 1) ** 2
            xt = t * ns.x[pick] + (1 - t) * torch.randn(48, 3, 108)
            loss = (ns.run(net, "pooled", xt, t[:, 0], text[pick])[0] - ns.x[pick]).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    return net.requires_grad_(False), facts(ns.NAMES[ns.asked])


def test_a_vector_is_not_too_narrow(lesson, told_painter):
    ns = lesson(NAME).ns
    ns.nets["told"], ns.doors["told"], ns.tests["told"] = told_painter[0], "pooled", told_painter[1]
    try:
        assert ns.judge("told", 1)[1] > 0.9 and ns.scenes["pooled", 1] < 0.2
    finally:
        for table in (ns.nets, ns.doors, ns.tests):
            del table["told"]


def test_judge_in_plain_python(lesson):
    ns = lesson(NAME).ns
    words, scenes, off, x = ns.judge("noisy", 2)
    right = whole = far = 0.0
    for cells, objects in zip(x.tolist(), ns.asked.tolist()):
        count = 0
        for cell, wish in zip(cells, objects):
            d = [sum((a - b) ** 2 for a, b in zip(cell, clean)) for clean in ns.CELLS.tolist()]
            best = min(range(16), key=d.__getitem__)
            count += (best // 4 == wish // 4) + (best % 4 == wish % 4)
            far += math.sqrt(d[best] / 108) / 600
        right += count / 1200
        whole += (count == 6) / 200
    assert max(abs(words - right), abs(scenes - whole), abs(off - far)) < 1e-4


def test_guidance_and_euler(lesson):
    """w = 1 never asks for the null answer, w = 0 draws it; a perfect denoiser is drawn exactly."""
    ns = lesson(NAME).ns
    text = ns.tests["cross"]
    free = ns.judge("cross", 0)[3]
    ns.tests["cross"] = 0 * text
    try:
        assert (ns.judge("cross", 1)[3] - free).abs().max() < 1e-3
    finally:
        ns.tests["cross"] = text
    run = ns.judge.__globals__["run"]
    ns.judge.__globals__["run"] = lambda net, door, xt, t, text: (ns.CELLS[ns.asked], None)
    try:
        words, scenes, off, x = ns.judge("cross", 3)
    finally:
        ns.judge.__globals__["run"] = run
    assert words == scenes == 1 and off < 1e-2 and (x - ns.CELLS[ns.asked]).abs().max() < 1e-5


def test_guidance_cannot_bind_but_sharpens(lesson):
    """No w lifts pooled above the best guess from a bag; noisy captions gain by w = 3; words outlive pixels at w = 12."""
    ns = lesson(NAME).ns
    assert max(ns.placed["pooled", w] for w in ns.W) < 9 / 16 + 0.06
    assert ns.scenes["noisy", 3] - ns.scenes["noisy", 1] > 0.3
    assert ns.placed["cross", 12] > 0.8 and ns.off["cross", 12] > 0.4


def state(ns):
    return ([t.get_text() for t in ns.left.get_yticklabels()], ns.left.get_title(),
            np.array(ns.left.images[0].get_array()), len(ns.left.lines[0].get_xdata()))


def test_sliders(lesson):
    ns = lesson(NAME).ns
    before = state(ns)
    assert before[0][0] == "asked" and before[0][2].startswith("cross: words 1.00") and len(before[0]) == 6
    try:
        ns.number.set_val(7)
        other = state(ns)
        assert other[1] != before[1] and other[0] == before[0] and np.abs(other[2] - before[2]).max() > 0.5
        assert parse(ns, ns.tests["janus"][7, :10].tolist()) == {
            p: (COLOURS[o // 4], SHAPES[o % 4]) for p, o in zip(("left", "middle", "right"), ns.asked[7].tolist())}
        wrong = sum((torch.cdist(ns.judge(n, 1)[3][7], ns.CELLS).argmin(1) != ns.asked[7]).sum().item() for n in ns.tests)
        assert other[3] == wrong  # one red frame for each wrong object
        ns.guide.set_val(12)  # BREAK --w 12
        broken = state(ns)
        assert broken[0] != other[0] and np.abs(broken[2] - other[2]).max() > 0.3
        assert float(broken[0][2].split("off ")[1]) > 0.4 and float(other[0][2].split("off ")[1]) < 0.1
    finally:
        ns.number.set_val(0)
        ns.guide.set_val(1)
    after = state(ns)
    assert after[:2] == before[:2] and np.abs(after[2] - before[2]).max() < 1e-6


def test_hardly_trained_nets_pass_nothing(lesson):
    claims = lesson(NAME, "--iters", "20").claims()
    assert claims == {f"C{i}": False for i in range(1, 5)}


def test_break_interface(lesson):
    claims = lesson(NAME, "--interface", "pooled", "--iters", "200").claims()
    assert {c for c, ok in claims.items() if not ok} == {"C2", "C3"}


def test_break_captions(lesson):
    claims = lesson(NAME, "--captions", "noisy").claims()
    assert {c for c, ok in claims.items() if not ok} == {"C2"}


def test_refused(refused):
    for flags in [("--interface", "clip"), ("--captions", "none"), ("--w", "-1"), ("--w", "12.5"), ("--w", "nan"), ("--iters", "0"),
                  ("--seed", "-1"), ("--seed", "9999999999"), ("--out", "/nonexistent/x.png"), ("--out", "x.xyz")]:
        refused(NAME, *flags)
