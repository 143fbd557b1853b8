# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""04 Ancestral sampling: how DDPM goes from noise back to data, one Gaussian step at a time.

We undo the noise steps of lesson 02. If we knew the data point x, Bayes' rule would say where we
were one step earlier. A net predicts x, and we compare three variances of the noise in each step.

RUN    python 04_ancestral.py              (6 seconds; the slider sets the steps of the last row)
BREAK  python 04_ancestral.py --var zero   (C1 fails, because all samples end in one small spot)
PAPER  arXiv 2006.11239, equation 7, section 3.2, and algorithm 2, by Ho et al. (DDPM)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

VARIANCES = {"beta-tilde": "lower bound", "beta": "upper bound", "zero": "no noise"}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--var", choices=VARIANCES, default="beta", help="in C1 (default: %(default)s)")
parser.add_argument("--iters", type=int, default=800, help="of training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Data: two moons, as a mixture of 64 narrow Gaussians, so that p_data has a closed form
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), the upper half circle
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), divided by the std of the data
STD = 0.09 / 0.7107  # of each Gaussian

def two_moons(n):
    """Return n samples of p_data, of shape (n, 2)."""
    return CENTERS[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- Training, as in lesson 02: a net predicts the noise eps in xt, for random t from 1 to T = 1000
ABAR = torch.cat([torch.ones(1), 1 - torch.linspace(1e-4, 0.02, 1000)]).cumprod(0)  # (T + 1,)

def train(abar, iters, width=64, batch_size=1024, lr=0.03):  # net: [xt, t / T] to eps_hat
    net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    T, optimizer = len(abar) - 1, torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(batch_size), torch.randn(batch_size, 2)
        t = torch.randint(1, T + 1, (batch_size, 1))
        xt = abar[t].sqrt() * x + (1 - abar[t]).sqrt() * eps  # (B, 2), equation 4
        loss = (net(torch.hstack([xt, t / T])) - eps).square().mean()  # smallest for E[eps | xt]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

# --- One step back, if we knew x. From an earlier time u (t - 1 in the paper) to t, the chain did
#     xt = sqrt(1 - beta) x_u + sqrt(beta) z,  where z ~ N(0, I) and 1 - beta = abar_t / abar_u
# By Bayes' rule, the posterior q(x_u | xt, x) is, up to a constant, the prior q(x_u | x) times the
# likelihood q(xt | x_u). Both are Gaussians in x_u, and so is their product. The exponents add up:
#     1 / var = 1 / prior_var + 1 / like_var
#     mean / var = prior_mean / prior_var + like_mean / like_var
def posterior(xt, x, beta, abar_u):
    """Return the mean, (B, D), and the variance, a number, of q(x_u | xt, x) (equation 7)."""
    prior_mean = abar_u.sqrt() * x  # equation 4 at time u
    prior_var = 1 - abar_u  # 0 at u = 0, so we solve for mean and var without dividing by it
    like_mean = xt / (1 - beta).sqrt()  # the chain, solved for x_u
    like_var = beta / (1 - beta)
    total = prior_var + like_var  # equal to (1 - abar_t) / (1 - beta)
    mean = (like_var * prior_mean + prior_var * like_mean) / total
    return mean, prior_var * like_var / total

# --- One step back from xt alone. We put in x_hat = E[x | xt]. The posterior mean is linear in x,
# so this gives E[x_u | xt]. But x is uncertain, which adds variance (law of total variance):
#     Var(x_u | xt) = beta_tilde + k^2 Var(x | xt)
#     beta_tilde = beta (1 - abar_u) / (1 - abar_t)   (the variance of the posterior)
#     k = beta sqrt(abar_u) / (1 - abar_t)            (the factor of x in its mean)
# - beta-tilde, a lower bound, leaves out the second term. It is exact if xt determines x.
# - beta is an upper bound for data of variance 1. The guess sqrt(abar_t) xt of x has the error
#   (1 - abar_t) x - sqrt(abar_t (1 - abar_t)) eps, and its variance is 1 - abar_t. E[x | xt] is the
#   best guess. So on average, Var(x | xt) is at most 1 - abar_t, and Var(x_u | xt) is at most
#       beta (1 - abar_u + beta abar_u) / (1 - abar_t) = beta,  as abar_t = (1 - beta) abar_u
# - zero goes to E[x_u | xt], which is less spread out than x_u. So the samples contract every step.
# After a long step, x_u may be on either moon, and no Gaussian fits. So DDPM takes 1000 short ones,
# one forward pass each. Two moons need only 100, but images have much finer details.
@torch.no_grad()
def sample(net, xt, abar, num_steps, variance):
    """Turn noise xt, (B, D), into samples (algorithm 2), by any net with inputs as in train."""
    T = len(abar) - 1
    assert 1 <= num_steps <= T, f"num_steps must be 1 to {T}, not {num_steps}"
    times = torch.linspace(T, 0, num_steps + 1).round().int().tolist()  # T, ..., 0
    for t, u in zip(times, times[1:]):
        eps_hat = net(nn.functional.pad(xt, (0, 1), value=t / T))  # t / T is the last column
        x_hat = (xt - (1 - abar[t]).sqrt() * eps_hat) / abar[t].sqrt()  # equation 4, solved for x
        beta = 1 - abar[t] / abar[u]  # equal to beta_t if u is t - 1
        xt, beta_tilde = posterior(xt, x_hat, beta, abar[u])
        var = {"beta-tilde": beta_tilde, "beta": beta, "zero": 0 * beta}[variance]
        if u > 0:  # in the last step, noise would only blur the samples
            xt += var.sqrt() * torch.randn_like(xt)
    return xt

def energy_distance(x, y):
    """Return the energy distance of samples x and y, (n, 2) each (Szekely and Rizzo 2013).
    It is 2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 only if both distributions are equal."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item()

net = train(ABAR, args.iters)
noise, real = torch.randn(2000, 2), two_moons(2000)
limit = energy_distance(noise, real)
hundred = energy_distance(sample(net, noise, ABAR, 100, args.var), real)
thousand = energy_distance(sample(net, noise, ABAR, 1000, "beta"), real)
ten_beta = energy_distance(sample(net, noise, ABAR, 10, "beta"), real)
ten_tilde = energy_distance(sample(net, noise, ABAR, 10, "beta-tilde"), real)

fig, axes = plt.subplots(3, 3, figsize=(12, 8.5), gridspec_kw={"left": 0.03, "right": 0.99})
def draw(row, num_steps):
    for ax, (variance, label) in zip(row, VARIANCES.items()):
        samples = sample(net, noise, ABAR, num_steps, variance)
        distance = energy_distance(samples, real)
        ax.clear()
        ax.plot(*real.T, ".", color="0.7", ms=2)
        ax.plot(*samples.T, ".", color="tab:blue" if distance < limit else "tab:red", ms=2)
        ax.set(xticks=[], yticks=[], xlim=[-3, 3], ylim=[-1.7, 1.7], aspect="equal")
        ax.set(title=f"{variance} ({label}): distance {distance:.3f}", ylabel=f"{num_steps} steps")

for row, num_steps in zip(axes, [3, 10, 100]):
    draw(row, num_steps)
slider = plt.Slider(plt.axes([0.4, 0.03, 0.3, 0.03]), "last row ", 1, 100, valinit=100, valstep=1)
slider.on_changed(lambda num_steps: draw(axes[2], int(num_steps)))
fig.suptitle("With 10 steps, beta-tilde makes the moons too narrow. Beta blurs them, but comes "
             f"{ten_tilde - ten_beta:.2f} closer\n"
             f"Gray: data. Blue: samples. Red: energy distance above that of noise, {limit:.3f}")
fig.savefig("04_ancestral.png", dpi=120)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
# Distances of two sets of real data differ by 0 +- 0.0015, and both bounds are four times that. The
# reference is at most the noise's own distance, so that a net that fails cannot pass.
claim("C1", f"100 steps with {args.var} do as well as 1000 with beta. Added energy distance",
      hundred - min(thousand, limit), "<", 0.006)
claim("C2", "With 10 steps, beta gains on beta-tilde", min(ten_tilde, limit) - ten_beta, ">", 0.006)
print("figure: 04_ancestral.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
