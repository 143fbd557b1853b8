# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""01 The generative modeling problem: why it is hard to model p_data, and why a path helps.

We have samples of an unknown density p_data and want new ones. In high dimensions, random guesses
hardly ever look like data. So we choose a path of distributions from noise to data, and learn the
velocity along it. Twenty small steps then lead to data. One large step ends near the data's mean.
RUN    python 01_problem.py             (5 seconds; the slider sets the number of steps)
BREAK  python 01_problem.py --steps 1   (C2 fails: one step takes the noise close to the mean)
PAPER  Owen, Monte Carlo, section 9.3 (effective sample size); arXiv 2210.02747 (flow matching)"""
import argparse, signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=20, help="number of steps (default: %(default)s)")
parser.add_argument("--iters", type=int, default=700, help="training iterations (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.steps <= 50 and 1 <= args.iters <= 1_000_000 and 0 <= args.seed < 2**32):
    parser.error("--steps must be 1 to 50, --iters 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Data: films of a dot that runs along one moon, jumps to the other, and runs along that. A film
# x is a vector of 14 numbers, the position in 7 frames plus noise. For d < 14, we keep the first d.
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), the upper half circle
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), so that the mean |x|^2 is 2, as in N(0, I)
STD = 0.09 / 0.7107  # of the noise, which makes p_data a mixture of 64 narrow Gaussians
FILMS = torch.cat([CENTERS.roll(-9 * k, 0) for k in range(7)], 1)  # (64, 14), steps of 9 centers

def films(n):
    """Return n samples of p_data, of shape (n, 14)."""
    return FILMS[torch.randint(64, (n,))] + STD * torch.randn(n, 14)

# --- Why it is hard to model p_data. A net can rate any x. To get a density, we must divide the
# ratings by their integral over all x. For most nets, this integral is out of reach on images.
# Even a known p_data is hard to sample. Importance sampling draws n guesses x from an easy prior,
# here N(0, I), and picks some of them with probabilities proportional to their weights w.
def weight(x):
    """Return w = p_data(x) / p_prior(x) for x of shape (n, d), the first d of the 14 numbers."""
    d = x.shape[1]
    squared_distance = torch.cdist(x, FILMS[:, :d]) ** 2  # (n, 64)
    p_data = (-squared_distance / (2 * STD**2)).exp().mean(1) / STD**d
    p_prior = (-x.square().sum(1) / 2).exp()
    return p_data / p_prior  # (2 * pi)^(-d / 2), a factor of both, cancels

# How many guesses count? If m of them have equal weights and the others 0, sum(w)^2 / sum(w^2) = m.
# For any weights, this is called the effective sample size. For large n, we expect
#     sum(w) / n   = E_prior[w]   = integral of p_prior * w     = integral of p_data     = 1
#     sum(w^2) / n = E_prior[w^2] = integral of p_prior * w * w = integral of p_data * w = E_data[w]
# So n guesses replace n^2 / (n E_data[w]) = n / E_data[w] samples. At 0.001, even one sample takes
# a thousand times as many guesses.
n, dims = 10**9, range(2, 15, 2)  # guesses, and dimensions 2 to 14
expected = [n / weight(films(10_000)[:, :d]).mean() for d in dims]

# --- Training. Instead of weighting guesses, we can move them. Then each becomes a sample.
# Lines xt = t * x + (1 - t) * eps lead from noise eps (t = 0) to data x (t = 1). Their velocity is
# x - eps, and the distributions of xt are our path. To generate, a net must predict the velocity
# from xt and t alone. Squared error makes it predict the mean, v(xt, t) = E[x - eps | xt].
# This is enough (lesson 05): how many points enter or leave a region depends only on their mean
# velocity at its border. So noise that moves with v has the distribution of xt at every t.
def train(sample_data, dim, iters, width=96, batch_size=512, lr=0.01):
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

# --- Sampling. At t = 0, xt = eps says nothing about x, so v = E[x] - eps. One exact step ends at
# E[x] = 0, and one of our net, which is not exact, in a cloud around it.
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
    """Return the energy distance of samples x and y, (n, D) each (Szekely and Rizzo 2013).
    It is 2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 only if both distributions are equal."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item()

net = train(films, 14, args.iters)
noise, x = torch.randn(2000, 14), films(2000)
gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov()).sample([2000])
limit = energy_distance(gaussian, x)  # a sampler must beat this Gaussian, which is fitted to x
fig, axes = plt.subplot_mosaic("AABB;AABB;CDGG;EFGG", figsize=(10, 10), layout="constrained")
fig.supxlabel("\n")  # leaves room for the slider
chart, panel, *panels = axes.values()
chart.semilogy(dims, expected, "ko--")
chart.set(xlabel="dimension d", ylabel="samples that a billion\nguesses replace", xticks=dims)
chart.set_title(f"In 14 dimensions, a billion guesses\nreplace {expected[-1]:.3f} samples")
slider = plt.Slider(plt.axes([0.4, 0.02, 0.3, 0.03]), "steps", 1, 50, valinit=args.steps, valstep=1)

def draw_panel(ax, path, time, distance):  # the part of a path up to a time, coordinates 1 and 2
    i = round(time * (len(path) - 1))  # the step nearest to this time
    t = i / (len(path) - 1)
    exact = (t * x + (1 - t) * noise)[:, :2]  # (2000, 2), points xt on the lines
    tracks = path[:i + 1, :10, :2].permute(2, 0, 1).numpy()  # (2, i + 1, 10), of ten points
    ax.clear()
    ax.plot(*exact.T, ".", color="0.8", ms=9)
    color = "C3." if t == 1 and distance > limit else "C0."
    ax.plot(*path[i, :, :2].T, color, ms=2)
    ax.plot(*tracks, "ko-", mfc="w", markevery=[0])
    ax.set(xlabel=f"t = {t:.2f}", xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect=1)

def draw(steps):
    path, one_step = sample(net, noise, int(steps)), sample(net, noise, 1)
    distance, one_step_distance = [energy_distance(ends[-1], x) for ends in (path, one_step)]
    draw_panel(panel, one_step, 1, one_step_distance)
    for ax, time in zip(panels, [0, 0.25, 1, 0.5, 0.75]):
        draw_panel(ax, path, time, distance)
    panel.set_title(f"One step aims at the mean. Energy distance: {one_step_distance:.3f}\n"
                    f"(red: over {limit:.3f}, that of a fitted Gaussian)")
    panels[0].set_title("Noise (blue), exact path (gray), tracks,\n2 of 14 coordinates", loc="left")
    panels[2].set_title(f"Steps: {steps:.0f}. Energy distance: {distance:.3f}")
draw(args.steps)
slider.on_changed(draw)
fig.savefig("01_problem.png", dpi=120)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", f"Samples that {n:,} guesses at d = 14 replace", expected[-1], "<", 1)
ends = sample(net, noise, args.steps)[-1]
claim("C2", f"Energy distance with --steps {args.steps}", energy_distance(ends, x), "<", limit)
print("figure: 01_problem.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
