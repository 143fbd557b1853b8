# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""06 Euler ODEs: from noise to data in a few steps, along a learned velocity.
Join noise eps to data x by a line, xt = t x + (1 - t) eps: a point on it moves with x - eps.
Many lines pass one place at one time; a net trained by squared error answers there with the
mean of their velocities, v(xt, t). Through each place v carries as much as all its lines, so noise
that follows v is spread as their points are, at every t (lesson 05). To sample, solve the ODE
dx/dt = v(x, t) from t = 0 to 1. Its paths bend where other lines join in; bends need many steps.
Reflow trains again, on lines from each eps to the x that ITS path reached. Neighbours mostly go
the same way, so these lines run side by side. The loss tells how well: it is the variance of the
velocities at one place, 1.36 for random pairs, .0003 now. So v is constant: ONE step will do.
C1 --steps Euler steps end closer to the data than the noise began.
C2 After one reflow, ONE Euler step ends on the data.
RUN    python 06_euler.py --steps 5    (8 seconds; --data FILE learns points of your own)
BREAK  python 06_euler.py --steps 1    noise at t = 0 tells nothing of x: all go to the mean
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
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), places on a half circle
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), on both moons; .7107 makes the mean variance 1
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each place in MU
def two_moons(n):
    """n samples of p_data, (n, 2)."""
    return MU[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

def read_points(path):
    """Two columns of a .csv, .tsv, .txt or .npy, or the dark pixels of a .png or .jpg: (n, 2)."""
    if path.endswith((".png", ".jpg")):
        grey = np.atleast_3d(plt.imread(path))[..., :3].mean(2)
        return np.argwhere(grey < grey.mean())[:, ::-1] * [1.0, -1.0]  # (right, up) in pixels
    if path.endswith(".npy"):
        return np.load(path).astype(float)
    if not path.endswith((".csv", ".tsv", ".txt")):
        raise ValueError("unknown ending, use .csv, .tsv, .txt, .npy, .png, .jpg")
    points = []
    for number, line in enumerate(open(path, encoding="utf-8-sig").read().strip().splitlines(), 1):
        comma = "." if "\t" in line or ";" in line else " "  # beside those, a decimal comma
        try:
            points.append([float(n) for n in line.replace(",", comma).replace(";", " ").split()])
        except ValueError:  # only the first row may be words: a header
            assert number == 1, f"row {number} is not a number: {line}"
    return points
try:
    points = torch.tensor(read_points(args.data)).float() if args.data else two_moons(10_000)
    assert points.shape[1:] == (2,), f"found {points.shape[-1]} columns, two are needed"
    x = (points - points.mean(0)) / (points - points.mean(0)).square().mean().sqrt()
    assert len(x) and x.isfinite().all(), "found no points, or not finite, or all alike"
except Exception as error:
    parser.error(f"--data {args.data}: {error}")

# --- method: a step from t to t + h by 1, 2 or 4 calls of v; a path's error falls as h, h^2, h^4
def euler(v, x, t, h):
    return x + h * v(x, t)
def heun(v, x, t, h):
    k1 = v(x, t)
    return x + h * (k1 + v(x + h * k1, t + h)) / 2
def rk4(v, x, t, h):
    k1 = v(x, t)
    k2 = v(x + h / 2 * k1, t + h / 2)
    k3 = v(x + h / 2 * k2, t + h / 2)
    k4 = v(x + h * k3, t + h)
    return x + h * (k1 + 2 * k2 + 2 * k3 + k4) / 6

def solve(v, x, n_steps, step):
    """Carry x (B, D) from t = 0 to t = 1 in n_steps: the whole path, (n_steps + 1, B, D)."""
    path = [x]
    for i in range(n_steps):
        path.append(step(v, path[-1], i / n_steps, 1 / n_steps))
    return torch.stack(path)

# --- train
def train_velocity(x, eps, iters):
    """Learn the mean velocity of the lines from eps[i] to x[i], (n, 2). Returns v(xt, t)."""
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95), fused=True)  # short memory
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
    return lambda xt, t: net(torch.cat([xt, torch.full_like(xt[:, :1], t)], 1)).detach()
eps = torch.randn_like(x)  # one for each x: fixed pairs, as they will be after reflow
first = train_velocity(x, eps, args.iters)
reached = solve(first, eps, 10, rk4)[-1]  # 10 steps of RK4 are as good as exact
second = train_velocity(reached, eps, args.iters)  # reflow

# --- measure
def energy_distance(x, y):
    """How much farther two clouds (n, 2) are from each other than from themselves: 0 if alike."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item() if x.abs().max() < 1e3 else float("inf")  # diverged, or nan
noise, real = torch.randn(2500, 2), x[torch.randint(len(x), (2500,))]
before = energy_distance(noise, real)
after = energy_distance(solve(first, noise, args.steps, euler)[-1], real)  # C1
reflow = energy_distance(solve(second, noise, 1, euler)[-1], real)  # C2

# --- figure
fig, axes = plt.subplots(1, 4, sharex=True, sharey=True, figsize=(14, 4), layout="constrained")
fig.suptitle(f"energy distance of samples (blue) to data (grey); noise {before:.3f}; right: reflow")
slider = plt.Slider(plt.axes([0.4, 0.01, 0.2, 0.04]), "steps", 1, 50, valinit=args.steps, valstep=1)

def draw(_):
    for ax, v, step in zip(axes, [first, first, first, second], [euler, heun, rk4, euler]):
        path = solve(v, noise, int(slider.val) if v is first else 1, step)  # reflow: one step
        distance = energy_distance(path[-1], real)
        ax.clear()
        ax.plot(*real.T, ".", color="0.7", ms=2)
        ax.plot(*path[-1].T, ".", color="tab:blue" if distance < before else "tab:red", ms=2)
        ax.plot(path[:, :40, 0], path[:, :40, 1], "ko-", lw=0.6, ms=3, markevery=[0])
        ax.set(title=f"{step.__name__}, {len(path) - 1} steps: {distance:.4f}", aspect="equal")
draw(None)
slider.on_changed(draw)
fig.savefig("06_euler.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if not args.data:  # the bounds are those of the moons
    claim("C1", f"{args.steps} Euler steps, energy distance", after, "<", before)
    claim("C2", "one step after reflow (two real draws 0 +- .001)", reflow, "<", 0.1 * before)
print("figure: 06_euler.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
