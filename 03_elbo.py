# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 From the ELBO to L_simple: how a bound on the likelihood becomes a regression loss.

DDPM's likelihood can't be computed, but its lower bound can: a constant minus squared errors.

RUN    python 03_elbo.py             (6 seconds; the slider sets t, from data to noise)
BREAK  python 03_elbo.py --iters 20  (C1 fails, because the net predicts the noise badly)
PAPER  arXiv 2006.11239, sections 2 and 3 (DDPM, by Ho et al.). We use its equation numbers."""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--iters", type=int, default=700, help="per net (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Data: two moons, as a mixture of 64 narrow Gaussians, so that p_data has a closed form
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), the upper half circle
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), so that the mean |x|^2 is 2, as in N(0, I)
STD = 0.09 / 0.7107  # of each Gaussian

def two_moons(n):
    """Return n samples of p_data, of shape (n, 2)."""
    return CENTERS[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- The forward process q takes steps x_t = sqrt(alpha_t) x_{t-1} + sqrt(beta_t) z (2). All t
# steps together are x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (4; lesson 02). z, eps ~ N(0, I).
T = 1000
BETA = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, T)])  # (T + 1,), for t = 0, ..., T
ALPHA = 1 - BETA
ABAR = ALPHA.cumprod(0)  # the paper's alpha-bar
NOISE = (1 - ABAR).sqrt()  # (T + 1,), how much eps there is in x_t

# --- The model p draws x_T from N(0, I), and takes Gaussian steps p(x_{t-1} | x_t) back to x_0.
# Its likelihood p(x_0) is an integral over x_1, ..., x_T, or equally an expectation under q:
#     p(x_0) = E_q[p(x_0, ..., x_T) / q(x_1, ..., x_T | x_0)]
# By Jensen's inequality, the log of a mean is at least the mean of the log:
#     log p(x_0) >= E_q[log p(x_0, ..., x_T) - log q(x_1, ..., x_T | x_0)] = ELBO

# Both are products of steps back. (Given x_t, the later x say nothing more about x_{t-1}.)
#     p =  p(x_T)        p(x_{T-1} | x_T)       ...  p(x_1 | x_2)       p(x_0 | x_1)
#     q =  q(x_T | x_0)  q(x_{T-1} | x_T, x_0)  ...  q(x_1 | x_2, x_0)  1
# In each column but the last, E_q[log p - log q] is minus a KL divergence, KL_t in column t (5):
#  ELBO =  nearly 0      - KL_T                 ...  - KL_2             + E_q[log p(x_0 | x_1)]

# --- The true step. By Bayes' rule, q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) times
# q(x_{t-1} | x_0). Both are Gaussians in x_{t-1}. By (2) and (4), they have
#     the mean x_t / sqrt(alpha_t)                              and the variance beta_t / alpha_t
#     the mean (x_t - sqrt(1 - abar_t) eps) / sqrt(alpha_t)     and the variance 1 - abar_{t-1}
# The mean of a product weights each mean by the other variance. Both variances add up to
# (1 - abar_t) / alpha_t, so the second mean has the weight beta_t / (1 - abar_t), and we get
#     x_t / sqrt(alpha_t) - c_t * eps  with  c_t = beta_t / sqrt(alpha_t (1 - abar_t))        (10)
C = BETA / (ALPHA.sqrt() * NOISE)  # (T + 1,), 0.006 to 0.02 (C[0] is 0 / 0, but never used)

# --- The model's step has this mean, but with a net's guess eps_hat. Its variance is beta_t, which
# is exact for data from N(0, I). For two Gaussians with fixed variances, and means m and m',
#     KL_t = |m - m'|^2 / (2 beta_t) + constant
#          = w_t * |eps - eps_hat|^2 + constant,  where w_t = c_t^2 / (2 beta_t)            (12)
# At t = 1, (10) takes out all the noise and is x_0, so -log p(x_0 | x_1) has this form, too.
WEIGHT = C[1:] ** 2 / (2 * BETA[1:])  # (T,), w_t for t = 1, ..., T

# --- So ELBO = constant - sum of w_t * (mean error at t). We estimate the sum by drawing t with
# probability w_t / sum(w), and multiplying by sum(w). L_simple (14) draws all t equally. It gives a
# lower ELBO but better images (table 1), as w_t is largest at small t, where noise is hardly seen.
def squared_error(net, x_0, weight):
    """Return |eps - net(x_t, t)|^2, (B,), for data x_0, (B, D), and t drawn by weight, (T,)."""
    t = 1 + weight.multinomial(len(x_0), replacement=True)[:, None]  # (B, 1)
    eps = torch.randn_like(x_0)
    x_t = ABAR[t].sqrt() * x_0 + NOISE[t] * eps  # (B, D), equation 4
    return (eps - net(x_t, t)).square().sum(1)

# --- The constants are the same for all nets, so we compare with one whose ELBO we know. If eps_hat
# is sqrt(1 - abar_t) x_t, then (10) is sqrt(alpha_t) x_t. So the model starts at N(0, I), and stays
# there. It reverses q exactly for such data, so its ELBO is log N(x_0; 0, I). On average over the
# moons, log p_data(x_0) is 1.26 nats higher (by its closed form), and no model can gain more.
def elbo_gain(net, x_0):  # nats (natural log) above this model, averaged over data x_0, (n, D)
    normal = squared_error(lambda x_t, t: NOISE[t] * x_t, x_0, WEIGHT)  # (n,)
    return WEIGHT.sum() * (normal - squared_error(net, x_0, WEIGHT)).mean()  # t is drawn by w_t

def train(net, weight, iters, batch_size=512, lr=0.04):
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        loss = squared_error(net, two_moons(batch_size), weight).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss after {iters} iterations: {loss:.4f}")
    return net.requires_grad_(False)  # trained
def sample(net, x_t):  # from noise x_T, (B, D); returns x_0, ..., x_T, (T + 1, B, D)
    path = [x_t]
    for t in range(T, 0, -1):
        eps_hat = net(x_t, torch.full((len(x_t), 1), t))
        mean = x_t / ALPHA[t].sqrt() - C[t] * eps_hat  # equation 10
        x_t = mean + BETA[t].sqrt() * torch.randn_like(x_t)
        path.append(x_t)
    return torch.stack(path[::-1])
class EpsNet(nn.Sequential):  # x_t, (B, 2), and t, (B, 1), to eps_hat, (B, 2)
    def __init__(self, width=64):
        super().__init__(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                         nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    def forward(self, x_t, t):
        return super().forward(torch.hstack([x_t, NOISE[t]]))

# --- Why eps? A net could output the mean, and we solve (10) for eps_hat. But dividing by c_t
# multiplies the net's error by 50 to 160. To know eps to 0.1, it must know the mean to 0.001.
# Our small net can't, and its samples blur or diverge. A large net can (table 2).
class MeanNet(EpsNet):
    def forward(self, x_t, t):
        return (x_t / ALPHA[t].sqrt() - super().forward(x_t, t)) / C[t]

fig, axes = plt.subplots(1, 3, figsize=(15, 5.2), gridspec_kw={"left": 0.03, "right": 0.99})
fig.suptitle("Gray: data. Nats: ELBO minus that of the model N(0, I), at most +1.26. Red: below 0")
names = ["eps, loss L_simple", "eps, loss ELBO", "the mean, loss ELBO"]
runs = zip(axes, names, [EpsNet, EpsNet, MeanNet], [torch.ones(T), WEIGHT, WEIGHT])
gains, paths = [], []
for ax, name, Net, weight in runs:
    torch.manual_seed(args.seed)  # the same start and noise for every net
    net = train(Net(), weight, args.iters)
    gains.append(elbo_gain(net, two_moons(200_000)))
    paths.append(sample(net, torch.randn(400, 2)))
    ax.plot(*two_moons(2000).T, ".", color="0.8")
    ax.plot(*paths[-1][0].T, ".", color="tab:blue" if gains[-1] > 0 else "tab:red")
    ax.set(title=f"Predicts {name}: {gains[-1]:+.2f} nats", xlim=(-3, 3), ylim=(-2, 2))
def draw(t):
    for ax, path in zip(axes, paths):
        ax.lines[1].set_data(*path[int(t)].T)
slider = plt.Slider(plt.axes([0.3, 0.01, 0.4, 0.03]), "t of the samples  ", 0, T, valstep=1)
slider.on_changed(draw)
fig.savefig("03_elbo.png", dpi=120)
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Predicting eps beats N(0, I). Nats gained", gains[0], ">", 0)
claim("C2", "Training with the weights gains more", gains[1], ">", gains[0])
claim("C3", "Predicting the mean falls below N(0, I)", gains[2], "<", 0)
print("figure: 03_elbo.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
