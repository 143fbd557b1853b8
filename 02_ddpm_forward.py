# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""02 DDPM forward process: turn data into noise step by step, or in one draw by the closed form.

DDPM turns data into noise in T small steps, and a net learns to undo them. The steps are linear and
the noise is Gaussian, so t steps together are one Gaussian draw. Training uses this closed form and
never simulates the steps. We simulate them here to check that the closed form is right.

RUN    python 02_ddpm_forward.py          (5 seconds; the slider sets T)
BREAK  python 02_ddpm_forward.py --T 50   (C2 fails, because 50 steps leave most of the data)
PAPER  arXiv 2006.11239, equations 2, 4, and 14 (DDPM, by Ho et al.)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--T", type=int, default=1000, help="steps of the chain (default: %(default)s)")
parser.add_argument("--iters", type=int, default=1000, help="of training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (10 <= args.T <= 1000 and 1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--T must be 10 to 1000, --iters 1 to 1,000,000, and --seed 0 to 2**32 - 1")
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

# --- The chain: t = 0 is data, t = T is noise, and step t adds a little noise
#     x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z_t,  with fresh noise z_t ~ N(0, I)    (2)
# A step looks only at the point before it, so this is a Markov chain. It is variance-preserving: if
# x_{t-1} has variance 1, then x_t has variance (1 - beta_t) + beta_t, which is 1 again.
def linear_schedule(T):
    """Return beta and abar for t = 0, ..., T, as columns of shape (T + 1, 1)."""
    beta = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, T)])[:, None]
    return beta, (1 - beta).cumprod(0)

def simulate_chain(x, beta):
    """Add noise to data x, (n, 2), step by step. Return x_0, ..., x_T, (T + 1, n, 2)."""
    path = [x]
    for beta_t in beta[1:]:
        path.append((1 - beta_t).sqrt() * path[-1] + beta_t.sqrt() * torch.randn_like(x))
    return torch.stack(path)

# --- The closed form: t steps together are one Gaussian draw
# Suppose that x_{t-1} = a x + s eps, where x is the data point, eps ~ N(0, I), and s^2 = 1 - a^2.
# This is true for x_0 = x, with a = 1 and s = 0. We put it into (2):
#     x_t = sqrt(1 - beta_t) a x + [sqrt(1 - beta_t) s eps + sqrt(beta_t) z_t]
# A sum of independent Gaussians is Gaussian, and the variances add. So the bracket has variance
#     (1 - beta_t) s^2 + beta_t = (1 - beta_t) (1 - a^2) + beta_t = 1 - (1 - beta_t) a^2
# So x_t has the same form, with a new eps, and the step has multiplied a^2 by 1 - beta_t. After t
# steps, a^2 is the product of 1 - beta_1, ..., 1 - beta_t, which is called abar_t. This gives
#     x_t = a x + s eps,  where a^2 = abar_t, s^2 = 1 - abar_t, and eps ~ N(0, I)    (4)
def noise_in(path, a, s):
    """Solve (4) for the eps in simulated chains at t = 1, ..., T. Return shape (T, n, 2)."""
    return (path[1:] - a[1:, None] * path[0]) / s[1:, None]

# --- Check: at every t, the eps in simulated chains must be draws from N(0, 1)
# The Kolmogorov-Smirnov (KS) statistic is the largest difference between two CDFs. For 5000 draws
# at each of 1000 times, it exceeds 0.041 in about one of 10,000 runs at most (DKW inequality).
def ks_statistic(z):
    """Compare each row of z, (T, n), with N(0, 1). Return the KS statistics, (T,)."""
    cdf = torch.special.ndtr(z.sort().values)  # the CDF of N(0, 1)
    return (cdf - torch.linspace(0, 1, z.shape[1])).abs().amax(1)

