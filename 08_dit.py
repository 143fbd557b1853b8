# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""08 DiT: a transformer that generates images, trained on ten digits or on your own images.

A diffusion transformer (DiT) makes each patch of a noisy image a token. Attention lets the tokens
see each other, so that the patches fit together. It learns the velocity, image minus noise.

RUN    python 08_dit.py             (8 seconds; move the slider, or try your own --data FOLDER)
BREAK  python 08_dit.py --patch 16  (C1 fails: one token of 48 numbers cannot hold 256 pixels)
PAPER  arXiv 2212.09748, section 3.2 (DiT); 2207.12598, equation 6 (guidance: its w is our w - 1)"""
import argparse
import signal
from pathlib import Path
import matplotlib.pyplot as plt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--data", type=Path, help="a subfolder for each class (default: digits)")
parser.add_argument("--size", type=int, choices=range(16, 65, 4), default=28, help="for --data")
parser.add_argument("--patch", type=int, choices=[4, 8, 16], default=4, help="for the digits")
parser.add_argument("--w", type=float, default=2, help="guidance weight (default: %(default)s)")
parser.add_argument("--iters", type=int, default=800, help="of training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (0 <= args.w <= 8 and 1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--w must be 0 to 8, --iters 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core
torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")

FONTS = ["DejaVu Sans", "DejaVu Serif", "STIXGeneral", "cmss10"]  # they come with matplotlib
def draw_digit(digit, font, size=16):
    """Return a digit as an image of shape (size, size), where 1 is ink and 0 is paper."""
    canvas = FigureCanvasAgg(plt.Figure(figsize=(1, 1), dpi=size))  # one inch, so size pixels
    canvas.figure.text(0.5, 0.5, digit, font=font, size=80, ha="center", va="center_baseline")
    canvas.draw()
    return 1 - torch.tensor(canvas.buffer_rgba().tolist())[:, :, 0] / 255  # red equals green, blue

def load_image(path, size):  # a png or jpg, resized to (3, size, size). White is 1, and black -1
    to_rgba = plt.cm.ScalarMappable(cmap="gray").to_rgba  # from gray and color, 0 to 1 or 0 to 255
    rgba = torch.tensor(to_rgba(plt.imread(path), norm=False)).float().movedim(2, 0)  # 0 to 1
    ink = rgba[3] * (1 - rgba[:3])  # distance from white. Transparent pixels have no ink
    return 1 - 2 * nn.functional.adaptive_avg_pool2d(ink, size)

images = 1 - 2 * torch.stack([draw_digit(d, font) for font in FONTS for d in "0123456789"])[:, None]
labels = 1 + torch.arange(40) % 10  # images: (40, 1, 16, 16), all that exist. Label 0: no label
if args.data:
    files = sorted(path for path in args.data.rglob("[!.]*") if path.is_file()) or [args.data]
    try:
        images = torch.stack([load_image(file := path, args.size) for path in files])
    except Exception as error:
        parser.error(f"--data: {file}: {error}; needed are png or jpg images")
    classes = sorted({file.parent for file in files})
    labels = torch.tensor([1 + classes.index(file.parent) for file in files])

# --- Model. Multi-head attention, then an MLP. adaLN: time and label shift, scale, and gate both.
class Block(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)  # adaLN brings shift and scale
        self.qkv = nn.Sequential(nn.Linear(dim, 3 * dim), nn.Unflatten(2, (3, num_heads, -1)))
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.adaLN = nn.Parameter(torch.zeros(dim, 6 * dim))  # 0: new blocks are the identity

    def forward(self, x, c):  # tokens (B, N, dim), and c (B, dim) for time and label
        shift1, scale1, gate1, shift2, scale2, gate2 = (c @ self.adaLN)[:, None].chunk(6, 2)
        qkv = self.qkv(self.norm(x) * (1 + scale1) + shift1)  # (B, N, 3, num_heads, width)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # (B, num_heads, N, width) each
        scores = queries @ keys.mT / keys.shape[3] ** 0.5  # (B, num_heads, N, N), bidirectional
        heads = scores.softmax(3) @ values  # (B, num_heads, N, width), weighted means
        x = x + gate1 * self.out(heads.transpose(1, 2).flatten(2))  # (B, N, dim)
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)

class DiT(nn.Module):
    def __init__(self, size, patch, channels, num_classes, dim, depth, num_heads):
        super().__init__()
        self.patchify = nn.Conv2d(channels, dim, patch, patch)  # PatchEmbed, one matrix product
        self.position = nn.Parameter(torch.randn((size // patch) ** 2, dim))  # (N, dim)
        self.time, self.label = nn.Linear(1, dim), nn.Embedding(1 + num_classes, dim)
        self.blocks = nn.ModuleList([Block(dim, num_heads) for _ in range(depth)])
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, channels * patch**2))
        self.unpatchify = nn.Fold(size, patch, stride=patch)  # puts the patches side by side

    def forward(self, xt, t, y):  # (B, channels, size, size), a number or B of them, (B,)
        c = nn.functional.silu(self.time(torch.as_tensor(t).view(-1, 1)) + self.label(y))
        x = self.patchify(xt).flatten(2).mT + self.position  # (B, N, dim)
        for block in self.blocks:
            x = block(x, c)
        return self.unpatchify(self.head(x).mT)  # velocities, shaped like xt

# --- Training. At xt = t x + (1 - t) eps, the net learns the mean of x - eps. This is enough: how
# many points enter or leave a region depends only on their mean velocity (lesson 05).
def train(net, images, labels, iters, lr, batch_size=32):
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        row = torch.randint(len(images), [batch_size])
        x, y = images[row], labels[row] * (torch.rand(batch_size) > 0.1)  # one label in ten is 0
        eps, t = torch.randn_like(x), torch.rand(batch_size, 1, 1, 1)
        loss = nn.functional.mse_loss(net(t * x + (1 - t) * eps, t, y), x - eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % max(1, iters // 10) == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")

@torch.no_grad()
def sample(net, xt, y, num_steps, w=1):
    for t in torch.arange(num_steps) / num_steps:  # Euler steps from noise to images (lesson 06)
        null, cond = net(xt, t, 0 * y), net(xt, t, y)  # without label, and with label
        xt = xt + (null + w * (cond - null)) / num_steps  # guidance: w > 1 exaggerates the label
    return xt

dim, depth, lr = (128, 4, 0.004) if args.data else (48, 2, 0.015)
config = dict(size=images.shape[2], patch=4 if args.data else args.patch, channels=images.shape[1],
              num_classes=int(labels.max()), dim=dim, depth=depth, num_heads=4)
net = DiT(**config)
train(net, images, labels, args.iters, lr)
torch.save(dict(config=config, weights=net.state_dict()), "08_dit.pt")
y, noise = 1 + torch.arange(10) % config["num_classes"], torch.randn(10, *images.shape[1:])
nearest = lambda samples: torch.cdist(samples.flatten(1), images.flatten(1)).min(1)  # gaps, rows
fig, axes = plt.subplots(3, figsize=(9, 4.5), gridspec_kw={"left": 0.02, "right": 0.98})
def draw(w):
    samples, blends = sample(net, noise, y, 20, w), sample(net, noise, y, 20, 0)
    titles = [f"Samples (w = {w:.1f})", "Nearest training images", "Same noise, no label (w = 0)"]
    for ax, title, row in zip(axes, titles, [samples, images[nearest(samples)[1]], blends]):
        ax.clear()
        ax.imshow(torch.hstack([*row.movedim(1, 3)]).clamp(-1, 1).cpu() / 2 + 0.5, "gray")
        ax.set(title=title, xticks=[], yticks=[])
draw(args.w)
slider = plt.Slider(plt.axes([0.3, 0.01, 0.4, 0.04]), "guidance w", 0, 8, valinit=args.w)
slider.on_changed(draw)
fig.savefig("08_dit.png")

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
if not args.data:  # a good sample is far nearer to one of the images than they are to each other
    gap, row = nearest(sample(net, noise, y, 20, args.w))
    claim("C1", "Gap to the nearest", gap.mean(), "<", torch.pdist(images.flatten(1)).mean() / 2)
    claim("C2", "Share of right labels there", (labels[row] == y).float().mean(), ">", 0.9)
print("figure: 08_dit.png, weights: 08_dit.pt")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
