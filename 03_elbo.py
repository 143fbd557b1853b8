# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 From the ELBO to L_simple: how a bound on the likelihood becomes a regression loss.

DDPM's likelihood is an integral that we can't compute, but it has a lower bound, the ELBO. This is
a sum of weighted squared errors of predicted noise. We train nets with and without the weights.

RUN    python 03_elbo.py             (6 seconds; the slider turns noise into samples)
BREAK  python 03_elbo.py --iters 50  (C1 fails, because the net predicts the noise badly)
PAPER  arXiv 2006.11239, sections 2 and 3 (DDPM, by Ho et al.). We use its equation numbers."""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--iters", type=int, default=700, help="per training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Data: two moons, as a mixture of 64 narrow Gaussians, so that p_data has a closed form
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), the upper half circle
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), divided by the std of the data
STD = 0.09 / 0.7107  # of each Gaussian
def two_moons(n):
    """Return n samples of p_data, of shape (n, 2)."""
    return CENTERS[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- The forward process q. One step is x_t = sqrt(alpha_t) x_{t-1} + sqrt(beta_t) z (2). The first
# t steps give x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (4), with z, eps ~ N(0, I) (lesson 02).
T = 1000
BETA = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, T)])  # (T + 1,), for t = 0, ..., T
ALPHA = 1 - BETA
ABAR = ALPHA.cumprod(0)  # the paper's alpha-bar
NOISE = (1 - ABAR).sqrt()  # (T + 1,), how much eps there is in x_t

# --- The ELBO. The model p draws x_T from N(0, I) and takes Gaussian steps p(x_{t-1} | x_t) to x_0.
# p(x_0) is an integral over x_1, ..., x_T. We write it as a mean over q. By Jensen's inequality,
#     log p(x_0) = log E_q[p(x_0, ..., x_T) / q(x_1, ..., x_T | x_0)] >= E_q[log(p / q)] = ELBO
# By the chain rule of probability, both p and q are products of steps, from x_T down:
#     p = p(x_T)        p(x_{T-1} | x_T)       ...  p(x_1 | x_2)       p(x_0 | x_1)
#     q = q(x_T | x_0)  q(x_{T-1} | x_T, x_0)  ...  q(x_1 | x_2, x_0)
# In each column, the mean of log(q / p) is a KL divergence. The first is nearly 0, because x_T is
# nearly N(0, I). So -ELBO is the sum of the other KLs, and of -log p(x_0 | x_1) (5).

# --- Each KL is a squared error. By Bayes' rule, q(x_{t-1} | x_t, x_0) is a Gaussian (lesson 04).
# Its variance is beta_t (1 - abar_{t-1}) / (1 - abar_t). In terms of x_t and eps (4), its mean is
#     x_t / sqrt(alpha_t) - c_t eps,  where c_t = beta_t / sqrt(alpha_t (1 - abar_t))    (10)
# The model uses a net's eps_hat instead, and variance beta_t (why: lesson 04). In D dimensions,
#     KL(N(m, v I) || N(m', v' I)) = |m - m'|^2 / (2 v') + D / 2 (v / v' - 1 - log(v / v'))
# Here, |m - m'| is c_t |eps - eps_hat|. So the KL is w_t |eps - eps_hat|^2 plus a constant, where
# w_t = c_t^2 / (2 beta_t) (12). -log p(x_0 | x_1) has the same form, as (10) equals x_0 at t = 1.
C = BETA / (ALPHA.sqrt() * NOISE)  # (T + 1,), 0.006 to 0.02
WEIGHT = C[1:] ** 2 / (2 * BETA[1:])  # (T,), w_t for t = 1, ..., T
RATIO = (1 - ABAR[1:-1]) / (1 - ABAR[2:])  # (T - 1,), v / v' for t = 2, ..., T
CONSTANT = (RATIO - 1 - RATIO.log()).sum() + (2 * torch.pi * BETA[1]).log()  # for D = 2

# --- To estimate the sum of w_t times the error, draw t in proportion to w_t, and multiply the mean
# error by the sum of w_t. L_simple (14) draws all t equally (Ho et al., table 1: better images).
def squared_error(net, x_0, weight):
    """Return |eps - eps_hat|^2, (B,), of net(x_t, t), for data (B, D) and t drawn by weight."""
    t = 1 + weight.multinomial(len(x_0), True)[:, None]  # (B, 1)
    eps = torch.randn_like(x_0)
    x_t = ABAR[t].sqrt() * x_0 + NOISE[t] * eps  # (B, D)
    return (eps - net(x_t, t)).square().sum(1)

@torch.no_grad()
def elbo(net, x_0):
    """Estimate the ELBO of any net(x_t, t) in nats, averaged over data x_0, (n, 2)."""
    return -WEIGHT.sum() * squared_error(net, x_0, WEIGHT).mean() - CONSTANT

def train(net, weight, iters, batch_size=512, lr=0.04):
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        loss = squared_error(net, two_moons(batch_size), weight).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

@torch.no_grad()
def sample(net, x_t):
    """Turn noise x_t, (B, D), into samples, step by step. Return x_T, ..., x_0 as a list."""
    path = [x_t]
    for t in range(T, 0, -1):
        mean = path[-1] / ALPHA[t].sqrt() - C[t] * net(path[-1], t)
        path.append(mean + BETA[t].sqrt() * torch.randn_like(x_t))
    return path

# --- Why eps? If the output is the mean (10), we divide by c_t, so errors grow 50 to 160 times.
class EpsNet(nn.Sequential):
    """Return eps_hat, (B, 2), for x_t, (B, 2), and t, a number or (B, 1). Its input is NOISE[t]."""
    def __init__(self, target="eps", width=64):
        super().__init__(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                         nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
        self.target = target
    def forward(self, x_t, t):
        output = super().forward(torch.cat([x_t, NOISE[t].expand(len(x_t), 1)], 1))
        return output if self.target == "eps" else (x_t / ALPHA[t].sqrt() - output) / C[t]

covariance = CENTERS.T.cov(correction=0) + STD**2 * torch.eye(2)  # of p_data
gaussian = -(2 * torch.pi * torch.e * covariance).logdet() / 2  # minus a Gaussian's entropy
fig, ((chart, ax_1), (ax_2, ax_3)) = plt.subplots(2, 2, figsize=(12, 8))
chart.loglog(range(1, T + 1), WEIGHT)
chart.axhline(WEIGHT.mean(), color="black")
chart.set(title="Small t (left) count most in the ELBO", ylabel="nats per squared error at t")
chart.legend(["ELBO: w_t", "L_simple: equal weights"])
setups = [(ax_1, "eps", "L_simple"), (ax_2, "eps", "ELBO"), (ax_3, "mean", "L_simple")]
weights = {"L_simple": torch.ones(T), "ELBO": WEIGHT}
bounds, paths, dots = [], [], []
for ax, target, loss in setups:
    torch.manual_seed(args.seed)  # the same start and noise for every net
    net = train(EpsNet(target), weights[loss], args.iters)
    bounds.append(elbo(net, two_moons(200_000)))
    paths.append(sample(net, torch.randn(400, 2)))
    color = "tab:blue" if bounds[-1] > gaussian else "tab:red"
    ax.plot(*CENTERS.T, "o", color="0.85", ms=15)
    dots += ax.plot(*paths[-1][T].T, ".", color=color)
    ax.set(title=f"{target}, loss {loss}: {bounds[-1]:.2f} nats", xlim=(-3, 3), ylim=(-2, 2))
distance = torch.cdist(two_moons(200_000), CENTERS) / STD  # (n, 64), in standard deviations
p_data = (-(distance**2) / 2).exp().mean(1) / (2 * torch.pi * STD**2)
fig.suptitle(f"ELBO. Best possible: {p_data.log().mean():.2f}. One Gaussian: {gaussian:.2f} nats\n"
             "Gray: data. Red: samples of a net with an ELBO below one Gaussian's")
def draw(num_steps):
    for line, path in zip(dots, paths):
        line.set_data(*path[num_steps].T)
slider = plt.Slider(plt.axes([0.3, 0.01, 0.4, 0.03]), "steps taken", 0, T, valinit=T, valstep=10)
slider.on_changed(draw)
fig.savefig("03_elbo.png", dpi=120)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Predicting eps beats one Gaussian. ELBO", bounds[0], ">", gaussian)
claim("C2", "Training with the weights raises the ELBO", bounds[1], ">", bounds[0])
claim("C3", "Predicting the mean fails. ELBO below one Gaussian", bounds[2], "<", gaussian)
print("figure: 03_elbo.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
