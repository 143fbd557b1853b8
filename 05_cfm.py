# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""05 Flow matching: pick a path from noise to data, then learn the velocity that follows it.
Join noise eps to data x by a line, xt = t x + (1 - t) eps. At each time t the points xt of all
pairs form a crowd of density p, from noise at t = 0 to data at t = 1: the path that we picked.
A velocity v(xt, t) carries noise along it if nobody appears or vanishes on the way: where p
rises, just as much must flow in. This is the continuity equation, d p/dt = -div(p v).
Each pair flows with x - eps. All that flows through a place is p times the MEAN of the velocities
of the lines that cross there, so the path obeys the equation with v = E[x - eps | xt].
On real data nobody can take this mean: through a place we have one line at most. But the mean is
the answer of least squared error. So show a net one pair's x - eps at a time (the easy loss), not
v (the impossible one). The easy loss is larger by the spread of the targets around v; no net can
change that, so both losses have the same gradient.
C1 The mean obeys the equation. C2 The easy loss has the gradient of the impossible one.
C3 The learned velocity carries noise to the places where the exact one carries it.
RUN    python 05_cfm.py             (6 seconds; slider: share of eps in the target)
BREAK  python 05_cfm.py --share 0   the net learns E[x | xt], which ends elsewhere: C1, C3 fail
PAPER  Lipman et al. 2022, arXiv 2210.02747, equations 8 (mean), 9 (easy loss), 26 (continuity)"""
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
torch.set_default_dtype(torch.float64)  # 16 digits, so that C1 finds 0 or a mistake

# --- data
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), places on a half circle
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), on both moons; .7107 makes the mean variance 1
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each place in MU
def two_moons(n):
    """n samples of p_data, (n, 2)."""
    return MU[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- method
def moons_at(xt, t):
    """Density p (B,), E[x | xt] and E[eps | xt] (B, 2) of the path at xt (B, 2), t (B, 1)."""
    var = (t * STD) ** 2 + (1 - t) ** 2  # of xt around t mu, if its x came from the Gaussian at mu
    square = (xt[:, None] - t[:, None] * MU).square().sum(2)  # (B, 64)
    log_gauss = -square / (2 * var) - (2 * torch.pi * var).log()
    centre = log_gauss.softmax(1) @ MU  # by Bayes, mean centre (B, 2)
    pull = (xt - t * centre) / var  # x in one Gaussian: mu + t STD^2 (xt - t mu) / var
    return log_gauss.exp().mean(1), centre + t * STD**2 * pull, (1 - t) * pull

def mean_target(xt, t, share=1):
    """E[x - share eps | xt], (B, 2): at share 1 the exact velocity, at share 0 the mean of x."""
    _, x_hat, eps_hat = moons_at(xt, t)
    return x_hat - share * eps_hat  # equation 8: means may be put in, as the target is linear

def continuity(v, xt, t):
    """Rise d p/dt and inflow -div(p v), (B,) each, at places xt (B, 2) and times t (B, 1)."""
    xt, t = xt.clone().requires_grad_(), t.clone().requires_grad_()
    p = moons_at(xt, t)[0]
    flow = p[:, None] * v(xt, t)  # (B, 2)
    rise = torch.autograd.grad(p.sum(), t, retain_graph=True)[0][:, 0]  # p[i] needs row i alone
    dx = torch.autograd.grad(flow[:, 0].sum(), xt, retain_graph=True)[0][:, 0]
    dy = torch.autograd.grad(flow[:, 1].sum(), xt)[0][:, 1]
    return rise, -dx - dy

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
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95))  # a short memory
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / iters)  # large steps first, then small
        x, eps, t = two_moons(1024), torch.randn(1024, 2), torch.rand(1024, 1)
        xt = t * x + (1 - t) * eps
        target = x - share * eps
        v_hat = net(torch.cat([xt, t], 1))
        loss = (v_hat - target).square().mean()  # equation 9, the easy loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (i + 1) % max(1, iters // 8) == 0:
            print(f"iter {i + 1:5d}  loss {loss:.3f}")
    return net

# --- measure
def gradient(net, xt, t, target):
    """Gradient of the squared error to target, for all weights of the net: one vector."""
    loss = (net(torch.cat([xt, t], 1)) - target).square().mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, net.parameters())])

x, eps, t = two_moons(25_000), torch.randn(25_000, 2), torch.rand(25_000, 1)
x, eps, t = torch.cat([x, -x]), torch.cat([eps, -eps]), torch.cat([t, t])
xt = t * x + (1 - t) * eps  # -moons are moons; mirrored pairs cancel noise in C2
target, mean = x - args.share * eps, mean_target(xt, t, args.share)
untrained = train_mean(args.share, 0)  # both losses of one net, at the same points
easy = gradient(untrained, xt, t, target)
hard = gradient(untrained, xt, t, mean)
gap = (easy - hard).norm() / hard.norm()  # C2
x, eps, xt, t = x[:2000], eps[:2000], xt[:2000], t[:2000]  # enough from here on
rise, inflow = continuity(lambda xt, t: mean_target(xt, t, args.share), xt, t)
left = (rise - inflow).abs().mean() / rise.abs().mean()  # C1
net = train_mean(args.share, args.iters)
landed = carry(lambda xt, t: net(torch.cat([xt, t], 1)), eps)
off = (landed - carry(mean_target, eps)).norm(dim=1).mean()  # C3

# --- figure
fig, axes = plt.subplots(1, 3, figsize=(12, 4.7), subplot_kw={"box_aspect": 1})
slider = plt.Slider(plt.axes([0.2, 0.03, 0.5, 0.03]), "share", 0, 1, valinit=0, valstep=0.1)
def draw(share):
    v = lambda xt, t: mean_target(xt, t, share)
    rise, inflow = continuity(v, xt, t)
    for ax in axes:
        ax.clear()
        ax.axis([-3, 3, -3, 3])
    axes[0].plot(rise, inflow, "C3.", ms=3)
    axes[0].plot(*continuity(mean_target, xt, t), "k.")  # the exact v
    axes[0].set(xlabel="rise of the density", ylabel="inflow: black v, red E[x - share eps | xt]")
    axes[1].plot(*x.T, "C7.", ms=2)
    axes[1].plot(*carry(v, eps).T, "C3.", ms=2)
    axes[1].set_title("where the red field carries noise")
    axes[2].plot(*x.T, "C7.", ms=2)
    axes[2].plot(*landed.T, "C0." if off < 0.15 else "C3.", ms=2)
    axes[2].set_title(f"where the net carries it ({off:.2f} off exact)")
draw(0)
slider.on_changed(draw)
fig.savefig("05_cfm.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", "share of d p/dt that does not flow in (v 10 % too slow: .1)", left, "<", 1e-10)
claim("C2", "easy minus impossible gradient, as a share of it", gap, "<", 0.1)
claim("C3", "mean distance to the exact ends (a moon is .13 wide)", off, "<", 0.15)
print("figure: 05_cfm.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
