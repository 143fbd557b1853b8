# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""05 Flow matching: train a net on the velocities of random lines from noise to data.

We join noise to data by straight lines and move points along them. Where lines cross, points have
different velocities. Their mean turns noise into data, but on real data nobody can compute it. A
net that is trained on the velocities of single lines learns it anyway.

RUN    python 05_cfm.py                (4 seconds; the slider sets the time t)
BREAK  python 05_cfm.py --target data  (C1, the equation, and C2, the samples of the net, fail)
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

# --- The exact velocity: the points xt = t x + (1 - t) eps have a density p(xt, t). Points never
# appear or vanish, so p changes at a place only by what flows in or out: dp/dt = -div(flow). The
# flow of points with one velocity is their density times this velocity. Where lines cross, say a
# fraction w_i of the points has velocity u_i. The flows p w_i u_i add up to p times the mean, v:
#     dp/dt = -div(p v)  with  v(xt, t) = E[x - eps | xt]    (continuity equation)
# If we move noise with v, it starts with density p, and its density changes by the same equation.
# So it has density p at every t, and at t = 1 it is data.
def log_likelihoods(xt, t):
    """Return log p(xt | center of x) for all centers, (B, 64), for xt (B, 2) and t (B, 1)."""
    std = torch.hypot(t * STD, 1 - t)  # of xt, given the center, (B, 1): variances add
    gaussian = torch.distributions.Normal(t[:, None] * CENTERS, std[:, None])
    return gaussian.log_prob(xt[:, None]).sum(2)  # the sum over x and y

def mean_velocity(xt, t):
    """Return v(xt, t) = E[x - eps | xt], (B, 2), for xt (B, 2) and t (B, 1)."""
    posterior = log_likelihoods(xt, t).softmax(1)  # p(center | xt), (B, 64), by Bayes' rule
    center = posterior @ CENTERS.to(xt)  # E[center | xt], (B, 2)
    cov = t * STD**2 - (1 - t)  # of x - eps and xt, which are Gaussian given the center
    var = (t * STD) ** 2 + (1 - t) ** 2  # of xt, given the center
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

# --- Training: on real data we cannot compute v, but squared error finds it. Let v be the mean of
# the target at some xt and t. As net - target = (net - v) + (v - target), its mean square is
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

# --- Figure: x is a position, so using its mean, E[x | xt], as a velocity is wrong
mean_data = lambda xt, t: xt + (1 - t) * mean_velocity(xt, t)  # as x = xt + (1 - t) (x - eps)
net = train(args.target, args.iters)
x, eps = two_moons(2000), torch.randn(2000, 2)
exact_path = sample(mean_velocity, eps)  # (51, 2000, 2)
net_path = sample(lambda xt, t: net(torch.cat([xt, t], 1)), eps)
paths = {f"the net trained on {args.target}": net_path, "E[x | xt]": sample(mean_data, eps)}
fig, axes = plt.subplots(1, 3, figsize=(17, 6.8), layout="constrained", subplot_kw={"aspect": 1})
slider = plt.Slider(plt.axes([0.42, 0.02, 0.5, 0.03]), "t", 0, 1, valinit=1, initcolor="none")
distance = ((x + eps) / 2 - torch.tensor([0.5, 0])).norm(dim=1)  # from xt at t = 0.5 to a place
lines = torch.cat([eps, x - eps], 1)[distance.argsort()[:12]].numpy()  # (12, 4), eps, x - eps
for line in lines:
    axes[0].arrow(*line, width=0.01, color="0.6")
axes[0].arrow(*lines.mean(0), width=0.04, color="tab:blue")
axes[0].set_title("Gray: 12 lines from noise to data cross at t = 0.5.\nBlue: their mean velocity")

def draw(t):
    i = round(50 * t)
    for ax, (name, path) in zip(axes[1:], paths.items()):
        error = (path[i] - exact_path[i]).norm(dim=1)  # (2000,)
        colors = ["tab:red" if e > STD else "tab:blue" for e in error]
        ax.clear()
        ax.scatter(*torch.lerp(eps, x, i / 50).T, 3, "0.7")
        ax.scatter(*path[i].T, 3, colors)
        ax.plot(*path[:i + 1, :12].movedim(2, 0).numpy(), "k", lw=0.8)
        ax.set_title(f"Noise moved by {name}. Black: 12 paths.\n"
                     f"Gray: points on lines. Red: over {STD:.2f} from where v takes it")
        ax.axis([-2.6, 2.6, -2.6, 2.6])
draw(1)
slider.on_changed(draw)
fig.savefig("05_cfm.png", dpi=120)

# --- Claims: C1's bound leaves room for rounding, and C2's bound is the std across a moon
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
mean = mean_velocity if args.target == "velocity" else mean_data
t = torch.rand(2000, 1).double()  # float64 has 16 digits
error = continuity_error(mean, t * x + (1 - t) * eps, t)  # 0.9 v would give 0.1
claim("C1", "The mean target obeys the continuity equation. Error", error, "<", 1e-10)
gap = net_path[-1] - exact_path[-1]
claim("C2", "The net moves noise where v does. Distance", gap.norm(dim=1).mean(), "<", STD)
print("figure: 05_cfm.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
