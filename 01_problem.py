# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""01 The problem: we hold samples of a density p_data and want new ones.
A net can learn a number for every x, high where data are. To become a density, it must be divided
by its sum over all of space, and nobody can form that sum for pictures. And even if p_data were
known, guessing would fail: draw guesses from an easy prior, N(0, I), and let each count by its
weight w = p_data / prior (importance sampling). A few have nearly all the weight. The mean of n
weighted guesses is as noisy as that of n E[w]^2 / E[w^2] real draws (effective sample size): n if
all weights are equal, 1 if one guess has it all. So a guess is worth E[w]^2 / E[w^2]. If x is made
of d / 2 independent points of a plane, their weights multiply, and so do these means.
The way out is a path (flow matching). Join noise eps from the prior to data x by a line,
xt = t x + (1 - t) eps: a point on it moves with x - eps. Many lines meet at a place. Shown xt and
t, a net learns by squared error the mean of all lines there, without a sum over space:
    v(xt, t) = E[x - eps | xt]
Why is the mean enough? A region gains and loses points only through its boundary, and what flows
there is density times mean velocity. So noise that moves with v starts like the xt, flows like them
and ends like data. At t = 0, xt tells nothing of x: v is E[x] - eps, and one step ends at E[x].
C1 The worth of a guess is .187 in two dimensions and falls as .187^(d/2) in d.
C2 A net that is asked once, at t = 0, sends all noise to the mean of the data.
C3 The same kind of net, asked in each of --steps steps, takes noise to less than a quarter of its
distance from data.
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
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2); the lower moon is -MOON
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2); the samples' std, both axes pooled, is 1 now
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each of the 64 places
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
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(1024), torch.randn(1024, 2)
        t = t_max * torch.rand(1024, 1)
        xt = t * x + (1 - t) * eps
        v_hat = net(torch.cat([xt, t], 1))
        loss = (v_hat - (x - eps)).square().mean()  # smallest if v_hat is the mean given xt
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{iters} iterations, loss {loss:.3f}")
    return lambda xt, t: net(torch.cat([xt, torch.full((len(xt), 1), t)], 1)).detach()
once = train_mean_velocity(0, args.iters)  # the fairest net for one step: it learns t = 0 only
path = train_mean_velocity(1, args.iters)  # all t; no loss gets to 0, as lines cross

# --- measure
def energy_distance(x, y):
    """How far x, y (n, 2) are apart, beyond their own spread; 0 only if alike (Szekely 2013)."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item() if x.abs().max() < 1e3 else float("inf")  # inf if x flew off or is nan
side = torch.arange(-3.5, 3.5, 0.02)
grid = torch.cartesian_prod(side, side)  # cells of .02 x .02: a sum over them is an integral
log_integrand = 2 * log_p_data(grid) - log_prior(grid)  # E[w^2] is the integral of p_data^2 / prior
exact = 1 / (log_integrand.exp().sum() * 0.02**2).item()  # .187 = 1 / E[w^2], since E[w] = 1
worth, log_w = [], torch.zeros(100_000)  # of 100,000 guesses in d dimensions
for d in (2, 4, 6):
    point = torch.randn(100_000, 2)  # adds two dimensions to each guess
    log_w = log_w + log_p_data(point) - log_prior(point)  # weights multiply, so their logs add up
    worth.append(effective_share(log_w))
factors = [worth[0], worth[1] ** (1 / 2), worth[2] ** (1 / 3)]  # per two dimensions
off = max(abs(factor / exact - 1) for factor in factors)  # C1; on 20 seeds up to .15
noise, real = torch.randn(2500, 2), two_moons(2500)
landed = walk(once, noise, 1)
from_mean = landed.square().mean().sqrt().item()  # C2; the mean of the data is 0
before = energy_distance(noise, real)  # about .05
after = energy_distance(walk(path, noise, args.steps), real)  # C3

# --- figure
fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), width_ratios=[2, 3])
fig.subplots_adjust(bottom=0.22, left=0.07, right=0.98)
slider = plt.Slider(plt.axes([0.6, 0.03, 0.2, 0.03]), "steps", 1, 50, valinit=args.steps, valstep=1)
left.semilogy([2, 16], [exact, exact**8], "k--", label=f"exact: {exact:.3f}^(d/2)")
left.semilogy([2, 4, 6], worth, "o", color="tab:orange", label="measured on 100,000 guesses")
left.axhspan(1e-7, 1e-5, color="tab:red", alpha=0.2, label="100,000 guesses, worth < 1 draw")
left.set(xlabel="dimensions d", ylabel="a guess, in real draws", title="guessing", ylim=(1e-6, 1))
left.legend()
def draw(_):
    x = walk(path, noise, int(slider.val))
    distance = energy_distance(x, real)
    right.clear()
    right.plot(*real.T, ".", color="0.7", ms=2, label="data")
    colour = "tab:blue" if distance < before / 4 else "tab:red"
    right.plot(*x.T, ".", color=colour, ms=2, label="path")
    right.plot(*landed.T, "o", color="tab:orange", label="one step")
    right.set(title=f"{slider.val} steps: energy distance {distance:.4f} (noise: {before:.2f})")
    right.set(aspect="equal", xlim=(-3, 3), ylim=(-1.8, 1.8))
    right.legend(loc="upper right")
draw(None)
slider.on_changed(draw)
fig.savefig("01_problem.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "factor per two dimensions, largest relative error", off, "<", 0.3)
claim("C2", "asked once, rms from the mean, per coordinate (data: 1)", from_mean, "<", 0.1)
claim("C3", f"energy distance (noise {before:.3f}, real data 0 +- .001)", after, "<", before / 4)
print("figure: 01_problem.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
