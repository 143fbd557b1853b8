# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""05 Flow matching: train a net on the velocities of random lines from noise to data.

We join noise to data by straight lines and move points along them. Where lines cross, points have
different velocities. Their mean turns noise into data, but on real data nobody can compute it. A
net that is trained on the velocities of single lines learns it anyway.

RUN    python 05_cfm.py                (5 seconds; the slider sets the time t)
BREAK  python 05_cfm.py --target data  (C1, the equation, and C2, the samples on the right, fail)
PAPER  arXiv 2210.02747, equations 8 (mean), 9 (loss), and 26 (continuity), by Lipman et al."""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--target", choices=["velocity", "data"], default="velocity",
                    help="train the net on x - eps or on x (default: %(default)s)")
parser.add_argument("--iters", type=int, default=750, help="training iterations (%(default)s)")
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
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), with variance 1, averaged over x and y
STD = 0.09 / 0.7107  # of each Gaussian

def two_moons(n):
    """Return n samples of p_data, of shape (n, 2)."""
    return CENTERS[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- The velocity: at time t, the points xt = t x + (1 - t) eps have a density p(xt, t), from noise
# at t = 0 to data at t = 1. Points never appear or vanish, so p changes at a place only by what
# flows in or out: dp/dt = -div(flow). The flow of points with the same velocity is their density
# times this velocity. At a place where lines cross, say a fraction w_i of the points has velocity
# u_i. Their flows p w_i u_i add up to p times the mean velocity, which we call v. Therefore
#     dp/dt = -div(p v)  with  v(xt, t) = E[x - eps | xt]    (continuity equation)
# Now we start from noise and move every point with v. The points start with density p, and their
# density changes by the same equation as p. So it is p at every t, and they end as data.
def log_parts(xt, t):  # log p(xt | center), (B, 64), for xt (B, 2), t (B, 1), and all centers of x
    var = (t * STD) ** 2 + (1 - t) ** 2  # the variance of xt, given the center of x
    square = (xt[:, None] - t[:, None] * CENTERS).square().sum(2)  # (B, 64)
    return -square / (2 * var) - (2 * torch.pi * var).log()

def density(xt, t):  # p(xt, t), (B,)
    return log_parts(xt, t).exp().mean(1)

def mean_velocity(xt, t):  # v(xt, t) = E[x - eps | xt], (B, 2)
    center = log_parts(xt, t).softmax(1) @ CENTERS.to(xt)  # E[center | xt], by Bayes' rule
    # Given the center, u = x - eps and xt are Gaussian, so E[u | xt] = E[u] + cov/var (xt - E[xt]).
    cov = t * STD**2 - (1 - t)
    var = (t * STD) ** 2 + (1 - t) ** 2
    return center + cov / var * (xt - t * center)

def continuity_error(v, xt, t):
    """Return the norm of dp/dt + div(p v) divided by that of dp/dt, for any field v(xt, t)."""
    xt, t = xt.clone().requires_grad_(), t.clone().requires_grad_()
    p = density(xt, t)
    flow_x, flow_y = p * v(xt, t).T  # (B,) each
    # Entry b of y depends only on row b of x. So in the gradient of its sum, row b is dy[b]/dx[b].
    grad = lambda y, x, i: torch.autograd.grad(y.sum(), x, retain_graph=True)[0][:, i]  # (B,)
    dp_dt = grad(p, t, 0)
    div = grad(flow_x, xt, 0) + grad(flow_y, xt, 1)
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
        y = x - eps if target == "velocity" else x  # x is a place, not a velocity
        loss = (net(torch.cat([xt, t], 1)) - y).square().mean()
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

# --- Evaluation and figure: v and both nets move the same noise eps
x, eps, t = two_moons(20_000), torch.randn(20_000, 2), torch.rand(20_000, 1)
xt = t * x + (1 - t) * eps
mean_data = lambda xt, t: xt + (1 - t) * mean_velocity(xt, t)  # as x = xt + (1 - t) (x - eps)
exact, results = sample(mean_velocity, eps[:2000]), {}  # (51, 2000, 2)
for target, best in [("velocity", 1.36), ("data", 0.47)]:
    print(f"We train on {target}. As lines cross, the best possible loss is {best}, not 0.")
    net = train(target, args.iters)
    path = sample(lambda xt, t: net(torch.cat([xt, t], 1)), eps[:2000])
    results[target] = path, (path - exact).norm(dim=2).mean(1)  # and distance at each t, (51,)
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 5.8), layout="constrained",
                                          subplot_kw={"aspect": "equal"})
slider = plt.Slider(plt.axes([0.42, 0.02, 0.5, 0.04]), "t", 0, 1, valinit=1, initcolor="none")
near = ((x + eps) / 2 - torch.tensor([1, 0.5])).norm(dim=1).argsort()[:12]  # lines through (1, 0.5)
arrows = torch.cat([eps, x - eps], 1)[near].numpy()  # (12, 4), starts and velocities
for arrow in arrows:
    left.arrow(*arrow, width=0.01, color="0.6")
left.arrow(*arrows.mean(0), width=0.04, color="tab:blue")
left.set_title("Where lines cross, we want the mean (blue)\nof their velocities (gray)")

def draw(t):
    i = round(50 * t)
    for ax, target in zip([middle, right], results):
        path, error = results[target]
        ax.clear()
        ax.scatter(*torch.lerp(eps, x, i / 50)[:2000].T, 3, "0.7")
        ax.scatter(*path[i].T, 3, "tab:blue" if error[i] < STD else "tab:red")
        ax.set_title(f"Gray: points on lines. Net trained on {target}:\n"
                     f"{error[i]:.2f} from where v takes points (red above {STD:.2f})")
        ax.axis([-2.6, 2.6, -2.6, 2.6])
draw(1)
slider.on_changed(draw)
fig.savefig("05_cfm.png", dpi=120)

# --- Claims: C2's bound is STD, the standard deviation across a moon
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
mean = mean_velocity if args.target == "velocity" else mean_data
error = continuity_error(mean, xt.double(), t.double())  # float64 has 16 digits
claim("C1", "The mean target obeys the continuity equation. Error (0.9 v: 0.1)", error, "<", 1e-10)
claim("C2", "The net takes noise where v takes it. Distance", results[args.target][1][50], "<", STD)
print("figure: 05_cfm.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
