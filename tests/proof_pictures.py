"""Seven pictures for the README: the path, the chain, what its code draws (moons, handwriting), tokens, objectives and nets, rounds.
`python tests/regenerate.py --proofs` draws them."""
import re
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import test_handwriting as handwriting
import test_08_dit as dit
import torch
from conftest import ROOT, paste
from torch import nn

GALLERY = ROOT / ".github" / "gallery"
CODE = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)[:3]  # its program, and DDPM's two parts

def draw_10():
    """Text, sound and an image as integers."""
    piece = paste("10_discrete", "draw_digit", "FONTS")
    images = torch.stack([piece.draw_digit(digit, font) for digit in "0123456789" for font in piece.FONTS]).round()
    codebook, tokens = images.view(-1, 16).unique(dim=0, return_inverse=True)
    fig, (text, sound, image) = plt.subplots(1, 3, figsize=(13, 4), width_ratios=[1, 1.6, 1], layout="constrained")

    text.bar(list("Why?"), list("Why?".encode()), color="tab:blue")
    text.bar_label(text.containers[0])
    text.set(title="Text: each letter is a byte", ylim=(0, 140), ylabel="token")

    seconds = torch.arange(8000) / 8000
    y = torch.exp(-4 * seconds) * (2 * torch.pi * 220 * seconds).sin()  # a tone that fades away
    first = (y * 7.5).round() / 7.5
    both = first + ((y - first) * 7.5 * 15).round() / (7.5 * 15)
    ms, late = torch.arange(80) / 8, slice(4800, 4880)  # ten quiet milliseconds
    sound.plot(ms, y[late], color="0.7", lw=6, label="sound")
    for levels, color, name in ((first, "tab:orange", "16 levels"), (both, "tab:blue", "and 16 more for the rest")):
        error = (levels - y).square().mean().sqrt()
        sound.step(ms, levels[late], color=color, where="mid", label=f"{name}: error {error:.3f}")
    sound.set(title="Sound: each moment is one or two levels", xlabel="milliseconds", ylim=(-0.2, 0.35))
    sound.legend(loc="upper center")

    image.imshow(images[32], "Greys")
    image.set(title=f"An image: each row is one of {len(codebook)}", xticks=[], yticks=range(16), yticklabels=tokens.view(40, 16)[32].tolist())
    fig.savefig(GALLERY / "10_media.png", dpi=120)

def draw_heart():
    """What the code on the README's front page draws; its samples, and data."""
    torch.manual_seed(0)
    plt.figure(figsize=(5, 3), layout="constrained")
    exec(compile(CODE[0], "README.md", "exec"), names := {})
    plt.savefig(GALLERY / "heart.png", dpi=120)
    return names["x"], names["two_moons"](1000)

