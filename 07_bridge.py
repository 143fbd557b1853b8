# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""07 Bridge: DDPM and flow matching are one method on two paths, so one net serves both.
Both mix data and noise, xt = a x + s eps. DDPM's levels (a, s) lie on the arc a^2 + s^2 = 1, flow
matching's on the chord a + s = 1. Divided by a, both are y = x + sigma eps, data blurred by noise
of std sigma = s / a. So a path is just a list of sigmas, and a net that finds the noise in y,
eps_hat = E[eps | y], serves both. DDIM lets y follow eps_hat as sigma falls, which on the chord is
lesson 06's Euler. DDPM goes further down each time, and up again by fresh noise. As eps_hat turns
on the way, a straight step errs, and the longer DDPM's more.
C1 One net, trained on the arc, leads noise to data on both. C2 In 10 steps it ends nearer with DDIM
(eta = 0) than with DDPM (eta = 1). C3 The score, the slope of log p(y), is -eps_hat / sigma.
RUN    python 07_bridge.py             (6 seconds)
BREAK  python 07_bridge.py --forget    the net gets the chord's xt, not the arc's: C1 and C3 fail
PAPER  Song, Meng, Ermon 2020 (DDIM), arXiv 2010.02502, equations 12 and 16"""
import argparse
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--forget", action="store_true", help="to put xt on the arc: breaks the chord")
parser.add_argument("--iters", type=int, default=1300, help="of training; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if args.iters < 1 or args.seed < 0:
    parser.error("--iters must be 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small are fastest on one core

# --- data
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2); the lower moon is -MOON
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2); the samples' std, both axes pooled, is 1 now
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each of the 64 places
def two_moons(n):
    """n samples of p_data, (n, 2)."""
    return MU[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- method
BETA = torch.linspace(1e-4, 0.02, 1000)  # DDPM's (lesson 02): step k leaves 1 - beta of a^2
A = torch.cat([torch.ones(1), (1 - BETA).cumprod(0).sqrt()])  # (1001,), k = 0 .. 1000
SIGMA = (1 / A**2 - 1).sqrt()  # (1001,), s / a on the arc, where s^2 = 1 - a^2: from 0 to 157
def arc(n_steps):  # DDPM's sigmas, from k = 1000 (noise) down to k = 0 (data), (n_steps + 1,)
    return SIGMA[torch.linspace(1000, 0, n_steps + 1).round().long()]

def chord(n_steps):  # flow matching's, (1 - t) / t, from t = .001 (sigma = 999, nearly noise) to 1
    return 1 / torch.linspace(0.001, 1, n_steps + 1) - 1

def find_noise(net, y, sigma, forget=False):
    """eps_hat (B, 2) in y = x + sigma eps (B, 2); sigma is a tensor of one number or (B, 1)."""
    angle = sigma.atan().expand(len(y), 1)  # (B, 1), of (a, s): 0 is data, pi / 2 is noise
    a = 1 / (1 + sigma) if forget else angle.cos()  # the chord's, or the arc's
    xt = a * y  # on the arc: cos(angle) x + sin(angle) eps, of variance 1
    # The net is to give v_sh = cos(angle) eps - sin(angle) x (Salimans, Ho). Then eps is as below,
    # and x = cos(angle) xt - sin(angle) v_sh: errors of v_sh grow in neither.
    v_sh = net(torch.cat([xt, angle], 1))
    return angle.sin() * xt + angle.cos() * v_sh

# As sigma changes, a pair's y moves on a line, by eps per unit. Lines cross, but a density changes
# only by what flows in and out, and the flow is density times mean direction, E[eps | y] = eps_hat.
# So points that follow eps_hat have the density of y at every sigma (lesson 05). A step of DDIM is
#     y2 = y + (sigma2 - sigma) eps_hat = x_hat + sigma2 eps_hat     with x_hat = y - sigma eps_hat
# On the chord, t2 y2 = t2 x_hat + (1 - t2) eps_hat, and xt = t y = t x_hat + (1 - t) eps_hat. So
#     t2 y2 = xt + (t2 - t) (x_hat - eps_hat)     (lesson 06's Euler step)
# In DDPM's chain, sigma eps is n, the noise in y2, plus later noise. Given the sum, n is on average
#     E[n | sigma eps] = sigma2^2 / sigma^2 * sigma eps = low * eps     (its share: lesson 03)
# So DDPM goes down to low and up to sigma2 by fresh noise, as variances add: any detour is right.
def ddim_step(y, eps_hat, sigma, sigma2, eta):
    """From y (B, 2) at sigma to a lower sigma2; eta, 0 .. 1: how much of its noise is fresh."""
    low = sigma2**2 / sigma
    fresh = eta * (sigma2**2 - low**2).sqrt()  # 0 if eta = 0; if eta = 1, from low up to sigma2
    down = (sigma2**2 - fresh**2).sqrt()  # sigma2 if eta = 0; if eta = 1, low
    return y + (down - sigma) * eps_hat + fresh * torch.randn_like(y)

def walk_path(net, noise, sigmas, eta, forget=False):  # from noise, std 1, to data, (B, 2) each
    y = sigmas[0] * noise  # x is negligible beside it
    for sigma, sigma2 in zip(sigmas, sigmas[1:]):
        y = ddim_step(y, find_noise(net, y, sigma, forget), sigma, sigma2, eta)
    return y

# --- train and measure
def train_on_arc(iters):  # returns the net for find_noise, (B, 3) -> (B, 2)
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(1024), torch.randn(1024, 2)
        sigma = SIGMA[torch.randint(1, 1001, (1024, 1))]
        loss = (find_noise(net, x + sigma * eps, sigma) - eps).square().mean()  # v_sh's is as good
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.requires_grad_(False)

def energy_distance(x, y):
    """How far x, y (n, 2) are apart, beyond their own spread; 0 only if alike (Szekely 2013)."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item() if x.abs().max() < 1e3 else float("inf")  # inf if x flew off or is nan
