# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 ELBO to L_simple: one bound, three targets for the net, and what dropping the weights costs.
q adds noise (lesson 02), the net's p undoes it. Evidence lower bound, negated (NELBO), mean over q:
-log p(x) <= KL(q(xT | x), N(0, I)) + sum over t > 1 of KL(q(xu | xt, x), p(xu | xt)) - log p(x|x1)
with u = t - 1. For p = N(mu, beta I) a term is a constant + w[t] |eps_hat - eps|^2, t = 1 too, with
w[t] = beta / (2 alpha (1 - abar)); L_simple puts 1 for w. In nats, summed over x's 2 numbers.
C1 KL = its collapse   C2 the exact denoiser's, E[eps | xt]'s, NELBO nears the data's entropy, 1.578
C3 so is the net's   C4 dropping w costs nats, C5 plain losses on x0, mu more   C6 -log p of samples
RUN    python 03_elbo.py                (5 s; radio: whose samples; C3 and C6 are about --target)
BREAK  python 03_elbo.py --target mu    it cannot copy xt: C3, C6 fail. --T 10: C2, C4, C5, C6 fail
PAPER  Ho et al. 2020, arXiv 2006.11239, eqs. 5 to 14, table 2"""
import argparse
import math
import os
import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import RadioButtons
from torch import nn
from torch.distributions import Normal, kl_divergence

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--target", default="eps", choices=["eps", "x0", "mu"], help="x0, mu break it")
parser.add_argument("--T", type=int, default=1000, help="steps; 10 breaks it (%(default)s)")
parser.add_argument("--iters", type=int, default=400, help="of each net; 100 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="03_elbo.png", help=".png or .pdf (%(default)s)")
args = parser.parse_args()
if not (2 <= args.T <= 1000 and 1 <= args.iters <= 100_000 and 0 <= args.seed <= 2**31):
    parser.error("--T: 2 .. 1000, --iters: 1 .. 100000, --seed: 0 .. 2^31")
ok = args.out[-4:] in (".png", ".pdf") and os.access(args.out, os.W_OK) == os.path.isfile(args.out)
ok and os.access(os.path.dirname(args.out) or ".", os.W_OK) or parser.error("--out cannot be saved")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small gain little or nothing from a second thread
device = "cuda" if torch.cuda.is_available() else "cpu"

# --- data: two moons as 64 Gaussians of one width, so that densities and scores are closed forms
th = (torch.arange(32, dtype=torch.float64) + 0.5) * math.pi / 32
MU = torch.stack([torch.cat([th.cos(), 1 - th.cos()]), torch.cat([th.sin(), 0.5 - th.sin()])], 1)
SCALE = (0.09**2 + MU.var(0, correction=0).mean()).sqrt().item()  # makes the mean variance 1
MU, SD = ((MU - MU.mean(0)) / SCALE).to(device), 0.09 / SCALE  # (64, 2) centres, one std
def exact(xt, a, s):
    """E[x | xt] (B, 2), E[eps | xt] (B, 2), log p(xt) (B, 1) for xt = a x + s eps, (B, 2)."""
    mu, var = MU.to(xt), torch.as_tensor((a * SD) ** 2 + s**2, dtype=xt.dtype, device=xt.device)
    logit = (a * xt @ mu.T - a**2 * (mu**2).sum(1) / 2) / var  # (B, 64): which Gaussian was it?
    mean = logit.softmax(1) @ mu
    pull = (xt - a * mean) / var  # minus the score, the gradient of log p(xt)
    log_p = logit.logsumexp(1, keepdim=True) - (xt**2).sum(1, keepdim=True) / (2 * var)
    return mean + a * SD**2 * pull, s * pull, log_p - (128 * math.pi * var).log()

# --- method: columns of T + 1 rows in float64, t = 0 is data, t = T noise
T, tau = args.T, torch.linspace(0, 1, args.T + 1, dtype=torch.float64, device=device)[:, None]
log = -0.1 * tau - 9.95 * tau**2  # log abar: beta grows linearly
beta = -log.diff(dim=0, prepend=log[:1]).expm1()  # 1 - abar[t] / abar[t - 1] without lost digits
abar, alpha, a, s = log.exp(), 1 - beta, (log / 2).exp(), (-log.expm1()).sqrt()  # xt = a x + s eps
w = (beta / (2 * alpha * s**2)).nan_to_num(0)  # eq. 12, sigma^2 = beta; 0 / 0 at t = 0
# A net's target is c0 xt + c1 eps, its loss |c1 (eps_hat - eps)|^2; odds of t; colour
NETS = {"eps": (0 * a, a**0, tau.sign(), "C0"), "x0": (1 / a, -s / a, tau.sign(), "C4"),
        "mu": (alpha**-0.5, -beta / s / alpha**0.5, tau.sign(), "C3"),  # eq. 10
        "eps by w": (0 * a, a**0, w, "C1")}  # drawing by w is less noisy than a factor w

def eps_hat(name, xt, t):  # the noise that a net finds in xt (B, 2) at t (B,)
    c0, c1, _, _ = NETS[name]  # subtle: / c1 is x 50 to 160 for mu, x 95 for x0 at t = 1
    return (nets[name](torch.cat([xt, s[t], (a / s)[t].log() / 2], 1).float()) - c0[t] * xt) / c1[t]

# --- network and train: four nets of one budget
BATCH, LR, nets = 512, 1e-2, {}  # the rate is large, because it decays
for name, (_, c1, often, _) in NETS.items():
    torch.manual_seed(args.seed)  # one start and the same x and eps for all: target and t differ
    hidden = [m for i in (4, 48, 48, 48) for m in (nn.Linear(i, 48), nn.SiLU())]
    for layer in hidden[::2]:
        nn.init.kaiming_normal_(layer.weight)  # nn.Linear's own, smaller start takes longer
    nets[name] = nn.Sequential(*hidden, nn.Linear(48, 2)).to(device)
    optimizer = torch.optim.Adam(nets[name].parameters(), betas=(0.9, 0.95), fused=True)
    for i in range(args.iters):
        optimizer.param_groups[0]["lr"] = LR * (1 - i / args.iters)  # constant ends further off
        t = torch.multinomial(often[:, 0], BATCH, replacement=True)
        x, eps = torch.normal(MU[torch.randint(64, (BATCH,))], SD), torch.randn(BATCH, 2).to(device)
        loss = (c1[t] * (eps_hat(name, a[t] * x + s[t] * eps, t) - eps)).square().mean()  # eq. 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    nets[name].requires_grad_(False)
    print(f"{name:8} {args.iters} iterations, last loss {loss:.2e}")

# --- measure
real, rows, nats = x, [], {}  # real: the last batch
x, eps, guess = torch.randn(3, T - 1, 2, dtype=torch.float64, device=device)
xt, b, r = a[2:] * x + s[2:] * eps, beta[2:], (s[1:-1] / s[2:]) ** 2  # r beta: eq. 7's variance
mean = (a[1:-1] * b * x + alpha[2:].sqrt() * s[1:-1] ** 2 * xt) / s[2:] ** 2  # eqs. 7 and 11:
q, p = Normal(mean, (r * b).sqrt()), Normal((xt - b / s[2:] * guess) / (1 - b).sqrt(), b.sqrt())
constant = r - 1 - r.log()  # of two dimensions; C1 looks at each
c1 = (kl_divergence(q, p) - constant / 2 - w[2:] * (guess - eps) ** 2).abs().max().item()  # C1
for t, h in enumerate(((a * SD) ** 2 + s**2).sqrt()[1:, 0].tolist(), 1):  # h: width of the bumps
    grid = torch.arange(-5 * h - 2.2, 5 * h + 2.2, h, dtype=a.dtype, device=device)
    xt = torch.cartesian_prod(grid, grid)  # E over p(xt) is a sum on this grid, right to 1e-4
    _, eps_star, log_p = exact(xt, a[t], s[t])
    rows.append(torch.cat([0 * log_p + t, h**2 * log_p.exp(), xt, eps_star], 1)[log_p[:, 0] > -20])
t, mass, xt, eps_star = torch.cat(rows).split([1, 1, 2, 2], 1)  # (M, 1 or 2)
t = t[:, 0].long()
errors = 2 * w.sum() - (w[t] * mass * eps_star**2).sum()  # E|eps|^2 - E|eps_star|^2 (Pythagoras)
# C2: eq. 5 less the entropy 1.578465. subtle: at t = 1 it is -log p(x | x1): same w, own constant
gap = (errors + constant.sum() + (2 * math.pi * beta[1] / (1 - abar[-1])).log()).item() - 1.578465

# --- figure
fig, (chart, cloud) = plt.subplots(1, 2, figsize=(12, 5), gridspec_kw={"bottom": 0.28})
radio = RadioButtons(fig.add_axes([0.45, 0.02, 0.12, 0.18]), [*nets], [*nets].index(args.target))
chart.loglog(w.cpu(), "k--", label="w[t], an error of 1")
for name, (_, _, _, colour) in NETS.items():
    answer = torch.cat([eps_hat(name, *part) for part in zip(xt.split(4000), t.split(4000))])
    lost = torch.bincount(t, (w[t] * mass * (answer - eps_star) ** 2).sum(1))
    nats[name] = lost.sum().item()  # C3 C4 C5
    chart.loglog(lost.cpu(), c=colour, label=f"{name} adds {nats[name]:.2f}")
chart.set(xlabel="t (1: data)", ylabel="nats lost at step t", xlim=(1, T), ylim=(1e-8, 1e3),
          title=f"exact denoiser, {T} steps: NELBO = entropy + {gap:.3f} nats")
chart.legend()
_, dots = cloud.plot(*real.T.cpu(), "C7.", [], [], ".", ms=2)
cloud.set(aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))

def draw(name):  # 600 samples, step by step (lesson 04), noise at t = 1 too: NELBO bounds them
    generator = torch.Generator(device).manual_seed(args.seed)
    xt = torch.randn(600, 2, generator=generator, device=device)
    for t in range(T, 0, -1):
        mean = (xt - beta[t] / s[t] * eps_hat(name, xt, torch.full((600,), t))) / alpha[t].sqrt()
        xt = mean + beta[t].sqrt() * torch.randn(xt.shape, generator=generator, device=device)
    cost = -exact(xt, 1, 0)[2].nan_to_num(-1e9).clamp(min=-100).mean().item()  # C6; data: 1.58
    dots.set(data=xt.T.cpu(), color=NETS[name][3])
    cloud.set_title(f"net {name}: mean -log p of samples {cost:.2f} (grey: data, 1.58)")
    fig.canvas.draw_idle()
    return cost

cost = draw(args.target)
radio.on_clicked(draw)
fig.savefig(args.out, dpi=120)

# --- claims
claims = [("C1", "KL and its collapse, largest gap", c1, "<", 1e-10),
          ("C2", f"exact NELBO of {T} steps less the entropy, nats", gap, "<", 0.03),
          ("C3", f"nats that the net for {args.target} adds", nats[args.target], "<", 0.8),
          ("C4", "nats that dropping w costs", nats["eps"] - nats["eps by w"], ">", 0.04),
          ("C5", "nats of x0 or mu over eps", min(nats["x0"], nats["mu"]) - nats["eps"], ">", 0.5),
          ("C6", "mean -log p of its samples (data: 1.58)", cost, "<", 3.5)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
