# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 From a bound to a loss: why a net that finds the noise is a model of the data.
The model p starts at noise, x_1000, and walks lesson 02's chain back to data, x. A step from xt to
x_(t-1) is a Gaussian with variance beta around a mean that a net computes. Nobody can sum p(walk)
over all walks that end in x. But the chain q of lesson 02 makes such walks from x, and
    p(x) = sum of q(walk) (p(walk) / q(walk)) = mean of p(walk) / q(walk) over q's walks
    -log p(x) <= mean of log(q(walk) / p(walk)) over q's walks       (the right is minus the ELBO)
because -log of a mean is at most the mean of -log. This log is a sum over steps. Given x, Bayes'
rule turns the steps of q back in time (lesson 04), so each t has the mean log ratio of two
Gaussians, their KL divergence. What is left over, at x_1000, has no net in it.
    mean of q = (xt - beta / s eps) / sqrt(1 - beta)           (xt = a x + s eps)
    mean of p = (xt - beta / s eps_hat) / sqrt(1 - beta)       if a net finds the noise as eps_hat
    KL at t   = |mean of q - mean of p|^2 / (2 beta) + constant        (beta is the variance of p)
              = w |eps - eps_hat|^2 + constant,    w = beta / (2 (1 - beta) s^2)
At t = 1 the mean of q is x itself, and -log p(x | x_1) has the same form.
So a net that finds the noise makes the bound small. DDPM's loss L_simple drops w, which is large
where noise is faint, so that the net works more where pictures take shape. This costs likelihood.
C1 A net that learns eps by L_simple is less than a nat above the best possible bound.
C2 Dropping w costs nats.   C3 Plain squared error on x, or on the mean itself, costs far more.
RUN    python 03_elbo.py                (6 seconds; click on the net whose samples to see)
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
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), on both moons; .7107 makes the mean variance 1
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each place in MU
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
W = BETA / (2 * (1 - BETA) * S**2)  # equation 12; 0 / 0 at t = 0, which is not a step
def step_mean(xt, noise, t):
    """Mean of the step back from xt (B, 2) at t (B,), if this is the noise in xt (B, 2)."""
    return (xt - BETA[t] / S[t] * noise) / (1 - BETA[t]).sqrt()

# --- train
def train_target(target, odds, iters, seed):
    """Learn eps, x or the mean of the step back, with t drawn by odds. Returns model_mean."""
    torch.manual_seed(seed)  # all nets have the same start and see the same x and eps
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
    print(f"{target}: {iters} iterations, last loss {loss:.2g}")
    def model_mean(xt, t):
        answer = net(torch.cat([xt, t[:, None] / 1000], 1)).detach()
        if target == "mean":
            return answer  # subtle: at t = 1, where 2 beta is .0002, errors of .01 cost a nat
        if target == "x":
            answer = (xt - A[t] * answer) / S[t]  # its noise; at t = 1 this is 100 x the error
        return step_mean(xt, answer, t)
    return model_mean

models, lost, total = {}, {}, {}  # by name: mean of the step, nats at each t, nats at all t
for name in ("mean", "x", "eps"):
    models[name] = train_target(name, torch.ones(1000), args.iters, args.seed)
models["eps with w"] = train_target("eps", W[1:, 0], args.iters, args.seed)  # t as often as w says

# --- measure
t = torch.arange(1, 1001).repeat_interleave(64)  # (64000,), each t 64 times
x = (MU + STD * torch.randn(64, 2)).repeat(1000, 1)  # (64000, 2), the same 64 points at every t
eps = torch.randn(64, 2).repeat(1000, 1)  # and the same noise, so that the curves are smooth
xt = A[t] * x + S[t] * eps
# On average |eps - eps_hat|^2 = |eps - E[eps | xt]|^2 + |E[eps | xt] - eps_hat|^2: the last is lost
best = step_mean(xt, exact_means(xt, A[t], S[t])[1], t)
for name, model_mean in models.items():
    kl = (model_mean(xt, t) - best).square().sum(1) / (2 * BETA[t, 0])  # (64000,)
    lost[name] = kl.view(1000, 64).mean(1)  # (1000,)
    total[name] = lost[name].sum().item()  # C1, C2, C3

# --- figure
fig, (chart, left, right) = plt.subplots(1, 3, figsize=(13, 4.8))
fig.subplots_adjust(left=0.06, right=0.98, bottom=0.25)
radio = RadioButtons(plt.axes([0.81, 0.01, 0.1, 0.16]), list(models))
for name, colour in zip(models, ("tab:red", "tab:purple", "tab:blue", "tab:orange")):
    chart.loglog(t[::64], lost[name], color=colour, label=f"{name}: {total[name]:.2f}")
chart.set(xlabel="t (1: data, 1000: noise)", ylabel="nats lost at t")
chart.legend(title="nats lost at all t together")

def draw(name, ax=right):
    torch.manual_seed(args.seed)  # the same noise for every net
    xt = torch.randn(400, 2)
    for k in range(1000, 0, -1):  # the model's walk from noise to data
        xt = models[name](xt, torch.full((400,), k)) + BETA[k].sqrt() * torch.randn(400, 2)
    ax.clear()
    ax.plot(MU[:, 0], MU[:, 1], "o", color="0.7")
    ax.plot(xt[:, 0], xt[:, 1], ".", color="tab:blue" if total[name] < 1 else "tab:red", ms=3)
    ax.set(title=f"net for {name} (grey: data)", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    fig.canvas.draw_idle()
draw(args.target, left)
draw("mean")
radio.on_clicked(draw)
fig.savefig("03_elbo.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", f"nats lost, target {args.target}", total[args.target], "<", 1)
claim("C2", "dropping w costs nats (.1 or .2)", total["eps"] - total["eps with w"], ">", 0.04)
claim("C3", "nats lost by x or the mean (7 or more)", min(total["x"], total["mean"]), ">", 5)
print("figure: 03_elbo.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
