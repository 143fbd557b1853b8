# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""07 Bridge: DDPM is flow matching on a curved path, with a stochastic sampler.
Both noise the data as xt = a x + s eps: DDPM on the arc a^2 + s^2 = 1, flow matching on the chord
a + s = 1. Divided by r = sqrt(a^2 + s^2) the chord lies on the arc, so ONE net for E[eps | xt] has
both. A DDIM step (denoising diffusion implicit model) changes (a, s); a share eta of its noise is
fresh: eta = 0 is an ODE (lesson 06), eta = 1 the ancestral step with beta~ (lesson 04).
C1 algebra, any eps: eps -> v -> eps; v = a' x + s' eps is DDPM's ODE where the score is -eps / s
C2 eta = 1 is a step of DDPM's stochastic equation (reverse SDE) up to O(T^-1.5)   C3 the net is
-s score   C4 eta = 0 and 1 reach the data   C5 in 10 steps eta = 0 is nearer, and C7 40 of them
equal all 1000 of eta = 1   C6 not retrained, the net walks the chord no worse: the same ODE
RUN    python 07_bridge.py             (5 s; sliders: steps, eta)
BREAK  python 07_bridge.py --forget    xt is not divided by r: red moons off the grey ones, C6 fails
PAPER  J. Song 2010.02502, eq. 12, 16 (DDIM); Y. Song 2011.13456, eq. 6, 11, 13 (SDEs and ODE)"""
import argparse
import math
import os
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.autograd.functional import jvp

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=20, help="of the clouds; 3 is poor (%(default)s)")
parser.add_argument("--forget", action="store_true", help="no division by r: breaks the chord")
parser.add_argument("--iters", type=int, default=1000, help="of training; 100 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="07_bridge.png", help=".png or .pdf (%(default)s)")
args = parser.parse_args()
if not (1 <= args.steps <= 200 and 1 <= args.iters <= 100_000 and 0 <= args.seed <= 2**31):
    parser.error("--steps: 1 .. 200, --iters: 1 .. 100000, --seed: 0 .. 2^31")
ok = args.out[-4:] in (".png", ".pdf") and os.access(args.out, os.W_OK) == os.path.isfile(args.out)
ok and os.access(os.path.dirname(args.out) or ".", os.W_OK) or parser.error("--out cannot be saved")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small gain little or nothing from a second thread
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
    return (-square / (2 * var) - (64 * 2 * math.pi * var).log()).logsumexp(1)

# --- method: noise levels (a, s) by the DDPM clock k = 1000 (noise) .. 0 (data), and one step
def noise_levels(k, chord=False):
    """(a, s) on DDPM's arc (lesson 04's abar) or on flow matching's chord, a = t and s = 1 - t."""
    abar, t = (-1e-4 * k - 9.95e-6 * k**2).exp(), 1 - 0.97e-3 * k  # t >= .03: a step divides by it
    return (t, 1 - t) if chord else (abar.sqrt(), (1 - abar).sqrt())
def ddim_step(xt, eps_hat, a, s, a2, s2, eta, z):
    """(a, s) to (a2, s2), z fresh: eq. 12. On the chord, eta = 0: xt + dt (x_hat - eps_hat)."""
    std = eta * s2 * (1 - (a * s2 / (a2 * s)) ** 2).sqrt()  # eq. 16; eta = 1: lesson 04's beta~
    old = (s2**2 - std**2).sqrt() * eps_hat  # subtle: old and fresh noise together have std s2
    return a2 * (xt - s * eps_hat) / a + old + std * z

# --- network and train
hidden = [m for i in (4, 32, 32, 32) for m in (nn.Linear(i, 32), nn.SiLU())]
for layer in hidden[::2]:
    nn.init.kaiming_normal_(layer.weight)  # nn.Linear's own, smaller start takes longer
net = nn.Sequential(*hidden, nn.Linear(32, 2)).to(device)
def eps_net(xt, a, s):
    """eps_hat (B, 2) on any path: xt / r lies on the arc, the clock tells the ratio a : s alone."""
    r = (a**2 + s**2).sqrt()  # subtle: 1 on the arc, so training never misses it
    clock = torch.cat([s / r, (a / s).log() / 2], -1).expand(len(xt), 2)  # log(a^2 / s^2) / 4
    return net(torch.cat([xt if args.forget else xt / r, clock], 1))
optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95), fused=True)
for i in range(args.iters):
    optimizer.param_groups[0]["lr"] = 3e-2 * (1 - i / args.iters)  # large, as it falls to 0
    a, s = noise_levels(torch.randint(1, 1001, (1024, 1), device=device))  # the arc only
    x, eps = data[torch.randint(len(data), (1024,))], torch.randn(1024, 2, device=device)
    loss = (eps_net(a * x + s * eps, a, s) - eps).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (i + 1) % max(1, args.iters // 8) == 0:
        print(f"iter {i + 1:5d}  loss {loss:.3f}  floor .226 (exact E[eps | xt])")

# --- sample and measure
torch.manual_seed(args.seed + 1)  # so that --iters cannot move a metric
real, prior = data[torch.randint(len(data), (4000,))], torch.randn(4000, 2, device=device)
@torch.no_grad()
def walk(n_steps, eta, chord=False):  # from the prior to data, (4000, 2)
    torch.manual_seed(args.seed + 2)  # the same fresh noise for every sampler
    a, s = noise_levels(torch.linspace(1000, 0, n_steps + 1, device=device)[:, None], chord)
    xt = (a[0] ** 2 + s[0] ** 2).sqrt() * prior  # x's share, 3 % at most, is noise too
    for level in zip(a, s, a[1:], s[1:]):  # this one and the next
        xt = ddim_step(xt, eps_net(xt, *level[:2]), *level, eta, torch.randn_like(xt))
    return xt
def energy_distance(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'|, unbiased: 0 if x (n, 2), y (m, 2) share one density."""
    def total(p, q):  # strips of 500 rows stay in the cache
        return sum(torch.cdist(strip, q).sum().item() for strip in p.split(500))
    n, m = len(x), len(y)
    return 2 * total(x, y) / (n * m) - total(x, x) / (n * (n - 1)) - total(y, y) / (m * (m - 1))
k = torch.linspace(20, 1000, 4000, dtype=torch.float64, device=device)[:, None]  # C2: k - 10 > 0
(a, s), (a1, s1) = jvp(noise_levels, k, 0 * k - 1000)  # d/dt, k = 1000 (1 - t)
xt, beta, z = (a * real + s * prior).requires_grad_(), 0.1 + 19.9e-3 * k, prior.flip(0)
eps = -s * torch.autograd.grad(log_density(xt, a, s).sum(), xt)[0]  # exact E[eps | xt]
v = a1 / a * (xt - s * eps) + s1 * eps
errors = [(a1 * xt - a * v) / (a1 * s - a * s1) - eps, beta / 2 * (xt - eps / s) - v]  # C1
n = torch.tensor([100.0, 1000.0], device=device)[:, None, None]  # steps of a chain
sde = xt + beta / n * (xt / 2 - eps / s) + (beta / n).sqrt() * z  # C2, Euler-Maruyama's step
gap = (ddim_step(xt, eps, a, s, *noise_levels(k - 1000 / n), 1, z) - sde).norm(dim=(1, 2))
learned = (eps_net(xt.float(), a.float(), s.float()) - eps).square().mean().item()  # C3
chain = energy_distance(walk(1000, 1), real)  # C4 C7: every step of lesson 04

# --- figure
fig, axes = plt.subplots(1, 3, figsize=(12, 4.8), gridspec_kw={"bottom": 0.26, "wspace": 0.3})
CALLS, ed = [5, 10, 20, 40], {}
for name, style, *how in [("eta 1", "C1o-", 1), ("eta 0", "C0o-", 0), ("chord", "C0s:", 0, True)]:
    ed[name] = [energy_distance(walk(n, *how), real) for n in CALLS]  # C4 C5 C6 C7
    axes[2].semilogy(CALLS, ed[name], style, label=name)  # the first is the baseline
axes[2].axhline(max(chain, 1e-4), c="k", ls="--", label="eta 1, 1000 calls")  # or less
axes[2].set(xlabel="calls of the net", ylim=(5e-5, 0.2), title=f"ED; 1000 calls: {chain:.4f}")
axes[2].legend()
steps = plt.Slider(plt.axes([0.1, 0.07, 0.3, 0.04]), "steps", 1, 200, valinit=args.steps, valstep=1)
eta = plt.Slider(plt.axes([0.55, 0.07, 0.3, 0.04]), "eta  ", 0, 1, valinit=0)
clouds = [ax.plot(*real.T.cpu(), "C7.", [], [], "C0.", ms=2)[1] for ax in axes[:2]]
plt.setp(axes[:2], aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xlabel="$x_1$")
def draw(_):
    for ax, cloud, chord, name in zip(axes, clouds, (False, True), ("DDPM's arc", "chord")):
        x = walk(int(steps.val), eta.val, chord)
        d = energy_distance(x, real)
        cloud.set(data=x.T.cpu(), color="C0" if d < 0.05 else "C3")
        ax.set_title(f"{name}, {steps.val} steps: ED {d:.4f}")
draw(0)
steps.on_changed(draw)
eta.on_changed(draw)
fig.savefig(args.out, dpi=120)

# --- claims
claims = [("C1", "worst error of eps, ODE", max(e.abs().max().item() for e in errors), "<", 1e-10),
    ("C2", "order of the step's gap in 1 / T", (gap[0] / gap[1]).log10().item(), ">", 1.4),
    ("C3", "mean (eps_hat + s score)^2 (predicting 0: .77)", learned, "<", 0.005),
    ("C4", "ED, 40 steps of eta = 0 or 1000 of eta = 1", max(ed["eta 0"][-1], chain), "<", 0.008),
    ("C5", "ED at 10 steps, eta = 1 minus eta = 0", ed["eta 1"][1] - ed["eta 0"][1], ">", 0.0),
    ("C6", "ED at 20 steps, chord minus arc", ed["chord"][2] - ed["eta 0"][2], "<", 0.001),
    ("C7", "ED, 40 calls of eta = 0 minus 1000 of eta = 1", ed["eta 0"][3] - chain, "<", 0.005)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
