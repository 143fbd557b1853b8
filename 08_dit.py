# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""08 DiT: a diffusion transformer that generates images, trained on ten digits or your own images.

On the line xt = t x + (1 - t) eps, noise eps moves to an image x at velocity x - eps. At each xt,
many lines cross, and the net learns their mean velocity (lesson 05). One big step ends at a blur,
the mean of many images. In small steps, fewer and fewer images fit xt, and it becomes one of them.
RUN    python 08_dit.py          (11 seconds; move the slider, or try your own --data FOLDER)
BREAK  python 08_dit.py --dim 8  (C1 and C2 fail: the tokens are too narrow for their patches)
PAPER  arXiv 2212.09748, section 3.2 (DiT); 2207.12598, equation 6 (guidance: its w is our w - 1)"""
import argparse, pathlib, signal
import matplotlib.pyplot as plt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--data", type=pathlib.Path, help="a subfolder per class (default: digits)")
parser.add_argument("--size", type=int, choices=range(16, 65, 4), default=28, help="for --data")
parser.add_argument("--dim", type=int, choices=[8, 48, 128], help="numbers per token")
parser.add_argument("--w", type=float, default=2, help="guidance weight (default: %(default)s)")
parser.add_argument("--iters", type=int, default=800, help="training iterations (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (0 <= args.w <= 8 and 1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--w must be 0 to 8, --iters 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core
torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")

# A block changes the tokens x twice, by x + gate * f(norm(x) * (1 + scale) + shift). The first f is
# attention, a weighted mean over all tokens, and the second is an MLP, on each token alone. Time
# and label set shift, scale, gate. Gates start at 0 (adaLN-Zero), so a new block does nothing yet.
class Block(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.qkv = nn.Sequential(nn.Linear(dim, 3 * dim), nn.Unflatten(2, (3, num_heads, -1)))
        self.out, self.adaLN = nn.Linear(dim, dim), nn.Parameter(torch.zeros(dim, 6 * dim))
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x, c):  # N tokens (B, N, dim), and time and label (B, dim)
        shift1, scale1, gate1, shift2, scale2, gate2 = (c @ self.adaLN)[:, None].chunk(6, 2)
        q, k, v = self.qkv(self.norm(x) * (1 + scale1) + shift1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / k.shape[3] ** 0.5).softmax(3)  # (B, heads, N, N), bidirectional
        x = x + gate1 * self.out((weights @ v).transpose(1, 2).flatten(2))  # (B, N, dim)
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)

# Why patches? The noise in x - eps has 256 numbers. One token of 48 can't carry them, 16 can.
class DiT(nn.Module):
    def __init__(self, size, patch, channels, num_classes, dim, depth, num_heads=4):
        super().__init__()
        self.patchify = nn.Conv2d(channels, dim, patch, patch)  # the same matrix for all patches
        self.position = nn.Parameter(torch.randn((size // patch) ** 2, dim))  # (N, dim)
        self.time, self.label = nn.Linear(1, dim), nn.Embedding(1 + num_classes, dim)
        self.blocks = nn.ModuleList([Block(dim, num_heads) for _ in range(depth)])
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, channels * patch**2))
        self.unpatchify = nn.Fold(size, patch, stride=patch)  # puts the patches side by side

    def forward(self, xt, t, y):  # (B, channels, size, size), one t or B of them, (B,)
        c = nn.functional.silu(self.time(torch.as_tensor(t).view(-1, 1)) + self.label(y))
        x = self.patchify(xt).flatten(2).mT + self.position  # (B, N, dim)
        for block in self.blocks:
            x = block(x, c)
        return self.unpatchify(self.head(x).mT)  # velocities, shaped like xt

def train(net, images, labels, iters, lr, batch_size=32):
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        batch = torch.randint(len(images), [batch_size])
        x, y = images[batch], labels[batch] * (torch.rand(batch_size) > 0.1)  # drops 1 in 10
        eps, t = torch.randn_like(x), torch.rand(batch_size, 1, 1, 1)
        xt = t * x + (1 - t) * eps
        loss = nn.functional.mse_loss(net(xt, t, y), x - eps)  # lowest for the mean velocity
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % max(1, iters // 10) == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net.requires_grad_(False)

# Guidance adds, to the velocity without a label, w times the difference that the label makes.
def sample(net, xt, y, num_steps, w=1):
    for t in torch.arange(num_steps) / num_steps:  # Euler steps (lesson 06), from noise to images
        null, cond = net(xt, t, 0 * y), net(xt, t, y)  # without label (0), and with label
        xt = xt + (null + w * (cond - null)) / num_steps  # w > 1 exaggerates the label
    return xt

FONTS = ["DejaVu Sans", "DejaVu Serif", "STIXGeneral", "cmss10"]  # they come with matplotlib
def draw_digit(digit, font, size=16):
    """Return a digit as an image of shape (size, size), where 1 is ink and 0 is paper."""
    canvas = FigureCanvasAgg(plt.Figure(figsize=(1, 1), dpi=size))  # one inch, so size pixels
    canvas.figure.text(0.5, 0.5, digit, font=font, size=80, ha="center", va="center_baseline")
    canvas.draw()
    return 1 - torch.tensor(canvas.buffer_rgba().tolist())[:, :, 0] / 255  # red equals green, blue

def load_image(path, size):  # png or jpg, as (3, size, size), where 1 is white and -1 is black
    rgba = plt.cm.ScalarMappable(cmap="gray").to_rgba(plt.imread(path), norm=False)  # 0 to 1
    ink = torch.tensor(rgba[..., 3:] * (1 - rgba[..., :3])).float().movedim(2, 0)  # (3, H, W)
    return 1 - 2 * nn.functional.adaptive_avg_pool2d(ink, size)  # transparent is white

images = 1 - 2 * torch.stack([draw_digit(d, font) for font in FONTS for d in "0123456789"])[:, None]
labels = 1 + torch.arange(40) % 10  # 1 to 10, for the digits 0 to 9. Label 0 means "no label"
if args.data:
    files = sorted(path for path in args.data.rglob("[!.]*") if path.is_file()) or [args.data]
    try:
        images = torch.stack([load_image(file := path, args.size) for path in files])
    except Exception as error:  # file is the one that failed
        parser.error(f"--data: {file}: {error}; use png or jpg images")
    classes = sorted({file.parent for file in files})
    labels = torch.tensor([1 + classes.index(file.parent) for file in files])

dim, depth, lr = (args.dim or 128, 4, 0.004) if args.data else (args.dim or 48, 2, 0.015)
num_classes, channels, size = int(labels.max()), *images.shape[1:3]
config = dict(size=size, patch=4, channels=channels, num_classes=num_classes, dim=dim, depth=depth)
net = train(DiT(**config), images, labels, args.iters, lr)
one_token = train(DiT(**dict(config, patch=size)), images, labels, args.iters, lr)
y, noise = 1 + torch.arange(40) % num_classes, torch.randn(40, channels, size, size)
fig, ax = plt.subplots(figsize=(10, 6), layout="constrained")
grid = ax.imshow([[0, 1]], "gray", extent=(0, 10, 5.5, -0.5))  # 0 is black, and 1 is white
ax.set(title="Twenty steps sharpen images, if tokens can carry the noise", xticks=[])
ax.set_yticks(range(6), ["training data", f"noise, {noise[0].numel()} numbers", "1 step, no label",
    "1 step, label", f"20 steps, {len(net.position)} tokens of {dim}", "the same, 1 token"])
def draw(w, eps=noise[:10], y=y[:10]):  # one step from noise ends in the mean image: a blur
    rows = [images[(labels == y[:, None]).int().argmax(1)], eps, sample(net, eps, y, 1, 0)]
    rows += [sample(net, eps, y, 1), sample(net, eps, y, 20, w), sample(one_token, eps, y, 20, w)]
    pixels = nn.ConstantPad2d(1, 1)(torch.stack(rows)).permute(0, 3, 1, 4, 2)  # with white frames
    grid.set_data(pixels.flatten(2, 3).flatten(0, 1).cpu().clamp(-1, 1) / 2 + 0.5)  # (6 H, 10 W, C)
draw(args.w)
slider = plt.Slider(plt.axes([0.4, 0, 0.3, 0.04]), "guidance w (0: no label)", 0, 8, valinit=args.w)
slider.on_changed(draw)
fig.savefig("08_dit.png")

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
if args.data:
    torch.save([config, net.state_dict()], "08_dit.pt")
else:  # these 40 images are all the data, so good samples copy them
    ends = torch.stack([sample(model, noise, y, 20, args.w) for model in (net, one_token)])
    gap, nearest = torch.cdist(ends.flatten(2), images.flatten(1)).min(2)  # (2, 40) each
    claim("C1", "Share of right digits", (labels[nearest[0]] == y).float().mean(), ">", 0.9)
    claim("C2", "Gap to nearest image, one token over DiT", gap[1].mean() / gap[0].mean(), ">", 2)
print("figure: 08_dit.png (and with --data, the weights: 08_dit.pt)")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
