# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 From the ELBO to L_simple: how a bound on the likelihood becomes a regression loss.

DDPM's likelihood can't be computed, but its lower bound can: a constant minus squared errors.

RUN    python 03_elbo.py             (6 seconds; the slider switches between the nets)
BREAK  python 03_elbo.py --iters 50  (C1 fails, because the net predicts the noise badly)
PAPER  arXiv 2006.11239, sections 2 and 3 (DDPM, by Ho et al.). We use its equation numbers."""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import distributions, nn

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
# p(x_0) is an integral over x_1, ..., x_T, or the mean of p / q over q. By Jensen's inequality,
#     log p(x_0) = log E_q[p(x_0, ..., x_T) / q(x_1, ..., x_T | x_0)] >= E_q[log(p / q)] = ELBO
# By the chain rule, both are products from x_T down (q is Markov: given x_t, later x add nothing):
#     p = p(x_T)        p(x_{T-1} | x_T)       ...  p(x_1 | x_2)       p(x_0 | x_1)
#     q = q(x_T | x_0)  q(x_{T-1} | x_T, x_0)  ...  q(x_1 | x_2, x_0)
# In each column but the last, the mean of log(q / p) is a KL divergence, nearly 0 in the first. So
# -ELBO is the sum of the other KLs, plus the mean of -log p(x_0 | x_1) (5).

# --- Bayes' rule: q(x_{t-1} | x_t, x_0) is q(x_t | x_{t-1}) q(x_{t-1} | x_0) up to a factor. Both
# are Gaussians in x_{t-1}, with means x_t / sqrt(alpha_t) (2) and sqrt(abar_{t-1}) x_0 (4), and
# variances beta_t / alpha_t and 1 - abar_{t-1}. Inverse variances add up, and weight the means:
#     v_t = 1 / (alpha_t / beta_t + 1 / (1 - abar_{t-1})) = beta_t (1 - abar_{t-1}) / (1 - abar_t)
#     mean = v_t (sqrt(alpha_t) x_t / beta_t + sqrt(abar_{t-1}) x_0 / (1 - abar_{t-1}))
# Put in x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t), from (4), and collect x_t and eps:
#     mean = x_t / sqrt(alpha_t) - c_t eps,  where c_t = beta_t / sqrt(alpha_t (1 - abar_t))  (10)
C = BETA / (ALPHA.sqrt() * NOISE)  # (T + 1,), 0.006 to 0.02 (C[0] is 0 / 0, but never used)

# --- Each KL is a squared error. The model's step has mean (10), with a net's eps_hat. It doesn't
# know x_0, so it is wider: its variance is beta_t, exact for data from N(0, I). In D dimensions,
#     KL(N(m, v I) || N(m', v' I)) = |m - m'|^2 / (2 v') + D / 2 (v / v' - 1 - log(v / v'))
# As |m - m'| = c_t |eps - eps_hat|, the first term is w_t |eps - eps_hat|^2, w_t = c_t^2 / (2 v')
# (12). At t = 1, (10) is x_0, so -log p(x_0 | x_1) has this term, too, plus D / 2 log(2 pi beta_1).
WEIGHT = C[1:] ** 2 / (2 * BETA[1:])  # (T,), w_t for t = 1, ..., T
RATIO = (NOISE[1:-1] / NOISE[2:]) ** 2  # (T - 1,), v / v' = v_t / beta_t for t = 2, ..., T
CONSTANT = (RATIO - 1 - RATIO.log()).sum() + (2 * torch.pi * BETA[1]).log()  # the rest, over D / 2

# --- To estimate the sum of w_t times the error, draw t in proportion to w_t, and multiply the mean
# error by the sum of w_t. L_simple (14) draws all t equally. Its ELBO is lower, but its images are
# better (table 1). Ho et al. say why: it puts more weight on the hard, noisy t, which shape images.
def squared_error(net, x_0, weight):  # (B,), of net(x_t, t), for data (B, D) and t drawn by weight
    t = 1 + weight.multinomial(len(x_0), True)[:, None]  # (B, 1), drawn with replacement
    eps = torch.randn_like(x_0)
    x_t = ABAR[t].sqrt() * x_0 + NOISE[t] * eps  # (B, D)
    return (eps - net(x_t, t)).square().sum(1)
@torch.no_grad()
def elbo(net, x_0):  # of any net(x_t, t), in nats (natural log), averaged over data x_0, (n, D)
    return -WEIGHT.sum() * squared_error(net, x_0, WEIGHT).mean() - x_0.shape[1] / 2 * CONSTANT

def train(net, weight, iters, batch_size=512, lr=0.04):
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        loss = squared_error(net, two_moons(batch_size), weight).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss after {iters} iterations: {loss:.4f}")
    return net

@torch.no_grad()
def sample(net, x_t):  # turns noise x_T, (B, D), into samples x_0
    for t in range(T, 0, -1):
        mean = x_t / ALPHA[t].sqrt() - C[t] * net(x_t, t)
        x_t = mean + BETA[t].sqrt() * torch.randn_like(x_t)
    return x_t

# --- Why eps? If a net outputs the mean, its error is divided by c_t, and grows 50 to 160 times.
class EpsNet(nn.Sequential):  # x_t, (B, 2), and t, a number or (B, 1), to eps_hat, (B, 2)
    def __init__(self, target="eps", width=64):
        super().__init__(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                         nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
        self.target = target
    def forward(self, x_t, t):  # it sees t as NOISE[t]
        output = super().forward(torch.hstack([x_t, NOISE[t].expand(len(x_t), 1)]))
        return output if self.target == "eps" else (x_t / ALPHA[t].sqrt() - output) / C[t]

bounds, samples = [], []
for target, weight in [("eps", torch.ones(T)), ("eps", WEIGHT), ("mean", WEIGHT)]:
    torch.manual_seed(args.seed)  # the same start and noise for every net
    net = train(EpsNet(target), weight, args.iters)
    bounds.append(elbo(net, two_moons(200_000)))
    samples.append(sample(net, torch.randn(400, 2)).T)
data = two_moons(200_000)
exponent = -(torch.cdist(data, CENTERS) / STD) ** 2 / 2  # (n, 64), of p_data's Gaussians
best = (exponent.exp().mean(1) / (2 * torch.pi * STD**2)).log().mean()  # the maximum, as KL >= 0
gaussian = distributions.MultivariateNormal(data.mean(0), data.T.cov()).log_prob(data).mean()
colors = ["tab:blue" if bound > gaussian else "tab:red" for bound in bounds]
fig, (chart, bars, cloud) = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
chart.loglog(range(1, T + 1), WEIGHT / WEIGHT.sum())
chart.axhline(1 / T, color="black")
chart.set(title="Probability to draw t. Blue: ELBO\nBlack: L_simple, all equally", xlabel="t")
names = ["1 predicts eps\nloss L_simple", "2 predicts eps\nloss ELBO", "3 predicts mean\nloss ELBO"]
columns = bars.bar(names, [(best - bound).item() for bound in bounds], color=colors)
bars.bar_label(columns, fmt="%.2f")
bars.axhline(best - gaussian, color="black")
bars.set(title=f"Loss ELBO gains {bounds[1] - bounds[0]:.2f} nats\nLine: one Gaussian. Red: worse",
         ylabel=f"nats below the best possible ({best:.2f})")
cloud.plot(*data[:2000].T, ".", color="0.8")
(dots,) = cloud.plot(*samples[0], ".", color=colors[0])
cloud.set(title="Gray: data. Dots: samples\nof the net on the slider")
def draw(net_number):
    i = int(net_number) - 1
    dots.set(data=samples[i], color=colors[i])
slider = plt.Slider(plt.axes([0.75, 0.01, 0.15, 0.03]), "net  ", 1, 3, valstep=1)
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
