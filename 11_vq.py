# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""11 VQ-VAE and FSQ: turn an image into tokens and back, with a learned or a fixed codebook.

An encoder turns each patch of a photograph into a point z. The nearest entry q of a codebook takes
its place, and a decoder reconstructs the patch from q. The index of q is the token of this patch.
Two things can go wrong: z gets no gradient, and most entries may never be used (codebook collapse).
RUN    python 11_vq.py                (6 seconds; the slider trains the first VQ again)
BREAK  python 11_vq.py --no-restart   (C1 fails: without restarts, the second VQ collapses, too)
PAPER  arXiv 1711.00937, equation 3 (VQ-VAE), and 2309.15505 (FSQ)"""
import argparse, signal
import torch
from matplotlib import cbook, pyplot as plt
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

photo = plt.imread(cbook.get_sample_data("grace_hopper.jpg"))  # (600, 512, 3), part of matplotlib
face = torch.tensor(photo[None, 100:260, 180:340, 1]) / 255 - 0.5  # (1, 160, 160), black is -0.5
x = nn.functional.unfold(face, 4, stride=4).T  # (1600, 16), a row is a patch of 4 x 4 pixels

# --- Straight-through gradient. A small change of z does not change q, so z gets no gradient. We
# give it the gradient at q, so z goes where q should go. With entries 0 and 1, and loss (q - 1)^2:
#     z = 0.2, then 0.4   nearest is q = 0   gradient -2   so z grows by 0.2 (learning rate 0.1)
#     z = 0.6             nearest is q = 1   gradient 0    so z stays, and the loss is 0
def straight_through(z, q):
    return z + (q - z).detach()  # equals q, but autograd treats the detached term as a constant

# --- Vector quantization (VQ) learns its codebook by an online form of k-means: each entry takes a
# step to the mean of the z that chose it (exponential moving average, EMA). Why it collapses: at
# first, all z are close together. If all entries are far away, one or a few are nearest to every z.
# Only these move to the z, and the commitment loss below keeps the z there. The others stay unused.
def nearest(z, codebook):
    """Return the token of each z, (B, dim): the index, (B,), of the nearest entry in (K, dim)."""
    return torch.cdist(z, codebook).argmin(1)

def update_codebook(codebook, z, restart, decay=0.9):
    """Return the codebook (K, dim) after a step. A restart moves unused entries to random z."""
    new, tokens = codebook.clone(), nearest(z, codebook)
    for k in range(len(codebook)):
        if (tokens == k).any():
            new[k] = decay * codebook[k] + (1 - decay) * z[tokens == k].mean(0)
        elif restart:
            new[k] = z[torch.randint(len(z), [])]
    return new

# --- Finite scalar quantization (FSQ) rounds each number of z, so its codebook is a fixed grid.
def fsq(z, levels):
    """Round z (B, dim) to the nearest of `levels` evenly spaced numbers from -1 to 1."""
    half = (levels - 1) / 2
    return ((z.clamp(-1, 1) + 1) * half).round() / half - 1  # 7 levels: 0 to 6, over 3, minus 1

# --- The loss of VQ-VAE (equation 3), where sg (stop gradient) is .detach(), has three terms:
#     |x_hat - x|^2 (reconstruction) + |sg[z] - q|^2 (codebook) + beta |z - sg[q]|^2 (commitment)
# The codebook term moves each entry toward its z, and the commitment term each z to its entry.
def train(x, quantizer, codebook, restart=False, straight=True,
          iters=300, seed=0, levels=7, beta=0.25, width=64, lr=0.02):
    """Train a net on patches x (B, D). With "fsq", the codebook (K, dim) is the grid of levels."""
    D, dim = x.shape[1], codebook.shape[1]
    is_grid = len(codebook) == levels**dim and torch.dist(fsq(codebook, levels), codebook) < 1e-5
    assert quantizer == "vq" or (quantizer == "fsq" and is_grid), "use vq, or fsq with its grid"
    torch.manual_seed(seed)
    net = nn.Module()  # a container for the three parts
    net.encode = nn.Sequential(nn.Linear(D, width), nn.SiLU(), nn.Linear(width, dim), nn.Tanh())
    net.decode = nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, D))
    net.register_buffer("codebook", codebook)  # torch.save saves it with the weights
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for i in range(iters):
        z = net.encode(x)  # (B, dim), from -1 to 1 because of the tanh
        q = fsq(z, levels) if quantizer == "fsq" else net.codebook[nearest(z, net.codebook)]
        x_hat = net.decode(straight_through(z, q) if straight else q)
        loss = (x_hat - x).square().mean()  # FSQ needs only this term
        if quantizer == "vq":  # EMA takes the place of the codebook term
            loss = loss + beta * (z - q).square().mean()  # q has no gradient
            net.codebook = update_codebook(net.codebook, z.detach(), restart)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"{quantizer}, iteration {i} of {iters}: loss {loss:.4f}")
    return net

@torch.no_grad()
def measure(net, x):
    """Return z, tokens, x_hat, and its error (1 if every pixel gets the mean gray of the photo)."""
    z = net.encode(x)
    tokens = nearest(z, net.codebook)
    x_hat = net.decode(net.codebook[tokens])  # in FSQ, the nearest entry is the rounded z
    return z, tokens, x_hat, (x_hat - x).square().mean() / x.var()

gray_error = x.var(1, correction=0).mean() / x.var()  # the error if each patch gets its own mean
fig, axes = plt.subplots(2, 5, figsize=(10, 5.2), layout="constrained")
fig.suptitle("A codebook that starts far from all z collapses without restarts. FSQ's is fixed.")

def draw_image(ax, patches, title):  # from patches (1600, 16)
    ax.clear()
    ax.imshow(nn.functional.fold(patches.T, 160, 4, stride=4)[0], "gray", vmin=-0.5, vmax=0.5)
    ax.plot(4 * 32 + 1.5, 4 * 18 + 1.5, "C1s", ms=4, mfc="none")  # around patch 752 = 40 * 18 + 32
    ax.set(title=title, xticks=[], yticks=[])
def draw(column, name, net, patch=752):
    ax, image_ax = axes[:, column]
    z, tokens, x_hat, error = measure(net, x)
    entries = net.codebook[tokens]  # (1600, 2)
    ax.clear()
    ax.plot(*z.T, "C7.", ms=3, label="z of a patch")
    ax.plot(*net.codebook.T, "k+", ms=3, label="unused entry")
    ax.plot(*entries.T, ".C3" if error > gray_error else ".C0", label="entry in use")
    ax.plot(*zip(z[patch], entries[patch]), "C1s-", mfc="none", markevery=[1], label="boxed patch")
    ax.set(aspect=1, xlabel=f"boxed patch: token {tokens[patch]}")
    ax.set_title(f"{name}\n{len(tokens.unique())} of {len(net.codebook)} in use")
    draw_image(image_ax, x_hat, f"error {error:.3f}")

clump = 0.2 * torch.randn(49, 2)  # 2 + clump, around (2, 2), is out of reach for z (slider: others)
grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 7)] * 2)  # (49, 2), token 7 i + j: levels i, j
same = {"iters": args.iters, "seed": args.seed}  # so all nets start with the same weights
draw(1, "VQ", train(x, "vq", 2 + clump, **same))
second_vq = train(x, "vq", 2 + clump, restart=not args.no_restart, **same)
fsq_net = train(x, "fsq", grid, **same)
without = train(x, "fsq", grid, straight=False, **same)
draw(2, "VQ" if args.no_restart else "VQ with restarts", second_vq)
draw(3, "FSQ", fsq_net)
draw(4, "FSQ, no gradient", without)
draw_image(axes[1, 0], x, "part of the photo")
axes[0, 0].legend(*axes[0, 3].get_legend_handles_labels(),
                  title=f"error 1: all one gray\nred: above {gray_error:.3f},\neach patch one gray")
axes[0, 0].set_axis_off()
fig.savefig("11_vq.png", dpi=140)
start = plt.Slider(plt.axes([.5, 0, .4, .03]), "retrain VQ from s =", 0, 2, valinit=2, valstep=.1)
start.on_changed(lambda s: draw(1, "VQ", train(x, "vq", s + clump, **same)))

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Error of the second VQ, against mean gray", measure(second_vq, x)[3], "<", gray_error)
claim("C2", "Error of FSQ, against mean gray", measure(fsq_net, x)[3], "<", gray_error)
claim("C3", "The same without straight-through", measure(without, x)[3], ">", gray_error)
print("figure: 11_vq.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
