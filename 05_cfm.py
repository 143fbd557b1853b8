# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""05 Flow matching: train a net to predict the velocity along random lines from noise to data.

Points on different lines can meet with different velocities. Noise that moves with their mean
velocity becomes data. Real data give no formula for this mean, but a net learns it from the lines.

RUN    python 05_cfm.py                (4 seconds; the slider sets the time t)
BREAK  python 05_cfm.py --target data  (C1, the continuity equation, and C2, the samples, fail)
PAPER  arXiv 2210.02747, equations 8 (mean), 9 (loss), and 26 (continuity), by Lipman et al."""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--target", choices=["velocity", "data"], default="velocity",
                    help="train the net to predict x - eps or x (%(default)s)")
parser.add_argument("--iters", type=int, default=1000, help="training iterations (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
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

# --- Exact velocity. A line xt = t x + (1 - t) eps leads from noise eps (t = 0) to data x (t = 1),
# with velocity d(xt)/dt = x - eps. The points on all lines together have a density p(xt, t). Points
# never appear or vanish, so p changes only by what flows in or out: dp/dt = -div(flow). Points with
# one velocity u have the flow p u. If a fraction w_i of points at xt has velocity u_i, their flows
# p w_i u_i add up to p times sum(w_i u_i), the mean velocity of the points at xt. So
#     dp/dt = -div(p v)  with  v(xt, t) = E[x - eps | xt]    (continuity equation)
# Noise that moves with v starts with density p, and the same equation says how its density changes
# from each moment to the next. So it has density p at every t, and at t = 1 it is data.
def log_likelihoods(xt, t):
    """Return log p(xt | center of x) for all centers, (B, 64), for xt (B, 2) and t (B, 1)."""
    std = torch.hypot(t * STD, 1 - t)  # of xt, given the center, (B, 1): variances add
    gaussian = torch.distributions.Normal(t[:, None] * CENTERS, std[:, None])  # (B, 64, 2)
    return gaussian.log_prob(xt[:, None]).sum(2)  # the sum over both coordinates

# Given the center, x is Gaussian, so E[x - eps | xt, center] = center + cov / var (xt - t center).
# This is linear in the center, so its mean over all centers is its value at E[center | xt].
def mean_velocity(xt, t):
    """Return v(xt, t) = E[x - eps | xt], (B, 2), for xt (B, 2) and t (B, 1)."""
    posterior = log_likelihoods(xt, t).softmax(1)  # p(center | xt), (B, 64), by Bayes' rule
    center = posterior @ CENTERS.to(xt)  # E[center | xt], (B, 2), in float64 for C1
    cov = t * STD**2 - (1 - t)  # of x - eps and xt: t var(x) - (1 - t) var(eps)
    var = (t * STD) ** 2 + (1 - t) ** 2  # of xt: t^2 var(x) + (1 - t)^2 var(eps)
    return center + cov / var * (xt - t * center)  # linear regression, exact for Gaussians

def derivative(y, x, i):
    """Return dy[b] / dx[b, i], (B,), where y[b] (B,) depends only on row b of x (B, n)."""
    return torch.autograd.grad(y.sum(), x, retain_graph=True)[0][:, i]

def continuity_error(v, xt, t):
    """Return the norm of dp/dt + div(p v) divided by that of dp/dt, for any field v(xt, t)."""
    xt, t = xt.detach().requires_grad_(), t.detach().requires_grad_()
    p = log_likelihoods(xt, t).exp().mean(1)  # p(xt, t), (B,), as all centers are equally likely
    flow_x, flow_y = p * v(xt, t).T  # (B,) each
    dp_dt = derivative(p, t, 0)
    div = derivative(flow_x, xt, 0) + derivative(flow_y, xt, 1)
    return (dp_dt + div).norm() / dp_dt.norm()

# --- Training. Minimizing squared error gives v, for real data too. Let v be the mean of the
# target at some xt and t. As net - target = (net - v) + (v - target), its mean square is
#     |net - v|^2 + 2 (net - v) . mean(v - target) + mean |v - target|^2
# The mean of v - target is 0, and the last term is the same for every net. So the best net is v.
def train(target, iters, width=32, batch_size=1024, lr=0.04):
    net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        x, eps, t = two_moons(batch_size), torch.randn(batch_size, 2), torch.rand(batch_size, 1)
        xt = t * x + (1 - t) * eps
        y = x - eps if target == "velocity" else x
        loss = (net(torch.cat([xt, t], 1)) - y).square().mean()  # above 0, as lines cross
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

@torch.no_grad()
def sample(v, xt, num_steps=50):
    """Move noise xt, (B, 2), along v(xt, t) to t = 1. Return its path, (num_steps + 1, B, 2)."""
    path = [xt]
    for i in range(num_steps):
        t = torch.full((len(xt), 1), i / num_steps)
        path.append(path[-1] + v(path[-1], t) / num_steps)
    return torch.stack(path)

# --- Figure. The last panel makes a deliberate mistake: it takes E[x | xt], a position, for v
mean_data = lambda xt, t: xt + (1 - t) * mean_velocity(xt, t)  # as x = xt + (1 - t) (x - eps)
net = train(args.target, args.iters)
x, eps = two_moons(2000), torch.randn(2000, 2)
line_path = sample(lambda xt, t: x - eps, eps)  # (51, 2000, 2), each point with its own velocity
net_path = sample(lambda xt, t: net(torch.cat([xt, t], 1)), eps)
paths = torch.stack([line_path, net_path, sample(mean_data, eps)])  # (3, 51, 2000, 2)
place = torch.tensor([1.0, 0])  # an example; each place has its own v
nearest = (line_path[25] - place).norm(dim=1).argsort()[:12]  # 12 lines that cross there at t = 0.5
titles = ["12 lines from noise (dots) cross at t = 0.5.\nBlue: v, the mean velocity at this place",
          f"Blue: noise moved by the net trained on {args.target}.\nGray: points on such lines",
          "Orange: noise moved by E[x | xt], a position.\nIt overshoots, partly out of the frame"]
fig, axes = plt.subplots(1, 3, figsize=(17, 6.6), layout="constrained", subplot_kw={"aspect": 1})
slider = plt.Slider(plt.axes([0.3, 0.02, 0.4, 0.03]), "t", 0, 1, valinit=1, initcolor="none")

def draw(t):
    i = round(50 * t)
    for ax, title, path, c in zip(axes, titles, paths.numpy(), ["0.7", "tab:blue", "tab:orange"]):
        ax.clear()
        ax.set_title(title)
        ax.axis([-2.8, 2.8, -2.8, 2.8])
        ax.scatter(*line_path[i].T, 3, "0.7")
        ax.scatter(*path[i].T, 3, c)
        ax.plot(path[:i + 1, nearest, 0], path[:i + 1, nearest, 1], "ko-", markevery=[0])
    v = mean_velocity(place[None], torch.tensor([[0.5]]))[0].numpy()
    axes[0].arrow(*place, *v, width=0.08, length_includes_head=True)
draw(1)
slider.on_changed(draw)
fig.savefig("05_cfm.png", dpi=120)

# --- Claims: C1's bound leaves room for rounding, and C2's bound is the std across a moon
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
mean = mean_velocity if args.target == "velocity" else mean_data
t = torch.rand(2000, 1).double()  # float64 has 16 digits
error = continuity_error(mean, t * x + (1 - t) * eps, t)  # for 0.9 v, it would be 0.1
claim("C1", "The mean target obeys the continuity equation. Error", error, "<", 1e-10)
gap = net_path[-1] - sample(mean_velocity, eps)[-1]
claim("C2", "The net moves noise where v does. Distance", gap.norm(dim=1).mean(), "<", STD)
print("figure: 05_cfm.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
