# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 From a bound to a loss: why a net that finds the noise is a model of the data.
Lesson 02's chain q leads from data x to noise, x_t = a x + s eps, in 1000 steps. A model p walks
back: it draws x_1000 from N(0, I), then each x_(t-1) from a Gaussian whose mean a net computes from
x_t and t. Nobody can compute p(x), but three steps below lead to a lower bound:
    log p(x) >= constant - sum over t of w * E|eps - eps_hat|^2
where eps_hat is the net's guess of eps. So a net that finds noise is a model of the data. DDPM
trains without w (L_simple). Then more effort goes to large t, where the content of a picture is
decided. Here only the price is seen: such a net is less exact at small t, where w is large.
C1 Without w, a net's bound is less than a nat (a factor e in p(x)) below that of the best possible
net, known here. C2 With w it loses less. C3 Nets for the mean of p's step lose more.
RUN    python 03_elbo.py                (6 seconds; click on the net whose samples to see)
BREAK  python 03_elbo.py --target mean  asks C1 of the net for the mean: it fails, samples scatter
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

# 1. The bound. Let q(walk) be the density of x_1 .. x_1000 in the chain from x, and p(walk) that of
# x_1000 .. x_1 and x in the model. With E for the average over walks that the chain takes from x,
#     p(x) = integral of p(walk) = integral of q(walk) * p(walk) / q(walk) = E[p(walk) / q(walk)]
# As log E[..] >= E[log ..] (Jensen), log p(x) >= E[log p(walk) - log q(walk)], the ELBO. In it,
#     log p(walk) = log p(x_1000) + sum over t of log p(x_(t-1) | x_t)
# Only the sum has a net in it. Steps of p are Gaussian, of variance beta, DDPM's choice, so it is
#     constant (no net in it) - sum over t of |x_(t-1) - p's mean|^2 / (2 beta)
# 2. The mean. Fix x and x_t, and so p's mean. x_(t-1) varies around q's mean, E[x_(t-1) | x, x_t]:
#     E|x_(t-1) - p's mean|^2 = E|x_(t-1) - q's mean|^2 (no net in it) + |q's mean - p's mean|^2
# 3. The noise. x and x_t determine eps. The step from x_(t-1) = a' x + s' eps' to x_t says that
#     a x + s eps = sqrt(1 - beta) (a' x + s' eps') + sqrt(beta) z,  and as a = sqrt(1 - beta) a',
#     s eps = sqrt(1 - beta) s' eps' + sqrt(beta) z
# For independent Gaussians around 0, E[u | u + v] = variance of u / variance of (u + v) * (u + v):
#     E[sqrt(beta) z | eps] = beta / s^2 * s eps,  which goes into the step, solved for x_(t-1):
def step_mean(xt, eps, t):
    """E[x_(t-1) | x, x_t], (B, 2), from xt (B, 2), the noise eps (B, 2) in it and t (B,)."""
    return (xt - BETA[t] / S[t] * eps) / (1 - BETA[t]).sqrt()
# p's mean has eps_hat: q's mean - p's mean = beta / s * (eps_hat - eps) / sqrt(1 - beta), and
#     |q's mean - p's mean|^2 / (2 beta) = w |eps_hat - eps|^2  with
W = (BETA / (2 * (1 - BETA) * S**2))[1:, 0]  # (1000,), t = 1 .. 1000: .5 at t = 1, .01 at t = 100

def walk_back(model_mean, xt):  # p's walk from noise xt (n, 2) to samples (n, 2); t is (n,)
    for t in range(1000, 0, -1):
        xt = model_mean(xt, torch.full((len(xt),), t)) + BETA[t].sqrt() * torch.randn_like(xt)
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
        xt = A[t] * x + S[t] * eps
        goal = eps if target == "eps" else step_mean(xt, eps, t)
        answer = net(torch.cat([xt, t[:, None] / 1000], 1))
        loss = (answer - goal).square().mean()  # of eps without w: L_simple, equation 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    def model_mean(xt, t):  # the mean of p's step, whatever the net answers
        answer = net(torch.cat([xt, t[:, None] / 1000], 1)).detach()
        return step_mean(xt, answer, t) if target == "eps" else answer
    return model_mean
