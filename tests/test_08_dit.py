"""Lesson 08: patches, attention, block, sampler and energy distance by other roads; widget, cells, breaks."""
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_hex

NAME = "08_dit"
IDENTITIES = {"C1", "C2"}


def test_default_run(lesson):
    run = lesson(NAME)
    assert run.claims() == {f"C{i}": True for i in range(1, 8)}
    image = plt.imread(run.folder / "08_dit.png")
    assert image.shape[0] > 400 and image[..., :3].std() > 0.05


def test_pictures(lesson):
    """180 pictures (of which matplotlib 3.8 draws 6 twice), ink -1 .. 1, none cut; a shift changes no digit."""
    ns = lesson(NAME).ns
    x = ns.image.numpy()[:, 0]
    assert x.shape == (180, 16, 16) and x.min() == -1 and 0.7 < x.max() <= 1
    assert len(np.unique(x.reshape(180, -1), axis=0)) >= 174
    assert max(abs(e + 1).max() for e in (x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1])) == 0
    ink = (x + 1).sum((1, 2)).reshape(9, 20)  # 9 shifts of 2 fonts x 10 digits: one amount of ink each
    assert abs(ink / ink.mean(0) - 1).max() < 0.05
    centre = [(abs(x[k::20] + 1) * np.arange(16)).sum((1, 2)) / (x[k::20] + 1).sum((1, 2)) for k in range(20)]
    assert all(0.8 < np.ptp(c) < 1.2 for c in centre)  # two pixels of 32 are one of 16


def test_patches_by_slices(lesson):
    ns = lesson(NAME).ns
    for b in (0, 57, 179):
        cut = [ns.image[b, 0, r:r + 4, c:c + 4].flatten() for r in range(0, 16, 4) for c in range(0, 16, 4)]
        assert torch.equal(torch.cat(cut), ns.digits[b])


def test_embedding_is_a_convolution(lesson):
    """The trained PatchEmbed as a sum over pixels with stride 4, written out in numpy."""
    ns = lesson(NAME).ns
    net = ns.nets["dit flow"]
    kernel, bias = net.embed.weight.double().numpy().reshape(60, 4, 4), net.embed.bias.double().numpy()
    x = ns.image[3, 0].double().numpy()
    got = F.linear(ns.digits[3].double().view(16, 16), net.embed.weight.double(), net.embed.bias.double())
    for r in range(4):
        for c in range(4):
            sums = sum(kernel[:, i, j] * x[4 * r + i, 4 * c + j] for i in range(4) for j in range(4)) + bias
            assert abs(got[4 * r + c].numpy() - sums).max() < 1e-12


