# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""04 Ancestral sampling: from noise back to data, one Gaussian step at a time.
Lesson 02's chain leads from data x over xu (time u) to xt (a later time t). With eps, z ~ N(0, I),
    xt = a x + s eps,  a^2 = abar[t],  s^2 = 1 - abar[t]     (abar falls from 1 to 0)
    xt = sqrt(1 - beta) xu + sqrt(beta) z,  1 - beta = abar[t] / abar[u]   (u to t in one step)
Now walk back: given xt, where was xu? If x were known, there would be two hints, both Gaussian:
    xu = sqrt(abar[u]) x       + noise of variance 1 - abar[u]          (the prior for xu)
    xu = xt / sqrt(1 - beta)   + noise of variance beta / (1 - beta)    (its likelihood)
By Bayes' rule, multiply their densities. The product is a Gaussian, too: its 1 / variance is the
sum of theirs, and each hint counts in its mean in proportion to its own 1 / variance.
But x is not known. By squared error, a net learns eps_hat, the mean of eps given xt. So the mean of
x given xt is x_hat = (xt - s eps_hat) / a. The product has a mean linear in x, k x + ..., and a
variance, called beta_tilde. By the laws of total expectation and variance, over x given xt,
    mean of xu given xt = the product's mean at x_hat
    variance of xu given xt = beta_tilde + k^2 (variance of x given xt)
If data are one point, this is beta_tilde. If they are N(0, I), every xt has variance 1, the mean of
xu is sqrt(1 - beta) xt, which has variance 1 - beta, and beta is right, as it makes 1 of it. With
less noise, samples shrink at each step (C2), with none to a spot. The moons (the data here) lie
between. And in a long step no Gaussian is right: xu may be on one moon or on the other.
C1 100 steps (--steps, --var) end as near to the data as 1000.  C2 In 10, beta beats beta-tilde.
RUN    python 04_ancestral.py               (6 seconds)
BREAK  python 04_ancestral.py --var zero    one small spot: C1 fails; so it does with --steps 3
PAPER  Ho, Jain, Abbeel 2020 (DDPM), arXiv 2006.11239, equation 7, section 3.2, algorithm 2"""
import argparse
import matplotlib.pyplot as plt
import torch
from torch import nn
# --- knobs
VARS = ["beta", "beta-tilde", "zero"]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=100, help="back; 3 breaks it (%(default)s)")
parser.add_argument("--var", choices=VARS, default="beta", help="of a step's noise; zero breaks it")
parser.add_argument("--iters", type=int, default=800, help="of training; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if not 1 <= args.steps <= 1000 or args.iters < 1 or args.seed < 0:
    parser.error("--steps must be 1 to 1000, --iters 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small are fastest on one core
# --- data
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2); the lower moon is -MOON
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2); the samples' std, both axes pooled, is 1 now
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each of the 64 places
def two_moons(n):
    """n samples of p_data, (n, 2)."""
    return MU[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- method
def schedule(T):
    """beta[t] and abar[t], t = 0 .. T, as columns (T + 1, 1): abar[t] of a batch t is (B, 1)."""
    beta = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, T)])[:, None]  # the paper's
    return beta, (1 - beta).cumprod(0)

def bayes(xt, x, t, u, abar):
    """Mean of xu given xt and x, (B, 2), at numbers u < t; then beta and beta_tilde, (1,) each."""
    beta = 1 - abar[t] / abar[u]  # of the noise between u and t; beta[t] if u = t - 1
    from_x, var_x = abar[u].sqrt() * x, 1 - abar[u]  # mean and variance of xu by the first hint
    from_xt, var_xt = xt / (1 - beta).sqrt(), beta / (1 - beta)  # second hint, solved for xu
    beta_tilde = var_x * var_xt / (var_x + var_xt)  # 1 / (1 / var_x + 1 / var_xt), or 0
    share = var_x / (var_x + var_xt)  # of the second hint; it is large if the first one is vague
    mean = from_x + share * (from_xt - from_x)  # equation 7
    return mean, beta, beta_tilde

def ancestral(eps_net, xt, abar, n_steps, var):
    """From noise xt (B, 2) at T to samples (B, 2) in n_steps (algorithm 2); var as in VARS."""
    times = torch.linspace(len(abar) - 1, 0, n_steps + 1).round().int()  # T, ..., 0
    for t, u in zip(times, times[1:]):  # each time and the next, of shape (), so abar[t] is (1,)
        eps_hat = eps_net(xt, t.expand(len(xt)))  # the net takes xt (B, 2) and t (B,)
        x_hat = (xt - (1 - abar[t]).sqrt() * eps_hat) / abar[t].sqrt()
        xt, beta, beta_tilde = bayes(xt, x_hat, t, u, abar)
        if var == "beta" and u > 0:  # at u = 0 noise would only blur the samples
            xt = xt + beta.sqrt() * torch.randn_like(xt)
        if var == "beta-tilde":  # it is 0 at u = 0
            xt = xt + beta_tilde.sqrt() * torch.randn_like(xt)
    return xt

# --- train
def train_eps(abar, iters):
    """Learn the noise in xt at t = 1 .. T of a schedule abar[t]. Returns eps_hat(xt, t), t (B,)."""
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters())
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
    print(f"{iters} iterations, loss {loss:.3f}")
    return lambda xt, t: net(torch.cat([xt, t[:, None] / len(abar)], 1)).detach()
abar = schedule(1000)[1]
eps_net = train_eps(abar, args.iters)

# --- measure
def energy_distance(x, y):
    """How far x, y (n, 2) are apart, beyond their own spread; 0 only if alike (Szekely 2013)."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item() if x.abs().max() < 1e3 else float("inf")  # inf if x flew off or is nan

