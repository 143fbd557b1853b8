# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""07 Bridge: DDPM and flow matching are one method on two paths, so one net serves both.
Both mix data and noise, xt = a x + s eps. DDPM's levels (a, s) lie on the arc a^2 + s^2 = 1, flow
matching's on the chord a + s = 1. Division by r = sqrt(a^2 + s^2) takes a mix from the chord to the
arc. So a net that finds noise on the arc, eps_hat = E[eps | xt], finds it on both.
Divided by a, xt is y = x + sigma eps, data blurred by noise of std sigma = s / a. As sigma falls,
the y of each pair x, eps moves on a line, by eps per unit of sigma. Many lines cross, but a density
changes only by what flows, which is density times mean direction, eps_hat. So points that follow
eps_hat have the density of y at each sigma (lesson 05). With x_hat = y - sigma eps_hat, a step is
    from xt = a x_hat + s eps_hat to a2 x_hat + s2 eps_hat     (DDIM)
On the chord it adds (a2 - a) (x_hat - eps_hat), as Euler's step in lesson 06. DDPM goes further
down in sigma than that, then up by fresh noise. Long steps err more, as eps_hat turns on the way.
C1 One net, trained on the arc, leads noise to data on both. C2 In 10 steps it ends nearer with DDIM
(eta = 0) than with DDPM (eta = 1). C3 The score, which is the slope of log p(xt), is -eps_hat / s.
RUN    python 07_bridge.py             (6 seconds)
BREAK  python 07_bridge.py --forget    xt is not divided by r, the chord misses: C1 and C3 fail
PAPER  Song, Meng, Ermon 2020 (DDIM), arXiv 2010.02502, equations 12, 16 (its alpha is our a^2)"""
import argparse
import matplotlib.pyplot as plt
import torch
from torch import nn
# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--forget", action="store_true", help="to divide by r: breaks the chord")
parser.add_argument("--iters", type=int, default=1300, help="of training; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if args.iters < 1 or args.seed < 0:
    parser.error("--iters must be 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small are fastest on one core

# --- data
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2); the lower moon is -MOON
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2); the samples' std, both axes pooled, is 1 now
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each of the 64 places
def two_moons(n):
    """n samples of p_data, (n, 2)."""
    return MU[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- method: a path is a list of levels (a, s) from noise to data, (n_steps + 1, 2)
BETA = torch.linspace(1e-4, 0.02, 1000)  # DDPM's (lesson 02): step k leaves 1 - beta of a^2
A = torch.cat([torch.ones(1), (1 - BETA).cumprod(0).sqrt()])  # (1001,), k = 0 .. 1000
ARC = torch.stack([A, (1 - A**2).sqrt()], 1)  # (1001, 2)
def arc(n_steps):  # DDPM's path, from k = 1000 (noise) down to k = 0 (data)
    return ARC[torch.linspace(1000, 0, n_steps + 1).round().long()]

def chord(n_steps):  # flow matching's path, from t = 0 (noise) to t = 1 (data)
    t = torch.linspace(0.001, 1, n_steps + 1)  # not quite from 0, as a step divides by a = t
    return torch.stack([t, 1 - t], 1)

def find_noise(net, xt, a, s, forget=False):
    """eps_hat (B, 2) in xt (B, 2) at any level; a and s are tensors of one number or (B, 1)."""
    phi = torch.atan2(a, s).expand(len(xt), 1)  # (B, 1), an angle: 0 is noise, pi / 2 is data
    on_arc = xt if forget else xt / torch.hypot(a, s)  # xt / r = sin(phi) x + cos(phi) eps
    # The net finds (eps - on_arc) / sin(phi) = tan(phi / 2) eps - x, of ordinary size at each phi:
    rest = net(torch.cat([on_arc, phi], 1))  # (B, 2)
    return on_arc + phi.sin() * rest  # errors shrink with a; a step will divide them by a

def ddim_step(xt, eps_hat, a, s, a2, s2, eta):
    """From xt (B, 2) at (a, s) to (a2, s2), nearer to data; eta 0 .. 1: how much noise is fresh."""
    y, sigma, sigma2 = xt / a, s / a, s2 / a2
    x_hat = y - sigma * eps_hat  # as y = x + sigma eps
    # Follow eps_hat down, below sigma2, then blur y to sigma2 by fresh noise: variances add. DDPM
    # (eta = 1) goes to low: of all noise in y, sigma eps, low * eps was on average there at sigma2.
    low = sigma2 * (sigma2 / sigma)  # sigma times sigma2^2 / sigma^2, the share of the variance
    fresh = eta * (sigma2**2 - low**2).sqrt()  # a std
    down = (sigma2**2 - fresh**2).sqrt()  # sigma2 if eta = 0 (DDIM), low if eta = 1
    return a2 * (x_hat + down * eps_hat + fresh * torch.randn_like(y))

def walk_path(net, xt, levels, eta, forget=False):  # from noise xt to data, (B, 2) each
    for (a, s), (a2, s2) in zip(levels, levels[1:]):  # from each level to the next
        eps_hat = find_noise(net, xt, a, s, forget)
        xt = ddim_step(xt, eps_hat, a, s, a2, s2, eta)
    return xt

# --- train and measure
def train_on_arc(iters):  # returns the net for find_noise, (B, 3) -> (B, 2)
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(1024), torch.randn(1024, 2)
        a, s = ARC[torch.randint(1, 1001, (1024,))].split(1, 1)  # (1024, 1) each
        xt = a * x + s * eps
        loss = (find_noise(net, xt, a, s) - eps).square().mean()  # DDPM's loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.requires_grad_(False)

def energy_distance(x, y):
    """How far x, y (n, 2) are apart, beyond their own spread; 0 only if alike (Szekely 2013)."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item() if x.abs().max() < 1e3 else float("inf")  # inf if x flew off or is nan
