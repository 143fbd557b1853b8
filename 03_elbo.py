# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 From a bound to a loss: why a net that finds the noise is a model of the data.
Lesson 02's chain q walks from data x to noise. Its step t, and its first t steps together, are
    x_t = sqrt(1 - beta) x_(t-1) + sqrt(beta) z    and    x_t = a x + s eps    (z, eps ~ N(0, I))
The model p walks back from x_1000 ~ N(0, I). Its step to x_(t-1) is a Gaussian of variance beta
around a mean that a net computes from x_t. Let q(walk) be the probability of x_1 .. x_1000 given x,
and p(walk) that of all of x, x_1 .. x_1000. Nobody can sum it over all walks, but q draws walks:
    p(x) = sum of q(walk) (p(walk) / q(walk)) = mean of p(walk) / q(walk) over q's walks from x
    -log p(x) <= mean of log(q(walk) / p(walk)) over q's walks from x
because -log of a mean is at most the mean of -log. Minus the right side is the evidence lower bound
(ELBO). Given x, Bayes' rule makes q's step back a Gaussian, too, with the mean below (lesson 04
derives it) and its own, smaller variance beta-tilde. So q(walk) / p(walk) is a product of ratios,
one for each t. Its log is a sum. A term's mean over x_(t-1) is the KL divergence of two Gaussians:
    mean of q = (x_t - beta / s eps) / sqrt(1 - beta)     mean of p: the same with a net's eps_hat
    KL at t = |mean of q - mean of p|^2 / (2 beta) + constant = w |eps - eps_hat|^2 + constant