net = train_on_arc(args.iters)
noise, real = torch.randn(4000, 2), two_moons(4000)
far = energy_distance(noise, real)  # .04 to .06; for real data in place of noise, 0 +- .001
arc_40 = energy_distance(walk_path(net, noise, arc(40), 0), real)
chord_40 = energy_distance(walk_path(net, noise, chord(40), 0, args.forget), real)  # C1
eta_0, eta_1 = [energy_distance(walk_path(net, noise, arc(10), eta), real) for eta in (0, 1)]  # C2
y = (real + noise).requires_grad_()  # sigma = 1: a = s = .5 on the chord, furthest from the arc
places = MultivariateNormal(MU, (STD**2 + 1) * torch.eye(2))  # p(y) is the mean of these 64
log_p = MixtureSameFamily(Categorical(torch.ones(64)), places).log_prob(y)  # (4000,)
slope, = torch.autograd.grad(log_p.sum(), y)  # (4000, 2), exact
# slope of log p(y) = E[slope of log p(y | x) | y] (Bayes) = E[-(y - x) / sigma^2 | y] = E[-eps | y]
error = (-find_noise(net, y.detach(), torch.ones(1), args.forget) - slope).square().mean()  # C3

# --- figure
fig, (panels, bars) = plt.subplots(2, 3, figsize=(12, 4.6), height_ratios=[15, 1], layout="tight")
steps = plt.Slider(bars[0], "steps", 1, 50, valinit=20, valstep=1)
eta = plt.Slider(bars[1], "eta ", 0, 1, valinit=0)
forget = plt.Slider(bars[2], "forget ", 0, 1, valinit=args.forget, valstep=1)
def draw(_):
    panels[0].clear()
    for ax, path, colour in zip(panels[1:], (arc, chord), ("tab:blue", "tab:orange")):
        sigmas = path(int(steps.val))
        x = walk_path(net, noise, sigmas, eta.val, forget.val and path == chord)
        miss = energy_distance(x, real)
        ax.clear()
        ax.plot(*real.T, ".", color="0.7", ms=2)
        ax.plot(*x.T, ".", color=colour if miss < far else "tab:red", ms=2)
        ax.axis([-3, 3, -3, 3])
        ax.set(title=f"{path.__name__}: {miss:.3f} from data\n(noise: {far:.3f})", aspect=1)
        a = 1 / (1 + sigmas) if path == chord else 1 / (1 + sigmas**2).sqrt()
        panels[0].plot(a, a * sigmas, "o-", color=colour)
    panels[0].plot([0, 0.7], [0, 0.7], "k--")  # a ray from 0 has one sigma, s / a
    panels[0].set(title="dashed: sigma = 1", xlabel="a (data)", ylabel="s (noise)", aspect=1)
draw(None)
for slider in (steps, eta, forget):
    slider.on_changed(draw)
fig.savefig("07_bridge.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", "worse of arc, chord (bound: a fifth of noise's)", max(arc_40, chord_40), "<", far / 5)
claim("C2", "10 steps, distance with eta = 0 (bound: with eta = 1)", eta_0, "<", eta_1)
claim("C3", "error of score (bound: 1% of its square)", error, "<", slope.square().mean() / 100)
print("figure: 07_bridge.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
