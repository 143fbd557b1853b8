# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""11 VQ and FSQ: autoencoders that turn a picture into tokens and back.
In goes a photograph, cut into patches x of 4 x 4 pixels. Out come tokens, one integer for each
patch, and the photograph, drawn again from its tokens alone. Vector quantization (VQ) has two nets,
encode and decode, and a dictionary of codes. A code is a point in the plane, and so is z:
    z = encode(x),  token = number of the nearest code,  q = codes[token],  loss = |decode(q) - x|^2
If z moves a little, q stays the same code. So the slope of the loss along z is 0, and encode learns
nothing. Straight-through is the remedy: z gets the gradient of q. This pushes z the way that q
should go, until another code that lies further that way is nearest to z. (A tanh keeps z between -1
and 1.) A code follows the running mean of the z that chose it. A code that none chose never moves.
At the start all z lie close together. If all codes start far away, the same one or few are nearest
to all z and move there. The others stay out of reach: collapse. Finite scalar quantization (FSQ)
avoids this. It rounds both numbers in z to one of 7 levels, so all 49 codes are in reach.
C1 If all codes start far away, restarts (unused codes move to some z) leave under a fifth of VQ's
error. C2 FSQ uses more than half of its codes. C3 Straight-through more than halves FSQ's error.
RUN    python 11_vq.py                 (5 seconds; the sliders train the first VQ again)
BREAK  python 11_vq.py --no-restart    C1 fails: the second VQ collapses like the first
PAPER  arXiv 1711.00937 (VQ-VAE), 2005.00341 (restart), 2309.15505 (FSQ); next 2012.09841 (VQGAN)"""
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
    """The tokens of z (n, D), the numbers of the codes (K, D) that are closest: (n,)."""
    return torch.cdist(z, codes).argmin(1)

def update_codes(codes, z, tokens, memory):
    """Codes (K, D), each moved towards the mean of the z (n, D) that have its number in tokens."""
    count = torch.bincount(tokens, minlength=len(codes))[:, None]  # (K, 1)
    total = torch.zeros_like(codes).index_add(0, tokens, z)  # (K, D), each code: sum of its z
    moved = memory * codes + (1 - memory) * total / count.clamp(min=1)
    return torch.where(count > 0, moved, codes)  # a code that nobody chose stays where it is

def restart_unused(codes, z, tokens):
    """Codes (K, D), where each one that is not in tokens (n,) is moved to some z (n, D)."""
    unused = torch.bincount(tokens, minlength=len(codes)) == 0  # (K,)
    some_z = z[torch.randint(len(z), (len(codes),))]  # (K, D), a random z for each code
    return torch.where(unused[:, None], some_z, codes)

def straight_through(z, q):
    """The value of q, but z gets its gradient: autograd takes the bracket for a constant."""
    return z + (q - z).detach()

FSQ_CODES = torch.cartesian_prod(torch.arange(-3, 4), torch.arange(-3, 4)) / 3  # (49, 2)
def fsq(z):
    """Both numbers in z (n, 2), from -1 to 1, rounded to thirds: the nearest of FSQ_CODES."""
    return (3 * z).round() / 3

# --- train
def train_autoencoder(x, codes, iters, restart=False, straight=True):
    """Learn tokens for patches x (n, 16): FSQ if codes is FSQ_CODES, else VQ from codes (K, 2)."""
    encode = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 2), nn.Tanh())
    decode = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 16))
    weights = [*encode.parameters(), *decode.parameters()]
    optimizer = torch.optim.Adam(weights, betas=(0.9, 0.95))  # torch's .999 is worse here
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - i / iters)  # large steps first, then small
        z = encode(x)  # (n, 2), from -1 to 1 because of the tanh
        if codes is FSQ_CODES:
            q = fsq(z)  # (n, 2)
        else:
            tokens = nearest(z, codes)  # (n,)
            q = codes[tokens]  # (n, 2)
            codes = update_codes(codes, z.detach(), tokens, memory=0.9)  # mean of about 10 steps
            codes = restart_unused(codes, z.detach(), tokens) if restart else codes
        drawn = decode(straight_through(z, q) if straight else q)  # (n, 16)
        # VQ papers add |z - q|^2 (commitment), or z may be pushed ever on. Here tanh sets a limit.
        loss = (drawn - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens = nearest(encode(x), codes)  # (n,); in FSQ, 7 * level of z[0] + level of z[1]
    drawn = decode(codes[tokens])  # (n, 16), the patches drawn from their tokens alone
    error = ((drawn - x).square().mean() / x.var()).item()  # 1 if all is drawn in the same grey
    print(f"error {error:.3f}, {len(tokens.unique())} codes in use, tokens {tokens[:5].tolist()}")
    return argparse.Namespace(encode=encode, decode=decode, codes=codes, tokens=tokens, error=error)
clump = 0.2 * torch.randn(49, 2)  # the first codes: close together, and as many as FSQ has
plain = train_autoencoder(x, 3 + clump, args.iters)  # 3 is far away: z is between -1 and 1
cured = train_autoencoder(x, 3 + clump, args.iters, restart=not args.no_restart)  # C1
rounded = train_autoencoder(x, FSQ_CODES, args.iters)  # C2, C3
blind = train_autoencoder(x, FSQ_CODES, args.iters, straight=False)

# --- figure
fig, axes = plt.subplots(2, 5, figsize=(12, 5.4), layout="constrained")
fig.suptitle("grey: z of the patches | blue: codes in use (red: error > .1) | x: codes not in use")
axes[0, 0].set(title="the sliders\ntrain VQ again", xticks=[], yticks=[])
axes[1, 0].imshow(photo, "gray", vmin=-0.5, vmax=0.5)
axes[1, 0].set(title="original", xticks=[], yticks=[])
start = plt.Slider(plt.axes([0.06, 0.75, 0.07, 0.03]), "start", 0, 3, valinit=3)
K = plt.Slider(plt.axes([0.06, 0.68, 0.07, 0.03]), "codes", 1, 49, valinit=49, valstep=1)
cure = plt.Slider(plt.axes([0.06, 0.61, 0.07, 0.03]), "restart", 0, 1, valinit=0, valstep=1)
iters = plt.Slider(plt.axes([0.06, 0.54, 0.07, 0.03]), "iters", 0, args.iters, valinit=args.iters)

def draw_column(plane, picture, name, net):  # red: error above .1; good nets have .05 to .08
    plane.clear()
    picture.clear()
    plane.plot(*net.codes.T, "kx", ms=3)  # below, dots cover each x that is in use
    plane.plot(*net.encode(x).detach().T, ".", color="0.7", ms=2)
    plane.plot(*net.codes[net.tokens].T, "bo" if net.error < 0.1 else "ro", ms=4)
    plane.set(xlim=(-1.2, 3.6), ylim=(-1.2, 3.6), aspect="equal", xticks=[], yticks=[])
    plane.set_title(f"{name}\ncodes in use: {len(net.tokens.unique())}")
    drawn = net.decode(net.codes[net.tokens]).detach().view(40, 40, 4, 4)  # from the tokens alone
    picture.imshow(drawn.transpose(1, 2).reshape(160, 160), "gray", vmin=-0.5, vmax=0.5)
    picture.set(title=f"error {net.error:.3f}", xticks=[], yticks=[])

def draw(_):
    torch.manual_seed(args.seed)  # the same codes and nets to start with as plain had
    codes = start.val + 0.2 * torch.randn(49, 2)[:int(K.val)]  # (K, 2)
    net = train_autoencoder(x, codes, int(iters.val), restart=cure.val == 1)
    draw_column(axes[0, 1], axes[1, 1], "VQ with restarts" if cure.val == 1 else "VQ", net)
draw_column(axes[0, 1], axes[1, 1], "VQ", plain)
draw_column(axes[0, 2], axes[1, 2], "VQ" if args.no_restart else "VQ with restarts", cured)
draw_column(axes[0, 3], axes[1, 3], "FSQ", rounded)
draw_column(axes[0, 4], axes[1, 4], "FSQ, no straight-through", blind)
for slider in (start, K, cure, iters):
    slider.on_changed(draw)
fig.savefig("11_vq.png", dpi=120)

# --- claims
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "error of second VQ (bound: a fifth of the first)", cured.error, "<", plain.error / 5)
claim("C2", "FSQ codes in use (bound: half of all)", len(rounded.tokens.unique()), ">", 49 / 2)
claim("C3", "FSQ error (bound: half without straight-through)", rounded.error, "<", blind.error / 2)
print("figure: 11_vq.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
