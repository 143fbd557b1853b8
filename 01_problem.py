# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""01 The generative modeling problem: why it is hard to model p_data, and why a path helps.

We have samples of an unknown density p_data and want new ones. In high dimensions, random guesses
hardly ever look like data. A net that maps noise to random data points in one step, with squared
error, finds only their mean. So we choose a path of distributions and learn the velocity along it.

RUN    python 01_problem.py             (5 seconds; the slider sets the number of steps)
BREAK  python 01_problem.py --steps 1   (C3 fails, because one step takes the noise to the mean)
PAPER  Owen, Monte Carlo, section 9.3 (effective sample size); arXiv 2210.02747 (flow matching)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=20, help="number of steps (default: %(default)s)")
parser.add_argument("--iters", type=int, default=500, help="for training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.steps <= 50 and 1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--steps must be 1 to 50, --iters 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Data: two moons, as a mixture of 64 narrow Gaussians, so that p_data has a closed form
# In 2D, plots show every mistake, and training takes seconds. Images need larger nets (lesson 08).
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), the upper half circle
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), with variance 1, averaged over x and y
STD = 0.09 / 0.7107  # of each Gaussian

def two_moons(n):
    """Return n samples of p_data, of shape (n, 2)."""
    return CENTERS[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- Why it is hard to model p_data
# A net can give every x a score. To get a density, we must divide it by its integral over all x.
# A grid with 100 cells per dimension has 100^d cells, and even a 28 x 28 image has d = 784.
# A known p_data is still hard to sample. Importance sampling draws n guesses from an easy prior,
# here N(0, I), and gives each guess x the weight w = p_data(x) / p_prior(x). Then sum(w f) / sum(w)
# estimates the mean of f(x) over the data. Variances of independent terms add. So if f does not
# depend on w, its variance is Var(f) sum(w^2) / sum(w)^2. The mean over m real samples has
# variance Var(f) / m. So n guesses are only as good as m = sum(w)^2 / sum(w^2) real samples.
def log_weight(x):
    """Return log(p_data(x) / p_prior(x)) for x of shape (..., 2)."""
    squared_distance = torch.cdist(x, CENTERS) ** 2  # (..., 64)
    log_p = (-squared_distance / (2 * STD**2)).logsumexp(-1) - torch.tensor(64 * STD**2).log()
    return log_p + x.square().sum(-1) / 2  # both densities lack 1 / (2 pi), which cancels

def effective_sample_size(log_w):
    """Return sum(w)^2 / sum(w^2) over the last dimension, where w = exp(log_w)."""
    w = log_w.softmax(-1)  # w / sum(w), safe from overflow
    return 1 / w.square().sum(-1)

# For large n, m is n E[w]^2 / E[w^2]. E[w] is the integral of p_data, which is 1. E[w^2] is the
# integral of p_data times w, the average weight of a real sample. Let x be d / 2 independent points
# of the moons. Its weight is the product of theirs, so E[w^2] grows exponentially, and m shrinks.
n, d = 100_000, torch.arange(2, 20, 2)
ess = effective_sample_size(log_weight(torch.randn(3, n, 2)).cumsum(0))  # (3,), for d = 2, 4, 6
factor = 1 / log_weight(two_moons(n)).exp().mean()  # 1 / E[w^2] for d = 2 (exact: 0.1869)
theory = n * factor ** (d / 2)  # (9,)

# --- Training
# Instead of weighting guesses, we can move them. A line joins noise eps to a data point x. Its
# points xt = t x + (1 - t) eps lead from noise (t = 0) to data (t = 1) with velocity x - eps. Their
# distributions are our path. New noise has no x, so a net predicts the velocity from xt and t. Its
# squared error is smallest for the mean over all lines through xt at t, v = E[x - eps | xt].
# This is enough. A region's probability changes only by the flow through its boundary, which is
# density times mean velocity. So noise that moves with v is distributed like xt (lesson 05).
def train(iters, width=64, batch_size=1024, lr=0.03):
    net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        x, eps, t = two_moons(batch_size), torch.randn(batch_size, 2), torch.rand(batch_size, 1)
        xt = t * x + (1 - t) * eps
        v_hat = net(torch.cat([xt, t], 1))
        loss = (v_hat - (x - eps)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

def velocity(net):  # appends the number t to every row of x (B, 2)
    return lambda x, t: net(nn.functional.pad(x, (0, 1), value=t))

# --- Sampling
# Why not in one step? At t = 0, xt is eps, which says nothing about x. The best prediction is then
# E[x] - eps, and one step ends at E[x], the mean of the data (here 0). Later, xt says more.
@torch.no_grad()
def sample(v, xt, num_steps):
    """Move noise xt, (B, 2), from t = 0 to 1 with velocity v(xt, t). Return its path."""
    path = [xt]
    for i in range(num_steps):
        xt = xt + v(xt, i / num_steps) / num_steps
        path.append(xt)
    return torch.stack(path)  # (num_steps + 1, B, 2)

def energy_distance(x, y):
    """Return the energy distance of samples x and y, (n, 2) each (Szekely and Rizzo 2013).
    It is 2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 only if both distributions are equal."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item()

# --- Figure
v = velocity(train(args.iters))
noise, x = torch.randn(2000, 2), two_moons(2000)
one_step, unmoved = sample(v, noise, 1)[-1], energy_distance(noise, x)
fig, (chart, *panels) = plt.subplots(1, 6, figsize=(16, 4), layout="constrained")
chart.semilogy(d, theory, "k--", d[:3], ess, "mo")
chart.axhspan(0.01, 1, color="tab:red", alpha=0.2)
chart.legend([f"{factor:.3f}^(d/2) n", "measured", "less than 1"], title="effective sample size")
chart.set(title=f"{n:,} guesses equal\n{theory[6]:.1f} samples at d = 14", xlabel="dimension d")
slider = plt.Slider(plt.axes([0.5, 0.06, 0.3, 0.05]), "steps", 1, 50, valinit=args.steps, valstep=1)
def draw(steps):
    path = sample(v, noise, int(steps))
    for ax, i in zip(panels, torch.linspace(0, steps, 5).round().int()):
        t = i / steps
        ax.clear()
        ax.plot(*(t * x + (1 - t) * noise).T, ".", color="0.7", ms=3)
        ax.plot(*path[i].T, ".", ms=3)  # blue
        ax.set(xlabel=f"t = {t:.2f}", xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect=1)
    panels[4].plot(*one_step.T, ".", ms=3)  # orange
    panels[2].set_title(f"Steps: 1 (orange), {steps:.0f} (blue). Energy distance of blue to data "
                        f"(gray): {energy_distance(path[-1], x):.3f} (of noise: {unmoved:.3f})")
draw(args.steps)
slider.on_changed(draw)
fig.savefig("01_problem.png", dpi=120)

# --- Claims. C2's bound is the variance around a center. C3's is below a fitted Gaussian's (0.02).
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
error = ((ess / n) ** (2 / d[:3]) / factor - 1).abs().max()  # with c / d^2: 0.47
claim("C1", f"Effective sample size is {factor:.3f}^(d/2) n. Error of the factor", error, "<", 0.47)
claim("C2", "Mean square of x after one step (data: 1)", one_step.square().mean(), "<", STD**2)
distance = energy_distance(sample(v, noise, args.steps)[-1], x)
claim("C3", f"Energy distance to the data with --steps {args.steps}", distance, "<", unmoved / 4)
print("figure: 01_problem.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
