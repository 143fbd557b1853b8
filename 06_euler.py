# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""06 Euler ODEs: walk the learned velocity field from noise to data in a few steps.
Join noise eps ~ N(0, I) to data x by lines xt = t x + (1 - t) eps. A net learns their mean velocity
v(xt, t) = E[x - eps | xt]; following it keeps the lines' density at every t (lesson 05), so solve
dx/dt = v from t = 0 to t = 1. Forward Euler, x <- x + h v(x, t), errs where the paths bend.
C1 h / 2 divides the error of Euler, Heun, RK4 by 2, 4, 16: orders 1, 2, 4 on the learned field
C2 --steps end closer to the data, in energy distance (ED, 0 = one density), than the noise began
C3 Euler's ED is below .005 after 50 calls, a 20th of the full chain of DDPM (run in lesson 07)
C4 v averages crossing lines, so paths bend, but not those of a second net that learns the pairs
   (eps, x) which the first ODE connects (reflow)    C5 so ONE Euler step of that one is enough
RUN    python 06_euler.py --steps 5    (5 s; or --data FILE, a table or a picture of your own)
BREAK  python 06_euler.py --steps 1    all samples fall to the mean of the data: C2 fails
PAPER  Liu et al. 2022, arXiv 2209.03003, eq. 1 (the loss) and algorithm 1 (reflow)"""
import argparse
import os
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.widgets import RadioButtons, Slider
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=20, help="solver steps; 1 breaks it (%(default)s)")
parser.add_argument("--solver", default="euler", choices=["euler", "heun", "rk4"], help="(euler)")
parser.add_argument("--data", help=".csv or .npy of two columns, .png or .jpg (default: two moons)")
parser.add_argument("--iters", type=int, default=700, help="of each net; 100 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="06_euler.png", help=".png or .pdf (%(default)s)")
args = parser.parse_args()
if not (1 <= args.steps <= 50 and 1 <= args.iters <= 100_000 and 0 <= args.seed <= 2**31):
    parser.error("--steps: 1 .. 50, --iters: 1 .. 100000, --seed: 0 .. 2^31")
ok = args.out[-4:] in (".png", ".pdf") and os.access(args.out, os.W_OK) == os.path.isfile(args.out)
ok and os.access(os.path.dirname(args.out) or ".", os.W_OK) or parser.error("--out cannot be saved")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small gain little or nothing from a second thread
device = "cuda" if torch.cuda.is_available() else "cpu"

# --- data: two moons (2 x 32 Gaussians), or your own; then centred, scaled to mean variance 1
file, rng = args.data or "", np.random.default_rng(args.seed)
try:
    if file.lower().endswith((".csv", ".npy")):
        xy = np.load(file) if file.lower().endswith(".npy") else np.genfromtxt(file, delimiter=",")
        xy = np.float64(xy[1:] if np.isnan(xy[0]).all() else xy)  # a header line is not a number
    elif file:  # a picture laid on white: 50,000 draws from (1 - luminance) x alpha, if it has one
        image = np.atleast_3d(plt.imread(file)) / (1 if file.lower().endswith(".png") else 255)
        dark = (1 - (image[..., :3] * [0.299, 0.587, 0.114]).sum(2)) * image[..., 3:].prod(2)
        assert dark.max() > 1e-3, "a blank picture"
        pixel = rng.choice(dark.size, 50_000, p=dark.ravel() / dark.sum())
        xy = np.stack([pixel % len(dark[0]), -(pixel // len(dark[0]))], 1) + rng.random((50_000, 2))
    else:
        th = (np.arange(32) + 0.5) * np.pi / 32  # angles along the half circles
        xy = np.stack([np.r_[np.cos(th), 1 - np.cos(th)], np.r_[np.sin(th), 0.5 - np.sin(th)]], 1)
        xy = xy.repeat(2000, 0) + 0.09 * rng.standard_normal((128_000, 2))  # std .09 across
    assert xy.shape[1:] == (2,) and len(xy) > 9 and 1e-9 < np.ptp(xy, 0).max() < 1e9, "not 10 pairs"
except Exception as error:  # whatever is wrong with the file: one line, before any training
    parser.error(f"--data {file}: {error}")
data = torch.tensor((xy - xy.mean(0)) / xy.var(0).mean() ** 0.5).float().to(device)  # (n, 2)

# --- method: a solver's step is a list of stages, each (how far it looks ahead, its weight)
STAGES = {"euler": [(0, 1)], "heun": [(0, 1 / 2), (1, 1 / 2)],
          "rk4": [(0, 1 / 6), (1 / 2, 1 / 3), (1 / 2, 1 / 3), (1, 1 / 6)]}  # one line more
def solve(v, x, n_steps, solver):
    """Integrate dx/dt = v(x, t) from noise x (B, 2) at t = 0 to t = 1: path (n_steps + 1, B, 2)."""
    h, path = 1 / n_steps, [x]  # step size
    for i in range(n_steps):
        slope, move = 0, 0
        for c, weight in STAGES[solver]:  # subtle: ahead along the previous stage's slope
            slope = v(torch.cat([x + c * h * slope, torch.full_like(x[:, :1], (i + c) * h)], 1))
            move = move + weight * slope  # the stages' weights sum to 1
        x = x + h * move
        path.append(x)
    return torch.stack(path)  # its last row is the sample

# --- network and train: on independent pairs (eps, x), then on the pairs that its ODE connects
x, fields, bend = data.repeat(1 + 99_999 // len(data), 1), [], []  # a point meets many noises
eps = torch.randn_like(x)
for name in ("first", "reflow"):
    hidden = [m for i in (3, 32, 32, 32) for m in (nn.Linear(i, 32), nn.SiLU())]
    for layer in hidden[::2]:
        nn.init.kaiming_normal_(layer.weight)  # nn.Linear's own, smaller start takes longer
    net = nn.Sequential(*hidden, nn.Linear(32, 2)).to(device)  # (xt, t) (B, 3) -> v_hat (B, 2)
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95), fused=True)
    for i in range(args.iters):
        optimizer.param_groups[0]["lr"] = 3e-2 * (1 - i / args.iters)  # large, as it falls to 0
        pick, t = torch.randint(len(x), (1024,)), torch.rand(1024, 1, device=device)
        v = x[pick] - eps[pick]  # (B, 2), constant along the line; loss: 1.37 +- .05 for moons
        loss = (net(torch.cat([eps[pick] + t * v, t], 1)) - v).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (i + 1) % max(1, args.iters // 4) == 0:
            print(f"{name:6} iter {i + 1:5d}  loss {loss.item():.4f}")
    fields.append(net.requires_grad_(False))
    path = torch.cat([solve(net, z, 12, "rk4") for z in torch.randn(5, 2000, 2).to(device)], 1)
    eps, x = path[0], path[-1]  # the pairs of the next round; 2000 at once fit the cache
    bend.append((path.diff(dim=0).norm(dim=2).sum() / (x - eps).norm(dim=1).sum()).item() - 1)  # C4

# --- measure
def energy_distance(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'|, unbiased: 0 if x (n, 2), y (m, 2) share one density."""
    def total(p, q):  # strips of 500 rows stay in the cache
        return sum(torch.cdist(strip, q).sum().item() for strip in p.split(500))
    n, m = len(x), len(y)
    return 2 * total(x, y) / (n * m) - total(x, x) / (n * (n - 1)) - total(y, y) / (m * (m - 1))