def numpy_attention(block, h):
    """Four heads, one after the other, softmax by hand."""
    w, b = block.qkv.weight.detach().numpy(), block.qkv.bias.detach().numpy()
    size = h.shape[1]
    q, k, v = [h @ w[i * size:(i + 1) * size].T + b[i * size:(i + 1) * size] for i in range(3)]
    heads = []
    for m in range(4):
        part = slice(m * size // 4, (m + 1) * size // 4)
        score = np.exp(q[:, part] @ k[:, part].T / math.sqrt(size // 4))
        heads.append(score / score.sum(1, keepdims=True) @ v[:, part])
    return np.concatenate(heads, 1) @ block.out.weight.detach().numpy().T + block.out.bias.detach().numpy()


def test_attention_by_numpy(lesson):
    ns = lesson(NAME).ns
    torch.manual_seed(0)
    block, h = ns.DiTBlock(48, 1.0).double(), torch.randn(3, 16, 48, dtype=torch.float64)
    got = block.attend(h).detach().numpy()
    assert max(abs(got[i] - numpy_attention(block, h[i].numpy())).max() for i in range(3)) < 1e-12
    order = torch.randperm(16)  # no mask and no order inside a block
    assert abs(block.attend(h[:, order]) - block.attend(h)[:, order]).max() < 1e-12


def test_block_by_its_formula(lesson):
    ns = lesson(NAME).ns
    torch.manual_seed(1)
    block, h = ns.DiTBlock(48, 0.3).double(), torch.randn(1, 16, 48, dtype=torch.float64)
    c = torch.randn(1, 48, dtype=torch.float64)
    torch.nn.init.normal_(block.adaln.weight, std=0.1)
    b1, s1, g1, b2, s2, g2 = (block.adaln.weight @ c[0] + block.adaln.bias).detach().numpy().reshape(6, 48)

    def norm(x):
        return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    x = h[0].numpy()
    x = x + g1 * numpy_attention(block, (1 + s1) * norm(x) + b1)
    x = x + g2 * block.mlp(torch.tensor((1 + s2) * norm(x) + b2)).detach().numpy()
    assert abs(block(h, c)[0].detach().numpy() - x).max() < 1e-10


def test_identity_at_initialisation(lesson):
    ns = lesson(NAME).ns
    torch.manual_seed(2)
    h, c = torch.randn(2, 16, 60), torch.randn(2, 60)
    assert torch.equal(ns.DiTBlock(60, 0.0)(h, c), h)
    assert (ns.DiTBlock(60, 1.0)(h, c) - h).abs().max() > 0.1
    net = ns.nets["dit flow"]  # after training the gates are open
    assert all(b.adaln(c).view(2, 6, 60)[:, [2, 5]].abs().mean() > 0.01 for b in net.blocks)


def test_reach_by_finite_differences(lesson):
    """Move one pixel at a time: which of them moves one token (attention), one pixel (convolutions)?"""
    ns = lesson(NAME).ns
    torch.manual_seed(3)
    embed, block = torch.nn.Linear(16, 48).double(), ns.DiTBlock(48, 1.0).double()
    convs = [torch.nn.Conv2d(1, 1, 3, padding=1).double() for _ in range(3)]
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    moved = x + 1e-3 * torch.eye(256, dtype=torch.float64).view(256, 1, 16, 16)  # (256, 1, 16, 16)

    def token(image, c=torch.zeros(1, 48, dtype=torch.float64)):
        return block(embed(F.unfold(image, 4, stride=4).mT), c.expand(len(image), 48))[:, 5, 0]

    def pixel(image, depth):
        for conv in convs[:depth]:
            image = conv(image)
        return image[:, 0, 8, 8]
    with torch.no_grad():
        assert ((token(moved) - token(x)).abs() > 1e-12).sum() == 256
        assert [((pixel(moved, n) - pixel(x, n)).abs() > 1e-14).sum().item() for n in (1, 3)] == [9, 49]


def test_one_token_is_an_mlp(lesson):
    ns = lesson(NAME).ns
    block, h = ns.nets["mlp x0"].blocks[0], torch.randn(5, 1, 72)
    v = block.qkv(h)[..., 144:]
    assert (block.attend(h) - block.out(v)).abs().max() < 1e-5


def test_frame(lesson):
    """flow: v is d xt / dt; ddpm: variance preserved, v_sh = -2 / pi d xt / dt, by finite differences."""
    ns = lesson(NAME).ns
    t, step = torch.linspace(0.1, 0.9, 9, dtype=torch.float64), 1e-6
    for cell, factor in [("dit flow", 1.0), ("mlp ddpm", -2 / math.pi)]:
        a, s, cx, ce = ns.frame(cell, t)
        (a2, s2, *_), (a1, s1, *_) = ns.frame(cell, t + step), ns.frame(cell, t - step)
        assert ((a2 - a1) / (2 * step) * factor - cx).abs().max() < 1e-8
        assert ((s2 - s1) / (2 * step) * factor - ce).abs().max() < 1e-8
    assert (a**2 + s**2 - 1).abs().max() < 1e-12
    assert ns.frame("mlp x0", t)[2:] == (1, 0)


@pytest.mark.parametrize("kind", ["flow", "ddpm", "x0"])
def test_sampler_with_an_exact_answer(lesson, kind):
    """Data that are one point have an exact answer; with it, any number of steps ends in that point."""
    ns = lesson(NAME).ns
    point = ns.digits[44]

    def exact(xt, t, y):
        a, s, cx, ce = ns.frame(kind, t)
        return cx * point + ce * (xt - a * point) / s
    ns.nets[f"exact {kind}"] = exact
    try:
        for steps in (1, 3, 20):
            assert (ns.sample(f"exact {kind}", steps, 7)[0] - point).abs().max() < 1e-4
    finally:
        del ns.nets[f"exact {kind}"]


def test_flow_sampler_is_euler(lesson):
    ns = lesson(NAME).ns
    start = torch.randn(10, 256, generator=torch.Generator().manual_seed(1))  # --seed 0, plus 1
    x, y = start.double(), torch.arange(10)
    net = ns.nets["dit flow"]
    for i in range(8):
        x = x + net(x.float(), torch.full((10, 1), i / 8), y).double() / 8
    assert (ns.sample("dit flow", 8, 10)[0] - x).abs().max() < 1e-3


def test_energy_distance_by_brute_force(lesson):
    ns = lesson(NAME).ns
    y = ns.digits.double().numpy()

    def mean(p, q):
        return np.mean([np.sqrt(((row - q) ** 2).sum(1)).mean() for row in p])
    for n in (100, 300):
        x, ed = ns.sample("dit flow", 20, n)
        x = x.double().numpy()
        assert abs(2 * mean(x, y) - mean(x, x) * n / (n - 1) - mean(y, y) - ed) < 1e-3
        assert n == 300 or ed == ns.ed["dit flow"]


def test_digits_are_those_asked_for(lesson):
    ns = lesson(NAME).ns
    for cell in ("dit flow", "dit ddpm", "mlp x0"):
        nearest = torch.cdist(ns.sample(cell, 20, 100)[0], ns.digits).argmin(1) % 10
        assert (nearest == torch.arange(100) % 10).float().mean() > 0.85


def test_cut_attention_is_the_product_of_marginals(lesson):
    """README's .016: the ring's ED to points whose coordinates come from two different points of it."""
    ns = lesson(NAME).ns
    apart = torch.cat([ns.points[:3000, :1], ns.points[3000:6000, 1:]], 1)
    y = ns.points[6000:9000]
    ed = 2 * torch.cdist(apart, y).mean() - (torch.pdist(apart).mean() + torch.pdist(y).mean())
    assert 0.013 < ed < 0.019 and ns.ed["dit2D"] < 0.5 * ed
    net, t = ns.nets["dit2D cut"], torch.full((4, 1), 0.5)
    xt, y = torch.randn(4, 2), torch.zeros(4, dtype=torch.long)
    moved = xt + torch.tensor([0.0, 1.0])  # moving y leaves what the net says of x
    assert torch.equal(net(xt, t, y)[:, 0], net(moved, t, y)[:, 0])
    whole = ns.nets["dit2D"]
    assert (whole(xt, t, y)[:, 0] - whole(moved, t, y)[:, 0]).abs().max() > 1e-3
    causal = ns.nets["dit2D causal"]  # the first token sees itself alone, the second both
    assert torch.equal(causal(xt, t, y)[:, 0], causal(moved, t, y)[:, 0])
    aside = xt + torch.tensor([1.0, 0.0])
    assert (causal(xt, t, y)[:, 1] - causal(aside, t, y)[:, 1]).abs().max() > 1e-3


def test_equal_weights(lesson):
    ns = lesson(NAME).ns
    size = {cell: sum(p.numel() for p in net.parameters()) for cell, net in ns.nets.items()}
    assert abs(size["mlp flow"] / size["dit flow"] - 1) < 0.05
    assert abs(size["mlp2D"] / size["dit2D"] - 1) < 0.15


def state(ns):
    return ([t.get_text() for t in ns.ax.texts], [im.get_array().copy() for im in ns.ax.images],
            [line.get_xydata().copy() for line in ns.ax.lines], [im.get_cmap().name for im in ns.ax.images])


def test_figure(lesson):
    """Eight rows of digits, red where ED is above 1; four clouds, each inside the axes and over its real points."""
    ns = lesson(NAME).ns
    texts, images, lines, colours = state(ns)
    assert [t.split(":")[0] for t in texts] == list(ns.nets) and len(images) == 8 == len(lines)
    assert all(t.endswith(f"{ns.ed[c]:.3f}") for t, c in zip(texts, ns.nets))
    assert [c == "Reds" for c in colours] == [ns.ed[cell] > 1 for cell in list(ns.nets)[:8]]
    assert [im.get_extent()[2:] for im in ns.ax.images] == [[-i - 1, -i] for i in range(8)]
    row = ns.sample("dit flow", 20, 100)[0][:10].view(10, 4, 4, 4, 4).permute(0, 1, 3, 2, 4).reshape(10, 16, 16)
    assert abs(images[0] - np.concatenate(list(row.numpy()), 1)).max() < 1e-6
    assert [to_hex(line.get_color()) for line in ns.ax.lines[1::2]] == [to_hex(["C3", "C0"][ns.ed[c] < 0.008]) for c in list(ns.nets)[8:]]
    for real, ours in zip(lines[::2], lines[1::2]):
        assert abs(real.mean(0) - ours.mean(0)).max() < 0.3
        assert real.min(0)[0] > 14 and real.max(0)[0] < 24 and real.min(0)[1] > -9 and real.max(0)[1] < 0.05


def test_slider(lesson):
    ns = lesson(NAME).ns
    before, good = state(ns), ns.ed["dit flow"]
    ns.slider.set_val(2)
    after = state(ns)
    assert ns.ed["dit flow"] > good + 0.05 and not set(before[0]) & set(after[0])
    assert abs(before[1][0] - after[1][0]).max() > 0.3 and abs(before[2][1] - after[2][1]).max() > 0.1
    ns.slider.set_val(20)
    assert state(ns)[0] == before[0] and abs(before[1][0] - state(ns)[1][0]).max() < 1e-5


def test_one_cell(lesson):
    """It is the grid's own cell: the same start, batches and last loss."""
    alone = lesson(NAME, "--model", "mlp", "--objective", "ddpm")
    assert alone.text.splitlines()[0] in lesson(NAME).text.splitlines()
    run = lesson(NAME, "--model", "mlp", "--objective", "ddpm", "--iters", "20")
    assert list(run.ns.nets) == ["mlp ddpm"] and run.claims() == dict.fromkeys(IDENTITIES, True)
    assert len(run.ns.fig.axes) == 2 and len(run.ns.ax.images) == 1  # the picture and its slider
    assert run.ns.ax.texts[0].get_text().startswith("mlp ddpm: ED ")
    assert list(lesson(NAME, "--objective", "x0", "--iters", "2").ns.nets) == ["dit x0"]


@pytest.mark.parametrize("flags, fails", [(("--gates", "1", "--lr", "3e-2"), {"C3", "C4"})])
def test_breaks(lesson, flags, fails):
    claims = lesson(NAME, *flags).claims()
    assert {name for name, holds in claims.items() if not holds} == fails


def test_refused(refused):
    for flags in [("--gates", "1.1"), ("--gates", "nan"), ("--lr", "0"), ("--lr", "nan"), ("--iters", "0"),
                  ("--seed", "-1"), ("--model", "unet"), ("--objective", "eps"), ("--iters", "3.5"),
                  ("--out", "/nonexistent/x.png"), ("--out", "x.xyz")]:
        refused(NAME, *flags)