def run_chain(T, seed, n=2500):
    """Simulate n chains. Return a and s, (T + 1, 1), the chains, and KS for t = 1, ..., T."""
    torch.manual_seed(seed)  # moving the slider back shows the same chains
    beta, abar = linear_schedule(T)
    a, s = abar.sqrt(), (1 - abar).sqrt()
    path = simulate_chain(two_moons(n), beta)
    return a, s, path, ks_statistic(noise_in(path, a, s).flatten(1))

# --- Training: the net predicts eps from x_t and s_t, which tells it t. Each training point has its
# own random t, and (4) gives x_t in one draw, so the training is called simulation-free. Many pairs
# of x and eps give the same x_t, so the loss cannot be 0. The best prediction is their mean eps.
# Then (x_t - s_t eps_hat) / a_t is the mean of these x, and lesson 04 walks back from there.
def training_batch(a, s, n):
    """Return x_t, (n, 2), s_t, (n, 1), and eps, (n, 2), for random t from 1, ..., T."""
    x, eps = two_moons(n), torch.randn(n, 2)
    t = torch.randint(1, len(a), (n,))
    return a[t] * x + s[t] * eps, s[t], eps

def train(a, s, iters, width=64, batch_size=1024, lr=0.03):
    """Return a net that maps x_t and s_t, joined to shape (B, 3), to eps_hat, (B, 2)."""
    net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        xt, st, eps = training_batch(a, s, batch_size)
        eps_hat = net(torch.hstack([xt, st]))
        loss = (eps_hat - eps).square().mean()  # equation 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

a, s, path, ks = run_chain(args.T, args.seed)
net = train(a, s, args.iters)
xt, st, eps = training_batch(a, s, 50_000)
loss = (net(torch.hstack([xt, st])) - eps).square().mean()
ratio = loss / (st * xt - eps).square().mean()  # s_t x_t is the best multiple of x_t

# --- Figure
fig, axes = plt.subplots(1, 4, figsize=(14, 5), layout="constrained", subplot_kw={"box_aspect": 1})
fig.suptitle("The chain (gray) looks like the closed form (blue). Red: the KL of x_T is over 0.001")
slider = plt.Slider(plt.axes([0.3, 0.01, 0.4, 0.04]), "T", 10, 1000, valinit=args.T, valstep=1)
def draw(a, s, path, ks):
    T = len(ks)
    for ax, t in zip(axes, [1, T // 10, T // 3, T]):
        xt = a[t] * two_moons(2500) + s[t] * torch.randn(2500, 2)
        ax.clear()
        ax.plot(*path[t].T, ".", color="0.7")
        ax.plot(*xt.T, ".", ms=1.5)
        ax.set_title(f"t = {t}: {a[t].item():.2f} x + {s[t].item():.2f} eps")
        ax.set_xlabel(f"KS of eps: {ks[t - 1]:.3f} (chance: up to 0.041)")
        ax.axis([-4, 4, -4, 4])
    axes[3].title.set_color("tab:red" if a[T] ** 2 > 0.001 else "black")
draw(a, s, path, ks)
slider.on_changed(lambda T: draw(*run_chain(int(T), args.seed)))
fig.savefig("02_ddpm_forward.png", dpi=120)

# --- Claims. C2: the KL divergence of N(m, v) from N(0, 1) is (m^2 + v - 1 - log v) / 2. Here m is
# a x, v is s^2, and x^2 averages 1, so the two dimensions add up to -log s^2. At 0.001, the best
# classifier of x_T and noise is right 51.2% of the time (Pinsker). C3: 6% over the lowest, 0.82.
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
kl = -torch.log1p(-a[-1] ** 2).item()  # -log s^2 of x_T
claim("C1", "In the chain, eps is N(0, 1) at every t. Largest KS", ks.max(), "<", 0.041)
claim("C2", "x_T is nearly N(0, I), whatever x is. KL divergence", kl, "<", 0.001)
claim("C3", "The loss is near the lowest. Loss / loss of s_t x_t (lowest: 0.8)", ratio, "<", 0.87)
print("figure: 02_ddpm_forward.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
