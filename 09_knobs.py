# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""09 Practical knobs: prediction target, t_scale, noise schedule, solver order, and guidance.

A small net turns noise into two moons. Knobs 1 and 2 set what it predicts and how it reads time.
Knobs 3 to 5 set how we sample: at which times, with which solver, and how much the label counts.

RUN    python 09_knobs.py                (5 seconds; move the slider, or try --t-scale 1000)
BREAK  python 09_knobs.py --target eps   (C1 fails: errors blow up near noise, so linear wins)
PAPER  arXiv 2102.09672, equation 17 (schedule); 2202.00512 (targets); 2207.12598 (guidance)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--target", choices=["v", "eps", "x0"], default="v", help="(default: v)")
parser.add_argument("--t-scale", type=int, choices=[1, 1000], default=1, help="of t (default: 1)")
parser.add_argument("--iters", type=int, default=600, help="of training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

angle = torch.pi * torch.rand(3200, 1)
moon = torch.hstack([angle.cos() - 0.5, angle.sin() - 0.25])  # (3200, 2), the upper half circle
upper = (moon + 0.09 * torch.randn(3200, 2)) / 0.7107  # (3200, 2), the mean |x|^2 is 2
y = 1 - 2 * torch.randint(2, (3200, 1))  # label 1 is the upper moon, -1 is the lower moon
x = y * upper  # the lower moon is the upper one, turned by 180 degrees
y[torch.rand(3200) < 0.2] *= -1  # one label in five is wrong, so w = 1 misses the moon as often

# --- Knob 1, the target: v, eps, or x0 (the data x). Points xt = a * x + s * eps, with a = sin(t)
# and s = cos(t), move from noise (t = 0) to data (t = pi / 2), with velocity v = s * x - a * eps.
# A net learns the mean of its target, given xt. The mean v moves noise to data, because it decides
# how many points enter or leave a region (lesson 05). The others give it (use a^2 + s^2 = 1):
#     s * xt - eps = s * a * x - a^2 * eps = a * v
#     x - a * xt   = s^2 * x - a * s * eps = s * v
def convert_to_v(net, target, t_scale):  # returns v(xt, t, y) for a number t
    def v(xt, t, y):
        out = net(torch.hstack([xt, t_scale * t.expand(len(xt), 1), y]))  # (B, 2)
        a, s = t.sin().clamp(0.02), t.cos().clamp(0.02)  # never divide by 0
        if target == "eps":
            return (s * xt - out) / a  # a is nearly 0 at the start, so errors blow up there
        if target == "x0":
            return (out - a * xt) / s  # s is nearly 0 at the end, so errors blow up there
        return out
    return v

# --- Knob 2, t_scale: how the net reads time. DiT's sines of t were made for DDPM, where t is up to
# 1000, so flows feed it 1000 * t. Our net has no sines, and such numbers drown xt.
def train(x, y, target, t_scale, iters, width=64, batch_size=1024, lr=0.03):
    net = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                        nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        row = torch.randint(len(x), [batch_size])
        eps = torch.randn(batch_size, 2)
        t = torch.rand(batch_size, 1) * torch.pi / 2
        a, s = t.sin(), t.cos()
        xt = a * x[row] + s * eps
        targets = {"v": s * x[row] - a * eps, "eps": eps, "x0": x[row]}
        label = y[row] * (torch.rand_like(t) > 0.1)  # one in ten becomes 0, no label (knob 5)
        loss = nn.functional.mse_loss(net(torch.hstack([xt, t_scale * t, label])), targets[target])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

# --- Knob 3, the schedule: at which times we evaluate v. DDPM's linear schedule makes short steps
# near noise and long ones near data. The cosine schedule makes equal steps, and errs less.
def linear_times(num_steps):
    beta = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, 1000)])  # as in lesson 02
    a = (1 - beta).cumprod(0).sqrt()  # (1001,), from 1 at data to almost 0 at noise
    step = torch.linspace(1000, 0, num_steps + 1).round().long()  # from noise to data
    return a[step].asin()  # t, because a = sin(t)

