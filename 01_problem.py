# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""01 The generative modeling problem: why it is hard to model p_data, and why a path helps.

We have samples of an unknown density p_data and want new ones. In high dimensions, random guesses
hardly ever look like data. A net that maps noise to random data points in one step, with squared
error, finds only their mean. So we choose a path of distributions and learn the velocity along it.

RUN    python 01_problem.py             (5 seconds; the slider sets the number of steps)
BREAK  python 01_problem.py --steps 1   (C2 fails, because one step takes the noise to the mean)
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
if not (1 <= args.steps <= 50 and 1 <= args.iters <= 1_000_000 and 0 <= args.seed < 2**32):
    parser.error("--steps must be 1 to 50, --iters 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Data: two moons, as a mixture of 64 narrow Gaussians, so that p_data has a closed form
# In 2D, plots show every mistake, and training takes seconds. Images need larger nets (lesson 08).
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), the upper half circle
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), divided by the std of the data
STD = 0.09 / 0.7107  # of each Gaussian
def two_moons(n):
    """Return n samples of p_data, of shape (n, 2)."""
    return CENTERS[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- Why it is hard to model p_data
# A net can give every x a score. To get a density, we must divide it by its integral over all x.
# For 28 x 28 pixels, a grid with 100 cells per pixel has 100^784 cells. Even a known p_data is hard
# to sample. Importance sampling draws n guesses x from an easy prior, here N(0, I), with weights
# w = p_data(x) / p_prior(x). Then sum(w f) / sum(w) estimates the mean of any f(x) over the data.
def weight(x):
    """Return p_data(x) / p_prior(x) for x of shape (..., 2)."""
    squared_distance = torch.cdist(x, CENTERS) ** 2  # (..., 64)
    p_data = (-squared_distance / (2 * STD**2)).exp().mean(-1) / (2 * torch.pi * STD**2)
    p_prior = (-x.square().sum(-1) / 2).exp() / (2 * torch.pi)
    return p_data / p_prior

# To get dimension d, we join d / 2 independent points of the moons. Their weights multiply.
n = 100_000
w = weight(torch.randn(3, n, 2)).cumprod(0)  # (3, n), for one point (d = 2), two (4), three (6)

# How good is the estimate? As a rule of thumb, take w as fixed and the values f as independent.
# Then sum(w f) has variance Var(f) sum(w^2). We divide by sum(w), so the estimate has variance
# Var(f) sum(w^2) / sum(w)^2. The plain mean over m real samples has variance Var(f) / m. Both are
# equal for m = sum(w)^2 / sum(w^2). So n guesses are worth m real samples.
def effective_sample_size(w):  # of n weights, (..., n)
    return w.sum(-1) ** 2 / w.square().sum(-1)
# For large n, m / n is E[w]^2 / E[w^2], where x comes from the prior. The means of independent
# factors multiply, so every further point multiplies m / n by the same fraction.
m = effective_sample_size(w)  # (3,)
fraction = m[0] / n  # the exact value is 0.1869
predicted = n * fraction**7  # m for d = 14, where too few guesses hit the data to measure it

# --- Training
# Instead of weighting guesses, we can move them. Lines xt = t x + (1 - t) eps lead from noise eps
# (t = 0) to data x (t = 1) with velocity x - eps. The distributions of xt are our path. When we
# generate, we don't know which x to head for, so the net must predict the velocity from xt and t
# alone. Squared error is smallest for the mean over all lines through xt at t, v = E[x - eps | xt].
# That is enough. Noise that moves with v has the distribution of xt at every t (see lesson 05).
def train(iters, width=64, batch_size=1024, lr=0.03):
    net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        x, eps, t = two_moons(batch_size), torch.randn(batch_size, 2), torch.rand(batch_size, 1)
        xt = t * x + (1 - t) * eps  # (B, 2)
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

# --- Sampling in many steps, because a single one leads to the mean of the data, E[x] = 0
# At t = 0, xt is eps, which says nothing about x. So v is E[x] - eps, and one step ends at E[x].
@torch.no_grad()
def sample(v, xt, num_steps):
    """Move noise xt, (B, D), from t = 0 to 1 with the velocity v(xt, t). Return the path."""
    path = [xt]
    for i in range(num_steps):
        xt = xt + v(xt, i / num_steps) / num_steps
        path.append(xt)
    return torch.stack(path)  # (num_steps + 1, B, D)

def energy_distance(x, y):
    """Return the energy distance of samples x and y, (n, 2) each (Szekely and Rizzo 2013).
    It is 2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 only if both distributions are equal."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item()

v = velocity(train(args.iters))
noise, x = torch.randn(2000, 2), two_moons(2000)
one_step = sample(v, noise, 1)[-1]
gaussian = noise @ torch.linalg.cholesky(x.T.cov()).T  # it has the mean and covariance of the data
limit = energy_distance(gaussian, x)

fig, (chart, *panels) = plt.subplots(1, 6, figsize=(16, 4), layout="constrained")
chart.semilogy([0, 14], [n, predicted], "k--", [2, 4, 6], m, "mo")
chart.axhspan(0.01, 1, color="tab:red", alpha=0.2)
chart.legend([f"{fraction:.3f}^(d/2) n", "measured", "less than 1"], title="effective sample size")
chart.set_title(f"Guessing fails: {n:,} guesses\nare worth {predicted:.1f} samples at d = 14")
chart.set(xlabel="dimension d (measured up to 6)", ylim=(0.01, n))
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
    panels[1].set_title("Moving along a path (gray) works in many steps (blue), not one (orange)")
    panels[4].set_title(f"Energy distance: {energy_distance(path[-1], x):.3f}\n"
                        f"(new data: 0 +- 0.001,\na Gaussian: {limit:.3f})")
draw(args.steps)
slider.on_changed(draw)
fig.savefig("01_problem.png", dpi=120)

# --- Claims. C1's bound is one sample, and C2's is the energy distance of a Gaussian like the data.
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", f"Real samples that {n:,} guesses are worth at d = 14", predicted, "<", 1)
distance = energy_distance(sample(v, noise, args.steps)[-1], x)
claim("C2", f"Energy distance to the data with --steps {args.steps}", distance, "<", limit)
print("figure: 01_problem.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
