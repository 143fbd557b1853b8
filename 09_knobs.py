# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""09 Practical knobs: five choices that each recipe makes, measured against closed forms.
DDPM's arc (lesson 07) by its angle: xt = a x + s eps, a = sin phi, s = cos phi, phi = 0 (noise)
to pi / 2 (data). v = E[d xt / d phi | xt] is known for the moons: each noise has ONE exact end.
C1 schedule: steps of DDIM end nearer to it at equal angles (cosine) than on the linear schedule
C2 target: read as v, a net for eps errs / a (noise end), one for x / s (data end), one for v / 1
C3 order of the solver: RK4, 4 calls a step, loses to Euler in phi at 8 calls, but beats it at 32
C4 t_scale: a net told the time by sinusoids of 1000 t is nearer to v than by those of t in [0, 1]
C5 guidance puts more into the class than it promises, p(x) p(class | x)^w   C6 near that at 1.5
RUN    python 09_knobs.py                (6 s; slider: w)
BREAK  python 09_knobs.py --w 8 (far from the promise: C6) or --t-scale 1 (its clock stands: C4)
PAPER  arXiv 2102.09672, eq. 17 (cosine); 2202.00512 (v); 2207.12598, eq. 6 (its w is ours - 1)"""
import argparse
import math
import os
import matplotlib.pyplot as plt
import torch
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--w", type=float, default=1.5, help="guidance; 8 breaks it (%(default)s)")
parser.add_argument("--t-scale", type=float, default=1000, help="of time; 1 breaks (%(default)s)")
parser.add_argument("--iters", type=int, default=1000, help="of training; 100 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="09_knobs.png", help=".png or .pdf (%(default)s)")
args = parser.parse_args()
if not (0 <= args.w <= 8 and 1 <= args.t_scale <= 1e5 and args.iters > 0 and 0 <= args.seed < 1e9):
    parser.error("--w: 0 .. 8, --t-scale: 1 .. 1e5, --iters: from 1, --seed: 0 .. 1e9")
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
WIDE, EVEN = 0.3 / SCALE, torch.linspace(0, 1, 3840, device=device)  # guidance: wide moons overlap

# --- method
def velocity(xt, phi, mu=MU, sd=SD):
    """E[d xt / d phi | xt] (B, 2), exact, if x is drawn from Gaussians at mu (K, 2) of std sd."""
    a, s, var, mu = phi.sin(), phi.cos(), (sd * phi.sin()) ** 2 + phi.cos() ** 2, mu.to(xt)
    mean = ((a * xt @ mu.T - a**2 * (mu**2).sum(1) / 2) / var).softmax(1) @ mu  # by Bayes
    return s * (mean - a * (1 - sd**2) * (xt - a * mean) / var)  # s E[x | xt] - a E[eps | xt]
STAGES = {"ddim": [(0, 1)], "euler": [(0, 1)],  # (how far ahead, weight): lesson 06
          "rk4": [(0, 1 / 6), (1 / 2, 1 / 3), (1 / 2, 1 / 3), (1, 1 / 6)]}
def follow(v, calls, solver, schedule="cosine"):
    """Carry the noise along v(xt, phi) in so many calls of v; RK4's steps take 4, so are fewer."""
    x, tau = noise, torch.linspace(1, 0, 1 + calls // len(STAGES[solver]), dtype=torch.double)
    angles = (-0.05 * tau - 4.975 * tau**2).exp().arcsin()  # lesson 07's a: .0066 at tau = 1
    if schedule == "cosine":  # subtle: equal steps from there: at a = 0 an eps-net has no x_hat
        angles = angles[0] + (math.pi / 2 - angles[0]) * (1 - tau)
    for phi, h in zip(angles, angles.diff()):
        slope, move = 0, 0
        for ahead, weight in STAGES[solver]:
            slope = v(x + ahead * h * slope, phi + ahead * h)
            move = move + weight * slope
        x = x * h.cos() + move * h.sin() if solver == "ddim" else x + h * move
    return x  # subtle: DDIM keeps x_hat and eps_hat for a step, which turns x; Euler keeps v
def guided(xt, phi):  # exact; a net learns both fields at once, one label in ten left blank
    null, cond = velocity(xt, phi, MU, WIDE), velocity(xt, phi, MU[:32], WIDE)
    return null + slider.val * (cond - null)
def in_class(x):  # p(class | x), (B,), by Bayes' rule: all 64 Gaussians are equally likely
    return (-(torch.cdist(x, MU.to(x)) ** 2) / (2 * WIDE**2)).softmax(1)[:, :32].sum(1)

# --- network and train: nets for eps, x, v, and v again with its clock at scale 1
nets = nn.ModuleList(nn.Sequential(nn.Linear(130, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
    nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)) for _ in range(4)).to(device)
nets[3].load_state_dict(nets[2].state_dict())  # one start: what differs is the clock alone
def batch(t):
    """Data noised to t (B, 1): a, s, xt, targets (4, B, 2) and the nets' answers (4, B, 2)."""
    x = MU[torch.randint(64, (len(t),))].float() + SD * torch.randn(len(t), 2, device=device)
    a, s, eps = (math.pi / 2 * t).sin(), (math.pi / 2 * t).cos(), torch.randn_like(x)
    xt, v, hand = a * x + s * eps, s * x - a * eps, {}  # v: - v_sh of 2202.00512
    for scale in (args.t_scale, 1):
        angle = scale * t * 10_000 ** (-torch.arange(64, device=device) / 64)  # a DiT's clock
        hand[scale] = torch.cat([xt, angle.sin(), angle.cos()], 1)  # (B, 130)
    outs = [net(hand[scale]) for net, scale in zip(nets, 3 * [args.t_scale] + [1])]  # (B, 2) each
    return a, s, xt, torch.stack([eps, x, v, v]), torch.stack(outs)
optimizer = torch.optim.Adam(nets.parameters(), betas=(0.9, 0.95), fused=True)
for i in range(args.iters):
    optimizer.param_groups[0]["lr"] = 1e-2 * (1 - i / args.iters)  # large, as it falls to 0
    *_, target, out = batch(torch.rand(256, 1, device=device))
    loss = (out - target).square().mean((1, 2))  # (4,): the nets share the batch and no weight
    optimizer.zero_grad()
    loss.sum().backward()
    optimizer.step()
    if (i + 1) % max(1, args.iters // 8) == 0:
        print(f"iter {i + 1:5d}  loss, eps {loss[0]:.3f}, x {loss[1]:.3f}, v {loss[2]:.3f}")

# --- measure
torch.manual_seed(args.seed + 1)  # one noise for all, whatever --iters was
noise, t = torch.randn(2000, 2, device=device), torch.linspace(0.02, 0.98, 49)
wide = MU.float().repeat(60, 1) + WIDE * torch.randn(3840, 2, device=device)
CALLS, home = [4, 8, 16, 32, 64], follow(velocity, 400, "rk4")  # the exact ends, to 1e-4
def miss(*how):  # C1 C3
    return [(follow(velocity, n, *how) - home).norm(dim=1).mean().item() for n in CALLS]
linear, cosine, euler, rk4 = miss("ddim", "linear"), miss("ddim"), miss("euler"), miss("rk4")
a, s, xt, _, out = batch(t.repeat_interleave(400)[:, None].to(device))  # 400 points at each t
v = velocity(xt, torch.atan2(a, s))  # exact; E[eps | xt] = s xt - a v, E[x | xt] = a xt + s v
off = (out - torch.stack([s * xt - a * v, a * xt + s * v, v, v])) / torch.stack([a, s, s**0, s**0])
de, dx, dv, still = off.view(4, 49, 800).square().mean(2).sqrt().detach().cpu()  # v's; C2 C4

# --- figure
fig, axes = plt.subplot_mosaic("abc;dee;dss", figsize=(12, 6.8), layout="constrained",
                               height_ratios=[10, 9, 1])
slider = plt.Slider(axes["s"], "w", 0, 8, valinit=args.w, valfmt="%.1f")
for ax, (xs, names, title, *curves) in zip(axes.values(), [
        (CALLS, "linear cosine", f"8 DDIM calls: {linear[1]:.2f}, {cosine[1]:.2f}", linear, cosine),
        (t, "eps v x", f"ends: {de[0] / dv[0]:.0f}, {dx[-1] / dv[-1]:.0f} times v's", de, dv, dx),
        (CALLS, "Euler RK4", f"8 calls: {euler[1]:.3f}, {rk4[1]:.3f}", euler, rk4),
        (t, f"1 {args.t_scale:g}", f"t_scale: {still.mean():.2f}, {dv.mean():.2f}", still, dv)]):
    for ys, name, colour in zip(curves, names.split(), ("tab:orange", "tab:blue", "tab:red")):
        ax.semilogy(xs, ys, colour, label=name)
    ax.set(title=title, xlabel="calls" if xs is CALLS else "t: 0 noise, 1 data",
           ylabel="distance to the exact end" if xs is CALLS else "rms error of v")
    ax.legend()
def draw(w):  # grey: the promise, by rejection at even thresholds; energy distance to it
    x, real = follow(guided, 50, "euler"), wide[in_class(wide) ** w > EVEN]
    ed = (2 * torch.cdist(x, real).mean() - torch.pdist(x).mean() - torch.pdist(real).mean()).item()
    share = (in_class(x) > 0.5).float().mean().item()
    axes["e"].clear()
    for points, colour in (real, "0.6"), (x, "tab:blue" if ed < 0.07 else "tab:red"):
        axes["e"].plot(*points.T.cpu(), ".", c=colour, ms=2)
    axes["e"].set(title=f"guidance w = {w:.1f}: {share:.1%} in class, ED to the grey {ed:.3f}",
                  aspect=1, xlim=(-5, 3.4), ylim=(-1.5, 2.7), xlabel="$x_1$", ylabel="$x_2$")
    return share, ed
share, ed = draw(args.w)  # C5 C6
slider.on_changed(draw)
fig.savefig(args.out, dpi=120)

# --- claims
claims = [("C1", "cosine over linear, worst", max(c / l for c, l in zip(cosine, linear)), "<", 0.8),
    ("C2", "eps or x over v at its bad end", min(de[0] / dv[0], dx[-1] / dv[-1]).item(), ">", 3),
    ("C3", "loser over winner at 8, 32 calls", min(rk4[1] / euler[1], euler[3] / rk4[3]), ">", 1.2),
    ("C4", "error^2 over scale 1's", (dv.square().sum() / still.square().sum()).item(), "<", 0.8),
    ("C5", "share in the class (that density: .95)", share, ">", 0.965),
    ("C6", f"ED to p(x) p(class | x)^{args.w:g} (not guided: .002)", ed, "<", 0.07)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
