# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""04 Ancestral sampling: from noise back to data, one Gaussian step at a time.
The chain of lesson 02 leads from data x at t = 0 to noise at t = T: xt = a x + s eps, with a^2 =
abar[t] and s^2 = 1 - abar[t]. A point is at xt: where was it, xu, at an earlier time u? If x were
known, Bayes' rule would multiply two Gaussians: x leads to xu, and xu leads to xt. The product is
a Gaussian again. Its mean is on_x x + on_xt xt. Its variance, beta-tilde, is smaller than beta,
that of the noise which the chain adds from u to t. But x is not known. The net's x_hat stands in,
the mean of all x that may be behind xt. The true x scatters around it, and xu with it: the right
variance is beta-tilde + on_x^2 Var(x | xt). If all data are one point, Var(x | xt) is 0. If they
are N(0, I), the sum is beta. The moons come nearer to beta (the tests say how near). Without any
noise the cloud is drawn together, step by step. And a step must be short: a long way back, xu may
be on one moon or the other, which is no Gaussian. So many steps are needed, one after the other.
C1 100 steps (--steps, --var) end as near to the data as 1000.  C2 In 10, beta beats beta-tilde.
RUN    python 04_ancestral.py               (7 seconds)
BREAK  python 04_ancestral.py --var zero    one small spot: C1 fails; so it does with --steps 3
PAPER  Ho, Jain, Abbeel 2020 (DDPM), arXiv 2006.11239, equation 7, section 3.2, algorithm 2"""
import argparse
import timeit
import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import RadioButtons
from torch import nn
# --- knobs
VARS = ["beta", "beta-tilde", "zero"]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=100, help="back; 3 breaks it (%(default)s)")
parser.add_argument("--var", choices=VARS, default="beta", help="of a step's noise; zero breaks it")
parser.add_argument("--iters", type=int, default=800, help="of training; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if not 1 <= args.steps <= 200 or args.iters < 1 or args.seed < 0:
    parser.error("--steps must be 1 to 200, --iters 1 or more, --seed 0 or more")
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

def bayes(xt, x, t, u, abar):
    """Mean of xu given xt and x, (B, 2) each, u < t; then beta and beta-tilde, (1,) each."""
    beta = 1 - abar[t] / abar[u]  # of the whole stride; the schedule's beta[t] if u = t - 1
    # precisions add, 1 / beta_tilde = 1 / (1 - abar[u]) from x + (1 - beta) / beta from xt
    beta_tilde = beta * (1 - abar[u]) / (1 - abar[t])
    on_x = abar[u].sqrt() * beta / (1 - abar[t])  # equation 7
    on_xt = (1 - beta).sqrt() * (1 - abar[u]) / (1 - abar[t])
    return on_x * x + on_xt * xt, beta, beta_tilde

def ancestral(eps_net, xt, abar, n_steps, var):
    """From noise xt (B, 2) to samples (B, 2), algorithm 2 in n_steps strides; var as in VARS."""
    times = torch.linspace(len(abar) - 1, 0, n_steps + 1).round().int()  # T, ..., 0
    for t, u in zip(times, times[1:]):
        eps_hat = eps_net(xt, t.expand(len(xt)))
        x_hat = (xt - (1 - abar[t]).sqrt() * eps_hat) / abar[t].sqrt()
        xt, beta, beta_tilde = bayes(xt, x_hat, t, u, abar)
        if var != "zero" and u > 0:  # subtle: noise added at u = 0 would stay in the samples
            variance = beta if var == "beta" else beta_tilde
            xt = xt + variance.sqrt() * torch.randn_like(xt)
    return xt

# --- train
def train_eps(abar, iters):
    """Learn the noise in xt at t = 1 .. T of a schedule abar[t]. Returns eps_hat(xt, t), t (B,)."""
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95))  # a short memory
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
abar = schedule(1000)[1]
eps_net = train_eps(abar, args.iters)

# --- measure
def energy_distance(x, y):
    """How much farther two clouds (n, 2) are from each other than from themselves: 0 if alike."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item() if x.abs().max() < 1e3 else float("inf")  # diverged, or nan

def mean_distance(eps_net, abar, n_steps, var, draws):
    """Energy distance of 1500 samples to data, mean over draws. Data score 0 +- .0014 a draw."""
    samples = ancestral(eps_net, torch.randn(1500 * draws, 2), abar, n_steps, var)
    return sum(energy_distance(x, two_moons(1500)) for x in samples.split(1500)) / draws

full = min(0.05, mean_distance(eps_net, abar, 1000, "beta", 1))  # .05 (noise) if it diverged
chosen = mean_distance(eps_net, abar, args.steps, args.var, 6)  # C1
STEPS = [5, 10, 20, 100]
by_beta = [mean_distance(eps_net, abar, n, "beta", 2) for n in STEPS]
by_tilde = [mean_distance(eps_net, abar, n, "beta-tilde", 2) for n in STEPS]  # C2
noise, real = torch.randn(2000, 2), two_moons(2000)
whole = min(timeit.repeat(lambda: ancestral(eps_net, noise, abar, 10, "beta"), number=1))
calls = min(timeit.repeat(lambda: eps_net(noise, torch.ones(2000)), number=10))
print(f"calls of the net take {calls / whole:.0%} of the sampling time")

# --- figure
fig, (cloud, cost) = plt.subplots(1, 2, figsize=(12, 4.8), width_ratios=[3, 2])
fig.subplots_adjust(right=0.98, bottom=0.2)
steps = plt.Slider(plt.axes([0.1, 0.05, 0.3, 0.04]), "steps", 1, 200, valinit=args.steps, valstep=1)
radio = RadioButtons(plt.axes([0.5, 0.01, 0.1, 0.13]), VARS, VARS.index(args.var))
cost.semilogx(STEPS, by_beta, "o-", label=f"beta, 10 steps: {by_beta[1]:.3f}")
cost.semilogx(STEPS, by_tilde, "o-", label=f"beta-tilde, 10 steps: {by_tilde[1]:.3f}")
cost.axhline(full, color="k", ls="--", label="beta, 1000 steps")
cost.set(xlabel="steps", ylabel="energy distance to the data")
cost.legend()

def draw(_):
    x = ancestral(eps_net, noise, abar, int(steps.val), radio.value_selected)
    distance = energy_distance(x, real)
    cloud.clear()
    cloud.scatter(*real.T, s=2, c="0.7")
    cloud.scatter(*x.T, s=2, c="C0" if distance < 0.05 else "C3")  # noise scores .05
    cloud.set(title=f"{steps.val} steps: {distance:.4f} from the data (grey)", aspect="equal")
    fig.canvas.draw_idle()
draw(None)
steps.on_changed(draw)
radio.on_clicked(draw)
fig.savefig("04_ancestral.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", f"{args.steps} steps minus 1000 (chance +- .0015)", chosen - full, "<", 0.006)
claim("C2", "10, beta-tilde minus beta (+- .0014)", by_tilde[1] - by_beta[1], ">", 0.006)
print("figure: 04_ancestral.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
