# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""05 Conditional flow matching: learn the mean velocity of random lines from noise to data.

At each point, take the mean velocity of all lines through it. Noise that moves so becomes data.
RUN    python 05_cfm.py             (5 seconds; the slider sets the time t)
BREAK  python 05_cfm.py --target x  (C3 fails: x is a place, not a velocity, so noise misses data)
PAPER  arXiv 2210.02747, equations 8 (mean), 9 (loss), and 26 (continuity), by Lipman et al."""
import argparse, signal
import matplotlib.pyplot as plt
import torch
from torch import autograd, nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--target", choices=["v", "x"], default="v", help="learn v (default) or x")
parser.add_argument("--iters", type=int, default=1000, help="training iterations (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core
torch.set_default_dtype(torch.float64)  # because C1 checks ten digits

# --- Data: two moons, as a mixture of 64 narrow Gaussians, so that p_data has a closed form
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), the upper half circle
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), so that the mean |x|^2 is 2, as in N(0, I)
STD = 0.09 / 0.7107  # of each Gaussian

def two_moons(n):
    """Return n samples of p_data, of shape (n, 2)."""
    return CENTERS[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- Training. A point moves on a straight line from noise eps (t = 0) to data x (t = 1). It is at
# xt = t * x + (1 - t) * eps, and its velocity is d(xt)/dt = x - eps. Lines cross, so the same xt
# comes with different targets x - eps. Let v be their mean. Then the mean of (net - target)^2 is
#     (net - v)^2 + mean of (v - target)^2
# because at fixed xt and t, the cross term, 2 * (net - v) * (v - target), averages to 0. Only the
# first part depends on the net, and it is lowest at net = v. So the net learns E[x - eps | xt].
def train(iters, target, width=32, batch_size=1024, lr=0.04):  # a high rate, as iterations are few
    net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(batch_size), torch.randn(batch_size, 2)
        t = torch.rand(batch_size, 1)
        xt = t * x + (1 - t) * eps
        goal = x - eps if target == "v" else x  # with x, it learns E[x | xt] instead
        loss = (net(torch.cat([xt, t], 1)) - goal).square().mean()  # stays above 0, as lines cross
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

@torch.no_grad()
def sample(v, noise, num_steps=50):  # moves noise (B, 2) along v(xt, t) from t = 0 to t = 1
    path = [noise]
    for i in range(num_steps):
        t = torch.full((len(noise), 1), i / num_steps)
        path.append(path[-1] + v(path[-1], t) / num_steps)
    return torch.stack(path)  # (num_steps + 1, B, 2)

# --- Why it works. Points on the lines never appear or vanish. So in a small box, their density
# p(xt, t) changes only by what flows in and out. A flow is density times velocity. Where lines
# cross, their flows add up to p * v, because v is the mean of their velocities. So
#     dp/dt = -div(p * v)    (the continuity equation; div measures what leaves the box)
# Now let noise move with v. Its density q obeys the same rule, dq/dt = -div(q * v). At t = 0, both
# are noise, so q = p. If v is smooth, the rule has one solution. So at t = 1, q is p_data.

# --- Check. For our data, v has a formula. Given the center, x and xt are jointly Gaussian, so
#     E[x | xt, center] = center + slope * (xt - t * center)  with  slope = cov(x, xt) / var(xt)
# This is linear in center. So to average over centers, given xt, put c = E[center | xt] there.
def log_likelihoods(xt, t):  # log p(xt | center) for xt (B, 2) and t (B, 1)
    var = (t * STD) ** 2 + (1 - t) ** 2  # (B, 1)
    offset = xt[:, None] - t[:, None] * CENTERS  # (B, 1, 2) - (B, 1, 1) * (64, 2) = (B, 64, 2)
    return -offset.square().sum(2) / (2 * var) - (2 * torch.pi * var).log()  # (B, 64)

def mean_data(xt, t):  # E[x | xt], (B, 2)
    c = log_likelihoods(xt, t).softmax(1) @ CENTERS  # E[center | xt], by Bayes' rule
    slope = t * STD**2 / ((t * STD) ** 2 + (1 - t) ** 2)  # (B, 1), as cov(x, xt) = t * STD^2
    return c + slope * (xt - t * c)

def mean_velocity(xt, t):  # v = E[x - eps | xt], (B, 2), for t < 1
    return (mean_data(xt, t) - xt) / (1 - t)  # as x - eps = (x - xt) / (1 - t)

def derivative(f, z, k):  # (B,), row i is the derivative of f[i] by z[i, k]
    return autograd.grad(f.sum(), z, retain_graph=True)[0][:, k]  # f[i] depends on z[i] only

def continuity_error(v, xt, t):  # the norm of dp/dt + div(p * v), divided by that of dp/dt
    xt, t = xt.clone().requires_grad_(), t.clone().requires_grad_()
    p = log_likelihoods(xt, t).exp().mean(1)  # (B,), as all centers are equally likely
    flow_0, flow_1 = p * v(xt, t).T  # (B,) * (2, B) = (2, B), so (B,) each
    dp_dt = derivative(p, t, 0)
    div = derivative(flow_0, xt, 0) + derivative(flow_1, xt, 1)  # (B,)
    return (dp_dt + div).norm() / dp_dt.norm()

net = train(args.iters, args.target)
x, eps = two_moons(2000), torch.randn(2000, 2)
moved = sample(lambda xt, t: net(torch.cat([xt, t], 1)), eps)  # (51, 2000, 2)
gap = (moved - sample(mean_velocity, eps))[-1].norm(dim=1).mean()
paths = [moved, sample(mean_data, eps)]  # of the second and the third panel
spot = -torch.tensor([[0.9, 1.0]])  # (1, 2), here we make ten lines cross
nearest = ((x + eps) / 2 - spot).norm(dim=1).argsort()[:10]  # their middles are nearest to it
line_x, line_eps = x[nearest], 2 * spot - x[nearest]  # (10, 2), we shift their noise
titles = ["Lines from noise (circles) meet at t = 0.5.\nNoise follows the mean velocity (orange)",
          f"A net learns the mean {'velocity' if args.target == 'v' else 'of x'} (orange).\n"
          f"Moved with it, noise (blue) {'ends as' if gap < STD else 'misses'} data (gray)",
          "The mean of x is a place, not a velocity.\nMoved with it, noise overshoots the data"]
fig, axes = plt.subplots(1, 3, figsize=(12, 4.3), layout="constrained")
slider = plt.Slider(plt.axes([0.5, 0.04, 0.4, 0.04]), "black: paths to time t", 0, 1, valinit=1)
side = torch.linspace(-2.4, 2.4, 8)
def draw(t):
    i = round(50 * t)
    for ax, title in zip(axes, titles):
        ax.clear()
        ax.set(title=title, aspect=1)
        ax.axis([-3, 3, -2.5, 2.5])
        ax.scatter(*x.T, 20, "0.85")
    axes[0].plot(*line_eps.T, "ko", mfc="w")
    axes[0].quiver(*line_eps.T, *(line_x - line_eps).T, scale=6, width=0.004)  # the axes are 6 wide
    mean = mean_velocity(spot, torch.tensor([[0.5]]))
    axes[0].quiver(*spot.T, *mean.T, scale=6, width=0.015, color="C1", pivot="mid")
    for ax, path in zip(axes[1:], paths):
        ax.scatter(*path[i].T, 3)
        for k in range(20):  # paths, with a circle where they start
            ax.plot(*path[:i + 1, k].T, "ko-", mfc="w", markevery=[0])
    places = torch.cartesian_prod(side, side, torch.tensor([i / 50]))  # (64, 3): xt and t
    axes[1].quiver(*places.T[:2], *net(places).detach().T, scale=30, color="sandybrown")
draw(1)
slider.on_changed(draw)
fig.savefig("05_cfm.png")
# --- Claims. A velocity 10 % too small would give an error of 0.1. STD is the std across a moon.
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
t = torch.rand(2000, 1)
xt = t * x + (1 - t) * eps
claim("C1", "v obeys the continuity equation", continuity_error(mean_velocity, xt, t), "<", 1e-10)
claim("C2", "E[x | xt] does not obey it", continuity_error(mean_data, xt, t), ">", 0.1)
claim("C3", "The net moves noise almost as v does", gap, "<", STD)
print("figure: 05_cfm.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
