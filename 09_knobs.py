# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""09 Practical knobs: prediction target, t_scale, noise schedule, solver order, and guidance.

A flow leaves these choices open. For each, this file gives a reason, the code, and a plot.
RUN    python 09_knobs.py                (5 seconds; the slider sets the guidance w)
BREAK  python 09_knobs.py --target eps   (C1 fails: near noise, this makes v inaccurate)
PAPER  arXiv 2102.09672, equation 17 (schedule); 2202.00512 (targets); 2207.12598 (guidance)"""
import argparse, signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--target", choices=["v", "eps", "x0"], default="v", help="(default: v)")
parser.add_argument("--t-scale", type=int, default=1000, help="in panel 2 (default: %(default)s)")
parser.add_argument("--iters", type=int, default=600, help="training iterations (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.t_scale <= 10**6 and 1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--t-scale and --iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core
fig, ((factors, waves, errors), dots) = plt.subplots(2, 3, figsize=(12, 7.6), layout="constrained")

angle = torch.pi * torch.rand(3200, 1)
moon = torch.hstack([angle.cos() - 0.5, angle.sin() - 0.25])  # (3200, 2), the upper half circle
upper = (moon + 0.09 * torch.randn_like(moon)) / 0.7107  # (3200, 2), mean |x|^2 is 2, as for noise
y = 1 - 2 * torch.randint(2, angle.shape)  # label 1 is the upper moon, -1 is the lower moon
x = y * upper  # the lower moon is the upper one, turned by 180 degrees
y[torch.rand(3200) < 0.2] *= -1  # a fifth of the labels are wrong (knob 5)

# --- Knob 1, the target. Points xt = a * x + s * eps, with a = sin(t) and s = cos(t), move from
# noise (t = 0) to data (t = pi / 2) at velocity v = s * x - a * eps. To sample, we follow the mean
# of v at xt (lesson 05). A net may predict v, eps, or x0 (our x), as any of their means gives v:
#     s * xt - eps = s * a * x + (s^2 - 1) * eps = a * (s * x - a * eps) = a * v     (a^2 + s^2 = 1)
#     x - a * xt   = (1 - a^2) * x - a * s * eps = s * (s * x - a * eps) = s * v
def convert_to_v(net, target):  # all give v, but dividing by an a or s near 0 magnifies errors
    def v(xt, t, y):  # (B, 2), t a number or (B, 1), (B, 1)
        out = net(torch.hstack([xt, t.expand_as(y), y]))  # (B, 2)
        a, s = t.sin().clamp(0.02), t.cos().clamp(0.02)  # never divide by 0
        return {"v": out, "eps": (s * xt - out) / a, "x0": (out - a * xt) / s}[target]
    return v

t = torch.linspace(0.03, 1.54, 3000)[:, None]
factors.semilogy(t, 1 / t.sin(), t, 1 / t.cos())
factors.legend(["eps: 1 / a (a: share of data)", "x0: 1 / s (s: share of noise)"])
factors.set(title="Knob 1, target: predicting eps errs near\nnoise, and x0 near data (v: always 1)",
            xlabel="t, from noise (0) to data (1.57)", ylabel="error of v / error of the net")

# --- Knob 2, t_scale. Our net reads t itself. DiT reads sines of t, made for t = 1 to 1000. A flow
# ends at t near 1, where most of these sines are still near 0. So we multiply t by t_scale = 1000.
angles = t / 10_000 ** torch.linspace(0, 1, 32)  # (3000, 32), frequencies from 1 to 1 / 10,000
waves.plot(torch.stack([angles, args.t_scale * angles], 2).sin().amax(0).numpy(), "o-")
waves.legend(["t_scale 1", f"t_scale {args.t_scale}"])
waves.set(title="Knob 2, t_scale: if it is 1, most sines of t\nhardly move from 0",
          xlabel="32 sines, from fast to slow", ylabel="largest value over all t")

net = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                    nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
optimizer = torch.optim.Adam(net.parameters())
for i in range(args.iters):  # learns the mean of the target, given xt, t, and the label
    optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / args.iters)  # large steps first, then small
    row = torch.randint(len(x), [1024])
    eps = torch.randn(1024, 2)
    t = torch.rand(1024, 1) * torch.pi / 2
    a, s = t.sin(), t.cos()
    xt = a * x[row] + s * eps
    targets = {"v": s * x[row] - a * eps, "eps": eps, "x0": x[row]}
    label = y[row] * (torch.rand(1024, 1) > 0.1)  # one in ten becomes 0, no label (knob 5)
    loss = nn.functional.mse_loss(net(torch.hstack([xt, t, label])), targets[args.target])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if i % 100 == 0:
        print(f"iteration {i} of {args.iters}: loss {loss:.4f}")
v = convert_to_v(net.requires_grad_(False), args.target)  # frozen

# --- Knob 3, the schedule: at which t we evaluate v. In t, steps of DDPM's linear beta (lesson 02)
# are short near noise and long near data. The cosine schedule has equal steps in t.
def linear_times(num_steps):
    beta = torch.zeros(1001)  # beta[0] is 0, as in lesson 02
    beta[1:] = torch.linspace(1e-4, 0.02, 1000)
    a = (1 - beta).cumprod(0).sqrt()  # (1001,), from 1 at data to almost 0 at noise
    step = torch.linspace(1000, 0, num_steps + 1).round()  # from noise to data
    return a[step.long()].asin()  # t, because a = sin(t)
def cosine_times(num_steps):  # longer near noise, where --target eps is inaccurate
    return torch.linspace(0, torch.pi / 2, num_steps + 1)  # a = sin(t) = cos(pi / 2 - t)

# --- Knob 4, the solver. NFE is the number of evaluations of v. Heun needs two of them in a step.
def sample(velocity, xt, y, times, order=2):  # turns noise xt into data, by any velocity(xt, t, y)
    for t, h in zip(times, times.diff()):  # a step from t to t + h
        v = velocity(xt, t, y)  # Euler (order 1) moves with the velocity at its start
        if order == 2:  # at the last end, --target x0 divides by s = 0.02, so C2 fails
            v = (v + velocity(xt + h * v, t + h, y)) / 2  # Heun averages start and end
        xt = xt + h * v
    return xt

noise, label = torch.randn(2000, 2), torch.ones(2000, 1)  # we ask for the upper moon
exact, error = sample(v, noise, label, cosine_times(100)), {}  # v in 100 steps: nearly exact
for nfe in (2, 4, 8, 16, 32, 64):
    euler_linear = sample(v, noise, label, linear_times(nfe), order=1)
    euler_cosine = sample(v, noise, label, cosine_times(nfe), order=1)
    heun_cosine = sample(v, noise, label, cosine_times(nfe // 2))  # order 2
    ends = torch.stack([euler_linear, euler_cosine, heun_cosine])  # (3, 2000, 2)
    error[str(nfe)] = (ends - exact).norm(dim=2).mean(1)  # (3,); strings give even ticks
errors.semilogy([*error], [*error.values()], "o-")
errors.legend(["Euler, linear", "Euler, cosine", "Heun, cosine"])
linear, cosine, heun = error["16"]
errors.set(title=f"Knob 3, cosine: {cosine / linear:.0%} of linear's error\n"
                 f"Knob 4, Heun: {heun / cosine:.0%} of Euler's error",
           xlabel="NFE: evaluations of v (titles: at 16)", ylabel="error: distance to exact ends")

# --- Knob 5, guidance. We aim at p(xt) * p(y | xt)^w, where w > 1 makes the label count more:
#     its log   = log p(xt) + w * (log p(xt | y) - log p(xt)) + constant               (Bayes' rule)
#     any score = gradient of log p = -(mean eps) / s = a * v / s - xt           (lesson 07, knob 1)
#     guided v  = null + w * (v - null), where null is v without a label
def guide(velocity, w):  # adds classifier-free guidance to velocity(xt, t, y); y = 0 is no label
    def guided(xt, t, y):
        null = velocity(xt, t, 0 * y)
        return null + w * (velocity(xt, t, y) - null)
    return guided

guided = [sample(guide(v, w), noise, label, cosine_times(20)) for w in range(9)]
misses = [ends[torch.cdist(ends, upper).amin(1) > 0.1] for ends in guided]
def draw(w):  # a large w drives samples too far from the other moon, and amplifies net errors
    for ax, i in zip(dots, [1, int(w), 8]):
        ax.clear()
        ax.plot(*x.T, ".", color="0.8")
        ax.plot(*guided[i].T, "C0.", *misses[i].T, "r.")
        ax.axis([-4, 3, -3, 2.5])
        ax.set(title=f"Knob 5, w = {i}: {len(misses[i]) / 2000:.0%} miss", aspect=1, xlabel="\n")
    ax.legend(["data", "samples on the upper moon", "misses: over 0.1 from it"])
slider = plt.Slider(plt.axes([0.42, 0.01, 0.2, 0.03]), "guidance w", 0, 8, valinit=2, valstep=1)
slider.on_changed(draw)
draw(2)
fig.savefig("09_knobs.png")

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Error of Euler at 16 NFE, cosine (bound: linear)", cosine, "<", linear)
claim("C2", "Error of Heun at 16 NFE, cosine (bound: Euler)", heun, "<", cosine)
claim("C3", "Misses among 2000 samples, w = 2 (bound: a fifth)", len(misses[2]), "<", 400)
print("figure: 09_knobs.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
