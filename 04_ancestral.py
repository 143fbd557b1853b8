# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""04 Ancestral sampling: how DDPM goes from noise back to data, one Gaussian step at a time.

We undo the noise steps of lesson 02. If we knew the data point x, Bayes' rule would say where we
were one step earlier. A net estimates x, and each step adds noise of one of three variances.

RUN    python 04_ancestral.py              (6 seconds; the slider sets the steps of the last row)
BREAK  python 04_ancestral.py --var zero   (claim C1 fails: all samples end in one small spot)
PAPER  arXiv 2006.11239, equation 7, section 3.2, and algorithm 2, by Ho et al. (DDPM)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

VARIANCES = ["zero", "beta-tilde", "beta"]  # of the noise that a step back adds
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--var", choices=VARIANCES, default="beta", help="of C1 (default: %(default)s)")
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
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), so that the mean |x|^2 is 2, as in N(0, I)
STD = 0.09 / 0.7107  # of each Gaussian

def two_moons(n):
    """Return n samples of p_data, of shape (n, 2)."""
    return CENTERS[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- Training, as in lesson 02. Step t of T = 1000 adds noise of variance beta_t. After t steps,
#     xt = sqrt(abar_t) x + sqrt(1 - abar_t) eps,  abar_t = (1 - beta_1) ... (1 - beta_t)     (4)
# So abar_t is the data's part of the variance of xt, from 1 to nearly 0. A net predicts eps.
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

# --- One step back, if we knew x. Let u be an earlier time than t (t - 1 in the paper). All steps
# from u to t together are one step of variance beta (lesson 02):
#     xt = sqrt(1 - beta) * x_u + sqrt(beta) * z,  with z ~ N(0, I) and 1 - beta = abar_t / abar_u
# By Bayes' rule, q(x_u | xt, x) is proportional to the prior q(x_u | x) times the likelihood
# q(xt | x_u). Both are Gaussians in x_u. In a product of Gaussians, the inverse variances add up:
#     1 / var = 1 / prior_var + 1 / like_var
#     mean / var = prior_mean / prior_var + like_mean / like_var
def posterior(xt, x, beta, abar_u):
    """Return the mean, (B, D), and the variance, a number, of q(x_u | xt, x) (equation 7)."""
    prior_mean = abar_u.sqrt() * x  # equation 4 at time u
    prior_var = 1 - abar_u  # 0 if u = 0, so we multiply the equations by prior_var * like_var
    like_mean = xt / (1 - beta).sqrt()  # the step from u to t, solved for x_u
    like_var = beta / (1 - beta)
    mean = (like_var * prior_mean + prior_var * like_mean) / (prior_var + like_var)
    return mean, prior_var * like_var / (prior_var + like_var)

# --- One step back from xt alone. We replace x by x_hat = E[x | xt], which the net estimates. As
# the posterior mean is linear in x, this gives E[x_u | xt]. We add Gaussian noise to it, which is
# nearly right if the step is short. By the law of total variance, this noise has two parts:
#     var(x_u | xt) = beta_tilde + c^2 var(x | xt),  c: the factor of x in the posterior mean
# - beta-tilde, the posterior's variance, is exact if x is known, because var(x | xt) is 0 then.
# - beta is exact for data N(0, I). Then x_u and xt are N(0, I), too, and their covariance is
#   sqrt(1 - beta), so that var(x_u | xt) = 1 - covariance^2 = beta.
# - zero leaves out both parts, so the samples shrink in every step and end in one small spot.
#   DDIM (lesson 07) adds no noise and works, because it keeps the predicted noise instead.
@torch.no_grad()
def sample(net, xt, abar, num_steps, variance):
    """Turn noise xt, (B, D), into samples (algorithm 2). Each step is one forward pass of net."""
    T = len(abar) - 1
    assert 1 <= num_steps <= T, f"num_steps must be 1 to {T}, not {num_steps}"
    times = torch.linspace(T, 0, num_steps + 1).round().int().tolist()  # T, ..., 0
    for t, u in zip(times, times[1:]):
        eps_hat = net(nn.functional.pad(xt, (0, 1), value=t / T))  # t / T is the last column
        x_hat = (xt - (1 - abar[t]).sqrt() * eps_hat) / abar[t].sqrt()  # equation 4, solved for x
        beta = 1 - abar[t] / abar[u]  # equal to beta_t if u is t - 1
        mean, beta_tilde = posterior(xt, x_hat, beta, abar[u])
        var = {"beta-tilde": beta_tilde, "beta": beta, "zero": 0 * beta}[variance]
        xt = mean + var.sqrt() * torch.randn_like(xt)
    return mean  # x_hat, the mean of all data that xt may come from: the last step must be short

def energy_distance(x, y):
    """Return the energy distance of samples x and y, (n, D) each (Szekely and Rizzo 2013).
    It is 2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 only if both distributions are equal."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item()

net = train(ABAR, args.iters)
noise, real = torch.randn(2000, 2), two_moons(2000)
limit = energy_distance(noise, real)
settings = [(100, args.var), (1000, "beta"), (10, "beta"), (10, "beta-tilde")]
hundred, thousand, ten_beta, ten_tilde = [
    energy_distance(sample(net, noise, ABAR, *setting), real) for setting in settings]

fig, axes = plt.subplots(3, 3, figsize=(12, 8), layout="constrained")
def draw(row, steps):
    for ax, variance in zip(row, VARIANCES):
        path = []  # of one sample, from noise to its end
        samples = sample(lambda x: path.append(x[1, :2]) or net(x), noise, ABAR, steps, variance)
        gap = energy_distance(samples, real) / limit
        label = f"{steps} steps: variance {samples.var(0).mean():.0%}, distance {max(gap, 0):.0%}"
        ax.clear()
        ax.plot(*real.T, "o", color="0.85")
        ax.plot(*samples.T, ".", color="tab:blue" if gap < 1 else "tab:red", ms=2)
        ax.plot(*torch.stack([*path, samples[1]]).T, "ko-", mfc="w", markevery=[0], lw=0.5)
        ax.set(xticks=[], yticks=[], xlim=[-3, 3], ylim=[-1.7, 1.7], aspect="equal", xlabel=label)

for row, num_steps in zip(axes, [3, 10, 100]):
    draw(row, num_steps)
axes[0, 0].set_title("zero: no noise, so a few steps\nshrink all samples to one spot")
axes[0, 1].set_title("beta-tilde: as if x were known,\ntoo little noise in long steps")
axes[0, 2].set_title("beta: as if data were N(0, I),\nthe most noise of the three")
fig.suptitle("A step back needs noise. In long steps, its amount matters.\nVariance of samples in "
             "% of the data's, their distance to the data in % of the noise's (red: over 100%).\n"
             f"Gray: data. Black: one sample's way from noise (circle). C1 tests {args.var}")
slider = plt.Slider(plt.axes([.87, .97, .1, .02]), "last row steps", 1, 100, valinit=100, valstep=1)
slider.on_changed(lambda num_steps: draw(axes[2], int(num_steps)))
fig.savefig("04_ancestral.png", dpi=120)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
# C1's bound is nearly 4 std of its value for real data. An untrained net gives C2 a value of 1.
claim("C1", f"100 steps with {args.var} match 1000. Added distance", hundred - thousand, "<", 0.006)
claim("C2", "With 10 steps, beta-tilde's distance over beta's", ten_tilde / ten_beta, ">", 1.25)
claim("C3", "1000 steps (beta) end closer to the data than noise. Distance", thousand, "<", limit)
print("figure: 04_ancestral.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
