# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""02 The forward chain: turn data into noise in T small steps, then never run those steps again.
DDPM goes from data x (t = 0) to noise (t = T). Step t shrinks the point and adds z ~ N(0, I):
    x_t = sqrt(1 - beta[t]) x_(t-1) + sqrt(beta[t]) z
Suppose x_(t-1) = a x + s eps, eps ~ N(0, I), s^2 = 1 - a^2. (At t = 0, a is 1 and s is 0.) Then
    x_t = sqrt(1 - beta) a x + [ sqrt(1 - beta) s eps + sqrt(beta) z ]
The sum of two independent Gaussians is Gaussian, and variances add. With s^2 = 1 - a^2 put in,
    variance of [ ] = (1 - beta) s^2 + beta = (1 - beta) (1 - a^2) + beta = 1 - (1 - beta) a^2
So x_t has the same form, with (1 - beta) a^2 for a^2 and a new eps. After t steps, in closed form,
    xt = a x + s eps,  a^2 = abar[t] = (1 - beta[1]) ... (1 - beta[t]),  s^2 = 1 - abar[t]
So a training point needs no chain. A net sees xt and t and must guess eps. Many pairs x, eps fit
one xt; by squared error, it learns the mean of their eps, eps_hat. Then (xt - s eps_hat) / a is the
mean of their x. At t = T it is that of all data. Lesson 04 walks back from there in small steps.
C1 At every t, the noise in a chain that was really run, (xt - a x) / s, is Gaussian.
C2 At t = T hardly anything is left of x: the chain has reached N(0, I), where sampling starts.
C3 A net that saw only the closed form finds the noise in chains nearly as well as the exact mean.
RUN    python 02_ddpm_forward.py          (6 seconds)
BREAK  python 02_ddpm_forward.py --T 50   C2 fails: 50 steps with these beta leave a = .78
       python 02_ddpm_forward.py --noise uniform   C1 fails at t = 1 (a sum of many looks Gaussian)
