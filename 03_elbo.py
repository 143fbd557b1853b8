# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 From a bound to a loss: why a net that finds the noise is a model of the data.
Lesson 02's chain q walks from data x to noise: x_t = sqrt(1 - beta) x_(t-1) + sqrt(beta) z, in all
x_t = a x + s eps (z, eps ~ N(0, I)). A model p walks back from x_1000 ~ N(0, I). It draws x_(t-1)
from a Gaussian of variance beta, DDPM's choice, around a mean from a net. How probable is x for p?
Nobody can sum over all walks that end in x, but q draws walks that start there:
    p(x) = mean of p(walk and x) / q(walk given x), over walks of q   (importance sampling, 01)
    -log p(x) <= mean of log(q(walk given x) / p(walk and x))         (-log mean <= mean of -log)
Minus the right side is the evidence lower bound, ELBO. As p(walk and x) is a product of steps, its
log is a sum, with one term for each t, and nothing else depends on the net. If p takes its mean
from a net's guess eps_hat of the noise eps in x_t, a term is on average over q's walks
    w |eps - eps_hat|^2 + constant    (derived above W; DDPM's L_simple is this without w)
C1 A net that finds the noise, trained by L_simple, is within a nat of the best net's bound.
C2 Dropping w costs nats (DDPM's pictures gain; not tested).  C3 Training on x or mean costs more.
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
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2); 0.7107 is the std of the data, x and y pooled
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each of the 64 places
def two_moons(n):
    """n samples of p_data, (n, 2)."""
    return MU[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- method
BETA = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, 1000)])[:, None]  # t = 0 .. 1000
A = (1 - BETA).cumprod(0).sqrt()  # (1001, 1), as all three; xt = A[t] x + S[t] eps
S = (1 - A**2).sqrt()
# Where was xu, u = t - 1, given xt and x? As xt = sqrt(1 - beta) xu + sqrt(beta) z = a x + s eps,
#     s eps = sqrt(1 - beta) (noise of xu) + sqrt(beta) z
# This sum of independent Gaussians of mean 0 is given. On average, each is its share of the sum,
# by variance: sqrt(beta) z is (beta / s^2) s eps. Without it, xt is sqrt(1 - beta) xu:
def step_mean(xt, noise, t):  # the mean of q for noise eps, the mean of p for eps_hat; t is (B,)
    return (xt - BETA[t] / S[t] * noise) / (1 - BETA[t]).sqrt()
# A term of the bound is -log p(xu | xt) = |xu - mean of p|^2 / (2 beta) + constant. On average over
# q's xu, given xt and x, the square is their variance (fixed) plus |mean of q - mean of p|^2.
# By step_mean it is (beta / s)^2 |eps - eps_hat|^2 / (1 - beta). A term is w |eps - eps_hat|^2:
W = BETA[1:] / (2 * (1 - BETA[1:]) * S[1:] ** 2)  # (1000, 1), the w of t = 1 .. 1000

def walk_back(model_mean, xt):  # p's walk from noise xt (n, 2) to samples (n, 2)
    for t in range(1000, 0, -1):
        xt = model_mean(xt, torch.full((len(xt),), t)) + BETA[t].sqrt() * torch.randn_like(xt)
    return xt

# --- train. Why C3: at t = 1, s^2 is beta, and an error e of eps costs w |e|^2, about |e|^2 / 2. An
# error of the mean, x there, costs |e|^2 / (2 beta) = 5000 |e|^2: .014 costs as much as 1.4 in eps.
def train_target(target, odds, iters, seed):  # to draw t by odds w is to weigh the loss by w
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
    def model_mean(xt, t):  # the mean of p's step, whatever the net answers
        answer = net(torch.cat([xt, t[:, None] / 1000], 1)).detach()
        if target == "mean":
            return answer
        eps_hat = answer if target == "eps" else (xt - A[t] * answer) / S[t]
        return step_mean(xt, eps_hat, t)
    return model_mean
models = {name: train_target(name, torch.ones(1000), args.iters, args.seed)
          for name in ("mean", "x", "eps")}
models["eps with w"] = train_target("eps", W[:, 0], args.iters, args.seed)

# --- measure
def best_eps(xt, a, s):
    """E[eps | xt], the mean of all eps that fit xt: (B, 2). Its loss is the lowest. a, s (B, 1)."""
    var = (a * STD) ** 2 + s**2  # of xt - a mu = a (x - mu) + s eps, if x is from the place mu
    square = (xt[:, None] - a[:, None] * MU).square().sum(2)  # (B, 64, 2), summed to (B, 64)
    weight = (-square / (2 * var)).softmax(1)  # (B, 64), p(mu | xt): Bayes' rule for equal p(mu)
    # Given mu, s eps is on average the share s^2 / var of xt - a mu. Mean over mu, divided by s:
    return s / var * (xt - a * (weight @ MU))

t = torch.arange(1, 1001).repeat_interleave(64)  # (64000,): 1 1 ... 1 2 2 ... 2, each 64 times
x, eps = MU + STD * torch.randn(64, 2), torch.randn(64, 2)  # a pair for each mu
x, eps = x.repeat(1000, 1), eps.repeat(1000, 1)  # (64000, 2), the same 64 pairs at every t
xt = A[t] * x + S[t] * eps
# |eps - eps_hat|^2 is on average |eps - best|^2, as for the best net, plus |best - eps_hat|^2. So a
# net loses w times the latter, which is |best mean - mean of p|^2 / (2 beta).
best_mean = step_mean(xt, best_eps(xt, A[t], S[t]), t)
lost, total = {}, {}  # by net: nats at each t, and at all t together
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
    ax.set(title=f"net for {name}: {total[name]:.1f} nats lost\ngrey: data; red: over 1 lost")
    ax.set(aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    fig.canvas.draw_idle()
draw(args.target, left)
draw("mean")  # until the radio button is used
radio.on_clicked(draw)
fig.savefig("03_elbo.png", dpi=120)

# --- claims: the bounds leave a margin to what 20 seeds gave
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", f"nats lost, target {args.target} (eps_hat = 0 loses 11)", total[args.target], "<", 1)
claim("C2", "dropping w, nats (20 seeds .08 to .2)", total["eps"] - total["eps with w"], ">", 0.04)
claim("C3", "nats lost by x or mean (20 seeds 12 to 39)", min(total["x"], total["mean"]), ">", 5)
print("figure: 03_elbo.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
