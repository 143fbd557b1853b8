# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""06 Euler ODEs and reflow: sampling from a flow-matching model in a few steps.

Flow matching trains a net to predict a velocity, and sampling follows it from noise (t = 0) to data
(t = 1). Euler's method takes straight steps, but the paths bend, so a few long steps miss the data.
With a better solver (RK4) or straighter paths (reflow), we need fewer function evaluations (NFE).

RUN    python 06_euler.py --steps 5   (6 seconds; move the slider, or try your own --data FILE)
BREAK  python 06_euler.py --steps 1   (C1 fails: every sample ends near the mean of the data)
PAPER  arXiv 2209.03003, equation 1 (loss) and algorithm 1 (reflow), by Liu et al."""
import argparse
import signal
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=5, help="Euler steps (default: %(default)s)")
parser.add_argument("--data", help=".csv .tsv .txt .npy .png .jpg .jpeg (default: two moons)")
parser.add_argument("--iters", type=int, default=1500, help="per training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.steps <= 16 and 1 <= args.iters <= 1_000_000 and 0 <= args.seed < 2**32):
    parser.error("--steps must be 1 to 16, --iters 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Data: two moons, or points (n, 2) from a file. For an image, we take its dark pixels.
def read_points(path):
    if path.endswith(".npy"):
        return np.load(path)
    if path.lower().endswith((".png", ".jpg", ".jpeg")):
        gray = np.atleast_3d(plt.imread(path))[::-1, :, :3].mean(2)  # from the lowest row up
        return np.argwhere(gray.T < gray.mean())  # columns and rows, as x and y
    text = open(path, encoding="utf-8-sig").read()
    text = text.replace(",", "." if ";" in text else " ")  # with ";", commas are decimal
    rows = text.replace(";", " ").splitlines()
    assert rows[1:], "found fewer than two rows"
    return np.loadtxt(rows, skiprows=int(rows[0][0].isalpha()))  # skips a header

angle = torch.pi * torch.rand(10_000, 1)
moon = torch.hstack([angle.cos() - 0.5, angle.sin() - 0.25])
points = torch.cat([moon, -moon]) + 0.09 * torch.randn(20_000, 2)
try:
    points = points if args.data is None else torch.tensor(read_points(args.data)).double()
    assert len(points) and points[0].shape == (2,), f"found the shape {points.shape}"
    assert points.std(0).min() > 0, "found nan, inf, or a column of equal numbers"
except Exception as error:
    parser.error(f"--data {args.data!r}: {error}; needed are rows of two numbers")
print(f"We train on 20,000 random draws from {len(points):,} points.")
mean, std = points.mean(0), points.std(0)
row = torch.randint(len(points), [20_000])
x = ((points - mean) / std)[row].float()  # (20000, 2)

# --- Solvers: one step from t to t + h. Euler's method uses the velocity at the start of the step.
# RK4 takes a weighted average of four velocities: at the start, twice in the middle, at the end.
def euler(v, x, t, h):
    return x + h * v(x, t)

def rk4(v, x, t, h):
    k1 = v(x, t)
    k2 = v(x + h / 2 * k1, t + h / 2)
    k3 = v(x + h / 2 * k2, t + h / 2)
    k4 = v(x + h * k3, t + h)
    return x + h * (k1 + 2 * k2 + 2 * k3 + k4) / 6

@torch.no_grad()
def solve(v, x, num_steps, step):
    path = [x]
    for i in range(num_steps):
        path.append(step(v, path[-1], i / num_steps, 1 / num_steps))
    return torch.stack(path)  # (num_steps + 1, B, 2)

# --- Training
# A line xt = t x + (1 - t) eps joins row i of eps to row i of x, with velocity x - eps. Where lines
# cross, squared error makes the net predict their mean velocity, v(xt, t) = E[x - eps | xt]. The
# mean is enough: how density changes depends only on density times mean velocity. So noise that
# moves along v is distributed like xt at every t, and like the data at t = 1 (proof in lesson 05).
def train(eps, x, iters, width=64, batch_size=256, lr=0.02):
    net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        row, t = torch.randint(len(x), [batch_size]), torch.rand(batch_size, 1)
        target = x[row] - eps[row]  # (B, 2)
        xt = eps[row] + t * target  # (B, 2), points on the lines
        loss = nn.functional.mse_loss(net(torch.hstack([xt, t])), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 500 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net
def velocity(net):  # appends the number t to every row of x (B, 2)
    return lambda x, t: net(nn.functional.pad(x, (0, 1), value=t))

# First, we pair eps and x at random. They are independent, so at t = 0 the best prediction is
# E[x] - eps. Every path heads for the mean of the data, and turns toward one of the moons later.
eps = torch.randn_like(x)
first = velocity(train(eps, x, args.iters))

# Reflow pairs each eps with the end of its path. Paths never meet at the same t, so these straight
# lines rarely do. So v is nearly x - eps, and one step almost reaches x. But a smooth net cannot
# jump, so noise on the border between the two moons may land in the gap.
second = velocity(train(eps, solve(first, eps, 10, rk4)[-1], args.iters))

# --- Figure. The error is the mean distance to the ends of the first net's exact paths (50 steps).
noise, error = torch.randn(2000, 2), {}
exact = solve(first, noise, 50, rk4)[-1]
fig, (chart, left, right) = plt.subplots(1, 3, figsize=(15, 5.4), layout="constrained")
METHODS = {"Euler": (first, euler, 1), "RK4": (first, rk4, 4), "Reflow, Euler": (second, euler, 1)}
for name, (v, step, cost) in METHODS.items():
    nfe = range(cost, 17, cost)
    ends = [solve(v, noise, n // cost, step)[-1] for n in nfe]
    error[name] = [(end - exact).norm(dim=1).mean() for end in ends]
    chart.loglog(nfe, error[name], "o-")
chart.set(title="After reflow, one step is nearly enough", xlabel="NFE", ylabel="error at the end")
chart.legend(error)

def draw(ax, name, num_steps):
    path = solve(METHODS[name][0], noise, num_steps, euler)
    ax.clear()
    ax.plot(*x[:2000].T, ".", color="0.7", ms=3)
    ax.plot(*path[-1].T, ".", ms=3)
    ax.plot(*path[:, :12].movedim(2, 0).numpy(), "k.-")
    ax.set(title=f"{name}, steps: {num_steps} (gray: data, blue: samples)")
    ax.axis([-3, 3, -3, 3])
draw(left, "Euler", args.steps)
draw(right, "Reflow, Euler", 1)
slider = plt.Slider(plt.axes([0.4, 0.01, 0.2, 0.03]), "steps", 1, 16, valinit=args.steps, valstep=1)
slider.on_changed(lambda steps: draw(left, "Euler", int(steps)))
fig.savefig("06_euler.png")

# --- Claims
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Euler ends within 1 std of the exact path", error["Euler"][args.steps - 1], "<", 1)
claim("C2", "1 step after reflow beats 8 before", error["Reflow, Euler"][0], "<", error["Euler"][7])
if args.data is not None:
    np.save("06_euler.npy", mean + std * solve(second, noise, 1, euler)[-1])
print("figure: 06_euler.png (and with --data, 2,000 new samples: 06_euler.npy)")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
