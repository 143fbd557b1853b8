# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""07 Bridge: DDPM is flow matching on a curved path, with a stochastic sampler.
Both noise the data as xt = a x + s eps: DDPM on the arc a^2 + s^2 = 1, flow matching on the chord
a + s = 1. Dividing xt by r = sqrt(a^2 + s^2) lays the chord on the arc: ONE eps-net serves both.
C1 float64: eps -> v -> eps, and DDPM's probability-flow ODE, score = -eps / s, is the velocity v
C2 an ancestral step is Euler-Maruyama's on the reverse SDE, + O(T^-1.5)   C3 the net is -s score
C4 eta = 0 (ODE), 1 (ancestral) both reach the data in 200 steps   C5 in 10 steps the ODE is nearer
C6 the same net, not retrained, walks the chord no worse than the arc (20 steps, eta = 0)
C7 DDIM (arc, eta = 0) needs 12x fewer calls to energy distance ED .005 than the chain has: 1000
RUN    python 07_bridge.py             (15 s)
BREAK  python 07_bridge.py --forget    xt is not divided by r: red moons off the grey ones, C6 fails
PAPER  Song 2020, arXiv 2010.02502, eq. 12 (DDIM); Song 2020, 2011.13456, eq. 6, 11, 13 (SDE, ODE)
"""
import argparse
import math
import os
import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import Slider
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=20, help="solver steps; 3 breaks it (%(default)s)")
parser.add_argument("--eta", type=float, default=0.0, help="0 = ODE .. 1 = ancestral (%(default)s)")
parser.add_argument("--forget", action="store_true", help="no division by r: breaks the chord")
parser.add_argument("--iters", type=int, default=2500, help="a training; 100 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="07_bridge.png", help="figure, .png or .pdf (%(default)s)")
args = parser.parse_args()
if not (1 <= args.steps <= 200 and 0 <= args.eta <= 1 <= args.iters and 0 <= args.seed <= 2**31):
    parser.error("--steps must lie in 1 .. 200, --eta in 0 .. 1, --iters from 1, --seed from 0")
if args.out[-3:] not in ("png", "pdf") or not os.access(os.path.dirname(args.out) or ".", os.W_OK):
    parser.error(f"--out {args.out}: no .png or .pdf can be written there")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small run faster on one thread than on two
device = "cuda" if torch.cuda.is_available() else "cpu"

# --- data: two moons as 64 Gaussians of one width, so that densities and scores are closed forms
th = (torch.arange(32, dtype=torch.float64) + 0.5) * math.pi / 32
MU = torch.stack([torch.cat([th.cos(), 1 - th.cos()]), torch.cat([th.sin(), 0.5 - th.sin()])], 1)
SCALE = (0.09**2 + MU.var(0, correction=0).mean()).sqrt().item()  # makes the mean variance 1
MU, SD = ((MU - MU.mean(0)) / SCALE).to(device), 0.09 / SCALE  # (64, 2) centres, one std
data = MU.float().repeat(2000, 1) + SD * torch.randn(128_000, 2, device=device)  # all the samples

def log_density(xt, a, s):
    """log density of xt = a x + s eps, (B,): the 64 Gaussians moved by a and widened by s."""
    var, square = (a * SD) ** 2 + s**2, (xt[:, None] - a[:, None] * MU).square().sum(2)  # (B, 64)
    return (-square / (2 * var) - (128 * math.pi * var).log()).logsumexp(1)

# --- method: noise levels (a, s) by the DDPM clock k = 1000 (noise) .. 0 (data), and one step
def noise_levels(k, chord=False):
    """(a, s) on DDPM's arc (beta .0001 .. .02) or on flow matching's chord, a = t and s = 1 - t."""
    abar, t = (-1e-4 * k - 9.95e-6 * k**2).exp(), 1 - 0.97e-3 * k  # t >= .03: step divides by a
    return (t, 1 - t) if chord else (abar.sqrt(), (1 - abar).sqrt())

def ddim_step(xt, eps, a, s, a2, s2, eta, z):
    """From (a, s) to (a2, s2) with fresh noise z: DDIM's eq. 12, on any path."""
    std = eta * s2 * (1 - (a * s2 / (a2 * s)) ** 2).sqrt()  # eta = 1: the posterior's, beta tilde
    return a2 * (xt - s * eps) / a + (s2**2 - std**2).sqrt() * eps + std * z  # subtle: eps pays z

# --- network and train
net = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64),
                    nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)).to(device)

def eps_net(xt, a, s):
    """E[eps | xt] on any path: xt / r lies on the arc, and the clock tells the ray a : s alone."""
    r = (a**2 + s**2).sqrt()  # subtle: 1 on the arc, so training never misses it
    clock = torch.cat([s / r, (a / s).log() / 2], -1).expand(len(xt), 2)  # half the log-SNR
    return net(torch.cat([xt if args.forget else xt / r, clock], 1))
