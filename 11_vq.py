# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""11 VQ-VAE and FSQ: turn an image into tokens and back, with a learned or a fixed codebook.

An encoder turns each patch of a photograph into a point z. Then z is replaced by the nearest entry
q of a codebook, from which a decoder reconstructs the patch. The token of the patch is the index of
this entry. This choice has no gradient, so we train the encoder by a straight-through gradient. And
entries that no z chooses never move (codebook collapse), so we restart them, or use a fixed grid.

RUN    python 11_vq.py                (6 seconds; the sliders train the first VQ again)
BREAK  python 11_vq.py --no-restart   (C1 fails, because the second codebook collapses, too)
PAPER  arXiv 1711.00937, equation 3 (VQ-VAE), and 2309.15505 (FSQ)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from matplotlib import cbook
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--no-restart", action="store_true", help="never move unused entries to a z")
parser.add_argument("--iters", type=int, default=300, help="per training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)  # comes with matplotlib
photo = torch.tensor(plt.imread(path)[100:260, 180:340, 1]) / 255 - 0.5  # (160, 160), black is -0.5
x = photo.view(40, 4, 40, 4).transpose(1, 2).reshape(1600, 16)  # a row is a patch of 4 x 4 pixels

# --- Straight-through gradient. A small change of z does not change q, so z gets no gradient. We
# copy that of q, and z moves until another entry is nearest. With entries 0, 1 and loss (q - 1)^2:
#     z = 0.2, then 0.4   q = 0   gradient at q: -2   so z moves by 0.2 (learning rate 0.1)
#     z = 0.6             q = 1   gradient at q: 0    so z stays, and the loss is 0
def straight_through(z, q):
    return z + (q - z).detach()  # equals q, but autograd treats the detached term as a constant

# --- Vector quantization (VQ) learns its codebook by an online form of k-means: each entry takes a
# step to the mean of the z that chose it (exponential moving average, EMA). Why it collapses: a new
# encoder puts all z close together. If all entries are far away, the same one or few are nearest to
# every z. They move in among the z and stay the nearest. The others, never chosen, never move.
def nearest(z, codebook):
    """Return tokens (B,) and q (B, dim) for z (B, dim), from a codebook (K, dim)."""
    tokens = torch.cdist(z, codebook).argmin(1)
    return tokens, codebook[tokens]

def update_codebook(codebook, z, tokens, restart, decay=0.9):
    """Return the codebook (K, dim) after a step. A restart moves unused entries to random z."""
    moved = z[torch.randint(len(z), [len(codebook)])] if restart else codebook.clone()
    for k in tokens.unique():
        moved[k] = decay * codebook[k] + (1 - decay) * z[tokens == k].mean(0)
    return moved

# --- Finite scalar quantization (FSQ) learns no codebook, and no entry is out of reach of the z.
def fsq(z, levels):
    """Round z (B, dim), from -1 to 1, to a few levels. Return tokens (B,) and q (B, dim)."""
    digits = ((z + 1) / 2 * (levels - 1)).round().long()  # (B, dim), from 0 to levels - 1
    tokens = sum(levels**i * digits[:, i] for i in range(z.shape[1]))  # in base `levels`
    return tokens, 2 * digits / (levels - 1) - 1

# --- The loss of VQ-VAE (equation 3), where sg (stop gradient) is .detach(), has three terms:
#     |x_hat - x|^2 (reconstruction) + |sg[z] - q|^2 (codebook) + beta |z - sg[q]|^2 (commitment)
def train(x, quantizer, codebook, restart=False, straight=True,
          iters=300, levels=7, beta=0.25, width=64):
    """Train encode and decode on patches x (B, D), and with quantizer "vq" the codebook, too."""
    assert quantizer in ("vq", "fsq"), quantizer
    (_, D), (_, dim), net = x.shape, codebook.shape, nn.Module()
    net.encode = nn.Sequential(nn.Linear(D, width), nn.SiLU(), nn.Linear(width, dim), nn.Tanh())
    net.decode = nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, D))
    net.register_buffer("codebook", codebook)  # torch.save saves it with the weights
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for i in range(iters):
        z = net.encode(x)  # (B, dim), from -1 to 1 because of the tanh
        tokens, q = fsq(z, levels) if quantizer == "fsq" else nearest(z, net.codebook)
        x_hat = net.decode(straight_through(z, q) if straight else q)
        loss = (x_hat - x).square().mean()  # FSQ needs only this term
        if quantizer == "vq":  # EMA takes the place of the codebook term
            loss = loss + beta * (z - q).square().mean()  # q has no gradient
            net.codebook = update_codebook(net.codebook, z.detach(), tokens, restart)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"{quantizer}, iteration {i} of {iters}: loss {loss:.4f}")
    return net