net = train_on_arc(args.iters)
noise, real = torch.randn(4000, 2), two_moons(4000)
far = energy_distance(noise, real)  # .04 to .06; for real data in place of noise, 0 +- .001
arc_40 = energy_distance(walk_path(net, noise, arc(40), 0), real)  # r = 1: nothing to forget
chord_40 = energy_distance(walk_path(net, noise, chord(40), 0, args.forget), real)  # C1
eta_0, eta_1 = [energy_distance(walk_path(net, noise, arc(10), eta), real) for eta in (0, 1)]  # C2
a = s = torch.tensor(0.5)  # halfway on the chord, where r is smallest
xt = (a * real + s * noise).requires_grad_()
var = (a * STD) ** 2 + s**2  # of xt around a place a mu
log_p = (-torch.cdist(xt, a * MU) ** 2 / (2 * var)).logsumexp(1)  # (4000,), up to a constant
slope, = torch.autograd.grad(log_p.sum(), xt)  # (4000, 2), exact
# log p(xt | x) has the slope -(xt - a x) / s^2 = -eps / s. Its mean over all x behind xt is slope
error = (-find_noise(net, xt, a, s, args.forget) / s - slope).square().mean()  # C3

# --- figure
fig, (panels, bars) = plt.subplots(2, 3, figsize=(12, 4.6), height_ratios=[15, 1], layout="tight")
steps = plt.Slider(bars[0], "steps", 1, 50, valinit=20, valstep=1)
eta = plt.Slider(bars[1], "eta ", 0, 1, valinit=0)
forget = plt.Slider(bars[2], "forget r ", 0, 1, valinit=args.forget, valstep=1)
def draw(_):
    panels[0].clear()
    for a, s in chord(int(steps.val)):
        r = torch.hypot(a, s)
        panels[0].plot([a, a / r], [s, s / r], "0.8")
    for ax, path in zip(panels[1:], (arc, chord)):
        levels = path(int(steps.val))
        x = walk_path(net, noise, levels, eta.val, forget.val)
        miss = energy_distance(x, real)
        ax.clear()
        ax.plot(*real.T, ".", color="0.7", ms=2)
        ax.plot(*x.T, ".", color="tab:blue" if miss < far else "tab:red", ms=2)
        ax.axis([-3, 3, -3, 3])
        ax.set(title=f"{path.__name__}: {miss:.3f} from data (grey)\n(noise: {far:.3f})", aspect=1)
        panels[0].plot(*levels.T, "ko-")
    panels[0].set(title="chord (line) / r = arc", xlabel="a (data)", ylabel="s (noise)", aspect=1)
draw(None)
for slider in (steps, eta, forget):
    slider.on_changed(draw)
fig.savefig("07_bridge.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "worse of arc, chord (bound: a fifth of noise's)", max(arc_40, chord_40), "<", far / 5)
claim("C2", "10 steps, distance with eta = 0 (bound: with eta = 1)", eta_0, "<", eta_1)
claim("C3", "error of score (bound: 1% of its square)", error, "<", slope.square().mean() / 100)
print("figure: 07_bridge.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
