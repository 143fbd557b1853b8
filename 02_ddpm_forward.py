# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""02 The forward chain: turn data into noise in T small steps, then never run those steps again.

A step, xt = sqrt(1 - beta[t]) x_(t-1) + sqrt(beta[t]) noise, keeps a variance of 1 (t = 0 is now
data, T noise: lesson 01 reversed). Given x, independent Gaussians add up to one: t steps are a
single draw, the closed form xt = a x + s eps, a^2 = abar[t] = product of 1 - beta, s^2 = 1 - a^2.
C1 its mean and variance are those of t steps  C2 chains really run agree and keep variance 1
C3 their noise is Gaussian  C4 a training point costs a chain hundreds of draws, here one  C5 they
end in N(0, I), C6 from where a way leads back  C7 a net learns the chains' noise without a chain
RUN    python 02_ddpm_forward.py                   (5 s; slider: t; a small t has no way back)
BREAK  python 02_ddpm_forward.py --T 50            data are left at T: C5, C6 (C4: a short chain)
       python 02_ddpm_forward.py --noise uniform   same mean and variance, wrong shape: C3 fails
PAPER  Ho, Jain, Abbeel 2020 (DDPM), arXiv 2006.11239, eq. 2, 4 and 14; section 4: beta and L_T"""
import argparse
import math
import os
import time
import matplotlib.pyplot as plt
import torch

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--T", type=int, default=1000, help="steps, beta kept; 50 breaks (%(default)s)")
parser.add_argument("--noise", choices=["gauss", "uniform"], default="gauss", help="uniform breaks")
parser.add_argument("--iters", type=int, default=1000, help="of training; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="02_ddpm_forward.png", help=".png or .pdf (%(default)s)")
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
def moons(n, generator=None):
    """n samples of p_data, (n, 2)."""
    i = torch.randint(64, (n,), generator=generator, device=device)
    return MU[i].float() + SD * torch.randn(n, 2, generator=generator, device=device)
def exact(xt, a, s):
    """E[x | xt] (B, 2), E[eps | xt] (B, 2), log p(xt) (B, 1) for xt = a x + s eps, (B, 2)."""
    mu, var = MU.to(xt), torch.as_tensor((a * SD) ** 2 + s**2, dtype=xt.dtype, device=xt.device)
    logit = (a * xt @ mu.T - a**2 * (mu**2).sum(1) / 2) / var  # (B, 64): which Gaussian was it?
    mean = logit.softmax(1) @ mu
    pull = (xt - a * mean) / var  # minus the score, the gradient of log p(xt)
    log_p = logit.logsumexp(1, keepdim=True) - (xt**2).sum(1, keepdim=True) / (2 * var)
    return mean + a * SD**2 * pull, s * pull, log_p - (128 * math.pi * var).log()

# --- method: the chain
T, N, x, start = args.T, 10_000, moons(10_000), time.time()  # N chains: all points fit in 80 MB
beta = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, T)]).double().to(device)  # (T + 1,)
alpha, abar = 1 - beta, (1 - beta).cumprod(0)  # abar[t]: the share of the variance that is data
a, s = abar.sqrt().float()[:, None], (1 - abar).sqrt().float()[:, None]  # (T + 1, 1)
path, mean, var, off = x.repeat(T + 1, 1, 1), 1, 0, 0  # path[t]: xt, N(mean x, var) for given x
for t in range(1, T + 1):  # uniform: mean 0, variance 1 too, but two uniforms do not add to a third
    noise = torch.randn_like(x) if args.noise == "gauss" else (torch.rand_like(x) - 0.5) * 12**0.5
    path[t] = alpha[t].sqrt() * path[t - 1] + beta[t].sqrt() * noise  # eq. 2
    mean, var = alpha[t].sqrt() * mean, alpha[t] * var + beta[t]  # variances add, of any noise
    off = max(off, (mean - abar[t].sqrt()).abs().item(), (var - 1 + abar[t]).abs().item())  # C1
seconds, start, jump = time.time() - start, time.time(), a[T] * x + s[T] * torch.randn_like(x)
print(f"{N} points at t = {T}: chain {seconds:.2f} s, closed form {time.time() - start:.4f} s")
run = torch.stack([(path * x).mean((1, 2)) - a[:, 0], (path**2).mean((1, 2)) - 1]).abs().max()  # C2
def kolmogorov(t):
    """Gap of the CDFs of N(0, 1) and the chains' eps; by chance above .0177 once in 10^5."""
    eps = ((path[t] - a[t] * x) / s[t]).double().flatten().sort()[0]  # (2N,)
    return (torch.special.ndtr(eps) - torch.linspace(0, 1, 2 * N).to(eps)).abs().max().item()

# --- network: it sees the point, the noise level s and log(a / s) / 2: 4 numbers
hidden = [m for i in (4, 32, 32, 32) for m in (torch.nn.Linear(i, 32), torch.nn.SiLU())]
for layer in hidden[::2]:
    torch.nn.init.kaiming_normal_(layer.weight)  # nn.Linear's own, smaller start takes longer
