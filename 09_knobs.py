# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""09 Practical knobs: prediction target, t_scale, noise schedule, solver order, and guidance.

The figure compares two schedules, two solvers, and two guidance weights. Flags set the other knobs.

RUN    python 09_knobs.py         (5 seconds; slide w to 8, and the samples crowd together)
BREAK  python 09_knobs.py --w 8   (C3 fails. With --target eps, C1 fails, and with --target x0, C2)
PAPER  arXiv 2102.09672, equation 17 (schedule); 2202.00512 (targets); 2207.12598 (guidance)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--target", choices=["v", "eps", "x0"], default="v", help="(default: v)")
parser.add_argument("--t-scale", type=int, default=1, choices=[1, 1000], help="of t (default: 1)")
parser.add_argument("--w", type=float, default=2, help="guidance weight (default: %(default)s)")
parser.add_argument("--iters", type=int, default=600, help="of training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (0 <= args.w <= 8 and 1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--w must be 0 to 8, --iters 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

angle = torch.pi * torch.rand(3200, 1)
moon = torch.hstack([angle.cos() - 0.5, angle.sin() - 0.25])  # the upper half circle
upper = (moon + 0.09 * torch.randn(3200, 2)) / 0.7107  # (3200, 2), so that x has variance 1
y = 1 - 2 * torch.randint(2, (3200, 1))  # label 1 is the upper moon, -1 is the lower moon
x = y * upper  # the lower moon is the upper one, turned by 180 degrees
y[torch.rand(3200) < 0.2] *= -1  # one label in five is wrong, so that guidance has work to do

# --- Knob 1, the target. Let xt = a x + s eps, where a = sin(t), s = cos(t). It is noise at t = 0
# and data at t = pi / 2. Its velocity is v = d xt / dt = s x - a eps. Many x and eps lead to the
# same xt. Squared error makes a net predict the mean of their v, and noise that moves with it turns
# into data (lesson 05). A net can also predict the mean of eps or x. As a^2 + s^2 = 1, v follows:
#     x = (xt - s eps) / a,  so  v = s x - a eps = (s xt - eps) / a
#     eps = (xt - a x) / s,  so  v = s x - a eps = (x - a xt) / s
def convert_to_v(net, target, t_scale):  # wraps a net that predicts v, eps, or x0 as v(xt, t, y)
    def v(xt, t, y):
        out = net(torch.hstack([xt, t_scale * t * torch.ones_like(y), y]))  # (B, 2)
        a = t.sin().clamp(0.02)  # small near noise, where errors of eps grow, at most 50 times
        s = t.cos().clamp(0.02)  # small near data, where errors of x grow
        return {"v": out, "eps": (s * xt - out) / a, "x0": (out - a * xt) / s}[target]
    return v

# --- Knob 2, t_scale. DiT feeds t to sines made for DDPM's 1000 steps, so it multiplies t by 1000.
# Our net gets t itself. 1000 t puts its first SiLUs far from their bend at 0, and it hardly learns.
def train(x, y, target, t_scale, iters, width=64, batch_size=1024, lr=0.03):
    """Return a net that predicts the target, (B, 2), from rows of xt, t_scale * t, and y."""
    net = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        row = torch.randint(len(x), [batch_size])
        eps, t = torch.randn(batch_size, 2), torch.rand(batch_size, 1) * torch.pi / 2
        a, s = t.sin(), t.cos()
        xt = a * x[row] + s * eps
        label = y[row] * (torch.rand_like(t) > 0.1)  # one in ten becomes 0, "no label"
        targets = {"v": s * x[row] - a * eps, "eps": eps, "x0": x[row]}
        loss = nn.functional.mse_loss(net(torch.hstack([xt, t_scale * t, label])), targets[target])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

# --- Knob 3, the schedule. In DDPM, a^2 is the product of all 1 - beta, about exp(-sum of beta). As
# u goes from 0 (data) to 1 (noise), beta grows linearly from 0.1 to 20 per unit of u, so the sum is
# 0.1 u + 9.95 u^2 (lesson 02). Equal steps of u are short steps of t near noise, long near data.
def linear_times(num_steps):
    u = torch.linspace(1, 0, num_steps + 1)
    return (-0.1 * u - 9.95 * u**2).exp().sqrt().asin()  # t, because a = sin(t)
def cosine_times(num_steps):
    return torch.linspace(0, torch.pi / 2, num_steps + 1)  # equal steps of t

# --- Knob 4, the solver. Order 1 is Euler. Order 2 is Heun, at 2 function evaluations (NFE) a step.
def sample(net, xt, y, times, order=2):
    """Turn noise xt, (B, 2), into data by any net(xt, t, y) that returns velocities, (B, 2)."""
    for t, h in zip(times, times.diff()):
        v = net(xt, t, y)
        if order == 2:
            v = (v + net(xt + h * v, t + h, y)) / 2  # the mean of the start and Euler's end
        xt = xt + h * v
    return xt

# --- Knob 5, guidance. The score, grad log p(xt), is the mean of -eps / s (lesson 07). By knob 1,
# v = (s / a) (xt + score). By Bayes' rule, log p(xt | y) = log p(xt) + log p(y | xt) + constant. So
# a label adds (s / a) grad log p(y | xt) to v, and guidance adds w times as much.
def guide(net, w):
    """Return net(xt, t, y) with classifier-free guidance of weight w; y = 0 means no label."""
    def guided(xt, t, y):
        null = net(xt, t, torch.zeros_like(y))
        return null + w * (net(xt, t, y) - null)  # w = 2 turns odds of 4 to 1 into 16 to 1
    return guided

def energy_distance(x, y):
    """Return the energy distance of samples x and y, (n, 2) each (Szekely and Rizzo 2013).
    It is 2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 only if both distributions are equal."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item()

net = train(x, y, args.target, args.t_scale, args.iters).requires_grad_(False)
v = convert_to_v(net, args.target, args.t_scale)
noise, label = torch.randn(2000, 2), torch.ones(2000, 1)  # the label of the upper moon
reference = sample(v, noise, label, cosine_times(50))  # 50 Heun steps, w = 1
unguided = energy_distance(reference, upper)

fig, (chart, left, right) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
nfe, errors = [2, 4, 8, 16], []
for schedule, order in (cosine_times, 2), (cosine_times, 1), (linear_times, 1):
    error = [(sample(v, noise, label, schedule(n // order), order) - reference).norm(dim=1).mean()
             for n in nfe]
    chart.semilogy(nfe, error, "o-")
    errors.append(error[3])  # at 16 NFE
heun, euler, euler_linear = errors
chart.legend(["Heun, cosine schedule", "Euler, cosine schedule", "Euler, linear schedule"])
chart.set(title="Few NFE: Euler wins. Many: Heun", xlabel="NFE", ylabel="distance to reference")

def draw(ax, w):
    samples = sample(guide(v, w), noise, label, cosine_times(50))
    distance = energy_distance(samples, upper)
    ax.clear()
    ax.plot(*upper.T, ".", color="0.7")
    ax.plot(*samples.T, ".", color="C3" if distance > unguided else "C0", ms=3)
    ax.axis([-3, 3, -2, 2])
    ax.set(aspect=1, title=f"w = {w:.1f}: energy distance {distance:.3f} (red over {unguided:.3f})")
draw(left, 1)
draw(right, args.w)
slider = plt.Slider(plt.axes([0.75, 0.02, 0.2, 0.04]), "w", 0, 8, valinit=args.w)
slider.on_changed(lambda w: draw(right, w))
fig.savefig("09_knobs.png")

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Error of Euler at 16 NFE, cosine (bound: linear)", euler, "<", euler_linear)
claim("C2", "Error of Heun at 16 NFE, cosine (bound: Euler)", heun, "<", euler)
guided = energy_distance(sample(guide(v, args.w), noise, label, cosine_times(50)), upper)
claim("C3", f"Energy distance, w = {args.w:g} (bound: w = 1)", guided, "<", unguided)
print("figure: 09_knobs.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
