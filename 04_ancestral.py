# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""04 Ancestral sampling: how DDPM goes from noise back to data, one Gaussian step at a time.

We undo the noise steps of lesson 02 one by one. If we knew the data point x, Bayes' rule would say
where we were one step earlier. A net can predict x, so we go to the mean that Bayes' rule gives for
this x, and add noise. We compare three variances of the noise, and we try fewer, longer steps.

RUN    python 04_ancestral.py              (6 seconds; the slider sets the steps of the last row)
BREAK  python 04_ancestral.py --var zero   (C1 fails, because all samples end in one small spot)
PAPER  arXiv 2006.11239, equation 7, section 3.2, and algorithm 2, by Ho et al. (DDPM)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

LABELS = {"beta-tilde": "beta-tilde (lower bound)", "beta": "beta (upper bound)", "zero": "zero"}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--var", choices=LABELS, default="beta", help="in C1 (default: %(default)s)")
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
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), with variance 1, averaged over x and y
STD = 0.09 / 0.7107  # of each Gaussian

def two_moons(n):
    """Return n samples of p_data, of shape (n, 2)."""
    return CENTERS[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- Training, as in lesson 02: a net predicts the noise eps in xt, for random t from 1 to T
def linear_schedule(T):
    """Return beta and abar for t = 0, ..., T, as columns of shape (T + 1, 1)."""
    beta = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, T)])[:, None]
    return beta, (1 - beta).cumprod(0)

def train(abar, iters, width=64, batch_size=1024, lr=0.03):
    net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    T, optimizer = len(abar) - 1, torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(batch_size), torch.randn(batch_size, 2)
        t = torch.randint(1, T + 1, (batch_size,))
        xt = abar[t].sqrt() * x + (1 - abar[t]).sqrt() * eps  # (B, 2), equation 4
        eps_hat = net(torch.cat([xt, t[:, None] / T], 1))
        loss = (eps_hat - eps).square().mean()  # smallest for the mean of all eps that fit xt
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

# --- One step back, if we knew x. From an earlier time u (t - 1 in the paper) to t, the chain did
#     xt = sqrt(1 - beta) x_u + sqrt(beta) z,  where z ~ N(0, I) and 1 - beta = abar[t] / abar[u]
# Where was x_u? By Bayes' rule, the posterior q(x_u | xt, x) is the prior q(x_u | x) times the
# likelihood q(xt | x_u), up to a constant. As functions of x_u, both are Gaussians. Their exponents
# add up to a new quadratic, so the posterior is a Gaussian, too. Its x_u^2 and x_u terms tell us
#     1 / var = 1 / prior_var + 1 / like_var
#     mean / var = prior_mean / prior_var + like_mean / like_var
def posterior(xt, x, beta, abar_u):
    """Return the mean, (B, D), and the variance, (1,), of q(x_u | xt, x) (equation 7)."""
    prior_mean, prior_var = abar_u.sqrt() * x, 1 - abar_u  # at time u, by equation 4
    like_mean, like_var = xt / (1 - beta).sqrt(), beta / (1 - beta)  # the chain, solved for x_u
    weight = prior_var / (prior_var + like_var)  # of the likelihood, var / like_var
    return prior_mean + weight * (like_mean - prior_mean), weight * like_var

# --- One step back from xt alone. We put in x_hat, the mean of x given xt. The posterior mean is
# linear in x, so this gives the mean of x_u given xt. But x is uncertain, so x_u varies more. If k
# is the factor of x in the posterior mean, the law of total variance says
#     Var(x_u | xt) = beta_tilde + k^2 Var(x | xt),  where beta_tilde is the posterior variance
# - beta-tilde, a lower bound, leaves out the second term. It is exact if xt determines x.
# - beta is the sum if Var(x | xt) = 1 - abar[t], as for N(0, I). For other data of variance 1, xt
#   tells us more about x, so beta is an upper bound, on average over xt.
# - zero leaves out both, and each step shrinks the samples toward the mean of the data.
# After a long step, x_u may be on either moon, and no Gaussian fits. So DDPM takes 1000 short ones.
# Their price is 1000 forward passes, one after another, because each needs the result of the last.
@torch.no_grad()
def sample(net, xt, abar, num_steps, variance):
    """Turn noise xt, (B, D), into samples by any net(xt, t / T) that predicts eps (algorithm 2)."""
    T = len(abar) - 1
    assert 1 <= num_steps <= T, f"num_steps must be 1 to {T}, not {num_steps}"
    times = torch.linspace(T, 0, num_steps + 1).round().int().tolist()  # T, ..., 0
    for t, u in zip(times, times[1:]):
        x_hat = (xt - (1 - abar[t]).sqrt() * net(xt, t / T)) / abar[t].sqrt()  # equation 4
        beta = 1 - abar[t] / abar[u]  # equal to beta[t] if u is t - 1
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

abar = linear_schedule(1000)[1]
net = train(abar, args.iters)
predict = lambda xt, t: net(nn.functional.pad(xt, (0, 1), value=t))  # t is the third column
noise, real = torch.randn(2000, 2), two_moons(2000)
limit = energy_distance(noise, real)
runs = [(100, args.var), (1000, "beta"), (10, "beta"), (10, "beta-tilde")]
chosen, full, beta, tilde = [energy_distance(sample(predict, noise, abar, *r), real) for r in runs]

# --- Figure
fig, axes = plt.subplots(3, 3, figsize=(12, 8), gridspec_kw={"left": 0.03, "right": 0.99})
def draw(row, num_steps):
    for ax, variance in zip(row, LABELS):
        samples = sample(predict, noise, abar, num_steps, variance)
        distance = energy_distance(samples, real)
        ax.clear()
        ax.plot(*real.T, ".", color="0.7", ms=2)
        ax.plot(*samples.T, ".", color="tab:blue" if distance < limit else "tab:red", ms=2)
        ax.axis([-3, 3, -1.7, 1.7])
        ax.set(xticks=[], yticks=[], aspect="equal")
        ax.set(title=f"{LABELS[variance]}: distance {distance:.3f}", ylabel=f"steps: {num_steps}")

for row, num_steps in zip(axes, (3, 10, 100)):
    draw(row, num_steps)
box = fig.add_axes([0.35, 0.02, 0.4, 0.03])
slider = plt.Slider(box, "steps of the last row ", 1, 100, valinit=100, valstep=1)
slider.on_changed(lambda num_steps: draw(axes[2], int(num_steps)))
fig.suptitle(f"With 10 steps, beta is {tilde - beta:.2f} closer to the data than beta-tilde\n"
             f"Gray: data. Blue: samples. Red: energy distance above noise's own {limit:.3f}")
fig.savefig("04_ancestral.png", dpi=120)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
# Distances of two sets of real data differ by 0 +- 0.0015, and both bounds are four times that.
claim("C1", f"100 steps with {args.var} do as well as 1000 with beta. Added energy distance",
      chosen - min(full, limit), "<", 0.006)  # min: a net that fails must not pass
claim("C2", "With 10 steps, beta beats beta-tilde. Gain", min(tilde, limit) - beta, ">", 0.006)
print("figure: 04_ancestral.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
