# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""02 DDPM forward process: turn data into noise step by step, or in one draw by the closed form.

DDPM turns data into noise in T small Gaussian steps. Training skips them, as t steps have the same
distribution as one draw. We check this, and train a net to predict the noise (used in lesson 04).
RUN    python 02_ddpm_forward.py          (6 seconds; the slider sets T)
BREAK  python 02_ddpm_forward.py --T 50   (C2 fails, because 50 steps leave most of the data)
PAPER  arXiv 2006.11239, equations 2, 4, and 14 (DDPM, by Ho et al.)"""
import argparse, signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--T", type=int, default=1000, help="steps of the chain (default: %(default)s)")
parser.add_argument("--iters", type=int, default=1000, help="training iterations (%(default)s)")
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
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), so that the mean |x|^2 is 2, as in N(0, I)
STD = 0.09 / 0.7107  # of each Gaussian
def two_moons(n):
    """Return n samples of p_data, of shape (n, 2)."""
    return CENTERS[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- The Markov chain from data (t = 0) to noise (t = T). A step looks only at the point before it:
#     x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z_t,  with fresh noise z_t ~ N(0, I)    (2)
# It is variance-preserving: if x_{t-1} has variance 1, then x_t has (1 - beta_t) + beta_t = 1, too.
def linear_schedule(T):
    """Return beta and abar, (T + 1, 1) each. The range is that of Ho et al., for T = 1000."""
    beta = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, T)])[:, None]
    return beta, (1 - beta).cumprod(0)

def simulate_chain(x, beta):  # from data x, (n, 2), to x_0, ..., x_T, (T + 1, n, 2)
    path = [x]
    for beta_t in beta[1:]:
        path.append((1 - beta_t).sqrt() * path[-1] + beta_t.sqrt() * torch.randn_like(x))
    return torch.stack(path)

# --- The closed form: t steps together are one Gaussian draw
# Suppose that x_{t-1} = a_{t-1} x + s_{t-1} eps with eps ~ N(0, I) and a_{t-1}^2 + s_{t-1}^2 = 1.
# For t - 1 = 0, this is true with the data x = x_0, a_0 = 1, and s_0 = 0. By (2),
#     x_t = sqrt(1 - beta_t) a_{t-1} x + [sqrt(1 - beta_t) s_{t-1} eps + sqrt(beta_t) z_t]
# A sum of independent Gaussians is Gaussian. The squared factor of x and the bracket's variance are
#     a_t^2 = (1 - beta_t) a_{t-1}^2  and  s_t^2 = (1 - beta_t) s_{t-1}^2 + beta_t
# Again, they add up to (1 - beta_t) + beta_t = 1. So at every t, with a new eps ~ N(0, I),
#     x_t = a_t x + s_t eps,  where a_t^2 = (1 - beta_1) ... (1 - beta_t), called abar_t    (4)

# --- Check: solve (4) for eps. If (4) is right, eps is N(0, 1), and its CDF makes it uniform.
# Sorted, it then lies close to an even grid. The largest distance from the grid, for N numbers, is
# the Kolmogorov-Smirnov (KS) distance. By chance, P(KS > d) <= 2 exp(-2 N d^2) (DKW inequality).
MAX_KS = 0.041  # for N = 2 n = 5000, P is 1e-7
def measure(T, n=2500):  # a and s, (T + 1, 1), chains of n points, (T + 1, n, 2), and KS, (T + 1,)
    beta, abar = linear_schedule(T)
    a, s = abar.sqrt(), (1 - abar).sqrt()
    path = simulate_chain(two_moons(n), beta)
    eps = (path - a[:, None] * path[0]) / s[:, None]  # (T + 1, n, 2); at t = 0, 0 / 0 is nan
    uniform = torch.special.ndtr(eps.flatten(1))  # (T + 1, 2 n), by the normal CDF
    ks = (uniform.sort().values - torch.linspace(0, 1, 2 * n)).abs().amax(1)
    return a, s, path, ks
a, s, path, ks = measure(args.T)

# --- Training: the net predicts eps from x_t and s_t, which tells it t. Each training point takes a
# draw from (4), with its own random t, and no chain. Many pairs of x and eps give the same x_t, and
# squared error is lowest for the mean of their eps, called eps_hat.
def training_batch(a, s, n):  # x_t (n, 2), s_t (n, 1), and eps (n, 2) for random t from 1 to T
    x, eps = two_moons(n), torch.randn(n, 2)
    t = torch.randint(1, len(a), [n])
    return a[t] * x + s[t] * eps, s[t], eps

def train(a, s, iters, width=64, batch_size=1024, lr=0.03):  # returns a net for eps_hat(x_t, s_t)
    net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        xt, st, eps = training_batch(a, s, batch_size)
        loss = nn.functional.mse_loss(net(torch.hstack([xt, st])), eps)  # equation 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

# --- The lowest loss. For this data, we can compute E[eps | x_t], which no net can beat. If x
# belongs to the center c, then x_t - a c = a (x - c) + s eps is a sum of two independent Gaussians
# with mean 0. If we know the sum, the mean of a part is its share of the variance times the sum:
#     E[s eps | x_t, c] = s^2 / var * (x_t - a c)  with  var = (a STD)^2 + s^2
def best_eps(xt, st):  # E[eps | x_t], (B, 2), for x_t (B, 2) and s_t (B, 1)
    at = (1 - st**2).sqrt()
    var = (at * STD) ** 2 + st**2  # (B, 1)
    squared_distance = (xt[:, None] - at[:, None] * CENTERS).square().sum(2)  # (B, 64)
    p_center = (-squared_distance / (2 * var)).softmax(1)  # p(c | x_t), by Bayes' rule
    return st / var * (xt - at * (p_center @ CENTERS))  # divided by s, and averaged over c
net = train(a, s, args.iters)
xt, st, eps = training_batch(a, s, 50_000)
lowest = nn.functional.mse_loss(best_eps(xt, st), eps)
ratio = nn.functional.mse_loss(net(torch.hstack([xt, st])), eps) / lowest

MAX_A = 0.06  # of a_T, the correlation of x and x_T. By chance, it is up to 4 / sqrt(5000) = 0.057
fig, axes = plt.subplot_mosaic("0123;4567;8888;9999", figsize=(10, 7.6),
                               height_ratios=[18, 18, 7, 1], layout="constrained")
fig.suptitle("t small steps (gray) end like one draw, $x_t = a_t x_0 + s_t \\epsilon$ (blue)")
*clouds, chart, bar = axes.values()
slider = plt.Slider(bar, "T steps", 10, 1000, valinit=args.T, valstep=1)

def draw_cloud(ax, points, track, color):  # 500 points, and the track that one of them takes
    ax.clear()
    ax.plot(*points[:500].T, ".", color=color)
    ax.plot(*track.T, "C1o-", mec="k", markevery=[-1])
    ax.set(xlim=[-3.5, 3.5], ylim=[-3.5, 3.5], box_aspect=1)
def draw(T):
    torch.manual_seed(args.seed)  # moving the slider back shows the same points
    a, s, path, ks = measure(T)
    x = path[0]
    for ax, ax_2, t in zip(clouds, clouds[4:], [0, T // 10, T // 4, T]):
        xt = a[t] * x + s[t] * torch.randn_like(x)
        draw_cloud(ax, path[t], path[:t + 1, 0], "0.6")
        draw_cloud(ax_2, xt, torch.stack([x[0], xt[0]]), "C3" if t == T and a[T] > MAX_A else "C0")
        ax.set_title(f"t = {t}\nvariance: {100 * a[t].item() ** 2:.3g}% data")
    clouds[4].set_ylabel(f"orange: one point\nred: over {100 * MAX_A**2:.2g}% data at T")
    chart.clear()
    chart.plot(ks, "k", [0, T], [MAX_KS, MAX_KS], "k--")
    chart.set(title=f"In the chain, eps fits N(0, 1) at {sum(ks < MAX_KS)} of {T} times",
              ylim=0, ylabel="KS distance", xlabel="t (dashed: limit of chance)")
draw(args.T)
slider.on_changed(lambda T: draw(int(T)))
fig.savefig("02_ddpm_forward.png", dpi=120)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "In the chain, eps is N(0, 1) at every t. Largest KS", ks[1:].max(), "<", MAX_KS)
claim("C2", "x_T is nearly noise. Its correlation with x", (path[0] * path[-1]).mean(), "<", MAX_A)
claim("C3", "The net's loss is within 10% of the lowest. Ratio", ratio, "<", 1.1)
print("figure: 02_ddpm_forward.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