net = torch.nn.Sequential(*hidden, torch.nn.Linear(32, 2)).to(device)
clock = torch.cat([s, (a / s).log() / 2], 1)  # (T + 1, 2); row 0 is infinite and never used

# --- train: on the closed form; judged on points of the chains, each at a time of its own
times = torch.randint(1, T + 1, (N,), device=device)
points = path[times, torch.arange(N, device=device)]  # subtle: one time a chain: no two share an x
best = exact(points, a[times], s[times])[1]  # E[eps | xt]: no net has a lower loss than this
floor = (best - (points - a[times] * x) / s[times]).square().mean().item()
optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95), fused=True)
for i in range(args.iters):
    optimizer.param_groups[0]["lr"] = 3e-2 * (1 - i / args.iters)  # large, as it falls to 0
    t, eps = torch.randint(1, T + 1, (1024,)).to(device), torch.randn(1024, 2, device=device)
    xt = a[t] * moons(1024) + s[t] * eps  # eq. 4: any t at once, no loop over steps
    loss = (net(torch.cat([xt, clock[t]], 1)) - eps).square().mean()  # eq. 14, mean over dimensions
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (i + 1) % max(1, args.iters // 8) == 0:
        print(f"iter {i + 1:5d}  loss {loss:.3f}  floor {floor:.3f} (exact E[eps | xt])")

# --- measure
excess = (net(torch.cat([points, clock[times]], 1)) - best).square().mean().item() / floor  # C7
def way_back(start, xt, n_hops):
    """Takes xt (n, 2) for the chain at t = start: where that leads, the error of its covariance."""
    hop = max(1, start // n_hops)
    for t in range(start, 0, -hop):  # lesson 07: guess both ends, mix them with less noise
        x_hat, eps_hat, _ = exact(xt, a[t], s[t])  # not the net: the perfect guess
        xt = a[max(0, t - hop)] * x_hat + s[max(0, t - hop)] * eps_hat
    return xt, (xt.T.cov() - MU.T.cov(correction=0) - SD**2 * torch.eye(2).to(MU)).abs().max()
prior = torch.randn_like(x)  # no data in it
bias = way_back(T, prior, 200)[1]  # C6

# --- figure
fig, axes = plt.subplots(1, 4, figsize=(13, 4.5), gridspec_kw=dict(left=.05, right=.98, bottom=.3))
slider = plt.Slider(fig.add_axes([0.1, 0.06, 0.8, 0.04]), "t", 1, T, valstep=1, initcolor="none")
axes[2].semilogy(range(1, T + 1), (abar / (1 - abar)).cpu()[1:], "k--")
axes[2].set(xlabel="t", title=f"SNR = abar / (1 - abar):\n{abar[T] / (1 - abar[T]):.2g} at t = {T}")
u = torch.linspace(-4, 4, 101)
def draw(t):
    xt, gap = way_back(t, prior[:4000], 50)  # N(0, I) as if it were the chain's law at t
    p = exact(torch.cartesian_prod(u, u), a[t].cpu(), s[t].cpu())[2].exp().view(101, 101).T
    axes[0].clear()
    axes[0].scatter(*path[t].T.cpu(), 0.3, "0.6")
    axes[0].contour(u, u, p / p.max(), [0.03, 0.3, 0.7], colors="k", linestyles="--", linewidths=1)
    axes[0].set(aspect=1, xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), title=f"t = {t}: abar {abar[t]:.3g}")
    axes[1].clear()
    axes[1].hist(((path[t] - a[t] * x) / s[t]).flatten().cpu(), u[::2], density=True, color="0.6")
    axes[1].plot(u, (-(u**2) / 2).exp() / math.sqrt(2 * math.pi), "k--")
    axes[1].set(xlabel="eps", title=f"its eps: CDF off N(0, 1)\nby {kolmogorov(t):.4f}")
    axes[3].clear()
    axes[3].hist([x[:, 0].tolist(), xt[:, 0].tolist()], u[::4].tolist(), density=True,
                 color=["0.6", "tab:blue" if gap < 0.2 else "tab:red"])
    axes[3].set(xlabel="$x_1$", title=f"N(0, I) for xt, led back:\ncovariance off by {gap:.2g}")
slider.on_changed(draw)
slider.set_val(T if args.noise == "gauss" else 1)  # a sum of many uniforms looks Gaussian soon
fig.savefig(args.out, dpi=120)

# --- claims
claims = [("C1", "T steps of mean and variance, error of the closed form", off, "<", 1e-12),
    ("C2", "chains run, any t: error of E[xt x] = a and of variance 1", run.item(), "<", 0.06),
    ("C3", "CDF of their eps off N(0, 1)", max(map(kolmogorov, {1, 2, T // 2, T})), "<", 0.0177),
    ("C4", "noises drawn by a chain per training point", times.double().mean().item(), ">", 300),
    ("C5", "KL from xT given x to N(0, I), nats", -math.log(1 - abar[T]), "<", 1e-3),  # E|x|^2 = 2
    ("C6", "exact way back from N(0, I): covariance off the data's by", bias.item(), "<", 0.1),
    ("C7", "loss of the net above the lowest, as a share of it", excess, "<", 0.03)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
