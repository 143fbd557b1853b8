# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 From a bound to a loss: why a net that finds the noise is a model of the data.
Lesson 02's chain q leads from data x to noise, x_t = a x + s eps, in 1000 steps. A model p walks
back: it draws x_1000 from N(0, I), then each x_(t-1) from a Gaussian whose mean a net computes from
x_t and t. Nobody can compute its p(x), as many walks end in x. But in four steps we find the bound
    log p(x) >= constant - sum over t of w * the mean of |eps - eps_hat|^2 over eps
where eps_hat is the net's guess of eps from x_t. So a net that finds noise is a model of the data.
DDPM trains without w (L_simple), and reports better pictures. Here only the price is seen: w is by
far the largest at small t, so a net trained without it is less exact there, and more at large t.
C1 Without w, a net's bound is less than a nat below that of the best possible net, which is known
here (a nat is a factor e in p(x)). C2 With w it loses less. C3 A net for the mean of p's step loses
more than a nat: it must copy x_t, and its errors count in full. step_mean shrinks those of eps_hat.
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

# 1. The bound. p(x) is the integral of p(walk) over all walks x_1000 .. x_1 that end in x. It is
# also the average of p(walk) / q(walk) over walks that q draws from x. The log of an average is at
# least the average log: log p(x) >= average of log p(walk) - log q(walk), the ELBO.
# 2. Steps. A step of q ignores x, so for t > 1 Bayes' rule says that q(x_t | x_(t-1)) is
# q(x_(t-1) | x_t, x) q(x_t | x) / q(x_(t-1) | x). Times q(x_1 | x), the fractions all cancel, so
#     q(walk) = q(x_1000 | x) times q(x_(t-1) | x_t, x) for all t > 1
#     p(walk) = p(x_1000) times p(x_(t-1) | x_t) for all t > 1, times p(x | x_1)
# The log of p(walk) / q(walk) is a sum, then: a part for x_1000, without a net, one for each t > 1,
# whose average is called -KL(q's step, p's step), and log p(x | x_1).
# 3. Gaussians. All steps are, with log = constant - |x_(t-1) - mean|^2 / (2 variance). Drawn by q,
# |x_(t-1) - p's mean|^2 is on average q's variance + |q's mean - p's mean|^2. With beta as p's
# variance, DDPM's choice, KL = constant + |q's mean - p's mean|^2 / (2 beta).
# 4. Noise. Who knows x_t and x knows eps: q's mean is step_mean(xt, eps, t), p's has eps_hat in it.
def step_mean(xt, eps, t):  # the mean of q's step back from xt (B, 2) with the noise eps (B, 2)
    # s eps is sqrt(1 - beta) times the noise before, plus sqrt(beta) z. Given a sum of Gaussians, a
    # part is on average its share of the variance times the sum. So sqrt(beta) z is beta / s * eps.
    return (xt - BETA[t] / S[t] * eps) / (1 - BETA[t]).sqrt()  # solved for x_(t-1)
# At t = 1, s^2 is beta, so q's mean is x, and -log p(x | x_1) is of this form, too.
# The two means differ by beta / s * (eps - eps_hat) / sqrt(1 - beta). Squared, over 2 beta, this is
W = BETA[1:] / (2 * (1 - BETA[1:]) * S[1:] ** 2)  # w at t = 1 .. 1000: .5, at 10 .07, at 100 .01

def walk_back(model_mean, xt):  # p's walk from noise xt (n, 2) to samples (n, 2); t is (n,)
    for t in range(1000, 0, -1):
        xt = model_mean(xt, torch.full((len(xt),), t)) + BETA[t].sqrt() * torch.randn_like(xt)
    return xt

# --- train
def train_target(target, iters, seed, w=torch.ones(1000)):  # w: how often each t is drawn
    torch.manual_seed(seed)  # the same seed for every net
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(512), torch.randn(512, 2)
        t = 1 + w.flatten().multinomial(512, replacement=True)  # as if the loss had the factor w
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
models = {name: train_target(name, args.iters, args.seed) for name in ("eps", "mean")}
models["eps with w"] = train_target("eps", args.iters, args.seed, w=W)

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
# On average |eps - eps_hat|^2 = |eps - best_eps|^2 + |best_eps - eps_hat|^2. w * the last is lost:
best_mean = step_mean(xt, best_eps(xt, A[t], S[t]), t)
lost, total = {}, {}  # by net: nats at each t, and at all t together
for name, model_mean in models.items():
    excess = (model_mean(xt, t) - best_mean).square().sum(1) / (2 * BETA[t, 0])  # (64000,) nats
    lost[name] = excess.view(1000, 64).mean(1)  # (1000,)
    total[name] = lost[name].sum()  # C1, C2, C3

# --- figure
fig, (chart, left, right) = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained")
for name, style in zip(models, ["C0-", "C3-", "C0--"]):  # blue, red, blue
    chart.loglog(t[::64], lost[name], style, label=f"{name}: {total[name]:.2f}")
chart.set(xlabel="t (1: data, 1000: noise)", ylabel="nats lost to the best net")
chart.legend(title="sum over t, in nats")

def draw(name, ax=right):
    torch.manual_seed(args.seed)  # the same noise for every net
    xt = walk_back(models[name], torch.randn(400, 2))
    ax.clear()
    ax.plot(*two_moons(400).T, ".", color="0.7")
    ax.plot(*xt.T, ".", color="tab:blue" if total[name] < 1 else "tab:red")
    ax.set(title=f"{name} (grey: data, red: over 1 nat lost)", aspect=1, xlim=(-3, 3), ylim=(-3, 3))
    fig.canvas.draw_idle()
draw(args.target, left)
radio = RadioButtons(left.inset_axes([0, 0, 0.4, 0.2], title="right panel:"), list(models))
radio.on_clicked(draw)
radio.set_active(1 if args.target == "eps" else 0)  # on the right the other one, to compare
fig.savefig("03_elbo.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", f"nats lost, {args.target}", total[args.target], "<", 1)
claim("C2", "nats lost, eps with w (bound: without)", total["eps with w"], "<", total["eps"])
claim("C3", "nats lost, mean", total["mean"], ">", 1)
print("figure: 03_elbo.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
