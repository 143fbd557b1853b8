# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 From the ELBO to L_simple: how a bound on the likelihood becomes a regression loss.

DDPM's likelihood is an integral that we can't compute, but it has a lower bound, the ELBO. This is
a sum of weighted squared errors of predicted noise. We train nets with and without the weights.

RUN    python 03_elbo.py                (6 seconds; the buttons select whose samples you see)
BREAK  python 03_elbo.py --target mean  (C1 fails, because this net's errors grow 100 times)
PAPER  arXiv 2006.11239, sections 2 and 3 (DDPM, by Ho et al.). We use its equation numbers."""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import RadioButtons
from torch import nn
from torch.distributions import MultivariateNormal, Normal

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--target", choices=["eps", "mean"], default="eps", help="of the net in C1")
parser.add_argument("--iters", type=int, default=700, help="of training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Data: two moons, as a mixture of 64 narrow Gaussians, so that p_data has a closed form
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), the upper half circle
CENTERS = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2), with variance 1, averaged over x and y
STD = 0.09 / 0.7107  # of each Gaussian
def two_moons(n):
    """Return n samples of p_data, of shape (n, 2)."""
    return CENTERS[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- The forward process q. One step is x_t = sqrt(alpha_t) x_{t-1} + sqrt(beta_t) z. All t steps
# are x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (4), where z and eps ~ N(0, I) (lesson 02).
T = 1000
BETA = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, T)])  # (T + 1,), for t = 0, ..., T
ALPHA = 1 - BETA
ABAR = ALPHA.cumprod(0)  # the paper's alpha-bar

# --- The ELBO. The model p draws x_T from N(0, I) and takes Gaussian steps p(x_{t-1} | x_t) to x_0.
# p(x_0) is an integral over x_1, ..., x_T. We write it as a mean over q. By Jensen's inequality,
#     log p(x_0) = log E_q[p(x_0, ..., x_T) / q(x_1, ..., x_T | x_0)] >= E_q[log(p / q)] = ELBO
# Bayes' rule turns q's steps back: q(x_t | x_{t-1}) is q(x_{t-1} | x_t, x_0) times the fraction
# q(x_t | x_0) / q(x_{t-1} | x_0). In the product, the fractions cancel, except for q(x_T | x_0). So
# -ELBO, the mean of log(q / p), sums up KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 1,
# -log p(x_0 | x_1), and a KL divergence for x_T that depends on no net (5).

# --- Each KL is a squared error. By (4), x_0 and x_t determine sqrt(1 - abar_t) eps, all the noise
# in x_t. It is a sum of independent Gaussians, and sqrt(beta_t) z, the last noise, is one of them.
# Given the sum, this part is Gaussian, and its mean is the sum times its fraction of the variance,
# beta_t / (1 - abar_t). So x_{t-1} = (x_t - sqrt(beta_t) z) / sqrt(alpha_t) is Gaussian, with mean
#     x_t / sqrt(alpha_t) - c_t eps,  where c_t = beta_t / sqrt(alpha_t (1 - abar_t))    (10)
# The model's step has this mean with eps_hat for eps, and variance beta_t (why: lesson 04). The KL
# of N(m, v I) and N(m', v' I) is |m - m'|^2 / (2 v') plus a constant (8). Here, this is
# w_t |eps - eps_hat|^2 plus a constant. So is -log p(x_0 | x_1), because at t = 1, (10) equals x_0.
C = BETA / (ALPHA * (1 - ABAR)).sqrt()  # (T + 1,), 0.006 to 0.02
WEIGHT = C**2 / (2 * BETA)  # w_t (12): w_1 is 0.5, w_100 and w_1000 are 0.01
def squared_error(net, x_0, t):
    """Return |eps - eps_hat|^2, (B,), of any net(x_t, t), for data x_0, (B, D), and t, (B, 1)."""
    eps = torch.randn_like(x_0)
    x_t = ABAR[t].sqrt() * x_0 + (1 - ABAR[t]).sqrt() * eps  # (B, D)
    return (net(x_t, t) - eps).square().sum(1)

# --- The bound. The constants are the same for every net and nearly so for all data, so an example
# gives their sum. For N(0, I), eps_hat = sqrt(1 - abar_t) x_t makes p the exact reverse of q, and
# the ELBO is log p(x_0). Its error is 2 abar_t in 2D. Another net gains w_t (2 abar_t - its error).
@torch.no_grad()
def elbo(net, x_0):
    """Return the ELBO in nats for data x_0, (n, 2), as T + 1 terms: that of N(0, I) and T gains."""
    t = 1 + WEIGHT[1:].multinomial(len(x_0), True)  # (n,), a step in proportion to w_t
    gain = 2 * ABAR[t] - squared_error(net, x_0, t[:, None])  # (n,)
    terms = torch.bincount(t, gain, T + 1) * WEIGHT[1:].sum() / len(x_0)  # (T + 1,)
    terms[0] = -2 * Normal(0, 1).entropy()  # which is -log(2 pi) - 1
    return terms  # with n = 200,000, another draw changes their sum by 0.03

@torch.no_grad()
def sample(net, x_t):  # turns noise x_t, (B, D), into samples
    for t in range(T, 0, -1):
        x_t = x_t / ALPHA[t].sqrt() - C[t] * net(x_t, t) + BETA[t].sqrt() * torch.randn_like(x_t)
    return x_t

class EpsNet(nn.Sequential):
    """Predict eps from x_t, (B, 2), and t, a number or (B, 1). If from_mean, predict the mean (10),
    and solve it for eps. This divides by c_t, so errors grow 50 to 160 times."""
    def __init__(self, from_mean=False, width=64):
        super().__init__(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                         nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
        self.from_mean = from_mean

    def forward(self, x_t, t):
        output = super().forward(torch.cat([x_t, torch.as_tensor(t / T).expand(len(x_t), 1)], 1))
        return (x_t / ALPHA[t].sqrt() - output) / C[t] if self.from_mean else output

# --- Training. For the ELBO, draw t in proportion to w_t. L_simple draws all t equally, so it cares
# less about small t, where noise is hardly visible. Ho et al. got better images that way (table 1).
def train(net, x_0, weight, iters, batch_size=256, lr=0.02):
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        t = 1 + weight.multinomial(batch_size, True)[:, None]  # (B, 1)
        loss = squared_error(net, x_0[torch.randint(len(x_0), (batch_size,))], t).mean()  # (14)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

torch.manual_seed(args.seed)
x_0, bound, samples = two_moons(200 * T), {}, {}
fitted = MultivariateNormal(x_0.mean(0), x_0.T.cov()).log_prob(x_0).mean()  # p_data has -1.58
fig, (chart, ax) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
color = {"eps": "tab:blue", "weighted": "tab:green", "mean": "tab:orange"}
for name, weight in zip(color, [torch.ones(T), WEIGHT[1:], torch.ones(T)]):
    torch.manual_seed(args.seed)  # the same start and noise for every net
    net = train(EpsNet(name == "mean"), two_moons(100_000), weight, args.iters)
    terms = elbo(net, x_0)
    bound[name], samples[name] = terms.sum(), sample(net, torch.randn(400, 2))
    color[name] = color[name] if bound[name] > fitted else "tab:red"
    chart.semilogx(terms.cumsum(0), color[name], label=f"{name}: {bound[name]:.2f}")
chart.axhline(fitted, color="black", ls=":", label=f"one Gaussian: {fitted:.2f} (red: below)")
chart.set(title="Bound if the net takes steps 1 to t", xlabel="t", ylabel="nats", ylim=(-5, -1))
chart.legend(loc="lower left")
def draw(name):
    ax.clear()
    ax.scatter(*CENTERS.T, 200, "0.8")
    ax.scatter(*samples[name].T, 9, color[name])
    ax.set(title=f"{name}: {bound[name] - fitted:+.1f} nats to one Gaussian (gray: data)", aspect=1)
    ax.axis([-3, 3, -2, 2])
    fig.canvas.draw_idle()
radio = RadioButtons(plt.axes([0.88, 0.7, 0.09, 0.2]), list(bound))
radio.on_clicked(draw)
radio.set_active(list(bound).index(args.target))  # this calls draw
fig.savefig("03_elbo.png", dpi=120)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", f"Predicting {args.target} beats one Gaussian. Bound", bound[args.target], ">", fitted)
claim("C2", "Training with the weights raises the bound", bound["weighted"], ">", bound["eps"])
print("figure: 03_elbo.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