PAPER  Ho, Jain, Abbeel 2020 (DDPM), arXiv 2006.11239, equations 2, 4 and 14"""
import argparse
import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import RadioButtons, Slider
from torch import nn
# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--T", type=int, default=1000, help="steps of the chain; 50 breaks C2 (1000)")
parser.add_argument("--noise", choices=["gauss", "uniform"], default="gauss", help="uniform breaks")
parser.add_argument("--iters", type=int, default=1500, help="of training; 50 breaks C3 (1500)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if not 10 <= args.T <= 1000 or args.iters < 1 or args.seed < 0:
    parser.error("--T must be 10 to 1000, --iters 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
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
def schedule(T):
    """beta[t] and abar[t], t = 0 .. T, as columns (T + 1, 1): abar[t] of a batch t is (B, 1)."""
    beta = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, T)])[:, None]  # made for T = 1000
    return beta, (1 - beta).cumprod(0)

def simulate(x, beta, noise):
    """The chain x_0 .. x_T of x (B, 2): (T + 1, B, 2). Uniform noise has variance width^2 / 12."""
    path = [x]
    for b in beta[1:]:
        z = torch.randn_like(x) if noise == "gauss" else 12**0.5 * (torch.rand_like(x) - 0.5)
        path.append((1 - b).sqrt() * path[-1] + b.sqrt() * z)  # equation 2
    return torch.stack(path)

def noise_of(path, abar):
    """What the closed form takes for the noise in a chain at t = 1 .. T: (xt - a x) / s."""
    a, s = abar[1:, None].sqrt(), (1 - abar[1:, None]).sqrt()  # (T, 1, 1), no t = 0, where s = 0
    return (path[1:] - a * path[0]) / s  # (T, B, 2)

# --- train
def train_eps(abar, iters):
    """Learn the noise in xt at t = 1 .. T of a schedule abar[t]. Returns eps_hat(xt, t), t (B,)."""
    net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / iters)  # large steps first, then small
        x, eps = two_moons(1024), torch.randn(1024, 2)
        t = torch.randint(1, len(abar), (1024,))
        xt = abar[t].sqrt() * x + (1 - abar[t]).sqrt() * eps  # equation 4: any t, no loop
        eps_hat = net(torch.cat([xt, t[:, None] / len(abar)], 1))
        loss = (eps_hat - eps).square().mean()  # equation 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{iters} iterations, loss {loss:.3f}")
    return lambda xt, t: net(torch.cat([xt, t[:, None] / len(abar)], 1)).detach()

# --- measure
def cdf_gap(z):
    """Largest difference of the CDF of each row of z (R, n) from the CDF of N(0, 1): (R,)."""
    exact = torch.special.ndtr(z.sort(1).values)  # the CDF of N(0, 1) at the sorted numbers
    share = torch.linspace(0, 1, z.shape[1])  # the share of the row up to each of them
    return (exact - share).abs().max(1).values

def best_eps(xt, a, s):
    """E[eps | xt], exact: (B, 2), the mean of all eps that fit xt (B, 2). a, s are (B, 1)."""
    off = xt[:, None] - a[:, None] * MU  # (B, 1, 2) - (B, 1, 1) * (64, 2), so (B, 64, 2)
    var = (a * STD) ** 2 + s**2  # of off = a (x - mu) + s eps, if x is from the place mu
    weight = (-off.square().sum(2) / (2 * var)).softmax(1)  # (B, 64), p(mu | xt) by Bayes' rule
    mean_off = xt - a * (weight @ MU)  # (B, 2), over all mu
    return s / var * mean_off  # as E[s eps | off] = s^2 / var * off for each mu

beta, abar = schedule(args.T)
eps_net = train_eps(abar, args.iters)
path = simulate(two_moons(2500), beta, args.noise)
noise = noise_of(path, abar)
gap = cdf_gap(noise.flatten(1)).max()  # C1; (T, 5000): the worst of 1000 Gaussian rows is at .03
# C2: KL of N(a x, s^2 I) to N(0, I) in 2 dimensions, in nats: (a^2 |x|^2 + 2 s^2 - 2) / 2 - log s^2
kl = -(1 - abar[-1, 0]).log()  # the rest is 0, as a^2 + s^2 = 1 and |x|^2 is 2 on average
t, chain = torch.randint(1, args.T + 1, (100000,)), torch.randint(2500, (100000,))  # at random
xt, eps = path[t, chain], noise[t - 1, chain]  # (100000, 2); noise begins at t = 1, path at t = 0
best = best_eps(xt, abar[t].sqrt(), (1 - abar[t]).sqrt())
lowest = (best - eps).square().mean()  # above 0, because many eps fit one xt
loss = (eps_net(xt, t) - eps).square().mean()  # C3; nets this small end 0 to 2 % above

# --- figure
fig, axes = plt.subplots(1, 5, figsize=(14, 4), gridspec_kw={"left": 0.03, "right": 0.99})
plt.setp(axes, aspect="equal", xlim=(-4, 4), ylim=(-4, 4))
clouds = [ax.plot([], [], ".", ms=2)[0] for ax in axes]  # draw puts in the points
axes[4].set_title("noise in the chain at t = 1\n(uniform noise: a red square)")
length = Slider(plt.axes([0.3, 0.03, 0.4, 0.04]), "T (red: data left)  ", 10, 1000, valinit=args.T)
radio = RadioButtons(plt.axes([0.85, 0.01, 0.1, 0.12]), ["gauss", "uniform"])

def draw(_):
    torch.manual_seed(args.seed)  # the same draws in every picture
    end = int(length.val)
    beta, abar = schedule(end)
    path = simulate(two_moons(2500), beta, radio.value_selected)
    for ax, cloud, t in zip(axes, clouds, (0, end // 10, 3 * end // 10, end)):
        a2 = abar[t].item()  # C2 at t = T: -log(1 - a2), about a2, is under .001
        ax.set_title(f"t = {t}\nvariance: {a2:.2g} data, {1 - a2:.2g} noise")
        cloud.set(data=path[t].T, color="tab:red" if t == end and a2 > 0.001 else "0.6")
    first = noise_of(path, abar)[0]  # (2500, 2), t = 1; C1 fails above a gap of 0.04
    clouds[4].set(data=first.T, color="tab:red" if cdf_gap(first.view(1, -1)) > 0.04 else "0.6")
    fig.canvas.draw_idle()
length.on_changed(draw)
radio.on_clicked(draw)
radio.set_active(["gauss", "uniform"].index(args.noise))  # calls draw
fig.savefig("02_ddpm_forward.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "CDF of the noise, worst gap at any t (chance .03, uniform .06)", gap, "<", 0.04)
claim("C2", "nats between x_T, given x, and N(0, I)", kl, "<", 0.001)
claim("C3", f"loss {loss:.3f} / lowest {lowest:.3f} (50 iterations: 1.2)", loss / lowest, "<", 1.06)
print("figure: 02_ddpm_forward.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
