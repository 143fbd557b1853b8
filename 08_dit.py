# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""08 DiT: for the nets so far, MLPs, a transformer by hand: which parts earn their parameters?
A picture is cut into patches, each a token by one linear map (PatchEmbed). A block adds to tokens h
twice: h + gate * f((1 + scale) * norm(h) + shift), f = attention (a token takes a weighted mean of
all), then an MLP; time, digit give shift, scale, gate by a map that starts at 0 (adaLN-Zero).
C1 PatchEmbed = strided convolution  C2 a fresh block = identity. Energy distance (ED, 0 if alike):
C3 at rate .03, no warm-up: gates that start at 0 learn, at 1 not (warm-up mends some seeds)
C4 one token, an MLP 72 wide, cannot carry 256 of noise to v, C5 but asked for x it is level or wins
C6 attention cut: the two coordinates of a point (2D) come out independent; C7 causal costs, too
RUN    python 08_dit.py    (18 s; one cell of the grid alone: --model mlp --objective ddpm)
BREAK  python 08_dit.py --gates 1 --lr 3e-2    noise from all DiTs without warm-up: C3 C4 fail
PAPER  Peebles, Xie 2022, arXiv 2212.09748, section 3.2; v_sh: Salimans, Ho 2022, 2202.00512"""
import argparse
import os
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import cdist, nn, pdist
# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--model", choices=["dit", "mlp"], help="one cell alone (default: the grid)")
parser.add_argument("--objective", choices=["flow", "ddpm", "x0"], help="of that one cell")
parser.add_argument("--gates", type=float, default=0.0, help="1 breaks a high --lr (%(default)s)")
parser.add_argument("--lr", type=float, default=1e-2, help="3e-2 breaks --gates 1 (%(default)s)")
parser.add_argument("--iters", type=int, default=300, help="of a DiT; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="08_dit.png", help=".png or .pdf (%(default)s)")
args = parser.parse_args()
if not (0 <= args.gates <= 1 and 0 < args.lr <= 1 <= args.iters and 0 <= args.seed <= 2**31):
    parser.error("--gates: 0 .. 1, --lr: above 0 .. 1, --iters: from 1, --seed: 0 .. 2^31")
ok = args.out[-4:] in (".png", ".pdf") and os.access(args.out, os.W_OK) == os.path.isfile(args.out)
ok and os.access(os.path.dirname(args.out) or ".", os.W_OK) or parser.error("--out cannot be saved")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small gain little or nothing from a second thread
device = "cuda" if torch.cuda.is_available() else "cpu"
# --- data and method: 180 pictures, 10 digits x 2 fonts x 9 shifts; points: a ring
sheet = FigureCanvasAgg(plt.Figure((3.2, 5.76), dpi=100))  # 18 x 10 fields of 32 x 32 pixels
for i in range(180):  # digit i % 10, shifted by 0, 1, 2 pixels; transform=None: x, y in pixels
    x, y = 32 * (i % 10) + 6 + i // 20 % 3, 32 * (i // 10) + 4 + i // 60
    sheet.figure.text(x, y, i % 10, size=22, family=["sans", "serif"][i // 10 % 2], transform=None)
ink = torch.tensor(list(sheet.print_to_buffer()[0][::4])).view(1, 576, 320) / 127.5  # 2 is white
image = F.unfold(1 - F.avg_pool2d(ink, 2), 16, stride=16).T.view(180, 1, 16, 16).to(device)
digits = F.unfold(image, 4, stride=4).mT.flatten(1)  # (180, 256): 16 patches of 4 x 4, in a row
points = F.normalize(torch.randn(9999, 2)).to(digits) * 1.4 + 0.1 * torch.randn(9999, 2).to(digits)
def frame(cell, t):  # a, s, cx, ce: xt = a x + s eps (t = 0 is noise), target cx x + ce eps
    a, s = (t * torch.pi / 2).sin(), (t * torch.pi / 2).cos()  # ddpm: v_sh = a eps - s x
    return (a, s, -s, a) if "ddpm" in cell else (t, 1 - t, 1, -int("x0" not in cell))
# --- network: N tokens, width C, batch B; an "mlp" is a DiT of ONE token, with only itself to see
class DiTBlock(nn.Module):
    def __init__(self, dim, gate, mask=None):
        super().__init__()
        self.qkv, self.out, self.adaln = [nn.Linear(dim, k * dim) for k in (3, 1, 6)]
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))
        self.mask = mask and torch.tensor(mask, device=device) > 0  # None: each token sees all
        nn.init.zeros_(self.adaln.weight)  # at first, time and digit change nothing
        self.adaln.bias.data = torch.tensor([0, 0, gate] * 2).repeat_interleave(dim)  # two gates
    def attend(self, h):  # subtle: 4 heads become a batch dimension: qkv (3, B, 4, N, C / 4)
        qkv = self.qkv(h).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(*qkv, self.mask).transpose(1, 2).flatten(2))
    def forward(self, h, c):  # tokens h (B, N, C), condition c (B, C)
        parts = self.adaln(c)[:, None].chunk(6, 2)  # six of (B, 1, C), alike for all tokens
        for f, (shift, scale, gate) in [(self.attend, parts[:3]), (self.mlp, parts[3:])]:
            h = h + gate * f((1 + scale) * F.layer_norm(h, h.shape[2:]) + shift)
        return h
SIZES = dict(dit=(16, 16, 60, 2), mlp=(1, 256, 72, 1), dit2D=(2, 1, 16, 2), mlp2D=(1, 2, 24, 1))
MASK = {"dit2D causal": [[1, 0], [1, 1]], "dit2D cut": [[1, 0], [0, 1]]}  # row sees column
class DiT(nn.Module):
    def __init__(self, cell, gate):
        super().__init__()
        n, d, width, depth = SIZES.get(cell.split()[0], SIZES["dit"])  # n tokens of d numbers
        self.embed, self.head = nn.Linear(d, width), nn.Linear(width, d)  # embed is PatchEmbed
        self.read, self.place = nn.Linear(26, width), nn.Parameter(torch.randn(n, width) / 2)
        self.blocks = nn.ModuleList([DiTBlock(width, gate, MASK.get(cell)) for _ in range(depth)])
        nn.init.zeros_(self.head.weight)  # the first answer is nearly 0 (in the paper, just 0)
    def forward(self, xt, t, y):  # xt (B, N D), time t (B, 1), digit y (B,)
        angle = t * torch.arange(1, 9, device=device) * torch.pi / 2  # 16 waves read better than t
        c = self.read(torch.cat([angle.sin(), angle.cos(), 3 * F.one_hot(y, 10)], 1))  # (B, C)
        h = self.embed(xt.unflatten(1, (len(self.place), -1))) + self.place  # else order is lost
        for block in self.blocks:
            h = block(h, F.silu(c))  # the condition acts in each block, the picture enters once
        return self.head(F.layer_norm(h, h.shape[2:])).flatten(1)
# --- train: the pictures' MLP gets twice a DiT's iterations (in half the time) at half the rate
HIGH = {"--gates": (args.gates, 1), "gates 1": (1.0, 1), "warm-up": (1.0, 50)}  # gate; ramp of lr
CELLS = ["dit flow", "dit ddpm", "mlp flow", "mlp ddpm", "mlp x0", *HIGH, "mlp2D", "dit2D", *MASK]
nets, ed, one = {}, {}, args.model or args.objective
for cell in [f"{args.model or 'dit'} {args.objective or 'flow'}"] if one else CELLS:
    torch.manual_seed(args.seed)  # cells of one size share their start and their batches
    x, (gate, warmup) = points if "2D" in cell else digits, HIGH.get(cell, (args.gates, 1))
    net, batch, k = DiT(cell, gate).to(device), 256 if "2D" in cell else 32, 1 + ("mlp " in cell)
    lr, iters = (0.03, 100) if cell in HIGH else (args.lr / k, args.iters * k)
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99), fused=True)
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * min((i + 1) / warmup, 1) * (1 - i / iters)
        pick, t = torch.randint(len(x), (batch,)).to(device), torch.rand(batch, 1, device=device)
        (a, s, cx, ce), eps = frame(cell, t), torch.randn_like(x[pick])
        loss = (net(a * x[pick] + s * eps, t, pick % 10) - cx * x[pick] - ce * eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    nets[cell] = net.requires_grad_(False)  # trained: no graph is kept from here on
    print(f"{cell:14} {sum(p.numel() for p in net.parameters())} weights, last loss {loss:.3f}")
# --- sample and measure
def sample(cell, steps=20, n=300):  # xt, its ED to data; DDIM of lesson 07: for flow it is Euler
    torch.manual_seed(args.seed + 1)  # the same noise in every call
    n, size, y = (1000, 2, points[:1000]) if "2D" in cell else (n, 256, digits)
    xt = torch.randn(n, size, device=device)
    for t in torch.arange(steps, device=device) / steps:
        (a, s, cx, ce), (a2, s2, *_) = frame(cell, t), frame(cell, t + 1 / steps)
        out = nets[cell](xt, t.expand(n, 1), torch.arange(n, device=device) % 10)  # as target
        xt = (a2 * (ce * xt - s * out) + s2 * (a * out - cx * xt)) / (a * ce - s * cx)
    return xt, (2 * cdist(xt, y).mean() - pdist(xt).mean() - cdist(y, y).mean()).item()
conv, pixels = nn.Conv2d(1, 60, 4, stride=4).to(device).double(), image[:1].double()  # C1
h = F.linear(F.unfold(pixels, 4, stride=4).mT, conv.weight.flatten(1), conv.bias)  # (1, 16, 60)
# --- figure: left a row of digits for each cell, red where it fails; right the clouds
fig, ax = plt.subplots(figsize=(12, 5), gridspec_kw=dict(left=0.01, right=0.99, top=0.99))
slider = plt.Slider(fig.add_axes([0.3, 0.02, 0.4, 0.04]), "steps ", 1, 25, valinit=20, valstep=1)
def draw(steps):
    ax.clear()  # the slider draws here again
    for i, cell in enumerate(nets):  # 0 .. 7 digits, 8 .. 11 points
        x, ed[cell] = sample(cell, int(steps), n=100)  # C3 C4 C6 C7; 2D: 1000
        here, y = torch.tensor([17 + 5 * (i % 2), 15 - 4.2 * (i // 2)]), points[:1000].cpu()
        good = ed[cell] < (0.008 if "2D" in cell else 1)  # subtle: a sample y as good scores .002
        if "2D" in cell:
            ax.plot(*(y + here).T, "C7.", *(x.cpu() + here).T, "C0." if good else "C3.", ms=2)
        else:  # the first ten, asked for 0 .. 9, side by side
            im = torch.cat([*F.fold(x[:10].unflatten(1, (16, 16)).mT, 16, 4, stride=4)], 2)[0].cpu()
            ax.imshow(im.numpy(), "Blues" if good else "Reds", vmin=-1, extent=(0, 10, -i - 1, -i))
        ax.text(*(here - 2.3 if "2D" in cell else (10.2, -i - 0.6)), f"{cell}: ED {ed[cell]:.3f}")
    ax.set(xlim=(0, 24), ylim=(-9, 0), xticks=[], yticks=[], aspect=1, frame_on=False)
draw(20)
slider.on_changed(draw)
fig.savefig(args.out, dpi=120)
# --- claims
claims = [("C1", "PatchEmbed - conv2d", (conv(pixels).flatten(2).mT - h).abs().max(), "<", 1e-10),
    ("C2", "block - identity", (DiTBlock(60, 0.0).to(h)(h, h[:, 0]) - h).abs().max(), "<", 1e-10)]
claims += [] if one else [
    ("C3", "ED, 100 fast steps, --gates over gates 1", ed["--gates"] / ed["gates 1"], "<", 0.2),
    ("C4", "ED, MLP less DiT, both asked for v", ed["mlp flow"] - ed["dit flow"], ">", 1),
    ("C5", "ED, MLP asked for x less DiT", sample("mlp x0")[1] - sample("dit flow")[1], "<", 0.05),
    ("C6", "ED, attention cut less whole", ed["dit2D cut"] - ed["dit2D"], ">", 0.005),
    ("C7", "ED, attention causal less whole", ed["dit2D causal"] - ed["dit2D"], ">", 0.0)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