def cosine_times(num_steps):  # with --target eps, the first step is too long, and C1 fails
    return torch.linspace(0, torch.pi / 2, num_steps + 1)  # a = sin(t) = cos(pi / 2 - t)

# --- Knob 4, the solver. Euler (order 1) moves with the velocity at its start. Heun (order 2)
# averages it with the velocity at Euler's end, and errs less at as many evaluations of v (NFE).
def sample(net, xt, y, times, order=2):
    """Turn noise xt, (B, 2), into data by any net(xt, t, y) that returns velocities, (B, 2)."""
    for t, h in zip(times, times.diff()):  # from t to t + h
        v = net(xt, t, y)
        if order == 2:  # evaluates v at the very end, so with --target x0, C2 fails
            v = (v + net(xt + h * v, t + h, y)) / 2
        xt = xt + h * v
    return xt

# --- Knob 5, guidance: how much the label counts. To fit it better, we aim at p(xt) * p(y | xt)^w,
# where w > 1. By Bayes' rule, p(y | xt) = p(y) * p(xt | y) / p(xt), so its log is a constant plus
#     log p(xt) + w * (log p(xt | y) - log p(xt))
# Its gradient, the score, is -(mean eps) / s (lesson 07), and by knob 1, a * v / s - xt. So we do
# the same with v. A large w drives samples too far from the other moon, and amplifies net errors.
def guide(net, w):
    """Return net(xt, t, y) with classifier-free guidance of weight w; y = 0 means no label."""
    def guided(xt, t, y):
        null = net(xt, t, torch.zeros_like(y))
        return null + w * (net(xt, t, y) - null)
    return guided

net = train(x, y, args.target, args.t_scale, args.iters).requires_grad_(False)
v = convert_to_v(net, args.target, args.t_scale)
noise, label = torch.randn(2000, 2), torch.ones(2000, 1)  # we ask for the upper moon
exact = sample(v, noise, label, cosine_times(50))  # many steps, so nearly exact
settings = (linear_times(16), 1), (cosine_times(16), 1), (cosine_times(8), 2)  # 16 NFE each
ends = [sample(v, noise, label, *setting) for setting in settings]
linear, cosine, heun = [(end - exact).norm(dim=1).mean().item() for end in ends]

fig, ((chart, first), (second, third)) = plt.subplots(2, 2, figsize=(11, 8))
fig.suptitle("Gray: the moon we ask for. Blue: samples on it. Red: samples over 0.1 away from it")
chart.bar(["Euler, linear", "Euler, cosine", "Heun, cosine"], [linear, cosine, heun])
chart.set_title(f"Distance to exact ends, 16 NFE: Heun errs {heun / cosine:.0%} as much")
def is_off(samples, moon):  # (B,), over 0.1 away from all points of the moon
    return torch.cdist(samples, moon).amin(1) > 0.1

def draw(ax, w):
    samples = sample(guide(v, w), noise, label, cosine_times(50))
    off = is_off(samples, upper)
    ax.clear()
    ax.scatter(*upper.T, 8, "0.7")
    ax.scatter(*samples.T, 4, off, cmap="coolwarm", vmin=0, vmax=1)
    ax.axis([-4, 3, -2, 3])
    ax.set_title(f"Guidance w = {w:.1f}: {off.float().mean():.0%} off the moon")
for ax, w in (first, 1), (second, 2), (third, 8):
    draw(ax, w)
slider = plt.Slider(plt.axes([0.1, 0.02, 0.35, 0.03]), "w", 0, 8, valinit=2)
slider.on_changed(lambda w: draw(second, w))
fig.savefig("09_knobs.png")

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
off = is_off(sample(guide(v, 2), noise, label, cosine_times(50)), upper).float().mean()
claim("C1", "Error of Euler at 16 NFE, cosine (bound: linear)", cosine, "<", linear)
claim("C2", "Error of Heun at 16 NFE, cosine (bound: Euler)", heun, "<", cosine)
claim("C3", "Share off the moon, w = 2 (bound: share of wrong labels)", off, "<", 0.2)
print("figure: 09_knobs.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
