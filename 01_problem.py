# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""01 The problem: we hold samples of an unknown density p_data and want new ones.

A density integrates to 1: p = exp(-E) / Z, E an energy, Z the integral of exp(-E) over all space.
To guess from a prior N(0, I) and weigh by w = p / prior wastes all but a share r^(d/2) of guesses.
Way out: a path xt = t x + (1 - t) eps from noise eps, t = 0, to data x, t = 1. Each pair moves at
x - eps = (x - xt) / (1 - t); learn the mean x_hat = E[x | xt] and move by dt (x_hat - xt) / (1 - t)
C1 weighing: as good as .187^(d/2) N equal weights   C2 rejection (keep by w / max w): .050^(d/2) N
C3 trained by squared error, a net that jumps from noise to data at once lands on the data's mean
C4 the same net and training, asked along the path, nears the data (energy distance, ED, 0 = equal)
C5 d = 4: 4 guesses of 5 end where log p > -5 per copy (not moved .23, a perfect net .98)
RUN    python 01_problem.py              (5 s)
BREAK  python 01_problem.py --steps 1    the path becomes one jump, all at the mean: C4, C5 fail
PAPER  Owen 2013, Monte Carlo, sections 9.3, 9.5; Lipman et al. 2022, arXiv 2210.02747, eq. 21f."""
import argparse
import math
import os
import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import Slider
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=20, help="on the path; 1 breaks it (%(default)s)")
parser.add_argument("--copies", type=int, default=2, help="d / 2; 4 breaks C5 (%(default)s)")
parser.add_argument("--iters", type=int, default=1000, help="of each net; 100 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="01_problem.png", help=".png or .pdf (%(default)s)")
args = parser.parse_args()
if not (0 < args.steps < 51 and 0 < args.copies < 5 and args.iters > 0 <= args.seed <= 2**31):
    parser.error("--steps: 1 .. 50, --copies: 1 .. 4, --iters: from 1, --seed: 0 .. 2^31")
ok = args.out[-4:] in (".png", ".pdf") and os.access(args.out, os.W_OK) == os.path.isfile(args.out)
ok and os.access(os.path.dirname(args.out) or ".", os.W_OK) or parser.error("--out cannot be saved")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small gain little or nothing from a second thread
device = "cuda" if torch.cuda.is_available() else "cpu"

# --- data: two moons, 64 Gaussians. Why 2D: p_data is a formula here, and every error can be seen
th = (torch.arange(32, dtype=torch.float64) + 0.5) * math.pi / 32
MU = torch.stack([torch.cat([th.cos(), 1 - th.cos()]), torch.cat([th.sin(), 0.5 - th.sin()])], 1)
SCALE = (0.09**2 + MU.var(0, correction=0).mean()).sqrt().item()  # makes the mean variance 1
MU, SD = ((MU - MU.mean(0)) / SCALE).to(device), 0.09 / SCALE  # (64, 2) centres, one std

def moons(n, generator=None):
    """n samples of p_data, (n, 2)."""
    i = torch.randint(64, (n,), generator=generator, device=device)
    return MU[i].float() + SD * torch.randn(n, 2, generator=generator, device=device)

def log_p(x):
    """log p_data of x (B, 2) -> (B,): nobody has it for images; in 2D it checks what we learn."""
    near = -torch.cdist(x, MU.to(x)) ** 2 / (2 * SD**2)  # (B, 64)
    return near.logsumexp(1) - math.log(64 * 2 * math.pi * SD**2)

# --- method: guess from the prior and weigh; d dimensions are d/2 independent copies of the moons
EFFECTIVE, KEPT = 0.186874, 0.049856  # 1 / E[w^2], 1 / max w of one copy, from a fine grid in 2D
N = 100_000  # guesses: rejection should keep 4986, 249, 12.4 and .6 of them in d = 2, 4, 6 and 8
D = 2 * args.copies  # dimensions in which the two nets are trained
noise = torch.Generator(device).manual_seed(args.seed)  # its own: --iters cannot move these draws
guess = torch.randn(N, 8, generator=noise, device=device)
log_w = [log_p(xy) + (xy**2).sum(1) / 2 + math.log(2 * math.pi) for xy in guess.split(2, 1)]
w = torch.stack(log_w, 1).cumsum(1).double().exp().cpu()  # (N, 4): product of 1 .. 4 copies
m = torch.arange(1, 5)  # the copies in each column: d = 2 m
effective = w.mean(0) ** 2 / (w**2).mean(0)  # (4,): this share of equal weights is worth as much
kept = (torch.rand(N, 1, generator=noise, device=device).cpu() < w * KEPT**m).sum(0)  # (4,)
off = (effective ** (1 / m) / EFFECTIVE - 1).abs()[:3]  # C1; in d = 8 a few weights decide all
sigma = (kept - N * KEPT**m).abs() / (1 + N * KEPT**m).sqrt()  # C2; std of a count, 1 for tiny ones

# --- network: xt and its time (B, D + 1) -> x_hat (B, D), once for the jump, once for the path
jump, path = [nn.Sequential(
    nn.Linear(D + 1, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(),
    nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, D)).to(device) for _ in range(2)]

# --- train: both nets at once; they share the batches and no weight
weights = [*jump.parameters(), *path.parameters()]
optimizer = torch.optim.Adam(weights, betas=(0.9, 0.95), fused=True)  # fused: the same, faster
for i in range(args.iters):
    optimizer.param_groups[0]["lr"] = 3e-2 * (1 - i / args.iters)  # large, as it falls to 0
    x = moons(512 * args.copies).view(512, D)
    eps, t = torch.randn_like(x), torch.rand_like(x[:, :1])
    # subtle: eps is drawn apart from x, so at t = 0 the best answer in L2 is the mean of all data
    loss_jump = (jump(torch.cat([eps, 0 * t], 1)) - x).square().mean()  # over dimensions
    loss_path = (path(torch.cat([t * x + (1 - t) * eps, t], 1)) - x).square().mean()
    optimizer.zero_grad()
    (loss_jump + loss_path).backward()
    optimizer.step()
    if (i + 1) % max(1, args.iters // 8) == 0:
        print(f"iter {i + 1:5d}  jump {loss_jump:.3f} (floor 1: var of x)  path {loss_path:.3f}")

# --- sample
@torch.no_grad()
def carry(net, x, n_steps):
    """Carry x (B, D) from t = 0 to t = 1 in n_steps, each towards where the net sees the data."""
    for i in range(n_steps):  # t = i / n_steps, so dt / (1 - t) = 1 / (n_steps - i)
        x_hat = net(torch.cat([x, torch.full_like(x[:, :1], i / n_steps)], 1))
        x = x + (x_hat - x) / (n_steps - i)
    return x

# --- measure
def energy_distance(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'|, unbiased: 0 if x (n, 2), y (m, 2) share one density."""
    def total(p, q):  # strips of 500 rows stay in the cache
        return sum(torch.cdist(strip, q).sum().item() for strip in p.split(500))
    n, m = len(x), len(y)
    return 2 * total(x, y) / (n * m) - total(x, x) / (n * (n - 1)) - total(y, y) / (m * (m - 1))

