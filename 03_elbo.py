# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 From a bound to a loss: why a net that finds the noise is a model of the data.
Lesson 02's chain leads from data x to noise x_1000. A model p walks back: it draws x_1000 from a
wide Gaussian, then each x_(t-1) from a Gaussian around a mean that a net computes from x_t and t.
Its density p(x) is out of reach. But three steps below lead to a lower bound on log p(x), the ELBO:
what the net finds of the noise raises it, with a weight w that is largest at t = 1. (Little can be
found there: the noise has std .01, the moons .13.) DDPM drops w (L_simple), puts more effort into
large t, and reports better pictures. Here, only the price is seen.
C1 Trained without w, a net has a bound above the log-likelihood of one Gaussian fitted to the data.
C2 With w its bound is higher. C3 Nets that learn the mean of p's step, not eps, have lower bounds.
RUN    python 03_elbo.py                (6 seconds; click on the net whose samples to see)
BREAK  python 03_elbo.py --target mean  asks C1 of the net for the mean: it fails, samples scatter
PAPER  Ho, Jain, Abbeel 2020 (DDPM), arXiv 2006.11239, equations 5 to 14 and table 2"""
import argparse
import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import RadioButtons
from torch import nn
from torch.distributions import MultivariateNormal
# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--target", choices=["eps", "mean"], default="eps", help="mean breaks it")
parser.add_argument("--iters", type=int, default=700, help="of each net; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if args.iters < 1 or args.seed < 0:
    parser.error("--iters must be 1 or more, --seed 0 or more")
torch.set_num_threads(1)  # nets this small are fastest on one core

# --- data
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2); the lower moon is -MOON
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2); the samples' std, both axes pooled, is 1 now
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each of the 64 places
def two_moons(n):
    """n samples of p_data, (n, 2)."""
    return MU[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- method. Divided by a, lesson 02's chain only adds noise: x_t = x + s eps = x_(t-1) + sqrt(d) z
BETA = torch.linspace(1e-4, 0.02, 1000)  # lesson 02: step t leaves 1 - beta of a^2
A = torch.cat([torch.ones(1), (1 - BETA).cumprod(0).sqrt()])[:, None]  # (1001, 1)
S = (1 / A**2 - 1).sqrt()  # s at t = 0 .. 1000; it was sqrt(1 - a^2), and is divided by a now
VAR = (S**2).diff(dim=0, prepend=S[:1])  # d, the variance that step t adds (S[0] is 0)

# 1. The bound. Let q(walk) be the density of x_1 .. x_1000 in the chain from x, p(walk) that of
# x_1000 .. x_1 and x in the model, and E the average over walks that the chain takes from x. Then
#     p(x) = integral of p(walk) = integral of q(walk) * p(walk) / q(walk) = E[p(walk) / q(walk)]
# As log E[..] >= E[log ..] (Jensen), log p(x) >= E[log p(walk) - log q(walk)]. A walk's density is
# the product of the densities of its steps (x_0 is x). So, paired by t, this is
#     E log p(x_1000) + sum over t of E[log p(x_(t-1) | x_t) - log q(x_t | x_(t-1))]
# Both are Gaussians. Let p's have the variance d of q's, so that their factors cancel. Step t gives
#     E|x_t - x_(t-1)|^2 / (2 d) - E|x_(t-1) - p's mean|^2 / (2 d)
# The first part, from - log q, is E|sqrt(d) z|^2 / (2 d) = 1, as E|z|^2 = 2 on two axes.
# 2. The mean. Fix x and x_t, and so all noise up to t, s eps = x_t - x. Think of it as a sum of
# many independent pieces of equal variance. By symmetry, each is on average the same part of it.
# The last noise, u = x_t - x_(t-1), has d of the variance s^2, so
#     E[u | x, x_t] = d / s^2 * s eps = d / s * eps
def step_mean(xt, eps, t):
    """E[x_(t-1) | x, x_t], (B, 2), from xt (B, 2), the noise eps (B, 2) in it and t (B,)."""
    return xt - VAR[t] / S[t] * eps
# The variance of u, d, is that of this mean, d^2 / s^2, plus that around it (total variance). So
#     Var[u | x, x_t] = d - d^2 / s^2     on each axis, and for every x_t, as all is Gaussian
# 3. The loss. A net guesses eps from x_t and t, at best as the mean of all eps that fit x_t. Let
# p's mean be step_mean(x_t, eps_hat, t). Mean squared distance = variance + (distance of means)^2:
#     E[|x_(t-1) - p's mean|^2 | x, x_t] = 2 (d - d^2 / s^2) + |d / s * (eps - eps_hat)|^2
# Divided by 2 d and subtracted from 1, this is what step t gives to the bound in 1:
#     d / s^2 - d / (2 s^2) |eps - eps_hat|^2 = w (2 - |eps - eps_hat|^2)  with
W = (VAR / (2 * S**2))[1:, 0]  # (1000,), t = 1 .. 1000: .5 at t = 1, .01 at t = 100

def walk_back(eps_net, xt):  # p's walk from x_1000 (n, 2) to samples (n, 2)
    for t in range(1000, 0, -1):
        eps_hat = eps_net(xt, torch.full((len(xt),), t))
        xt = step_mean(xt, eps_hat, t) + VAR[t].sqrt() * torch.randn_like(xt)
    return xt

# --- train
def train_target(target, iters, seed, w=torch.ones(1000)):  # w (1000,): odds of t = 1 .. 1000
    torch.manual_seed(seed)  # the same seed for every net
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(512), torch.randn(512, 2)
        t = 1 + w.multinomial(512, replacement=True)  # odds w: on average, a factor w in the loss
        xt = x + S[t] * eps
        goal = eps if target == "eps" else A[t] * step_mean(xt, eps, t)  # std 1: x_t has 1 / a
        answer = net(torch.cat([A[t] * xt, t[:, None] / 1000], 1))
        loss = (answer - goal).square().mean()  # of eps without w: L_simple, equation 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    def eps_net(xt, t):  # eps_hat, whatever the net learned
        answer = net(torch.cat([A[t] * xt, t[:, None] / 1000], 1)).detach()
        return answer if target == "eps" else (xt - answer / A[t]) * S[t] / VAR[t]
    return eps_net

models = {}  # C3: the mean is x_t but for d / s * eps, a hundredth of it, lost in a net's errors
for target, w in [("eps", W), ("mean", 1 / BETA)]:  # in the bound a * mean counts 1 / (2 beta)
    models[target] = train_target(target, args.iters, args.seed)
    models[f"{target} with w"] = train_target(target, args.iters, args.seed, w)

# --- measure
t = 1 + W.multinomial(100000, replacement=True)  # so sum of w f(t) is W.sum() * mean of f(t)
x, eps = two_moons(100000), torch.randn(100000, 2)
end = MultivariateNormal(torch.zeros(2), S[1000] ** 2 * torch.eye(2))  # p's x_1000
gained, bound = {}, {}  # by net: nats in each octave, and the bound, on average over x
for name, eps_net in models.items():
    found = 2 - (eps - eps_net(x + S[t] * eps, t)).square().sum(1)  # of the noise, (100000,)
    octave = t.log2().long()  # 0: t = 1, 1: t = 2 and 3, 2: t = 4 to 7, .. up to 9
    found_in_octave = torch.bincount(octave, weights=found) / 100000  # (10,), sums to found.mean()
    gained[name] = W.sum() * found_in_octave
    bound[name] = end.log_prob(x + S[1000] * eps).mean() + gained[name].sum()  # C1, C2, C3
places = MultivariateNormal(MU, STD**2 * torch.eye(2))  # p_data is the mean of these 64 densities
log_p = places.log_prob(x[:, None]).exp().mean(1).log()  # mean over 64: (100000,), log p_data(x)
gaussian = MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x).mean()  # one, fitted to x

# --- figure
fig, (chart, ax) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
for name, style in zip(models, ["C0o-", "C0o--", "C3o-", "C3o--"]):  # blue, red
    chart.plot(gained["eps with w"] - gained[name], style, label=f"{name}: {bound[name]:.2f}")
chart.set(xlabel="octave of t (0: t = 1, 5: t = 32 to 63)", ylabel="nats fewer than eps with w")
chart.legend(title=f"log p_data(x): {log_p.mean():.2f}\none Gaussian: {gaussian:.2f}\nbounds:")

def draw(name):
    torch.manual_seed(args.seed)  # the same noise for every net
    xt = walk_back(models[name], end.sample((400,)))
    ax.clear()
    ax.plot(*two_moons(400).T, ".", color="0.7")
    ax.plot(*xt.T, ".", color="tab:blue" if bound[name] > gaussian else "tab:red")
    ax.set(title=f"samples, {name} (grey: data)", aspect=1, xlim=(-3, 3), ylim=(-3, 3))
    fig.canvas.draw_idle()
radio = RadioButtons(chart.inset_axes([0.4, 0.7, 0.25, 0.2], title="samples of"), list(models))
radio.on_clicked(draw)
radio.set_active(list(models).index(args.target))  # draws
fig.savefig("03_elbo.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", "bound, net of --target (limit: one Gaussian)", bound[args.target], ">", gaussian)
claim("C2", "bound, eps with w (limit: without)", bound["eps with w"], ">", bound["eps"])
claim("C3", "mean with w (limit: eps with w)", bound["mean with w"], "<", bound["eps with w"])
print("figure: 03_elbo.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
