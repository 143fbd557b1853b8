"""Five pictures for the README: the path, what its code draws (moons, handwriting), and what the tests of 10 and 12 measure.
`python tests/regenerate.py --proofs` draws them."""
import re

import matplotlib.pyplot as plt
import numpy as np
import test_10_discrete as media
import test_12_maskgit as masks
import test_handwriting as handwriting
import torch
from conftest import ROOT, paste

GALLERY = ROOT / ".github" / "gallery"


def train_words(iters):
    """Lesson 12's pieces, its codes and tokens (the digit's name in front, as a 65th token) and a net that was trained on them."""
    piece = paste("12_maskgit", "train_unmask", "maskgit", "d3pm", "compare", "PICTURES")
    patches = torch.nn.functional.unfold(piece.PICTURES[:, None], 2, stride=2).mT
    codes = patches.flatten(0, 1).unique(dim=0)[::55][:16]
    for _ in range(20):
        tokens = torch.cdist(patches, codes).argmin(2)
        codes = torch.stack([patches[tokens == k].mean(0) for k in range(16)])
    tokens = torch.cat([torch.arange(40)[:, None] // 4, tokens], 1)
    return piece, codes, tokens, piece.train_unmask(tokens, iters)


def draw_12(iters=1000):
    """Rows of digits by MaskGIT, ten rounds when asked for 0 to 9, 64 without noise; wrong tokens against the perfect net's."""
    torch.manual_seed(0)
    piece, codes, tokens, net = train_words(iters)
    perfect, rounds = masks.lookup(tokens), [1, 2, 4, 10, 65]
    blank = torch.full((400, 65), masks.MASK)
    asked = blank[:10].clone()
    asked[:, 0] = torch.arange(10)
    rows = {f"rounds: {n}": piece.maskgit(net, blank, n, 1) for n in rounds}
    curves = {"D3PM": ([piece.d3pm(net, blank, n) for n in rounds], "o-", "tab:orange"),
              "MaskGIT": (list(rows.values()), "o-", "tab:blue"),
              "D3PM, perfect net": ([piece.d3pm(perfect, blank, n) for n in rounds], ":", "k"),
              "MaskGIT, perfect net": ([piece.maskgit(perfect, blank, n, 1) for n in rounds], "--", "k")}
    rows |= {"asked for\n0 to 9": piece.maskgit(net, asked, 10, 1), "no noise,\nrounds: 65": piece.maskgit(net, blank[:10], 65, 0)}
    fig, (grid, chart) = plt.subplots(1, 2, figsize=(12, 5), width_ratios=[3, 2], layout="constrained")
    strips = []
    for x in rows.values():
        x = x[:10]
        sign = torch.where(x == tokens[piece.compare(x, tokens)[0]], 1, -1)
        ink = (codes[x] * sign[:, :, None])[:, 1:]
        strips.append(torch.cat(list(torch.nn.functional.fold(ink.mT, (16, 16), 2, stride=2)[:, 0]), 1))
    grid.imshow(torch.cat(strips), "RdBu", vmin=-1, vmax=1)
    grid.set(title="MaskGIT (wrong tokens are red)", xticks=[], yticks=range(8, 16 * len(rows), 16))
    grid.set_yticklabels(list(rows))
    for name, (drawn, style, colour) in curves.items():
        chart.plot([piece.compare(x, tokens)[1] for x in drawn], style, color=colour, label=name)
    chart.set(title="wrong tokens of 65", xlabel="rounds", xticks=range(5), xticklabels=rounds)
    chart.legend()
    fig.savefig(GALLERY / "12_asked.png", dpi=120)


def draw_10():
    """Text, sound and picture as integers and back; the next row of a picture, asked for in pixels and in tokens."""
    torch.manual_seed(6)
    piece = paste("10_discrete", "PICTURES")
    ROWS, tokens = piece.PICTURES.view(-1, 16).unique(dim=0, return_inverse=True)
    tokens = tokens.view(40, 16)
    fig, (text, sound, picture, contest) = plt.subplots(1, 4, figsize=(13, 4), width_ratios=[1, 1.4, 1, 1], layout="constrained")

    letters = list("Why?")
    text.bar(letters, list("Why?".encode()), color="tab:blue")
    text.bar_label(text.containers[0])
    text.set(title="text: a letter is a byte", ylim=(0, 140))

    y = media.tone(1.0)
    first = (y * 7.5).round() / 7.5
    both = first + ((y - first) * 7.5 * 15).round() / (7.5 * 15)
    ms, late = torch.arange(80) / 8, slice(4800, 4880)  # ten quiet milliseconds
    sound.plot(ms, y[late], color="0.7", lw=6, label="sound")
    for level, colour, name in ((first, "tab:orange", "16 levels"), (both, "tab:blue", "16 more for the rest")):
        error = (level - y).square().mean().sqrt()
        sound.step(ms, level[late], color=colour, where="mid", label=f"{name}: error {error:.3f}")
    sound.set(title="sound: a moment is a level", xlabel="milliseconds", ylim=(-0.2, 0.35))
    sound.legend(loc="upper center")

    digit, place = 32, 3  # five rows can follow the first three of this 8
    picture.imshow(piece.PICTURES[digit], "Greys")
    picture.set(title="picture: a row is one of 88", xticks=[], yticks=range(16))
    picture.set_yticklabels(tokens[digit].tolist())

    with torch.enable_grad():
        pixels, kinds = media.train_next(tokens, ROWS, True), media.train_next(tokens, ROWS, False)
    xt = tokens[digit].clone()
    xt[place:] = 88
    follow = tokens[(tokens[:, :place] == xt[:place]).all(1), place].unique()
    drawn = torch.distributions.Categorical(logits=kinds(xt[None])[0]).sample((5,))
    parts = [ROWS[xt[:place]], pixels(xt[None]), ROWS[drawn], ROWS[follow]]
    spaced = [torch.stack([row, 0 * row], 1).flatten(0, 1) for row in parts[1:]]  # a white row below each
    contest.imshow(torch.cat([parts[0], *spaced]).clip(0, 1), "Greys")
    contest.set(title="row 4 of this 8, asked for", xticks=[])
    contest.set_yticks([1, 3, 9, 19], ["given", "in pixels", "in tokens,\n5 draws", "all that\ncan follow"])
    fig.savefig(GALLERY / "10_media.png", dpi=120)


def draw_heart():
    """What the code on the README's front page draws."""
    code = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)[1]
    torch.manual_seed(0)
    plt.figure(figsize=(5, 3), layout="constrained")
    exec(compile(code, "README.md", "exec"), {})
    plt.savefig(GALLERY / "heart.png", dpi=120)


def draw_handwriting(iters=9000, steps=50):
    """Seven pictures of each handwritten digit: unseen ones, drawn without guidance, drawn by the README's code, and of Gaussians."""
    torch.manual_seed(0)
    space = handwriting.draw_handwriting(iters, steps)
    drawn = {"w = 1": space["unguided"], "w = 2": space["drawn"], "Gaussians": handwriting.gaussians(space["data"])}
    mlps = {f"MLP, {target}": handwriting.draw_with_an_mlp(space, target, iters, steps) for target in ("x", "v")}
    for name, pictures in (drawn | mlps).items():
        print(name, {row: round(value, 3) for row, value in handwriting.measure(pictures, space).items()})
    columns = [handwriting.unseen(space).view(10, 100, 28, 28)[:, :7]]  # (digit, picture, row, column)
    columns += [pictures.view(20, 10, 28, 28)[:7].transpose(0, 1) for pictures in drawn.values()]
    fig, panels = plt.subplots(1, 4, figsize=(14, 2.8), layout="constrained")
    titles = ["real, not seen in training", "drawn without guidance (w = 1)", "drawn, w = 2", "one Gaussian for each digit"]
    for ax, digits, title in zip(panels, columns, titles):
        ax.imshow(torch.cat([torch.cat(list(digit)) for digit in digits], 1), "Greys")  # (196, 280)
        ax.set(title=title, xticks=[], yticks=[])
    fig.savefig(GALLERY / "handwriting.png", dpi=120)


def draw_path():
    """In one dimension, from noise to two Gaussians: lines of fixed pairs, and points that follow the exact mean velocity."""
    rng, n, steps, mu, std = np.random.default_rng(0), 60, 400, np.array([-1.0, 1.5]), 0.15
    t = np.linspace(0, 1, steps + 1)
    eps = rng.standard_normal(n)
    x = rng.choice(mu, n) + std * rng.standard_normal(n)
    walk = [eps]
    for i in range(steps):
        a, s = t[i], 1 - t[i]
        var = (a * std) ** 2 + s**2  # of x_t around a mu
        off = walk[-1][:, None] - a * mu
        odds = np.exp(-(off**2) / (2 * var))
        odds /= odds.sum(1, keepdims=True)
        x_hat, eps_hat = (odds * (mu + a * std**2 / var * off)).sum(1), (odds * s / var * off).sum(1)
        walk.append(walk[-1] + (x_hat - eps_hat) / steps)
    fig, panels = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True, layout="constrained")
    panels[0].plot(t, np.outer(t, x) + np.outer(1 - t, eps), "0.7", lw=1)
    panels[1].plot(t, np.array(walk), "tab:blue", lw=1)
    y = np.linspace(-3.2, 3.2, 400)
    noise = np.exp(-(y**2) / 2) / np.sqrt(2 * np.pi)
    data = np.exp(-((y[:, None] - mu) ** 2) / (2 * std**2)).sum(1) / (2 * std * np.sqrt(2 * np.pi))
    between = ["a path YOU choose:\nx_t = t x + (1 - t) eps", "x_t follows v(x_t, t),\nwhich a net learns"]
    for ax, words in zip(panels, between):
        ax.fill_betweenx(y, -0.3 * noise, color="k")
        ax.fill_betweenx(y, 1, 1 + 0.12 * data, color="0.7")
        ax.set(xlim=(-0.2, 1.25), ylim=(-3.2, 3.2), xticks=[0, 0.5, 1], yticks=[])
        ax.set_xticklabels(["t = 0\nnoise", words, "t = 1\ndata"])
    panels[0].set_title("fixed, for training: pairs of noise and data, on lines that cross")
    panels[1].set_title("learned, for sampling: the mean velocity of all lines at a place")
    fig.savefig(GALLERY / "path.png", dpi=120)