def mean_distance(eps_net, abar, n_steps, var):
    """Mean energy distance of three draws to data. For real data it is 0, with a std of .001."""
    total = 0
    for _ in range(3):
        samples = ancestral(eps_net, torch.randn(1500, 2), abar, n_steps, var)
        total += energy_distance(samples, two_moons(1500))
    return total / 3

noise, real = torch.randn(2000, 2), two_moons(2000)
before = energy_distance(noise, real)
chosen = mean_distance(eps_net, abar, args.steps, args.var)  # C1
full = mean_distance(eps_net, abar, 1000, "beta")
by_beta = mean_distance(eps_net, abar, 10, "beta")
by_tilde = mean_distance(eps_net, abar, 10, "beta-tilde")  # C2

# --- figure
fig, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
slider = plt.Slider(plt.axes([0.3, 0.03, 0.4, 0.04]), "steps", 1, 100, valinit=10, valstep=1)

def draw(n_steps):
    fig.suptitle(f"{n_steps:.0f} steps: energy distance to data (red: above noise's {before:.3f})")
    for ax, var in zip(axes, VARS):
        x = ancestral(eps_net, noise, abar, int(n_steps), var)
        distance = energy_distance(x, real)
        ax.clear()
        ax.plot(real[:, 0], real[:, 1], ".", color="0.7", ms=2)
        ax.plot(x[:, 0], x[:, 1], ".", color="tab:blue" if distance < before else "tab:red", ms=2)
        ax.set(title=f"variance {var}: {distance:.3f}", aspect="equal")
        ax.set(xlim=(-3, 3), ylim=(-1.8, 1.8))
draw(10)  # always 10 at the start, as in C2: --steps and --var set C1's run only
slider.on_changed(draw)
fig.savefig("04_ancestral.png", dpi=120)

# --- claims. Two mean distances differ by chance with a std of .0015; the margins are 4 times that
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:.4g}")
limit = min(full, before) + 0.006  # a net whose 1000 steps end farther than noise must not pass
claim("C1", f"energy distance, {args.steps} steps (1000: {full:.4f})", chosen, "<", limit)
claim("C2", "energy distance, 10 steps with beta-tilde minus beta", by_tilde - by_beta, ">", 0.006)
print("figure: 04_ancestral.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
