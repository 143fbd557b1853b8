# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""09 Practical knobs: prediction target, t_scale, noise schedule, solver order, and guidance.

RUN    python 09_knobs.py         (5 seconds; slide w. Other flags set the first two knobs)
BREAK  python 09_knobs.py --w 8   (C3 fails: samples end off the moon, at the left. Knob 5 says why)
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
upper = (moon + 0.09 * torch.randn(3200, 2)) / 0.7107  # (3200, 2), divided by the std of the data
y = 1 - 2 * torch.randint(2, (3200, 1))  # label 1 is the upper moon, -1 is the lower moon
x = y * upper  # the lower moon is the upper one, turned by 180 degrees
y[torch.rand(3200) < 0.2] *= -1  # one label in five is wrong, so one sample in five will be, too

# --- Knob 1, the target. xt = a x + s eps, with a = sin(t) and s = cos(t), leads from noise (t = 0)
# to data (t = pi / 2), with velocity s x - a eps. Let v be the mean velocity of all pairs x, eps
# with the same xt. It carries as many points through any place as their own velocities do, so noise
# that follows v becomes data (lesson 05). A net learns v, or the mean of eps or x (x0). From eps,
#     v = s x - a eps = s (xt - s eps) / a - a eps = (s xt - eps) / a    because a^2 + s^2 = 1
# In the same way, from x we get v = (x - a xt) / s.
def convert_to_v(net, target, t_scale):  # wraps a net that predicts v, eps, or x0 as v(xt, t, y)
    def v(xt, t, y):
        out = net(torch.hstack([xt, t_scale * t * torch.ones_like(y), y]))  # (B, 2)
        a, s = t.sin().clamp(0.02), t.cos().clamp(0.02)  # errors grow 50 times at most
        if target == "eps":  # errors / a: a long step near noise is bad, so C1 fails
            return (s * xt - out) / a
        if target == "x0":  # errors / s: only Heun evaluates v at the end, so C2 fails
            return (out - a * xt) / s
        return out
    return v

# --- Knob 2, t_scale. The first DiT feeds t to sines made for DDPM's 1000 steps, so it scales t by
# 1000. Our net gets t itself. 1000 t takes its SiLUs far from their bend at 0, so it hardly learns.
def train(x, y, target, t_scale, iters, width=64, batch_size=1024, lr=0.03):
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

# --- Knob 3, the schedule. DDPM's a^2 is the product of all 1 - beta, about exp(-sum of beta). In
# 1000 steps, beta grows from 0.0001 to 0.02. This is 0.1 to 20 per unit of u = step / 1000.
def linear_times(num_steps):
    u = torch.linspace(1, 0, num_steps + 1)  # from noise to data
    beta_sum = 0.1 * u + (20 - 0.1) * u**2 / 2  # the area under beta, from 0 to u
    return (-beta_sum).exp().sqrt().asin()  # t, as a = sin(t). Short steps near noise
def cosine_times(num_steps):
    return torch.linspace(0, torch.pi / 2, num_steps + 1)  # equal steps: a = cos(pi / 2 - t)

# --- Knob 4, the solver. Order 1 is Euler. Order 2 is Heun, with two evaluations (NFE) a step.
def sample(net, xt, y, times, order=2):
    """Turn noise xt, (B, 2), into data by any net(xt, t, y) that returns velocities, (B, 2)."""
    for t, h in zip(times, times.diff()):
        v = net(xt, t, y)
        if order == 2:  # follow the bend by the mean of the velocities here and at Euler's end
            v = (v + net(xt + h * v, t + h, y)) / 2
        xt = xt + h * v
    return xt

# --- Knob 5, guidance. By Bayes' rule, p(xt | y) = p(xt) p(y | xt) / p(y). To fit the label better,
# we aim at p(xt) p(y | xt)^w. Our labels are right with odds of 4 to 1, and w = 2 makes it 16 to 1.
# Given x, xt is Gaussian with mean a x and std s, so grad log p(xt | x) = -(xt - a x) / s^2. This
# is -eps / s. As p(x | xt) = p(x) p(xt | x) / p(xt), its mean over all x that fit xt is
#     E[-eps / s | xt] = sum over x of p(x) grad p(xt | x) / p(xt) = grad log p(xt)    (the score)
# As eps is -s score on average, knob 1 gives v = (s / a) (xt + score). A label adds the gradient of
# log p(y | xt) to the score. So it changes v by s / a times this, and guidance, by w times that.
# w = 8 is too much. Early on, p(y | xt) grows to the upper left, and drives all points there. Then
# v leads them only to the nearest part of the moon, and the net's errors, times 8, lead past it.
def guide(net, w):
    """Return net(xt, t, y) with classifier-free guidance of weight w; y = 0 means no label."""
    def guided(xt, t, y):
        null = net(xt, t, torch.zeros_like(y))
        return null + w * (net(xt, t, y) - null)
    return guided

net = train(x, y, args.target, args.t_scale, args.iters).requires_grad_(False)
v = convert_to_v(net, args.target, args.t_scale)
noise, label = torch.randn(2000, 2), torch.ones(2000, 1)  # the label of the upper moon
exact = sample(v, noise, label, cosine_times(50))  # 50 Heun steps, nearly exact, w = 1
center = upper.mean(0)
unguided = (exact.mean(0) - center).norm()  # how far apart the means are

fig, ((chart, first), (second, third)) = plt.subplots(2, 2, figsize=(11, 8.5))
fig.suptitle("Gray: upper moon. Blue: guided samples. Red: means farther apart than at w = 1")
ends = [sample(v, noise, label, linear_times(16), order=1),
        sample(v, noise, label, cosine_times(16), order=1),
        sample(v, noise, label, cosine_times(8))]  # 16 NFE each
euler_linear, euler, heun = [(end - exact).norm(dim=1).mean().item() for end in ends]
chart.bar(["Euler, linear", "Euler, cosine", "Heun, cosine"], [euler_linear, euler, heun])
chart.set(title=f"16 NFE: Heun errs {heun / euler:.0%} as much as Euler", ylabel="mean distance")

def draw(ax, w):
    samples = sample(guide(v, w), noise, label, cosine_times(50))
    distance = (samples.mean(0) - center).norm()
    ax.clear()
    ax.plot(*upper.T, ".", color="0.7")
    ax.plot(*samples.T, ".", color="tab:red" if distance > unguided else "tab:blue", ms=3)
    ax.set(xlim=(-3, 3), ylim=(-2, 2), title=f"w = {w:.1f}: means {distance:.2f} apart")

draw(first, 1)
draw(second, args.w)
draw(third, 8)
slider = plt.Slider(plt.axes([0.1, 0.02, 0.35, 0.03]), "w", 0, 8, valinit=args.w)
slider.on_changed(lambda w: draw(second, w))
fig.savefig("09_knobs.png")

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Error of Euler at 16 NFE, cosine (bound: linear)", euler, "<", euler_linear)
claim("C2", "Error of Heun at 16 NFE, cosine (bound: Euler)", heun, "<", euler)
apart = (sample(guide(v, args.w), noise, label, cosine_times(50)).mean(0) - center).norm()
claim("C3", f"Distance of means, w = {args.w:g} (bound: w = 1)", apart, "<", unguided)
print("figure: 09_knobs.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
