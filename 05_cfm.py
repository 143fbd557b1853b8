# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""05 Flow matching: pick a path from noise to data, then learn the velocity that follows it.
Join noise eps and data x by a line, xt = t x + (1 - t) eps. At time t the points xt of all pairs
have a density p: noise at t = 0, data at t = 1. We want a velocity v(xt, t) that moves noise such
that it has this density at every t. Points never vanish: where p rises, more flow in than out,
    dp/dt = -div(p v)    (continuity equation)
Let p_x be the part of p that goes to one x. At each place it has one velocity x - eps, as there is
one eps = (xt - t x) / (1 - t). So dp_x/dt = -div(p_x (x - eps)). Summed over all x, the left side
is dp/dt, and so the equation holds for p, if
    p v = sum over x of p_x (x - eps)
p_x / p is the probability of x given xt, so v is a mean, E[x - eps | xt]. Noise that moves with v
starts like p and obeys the same equation, so it has the density p at every t. On real data, x - eps
teaches v to a net. Over all pairs that meet at one xt and t,
    mean of |net - (x - eps)|^2 = |net - v|^2 + mean of |v - (x - eps)|^2
(the mixed term is 0, since x - eps has mean v). The last term does not depend on the net.
C1 The mean obeys the continuity equation at every place and time.
C2 A net trained on x - eps carries noise to the places where the exact v carries it.
RUN    python 05_cfm.py             (5 seconds; slider: the mean of x - share eps, share 0 to 1)
BREAK  python 05_cfm.py --share 0   the net learns E[x | xt], the field of x alone: C1, C2 fail
PAPER  Lipman et al. 2022, arXiv 2210.02747, equations 8 (mean), 9 (loss), 26 (continuity)"""
import argparse
import matplotlib.pyplot as plt
import torch
from torch import nn
# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--share", type=float, default=1, help="target is x - share eps; 0 breaks (1)")
parser.add_argument("--iters", type=int, default=800, help="of training; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if not 0 <= args.share <= 1 or args.iters < 1 or args.seed < 0:
    parser.error("--share must be 0 to 1, --iters 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small are fastest on one core
torch.set_default_dtype(torch.float64)  # 16 digits, so that C1's error is 0 or a mistake

# --- data
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2); the lower moon is -MOON
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2); the samples' std, both axes pooled, is 1 now
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each of the 64 places
def two_moons(n):
    """n samples of p_data, (n, 2)."""
    return MU[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- method
def exact_means(xt, a, s):
    """E[x | xt] and E[eps | xt] of the moons, (B, 2) each, for xt = a x + s eps; a, s (B, 1)."""
    off = xt[:, None] - a[:, None] * MU  # (B, 1, 2) - (B, 1, 1) * (64, 2), so (B, 64, 2)
    var = (a * STD) ** 2 + s**2  # of off = a (x - mu) + s eps, if x is from the place mu
    weight = (-off.square().sum(2) / (2 * var)).softmax(1)  # (B, 64), p(mu | xt) for equal p(mu)
    centre = weight @ MU  # (B, 2), the mean of mu
    rest = xt - a * centre  # (B, 2), the mean of off. Of a known sum of independent Gaussians, each
    # is on average its share by variance: here a (x - mu) and s eps. Divided by a and by s:
    return centre + a * STD**2 / var * rest, s / var * rest

def mean_target(xt, t, share=1):
    """E[x - share eps | xt], (B, 2): with share 1 it is v, the exact velocity."""
    x_hat, eps_hat = exact_means(xt, t, 1 - t)
    return x_hat - share * eps_hat  # equation 8

def density(xt, t):
    """Density p of the path at xt (B, 2), t (B, 1): (B,). Each of the 64 Gaussians has moved."""
    var = (t * STD) ** 2 + (1 - t) ** 2
    square = (xt[:, None] - t[:, None] * MU).square().sum(2)  # (B, 64)
    return ((-square / (2 * var)).exp() / (2 * torch.pi * var)).mean(1)

def continuity(v, xt, t):
    """Rise d p/dt and inflow -div(p v), (B,) each, at places xt (B, 2) and times t (B, 1)."""
    xt, t = xt.clone().requires_grad_(), t.clone().requires_grad_()
    p = density(xt, t)
    flow = p[:, None] * v(xt, t)  # (B, 2)
    # subtle: row i of p and flow depends on row i of xt and t alone, so sums do not mix rows
    rise, = torch.autograd.grad(p.sum(), t, retain_graph=True)  # (B, 1)
    slope_0, = torch.autograd.grad(flow[:, 0].sum(), xt, retain_graph=True)  # (B, 2)
    slope_1, = torch.autograd.grad(flow[:, 1].sum(), xt)  # (B, 2), of the flow's second number
    return rise[:, 0], -(slope_0[:, 0] + slope_1[:, 1])  # div: each number along its own axis

def carry(v, xt):
    """Follow v from noise xt (B, 2) to t = 1, in 50 steps so small that they do not show."""
    for i in range(50):
        t = torch.full_like(xt[:, :1], i / 50)
        xt = xt + v(xt, t).detach() / 50
    return xt

# --- train
def train_mean(share, iters):
    """Learn E[x - share eps | xt] from one pair at a time. Returns a net, (B, 3) -> (B, 2)."""
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / iters)  # large steps first, then small
        x, eps, t = two_moons(1024), torch.randn(1024, 2), torch.rand(1024, 1)
        xt = t * x + (1 - t) * eps
        target = x - share * eps
        v_hat = net(torch.cat([xt, t], 1))
        loss = (v_hat - target).square().mean()  # equation 9
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{iters} iterations, loss {loss:.3f}")
    return net

# --- measure
x, eps, t = two_moons(2000), torch.randn(2000, 2), torch.rand(2000, 1)
xt = t * x + (1 - t) * eps
rise, inflow = continuity(lambda xt, t: mean_target(xt, t, args.share), xt, t)
error = (rise - inflow).norm() / rise.norm()  # C1
spread = (x - args.share * eps - mean_target(xt, t, args.share)).square().mean()
net = train_mean(args.share, args.iters)
print(f"spread around the mean, which no net can beat: {spread:.3f}")
landed = carry(lambda xt, t: net(torch.cat([xt, t], 1)), eps)
off = (landed - carry(mean_target, eps)).norm(dim=1).mean()  # C2

# --- figure
fig, (flows, learned, wrong) = plt.subplots(1, 3, figsize=(13, 4.8))
fig.subplots_adjust(left=0.05, right=0.99, bottom=0.2, top=0.93)
slider = plt.Slider(plt.axes([0.3, 0.03, 0.4, 0.03]), "share", 0, 1, valinit=0)  # starts broken
learned.plot(x[:, 0], x[:, 1], ".", color="0.7", ms=2)
learned.plot(landed[:, 0], landed[:, 1], ".", color="tab:blue" if off < STD else "tab:red", ms=2)
learned.set(title="the net carries noise to data (grey)", xlim=(-3, 3), ylim=(-3, 3))
def draw(share):
    field = lambda xt, t: mean_target(xt, t, share)
    ends = carry(field, eps)
    flows.clear()
    flows.plot(*continuity(field, xt, t), "r.", label=f"mean of x - {share:.2g} eps")
    flows.plot(*continuity(mean_target, xt, t), "k.", label="v, the mean of x - eps")
    flows.set(title="the continuity equation", xlabel="dp/dt", ylabel="-div(p v)")
    flows.legend()
    wrong.clear()
    wrong.plot(x[:, 0], x[:, 1], ".", color="0.7", ms=2)
    wrong.plot(ends[:, 0], ends[:, 1], ".", color="tab:blue" if share == 1 else "tab:red", ms=2)
    wrong.set(title=f"the mean of x - {share:.2g} eps carries it here", xlim=(-3, 3), ylim=(-3, 3))
draw(0)
slider.on_changed(draw)
fig.savefig("05_cfm.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "relative error of the equation (0.9 v would have .1)", error, "<", 1e-10)
claim("C2", "mean distance to where exact v ends (bound: a moon's STD)", off, "<", STD)
print("figure: 05_cfm.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
