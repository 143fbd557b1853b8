# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""06 Euler ODEs: from noise to data in a few steps along a learned velocity.
Join noise eps (t = 0) and data x (t = 1) by a line, xt = t x + (1 - t) eps, with velocity x - eps.
Where lines meet, a net learns, by squared error, the mean of their velocities, v = E[x - eps | xt].
Why is the mean enough? A region gains and loses points only through its boundary, and what flows
there is density times mean velocity. So noise that moves with v starts, flows and ends like the xt.
But v turns: at t = 0 it is E[x] - eps, as eps tells nothing of x yet. So few steps miss. Reflow:
carry each eps along v to its end x, and train a second net on these pairs. Now eps decides x, so v
is x - eps at t = 0, and one step leads to x. (Not all: a smooth net cannot jump between moons.)
C1 Euler in --steps steps ends nearer to data than noise is. C2 One step after reflow: 5 x nearer.
RUN    python 06_euler.py --steps 5    (6 seconds; --data FILE learns points of your own)
BREAK  python 06_euler.py --steps 1    all go to E[x], where no data are: C1 fails
PAPER  Liu et al. 2022, arXiv 2209.03003, equation 1 (the loss) and algorithm 1 (reflow)"""
import argparse
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=20, help="Euler steps; 1 breaks it (%(default)s)")
parser.add_argument("--data", help=".csv .tsv .txt .npy of two columns, .png .jpg (two moons)")
parser.add_argument("--iters", type=int, default=900, help="of each net; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if not 1 <= args.steps <= 50 or args.iters < 1 or args.seed < 0:
    parser.error("--steps must be 1 to 50, --iters 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small are fastest on one core

# --- data: two moons, or points of your own
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2); the lower moon is -MOON
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2); the samples' std, both axes pooled, is 1 now
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each of the 64 places
def two_moons(n):
    """n samples of p_data, (n, 2)."""
    return MU[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

def read_points(path):  # (n, 2): two columns of a table, or the dark pixels of a picture
    if path.endswith((".png", ".jpg")):
        grey = np.atleast_3d(plt.imread(path))[:, :, :3].mean(2)  # red, green, blue
        return np.argwhere(grey < grey.mean())[:, ::-1] * [1, -1]  # (column, -row): right and up
    if path.endswith(".npy"):
        return np.load(path).astype(float)
    assert path.endswith((".csv", ".tsv", ".txt")), "not .csv, .tsv, .txt, .npy, .png or .jpg"
    text = open(path, encoding="utf-8-sig").read().strip()
    if ";" in text or "\t" in text:
        text = text.replace(",", ".")  # decimal commas, as in "1,5; 2,5"
    points = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            points.append([float(n) for n in line.replace(";", " ").replace(",", " ").split()])
        except ValueError:
            assert number == 1, f"row {number} is not a number: {line}"  # row 1 may be a header
    return points
try:
    x = torch.tensor(read_points(args.data)).float() if args.data else two_moons(10_000)
    assert x.shape[1:] == (2,), f"found {x.shape[-1]} columns, two are needed"
    mean, scale = x.mean(0), (x - x.mean(0)).square().mean().sqrt()  # of the moons: 0 and 1
    x = (x - mean) / scale  # to undo it for a sample: mean + scale * sample
    assert len(x) and x.isfinite().all(), "found no points, or not finite, or all alike"
except Exception as error:
    parser.error(f"--data {args.data}: {error}")

# --- method: a step from t to t + h by 1, 2 or 4 calls of v; a path's error falls as h, h^2, h^4
def euler(v, x, t, h):
    return x + h * v(x, t)
def heun(v, x, t, h):
    k1 = v(x, t)
    return x + h * (k1 + v(x + h * k1, t + h)) / 2  # mean of the slopes at start and end
def rk4(v, x, t, h):
    k1 = v(x, t)
    k2 = v(x + h / 2 * k1, t + h / 2)  # slope in the middle of the step, where k1 leads
    k3 = v(x + h / 2 * k2, t + h / 2)  # the middle once more, where k2 leads
    k4 = v(x + h * k3, t + h)  # slope at the end
    return x + h * (k1 + 2 * k2 + 2 * k3 + k4) / 6  # Simpson's weights 1 4 1, the 4 split on k2, k3

def solve(v, x, n_steps, step):  # x (B, D) moves from t = 0 to 1: the path, (n_steps + 1, B, D)
    path = [x]
    for i in range(n_steps):
        path.append(step(v, path[-1], i / n_steps, 1 / n_steps))
    return torch.stack(path)

# --- train and measure
def train_velocity(x, eps, iters):  # learns v(xt, t) of lines from eps[i] to x[i], (n, 2) each
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters(), fused=True)  # fused: one kernel, faster
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / iters)  # large steps first, then small
        pick, t = torch.randint(len(x), (1024,)), torch.rand(1024, 1)
        xt = t * x[pick] + (1 - t) * eps[pick]  # (B, 2)
        v_hat = net(torch.cat([xt, t], 1))
        loss = (v_hat - (x[pick] - eps[pick])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{iters} iterations, loss {loss:.4f}")
    return lambda xt, t: net(torch.cat([xt, torch.full((len(xt), 1), t)], 1)).detach()
eps = torch.randn(max(len(x), 10_000), 2)  # random pairs: near eps get unrelated x, so v is a mean
x = x[torch.arange(len(eps)) % len(x)]  # each x once, or in turn if there are fewer than eps
first = train_velocity(x, eps, args.iters)  # loss 1.4, not 0: the lines that meet differ from v
reached = solve(first, eps, 10, rk4)[-1]  # 10 steps of RK4 are as good as exact
second = train_velocity(reached, eps, args.iters)  # reflow: near eps get near x; loss near 0

def energy_distance(x, y):
    """How far x, y (n, 2) are apart, beyond their own spread; 0 only if alike (Szekely 2013)."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item() if x.abs().max() < 1e3 else float("inf")  # inf if x flew off or is nan