with w = beta / (2 (1 - beta) s^2). The constant holds beta and beta-tilde, but no net. At t = 1 the
mean of q is x, and -log p(x | x_1) has the same form. The ratio of x_1000 has no net in it.
So a net that finds the noise makes the bound small. DDPM's L_simple drops w: all t weigh the same.
C1 A net trained by L_simple is within a nat (the unit of natural logs) of the best possible bound.
C2 Dropping w costs nats.   C3 Plain squared error on x, or on the mean itself, costs far more.
RUN    python 03_elbo.py                (5 seconds; click on the net whose samples to see)
BREAK  python 03_elbo.py --target mean  C1 is now about the mean and fails; its samples scatter
PAPER  Ho, Jain, Abbeel 2020 (DDPM), arXiv 2006.11239, equations 5 to 14 and table 2"""
import argparse
import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import RadioButtons
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--target", choices=["eps", "x", "mean"], default="eps", help="others break it")
parser.add_argument("--iters", type=int, default=450, help="of each net; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if args.iters < 1 or args.seed < 0:
    parser.error("--iters must be 1 or more, --seed 0 or more")
torch.set_num_threads(1)  # nets this small are fastest on one core

# --- data
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), places on a half circle
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), scaled: |x|^2 is 2 on average, as in N(0, I)
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each of the 64 places
def two_moons(n):
    """n samples of p_data, (n, 2)."""
    return MU[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- method
def exact_means(xt, a, s):
    """E[x | xt] and E[eps | xt] of the moons, (B, 2) each, for xt = a x + s eps; a, s (B, 1)."""
    var = (a * STD) ** 2 + s**2  # of xt around a mu, if its x came from the Gaussian at mu
    square = (xt[:, None] - a[:, None] * MU).square().sum(2)  # (B, 64, 2), summed to (B, 64)
    weight = (-square / (2 * var)).softmax(1)  # (B, 64), p(mu | xt): Bayes' rule for equal p(mu)
    centre = weight @ MU  # (B, 2), the mean of mu
    off = xt - a * centre  # (B, 2), the mean of a (x - mu) + s eps
    # by variance, (a STD)^2 / var of it is a (x - mu), and s^2 / var is s eps; divide by a and s
    return centre + a * STD**2 / var * off, s / var * off

BETA = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, 1000)])[:, None]  # t = 0 .. 1000
A = (1 - BETA).cumprod(0).sqrt()  # (1001, 1), as all four; xt = A[t] x + S[t] eps
S = (1 - A**2).sqrt()
W = BETA / (2 * (1 - BETA) * S**2)  # large at small t: t <= 50 have almost a third of the sum
def step_mean(xt, noise, t):  # (B, 2): the mean of q for noise eps, the mean of p for eps_hat
    return (xt - BETA[t] / S[t] * noise) / (1 - BETA[t]).sqrt()
def walk_back(model_mean, xt):  # the model's walk from noise xt (n, 2), t = 1000, to samples
    for t in range(1000, 0, -1):
        xt = model_mean(xt, torch.full((len(xt),), t)) + BETA[t].sqrt() * torch.randn_like(xt)
    return xt

# --- train: DDPM dropped w and found better pictures; what this costs in nats is C2
def train_target(target, odds, iters, seed):  # drawing t by odds w weights the loss by w / sum(w)
    torch.manual_seed(seed)  # the same seed for every net
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    for layer in net[::2]:
        nn.init.kaiming_normal_(layer.weight)  # a larger start than torch's learns sooner
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(512), torch.randn(512, 2)
        t = 1 + odds.multinomial(512, replacement=True)
        xt = A[t] * x + S[t] * eps
        goal = {"eps": eps, "x": x, "mean": step_mean(xt, eps, t)}[target]
        answer = net(torch.cat([xt, t[:, None] / 1000], 1))
        loss = (answer - goal).square().mean()  # for eps and equal odds: L_simple, equation 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Why C3: at t = 1, where beta is .0001, an error e of x or of the mean costs |e|^2 / (2 beta) =
    # 5000 |e|^2 nats, but one of eps |e|^2 / 2, because the mean holds only beta / s = .01 of eps.
    def model_mean(xt, t):
        answer = net(torch.cat([xt, t[:, None] / 1000], 1)).detach()
        if target == "mean":
            return answer
        eps_hat = answer if target == "eps" else (xt - A[t] * answer) / S[t]
        return step_mean(xt, eps_hat, t)
    return model_mean

models, lost, total = {}, {}, {}  # by net: mean of the step, nats lost at each t, at all t
for name in ("mean", "x", "eps"):
    models[name] = train_target(name, torch.ones(1000), args.iters, args.seed)
models["eps with w"] = train_target("eps", W[1:, 0], args.iters, args.seed)

# --- measure: the nats that each net loses, compared with the best possible net
t = torch.arange(1, 1001).repeat_interleave(64)  # (64000,), each t 64 times
x, eps = MU + STD * torch.randn(64, 2), torch.randn(64, 2)  # 64 pairs for all t: smooth curves
xt = A[t] * x.repeat(1000, 1) + S[t] * eps.repeat(1000, 1)  # (64000, 2)
# On average |eps - eps_hat|^2 = |eps - best_eps|^2 + |best_eps - eps_hat|^2, and the last is lost:
best_eps = exact_means(xt, A[t], S[t])[1]  # the mean of eps given xt: hence no mixed term above
best_mean = step_mean(xt, best_eps, t)  # w |best_eps - eps_hat|^2 = |mean - best_mean|^2 / (2 beta)
for name, model_mean in models.items():
    excess = (model_mean(xt, t) - best_mean).square().sum(1) / (2 * BETA[t, 0])  # (64000,) nats
    lost[name] = excess.view(1000, 64).mean(1)  # (1000,)
    total[name] = lost[name].sum().item()  # C1, C2, C3

# --- figure
fig, (chart, left, right) = plt.subplots(1, 3, figsize=(13, 4.8), layout="constrained")
radio = RadioButtons(plt.axes([0.71, 0.17, 0.09, 0.18]), list(models))
for name, colour in zip(models, ("tab:red", "darkred", "tab:blue", "tab:cyan")):
    chart.loglog(t[::64], lost[name], color=colour, label=f"{name}: {total[name]:.2f}")
chart.set(xlabel="t (1: data, 1000: noise)", ylabel="nats lost at t (above the best possible net)")
chart.legend(title="nats lost at all t together")

def draw(name, ax=right):
    torch.manual_seed(args.seed)  # the same noise for every net
    xt = walk_back(models[name], torch.randn(400, 2))
    ax.clear()
    ax.plot(*two_moons(400).T, ".", color="0.7", ms=3)
    ax.plot(*xt.T, ".", color="tab:blue" if total[name] < 1 else "tab:red", ms=3)
    ax.set(title=f"net for {name} (grey: data)", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    fig.canvas.draw_idle()
draw(args.target, left)
draw("mean")  # until the radio button is used
radio.on_clicked(draw)
fig.savefig("03_elbo.png", dpi=120)

# --- claims: the bounds leave a margin to what ten seeds gave
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", f"nats lost, target {args.target}", total[args.target], "<", 1)
claim("C2", "dropping w, nats (ten seeds .1 to .2)", total["eps"] - total["eps with w"], ">", 0.04)
claim("C3", "nats lost by x or mean (ten seeds 15 to 47)", min(total["x"], total["mean"]), ">", 5)
print("figure: 03_elbo.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