@torch.no_grad()
def measure(net, x):
    """Return z, tokens, x_hat, and its error (1 if all pixels have the mean gray of the photo)."""
    z = net.encode(x)
    tokens, q = nearest(z, net.codebook)  # in FSQ, this is the rounded z
    x_hat = net.decode(q)
    return z, tokens, x_hat, (x_hat - x).square().mean() / x.var()

fig, axes = plt.subplots(2, 5, figsize=(14, 6.8), layout="constrained",
                         subplot_kw={"xticks": [], "yticks": [], "box_aspect": 1})
gray_error = (x - x.mean(1, keepdim=True)).var() / x.var()  # each patch in its mean gray
fig.suptitle("A codebook that starts far from all z collapses. Restarts or FSQ prevent it.\n"
             "Gray: z of all patches. Blue: entries in use. Crosses: entries not in use. "
             f"Red: error above {gray_error:.3f}, that of each patch in its mean gray")
axes[1, 0].imshow(photo, "gray").axes.set_title("original")
def draw(column, name, net):
    (top, bottom), (z, tokens, x_hat, error) = axes[:, column], measure(net, x)
    used = net.codebook[tokens.unique()]
    top.clear()
    top.plot(*z.T, ".", color="0.7", ms=2)
    top.plot(*net.codebook.T, "kx", ms=4)
    top.plot(*used.T, "o", color="tab:red" if error > gray_error else "tab:blue", ms=4)
    top.axis([-1.1, 2.6, -1.1, 2.6])
    top.set_title(f"{name}\n{len(used)} of {len(net.codebook)} entries in use")
    image = x_hat.view(40, 40, 4, 4).transpose(1, 2).reshape(160, 160)
    bottom.imshow(image, "gray", vmin=-0.5, vmax=0.5)
    bottom.set_title(f"error {error:.3f}\ntokens, row 20: {tokens[800:803].tolist()}")

clump = 0.2 * torch.randn(49, 2)
grid = torch.cartesian_prod(torch.linspace(-1, 1, 7), torch.linspace(-1, 1, 7)).flip(1)
nets = []
for name, *setting in [  # setting: quantizer, codebook, restart, straight
        ("VQ", "vq", 2 + clump),
        ("VQ" if args.no_restart else "VQ with restarts", "vq", 2 + clump, not args.no_restart),
        ("FSQ", "fsq", grid), ("FSQ, no straight-through", "fsq", grid, False, False)]:
    torch.manual_seed(args.seed)  # all nets start with the same weights
    nets.append(train(x, *setting, iters=args.iters))
    draw(len(nets), name, nets[-1])

axes[0, 0].set_title("Train the first VQ again, with\nentries around (start, start)")
start = plt.Slider(plt.axes([0.05, 0.72, 0.09, 0.05]), "start", 0, 2, valinit=2, valstep=0.1)
restarts = plt.Slider(plt.axes([0.05, 0.6, 0.09, 0.05]), "restarts", 0, 1, valinit=0, valstep=1)
def draw_first(_):
    torch.manual_seed(args.seed)
    draw(1, "VQ", train(x, "vq", start.val + clump, restarts.val == 1, iters=args.iters))
start.on_changed(draw_first)
restarts.on_changed(draw_first)
fig.savefig("11_vq.png", dpi=120)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
error = [measure(net, x)[3] for net in nets]  # VQ twice, FSQ, FSQ without straight-through
claim("C1", "Error of the second VQ, against patches in their mean gray", error[1], "<", gray_error)
claim("C2", "Error of FSQ, against half without straight-through", error[2], "<", error[3] / 2)
print("figure: 11_vq.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
