# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""09 Practical knobs: schedule, solver and guidance, turned on one small net.
Between noise eps and data x lie mixes of the two, at an angle phi that grows from 0 to pi / 2:
    xt = a x + s eps,    a = sin(phi),  s = cos(phi),    v = d xt / d phi = s x - a eps
Many x and eps lead to one xt. By squared error the net learns the mean of their v. What flows
through any boundary is density times mean velocity, so noise that moves with this mean ends as
data: at its exact ends if steps are tiny. Labels, one in five of them wrong, are for guidance.
C1 Schedule: Euler misses the exact ends by less at equal angles (cosine) than with linear beta.
C2 Solver: a step of Heun asks for v twice. With half of Euler's steps it still misses by less.
C3 Guidance: with w = 2, samples for "upper" are closer to the upper moon than with w = 1 (none).
RUN    python 09_knobs.py              (5 seconds; sliders: steps, w)
BREAK  python 09_knobs.py --steps 2    Heun needs short steps: C2 fails; with --w 8 C3 fails
PAPER  arXiv 2102.09672, equation 17 (schedule); 2202.00512 (v); 2207.12598 (guidance)"""
import argparse
import matplotlib.pyplot as plt
import torch
from torch import nn
# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=8, help="of Heun; 2 breaks it (%(default)s)")
parser.add_argument("--w", type=float, default=2, help="guidance; 8 breaks it (%(default)s)")
parser.add_argument("--iters", type=int, default=1000, help="of training; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if not 1 <= args.steps <= 50 or not 0 <= args.w <= 8 or args.iters < 1 or args.seed < 0:
    parser.error("--steps must be 1 to 50, --w 0 to 8, --iters 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small are fastest on one core

# --- data
ANGLE = (torch.arange(32) + 0.5) * torch.pi / 32
MOON = torch.stack([ANGLE.cos() - 0.5, ANGLE.sin() - 0.25], 1)  # (32, 2); the lower moon is -MOON
MU = torch.cat([MOON, -MOON]) / 0.7107  # (64, 2); the samples' std, both axes pooled, is 1 now
STD = 0.09 / 0.7107  # p_data is a narrow Gaussian around each of the 64 places
UPPER, BLANK = torch.ones(1), torch.zeros(1)  # labels: 1 upper, -1 lower, 0 no label
def labelled_moons(n):
    place = torch.randint(64, (n,))
    x = MU[place] + STD * torch.randn(n, 2)
    label = torch.where(place < 32, 1.0, -1.0)  # the first 32 places are the upper moon
    label[torch.rand(n) < 0.2] *= -1  # one in five is wrong
    return x, label[:, None]  # (n, 2), (n, 1)

# --- method, knob 1: schedule, the angles at which a sampler stops between noise and data
def linear_beta(n_steps):  # (n_steps + 1,) angles; half are below .3, so later steps are long
    beta = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, 1000)])  # of DDPM, k = 0 .. 1000
    k = torch.linspace(1000, 0, n_steps + 1).round().long()  # from noise, k = 1000, to data
    return (1 - beta).cumprod(0)[k].sqrt().asin()  # step k leaves the share 1 - beta[k] of a^2
def equal_angles(n_steps):  # (n_steps + 1,), from 0 to pi / 2 = 1.57
    return torch.linspace(0, torch.pi / 2, n_steps + 1)

# --- method, knob 2: solver. Half the step leaves half of Euler's error, a quarter of Heun's
def euler(v, x, t, h):
    return x + h * v(x, t)
def heun(v, x, t, h):
    k1 = v(x, t)
    return x + h * (k1 + v(x + h * k1, t + h)) / 2

# --- method, knob 3: guidance, two calls of v for one
def guide(v, w, label, blank):
    """v(xt, phi, label) with guidance w: a function of xt and phi. The mean of eps given xt is -s
    times the slope of log p(xt) (lesson 07), so mean v is s / a (xt + this slope). By Bayes' rule
    log p(xt | label) - log p(xt) = log p(label | xt) + constant, so cond - null is s / a times the
    slope of log p(label | xt), and w counts it w times. In noise, the part of the upper moon that
    is near the lower one has a less sure label, and a large w empties it."""
    def guided(xt, phi):
        cond = v(xt, phi, label)
        null = v(xt, phi, blank)
        return null + w * (cond - null)
    return guided

def follow(v, x, angles, step):  # carries noise x (B, 2) along v(xt, phi) from angle to angle
    for phi, phi_next in zip(angles, angles[1:]):
        x = step(v, x, phi, phi_next - phi)
    return x

# --- train
def train_labelled(iters):
    """Learn the mean v. Returns v(xt, phi, label): phi, label are tensors, one number or (B, 1)."""
    net = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    def ask(xt, phi, label):  # phi, label: (B, 1), or one number for all B
        return net(torch.cat([xt, phi.expand(len(xt), 1), label.expand(len(xt), 1)], 1))
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - i / iters)  # large steps first, then small
        x, label = labelled_moons(1024)
        label[torch.rand(1024) < 0.1] = BLANK  # one in ten, as guidance will ask without a label
        eps, phi = torch.randn(1024, 2), torch.rand(1024, 1) * torch.pi / 2
        xt = phi.sin() * x + phi.cos() * eps
        target = phi.cos() * x - phi.sin() * eps  # v
        loss = (ask(xt, phi, label) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{iters} iterations, loss {loss:.3f} (not 0: many pairs share one xt)")
    return lambda xt, phi, label: ask(xt, phi, label).detach()

def energy_distance(x, y):
    """Return the energy distance of samples x and y, (n, 2) each (Szekely and Rizzo 2013).
    It is 2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 only if both distributions are equal."""
    distance = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    return distance.item()

def misses(v, noise, exact, n_steps):  # from exact ends; v is called 2 n_steps times
    ends = [follow(v, noise, linear_beta(2 * n_steps), euler),
            follow(v, noise, equal_angles(2 * n_steps), euler),
            follow(v, noise, equal_angles(n_steps), heun)]
    return [(end - exact).norm(dim=1).mean().item() for end in ends]
v = train_labelled(args.iters)
noise = torch.randn(2500, 2)
plain = lambda xt, phi: v(xt, phi, UPPER)  # without guidance
exact = follow(plain, noise, equal_angles(200), heun)  # so many steps that more change nothing
miss = misses(plain, noise, exact, args.steps)  # C1, C2
upper = MU[torch.randint(32, (2500,))] + STD * torch.randn(2500, 2)  # no wrong label among these
guided = follow(guide(v, args.w, UPPER, BLANK), noise, equal_angles(200), heun)
before, after = energy_distance(exact, upper), energy_distance(guided, upper)  # C3

# --- figure
fig, (bars, left, right) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
steps = plt.Slider(plt.axes([0.4, 0.02, 0.2, 0.04]), "steps", 1, 50, valinit=args.steps, valstep=1)
guidance = plt.Slider(plt.axes([0.75, 0.02, 0.2, 0.04]), "w", 0, 8, valinit=args.w)
def draw(_):
    bars.clear()
    bars.bar(["linear beta", "equal angles", "+ Heun"], misses(plain, noise, exact, int(steps.val)))
    bars.set_title(f"{2 * int(steps.val)} calls of v: mean distance to the exact ends")
    guided = follow(guide(v, guidance.val, UPPER, BLANK), noise, equal_angles(20), heun)  # fast
    for ax, x, w in (left, exact, 1), (right, guided, guidance.val):
        distance = energy_distance(x, upper)
        ax.clear()
        ax.plot(*upper.T, ".", color="0.7", ms=2)
        ax.plot(*x.T, ".", color="tab:blue" if distance <= before else "tab:red", ms=2)
        ax.set(title=f"w = {w:.1f}, energy distance\nto upper moon, grey: {distance:.3f}", aspect=1)
draw(None)
steps.on_changed(draw)
guidance.on_changed(draw)
fig.savefig("09_knobs.png", dpi=120)

# --- claims
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "distance to the exact ends, equal angles (bound: linear beta)", miss[1], "<", miss[0])
claim("C2", "the same with Heun (bound: Euler)", miss[2], "<", miss[1])
claim("C3", f"energy distance to upper, w = {args.w:g} (bound: w = 1)", after, "<", before)
print("figure: 09_knobs.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
