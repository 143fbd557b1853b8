# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""07 DDPM and flow matching are one method on two paths, with DDIM, velocity, and the score.

Both mix data x and noise eps, xt = a x + s eps. DDPM's path is variance-preserving (VP), with
a^2 + s^2 = 1. Flow matching's path is linear, with a + s = 1. One net can denoise on both paths.

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
# add up to 1, so xt / r is on the VP path, with the same x and eps. For example, a = s = 0.5 on the
# linear path becomes a = s = 0.707. So if we divide by r, one net predicts eps on every path.
def predict(net, xt, a, s, power=1):
    """Return eps_hat, (B, D), for xt, (B, D), a and s numbers or (B, 1). power=0 leaves out r."""
    r = (a**2 + s**2) ** 0.5
    ones = torch.ones_like(xt[:, :1])  # (B, 1)
    return net(torch.hstack([xt, a * ones, s * ones]) / r**power)

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

# --- DDIM and DDPM. A step leads from xt = a x + s eps to xt2 = a2 x + s2 eps2, with less noise.
# DDIM keeps the noise, eps2 = eps. DDPM undoes a step of its forward chain (lesson 02):
#     xt = (a / a2) xt2 + new noise,  so  eps = rho eps2 + new noise / s  with rho = a s2 / (a2 s)
# Both eps have variance 1, so rho is their correlation. It is symmetric: given eps, eps2 is rho eps
# plus fresh noise of variance 1 - rho^2. The net gives only eps_hat, the mean of eps. As the step
# is linear in eps, it leads to the mean of xt2. In short steps, this loses little variance.
@torch.no_grad()
def sample(net, xt, levels, eta=0):
    """Denoise xt, (B, D), through levels (a, s), (n, 2), by DDIM (eta=0) or DDPM (eta=1)."""
    for (a, s), (a2, s2) in zip(levels, levels[1:]):
        eps_hat = predict(net, xt, a, s)
        x_hat = (xt - s * eps_hat) / a
        rho = (a / a2) * s2 / s
        fresh = eta * (1 - rho**2) ** 0.5  # s2 * fresh is the paper's sigma (equation 16)
        kept = (1 - fresh**2) ** 0.5  # so that eps2 has variance 1. With eta = 1, kept = rho
        eps2 = kept * eps_hat + fresh * torch.randn_like(xt)
        xt = a2 * x_hat + s2 * eps2  # equation 12
    return xt

# --- Flow matching follows the velocity v = dxt/dt. On the linear path, xt = t x + (1 - t) eps, so
# v = x - eps = (xt - eps) / t. Predicting v only scales the squared error of eps by 1 / t^2.
# This weight depends on t only, so both learn the same means. Euler's method leads to xt + h v =
# t x + (1 - t) eps + h (x - eps) = (t + h) x + (1 - t - h) eps. Like DDIM, it keeps x and eps.
@torch.no_grad()
def sample_flow(net, xt, times, power=1):
    """Move noise xt, (B, D), along the linear path by Euler's method, through times, (n,)."""
    for t, t2 in zip(times, times[1:]):
        eps_hat = predict(net, xt, t, 1 - t, power)
        v = (xt - eps_hat) / t
        xt = xt + (t2 - t) * v
    return xt

# --- The score is grad log p(xt) = grad p(xt) / p(xt), where p(xt) is the integral over x of
# p(x) N(xt; a x, s^2 I). The gradient gives N the factor -(xt - a x) / s^2 = -eps / s. By Bayes'
# rule, p(x) N / p(xt) = p(x | xt). So the score is the mean of -eps / s, given xt: -eps_hat / s.
def exact_score(xt, a, s):
    """Return the score, (B, 2), at xt = a x + s eps, (B, 2), where x is from two_moons."""
    var = (a * STD) ** 2 + s**2  # of xt, given the center of x
    p = (-torch.cdist(xt, a * CENTERS) ** 2 / (2 * var)).softmax(1)  # (B, 64), p(center | xt)
    return (a * p @ CENTERS - xt) / var  # as above, the mean of -(xt - a center) / var, given xt

net = train(args.iters)
noise = torch.randn(300, 2)
t = torch.linspace(0.05, 1, 31)  # at 0, x_hat divides by a = 0; at 0.05, xt is still mostly noise
linear = torch.stack([t, 1 - t], 1)  # (31, 2)
r = linear.norm(dim=1, keepdim=True)  # (31, 1)
vp = linear / r
# If flow's xt is r times ddim's, eps_hat is the same, so it still is a step later. At last, r = 1.
ddim = sample(net, noise, vp)
flow = sample_flow(net, r[0] * noise, t, args.power)
gap = (ddim - flow).norm(dim=1).mean()
halfway = 0.5 * two_moons(300) + 0.5 * noise  # (300, 2), on the linear path
exact = exact_score(halfway, 0.5, 0.5)
error = (predict(net, halfway, 0.5, 0.5, args.power) / 0.5 + exact).norm() / exact.norm()

fig, ((left, right), (lower, last)) = plt.subplots(2, 2, figsize=(12, 10), layout="constrained")
left.quiver(*linear.T, *(vp - linear).T, color="0.7", angles="xy", scale_units="xy", scale=1)
left.plot(*vp.T, "o-", *linear.T, "o-", [0, 0.5], [0, 0.5], "k.:")
left.set(title="Division by r (dotted) takes flow matching's\npath (orange) to DDPM's path (blue)",
         xlabel="a, from 0 (noise) to 1 (data)", ylabel="s, from 1 (noise) to 0 (data)", aspect=1)

def draw(ax, name, ends):
    ax.clear()
    ax.plot(*CENTERS.T, "o", color="0.85", ms=28)
    ax.plot(*ddim.T, "o", *ends.T, "+", mfc="none", ms=9)
    ax.set(xlim=(-3, 3), ylim=(-2.7, 2.3), xlabel="x1 (gray: the data)", ylabel="x2", aspect=1,
           title=f"{name} (crosses)\nends {(ddim - ends).norm(dim=1).mean():.2f} from DDIM (rings)")
draw(right, "From the same noise, flow matching", flow)
draw(lower, "Without division (power 0), flow matching", sample_flow(net, r[0] * noise, t, 0))
draw(last, "With fresh noise in every step, DDPM", sample(net, noise, vp, eta=1))
power = plt.Slider(plt.axes([0.65, 0.6, 0.2, 0.02]), "power of r ", 0, 1, valinit=args.power)
power.on_changed(lambda p: draw(right, "Flow matching", sample_flow(net, r[0] * noise, t, p)))
fig.savefig("07_bridge.png")

# --- Claims. C1 holds for any net, up to rounding. Without the division by s, C2's error is 0.5.
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Euler on the linear path ends where DDIM on the VP path does. Gap", gap, "<", 0.001)
claim("C2", "The score is -eps_hat / s. Relative error", error, "<", 0.1)
print("figure: 07_bridge.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
