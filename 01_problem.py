# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""01 The generative modeling problem: why it is hard to model p_data, and why a path helps.

We have samples of an unknown density p_data and want new ones. In high dimensions, random guesses
hardly ever look like data. So we choose a path of distributions from noise to data, and learn the
velocity along it. Many small steps then lead to data, but a single step leads only to their mean.

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
parser.add_argument("--iters", type=int, default=500, help="of the training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.steps <= 50 and 1 <= args.iters <= 1_000_000 and 0 <= args.seed < 2**32):
    parser.error("--steps must be 1 to 50, --iters 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Data: two moons, as a mixture of 64 narrow Gaussians, so that p_data has a closed form
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
# w = p_data(x) / p_prior(x). The prior cancels in the weighted mean of any function f of x:
#     E_prior[w f] = integral of p_prior (p_data / p_prior) f = integral of p_data f = E_data[f]
# To sample, we pick guesses with probability w / sum(w). The mean of f is then sum(w f) / sum(w),
# which tends to E_data[f] as n grows. So with enough guesses, the picks are distributed like data.
def weight(x):
    """Return p_data(x) / p_prior(x) for x of shape (..., 2)."""
    squared_distance = torch.cdist(x, CENTERS) ** 2  # (..., 64)
    p_data = (-squared_distance / (2 * STD**2)).exp().mean(-1) / (2 * torch.pi * STD**2)
    p_prior = (-x.square().sum(-1) / 2).exp() / (2 * torch.pi)
    return p_data / p_prior

# To get dimension d, we join d / 2 independent points of the moons. Their weights multiply.
n = 100_000
w = weight(torch.randn(3, n, 2)).cumprod(0)  # (3, n), for one point (d = 2), two (4), three (6)

# How many guesses count? If m of them have equal weights and the others 0, sum(w)^2 / sum(w^2) = m.
# For any weights, this ratio is called the effective sample size. It is at least 1.
m = w.sum(1) ** 2 / w.square().sum(1)  # (3,)
# For large n, m / n is E_prior[w]^2 / E_prior[w^2]. The means of independent factors multiply, so
# every further point multiplies m by the same fraction, m / n at d = 2. A prediction below 1 means
# that we can't expect even one of the n guesses to hit the data.
predicted = n * (m[0] / n) ** 7  # for seven points, so d = 14

# --- Training
# Instead of weighting guesses, we can move them. Then each becomes a sample. We show it at d = 2.
# Guessing works there, too, but plots show mistakes. The method is the same for images (lesson 08).
# Lines xt = t x + (1 - t) eps lead from noise eps (t = 0) to data x (t = 1) with velocity x - eps.
# The distributions of xt are our path. To generate, the net must predict the velocity without x,
# from xt and t. Squared error is smallest for the mean over lines through xt, v = E[x - eps | xt].
# The mean is enough. Density changes only by what flows in and out, and the flows of all lines at
# a place add up to density times v. So noise moved by v has the density of xt at any t (lesson 05).
def train(sample_data, dim, iters, width=64, batch_size=1024, lr=0.03):
    net = nn.Sequential(nn.Linear(dim + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, dim))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        x = sample_data(batch_size)  # (B, dim)
        eps, t = torch.randn_like(x), torch.rand(batch_size, 1)
        xt = t * x + (1 - t) * eps  # (B, dim)
        v_hat = net(torch.cat([xt, t], 1))
        loss = (v_hat - (x - eps)).square().mean()  # not 0 even for v, because lines cross
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

# --- Sampling. At t = 0, xt = eps says nothing about x, so v = E[x] - eps. One step ends at E[x].
@torch.no_grad()
def sample(net, xt, num_steps):
    """Move noise xt, (B, dim), from t = 0 to 1 with the velocity of the net. Return the path."""
    path = [xt]
    for i in range(num_steps):
        t = torch.full((len(xt), 1), i / num_steps)
        xt = xt + net(torch.cat([xt, t], 1)) / num_steps
        path.append(xt)
    return torch.stack(path)  # (num_steps + 1, B, dim)

def energy_distance(x, y):
    """Return the energy distance of samples x and y, (n, 2) each (Szekely and Rizzo 2013).
    It is 2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 only if both distributions are equal."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item()

net = train(two_moons, 2, args.iters)
noise, x = torch.randn(2000, 2), two_moons(2000)
gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov()).sample([2000])
limit = energy_distance(gaussian, x)  # what a fitted Gaussian reaches: the bound of C2

fig, (chart, *panels) = plt.subplots(1, 6, figsize=(16, 4), layout="constrained")
chart.semilogy([0, 14], [n, predicted], "k--", [2, 4, 6], m, "mo")
chart.legend(["predicted", "measured"], loc="upper right")
chart.axhspan(0.01, 1, color="tab:red", alpha=0.2)
chart.set_title(f"Guessing fails: at d = 14,\n{predicted:.1f} of {n:,} guesses count")
chart.set(xlabel="dimension d", ylabel="effective sample size (red: below 1)", ylim=(0.01, n))
slider = plt.Slider(plt.axes([0.5, 0.06, 0.3, 0.05]), "steps", 1, 50, valinit=args.steps, valstep=1)

def draw(steps):
    path = sample(net, noise, int(steps))
    for k, ax in enumerate(panels):
        i = round(k / 4 * steps)  # the step nearest to t = k / 4
        t = i / steps
        ax.clear()
        ax.plot(*(t * x + (1 - t) * noise).T, ".", color="0.8", ms=9)  # gray
        ax.plot(*path[i].T, ".", ms=2)  # blue
        ax.set(xlabel=f"t = {t:.2f}", xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect=1)
    ax.plot(*sample(net, noise, 1)[-1].T, ".", ms=2)  # orange
    distance = energy_distance(path[-1], x)
    ax.set_title(f"Energy distance {distance:.3f}\n(fitted Gaussian: {limit:.3f})\norange: 1 step")
    result = "follows" if distance < limit else "misses"
    panels[2].set_title(f"At d = 2, moved noise (blue) {result} the path (gray)")
draw(args.steps)
slider.on_changed(draw)
fig.savefig("01_problem.png", dpi=120)

# --- Claims. C2's bound is the energy distance of a Gaussian with the data's mean and covariance.
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", f"Predicted effective sample size of {n:,} guesses at d = 14", predicted, "<", 1)
distance = energy_distance(sample(net, noise, args.steps)[-1], x)
claim("C2", f"Energy distance to the data with --steps {args.steps}", distance, "<", limit)
print("figure: 01_problem.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
