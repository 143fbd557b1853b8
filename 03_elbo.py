# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 From a bound to a loss: why a net that finds noise is a model of the data.
The chain takes x to noise, xt = a x + s eps (lesson 02). The model p comes back from noise: its
step from xt is a Gaussian of variance beta around a mean mu, which a net finds. It is good if
-log p(x) is small for data x. Nobody can sum over all ways back to x. But -log is convex, so
-log p(x) is at most the mean of log q(way | x) - log p(way) over the chain's ways q (Jensen).
This bound (minus the ELBO) is a sum over t of KL divergences, of q(x_(t-1) | xt, x), the step back
if x were known, to the model's. The first is Gaussian, too, and lesson 04 finds its mean:
(xt - beta / s eps) / sqrt(1 - beta). Let mu be the same with a guess eps_hat for eps. The KL of
Gaussians is |difference of means|^2 / (2 beta) + a constant of their widths, and xt cancels:
    KL at t = constant + w |eps_hat - eps|^2,    w = beta / (2 (1 - beta) s^2).
L_simple drops w, which costs nats, the unit of -log p. But w is largest near t = 1, on noise that
no eye sees; without it more effort goes to times where pictures take shape (not seen in 2D).
Why eps, not x or mu? All are c0 xt + c1 eps, and solving for eps divides the net's error by c1,
about .01 for mu at every t, and for x at t = 1, where a plain error of x hardly looks.
C1 A net that learns eps by L_simple loses less than a nat to the best possible bound.
C2 Dropping w costs nats.    C3 A plain squared error on x or on mu costs far more.
RUN    python 03_elbo.py                (7 seconds; click on the net whose samples to see)
BREAK  python 03_elbo.py --target mu    C1 is now about mu and fails; its samples scatter
PAPER  Ho, Jain, Abbeel 2020 (DDPM), arXiv 2006.11239, equations 5 to 14 and table 2"""
import argparse
import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import RadioButtons
from torch import nn
# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--target", choices=["eps", "x", "mu"], default="eps", help="x and mu break C1")
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
def schedule(T):
    """beta[t] and abar[t], t = 0 .. T, as columns (T + 1, 1): abar[t] of a batch t is (B, 1)."""
    beta = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, T)])[:, None]  # the paper's
    return beta, (1 - beta).cumprod(0)

def exact_means(xt, a, s):
    """E[x | xt] and E[eps | xt] of the moons, (B, 2) each, for xt = a x + s eps; a, s (B, 1)."""
    var = (a * STD) ** 2 + s**2  # of xt around a mu, if its x came from the Gaussian at mu
    square = (xt[:, None] - a[:, None] * MU).square().sum(2)  # (B, 64)
    centre = (-square / (2 * var)).softmax(1) @ MU.to(xt)  # by Bayes, mean centre (B, 2)
    pull = (xt - a * centre) / var  # x in one Gaussian: mu + a STD^2 (xt - a mu) / var
    return centre + a * STD**2 * pull, s * pull

# --- train
def train_target(c0, c1, odds, abar, iters, seed):
    """Learn c0 xt + c1 eps, t drawn by odds, all (T + 1, 1). Returns eps_hat(xt, t), t (B,)."""
    torch.manual_seed(seed)  # one start and the same x, eps for all nets: only target and t differ
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    for layer in net[::2]:
        nn.init.kaiming_normal_(layer.weight)  # a larger start than torch's learns sooner
    def ask(xt, t):
        return net(torch.cat([xt, t[:, None] / len(abar)], 1))

    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(512), torch.randn(512, 2)
        t = 1 + odds[1:, 0].multinomial(512, replacement=True)  # t = 0 is never drawn
        xt = abar[t].sqrt() * x + (1 - abar[t]).sqrt() * eps
        target = c0[t] * xt + c1[t] * eps
        loss = (ask(xt, t) - target).square().mean()  # L_simple (equation 14), if the target is eps
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{iters} iterations, last loss {loss:.2g}")
    return lambda xt, t: (ask(xt, t).detach() - c0[t] * xt) / c1[t]  # the answer, solved for eps

T = 1000
beta, abar = schedule(T)
a = abar.sqrt()  # (T + 1, 1), like all that follow
s = (1 - abar).sqrt()
root = (1 - beta).sqrt()
w = beta / (2 * (1 - beta) * s**2)  # equation 12; 0 / 0 at t = 0, which is never used
zero, one = torch.zeros_like(w), torch.ones_like(w)
nets = {}
nets["mu"] = train_target(1 / root, -beta / (s * root), one, abar, args.iters, args.seed)
nets["x"] = train_target(1 / a, -s / a, one, abar, args.iters, args.seed)  # xt = a x + s eps
nets["eps"] = train_target(zero, one, one, abar, args.iters, args.seed)  # L_simple
# t drawn with odds w: the mean loss is as with a factor w, but its gradients are calmer
nets["eps with w"] = train_target(zero, one, w, abar, args.iters, args.seed)

# --- measure: w |eps_hat - E[eps | xt]|^2, how far a net is above the best possible bound
t = torch.arange(1, T + 1).repeat_interleave(64)  # (64 T,)
x = (MU + STD * torch.randn(64, 2)).repeat(T, 1)  # one from each Gaussian, the same at every t
eps = torch.randn(64, 2).repeat(T, 1)  # (64 T, 2)
xt = a[t] * x + s[t] * eps
best = exact_means(xt, a[t], s[t])[1]

# --- figure
fig, (chart, left, right) = plt.subplots(1, 3, figsize=(13, 4.8), width_ratios=[1.5, 1, 1])
fig.subplots_adjust(left=0.06, right=0.98, bottom=0.25, wspace=0.15)
radio = RadioButtons(plt.axes([0.81, 0.01, 0.1, 0.16]), list(nets))  # mu is the first
nats = {}
for name, colour in zip(nets, ("tab:red", "tab:purple", "tab:blue", "tab:orange")):
    square = (nets[name](xt, t) - best).square().sum(1)  # over both dimensions
    lost = (w[t, 0] * square).view(T, 64).mean(1)  # (T,), in nats
    nats[name] = lost.sum().item()  # C1, C2, C3
    chart.loglog(t[::64], lost, color=colour, label=f"{name}: {nats[name]:.2f}")
chart.set(xlabel="t (1: data, 1000: noise)", ylabel="nats lost at t", title="the price of each net")
chart.legend(title="nats lost at all t")

def draw(name, ax=right):
    torch.manual_seed(args.seed)  # the same noise for every net
    xt = torch.randn(400, 2)
    for k in range(T, 0, -1):  # the model's steps from noise to data
        noise = nets[name](xt, torch.full((400,), k))
        mu_hat = (xt - beta[k] / s[k] * noise) / root[k]
        xt = mu_hat + beta[k].sqrt() * torch.randn(400, 2)
    off = torch.cdist(xt, MU).min(1).values  # distance from the closest Gaussian's centre
    near = (off < 4 * STD).float().mean()  # .9997 of the data are that near
    ax.clear()
    ax.plot(*two_moons(1000).T, ".", color="0.7", ms=2)
    ax.plot(*xt.T, ".", color="tab:blue" if near > 0.9 else "tab:red", ms=3)
    ax.set(title=f"{name}: {near:.0%} near data (grey)", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    fig.canvas.draw_idle()

draw(args.target, left)
draw("mu")
radio.on_clicked(draw)
fig.savefig("03_elbo.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", f"nats lost, target {args.target} (eps_hat = 0: 11)", nats[args.target], "<", 1)
claim("C2", "nats that dropping w costs (+- .02)", nats["eps"] - nats["eps with w"], ">", 0.04)
claim("C3", "nats lost by x or mu, the lesser (eps: .5)", min(nats["x"], nats["mu"]), ">", 5)
print("figure: 03_elbo.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