optimizer = torch.optim.Adam(net.parameters(), fused=True)
for i in range(args.iters):
    optimizer.param_groups[0]["lr"] = 2e-2 * (1 - i / args.iters)  # large, as it falls to 0
    a, s = noise_levels(torch.randint(1, 1001, (512, 1), device=device))  # the arc only
    x, eps = data[torch.randint(len(data), (512,))], torch.randn(512, 2, device=device)
    loss = (eps_net(a * x + s * eps, a, s) - eps).square().mean()  # L_simple
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (i + 1) % max(1, args.iters // 8) == 0:
        print(f"iter {i + 1:5d}  loss {loss.item():.4f}  (at best .226: eps is not in xt alone)")

# --- sample and measure
torch.manual_seed(args.seed + 1)  # one noise for every sampler, whatever --iters was
real, noise = data[torch.randint(len(data), (2500,))], torch.randn(2500, 2, device=device)
@torch.no_grad()
def walk(n, eta, chord=False):
    """n steps from noise to data, (2500, 2)."""
    a, s = noise_levels(torch.linspace(1000, 0, n + 1, device=device)[:, None], chord)
    xt = (a[0] ** 2 + s[0] ** 2).sqrt() * noise
    for level in zip(a, s, a[1:], s[1:]):
        xt = ddim_step(xt, eps_net(xt, *level[:2]), *level, eta, torch.randn_like(xt))
    return xt

def to_real(x):
    """Energy distance 2 E|x - y| - E|x - x'| - E|y - y'| of x (n, 2) to real data y, unbiased."""
    return float(2 * torch.cdist(x, real).mean() - torch.pdist(x).mean() - torch.pdist(real).mean())

k = 20 + 980 * torch.rand(2500, 1, dtype=torch.float64, device=device)
(a, s), (a1, s1) = torch.func.jvp(noise_levels, (k,), (0 * k - 1000,))  # d/dt = -1000 d/dk
xt, beta, z = (a * real + s * noise).requires_grad_(), 0.1 + 19.9e-3 * k, noise.flip(0)
eps = -s * torch.autograd.grad(log_density(xt, a, s).sum(), xt)[0]  # -s * exact score
v = a1 / a * (xt - s * eps) + s1 * eps
errors = [(a1 * xt - a * v) / (a1 * s - a * s1) - eps, beta / 2 * (xt - eps / s) - v]  # C1
n = torch.tensor([100.0, 1000.0], device=device)[:, None, None]  # two lengths T of the chain
euler = xt + beta / n * (xt / 2 - eps / s) + (beta / n).sqrt() * z  # C2
learned = (eps_net(xt.float(), a.float(), s.float()) - eps).square().mean()  # C3
gap = (ddim_step(xt, eps, a, s, *noise_levels(k - 1000 / n), 1, z) - euler).norm(dim=(1, 2))

# --- figure
fig, axes = plt.subplots(1, 3, figsize=(12, 4.8), gridspec_kw={"bottom": 0.26, "wspace": 0.3})
GRID, ed, calls = [5, 10, 20, 40, 80, 200], {}, {}
for name, eta, chord in [("DDIM", 0, False), ("ancestral", 1, False), ("chord", 0, True)]:
    ed[name] = [to_real(walk(n, eta, chord)) for n in GRID]  # C4 C5 C6
    calls[name] = min([n for n, d in zip(GRID, ed[name]) if d < 0.005], default=math.inf)  # C7
    print(f"{name:<9} ED", *[f"{d:7.4f}" for d in ed[name]], f" .005 after {calls[name]} calls")
    axes[2].loglog(GRID, [max(d, 5e-4) for d in ed[name]], "o-", label=f"{name}: {calls[name]}")
axes[2].set(xlabel="calls of the net (5e-4 is noise)", title="ED to real data (calls to .005)")
axes[2].legend()
steps = Slider(fig.add_axes([0.1, 0.07, 0.3, 0.04]), "steps", 1, 200, valinit=args.steps, valstep=1)
eta = Slider(fig.add_axes([0.55, 0.07, 0.3, 0.04]), "eta  ", 0, 1, valinit=args.eta)

def draw(_):
    for ax, chord, name in zip(axes, (False, True), ("DDPM's arc: ED", "straight chord: ED")):
        x = walk(int(steps.val), eta.val, chord)
        ax.clear()
        colour = "tab:red" if args.forget and chord else "tab:blue"
        ax.plot(*real.T, "0.6", *x.T, colour, marker=".", ms=2, ls="")
        ax.set(title=f"{name} {to_real(x):.4f}", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal")
draw(0)
steps.on_changed(draw)
eta.on_changed(draw)
fig.savefig(args.out, dpi=120)

# --- claims
claims = [("C1", "worst error of eps, ODE", max(e.abs().max().item() for e in errors), "<", 1e-10),
    ("C2", "order of the step's gap in 1 / T", (gap[0] / gap[1]).log10().item(), ">", 1.4),
    ("C3", "mean (eps_hat + s score)^2 (predicting 0: .77)", learned.item(), "<", 0.005),
    ("C4", "ED at 200 steps, eta 0 or 1", max(ed["DDIM"][-1], ed["ancestral"][-1]), "<", 0.008),
    ("C5", "ED at 10 steps, eta 1 minus eta 0", ed["ancestral"][1] - ed["DDIM"][1], ">", 0.0),
    ("C6", "ED at 20 steps, chord minus arc", ed["chord"][2] - ed["DDIM"][2], "<", 0.003),
    ("C7", "1000 calls over DDIM's calls to ED .005", 1000 / calls["DDIM"], ">", 12)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
