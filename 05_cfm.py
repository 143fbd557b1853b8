# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""05 Conditional flow matching (CFM): pick a path, not a chain, and learn the velocity along it.
xt = t^b x + (1-t)^b eps, of density p, is noise at t = 0, data at t = 1. A field v carries p if
d p/dt + div(p v) = 0, the continuity equation: v(xt) = E[d xt/dt | xt] does. Who can average over
all pairs (x, eps) that pass xt? Nobody, but a mean minimises squared error: regress on d xt/dt.
C1 that mean satisfies the continuity equation, on a straight path and on a bent one
C2 the easy loss (target: the pair's d xt/dt) has the gradient of the impossible one (target: v),
C3 as easy = impossible + a floor that no net moves  C4 the trained net reaches that floor, so that
C5 it is close to the exact velocity                 C6 and carries noise to the moons as that does
RUN    python 05_cfm.py               (5 s; slider: time; buttons: whose field is drawn)
BREAK  python 05_cfm.py --target data  E[x | xt] is learned, but it does not carry p: C5, C6 fail
PAPER  Lipman et al. 2022, arXiv 2210.02747: eq. 5 FM, 8 mean, 9 CFM, 26 continuity, theorem 2"""
import argparse
import math
import os
import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import RadioButtons, Slider
from torch import nn
# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--target", default="velocity", choices=["velocity", "data", "data-xt"],
                    help="what the net regresses on; data and data-xt break it (%(default)s)")
parser.add_argument("--bend", type=float, default=1, help="xt = t^b x + (1-t)^b eps (%(default)s)")
parser.add_argument("--iters", type=int, default=1200, help="of training; 100 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="05_cfm.png", help=".png or .pdf (%(default)s)")
args = parser.parse_args()
if not (1 <= args.bend <= 4 and 1 <= args.iters <= 100_000 and 0 <= args.seed <= 2**31):
    parser.error("--bend: 1 .. 4, --iters: 1 .. 100000, --seed: 0 .. 2^31")
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
def moons(n, generator=None):
    """n samples of p_data, (n, 2)."""
    i = torch.randint(64, (n,), generator=generator, device=device)
    return MU[i].float() + SD * torch.randn(n, 2, generator=generator, device=device)
def exact(xt, a, s):
    """E[x | xt] (B, 2), E[eps | xt] (B, 2), log p(xt) (B, 1) for xt = a x + s eps, (B, 2)."""
    mu, var = MU.to(xt), torch.as_tensor((a * SD) ** 2 + s**2, dtype=xt.dtype, device=xt.device)
    logit = (a * xt @ mu.T - a**2 * (mu**2).sum(1) / 2) / var  # (B, 64): which Gaussian was it?
    mean = logit.softmax(1) @ mu
    pull = (xt - a * mean) / var  # minus the score, the gradient of log p(xt)
    log_p = logit.logsumexp(1, keepdim=True) - (xt**2).sum(1, keepdim=True) / (2 * var)
    return mean + a * SD**2 * pull, s * pull, log_p - (128 * math.pi * var).log()
# --- method
def path(x, eps, t, kind=args.target, bend=args.bend):
    """Where the pair x, eps (n, 2) is at time t (n, 1); what it teaches: d xt/dt, or a mistake."""
    xt = t**bend * x + (1 - t) ** bend * eps  # other weights will do with these ends
    velocity = bend * (t ** (bend - 1) * x - (1 - t) ** (bend - 1) * eps)  # d xt/dt
    return xt, {"velocity": velocity, "data": x, "data-xt": x - xt}[kind]
def field(kind, xt, t, bend=args.bend):
    """The net, or E[target | xt] over all pairs that pass xt (known in this toy alone), (B, 2)."""
    if kind == "learned":
        return net(torch.cat([xt, t], 1).float()).to(xt)  # (B, 3) -> (B, 2)
    x_hat, eps_hat, _ = exact(xt, t**bend, (1 - t) ** bend)  # eq. 8
    return path(x_hat, eps_hat, t, kind, bend)[1]  # subtle: linear in x and eps: means in, mean out
def continuity(kind, t, bend=args.bend):
    """On GRID: d p/dt + div(p v) by the mean |d p/dt|, 0 if v carries p; p, both (B,); v (B, 2)."""
    xt, t = GRID.clone().requires_grad_(), torch.full_like(GRID[:, :1], t).requires_grad_()
    p, v = exact(xt, t**bend, (1 - t) ** bend)[2].exp(), field(kind, xt, t, bend)  # (B, 1)
    dp, dx, dy = [torch.autograd.grad(f.sum(), to, retain_graph=True)[0][:, i]  # rows do not mix
                  for f, to, i in ((p, t, 0), (p * v[:, :1], xt, 0), (p * v[:, 1:], xt, 1))]
    return ((dp + dx + dy) / dp.abs().mean()).cpu(), p[:, 0].detach().cpu(), v.detach().cpu()
# --- network and train; all draws for measures come first, so that none moves with --iters
hidden = [m for i in (3, 32, 32, 32) for m in (nn.Linear(i, 32), nn.SiLU())]  # 3: point, time
net = nn.Sequential(*hidden, nn.Linear(32, 2)).to(device)
N, mse = 25_000, nn.MSELoss()  # mse: mean over points and over their 2 coordinates
x, eps, t = moons(N), torch.randn(N, 2, device=device), torch.rand(N, 1, device=device)
x, eps, t = torch.cat([x, -x]), torch.cat([eps, -eps]), torch.cat([t, t])  # -moons = moons: calmer
xt, easy = path(x, eps, t)  # (2 N, 2): the target of each pair
hard, v, at = field(args.target, xt, t), field("velocity", xt, t), (xt, t)  # E[easy | xt]; v
out, floor = field("learned", xt, t), mse(hard, easy).item()  # variance of easy in xt
first = [mse(out, easy), mse(out, hard)]  # C3: eq. 9 and eq. 5, before training
slope = [torch.autograd.grad(loss, net.parameters(), retain_graph=True) for loss in first]  # C2
gap = sum((g - h).square().sum() for g, h in zip(*slope)) / sum(h.square().sum() for h in slope[1])
real, noise, ends, ed = moons(4000), torch.randn(4000, 2, device=device), {}, {}  # for C6
optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95), fused=True)
for i in range(args.iters):
    optimizer.param_groups[0]["lr"] = 3e-2 * (1 - i / args.iters)  # large, as it falls to 0
    x, eps, t = moons(1024), torch.randn(1024, 2).to(device), torch.rand(1024, 1).to(device)
    xt, goal = path(x, eps, t)  # fresh pairs, at any time at once
    loss = mse(field("learned", xt, t), goal)  # eq. 9
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (i + 1) % max(1, args.iters // 8) == 0:
        print(f"iter {i + 1:5d}  loss {mse(field('learned', *at), easy):.4f}  floor {floor:.4f}")
# --- sample and measure
def energy_distance(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'|, unbiased: 0 if x (n, 2), y (m, 2) share one density."""
    def total(p, q):  # strips of 500 rows stay in the cache
        return sum(torch.cdist(strip, q).sum().item() for strip in p.split(500))
    n, m = len(x), len(y)
    return 2 * total(x, y) / (n * m) - total(x, x) / (n * (n - 1)) - total(y, y) / (m * (m - 1))
for kind in ("learned", "velocity", "data", "data-xt"):
    x = noise
    for i in range(50):  # Euler steps, so many that the solver does not show (lesson 06)
        x = (x + field(kind, x, torch.full_like(x[:, :1], i / 50)) / 50).detach()
    ends[kind], ed[kind] = x, energy_distance(x, real)  # C6
GRID = torch.cartesian_prod(*2 * [torch.linspace(-2.6, 2.6, 53, device=device).double()])  # (B, 2)
left = [continuity("velocity", i / 10, b)[0].abs().mean() for i in range(1, 10) for b in (1, 2)]
# --- figure
fig, axes = plt.subplots(1, 3, figsize=(12, 5), gridspec_kw=dict(left=0.04, right=1, bottom=0.25))
slider = Slider(fig.add_axes([0.45, 0.08, 0.4, 0.04]), "time t", 0.02, 0.98, valinit=0.6)
radio = RadioButtons(fig.add_axes([0.02, 0.01, 0.12, 0.16]), [*ends])
def draw(_=None):  # called by both widgets
    kind, t = radio.value_selected, slider.val
    rest, p, v_hat = continuity(kind, t)
    v, seen = continuity("velocity", t)[2], (torch.arange(53**2) % 10 == 0) & (p > 0.01)
    off = (p @ (v_hat - v) ** 2).sum() / (p @ v**2).sum()
    colour = "tab:red" if ed[kind] - ed["velocity"] > 0.004 else "tab:blue"  # as C6
    for ax, title in zip(axes, (f"{kind} at t = {t:.2f} (black: exact)\n{off:.1%} of v^2 is wrong",
                                f"d p/dt + div(p v)\n{rest.abs().mean():.2g} is left (v = 0: 1)",
                                f"noise moved, ED {ed[kind]:.4f}\nexact v: {ed['velocity']:.4f}")):
        ax.clear()
        ax.set(title=title, xlabel="x", ylabel="y", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect=1)
    axes[0].tripcolor(*GRID.T.cpu(), p, cmap="Greys")  # the path at time t
    axes[0].quiver(*GRID[seen].T.cpu(), *v_hat[seen].T, color=colour, scale=20, width=0.012)
    axes[0].quiver(*GRID[seen].T.cpu(), *v[seen].T, color="black", scale=20)  # the same scale
    axes[1].tripcolor(*GRID.T.cpu(), rest, cmap="RdBu", vmin=-9, vmax=9)  # red < 0
    axes[2].plot(*real.T.cpu(), "C7.", ms=2)
    axes[2].plot(*ends[kind].T.cpu(), ".", c=colour, ms=2)
    fig.canvas.draw_idle()
draw()
slider.on_changed(draw)
radio.on_clicked(draw)
fig.savefig(args.out, dpi=120)
# --- claims
claims = [("C1", "exact v: share of |d p/dt| that is left, worst", max(left).item(), "<", 1e-10),
    ("C2", "|easy - hard gradient| / |hard gradient|", gap.sqrt().item(), "<", 0.03),
    ("C3", "(easy - floor) / hard - 1", abs((first[0] - floor) / first[1] - 1).item(), "<", 0.08),
    ("C4", "trained loss / its floor", mse(field("learned", *at), easy).item() / floor, "<", 1.015),
    ("C5", "(error / v)^2", (mse(field("learned", *at), v) / v.square().mean()).item(), "<", 0.03),
    ("C6", "ED to the data, less the exact field's", ed["learned"] - ed["velocity"], "<", 0.004)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
