# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""09 Practical knobs: prediction target, t_scale, noise schedule, solver order, and guidance.

The same net can give good samples or bad ones, which depends on five choices. We train a small net
on two labeled moons. One label in five is wrong, so that guidance has work to do. The figure shows
schedule, solver, and guidance. The flags --target and --t-scale set the other two.

RUN    python 09_knobs.py         (5 seconds; the slider sets w, the weight of guidance)
BREAK  python 09_knobs.py --w 8   (C3 fails; with --target eps or --t-scale 1000, C1; with x0, C2)
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

ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2), the upper half circle
upper = (MOON.repeat(100, 1) + 0.09 * torch.randn(3200, 2)) / 0.7107  # so that x has variance 1
y = 1 - 2 * torch.randint(2, (3200, 1))  # 1: upper moon, -1: lower moon
x = y * upper  # the lower moon is the upper one, turned by 180 degrees
y[torch.rand(3200) < 0.2] *= -1  # one label in five is wrong

# --- Knob 1, the target. xt = a x + s eps with a = sin(t), s = cos(t) is noise at t = 0 and data at
# t = pi / 2. Its velocity is s x - a eps, and v is the mean for all x and eps that give the same
# xt. Noise that moves with v becomes data (lesson 05). A net predicts v, or the mean of eps or x.
# --- Knob 2, t_scale. DiT feeds t to sines whose frequencies were made for DDPM's t = 1 to 1000, so
# a t from 0 to 1 is first multiplied by 1000. Our net gets t itself, and 1000 t is far too large.
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
        targets = {"v": s * x[row] - a * eps, "eps": eps, "x0": x[row]}
        label = y[row] * (torch.rand_like(t) > 0.1)  # one in ten becomes 0, "no label"
        out = net(torch.hstack([a * x[row] + s * eps, t_scale * t, label]))
        loss = nn.functional.mse_loss(out, targets[target])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

def convert_to_v(net, target, t_scale, xt, t, y):  # (B, 2), at xt (B, 2), a tensor t, y (B, 1)
    out = net(torch.hstack([xt, t_scale * t * torch.ones_like(y), y]))
    a, s = t.sin().clamp(0.02), t.cos().clamp(0.02)  # because we cannot divide by 0
    return {"v": out,
            "eps": (s * xt - out) / a,  # near noise, a is small, so errors of eps become large
            "x0": (out - a * xt) / s}[target]  # near data, s is small

# --- Knob 3, the schedule. DDPM's beta grows linearly from 0.0001 to 0.02 in 1000 steps, and a^2 is
# about exp(-sum of beta). So steps are short near noise and long near data (lesson 02).
def linear_times(num_steps):
    u = torch.linspace(1, 0, num_steps + 1)  # share of the 1000 steps
    return (-0.1 * u - 9.95 * u**2).exp().sqrt().asin()  # t, because a is sin(t)

def cosine_times(num_steps):
    return torch.linspace(0, torch.pi / 2, num_steps + 1)  # equal steps

# --- Knob 4, the solver's order: 1 is Euler. 2 is Heun, with two function evaluations (NFE) a step.
@torch.no_grad()
def sample(net, xt, y, num_steps, schedule=cosine_times, order=2):
    """Turn noise xt, (B, 2), into data by any net(xt, t, y) that returns velocities, (B, 2)."""
    times = schedule(num_steps)
    for t, h in zip(times, times.diff()):
        v = net(xt, t, y)
        if order == 2:
            v = (v + net(xt + h * v, t + h, y)) / 2  # the mean of start and Euler's end
        xt = xt + h * v
    return xt

# --- Knob 5, guidance. By Bayes' rule, log p(xt | y) = log p(xt) + log p(y | xt) + constant. So a
# label adds a multiple of the gradient of log p(y | xt) to v, and guidance adds w times as much.
def guide(net, w):
    """Return net(xt, t, y) with classifier-free guidance of weight w; y = 0 means no label."""
    def guided(xt, t, y):
        null = net(xt, t, torch.zeros_like(y))
        return null + w * (net(xt, t, y) - null)  # w = 2: as if odds of 4 to 1 were 16 to 1
    return guided

def energy_distance(x, y):
    """Return the energy distance of samples x and y, (n, 2) each (Szekely and Rizzo 2013).
    It is 2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 only if both distributions are equal."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item()

net = train(x, y, args.target, args.t_scale, args.iters)
v = lambda xt, t, y: convert_to_v(net, args.target, args.t_scale, xt, t, y)
noise, label = torch.randn(2000, 2), torch.ones(2000, 1)  # the label of the upper moon
exact = sample(guide(v, 1), noise, label, 50)  # more steps would change little
before = energy_distance(exact, upper)
after = energy_distance(sample(guide(v, args.w), noise, label, 50), upper)

fig, (chart, left, right) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
nfe, errors = [2, 4, 8, 16, 32], []
for schedule, order in (cosine_times, 2), (cosine_times, 1), (linear_times, 1):
    ends = [sample(v, noise, label, n // order, schedule, order) for n in nfe]
    error = (torch.stack(ends) - exact).norm(dim=2).mean(1)  # (5,)
    chart.semilogy([str(n) for n in nfe], error, "o-")
    errors.append(error[3])  # at 16 NFE
heun, cosine, linear = errors
chart.legend(["Heun, cosine schedule", "Euler, cosine schedule", "Euler, linear schedule"])
chart.set(xlabel="NFE", ylabel="mean distance to the exact end of the path",
          title=f"At 16 NFE, Heun divides Euler's error by {cosine / heun:.1f}")
def draw(ax, w):
    samples = sample(guide(v, w), noise, label, 50)
    distance = energy_distance(samples, upper)
    ax.clear()
    ax.scatter(*upper.T, 16, "0.7")
    ax.scatter(*samples.T, 2, "C3" if distance > before else "C0")
    ax.axis([-3, 3, -2, 2])
    ax.set(aspect="equal", title=f"w = {w:.1f}: samples for the upper moon (gray)\n"
                                 f"Energy distance {distance:.3f} (red above {before:.3f})")
draw(left, 1)
draw(right, args.w)
slider = plt.Slider(plt.axes([0.75, 0.02, 0.2, 0.04]), "w", 0, 8, valinit=args.w)
slider.on_changed(lambda w: draw(right, w))
fig.savefig("09_knobs.png", dpi=120)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Error of Euler at 16 NFE, cosine schedule (bound: linear)", cosine, "<", linear)
claim("C2", "Error of Heun at 16 NFE, cosine schedule (bound: Euler)", heun, "<", cosine)
claim("C3", f"Energy distance, w = {args.w:g} (bound: half of w = 1)", after, "<", before / 2)
print("figure: 09_knobs.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
