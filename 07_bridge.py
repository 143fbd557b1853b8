# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""07 DDPM and flow matching are one method on two paths, with DDIM, velocity, and the score.

Both mix data x and noise eps, xt = a x + s eps. DDPM's path is variance-preserving (VP), with
a^2 + s^2 = 1. Flow matching's path is linear, with a + s = 1. Divide a point on the linear path
by r = sqrt(a^2 + s^2), and it lies on the VP path. So one net, trained for DDPM, serves both.
RUN    python 07_bridge.py             (5 seconds; the slider turns the division off)
BREAK  python 07_bridge.py --power 0   (C1 and C3 fail, because the net's input is not divided)
PAPER  arXiv 2010.02502 (DDIM), equations 12 and 16, by Song, Meng, and Ermon"""
import argparse, signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--power", type=int, choices=[0, 1], default=1, help="exponent of r; 0: off")
parser.add_argument("--iters", type=int, default=1000, help="training iterations (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 1_000_000 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Data: two moons, as a mixture of 64 narrow Gaussians, so that p_data has a closed form
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), the upper half circle
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), so that the mean |x|^2 is 2, as in N(0, I)
STD = 0.09 / 0.7107  # of each Gaussian

def two_moons(n):
    """Return n samples of p_data, of shape (n, 2)."""
    return CENTERS[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- The bridge. xt / r has weights a / r and s / r. Their squares add up to 1, as on the VP path.
def make_predictor(net, power=1):
    """Return predict(xt, a, s), which gives eps_hat, (B, D), by a net of (xt, a, s) / r**power."""
    def predict(xt, a, s):  # xt is (B, D), a and s are numbers or (B, 1)
        r = (a**2 + s**2) ** 0.5
        ones = torch.ones_like(xt[:, :1])  # (B, 1)
        return net(torch.hstack([xt, a * ones, s * ones]) / r**power)  # of (B, D + 2)
    return predict

# --- DDPM's training, on the VP path. Squared error teaches the net the mean of eps, given xt.
net = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                    nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
predict = make_predictor(net)
optimizer = torch.optim.Adam(net.parameters())
for i in range(args.iters):
    optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / args.iters)  # large steps first, then small
    x, eps = two_moons(1024), torch.randn(1024, 2)
    angle = torch.pi / 2 * torch.rand(1024, 1)  # the VP path is a quarter circle
    a, s = angle.sin(), angle.cos()
    loss = nn.functional.mse_loss(predict(a * x + s * eps, a, s), eps)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if i % 100 == 0:
        print(f"iteration {i} of {args.iters}: loss {loss:.4f}")

# --- DDIM solves xt = a * x_hat + s * eps_hat for x_hat, and mixes both again with less noise:
#     xt2 = a2 * x_hat + s2 * eps_hat
# DDPM replaces a part of eps_hat by fresh noise. In its forward chain (lesson 02), xt is xt2 times
# a / a2, plus independent noise. So the noise in xt is s * eps = (a / a2) * s2 * eps2 + new noise.
# Both eps are standard normal, so rho = (a / a2) * s2 / s is their correlation. Given eps, eps2 has
# the mean rho * eps and the variance 1 - rho^2. So DDPM keeps rho * s2 of eps_hat, and adds noise.
# (Both take the mean eps_hat for eps itself, which is exact in the limit of many small steps.)
@torch.no_grad()
def sample(predict, xt, levels, eta=0):
    """Denoise xt through n levels (a, s), by DDIM (eta=0) or DDPM (eta=1). Return all n points."""
    path = [xt]
    for (a, s), (a2, s2) in zip(levels, levels[1:]):
        eps_hat = predict(xt, a, s)
        x_hat = (xt - s * eps_hat) / a
        rho = a / a2 * s2 / s
        sigma = eta * s2 * (1 - rho**2) ** 0.5  # std of the fresh noise (equation 16)
        kept = (s2**2 - sigma**2) ** 0.5  # s2 in DDIM, rho * s2 in DDPM
        xt = a2 * x_hat + kept * eps_hat + sigma * torch.randn_like(xt)  # equation 12
        path.append(xt)
    return torch.stack(path)  # (n, ...)

# --- Flow matching's path is xt = t * x + (1 - t) * eps. So v = dxt/dt = x - eps = (xt - eps) / t.
# A net trained on v also learns the mean of eps. The sampler follows v_hat, the mean of v. This
# decides how many points cross any border (lesson 05). As xt = t x_hat + (1 - t) eps_hat, it does
#     xt2 = xt + (t2 - t) * (x_hat - eps_hat) = t2 * x_hat + (1 - t2) * eps_hat, as in DDIM
@torch.no_grad()
def sample_flow(predict, xt, times):
    """Move noise xt along the linear path by Euler's method, through n times. Return all points."""
    path = [xt]
    for t, t2 in zip(times, times[1:]):
        v_hat = (xt - predict(xt, t, 1 - t)) / t
        xt = xt + (t2 - t) * v_hat
        path.append(xt)
    return torch.stack(path)  # (n, ...)

t = torch.linspace(0.05, 1, 31)  # not from 0: we divide by t. xt is nearly noise there
linear = torch.stack([t, 1 - t], 1)  # (31, 2)
r = linear.norm(dim=1, keepdim=True)  # (31, 1)
vp = linear / r

# If flow's xt is r times DDIM's, any net sees the same input in both, after division by r. So x_hat
# and eps_hat agree, and flow's next xt is r2 times DDIM's, where r2 is the next r (1 at the end):
#     t2 * x_hat + (1 - t2) * eps_hat = r2 * (a2 * x_hat + s2 * eps_hat)
noise = torch.cat([torch.full((1, 2), 2.0), torch.randn(299, 2)])  # the figure follows (2, 2)
predict_flow = make_predictor(net, args.power)
ddim = sample(predict, noise, vp)  # (31, 300, 2)
gap = (ddim - sample_flow(predict_flow, r[0] * noise, t))[-1].norm(dim=1).mean()
distance = torch.cdist(sample(predict, noise, vp, eta=1)[-1], CENTERS).amin(1).mean()

# --- The score is grad log p(xt). Let N be the density of xt, given x: mean a * x, variance s^2.
#     p(xt) = E[N] over all data x, and grad p(xt) = E[-(xt - a * x) / s^2 * N] = E[-eps / s * N]
#     score = grad p(xt) / p(xt) = E[-eps / s * N] / E[N] = -eps_hat / s, by Bayes' rule
halfway = (0.5 * two_moons(300) + 0.5 * noise).requires_grad_()  # (300, 2), on the linear path
score = -predict_flow(halfway, 0.5, 0.5) / 0.5
var = 0.25 * STD**2 + 0.25  # of each of the 64 Gaussians, whose average is the density
log_p = (-torch.cdist(halfway, 0.5 * CENTERS) ** 2 / (2 * var)).logsumexp(1)  # plus a constant
exact = torch.autograd.grad(log_p.sum(), halfway)[0]  # (300, 2), grad log p

fig, (left, right) = plt.subplots(1, 2, figsize=(12, 5.8), layout="constrained")
left.set(xlabel="a, the weight of the data\n\n", ylabel="s, the weight of the noise", aspect=1)
left.set_title("Dividing by $r=\\sqrt{a^2+s^2}$ leads from\nflow matching (orange) to DDPM (blue)")
left.plot(*torch.stack([0 * vp, vp], 1).flatten(0, 1).T, "0.75")  # rays from (0, 0) and back
left.plot(*vp.T, "C0o-", *linear.T, "C1o-")
def draw(power):
    flow = sample_flow(make_predictor(net, power), r[0] * noise, t)
    right.clear()
    right.plot(*x.T, ".", color="0.8")  # x: data
    right.plot(*ddim[-1].T, "C0o", *flow[-1].T, "C1.")  # the ends of all 300
    right.plot(*ddim[:, 0].T, "C0.-", *flow[:, 0].T, "C1.-")  # the paths from (2, 2)
    right.plot(*sample_flow(make_predictor(net, 0), r[0] * noise, t)[:, 0].T, "r.-")  # undivided
    right.set(xlim=(-2.9, 3.7), ylim=(-2.3, 2.3), aspect=1, xlabel="curves: one sample's path")
    right.set_title("Flow (orange) ends where DDIM (blue) does,\nif we divide by r (red: if not)")
draw(args.power)
slider = plt.Slider(plt.axes([0.7, 0, 0.2, 0.04]), "divide by r? 0: no", 0, 1, valinit=args.power)
slider.on_changed(draw)
fig.savefig("07_bridge.png")

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Euler on the linear path ends where DDIM on the VP path does. Gap", gap, "<", 0.001)
claim("C2", "DDPM (eta = 1) ends on the moons. Distance to a center", distance, "<", 2 * STD)
claim("C3", "The score is -eps_hat / s. Error", (score - exact).norm() / exact.norm(), "<", 0.1)
print("figure: 07_bridge.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