def ed(field, n_steps, solver="euler"):
    return energy_distance(solve(field, z, n_steps, solver)[-1], real)
torch.manual_seed(args.seed + 1)  # one noise for every sampler, whatever --iters was
z, real = torch.randn(4000, 2, device=device), data[torch.randint(len(data), (4000,))]
calls = next((n for n in (8, 10, 12, 14, 16, 20, 28, 40) if ed(fields[0], n) < 0.005), 999)  # C3
off, before = [], energy_distance(z, real)  # C1; C2: of the noise itself
for solver, order in zip(STAGES, (1, 2, 4)):  # C1, in float64: float32 hides RK4's error
    ends = [solve(fields[0].double(), z[:100].double(), n, solver)[-1] for n in (32, 64, 128)]
    ratio = (ends[0] - ends[1]).norm(dim=1) / (ends[1] - ends[2]).norm(dim=1)  # about 2 ** order
    off.append(abs(ratio.log2().median().item() - order))
fields[0].float()  # subtle: double() has changed the net in place

# --- figure
fig, axes = plt.subplots(1, 2, figsize=(10, 6), gridspec_kw={"bottom": 0.22, "top": 0.95})
slider = Slider(fig.add_axes([0.4, 0.06, 0.4, 0.03]), "steps", 1, 50, valinit=args.steps, valstep=1)
radio = RadioButtons(fig.add_axes([0.1, 0.01, 0.1, 0.12]), [*STAGES], [*STAGES].index(args.solver))
def draw(_=None):
    for ax, field, name in zip(axes, fields, ("learned field", "after reflow")):
        path = solve(field, z, int(slider.val), radio.value_selected).cpu()  # (steps + 1, B, 2)
        d = energy_distance(path[-1], real.cpu())
        ax.clear()
        ax.plot(*real.T.cpu(), "C7.", *path[-1].T, "C0." if d < before else "C3.", ms=2)
        ax.plot(path[:, :40, 0], path[:, :40, 1], "k.-", lw=0.6, markevery=[0])  # dots: t = 0
        ax.set(title=f"{name}, {slider.val} steps: ED {d:.4f}", xlabel="$x_1$", ylabel="$x_2$",
               aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
    fig.canvas.draw_idle()
draw()
slider.on_changed(draw)
radio.on_clicked(draw)
fig.savefig(args.out, dpi=120)

# --- claims
claims = [("C1", "off the orders 1, 2, 4 at most", max(off), "<", 0.15),
    ("C2", "ED, vs noise's", ed(fields[0], args.steps, args.solver), "<", before),
    ("C3", "Euler's calls until its ED is below .005", calls, "<", 50),
    ("C4", f"length / chord - 1, reflow over {bend[0]:.2f} before", bend[1] / bend[0], "<", 0.05),
    ("C5", "ED of ONE Euler step of the reflowed field", ed(fields[1], 1), "<", 0.005)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
