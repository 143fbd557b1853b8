# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""08 DiT: a transformer that generates images, trained on ten digits or on your own images.

A diffusion transformer (DiT) makes each patch of a noisy image a token. Attention lets the tokens
see each other, so that the patches fit together. It learns the velocity, image minus noise.

RUN    python 08_dit.py             (12 seconds; move the slider, or try your own --data FOLDER)
BREAK  python 08_dit.py --patch 16  (C1 and C3 fail: one token is too small for 256 pixels)
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

def load_image(path, size):  # the central square of a png or jpg, on white, from -1 to 1
    rgba = plt.cm.ScalarMappable(cmap="gray").to_rgba(plt.imread(path, "jpg"), norm=False)
    top, left = [(length - min(rgba.shape[:2])) // 2 for length in rgba.shape[:2]]
    rgba = torch.tensor(rgba[top:len(rgba) - top, left:rgba.shape[1] - left]).movedim(2, 0).float()
    return nn.functional.adaptive_avg_pool2d(1 - 2 * rgba[3] * (1 - rgba[:3]), size)  # (3, ...)

images = 1 - 2 * torch.stack([draw_digit(d, font) for font in FONTS for d in "0123456789"])[:, None]
labels = 1 + torch.arange(40) % 10  # images: (40, 1, 16, 16), from -1 to 1. Label 0: no label
if args.data:
    paths = [p for p in sorted([args.data, *args.data.rglob("[!.]*")]) if not any(p.glob("[!.]*"))]
    try:
        images = torch.stack([load_image(file := path, args.size) for path in paths])
    except Exception as error:
        parser.error(f"--data: {file}: {error}; needed are png or jpg images, one folder per class")
    folders = sorted({path.parent for path in paths})
    labels = torch.tensor([1 + folders.index(path.parent) for path in paths])

# --- Model. In attention, each token adds up the values of all tokens, weighted by how well their
# keys match its query. By adaLN, time and label scale and shift the input, and gate the output.
class Block(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)  # adaLN brings scale and shift
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.adaLN = nn.Linear(dim, 6 * dim, bias=False)
        nn.init.zeros_(self.adaLN.weight)  # all gates are 0, so a new block is the identity

    def forward(self, x, c):  # (B, N, dim), (B, dim)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN(c)[:, None].chunk(6, 2)
        if self.num_heads:  # with 0 heads, no token sees another one
            qkv = self.qkv(self.norm(x) * (1 + scale1) + shift1)  # (B, N, 3 dim)
            q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            values = (q @ k.mT / k.shape[3] ** 0.5).softmax(3) @ v  # (B, num_heads, N, width)
            x = x + gate1 * self.out(values.transpose(1, 2).flatten(2))  # (B, N, dim)
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)

class DiT(nn.Module):
    def __init__(self, size, patch, channels, num_classes, dim, depth, num_heads):
        super().__init__()
        self.patchify = nn.Conv2d(channels, dim, patch, patch)  # PatchEmbed, one matrix product
        self.position = nn.Parameter(torch.randn((size // patch) ** 2, dim))  # (N, dim)
        self.time, self.label = nn.Linear(1, dim), nn.Embedding(1 + num_classes, dim)
        self.blocks = nn.ModuleList([Block(dim, num_heads) for _ in range(depth)])
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, channels * patch**2))
        self.unpatchify = nn.Fold(size, patch, stride=patch)  # joins the patches again

    def forward(self, xt, t, y):  # (B, channels, size, size), a number or B of them, (B,)
        c = nn.functional.silu(self.time(torch.as_tensor(t).view(-1, 1)) + self.label(y))
        x = self.patchify(xt).flatten(2).mT + self.position  # (B, N, dim)
        for block in self.blocks:
            x = block(x, c)
        return self.unpatchify(self.head(x).mT)  # velocities, shaped like xt

def train(net, images, labels, iters, lr, batch_size=32):
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        row = torch.randint(len(images), [batch_size])
        x, y = images[row], labels[row] * (torch.rand(batch_size) > 0.1)  # drops one label in ten
        eps, t = torch.randn_like(x), torch.rand(batch_size, 1, 1, 1)  # t = 0 is noise, 1 is data
        loss = nn.functional.mse_loss(net(t * x + (1 - t) * eps, t, y), x - eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i * 10 % iters < 10:  # ten times
            print(f"iteration {i} of {iters}: loss {loss:.4f}")

@torch.no_grad()
def sample(net, xt, y, num_steps, w=1):  # Euler steps from noise xt to images (lesson 06)
    for t in torch.arange(num_steps) / num_steps:
        null, cond = net(xt, t, 0 * y), net(xt, t, y)  # guidance: without label, with label
        xt = xt + (null + w * (cond - null)) / num_steps  # w > 1 exaggerates the label
    return xt

size, dim, depth, lr = (args.size, 128, 4, 0.004) if args.data else (16, 48, 2, 0.015)
config = size, 4 if args.data else args.patch, images.shape[1], int(labels.max()), dim, depth
nets = {f"DiT with {n} attention heads": DiT(*config, n) for n in ([4] if args.data else [0, 4])}
for net in nets.values():
    train(net, images, labels, args.iters, lr)
torch.save({"config": (*config, 4), "weights": net.state_dict()}, "08_dit.pt")
first = ([labels.tolist().index(label) for label in labels.unique()] * 10)[:10]
y, noise = labels[first], torch.randn_like(images[first])  # for ten images, from each class in turn
fig, axes = plt.subplots(1 + len(nets), figsize=(9, 4.5), gridspec_kw={"left": 0.02, "right": 0.98})
def draw(w):
    rows = [images[first]] + [sample(net, noise, y, 20, w) for net in nets.values()]
    for ax, row, title in zip(axes, rows, ["Training images: their patches fit together", *nets]):
        ax.imshow(torch.hstack([*row.movedim(1, 3)]).clamp(-1, 1).cpu() / 2 + 0.5, "gray")
        ax.set(title=title, xticks=[], yticks=[])
draw(args.w)
slider = plt.Slider(plt.axes([0.3, 0.01, 0.4, 0.04]), "guidance w", 0, 8, valinit=args.w)
slider.on_changed(draw)
fig.savefig("08_dit.png")

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
if not args.data:
    samples = torch.stack([sample(net, noise, y, 20, args.w) for net in nets.values()])
    gap, row = torch.cdist(samples.flatten(2), images.flatten(1)).min(2)  # (2, 10), nearest image
    claim("C1", "Gap to the data", gap[1].mean(), "<", torch.pdist(images.flatten(1)).mean() / 2)
    claim("C2", "Share of right labels there", (labels[row[1]] == y).float().mean(), ">", 0.9)
    claim("C3", "Gap without attention", gap[0].mean(), ">", 1.25 * gap[1].mean())
print("figure: 08_dit.png, weights: 08_dit.pt")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
