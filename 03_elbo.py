# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""03 From a bound to a loss: a net that finds the noise is a model of the data.
Lesson 02's x_t = a x + s eps, divided by a, is y_t = x + sigma eps: data, blurred by noise of std
sigma. Each of 1000 steps adds new noise, u, until sigma is 157. A model walks back: it draws y_1000
from a Gaussian of std 157; then each step subtracts u_hat, a net's guess of u from y_t and t, and
adds fresh noise. Its density p(x) is out of reach, but log p(x) has a lower bound, the ELBO: a
constant minus the mean of w |eps - eps_hat|^2, summed over t. DDPM drops w (L_simple): small t,
where w is large and noise hardly visible, counts less. It reports better pictures (not shown here).
C1 Trained without w, a net has a bound above the log-likelihood of one Gaussian fitted to the data.
C2 With w its bound is higher. C3 Asked for the mean of y_(t-1) instead of eps, it has a lower one.
RUN    python 03_elbo.py                (7 seconds; drag t to see the walks)
BREAK  python 03_elbo.py --target mean  C1's net learns the mean, too: C1 fails, and C3, a tie
PAPER  Ho, Jain, Abbeel 2020 (DDPM), arXiv 2006.11239, equations 5 to 14 and table 2"""
import argparse
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal
# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--target", choices=["eps", "mean"], default="eps", help="mean breaks it")
parser.add_argument("--iters", type=int, default=700, help="of each net (%(default)s); 50: blurry")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if args.iters < 1 or args.seed < 0:
    parser.error("--iters must be 1 or more, --seed 0 or more")
torch.set_num_threads(1)  # nets this small are fastest on one core

# --- data
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2); the lower moon is -MOON
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2); the samples' std, both axes pooled, is 1 now
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each of the 64 places
def two_moons(n):
    """n samples of p_data, (n, 2)."""
    return MU[torch.randint(64, (n,))] + STD * torch.randn(n, 2)

# --- method
BETA = torch.linspace(1e-4, 0.02, 1000)  # lesson 02: step t leaves 1 - beta of a^2
A = torch.cat([torch.ones(1), (1 - BETA).cumprod(0).sqrt()])[:, None]  # (1001, 1), t = 0 .. 1000
SIGMA = (1 / A**2 - 1).sqrt()  # (1001, 1), = s / a, as s^2 = 1 - a^2; grows from 0 to 157
VAR = (SIGMA**2).diff(dim=0, prepend=torch.zeros(1, 1))  # (1001, 1), of u in y_t = y_(t-1) + u

# The step. The chain adds u ~ N(0, var). All the noise in y_t, sigma eps, is a sum of independent
# Gaussians, of which u is one. E[part | sum] is the part's share of the variance, times the sum:
#     E[u | x, y_t] = var / sigma^2 * sigma eps = var / sigma * eps,  so to guess eps is to guess u.
# Given y_t alone, u has the density N(0, var) times that of y_(t-1) = y_t - u, whose log is nearly
# linear over one step: the Gaussian is only shifted. So the model subtracts a u from N(u_hat, var).
def walk_back(eps_net, yt):  # from y_1000 (n, 2) to y_0, the samples: a list of 1001 (n, 2)
    walk = [yt]
    for t in range(1000, 0, -1):
        u_hat = VAR[t] / SIGMA[t] * eps_net(yt, torch.full((len(yt),), t))
        yt = yt - u_hat + VAR[t].sqrt() * torch.randn_like(yt)
        walk.append(yt)
    return walk

# The bound. q is the density of y_1 .. y_1000 in the chain from y_0 = x, p that of y_0 .. y_1000 in
# the model, and E the mean over the chain's walks. Then
#     p(x) = integral of p over y_1 .. y_1000 = integral of q * p / q = E[p / q]
# As log E >= E log (Jensen), and as p and q are products over steps, log p(x) is at least
#     E[log p(y_1000) + sum over t of (log p(y_(t-1) | y_t) - log q(y_t | y_(t-1)))]
# In u = y_t - y_(t-1), q's step is N(0, var), p's N(u_hat, var). Constants cancel, and term t is
#     E[|u|^2 - |u - u_hat|^2] / (2 var) = E[2 u . u_hat - |u_hat|^2] / (2 var)
# Given x and y_t, u_hat is fixed and this is linear in u: the mean of u, var / sigma * eps, may
# replace u. With u_hat = var / sigma * eps_hat and w = var / (2 sigma^2), term t is then
#     w E[2 eps . eps_hat - |eps_hat|^2] = w E[|eps|^2 - |eps - eps_hat|^2]
W = (VAR / (2 * SIGMA**2))[1:, 0]  # (1000,): .5 at t = 1, .01 at 100, .005 at 300, .01 at 1000

def elbo(eps_net, x):
    """Terms of the bound, means over x (1000 n, 2): log p(y_1000), then t = 1 .. 1000; (1001,)."""
    last = x + SIGMA[1000] * torch.randn_like(x)  # y_1000
    terms = [Normal(0, SIGMA[1000]).log_prob(last).sum(1).mean()]
    for t, part in enumerate(x.view(1000, -1, 2), 1):  # each mean is over its own thousandth of x
        eps = torch.randn_like(part)
        eps_hat = eps_net(part + SIGMA[t] * eps, torch.full((len(eps),), t))
        found = (eps**2 - (eps - eps_hat) ** 2).sum(1)  # (n,)
        terms.append(W[t - 1] * found.mean())
    return torch.stack(terms)

# --- train
def train_target(target, iters, seed, w=torch.ones(1000)):  # w (1000,): weight at t = 1 .. 1000
    torch.manual_seed(seed)  # the same seed for every net
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(512), torch.randn(512, 2)
        t = 1 + w.multinomial(512, replacement=True)  # odds w: like a factor w in the loss
        yt = x + SIGMA[t] * eps
        mean = yt - VAR[t] / SIGMA[t] * eps  # of y_(t-1), given x and y_t
        goal = eps if target == "eps" else A[t] * mean  # of std 1, as x_t is
        answer = net(torch.cat([A[t] * yt, t[:, None] / 1000], 1))  # asked with x_t = a y_t
        loss = (answer - goal).square().mean()  # of eps without w: L_simple, equation 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    def eps_net(yt, t):
        answer = net(torch.cat([A[t] * yt, t[:, None] / 1000], 1)).detach()
        u_hat = yt - answer / A[t]  # eps_hat gets the answer's error times 50 to 160
        return answer if target == "eps" else u_hat * SIGMA[t] / VAR[t]
    return eps_net
models = {"with w": train_target("eps", args.iters, args.seed, W),
          "without w": train_target(args.target, args.iters, args.seed),
          "for the mean": train_target("mean", args.iters, args.seed)}

# --- measure
x = two_moons(100000)
terms, bound = {}, {}
for name, eps_net in models.items():
    torch.manual_seed(args.seed)  # the same x and eps for every net
    terms[name] = elbo(eps_net, two_moons(500000))
    bound[name] = terms[name].sum()  # C1, C2, C3; another draw of x and eps moves it by .03
places = MultivariateNormal(MU, STD**2 * torch.eye(2))  # p_data: no mean log p can be higher
log_p_data = MixtureSameFamily(Categorical(torch.ones(64)), places).log_prob(x).mean()
gaussian = MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x).mean()  # one, fitted to x

# --- figure
fig, (chart, *clouds) = plt.subplots(1, 4, figsize=(14, 3.8), layout="constrained")
fig.suptitle(f"bounds, nats (at best {log_p_data:.2f}, one Gaussian {gaussian:.2f}). Grey: data")
walks = [walk_back(net, SIGMA[1000] * torch.randn(400, 2)) for net in models.values()]
COLOURS = ["tab:blue", "tab:orange", "tab:red"]
for name, colour in zip(models, COLOURS):
    chart.semilogx(range(1, 1001), (terms["with w"] - terms[name])[1:].cumsum(0), colour)
chart.set(xlim=[1, 1000], xlabel="t", ylabel='nats behind "with w", up to t')
slider = plt.Slider(plt.axes([0.04, 0.93, 0.2, 0.05]), "t  ", 0, 1000, valinit=0, valstep=1)

def draw(t):
    for ax, name, walk, colour in zip(clouds, models, walks, COLOURS):
        ax.clear()
        ax.plot(*x[:400].T, ".", color="0.7")
        ax.plot(*(A[t] * walk[1000 - t]).T, ".", color=colour)  # times a: x_t
        ax.set(title=f"net {name}: {bound[name]:.2f}", aspect=1, xlim=[-3, 3], ylim=[-3, 3])
draw(0)
slider.on_changed(lambda t: draw(int(t)))  # the slider gives a float
fig.savefig("03_elbo.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "bound without w (limit: one Gaussian)", bound["without w"], ">", gaussian)
claim("C2", "bound with w (limit: without)", bound["with w"], ">", bound["without w"])
claim("C3", "bound for the mean (limit: for eps)", bound["for the mean"], "<", bound["without w"])
print("figure: 03_elbo.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
