# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""06 Euler ODEs and reflow: sampling from a flow-matching model in a few steps.

The learned velocity moves noise to data on curves, and a few large Euler steps drift off. From four
evaluations of the net (NFE) on, Heun and RK4 err less. Reflow makes the curves nearly straight.
RUN    python 06_euler.py --steps 5   (7 seconds; move the slider, or try your own --data FILE)
BREAK  python 06_euler.py --steps 1   (C1 fails: every sample ends near the mean of the data)
PAPER  arXiv 2209.03003, equation 1 (loss) and algorithm 1 (reflow), by Liu et al."""
import argparse, signal
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

def read_points(path):  # rows of a table or array, or dark pixels of an image, as an array (n, 2)
    if path.lower().endswith(".npy"):
        return np.load(path)
    if path.lower().endswith((".png", ".jpg", ".jpeg")):
        image = np.atleast_3d(plt.imread(path))[::-1].T  # (channels, width, height), y points up
        ink = (1 - image[:3].mean(0)) * image[3:].prod(0)  # a fourth channel is opacity
        return np.argwhere(ink > ink.mean())  # works for 0 to 1 (png) and for 0 to 255 (jpg)
    text = open(path, encoding="utf-8-sig", errors="replace").read().strip()
    text = text.replace(",", "." if ";" in text else " ")  # with semicolons, 1,5 is 1.5
    rows = text.replace(";", " ").splitlines()
    assert len(rows) > 1, "found fewer than two rows"
    return np.loadtxt(rows, skiprows=int(text[0] not in "+-.0123456789"))  # skips a header

angle = torch.pi * torch.rand(10_000, 1)
moon = torch.hstack([angle.cos() - 0.5, angle.sin() - 0.25])  # (10000, 2), the upper half circle
points = torch.cat([moon, -moon]) + 0.09 * torch.randn(20_000, 2)
try:
    points = points if args.data is None else torch.tensor(read_points(args.data)).double()
    assert len(points) > 1 and points[0].shape == (2,), f"found the shape {list(points.shape)}"
    std, mean = torch.std_mean(points, 0)
    assert std.min() > 0, "found nan, inf, or a column of equal numbers"
except Exception as reason:
    parser.error(f"--data {args.data!r}: {reason}; needed are rows of two numbers or dark pixels")
print(f"We train on 20,000 draws, with replacement, from {len(points):,} points.")
x = points[torch.randint(len(points), [20_000])]
x = ((x - mean) / std).float()  # (20000, 2)

def euler(v, x, t, h):  # one step of dx/dt = v(x, t), from t to t + h. Its error falls like h
    return x + h * v(x, t)

def heun(v, x, t, h):  # like h^2: averages the velocities at both ends of a step
    k1 = v(x, t)
    k2 = v(x + h * k1, t + h)  # at the end of the step
    return x + h * (k1 + k2) / 2

def rk4(v, x, t, h):  # like h^4: averages four velocities, with the weights of Simpson's rule
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

# --- Training. Lines from noise to data cross at xt, and squared error makes v their mean velocity.
# This decides how many points cross any border, so noise that follows v becomes data (lesson 05).
def train(eps, x, iters, width=64, batch_size=256, lr=0.02):
    net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        row = torch.randint(len(x), [batch_size])
        t = torch.rand(batch_size, 1)
        target = x[row] - eps[row]  # (B, 2), the velocity of the lines
        xt = eps[row] + t * target  # (B, 2), the points t x + (1 - t) eps on the lines
        loss = nn.functional.mse_loss(net(torch.hstack([xt, t])), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 500 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net
def velocity(net):  # appends the number t to every row of x (B, 2)
    return lambda x, t: net(nn.functional.pad(x, (0, 1), value=t))

eps = torch.randn_like(x)  # independent of x: at t = 0, v = E[x] - eps leads to the mean
first = velocity(train(eps, x, args.iters))

# Reflow pairs each eps with the end x of its path, and trains on the straight lines between them.
# Now eps decides x. So at t = 0, v is x - eps, and a single step leads to x.
ends = solve(first, eps, 10, rk4)[-1]  # (20000, 2), with 40 NFE, once
second = velocity(train(eps, ends, args.iters))
noise = torch.randn(2000, 2)
exact = solve(first, noise, 50, rk4)  # (51, 2000, 2). v is continuous, so some end in gaps
error = lambda v, n, step: (solve(v, noise, n, step)[-1] - exact[50]).norm(dim=1).mean()
euler_error = [error(first, n, euler) for n in range(17)]
reflow_error = [error(second, n, euler) for n in range(17)]  # levels off at the second net's error
fig, ((ax_1, ax_2), (ax_3, chart)) = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
fig.suptitle("Gray: data. Dashed: exact paths. Black: steps. Red: over 0.2 from the exact end")
chart.semilogy(euler_error, "o-", reflow_error, "o-")
chart.semilogy(range(0, 17, 2), [error(first, n, heun) for n in range(9)], "C4o-")  # 2 NFE a step
chart.semilogy(range(0, 17, 4), [error(first, n, rk4) for n in range(5)], "C2o-")  # 4 NFE a step
chart.legend(["first net, Euler", "after reflow, Euler", "first net, Heun", "first net, RK4"])
chart.set(title=f"1 step after reflow: {reflow_error[1]:.2f} off, 8 before: {euler_error[8]:.2f}",
          xlabel="NFE (0: the noise itself)", ylabel="distance to the first net's exact end")

def draw(n):
    for ax, title, path, color in [  # path (num_steps + 1, 2000, 2)
            (ax_1, "First net, RK4 steps: 50", exact, "C9"),
            (ax_2, f"First net, Euler steps: {n}", solve(first, noise, n, euler), "C0"),
            (ax_3, "After reflow, Euler steps: 1", solve(second, noise, 1, euler), "C1")]:
        far = (path[-1] - exact[50]).norm(dim=1) > 0.2  # (2000,)
        ax.clear()
        ax.scatter(*x[:6000].T, 3, "0.8")
        for i in range(10, 16):  # six of 2000
            ax.plot(*exact[:, i].T, "ko--", mfc="w", ms=10, markevery=[50])
            ax.plot(*path[:, i].T, "k.-", ms=4)
        ax.axis(ax.axis())  # freezes the limits before the samples come
        ax.scatter(*path[-1].T, 3, np.where(far, "r", color))
        ax.set(title=f"{title} ({far.float().mean():.0%} red)", xticks=[], yticks=[])
draw(args.steps)
slider = plt.Slider(plt.axes([0.1, 0.01, 0.2, 0.03]), "steps", 1, 16, valinit=args.steps, valstep=1)
slider.on_changed(lambda n: draw(int(n)))
fig.savefig("06_euler.png")

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Euler ends nearer than it starts", euler_error[args.steps], "<", euler_error[0])
claim("C2", "1 step after reflow beats 8 before", reflow_error[1], "<", euler_error[8])
if args.data:
    np.save("06_euler.npy", mean + std * solve(second, noise, 1, euler)[-1])  # one step each
print("figure: 06_euler.png (and with --data, 2,000 new samples: 06_euler.npy)")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
