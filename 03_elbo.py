# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 From the ELBO to L_simple: how a bound on the likelihood becomes a regression loss.

DDPM's likelihood can't be computed, but its lower bound can: a constant minus squared errors.
RUN    python 03_elbo.py                 (7 seconds; the slider adds errors to each step's mean)
BREAK  python 03_elbo.py --predict mean  (C1 fails, because small errors of the mean cost a lot)
PAPER  arXiv 2006.11239, sections 2 and 3 (DDPM, by Ho et al.). We use its equation numbers."""
import argparse, math, signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--predict", choices=["eps", "mean"], default="eps", help="default: eps")
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

# --- The forward process q takes steps x_t = sqrt(alpha_t) x_{t-1} + sqrt(beta_t) z (2). The first
# t combine into x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (4; lesson 02). z, eps ~ N(0, I).
T = 1000
BETA = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, T)])  # (T + 1,), for t = 0, ..., T
ALPHA = 1 - BETA
ABAR = ALPHA.cumprod(0)  # the paper's alpha-bar
NOISE = (1 - ABAR).sqrt()  # (T + 1,), how much eps there is in x_t

# --- The model p draws x_T from N(0, I), and takes Gaussian steps p(x_{t-1} | x_t) back to x_0.
# Its likelihood is an integral over x_1, ..., x_T, which is also an expectation under q:
#     p(x_0) = E_q[p(x_0, ..., x_T) / q(x_1, ..., x_T | x_0)]
# By Jensen's inequality, the log of a mean is at least the mean of the log:
#     log p(x_0) >= E_q[log p(x_0, ..., x_T) - log q(x_1, ..., x_T | x_0)] = ELBO
# The chain rule of probability factors both backward. (q is Markov: given x_t, no later x matters.)
#     p =    p(x_T)        p(x_{T-1} | x_T)       ...  p(x_1 | x_2)       p(x_0 | x_1)
#     q =    q(x_T | x_0)  q(x_{T-1} | x_T, x_0)  ...  q(x_1 | x_2, x_0)
# In a column with both, the mean of log q - log p is a mean KL divergence, KL_t for x_t's step (5):
#     ELBO = nearly 0      - KL_T                 ...  - KL_2             + E_q[log p(x_0 | x_1)]

# --- The true step. By Bayes' rule, q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) times
# q(x_{t-1} | x_0). Both are Gaussians in x_{t-1}. By (2), the first one has the mean and variance
#     m  = x_t / sqrt(alpha_t)                            v  = beta_t / alpha_t
# By (4) at t - 1, with x_0 from (4) at t, and with abar_t = alpha_t abar_{t-1}, the second one has
#     m' = (x_t - sqrt(1 - abar_t) eps) / sqrt(alpha_t)   v' = 1 - abar_{t-1}
# The product of two Gaussians is a Gaussian with the mean (m / v + m' / v') / (1 / v + 1 / v')
#     = m - (m - m') * v / (v + v')        (Here, v + v' = (1 - abar_t) / alpha_t.)
#     = x_t / sqrt(alpha_t) - c_t * eps    where c_t = beta_t / sqrt(alpha_t (1 - abar_t))     (10)
C = BETA / (ALPHA.sqrt() * NOISE)  # (T + 1,), 0.006 to 0.02 (C[0] is 0 / 0, but never used)

# --- The model's step has this mean, but with a net's guess eps_hat, and a fixed variance, beta_t:
#     KL_t = |difference of the means|^2 / (2 beta_t) + constant
#          = w_t * |eps - eps_hat|^2 + constant    where w_t = c_t^2 / (2 beta_t)              (12)
# The last term has this form, too: as abar_1 = alpha_1, (10) at t = 1 is x_0, with the true eps. So
# -log p(x_0 | x_1) = |x_0 - mean|^2 / (2 beta_1) + constant = w_1 * |eps - eps_hat|^2 + constant.
WEIGHT = C[1:] ** 2 / (2 * BETA[1:])  # (T,), w_t for t = 1, ..., T

# --- So ELBO = constant - sum over t of w_t * E|eps - eps_hat|^2. To train on it, we draw t with
# probability w_t / sum(w). L_simple (14) draws all t equally, so it gives less weight to small t,
# where x_t is hardly noisy. Its ELBO is lower, but its images are better (table 1).
def squared_error(net, x_0, eps, t):  # for data x_0 and noise eps, (B, D), and t, (B, 1)
    x_t = ABAR[t].sqrt() * x_0 + NOISE[t] * eps  # (B, D), equation 4
    return (eps - net(x_t, t)).square().sum(1)  # (B,)

def train(net, weight, iters, batch_size=512, lr=0.04):
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        t = 1 + weight.multinomial(batch_size, replacement=True)[:, None]  # (B, 1)
        loss = squared_error(net, two_moons(batch_size), torch.randn(batch_size, 2), t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 200 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net.requires_grad_(False)  # trained

# --- Why eps? A net could output the mean instead, and (10) gives eps_hat. But the mean is nearly
# x_t, and eps enters it only with the factor c_t, about 0.01. So the division by c_t multiplies the
# net's error by 50 to 160. Our small net is not that accurate, at any of 1000 steps.
class Net(nn.Sequential):  # x_t, (B, 2), and t, (B, 1), to eps_hat, (B, 2)
    def __init__(self, predict, width=64):
        super().__init__(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                         nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
        self.predict = predict
    def forward(self, x_t, t):
        output = super().forward(torch.hstack([x_t, NOISE[t]]))
        return output if self.predict == "eps" else (x_t / ALPHA[t].sqrt() - output) / C[t]

# --- To drop the constant, we compare with a model whose ELBO we know: eps_hat = NOISE[t] x_t. Then
# (10) is sqrt(alpha_t) x_t, so p steps back as q steps forward. From N(0, I), such steps are alike
# in both directions. So p = N(x_0) q(x_1, ..., x_T | x_0), and its ELBO is log N(x_0).
def elbo_gain(net, x_0):  # data (n * T, D); returns the nats gained at t = 1, ..., T, (T,)
    t = 1 + torch.arange(len(x_0))[:, None] % T  # (n * T, 1), n times 1 to T
    eps = torch.randn_like(x_0)
    normal = squared_error(lambda x_t, t: NOISE[t] * x_t, x_0, eps, t)  # (n * T,)
    gain = normal - squared_error(net, x_0, eps, t)
    return WEIGHT * gain.view(-1, T).mean(0)
x = two_moons(200 * T)  # on average, no model gains more than log p_data(x) - log N(x)
log_p = (-torch.cdist(x, CENTERS) ** 2 / (2 * STD**2)).logsumexp(1) - math.log(64 * STD**2)
best = (log_p + x.square().sum(1) / 2).mean()  # log(2 pi), a part of both, cancels

fig, (top, low) = plt.subplots(2, figsize=(10, 7.5), layout="constrained")
steps = range(1, T + 1)
top.loglog(steps, WEIGHT / WEIGHT.mean(), steps, torch.ones(T))
top.legend(["ELBO: $w_t$, divided by its mean", "L_simple: no weights"])
top.set(title="The ELBO weighs errors most at small t", ylabel="weight of |eps - eps_hat|$^2$")
gains = []
for target, loss in [(args.predict, "ELBO"), (args.predict, "L_simple"), ("mean", "ELBO")]:
    torch.manual_seed(args.seed)  # the same start for every net
    net = train(Net(target), WEIGHT if loss == "ELBO" else torch.ones(T), args.iters)
    gains.append((f"predicts {target}, loss {loss}", elbo_gain(net, two_moons(200 * T))))
def draw(error):  # std of noise in both coordinates of a mean, which costs 2 error^2 / (2 beta_t)
    low.clear()
    low.axhline(best, color="0.5", ls=":", label=f"best possible: {best:.2f}")
    low.axhline(0, color="k", label="N(0, I): 0 (red ends below)")
    for k, (key, gain) in enumerate(gains):
        nats = (gain - error**2 / BETA[1:]).cumsum(0)  # (T,)
        low.semilogx(steps, nats, f"C{k}" if nats[-1] > 0 else "C3", label=f"{key}: {nats[-1]:.2f}")
    low.set(title="The net that predicts the mean ends below N(0, I)", ylim=[-3, 1.5],
            xlabel="t (90% are beyond 100)\n\n", ylabel="nats gained up to t")
    low.legend(loc="lower left")
slider = plt.Slider(plt.axes([0.4, 0, 0.4, 0.04]), "random error of each mean", 0, 0.003, valinit=0)
slider.on_changed(draw)
draw(0)
fig.savefig("03_elbo.png", dpi=120)
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
weighted, simple, mean = [gain.sum() for _, gain in gains]
claim("C1", f"Predicting {args.predict} beats N(0, I). Nats gained", simple, ">", 0)
claim("C2", "Training with the weights gains more", weighted, ">", simple)
claim("C3", "Predicting the mean falls below N(0, I)", mean, "<", 0)
print("figure: 03_elbo.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
