# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""07 DDPM and flow matching are one method on two paths: DDIM, eps and v, the score.

Both mix data x and noise eps, xt = a x + s eps. DDPM's path is variance-preserving (VP), with
a^2 + s^2 = 1. Flow matching's path is linear, with a + s = 1. One net can take noise along both.

RUN    python 07_bridge.py             (5 seconds; the slider sets the power of r)
BREAK  python 07_bridge.py --power 0   (C1 and C2 fail, because the net has not seen such inputs)
PAPER  arXiv 2010.02502 (DDIM), equations 12 and 16, by Song, Meng, and Ermon"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--power", type=int, choices=[0, 1], default=1, help="of r; 0: no division")
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

# --- The bridge. Divide xt by r = sqrt(a^2 + s^2). The squares of the new weights, a / r and s / r,
# add up to 1, so xt / r is on the VP path, with the same x and eps. For example, halfway on the
# linear path, a = s = 0.5 and r = 0.707. Divided by r, both become 0.707. So a net that predicts
# eps on the VP path can do so on any path, if we divide its inputs by r.
def predict(net, xt, a, s, power=1):
    """Return eps_hat, (B, D), for xt, (B, D), a and s numbers or (B, 1). power=0 leaves out r."""
    r = (a**2 + s**2) ** 0.5
    column = torch.zeros_like(xt[:, :1])
    return net(torch.hstack([xt, a + column, s + column]) / r**power)

# --- DDPM's training, at random points of the VP path. The best eps_hat is the mean eps, given xt.
def train(iters, width=64, batch_size=1024, lr=0.03):
    net = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(batch_size), torch.randn(batch_size, 2)
        angle = torch.pi / 2 * torch.rand(batch_size, 1)  # the VP path is a quarter circle
        a, s = angle.sin(), angle.cos()
        eps_hat = predict(net, a * x + s * eps, a, s)
        loss = (eps_hat - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

# --- DDIM and DDPM. A step leads from xt = a x + s eps to a2 x + s2 eps2, where s2 / a2 is smaller.
# DDIM keeps the noise, eps2 = eps. DDPM undoes a step of the forward chain (lesson 02). That step
# multiplied a2 x + s2 eps2 by a / a2 and added new noise, so s eps = (a / a2) s2 eps2 + new noise.
# So eps and eps2 have the correlation rho = (a / a2) s2 / s. Given eps, eps2 is then Gaussian with
# mean rho eps and variance 1 - rho^2. This is lesson 04's step with the variance beta-tilde.
@torch.no_grad()
def sample(net, xt, levels, eta=0):
    """Take noise xt, (B, D), through levels (a, s), (n, 2), by DDIM (eta=0) or DDPM (eta=1)."""
    for (a, s), (a2, s2) in zip(levels, levels[1:]):
        eps_hat = predict(net, xt, a, s)
        x_hat = (xt - s * eps_hat) / a
        rho = (a / a2) * s2 / s
        fresh = eta * (1 - rho**2) ** 0.5  # equation 16: its sigma, divided by s2
        kept = (1 - fresh**2) ** 0.5  # so that eps2 has variance 1
        eps2 = kept * eps_hat + fresh * torch.randn_like(xt)
        xt = a2 * x_hat + s2 * eps2  # equation 12
    return xt

# --- Flow matching follows the velocity v = dxt/dt = a' x + s' eps, with a' = da/dt and s' = ds/dt.
# Since x = (xt - s eps) / a, eps gives v. Solved for eps, eps = (a' xt - a v) / (a' s - a s'). On
# the linear path, a = t and s = 1 - t, so v = x - eps = (xt - eps) / t. Euler's method leads to
#     xt + h v = t x + (1 - t) eps + h (x - eps) = (t + h) x + (1 - t - h) eps
# This is the point at t + h with the same x and eps. So it is exactly a step of DDIM.
@torch.no_grad()
def sample_flow(net, xt, times, power=1):
    """Move noise xt, (B, D), along the linear path by Euler's method, through times, (n,)."""
    for t, t2 in zip(times, times[1:]):
        eps_hat = predict(net, xt, t, 1 - t, power)
        v = (xt - eps_hat) / t
        xt = xt + (t2 - t) * v
    return xt

net = train(args.iters)
noise = torch.randn(300, 2)
t = torch.linspace(0.05, 1, 31)  # at 0, x_hat divides by a = 0; at 0.05, xt is still mostly noise
linear = torch.stack([t, 1 - t], 1)  # (31, 2)
r = linear.norm(dim=1, keepdim=True)  # (31, 1)
vp = linear / r
# Both runs meet the same x_hat and eps_hat. Their points differ by the factor r, which ends at 1.
ddim = sample(net, noise, vp)
ddpm = sample(net, noise, vp, eta=1)
flow = sample_flow(net, r[0] * noise, t, args.power)
gap = (ddim - flow).norm(dim=1).mean()

# --- The score is grad log p(xt). For a fixed x, xt is Gaussian with mean a x and std s, so
# grad log p(xt | x) = -(xt - a x) / s^2 = -eps / s. By Bayes' rule, the score is the mean of this
# over all x that fit xt, which is -eps_hat / s (Hyvarinen 2005, Vincent 2011; SDEs: 2011.13456).
a = s = 0.5  # halfway on the linear path
xt = (a * two_moons(300) + s * noise).requires_grad_()
var = (a * STD) ** 2 + s**2  # of xt, given the center of x
log_p = (-torch.cdist(xt, a * CENTERS) ** 2 / (2 * var)).logsumexp(1)  # up to a constant
score, = torch.autograd.grad(log_p.sum(), xt)  # exact, (300, 2)
error = (predict(net, xt, a, s, args.power) / s + score).norm() / score.norm()

fig, (left, right) = plt.subplots(1, 2, figsize=(13, 6.2), subplot_kw={"aspect": 1})
left.quiver(*linear.T, *(vp - linear).T, color="0.7", angles="xy", scale_units="xy", scale=1)
left.plot(*vp.T, "o-", *linear.T, "o-")
left.set(title="Division by r (arrows) takes flow matching's\npath (orange) to DDPM's path (blue)",
         xlabel="a, from 0 (noise) to 1 (data)", ylabel="s, from 1 (noise) to 0 (data)")

def draw(power):
    flow = sample_flow(net, r[0] * noise, t, power)
    right.clear()
    right.plot(*ddpm.T, ".", color="0.7")
    right.plot(*ddim.T, "o", mfc="none", ms=9)
    right.plot(*flow.T, "+", ms=9)
    right.set(xlim=(-3, 3), ylim=(-2.2, 2.2), title="From the same noise, DDIM (rings) and flow\n"
              f"matching (crosses) end {(ddim - flow).norm(dim=1).mean():.2f} apart (gray: DDPM)")
power = plt.Slider(plt.axes([0.65, 0.05, 0.2, 0.03]), "power of r ", 0, 1, valinit=args.power)
power.on_changed(draw)
draw(args.power)
fig.savefig("07_bridge.png", dpi=120)

# --- Claims. C1 allows for rounding. In C2, leaving out the division by s would give 0.5.
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Euler on the linear path ends where DDIM on the VP path does. Gap", gap, "<", 0.001)
claim("C2", "The score is -eps_hat / s. Relative error", error, "<", 0.1)
print("figure: 07_bridge.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
