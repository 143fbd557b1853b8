# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""11 VQ-VAE, VQGAN, FSQ: a dictionary for pictures that is learned.
In goes a photograph, cut into patches x of 4 x 4 pixels. Out come tokens, one number for each
patch, and the photograph, drawn again from its tokens alone. Vector quantisation (VQ) has two nets,
encode and decode, and a dictionary of codes. A code is a point in the plane, and so is z:
    z = encode(x),    q = the code nearest to z,    loss = |decode(q) - x|^2
The token is the number of q. If z moves a little, q stays the same code. So the slope of the loss
along z is 0, and encode learns nothing. Straight-through is the remedy: z gets the gradient of q.
It tells where q should go, and once z is there, the nearest code lies near there, too.
Codes need no gradient: each follows the running mean (EMA) of the z that chose it. But a code that
no z chooses never moves. At the start all z lie close together. If all codes start far away, one or
a few of them are nearest to every z and move there. The others are never chosen: collapse. FSQ
rounds both numbers in z to one of 7 levels. So wherever z goes, one of its 49 codes is near.
C1 Codes that start far away collapse. Moving every unused code to some z is the cure.
C2 FSQ uses most of its codes without a cure.   C3 Without straight-through its error stays large.
RUN    python 11_vq.py                 (7 seconds; the sliders train the first VQ again)
BREAK  python 11_vq.py --no-restart    C1 fails: the second VQ collapses like the first
PAPER  arXiv 1711.00937 (VQ), 2005.00341 (restart), 2309.15505 (FSQ), 2012.09841 (VQGAN: a second
       net judges whether the drawn picture looks real; not run here)"""
import argparse
import matplotlib.pyplot as plt
import torch
from matplotlib import cbook
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--no-restart", action="store_true", help="no cure of collapse: breaks VQ")
parser.add_argument("--iters", type=int, default=300, help="of each net; 20 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if args.iters < 1 or args.seed < 0:
    parser.error("--iters must be 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small are fastest on one core

# --- data: the green of a face, from -.5, dark, to .5, in 40 x 40 patches of 4 x 4 pixels
photo = plt.imread(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))  # in matplotlib
photo = torch.tensor(photo[100:260, 180:340, 1]) / 255 - 0.5  # (160, 160)
grid = photo.view(40, 4, 40, 4)  # 40 rows of patches, 4 pixels high; then the same for columns
x = grid.transpose(1, 2).reshape(1600, 16)  # (40, 40, 4, 4), and then one row for each patch

# --- method
def nearest(z, codes):
    """The number of the code (K, D) closest to each z (n, D): (n,)."""
    return torch.cdist(z, codes).argmin(1)

def update_codes(codes, z, index, memory):
    """Codes (K, D), moved towards the mean of the z (n, D) that chose them by index (n,)."""
    chose = nn.functional.one_hot(index, len(codes)).to(z)  # (n, K)
    count = chose.sum(0)[:, None]  # (K, 1)
    mean = chose.T @ z / count.clamp(min=1)  # (K, D)
    moved = memory * codes + (1 - memory) * mean
    return torch.where(count > 0, moved, codes)  # a code that nobody chose stays where it is

def restart_unused(codes, z, index):
    """Codes (K, D), where each one that is not in index (n,) is moved to some z (n, D)."""
    unused = torch.bincount(index, minlength=len(codes)) == 0  # (K,)
    some_z = z[torch.randint(len(z), (len(codes),))]  # (K, D), a random z for each code
    return torch.where(unused[:, None], some_z, codes)

def straight_through(z, q):
    """The value of q, but z gets its gradient: autograd takes the bracket for a constant."""
    return z + (q - z).detach()

def fsq(z):
    """Both numbers in z (n, 2), from -1 to 1, rounded to thirds: 7 levels each, so 49 codes."""
    return (3 * z).round() / 3

# --- train
def train_autoencoder(x, codes, iters, restart=False, straight=True):
    """Learn tokens for patches x (n, 16): VQ that starts with codes (K, 2), or FSQ if None."""
    encode = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 2), nn.Tanh())
    decode = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 16))
    weights = [*encode.parameters(), *decode.parameters()]
    optimizer = torch.optim.Adam(weights)
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - i / iters)  # large steps first, then small
        z = encode(x)  # (n, 2), from -1 to 1 because of the tanh
        if codes is None:
            q = fsq(z)  # (n, 2)
        else:
            index = nearest(z, codes)  # (n,), the tokens
            q = codes[index]  # (n, 2)
            codes = update_codes(codes, z.detach(), index, memory=0.9)  # mean over about 10 steps
            if restart:
                codes = restart_unused(codes, z.detach(), index)
        drawn = decode(straight_through(z, q) if straight else q)  # (n, 16)
        loss = (drawn - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = (loss / x.var()).item()  # 1 if all is drawn in the same grey
    used = q.data.unique(dim=0)  # (codes in use, 2); .data: the values, without gradient
    print(f"{iters} iterations, error {error:.3f}, {len(used)} codes in use")
    return argparse.Namespace(z=z.data, codes=codes, used=used, drawn=drawn.data, error=error)
clump = 0.2 * torch.randn(49, 2)  # the first codes: close together, and as many as FSQ has
plain = train_autoencoder(x, 3 + clump, args.iters)  # 3 is far away: z is between -1 and 1
cured = train_autoencoder(x, 3 + clump, args.iters, restart=not args.no_restart)  # C1
rounded = train_autoencoder(x, None, args.iters)  # C2, C3
blind = train_autoencoder(x, None, args.iters, straight=False)

# --- figure
fig, axes = plt.subplots(2, 5, figsize=(12, 5.4), layout="constrained")
axes[0, 0].set_title("grey: z of the patches\ndots: codes (x: not in use)")
axes[1, 0].imshow(photo, "gray")
start = plt.Slider(plt.axes([0.06, 0.8, 0.07, 0.03]), "start", 0, 3, valinit=3)
K = plt.Slider(plt.axes([0.06, 0.73, 0.07, 0.03]), "codes", 1, 49, valinit=49, valstep=1)
cure = plt.Slider(plt.axes([0.06, 0.66, 0.07, 0.03]), "restart", 0, 1, valinit=0, valstep=1)
iters = plt.Slider(plt.axes([0.06, 0.59, 0.07, 0.03]), "iters", 1, 300, valinit=300, valstep=1)

def draw_column(plane, picture, name, net):  # red if the error is above .1: good nets have .06
    plane.plot(net.z[:, 0], net.z[:, 1], ".", color="0.7", ms=2)
    plane.plot(net.used[:, 0], net.used[:, 1], "bo" if net.error < 0.1 else "ro", ms=4)
    plane.axis([-1.2, 3.6, -1.2, 3.6])
    plane.set(title=f"{name}\ncodes in use: {len(net.used)}", aspect="equal")
    drawn = net.drawn.view(40, 40, 4, 4).transpose(1, 2)  # (40, 4, 40, 4), as grid
    picture.imshow(drawn.reshape(160, 160), "gray", vmin=-0.5, vmax=0.5)
    picture.set_title(f"error {net.error:.3f}")
    plt.setp(axes, xticks=[], yticks=[])

def draw(_):
    torch.manual_seed(args.seed)  # the same start in every picture
    codes = start.val + clump[:int(K.val)]  # (K, 2)
    net = train_autoencoder(x, codes, int(iters.val), restart=cure.val == 1)
    axes[0, 1].clear()
    axes[1, 1].clear()
    axes[0, 1].plot(net.codes[:, 0], net.codes[:, 1], "kx", ms=4)
    draw_column(axes[0, 1], axes[1, 1], f"VQ, restart unused: {cure.val == 1}", net)
draw(None)
draw_column(axes[0, 2], axes[1, 2], f"VQ, restart unused: {not args.no_restart}", cured)
draw_column(axes[0, 3], axes[1, 3], "FSQ", rounded)
draw_column(axes[0, 4], axes[1, 4], "FSQ, no straight-through", blind)
for slider in (start, K, cure, iters):
    slider.on_changed(draw)
fig.savefig("11_vq.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", "VQ error (bound: half without restarts)", cured.error, "<", plain.error / 2)
claim("C2", "FSQ codes in use (bound: half of all)", len(rounded.used), ">", 49 / 2)
claim("C3", "FSQ error (bound: half without straight-through)", rounded.error, "<", blind.error / 2)
print("figure: 11_vq.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
