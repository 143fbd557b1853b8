# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""09 Practical knobs: prediction target, t_scale, noise schedule, solver order, and guidance.

A flow leaves these five choices open. On two moons, we see what each does to errors or samples.
RUN    python 09_knobs.py                (7 seconds; the slider sets the guidance w)
BREAK  python 09_knobs.py --target eps   (C1 fails: errors blow up near noise, so linear wins)
PAPER  arXiv 2102.09672, equation 17 (schedule); 2202.00512 (targets); 2207.12598 (guidance)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--target", choices=["v", "eps", "x0"], default="v", help="(default: v)")
parser.add_argument("--t-scale", type=int, default=1000, help="in panel 2 (default: %(default)s)")
parser.add_argument("--iters", type=int, default=600, help="training iterations (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.t_scale <= 1000 and 1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--t-scale must be 1 to 1000, --iters 1 to 1,000,000, --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

angle = torch.pi * torch.rand(3200, 1)
moon = torch.hstack([angle.cos() - 0.5, angle.sin() - 0.25])  # (3200, 2), the upper half circle
upper = (moon + 0.09 * torch.randn_like(moon)) / 0.7107  # (3200, 2), mean |x|^2 is 2, as for noise
y = 1 - 2 * torch.randint(2, angle.shape)  # label 1 is the upper moon, -1 is the lower moon
x = y * upper  # the lower moon is the upper one, turned by 180 degrees
y[torch.rand(3200) < 0.2] *= -1  # a fifth is wrong, so guidance (knob 5) has something to repair

# --- Knob 1, the target. Points xt = a * x + s * eps, with a = sin(t) and s = cos(t), move from
# noise (t = 0) to data (t = pi / 2) at velocity v = s * x - a * eps. Samples follow its mean at xt
# (lesson 05). By squared error, a net learns the mean of v, eps, or x0 (the data x). By linearity,
#     s * xt - eps = s * a * x + (s^2 - 1) * eps = a * (s * x - a * eps) = a * v     (a^2 + s^2 = 1)
#     x - a * xt   = (1 - a^2) * x - a * s * eps = s * (s * x - a * eps) = s * v
def convert_to_v(net, target, t_scale):  # returns v(xt, t, y); t_scale is knob 2
    def v(xt, t, y):
        out = net(torch.hstack([xt, t_scale * t.expand_as(y), y]))  # (B, 2)
        a, s = t.sin().clamp(0.02), t.cos().clamp(0.02)  # never divide by 0
        return {"v": out, "eps": (s * xt - out) / a, "x0": (out - a * xt) / s}[target]
    return v

# --- Knob 2, t_scale: how the net reads time. DiT, a transformer, embeds t by sines that are made
# for DDPM's t = 1 to 1000, so flow models feed it 1000 * t. Without sines, such numbers drown xt.
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
            print(f"iteration {i} of {iters}: loss {loss:.4f} (t_scale {t_scale})")
    return net.requires_grad_(False)  # frozen

# --- Knob 3, the schedule: at which times we evaluate v. DDPM's linear schedule makes short steps
# near noise and long ones near data. The cosine schedule spaces t evenly, and errs less here.
def linear_times(num_steps):
    beta = nn.functional.pad(torch.linspace(1e-4, 0.02, 1000), (1, 0))  # 0 first, as in lesson 02
    a = (1 - beta).cumprod(0).sqrt()  # (1001,), from 1 at data to almost 0 at noise
    step = torch.linspace(1000, 0, num_steps + 1).round()  # from noise to data
    return a[step.long()].asin()  # t, because a = sin(t)

def cosine_times(num_steps):  # longer steps near noise, where --target eps errs: C1 fails
    return torch.linspace(0, torch.pi / 2, num_steps + 1)  # a = sin(t) = cos(pi / 2 - t)

# --- Knob 4, the solver. NFE is the number of evaluations of v. Heun needs two of them in a step.
def sample(velocity, xt, y, times, order=2):  # turns noise xt into data, by any velocity(xt, t, y)
    for t, h in zip(times, times.diff()):  # from t to t + h
        v = velocity(xt, t, y)  # Euler (order 1) moves with the velocity at its start
        if order == 2:  # at t = pi / 2, --target x0 divides by 0.02, so C2 fails
            v = (v + velocity(xt + h * v, t + h, y)) / 2  # Heun averages start and end
        xt = xt + h * v
    return xt

# --- Knob 5, guidance: how strongly the label steers. We aim at p(xt) * p(y | xt)^w with w > 1. By
# Bayes' rule, p(y | xt) is p(y) * p(xt | y) / p(xt). So the log is (1 - w) * log p(xt), plus
# w * log p(xt | y), plus a constant. The score, grad log p, is -(mean eps) / s (lesson 07), so
#     score        = a * v / s - xt                       (by knob 1, -eps = a * v - s * xt)
#     guided score = (1 - w) * null score + w * score     (null means without a label)
#     guided v     = (1 - w) * null v + w * v             (-xt stays, as 1 - w and w add up to 1)
def guide(velocity, w):  # adds classifier-free guidance to velocity(xt, t, y); y = 0 is no label
    def guided(xt, t, y):
        null = velocity(xt, t, 0 * y)
        return null + w * (velocity(xt, t, y) - null)
    return guided

net = train(x, y, args.target, 1, args.iters)
v = convert_to_v(net, args.target, 1)
noise, label = torch.randn(2000, 2), torch.ones(2000, 1)  # we ask for the upper moon
exact = sample(v, noise, label, cosine_times(50))  # many steps, so nearly exact
error = lambda *how: (sample(v, noise, label, *how) - exact).norm(dim=1).mean()
linear = error(linear_times(16), 1)  # order 1, so 16 NFE
cosine = error(cosine_times(16), 1)
heun = error(cosine_times(8))  # order 2, so 16 NFE, too
net_2 = train(x, y, args.target, args.t_scale, args.iters)
scaled = sample(convert_to_v(net_2, args.target, args.t_scale), noise, label, cosine_times(20))
guided = [sample(guide(v, w), noise, label, cosine_times(20)) for w in range(9)]
is_off = lambda samples: torch.cdist(samples, upper).amin(1) > 0.1  # (2000,), off the upper moon

fig, ((factor, blob, bars), dots) = plt.subplots(2, 3, figsize=(12, 8), layout="constrained")
t = cosine_times(100)[2:99]
factor.semilogy(t, 1 / t.sin(), t, 1 / t.cos())  # convert_to_v divides by them
factor.legend(["eps: 1 / a (a: share of data)", "x0: 1 / s (s: share of noise)"])
factor.set(title="Knob 1, target: predicting eps errs near\nnoise, and x0 near data (v: always 1)",
           xlabel="t, from noise (0) to data (1.57)", ylabel="error of v / error of the net")
bars.bar(["Euler, linear", "Euler, cosine", "Heun, cosine"], [linear, cosine, heun])
bars.set(title=f"Knob 3: cosine / linear error: {cosine / linear:.0%}\n"
               f"Knob 4: Heun / Euler error: {heun / cosine:.0%}",
         xlabel="solver and schedule (16 NFE)", ylabel="error: distance to exact ends")

def draw(w):  # a large w drives samples too far from the other moon, and amplifies net errors
    titles = [f"Knob 5, guidance w = {i:.0f}" for i in (1, w, 8)]
    shown = scaled, guided[1], guided[int(w)], guided[8]
    for ax, title, s in zip([blob, *dots], [f"Knob 2, t_scale = {args.t_scale}", *titles], shown):
        ax.clear()
        ax.plot(*x.T, "0.8", *s.T, "C0", *s[is_off(s)].T, "r", marker=".", ls="")
        ax.axis([-4, 3, -3, 2.5])
        ax.set(title=f"{title}: {is_off(s).sum() / 2000:.0%} miss", aspect=1)
    ax.legend(["data", "samples on the upper moon", "misses: over 0.1 from it"])
slider = plt.Slider(plt.axes([0.39, 0.47, 0.25, 0.03]), "w", 0, 8, valinit=2, valstep=1)
slider.on_changed(draw)
draw(2)
fig.savefig("09_knobs.png")

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Error of Euler at 16 NFE, cosine (bound: linear)", cosine, "<", linear)
claim("C2", "Error of Heun at 16 NFE, cosine (bound: Euler)", heun, "<", cosine)
share = is_off(guided[2]).sum() / 2000
claim("C3", "Share off the moon, w = 2 (bound: share of wrong labels)", share, "<", 0.2)
print("figure: 09_knobs.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