noise, real = torch.randn(2500, 2), x[torch.randint(len(x), (2500,))]
before = energy_distance(noise, real)  # about .05; of two draws of real data 0 +- .001
after = energy_distance(solve(first, noise, args.steps, euler)[-1], real)  # C1
reflow = energy_distance(solve(second, noise, 1, euler)[-1], real)  # C2

# --- figure
fig, axes = plt.subplots(1, 4, sharex=True, sharey=True, figsize=(14, 3.6), layout="constrained")
fig.suptitle("distance to data (grey) in % of noise's, red above 100%; stray: > .1 from all data")
slider = plt.Slider(plt.axes([0.8, 0.94, 0.1, 0.04]), "steps", 1, 50, valinit=args.steps, valstep=1)

def draw(n_steps):
    panels = [("Euler", first, euler, n_steps, 1), ("Heun", first, heun, n_steps, 2),
              ("RK4", first, rk4, n_steps, 4), ("Reflow", second, euler, 1, 1)]
    for ax, (name, v, step, n, calls) in zip(axes, panels):
        path = solve(v, noise, n, step)
        share = max(energy_distance(path[-1], real) / before, 0)
        off = (torch.cdist(path[-1], real).amin(1) > 0.1).float().mean()  # stray; fresh data: 1%
        ax.clear()
        ax.plot(*real.T, ".", color="0.7", ms=2)
        ax.plot(*path[-1].T, ".", color="tab:blue" if share < 1 else "tab:red", ms=2)
        ax.plot(path[:, :40, 0], path[:, :40, 1], "k.-", lw=0.5, markevery=[0])  # a line per column
        ax.set(title=f"{name}, calls: {n * calls}\ndistance {share:.0%}, stray {off:.0%}", aspect=1)
draw(args.steps)
slider.on_changed(lambda n: draw(int(n)))  # the slider gives a float
fig.savefig("06_euler.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:.4g}")
if not args.data:  # the bounds were set on the moons
    claim("C1", f"{args.steps} Euler steps, energy distance (bound: noise's)", after, "<", before)
    claim("C2", "one step after reflow (bound: a fifth of noise's)", reflow, "<", 0.2 * before)
print("figure: 06_euler.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