def draw_handwriting(iters=4000):
    """Seven images of each handwritten digit: unseen ones, samples of lesson 08 as the README runs it, and of Gaussians."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        space = handwriting.learn(folder, iters)
    drawn = {f"samples, w = {w}": handwriting.draw(space, space.ns.net, w) for w in (1, 2)}
    drawn["one Gaussian for each digit"] = handwriting.gaussians(space)
    for name, images in drawn.items():
        print(name, {row: round(value, 3) for row, value in handwriting.measure(images, space).items()})
    columns = {"real, not seen in training": space.unseen.view(10, 100, 28, 28)[:, :7]}
    columns |= {name: images.view(20, 10, 28, 28)[:7].transpose(0, 1) for name, images in drawn.items()}
    fig, panels = plt.subplots(1, 4, figsize=(14, 2.8), layout="constrained")
    for ax, (title, digits) in zip(panels, columns.items()):
        ax.imshow(torch.cat([torch.cat(list(digit)) for digit in digits], 1), "gray", vmin=-1, vmax=1)  # (196, 280)
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
    for ax, title, words in zip(panels, ["fixed, for training: pairs of noise and data, on lines that cross",
                                         "learned, for sampling: the mean velocity of all lines at a place"],
                                ["a path YOU choose:\nx_t = t x + (1 - t) eps", "x_t follows v(x_t, t),\nwhich a net learns"]):
        ax.fill_betweenx(y, -0.3 * noise, color="k")
        ax.fill_betweenx(y, 1, 1 + 0.12 * data, color="0.7")
        ax.set(xlim=(-0.2, 1.25), ylim=(-3.2, 3.2), xticks=[0, 0.5, 1], yticks=[], title=title, xticklabels=["t = 0\nnoise", words, "t = 1\ndata"])
    fig.savefig(GALLERY / "path.png", dpi=120)

def draw_chain(times=(0, 50, 150, 400, 1000)):
    """DDPM's chain on the moons, both ways: the forward one step by step, and the reverse one by the page's two parts for DDPM."""
    program = CODE[0].partition("for i in range")[0] + CODE[1] + CODE[2].replace("for t", "reverse = {T: x}\nfor t") + "    reverse[t - 1] = x\n"
    torch.manual_seed(0)
    exec(compile(program, "README.md", "exec"), names := {})
    forward = [names["two_moons"](1000)]
    for beta in names["beta"][1:]:
        forward.append((1 - beta).sqrt() * forward[-1] + beta.sqrt() * torch.randn(1000, 2))
    kinds = [(forward, "0.6", "data", "Forward, fixed: each step $q(x_t|x_{t-1})$ shrinks the points a little and adds a little noise  $\\longrightarrow$"),
             (names["reverse"], "tab:blue", "sample", "$\\longleftarrow$  Reverse, learned: each step $p_\\theta(x_{t-1}|x_t)$ "
              "goes to a predicted mean and adds a little noise")]
    fig, rows = plt.subplots(2, len(times), figsize=(12, 4.9), layout="constrained")
    for row, (path, color, end, title) in zip(rows, kinds):
        row[2].set_title(title, size=13)
        for ax, t in zip(row, times):
            ax.plot(*path[t].T, ".", color=color, ms=3)
            ax.set(xlim=(-3, 3), ylim=(-2.4, 2.4), xticks=[], yticks=[], xlabel=f"$x_{{{t}}}$" + {0: f", {end}", 1000: ", noise"}.get(t, ""))
    fig.savefig(GALLERY / "chain.png", dpi=100)
    return [(forward[t], names["reverse"][t]) for t in times]

def draw_grid(iters=800):
    """Ten digits by lesson 08's DiT and its MLP of one token, with flow matching and with the page's three lines for DDPM."""
    drawn = {}
    for target, name in (("flow", "flow matching"), ("ddpm", "DDPM")):
        piece = paste(dit.NAME, "Block", "DiT", "train", "sample", "draw_digit", "FONTS", changes=zip(dit.OLD, dit.NEW[target]))
        images = 1 - 2 * torch.stack([piece.draw_digit(str(k % 10), piece.FONTS[k // 10]) for k in range(40)])[:, None]
        for patch, net in ((4, "DiT, 16 tokens"), (16, "MLP, 1 token")):
            torch.manual_seed(0)
            trained = piece.train(piece.DiT(16, patch, 1, 10, 48, 2), images, dit.ASKED, iters, 0.015 if patch == 4 else 0.0075)
            drawn[f"{net}\n{name}"] = piece.sample(trained, torch.randn(10, 1, 16, 16), dit.ASKED[:10], 20, 2)
    drawn = dict(sorted(drawn.items()))
    rows = torch.cat([torch.cat([*nn.functional.pad(row[:, 0].clamp(-1, 1), [1] * 4, value=1)], 1) for row in drawn.values()])
    fig, ax = plt.subplots(figsize=(10, 4), layout="constrained")
    ax.imshow(rows, "gray", extent=(0, 10, 3.5, -0.5))
    ax.set(title="Both objectives draw clean digits with 16 tokens of 48 numbers, but not with one", xticks=[], yticks=range(4), yticklabels=drawn)
    fig.savefig(GALLERY / "grid.png", dpi=100)
    return drawn

def draw_rounds(iters=1000):
    """Lesson 12's three methods, from 1 to 64 rounds, by its own functions."""
    piece = paste("12_maskgit", "train", "sample", "score", "draw_digit", "FONTS")
    images = torch.stack([piece.draw_digit(digit, font) for digit in "0123456789" for font in piece.FONTS]).round()
    codebook, tokens = nn.functional.unfold(images[:, None], 2, stride=2).mT.flatten(0, 1).unique(dim=0, return_inverse=True)
    torch.manual_seed(0)
    tokens = tokens.view(40, 64)
    net, blank, found = piece.train(tokens, len(codebook), iters).requires_grad_(False), torch.full([200, 64], len(codebook)), {}
    for n in (1, 2, 4, 8, 16, 32, 64):
        samples = piece.sample(net, blank, n, len(codebook), 1, 0)
        found[str(n)] = [piece.score(x, tokens)[1:] for x in samples.values()]
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    left.semilogy([*found], [[wrong for wrong, _ in row] for row in found.values()], "o-")
    right.plot([*found], [[occur for _, occur in row] for row in found.values()], "o-")
    left.set(title="Most wrong tokens are gone after 8 to 16 rounds", xlabel="rounds", ylabel="wrong tokens, of 64", yticks=[0.25, 1, 4, 16], yticklabels=["0.25", "1", "4", "16"])
    right.set(title="Without noise, few training images occur", xlabel="rounds", ylabel="images in 200 samples, of 40", ylim=(-1, 41))
    right.legend(samples)
    fig.savefig(GALLERY / "rounds.png", dpi=100)
