# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""04 Ancestral sampling: how DDPM goes from noise back to data, one Gaussian step at a time.

We undo the noise steps of lesson 02. If we knew the data point x, Bayes' rule would say where we
were one step earlier. A net estimates x, and each step adds noise of one of three variances.
RUN    python 04_ancestral.py              (6 seconds; the slider sets the steps of the last row)
BREAK  python 04_ancestral.py --var zero   (claim C1 fails, as in the figure's left column)
PAPER  arXiv 2006.11239, equation 7, section 3.2, and algorithm 2, by Ho et al. (DDPM)"""
import argparse, signal
import matplotlib.pyplot as plt
import torch
from torch import nn

VARIANCES = ["zero", "beta-tilde", "beta"]  # choices for the noise that each step back adds
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--var", choices=VARIANCES, default="beta", help="noise of C1 (%(default)s)")
parser.add_argument("--iters", type=int, default=800, help="training iterations (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Data: two moons, as a mixture of 64 narrow Gaussians
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), the upper half circle
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), so that the mean |x|^2 is 2, as in N(0, I)
STD = 0.09 / 0.7107  # of each Gaussian

def two_moons(n):
    """Return n samples of p_data, of shape (n, 2)."""
    return CENTERS[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- Training, as in lesson 02. Step t of T = 1000 adds noise of variance beta_t. After t steps,
#     xt = sqrt(abar_t) x + sqrt(1 - abar_t) eps,  abar_t = (1 - beta_1) ... (1 - beta_t)     (4)
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

# --- One step back, if we knew x. Bayes' rule multiplies the prior q(x_{t-1} | x) by the likelihood
# q(xt | x_{t-1}). This needs no x, as the noise of each step is new. For a product of Gaussians,
# the inverse variances add up (equation 7):
#     1 / var = 1 / prior_var + 1 / like_var
#     mean / var = prior_mean / prior_var + like_mean / like_var
def posterior(xt, x, beta, abar_prev):  # mean, (B, D), and variance of q(x_{t-1} | xt, x)
    prior_mean = abar_prev.sqrt() * x  # equation 4 for t - 1
    prior_var = 1 - abar_prev  # 0 at time 0, so we multiply the equations by prior_var * like_var
    like_mean = xt / (1 - beta).sqrt()  # from xt = sqrt(1 - beta) x_{t-1} + sqrt(beta) z
    like_var = beta / (1 - beta)
    mean = (like_var * prior_mean + prior_var * like_mean) / (prior_var + like_var)
    return mean, prior_var * like_var / (prior_var + like_var)

# --- One step back from xt alone. The net's E[eps | xt] gives E[x | xt] (equation 4). With it, the
# posterior mean is E[x_{t-1} | xt], because it is linear in x. By the law of total variance,
#     Var[x_{t-1} | xt] = posterior's variance (beta-tilde) + Var[posterior mean | xt]
# where the second part is there because xt leaves x uncertain. We try three noise variances:
# - beta-tilde leaves out the second part. This is exact if all data are one point.
# - beta is exact for data N(0, I). Then x_{t-1} and xt are N(0, I), too, with covariance
#   sqrt(1 - beta). So x_{t-1}, given xt, has mean sqrt(1 - beta) xt and variance 1 - covariance^2.
# - zero adds no noise. With data N(0, I), all steps would then only shrink xt, to 0.6% in the end.
# --- Longer steps need no new net. The noise steps from an earlier time u to t combine into one
# (lesson 02), with 1 - beta = abar_t / abar_u. So all of this holds with u in place of t - 1.
@torch.no_grad()
def sample(net, xt, abar, num_steps, variance):  # algorithm 2, from noise xt, (B, D)
    T = len(abar) - 1
    assert 1 <= num_steps <= T, f"num_steps must be 1 to {T}, not {num_steps}"
    times = torch.linspace(T, 0, num_steps + 1).round().int().tolist()  # T, ..., 0
    for t, u in zip(times, times[1:]):
        eps_hat = net(nn.functional.pad(xt, (0, 1), value=t / T))  # t / T is the last column
        x_hat = (xt - (1 - abar[t]).sqrt() * eps_hat) / abar[t].sqrt()  # equation 4, solved for x
        beta = 1 - abar[t] / abar[u]  # equal to beta_t if u is t - 1
        mean, beta_tilde = posterior(xt, x_hat, beta, abar[u])
        var = {"beta-tilde": beta_tilde, "beta": beta, "zero": 0 * beta}[variance]
        xt = mean + var.sqrt() * torch.randn_like(xt)  # in truth, long steps are not Gaussian
    return mean  # as u is 0, this is x_hat: a blur if the last step is long, because many x fit

def energy_distance(x, y):
    """Return the energy distance of samples x and y, (n, D) each (Szekely and Rizzo 2013).
    It is 2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 only if both distributions are equal."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item()

net = train(ABAR, args.iters)
noise, real = torch.randn(2000, 2), two_moons(2000)
limit = energy_distance(noise, real)  # noise's own distance
hundred, thousand, ten_beta, ten_tilde = [
    energy_distance(sample(net, noise, ABAR, num_steps, variance), real)
    for num_steps, variance in [(100, args.var), (1000, "beta"), (10, "beta"), (10, "beta-tilde")]]

# --- The figure. On top is a long step back, from xt = -1, for x = 2, beta = 0.36, abar_prev = 0.49
fig, panels = plt.subplot_mosaic("sss;abc;def;ghi", figsize=(10.5, 9), layout="constrained")
step, x_prev = panels["s"], torch.linspace(-4, 6, 501)
for style, mean, var in [("k--", 1.4, 0.51),  # 0.7 * 2 and 1 - 0.49, then -1 / 0.8 and 0.36 / 0.64
        ("k:", -1.25, 0.5625), ("tab:blue", *posterior(-1, 2, *torch.tensor([0.36, 0.49])))]:
    step.plot(x_prev, torch.distributions.Normal(mean, var**0.5).log_prob(x_prev).exp(), style)
step.legend(["prior $q(x_{t-1}|x)$", "likelihood $q(x_t|x_{t-1})$, scaled to area 1",
             "posterior $q(x_{t-1}|x_t,x)$, of variance beta-tilde"])
step.set_title("A long step from $x_t=-1$ to $x_{t-1}$, if $x=2$: prior times likelihood")
def draw(row, steps):
    for name, variance in zip(row, VARIANCES):
        ax, samples = panels[name], sample(net, noise, ABAR, steps, variance)
        gap = energy_distance(samples, real) / limit
        ax.clear()
        ax.plot(*real.T, ".", color="0.8")
        ax.plot(*samples.T, ".", color="tab:blue" if gap < 1 else "tab:red", ms=2)
        ax.set(xticks=[], yticks=[], xlim=[-3, 3], ylim=[-1.7, 1.7], aspect="equal")
        ax.set_xlabel(f"{steps} steps: distance {max(gap, 0):.2f}")

draw("abc", 3)
draw("def", 10)
draw("ghi", 100)
panels["a"].set_title("zero: no noise, so samples\nshrink to a small spot")
panels["b"].set_title("beta-tilde: as if x were known,\ntoo little noise in long steps")
panels["c"].set_title("beta: as if data were N(0, I),\nthe most noise of the three")
fig.suptitle("Ancestral steps need noise, and in long steps its amount matters", size=16)
fig.supxlabel("Gray: data. Distance: energy distance to data, over that of noise. Red: over 1.\n ")
slider = plt.Slider(plt.axes([.4, 0, .3, .02]), "last row steps", 1, 100, valinit=100, valstep=1)
slider.on_changed(lambda num_steps: draw("ghi", int(num_steps)))
fig.savefig("04_ancestral.png", dpi=120)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
# With real data for both samples, C1's difference would have a std of 0.0016. C1 allows about four.
claim("C1", f"100 steps with {args.var} match 1000. Added distance", hundred - thousand, "<", 0.006)
claim("C2", "With 10 steps, beta-tilde's distance over beta's", ten_tilde / ten_beta, ">", 1.25)
claim("C3", "1000 steps (beta) end closer to the data than noise. Distance", thousand, "<", limit)
print("figure: 04_ancestral.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
