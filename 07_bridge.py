# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""07 DDPM and flow matching are one method on two paths: DDIM, eps and v, the score.

Both mix data x and noise eps, xt = a x + s eps. DDPM's path is variance-preserving (VP), with
a^2 + s^2 = 1, and flow matching's is linear, with a + s = 1. Dividing by r = sqrt(a^2 + s^2) takes
the linear path to the VP path. So we train one net, as in DDPM, and sample with it on both paths.

RUN    python 07_bridge.py                (5 seconds; sliders: fresh noise, division by r)
BREAK  python 07_bridge.py --no-rescale   (C1 and C2 fail; xt is up to 1.4x too small)
PAPER  arXiv 2010.02502 (DDIM), equations 12 and 16, by Song, Meng, and Ermon"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--no-rescale", action="store_true", help="skip the division by r")
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
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), with variance 1, averaged over x and y
STD = 0.09 / 0.7107  # of each Gaussian
def two_moons(n):
    """Return n samples of p_data, of shape (n, 2)."""
    return CENTERS[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

def vp_path(t):  # DDPM's levels (a, s) at times t (n,), from 0 (noise) to 1 (data)
    a = (-0.05 * (1 - t) - 4.975 * (1 - t) ** 2).exp()  # because beta grows linearly (lesson 02)
    return torch.stack([a, (1 - a**2) ** 0.5], 1)  # (n, 2)

# --- One net for both paths. Divided by r, xt is (a / r) x + (s / r) eps. The squares of these
# weights add up to 1, so it is a point of the VP path with the same x and eps. So a net that has
# learned to predict eps there can do so on every path. Its output is scaled by a / r, so that the
# errors are small near noise, where sampling divides by a small a. There, xt / r is almost eps.
class NoiseNet(nn.Sequential):
    """Predict eps from xt (B, 2) on any path. The levels a and s are numbers or of shape (B, 1)."""
    def __init__(self, width=64, power=1):
        super().__init__(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                         nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
        self.power = power  # 0 skips the division by r

    def forward(self, xt, a, s):
        r = (a**2 + s**2) ** 0.5
        xt = xt / r**self.power
        level = a / (a + s) + torch.zeros_like(xt[:, :1])  # (B, 1), which r leaves alone
        return xt + a / r * super().forward(torch.cat([xt, level], 1))

# We train as in DDPM. Many pairs x, eps give the same xt. The best prediction is their mean eps.
def train(net, path, iters, batch_size=1024, lr=0.03):
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(batch_size), torch.randn(batch_size, 2)
        a, s = path(torch.rand(batch_size)).split(1, 1)  # (B, 1) each
        loss = (net(a * x + s * eps, a, s) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

# --- Sampling. Divided by a, xt is x + sigma eps with sigma = s / a. A step of DDIM (eta = 0) leads
# from x_hat + sigma eps_hat to x_hat + sigma2 eps_hat. DDPM (eta = 1) replaces a part of this noise
# by fresh noise, as much as in lesson 04. Variances add, so fresh^2 + kept^2 must be sigma2^2.
def ddim_step(xt, eps_hat, a, s, a2, s2, eta):
    """Take xt (B, 2) from the level (a, s) to (a2, s2) of any path, with eta from 0 to 1."""
    sigma, sigma2 = s / a, s2 / a2
    x_hat = xt / a - sigma * eps_hat
    fresh = eta * sigma2 * (1 - (sigma2 / sigma) ** 2) ** 0.5
    kept = (sigma2**2 - fresh**2) ** 0.5
    return a2 * (x_hat + kept * eps_hat + fresh * torch.randn_like(xt))
@torch.no_grad()
def sample(net, xt, levels, eta=0):
    """Take noise xt (B, 2) through levels (n, 2), with a net(xt, a, s) that predicts eps."""
    for (a, s), (a2, s2) in zip(levels, levels[1:]):
        xt = ddim_step(xt, net(xt, a, s), a, s, a2, s2, eta)
    return xt

# --- The velocity v = dxt/dt is da x + ds eps, which is x - eps on the linear path. Euler's step is
#     xt + h v = a x_hat + s eps_hat + h (x_hat - eps_hat) = (a + h) x_hat + (s - h) eps_hat
def v_from_eps(xt, eps_hat, a, s, da, ds):  # da and ds are the derivatives of a and s by t
    return da * (xt - s * eps_hat) / a + ds * eps_hat  # da x_hat + ds eps_hat
@torch.no_grad()
def sample_flow(net, xt, times):  # steps of DDIM, because a2 = a + h and s2 = s - h
    for t, t2 in zip(times, times[1:]):
        xt = xt + (t2 - t) * v_from_eps(xt, net(xt, t, 1 - t), t, 1 - t, 1, -1)
    return xt

net = train(NoiseNet(power=not args.no_rescale), vp_path, args.iters)
noise, real = torch.randn(500, 2), two_moons(500)
t = torch.linspace(0.001, 1, 31)  # not from 0, because ddim_step divides by a
vp, linear = vp_path(t), torch.stack([t, 1 - t], 1)
ends = torch.cat([sample(net, noise, vp), sample_flow(net, noise, t)])
off = torch.cdist(ends, CENTERS).amin(1).mean()

# --- The score is grad log p(xt). By Bayes' rule, it is the mean of grad log p(xt | x) = -eps / s,
# given xt, so it is -eps_hat / s (Hyvarinen 2005, Vincent 2011; SDEs: arXiv 2011.13456).
a = s = 0.5  # halfway on the linear path
xt = (a * real + s * noise).requires_grad_()
var = (a * STD) ** 2 + s**2
log_p = (-torch.cdist(xt, a * CENTERS) ** 2 / (2 * var)).logsumexp(1)
score, = torch.autograd.grad(log_p.sum(), xt)  # exact
error = (net(xt, a, s) / s + score).norm() / score.norm()

fig, axes = plt.subplot_mosaic("LLRR;.E.P", figsize=(13, 6), height_ratios=[15, 1], layout="tight")
left, right, low, corner = axes.values()
eta = plt.Slider(low, "eta", 0, 1, valinit=0)
power = plt.Slider(corner, "power of r", 0, 1, valinit=net.power)
rays = torch.stack([linear, nn.functional.normalize(linear)], 1)
left.plot(*rays.numpy().T, "0.7")
left.plot(*vp.T, "o-", *linear.T, "o-")
left.set(title="Division by r (gray) takes the linear\npath (orange) to the VP path (blue)",
         xlabel="a (data)", ylabel="s (noise)", aspect=1)
def draw(_):
    net.power = power.val
    ddim, flow = [sample(net, noise, path, eta.val) for path in (vp, linear)]
    right.clear()
    right.plot(*real.T, ".", color="0.7")
    right.plot(*torch.stack([ddim, flow], 1).numpy().T, "k", lw=1)
    right.plot(*ddim.T, "o", *flow.T, "+", mfc="none")
    right.set(xlim=(-3, 3), ylim=(-2.2, 2.2), aspect=1, title="On both paths, the same noise\n"
              f"ends in points {(ddim - flow).norm(dim=1).mean():.2f} apart (data gray)")
eta.on_changed(draw)
power.on_changed(draw)
draw(None)
fig.savefig("07_bridge.png", dpi=120)

# --- Claims. 0.2 is a quarter of the way from data (0.11) to noise (0.47).
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Both paths end on the moons. Mean distance to a center", off, "<", 0.2)
claim("C2", "The score is -eps_hat / s. Relative error", error, "<", 0.1)
print("figure: 07_bridge.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