start, real = torch.randn(4000, D, generator=noise, device=device), moons(4000, noise)
landed = carry(jump, start, 1)  # C3; one step from t = 0 is x_hat itself

# --- figure
fig, (left, right) = plt.subplots(1, 2, figsize=(12, 5), gridspec_kw={"bottom": 0.24, "wspace": .1})
slider = Slider(fig.add_axes([0.6, 0, 0.2, 0.1]), "steps   ", 1, 50, valinit=args.steps, valstep=1)
left.semilogy(2 * m, EFFECTIVE**m, "k--", 2 * m, effective, "C1o")  # C1: tab:orange
left.semilogy(2 * m, KEPT**m, "k--", 2 * m, kept / N, "C1s")
left.set(xlabel="d", ylabel="share: effective o, kept s", title=f"kept of {N:,}: {kept.tolist()}")
right.plot(*real.T.cpu(), "C7.", ms=2)
right.plot(*landed[:, :2].T.cpu(), "o", color="tab:orange", zorder=3)  # on top of the path
cloud, = right.plot([], [], ".", ms=2)
right.set(aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xlabel="first 2 of d (orange: jump)")

def draw(_):
    """Redraw; ED of the first copy; share home: log p > -5 in each copy (real: .994 a copy)."""
    x = carry(path, start, int(slider.val))  # (4000, D), C5
    ed = energy_distance(x[:, :2], real)  # C4
    home = torch.stack([log_p(xy) > -5 for xy in x.split(2, 1)], 1).all(1).double().mean().item()
    cloud.set_data(*x[:, :2].T.cpu())
    cloud.set_color("tab:blue" if ed < 0.012 else "tab:red")  # .020: a plain Gaussian
    right.set_title(f"path, d = {D}, {slider.val} steps: ED {ed:.4f}, {home:.0%} home")
    return ed, home

ed, home = draw(0)
slider.on_changed(draw)
fig.savefig(args.out, dpi=120)

# --- claims
claims = [("C1", "effective share per copy, d = 2, 4, 6, error", off.max().item(), "<", 0.3),
          ("C2", "kept guesses less expected, in sigma", sigma.max().item(), "<", 5),
          ("C3", "std of where the jump lands, largest", landed.std(0).max().item(), "<", 0.05),
          ("C4", f"ED, path (jump: {energy_distance(landed[:, :2], real):.2f})", ed, "<", 0.012),
          ("C5", f"share of guesses carried home in all {D} dimensions", home, ">", 0.6)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
