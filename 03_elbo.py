# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 From a bound to a loss: why a net that finds the noise is a model of the data.
Lesson 02's chain q leads from data x to noise, x_t = a x + s eps, in 1000 steps. A model p draws
N(0, I) and walks back by Gaussian steps of variance beta (DDPM's choice), whose means a net gives.
How probable is x for p? Nobody can sum over all walks that end in x. But q draws such walks, so
p(x) is an average over q of p(walk) / q(walk | x). The log of an average is at least the average
log, hence a lower bound on log p(x), the ELBO, that one can train. By Bayes' rule for q's steps
(README, lesson 03) it is constant + average of log p(x | x_1) minus
    sum over t > 1 of the average, over q, of KL( q(x_(t-1) | x_t, x), p(x_(t-1) | x_t) )
where q(x_(t-1) | x_t, x) is the step back that q would take if it knew x, and KL(q, p), the mean of
log(q / p) under q, says how far p is off. Both are Gaussians, and then, by the method below,
    KL = constant + w |eps - eps_hat|^2,  w = beta / (2 (1 - beta) s^2)
where eps_hat is a net's guess of eps. So a net that finds noise is a model of the data. DDPM drops
w (L_simple), which is largest at t = 1, where the noise is too faint to be seen.
C1 A net trained by L_simple loses less than a nat (unit of log p) of the bound to the best net. C2
A part of it is the price of dropping w: a small net must choose where to be exact. C3 A net for the
mean of p's step loses over a nat: it must copy x_t, which step_mean does for eps.
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
parser.add_argument("--target", choices=["eps", "mean"], default="eps", help="mean breaks it")
parser.add_argument("--iters", type=int, default=600, help="of each net; 50 blurs (%(default)s)")
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

# --- method. x_t = a x + s eps, and step by step x_t = sqrt(1 - beta) x_(t-1) + sqrt(beta) z
BETA = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, 1000)])[:, None]  # t = 0 .. 1000
A = (1 - BETA).cumprod(0).sqrt()  # (1001, 1) like BETA and S
S = (1 - A**2).sqrt()

# The mean of q(x_(t-1) | x_t, x). Given x_t and x, we know the noise in x_t. It is a sum,
#     s eps = sqrt(1 - beta) s_(t-1) eps_(t-1) + sqrt(beta) z,  as x_(t-1) is put into the step.
# Given a sum of independent Gaussians, a part has the mean var(part) / var(sum) times the sum:
#     mean of sqrt(beta) z = (beta / s^2) s eps = beta / s * eps
# So x_(t-1) = (x_t - sqrt(beta) z) / sqrt(1 - beta) has the mean
def step_mean(xt, eps_hat, t):
    """The mean of p's step back from xt (B, 2) at t (B,). With the true eps it is that of q's."""
    return (xt - BETA[t] / S[t] * eps_hat) / (1 - BETA[t]).sqrt()
# The KL of Gaussians of fixed variances is a constant + |difference of means|^2 / (2 p's variance).
# If p's mean is step_mean, too, with eps_hat for eps, x_t cancels in the difference:
#     KL = constant + (beta / s)^2 / (1 - beta) * |eps - eps_hat|^2 / (2 beta)
# At t = 1, x itself is step_mean(x_1, eps), and -log p(x | x_1), in the KL's place, has this form.
W = BETA[1:] / (2 * (1 - BETA[1:]) * S[1:] ** 2)  # (1000, 1): .5 at t = 1, .07 at 10, .01 at 100

def walk_back(model_mean, xt):  # p's walk from noise xt (n, 2) to samples (n, 2); t is (n,)
    for t in range(1000, 0, -1):
        xt = model_mean(xt, torch.full((len(xt),), t)) + BETA[t].sqrt() * torch.randn_like(xt)
    return xt

