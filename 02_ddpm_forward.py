# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""02 The forward chain: turn data into noise in T small steps, then never run those steps again.
DDPM walks its path from data to noise (t = 0 is now data, t = T noise) as a chain of small steps.
Step t shrinks the point a little and adds a little noise z ~ N(0, I):
    x_t = sqrt(1 - beta[t]) x_(t-1) + sqrt(beta[t]) z
Suppose x_(t-1) = a x + s eps with a^2 + s^2 = 1 (at t = 0, a = 1 and s = 0). The step makes of it
sqrt(1 - beta) a x and two noises, sqrt(1 - beta) s eps + sqrt(beta) z. Independent Gaussians add
up to one Gaussian, and variances add: (1 - beta) s^2 + beta = 1 - (1 - beta) a^2. So x_t has the
same form again, with a^2 multiplied by 1 - beta. After t steps this is the closed form,
    xt = a x + s eps,  a^2 = abar[t] = (1 - beta[1]) ... (1 - beta[t]),  s^2 = 1 - abar[t]
It draws a training point at any t at once. The net learns eps, which is what sampling needs (04).
C1 At every t, the noise in a chain that was really run, (xt - a x) / s, is Gaussian.
C2 At t = T hardly anything is left of x: the chain has reached the prior N(0, I).
C3 A net that saw no chain, only the closed form, finds the noise in chains as well as can be.
RUN    python 02_ddpm_forward.py          (7 seconds)
BREAK  python 02_ddpm_forward.py --T 50   data are left at T: C2 fails
       python 02_ddpm_forward.py --noise uniform   C1 fails at t = 1 (a sum of many is Gaussian)
PAPER  Ho, Jain, Abbeel 2020 (DDPM), arXiv 2006.11239, equations 2, 4 and 14"""
import argparse
import math
import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import RadioButtons
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--T", type=int, default=1000, help="steps of the chain; 50 breaks it (1000)")
parser.add_argument("--noise", choices=["gauss", "uniform"], default="gauss", help="uniform breaks")
parser.add_argument("--iters", type=int, default=1500, help="of training; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if not 10 <= args.T <= 1000 or args.iters < 1 or args.seed < 0:
    parser.error("--T must be 10 to 1000, --iters 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
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

def simulate(x, beta, noise):
    """The chain x_0 .. x_T from data x (B, 2), step by step: (T + 1, B, 2)."""
    path = [x]
    for t in range(1, len(beta)):
        z = torch.randn_like(x)
        if noise == "uniform":
            z = (torch.rand_like(x) - 0.5) * math.sqrt(12)  # mean 0 and variance 1, too
        path.append((1 - beta[t]).sqrt() * path[-1] + beta[t].sqrt() * z)  # equation 2
    return torch.stack(path)

def noise_of(path, abar):
    """What the closed form takes for the noise in a chain at t = 1 .. T: (xt - a x) / s."""
    a, s = abar[1:, None].sqrt(), (1 - abar[1:, None]).sqrt()  # (T, 1, 1)
    return (path[1:] - a * path[0]) / s  # (T, B, 2)

# --- train
def train_eps(abar, iters):
    """Learn the noise in xt at t = 1 .. T of a schedule abar[t]. Returns eps_hat(xt, t), t (B,)."""
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95))  # .999 is a little worse here
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(1024), torch.randn(1024, 2)
        t = torch.randint(1, len(abar), (1024,))
        xt = abar[t].sqrt() * x + (1 - abar[t]).sqrt() * eps  # equation 4: any t, no loop
        eps_hat = net(torch.cat([xt, t[:, None] / len(abar)], 1))
        loss = (eps_hat - eps).square().mean()  # equation 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (i + 1) % max(1, iters // 8) == 0:
            print(f"iter {i + 1:5d}  loss {loss:.3f}")
    return lambda xt, t: net(torch.cat([xt, t[:, None] / len(abar)], 1)).detach()

# --- measure
def cdf_gap(z):
    """Kolmogorov-Smirnov distance of the numbers in each row of z (R, n) from N(0, 1): (R,)."""
    exact = torch.special.ndtr(z.sort(1).values)  # the CDF of N(0, 1) at the sorted numbers
    own = torch.linspace(0, 1, z.shape[1])  # the share of the row up to each of them
    return (exact - own).abs().max(1).values

beta, abar = schedule(args.T)
eps_net = train_eps(abar, args.iters)
path = simulate(two_moons(2500), beta, args.noise)
noise = noise_of(path, abar)
gap = cdf_gap(noise.flatten(1)).max().item()  # C1
chance = cdf_gap(torch.randn(args.T, 5000)).max().item()  # the same of Gaussian numbers
# C2: KL of N(a x, s^2 I) to N(0, I) in 2D, where the mean of |x|^2 is 2: s^2 + a^2 - 1 - log s^2
kl = -math.log(1 - abar[-1].item())

t = torch.arange(5, args.T + 1, 10)  # every tenth t, for all chains
xt, eps = path[t].flatten(0, 1), noise[t - 1].flatten(0, 1)  # (2500 n, 2) for n values of t
eps_hat = eps_net(xt, t.repeat_interleave(2500))
loss = (eps_hat - eps).square().mean().item()  # C3

# --- figure
fig, axes = plt.subplots(1, 5, figsize=(14, 4), gridspec_kw={"left": 0.03, "right": 0.99})
length = plt.Slider(plt.axes([0.1, 0.03, 0.4, 0.04]), "T", 10, 1000, valinit=args.T, valstep=10)
radio = RadioButtons(plt.axes([0.85, 0.0, 0.1, 0.13]), ["gauss", "uniform"])
BOX = {"aspect": "equal", "xlim": (-4, 4), "ylim": (-4, 4)}
radio.set_active(["gauss", "uniform"].index(args.noise))

def draw(_):
    torch.manual_seed(args.seed)  # the same draws in every picture
    T = int(length.val)
    beta, abar = schedule(T)
    path = simulate(two_moons(2500), beta, radio.value_selected)
    for ax, t in zip(axes, (0, T // 10, 3 * T // 10, T)):
        snr = (abar[t] / (1 - abar[t])).item()
        ax.clear()
        ax.plot(*path[t].T, ".", color="tab:red" if t == T and snr > 0.001 else "0.6", ms=2)
        ax.set(title=f"t = {t}: signal / noise {snr:.2g}", **BOX)
    first = noise_of(path, abar)[0]  # of t = 1: uniform noise fills a square
    gap = cdf_gap(first.view(1, -1)).item()
    axes[4].clear()
    axes[4].plot(*first.T, ".", color="tab:red" if gap > 0.04 else "0.6", ms=2)
    axes[4].set(title=f"noise in step 1: gap {gap:.3f}", **BOX)
    fig.canvas.draw_idle()
draw(None)
length.on_changed(draw)
radio.on_clicked(draw)
fig.savefig("02_ddpm_forward.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", f"CDF of the noise, worst gap at any t (chance {chance:.3f})", gap, "<", 0.04)
claim("C2", "nats between x_T, given x, and N(0, I)", kl, "<", 0.001)
if args.T == 1000:  # the exact answer E[eps | xt], which lesson 03 writes out, has a loss of .226
    claim("C3", "loss over the lowest possible", loss / 0.226, "<", 1.06)
print("figure: 02_ddpm_forward.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
