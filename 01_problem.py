# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""01 The problem: we hold samples of a density p_data and want new ones.

A net can learn a number for every x, high where data are. To be a density it must be divided by
its sum over all of space, and nobody can form that sum for pictures. And even if p_data were
known, guessing would fail. Draw n guesses from a prior that is easy to draw, N(0, I), and give
each the weight w = p_data(x) / prior(x). The unequal weights tell no more than n E[w]^2 / E[w^2]
equal ones would, and this share of n falls exponentially with the dimension.

The way out is a path. Draw noise eps from the prior and x from the data and move in time t from
0 to 1 on the line between them: xt = t x + (1 - t) eps, with velocity x - eps. Samples teach a
net the mean velocity of all pairs that pass a place, v(xt, t) = E[x - eps | xt]. Let fresh noise
follow v in small steps: as much flows through each place as with the pairs themselves, so at
t = 1 it is spread as the data are (lesson 05 proves it). In ONE step it would not work. At
t = 0 noise says nothing of x, so v = E[x] - eps, and eps + v = E[x], the mean, for every eps.
C1 The share that the weights are worth falls as .187^(d/2) in d dimensions.
C2 A net that is asked once, at t = 0, sends all noise to the mean of the data.
C3 The same kind of net, asked again in each of --steps steps, turns noise into data.

RUN    python 01_problem.py              (6 seconds)
BREAK  python 01_problem.py --steps 1    the path is one step: all noise goes to the mean, C3 fails
PAPER  Owen 2013, Monte Carlo, section 9.3 (weights); Lipman et al. 2022, arXiv 2210.02747"""
import argparse
import math
import matplotlib.pyplot as plt
import torch
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=20, help="on the path; 1 breaks it (%(default)s)")
parser.add_argument("--iters", type=int, default=900, help="of each net; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if not 1 <= args.steps <= 50 or args.iters < 1 or args.seed < 0:
    parser.error("--steps must be 1 to 50, --iters 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small are fastest on one core

# --- data: two moons. Why 2D first: here p_data is a formula, and every error can be seen
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), places on a half circle
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), on both moons; .7107 makes the mean variance 1
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each place in MU
def two_moons(n):
    """n samples of p_data, (n, 2)."""
    return MU[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- method
def log_p_data(x):
    """log p_data of x (B, 2), the mean of 64 Gaussian densities: (B,)."""
    square = torch.cdist(x, MU) ** 2  # (B, 64)
    return (-square / (2 * STD**2)).logsumexp(1) - math.log(64 * 2 * math.pi * STD**2)

def log_prior(x):
    """log N(0, I) of x (B, 2): (B,)."""
    return -x.square().sum(1) / 2 - math.log(2 * math.pi)

def effective_share(log_w):
    """E[w]^2 / E[w^2] from log w (n,): 1 if all weights are equal, 1 / n if one has all."""
    w = (log_w - log_w.max()).exp()  # a common factor cancels; this one avoids an overflow
    return (w.mean() ** 2 / w.square().mean()).item()

def walk(v, xt, n_steps):
    """From noise xt (B, 2) at t = 0 to t = 1 in steps of 1 / n_steps along v(xt, t)."""
    for i in range(n_steps):
        xt = xt + v(xt, i / n_steps) / n_steps
    return xt

# --- train
def train_mean_velocity(t_max, iters):
    """Learn E[x - eps | xt] for t from 0 to t_max. Returns v(xt, t) for xt (B, 2), a number t."""
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95))
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / iters)  # large steps find, small settle
        x, eps = two_moons(1024), torch.randn(1024, 2)
        t = t_max * torch.rand(1024, 1)
        xt = t * x + (1 - t) * eps
        v_hat = net(torch.cat([xt, t], 1))
        loss = (v_hat - (x - eps)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (i + 1) % max(1, iters // 4) == 0:
            print(f"iter {i + 1:5d}  loss {loss:.3f}")
    return lambda xt, t: net(torch.cat([xt, torch.full_like(xt[:, :1], t)], 1)).detach()

once = train_mean_velocity(0, args.iters)  # loss 1 at best, the variance of x: eps tells nothing
path = train_mean_velocity(1, args.iters)  # 1.36 at best: pairs that pass a place differ by that

# --- measure
def energy_distance(x, y):
    """2 E|x-y| - E|x-x'| - E|y-y'| of clouds (n, 2): 0 only for one density (2500 draws +-.001)."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item() if x.abs().max() < 1e3 else float("inf")  # diverged, or nan

RATE = 0.187  # 1 / E[w^2] for one pair of numbers, summed over a fine grid (E[w] is 1)
log_w, shares = torch.zeros(100_000), []
for pairs in (1, 2, 3):  # d = 2, 4, 6: each pair of numbers is a point of the moons
    guess = torch.randn(100_000, 2)
    log_w = log_w + log_p_data(guess) - log_prior(guess)  # weights of independent pairs multiply
    shares.append(effective_share(log_w))
off = max(abs(share / RATE**pairs - 1) for share, pairs in zip(shares, (1, 2, 3)))  # C1

noise, real = torch.randn(2500, 2), two_moons(2500)
landed = walk(once, noise, 1)
from_mean = landed.square().mean().sqrt().item()  # C2; the mean of the data is 0
before = energy_distance(noise, real)
after = energy_distance(walk(path, noise, args.steps), real)  # C3

# --- figure
fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), width_ratios=[2, 3])
fig.subplots_adjust(bottom=0.22, left=0.07, right=0.98)
slider = plt.Slider(plt.axes([0.6, 0.03, 0.2, 0.03]), "steps", 1, 50, valinit=args.steps, valstep=1)
left.semilogy([2, 16], [RATE, RATE**8], "k--", label="exact: .187^(d/2)")
left.semilogy([2, 4, 6], shares, "o", color="tab:orange", label="measured on 100,000 guesses")
left.axhspan(1e-7, 1e-5, color="tab:red", alpha=0.2, label="less than one guess")
left.set(xlabel="dimensions d", ylabel="worth, as a share", title="guessing", ylim=(1e-6, 1))
left.legend()

def draw(_):
    x = walk(path, noise, int(slider.val))
    distance = energy_distance(x, real)
    right.clear()
    right.plot(*real.T, ".", color="0.7", ms=2, label="data")
    right.plot(*x.T, ".", color="tab:blue" if distance < 0.012 else "tab:red", ms=2, label="path")
    right.plot(*landed.T, "o", color="tab:orange", label="noise, asked once")
    right.set(title=f"{slider.val} steps: energy distance {distance:.4f} (noise: {before:.2f})")
    right.set(aspect="equal", xlim=(-3, 3), ylim=(-1.8, 1.8))
    right.legend(loc="upper right")

draw(None)
slider.on_changed(draw)
fig.savefig("01_problem.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", "share, relative error of .187^(d/2), worst of d = 2, 4, 6", off, "<", 0.3)
claim("C2", "asked once, rms from the mean, per coordinate (data: 1)", from_mean, "<", 0.1)
claim("C3", f"energy distance (noise {before:.3f}, real draws +- .001)", after, "<", 0.012)
print("figure: 01_problem.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