# The mean is nearly x_t, and a net for it must copy x_t to less than a step's width, .01 at t = 1.
models = {}  # For eps, step_mean copies x_t. w: the weight that the bound gives each target
for target, w in [("eps", W), ("mean", 1 / (2 * BETA[1:, 0]))]:
    models[target] = train_target(target, args.iters, args.seed)
    models[f"{target} with w"] = train_target(target, args.iters, args.seed, w)

# --- measure
def best_eps(xt, a, s):
    """E[eps | xt], exact: (B, 2), the mean of all eps that fit xt (B, 2). a, s are (B, 1)."""
    off = xt[:, None] - a[:, None] * MU  # (B, 1, 2) - (B, 1, 1) * (64, 2), so (B, 64, 2)
    var = (a * STD) ** 2 + s**2  # of off = a (x - mu) + s eps, if x is from the place mu
    weight = (-off.square().sum(2) / (2 * var)).softmax(1)  # (B, 64), p(mu | xt) by Bayes' rule
    mean_off = xt - a * (weight @ MU)  # (B, 2), over all mu
    return s / var * mean_off  # as E[s eps | off] = s^2 / var * off for each mu

t = torch.arange(1, 1001).repeat_interleave(64)  # (64000,): 1 1 ... 1 2 2 ... 2, each 64 times
x, eps = MU + STD * torch.randn(64, 2), torch.randn(64, 2)  # the same at each t: smooth curves
xt = A[t] * x.repeat(1000, 1) + S[t] * eps.repeat(1000, 1)  # (64000, 2)
# A net does not see x. The best it can say is best = E[q's mean | x_t], and on average, as in 2,
#     |q's mean - p's mean|^2 = |q's mean - best|^2 + |best - p's mean|^2. It loses the last:
best = step_mean(xt, best_eps(xt, A[t], S[t]), t)  # as step_mean is linear in eps
lost, total = {}, {}  # by net: nats at each t, and in all
for name, model_mean in models.items():
    excess = (model_mean(xt, t) - best).square().sum(1) / (2 * BETA[t, 0])  # (64000,) nats
    lost[name] = excess.view(1000, 64).mean(1)  # (1000,)
    total[name] = lost[name].sum()  # C1, C2, C3

# --- figure
fig, (chart, ax) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
for name, style in zip(models, ["C0-", "C0--", "C3-", "C3--"]):  # blue, red
    chart.loglog(t[::64], lost[name], style, label=f"{name}: {total[name]:.2f}")
chart.set(xlabel="t (1: data, 1000: noise)", ylabel="nats lost to the best net")
chart.legend(title="sum over t, in nats", loc="upper right")

def draw(name):
    torch.manual_seed(args.seed)  # the same noise for every net
    xt = walk_back(models[name], torch.randn(400, 2))
    ax.clear()
    ax.plot(*two_moons(400).T, ".", color="0.7")
    ax.plot(*xt.T, ".", color="tab:blue" if total[name] < 1 else "tab:red")
    ax.set(title=f"{name} (grey: data, red: over 1 nat lost)", aspect=1, xlim=(-3, 3), ylim=(-3, 3))
    fig.canvas.draw_idle()
radio = RadioButtons(chart.inset_axes([0, 0, 0.3, 0.3], title="samples of"), list(models))
radio.on_clicked(draw)
radio.set_active(list(models).index(args.target))  # draws
fig.savefig("03_elbo.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", f"nats lost, {args.target}", total[args.target], "<", 1)
claim("C2", "nats lost, eps with w (limit: without)", total["eps with w"], "<", total["eps"])
claim("C3", "mean with w (limit: eps with w)", total["mean with w"], ">", total["eps with w"])
print("figure: 03_elbo.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
