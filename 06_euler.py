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

def read_points(path):
    """Return the points of a table or array, or the dark pixels of an image, as an array (n, 2)."""
    if path.lower().endswith(".npy"):
        return np.load(path)
    if path.lower().endswith((".png", ".jpg", ".jpeg")):
        image = np.atleast_3d(plt.imread(path))  # (height, width, channels)
        gray = np.flipud(image[:, :, :3].mean(2))  # so that y points up
        return np.argwhere(gray.T < gray.mean())  # T swaps rows and columns, so x comes first
    with open(path, encoding="utf-8-sig") as file:
        text = file.read().strip().lstrip('"')
    text = text.replace(",", "." if ";" in text else " ")  # with ";", commas are decimal
    rows = text.replace(";", " ").splitlines()
    assert len(rows) > 1, "found fewer than two rows"
    return np.loadtxt(rows, skiprows=int(text[0].isalpha()))  # skips a header

angle = torch.pi * torch.rand(10_000, 1)
moon = torch.hstack([angle.cos() - 0.5, angle.sin() - 0.25])  # (10000, 2), the upper half circle
points = torch.cat([moon, -moon]) + 0.09 * torch.randn(20_000, 2)
try:
    points = points if args.data is None else torch.tensor(read_points(args.data)).double()
    assert len(points) and points[0].shape == (2,), f"found the shape {list(points.shape)}"
    std, mean = torch.std_mean(points, 0)
    assert std.min() > 0, "found nan, inf, or a column of equal numbers"
except Exception as reason:
    parser.error(f"--data {args.data!r}: {reason}; needed are rows of two numbers")
print(f"We train on 20,000 random draws from {len(points):,} points.")
row = torch.randint(len(points), [20_000])
x = ((points[row] - mean) / std).float()  # (20000, 2)

def euler(v, x, t, h):  # one step from t to t + h, with the velocity at its start
    return x + h * v(x, t)

def rk4(v, x, t, h):  # averages four velocities: at the start, twice in the middle, at the end
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

# --- Training. Lines xt = t x + (1 - t) eps lead from noise to data, with velocity x - eps. Where
# they cross, squared error makes the net predict their mean velocity, v(xt, t) = E[x - eps | xt].
# The mean is enough, because density only changes by what flows in and out, and the flow is density
# times mean velocity (continuity equation). So noise that moves along v becomes data (lesson 05).
def train(eps, x, iters, width=64, batch_size=256, lr=0.02):
    net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        row = torch.randint(len(x), [batch_size])
        t = torch.rand(batch_size, 1)
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

# Reflow pairs each eps with the end of its path. Two paths can't be in one place at the same time,
# because v has one value there. The lines between their ends seldom cross, too, as the small loss
# shows. So one step almost reaches x. But a smooth net can't jump, so some noise ends in the gap.
ends = solve(first, eps, 10, rk4)[-1]  # (20000, 2), exact to 0.0001
second = velocity(train(eps, ends, args.iters))

# --- Figure. From the same noise, how far from the ends of the first net's exact paths do we land?
noise = torch.randn(2000, 2)
exact = solve(first, noise, 50, rk4)[-1]  # (2000, 2), where reflow should lead, too
fig, (chart, left, right) = plt.subplots(1, 3, figsize=(15, 5.4), layout="constrained")
errors = []
for v, step, cost in [(first, euler, 1), (first, rk4, 4), (second, euler, 1)]:  # cost: NFE per step
    samples = [solve(v, noise, n, step)[-1] for n in range(16 // cost + 1)]
    errors.append([(end - exact).norm(dim=1).mean() for end in samples])
    chart.semilogy(range(0, 17, cost), errors[-1], "o-")
euler_error, rk4_error, reflow_error = errors  # one number for 0, 1, 2, ... steps
chart.legend(["Euler", "RK4", "Euler after reflow (flat: second net's error)"])
chart.set(title="After reflow, one step beats eight", xlabel="NFE (0: noise)", ylabel="distance")

def draw(ax, name, v, num_steps, color):
    path = solve(v, noise, num_steps, euler).numpy()  # (num_steps + 1, 2000, 2)
    ax.clear()
    ax.plot(*x[:2000].T, ".", color="0.7", ms=3)
    ax.plot(*path[-1].T, ".", color=color, ms=3)
    ax.plot(path[:, :12, 0], path[:, :12, 1], "k.-")
    ax.legend(["data", "samples", "12 paths (in both panels from the same noise)"])
    ax.set(title=f"{name}, steps: {num_steps}", xlim=[-3, 3], ylim=[-3, 3])
draw(left, "Euler", first, args.steps, "tab:blue")
draw(right, "Euler after reflow", second, 1, "tab:green")
slider = plt.Slider(plt.axes([0.4, 0.01, 0.2, 0.03]), "steps", 1, 16, valinit=args.steps, valstep=1)
slider.on_changed(lambda steps: draw(left, "Euler", first, int(steps), "tab:blue"))
fig.savefig("06_euler.png")

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Euler ends nearer than it starts", euler_error[args.steps], "<", euler_error[0])
claim("C2", "1 step after reflow beats 8 before", reflow_error[1], "<", euler_error[8])
if args.data is not None:
    np.save("06_euler.npy", mean + std * solve(second, noise, 1, euler)[-1])
print("figure: 06_euler.png (and with --data, 2,000 new samples: 06_euler.npy)")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