# --- train
def train_target(target, iters, seed, odds=torch.ones(1000)):  # odds: how often each t is drawn
    torch.manual_seed(seed)  # the same seed for every net
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(512), torch.randn(512, 2)
        t = 1 + odds.multinomial(512, replacement=True)  # odds are weights (means: 1 / (2 beta))
        xt = A[t] * x + S[t] * eps
        goal = eps if target == "eps" else step_mean(xt, eps, t)
        answer = net(torch.cat([xt, t[:, None] / 1000], 1))
        loss = (answer - goal).square().mean()  # eps, each t as often: L_simple, equation 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    def model_mean(xt, t):  # the mean of p's step, whatever the net answers
        answer = net(torch.cat([xt, t[:, None] / 1000], 1)).detach()
        return step_mean(xt, answer, t) if target == "eps" else answer
    return model_mean
models = {name: train_target(name, args.iters, args.seed) for name in ("eps", "mean")}
models["eps with w"] = train_target("eps", args.iters, args.seed, odds=W[:, 0])
models["mean with w"] = train_target("mean", args.iters, args.seed, odds=0.5 / BETA[1:, 0])

# --- measure
def best_eps(xt, a, s):
    """E[eps | xt], exact: (B, 2), the mean of all eps that fit xt (B, 2). a, s are (B, 1)."""
    off = xt[:, None] - a[:, None] * MU  # (B, 1, 2) - (B, 1, 1) * (64, 2), so (B, 64, 2)
    var = (a * STD) ** 2 + s**2  # of off = a (x - mu) + s eps, if x is from the place mu
    weight = (-off.square().sum(2) / (2 * var)).softmax(1)  # (B, 64), p(mu | xt) by Bayes' rule
    mean_off = xt - a * (weight @ MU)  # (B, 2), over all mu
    # off is a sum of Gaussians: on average, s eps is off times its share of the variance, s^2 / var
    return s / var * mean_off

t = torch.arange(1, 1001).repeat_interleave(64)  # (64000,): 1 1 ... 1 2 2 ... 2, each 64 times
x = (MU + STD * torch.randn(64, 2)).repeat(1000, 1)  # (64000, 2): 64 x, the same ones at each t
eps = torch.randn(64, 2).repeat(1000, 1)  # as for x; the same pairs at each t make smooth curves
xt = A[t] * x + S[t] * eps
# As eps - best_eps has mean 0 at each xt, a net's |eps - eps_hat|^2 is on average larger than that
# of best_eps, by |best_eps - eps_hat|^2. Times w this is |best_mean - mean of p|^2 / (2 beta).
best_mean = step_mean(xt, best_eps(xt, A[t], S[t]), t)
lost, total = {}, {}  # by net: nats at each t, and at all t together
for name, model_mean in models.items():
    excess = (model_mean(xt, t) - best_mean).square().sum(1) / (2 * BETA[t, 0])  # (64000,) nats
    lost[name] = excess.view(1000, 64).mean(1)  # (1000,)
    total[name] = lost[name].sum()  # C1, C2, C3

# --- figure
fig, (chart, cloud) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
radio = RadioButtons(chart.inset_axes([0.75, 0.8, 0.25, 0.2]), list(models))
for name, style in zip(models, "- - -- --".split()):
    colour = "tab:blue" if total[name] < 1 else "tab:red"
    chart.loglog(t[::64], lost[name], style, color=colour, label=f"{name}: {total[name]:.2f}")
chart.set(xlabel="t (1: data, 1000: noise)", ylabel="nats lost at t (above the best possible net)")
chart.legend(title="nats lost at all t (red: over 1)")

def draw(name):
    torch.manual_seed(args.seed)  # the same noise for every net
    xt = walk_back(models[name], torch.randn(400, 2))
    cloud.clear()
    cloud.plot(*two_moons(400).T, ".", color="0.7")
    cloud.plot(*xt.T, ".", color="tab:blue" if total[name] < 1 else "tab:red")
    cloud.set(title=f"data (grey), samples of {name}", aspect=1, xlim=(-3, 3), ylim=(-3, 3))
    fig.canvas.draw_idle()
radio.on_clicked(draw)
radio.set_active(list(models).index(args.target))  # this draws
fig.savefig("03_elbo.png", dpi=120)

# --- claims: the bounds leave a margin to what 30 seeds gave
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", f"nats lost, {args.target}", total[args.target], "<", 1)
claim("C2", "nats more that dropping w loses", total["eps"] - total["eps with w"], ">", 0.04)
claim("C3", "nats lost, mean", total["mean"], ">", 1)
print("figure: 03_elbo.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
