# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""12 D3PM and MaskGIT: masked diffusion, which generates an image's tokens in a few rounds.

Masked diffusion samples an image's 64 tokens in about ten forward passes instead of 64. Each pass,
called a round, reveals several tokens, sampled independently, so they may not fit together. D3PM
reveals random ones. MaskGIT reveals the most confident ones, with noise so that the images vary.

RUN    python 12_maskgit.py                         (10 seconds; sliders: rounds, Gumbel noise)
BREAK  python 12_maskgit.py --rounds 1              (C1 and C2 fail: parts of different digits)
       python 12_maskgit.py --noise 0 --rounds 64   (C2 fails: the same few images again and again)
PAPER  arXiv 2107.03006, section 3 (absorbing D3PM); 2202.04200, section 3.2 (MaskGIT)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn
from torch.distributions import Categorical, Gumbel

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--rounds", type=int, default=10, help="forward passes (default: %(default)s)")
parser.add_argument("--noise", type=float, default=1, help="Gumbel scale (default: %(default)s)")
parser.add_argument("--iters", type=int, default=1000, help="of training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.rounds <= 64 and 0 <= args.noise <= 5
        and 1 <= args.iters <= 1_000_000 and 0 <= args.seed < 2**32):
    parser.error("need --rounds 1 to 64, --noise 0 to 5, --iters 1 to 10**6, --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

FONTS = ["DejaVu Sans", "DejaVu Serif", "STIXGeneral", "cmss10"]  # they come with matplotlib
def draw_digit(digit, font, size=16):
    """Return a digit as an image of shape (size, size), where 1 is ink and 0 is paper."""
    canvas = FigureCanvasAgg(plt.Figure(figsize=(1, 1), dpi=size))  # one inch, so size pixels
    canvas.figure.text(0.5, 0.5, digit, font=font, size=80, ha="center", va="center_baseline")
    canvas.draw()
    return 1 - torch.tensor(canvas.buffer_rgba().tolist())[:, :, 0] / 255  # red equals green, blue

images = torch.stack([draw_digit(digit, font) for digit in "0123456789" for font in FONTS])

patches = nn.functional.unfold(images[:, None], 2, stride=2).mT  # (40, 64, 4), of 2 x 2 pixels
codebook = patches.flatten(0, 1).unique(dim=0)[:880:55]  # (16, 4), every 55th if sorted
for i in range(20):  # k-means (lesson 11) moves each entry to the mean of its nearest patches
    tokens = torch.cdist(patches, codebook).argmin(2)  # (40, 64), the index of the nearest entry
    codebook = torch.stack([patches[tokens == k].mean(0) for k in range(16)])
vocab_size = mask_token = 16  # tokens are 0 to 15, and 16 stands for a hidden token

# --- Training. D3PM is DDPM for tokens: at time t of T, it hides each with probability t / T.
def train(tokens, vocab_size, iters, dim=16, width=256, batch_size=64, lr=0.006):
    """Return a net from tokens (B, N), where vocab_size means hidden, to logits (B, N, V)."""
    N = tokens.shape[1]
    net = nn.Sequential(
        nn.Embedding(vocab_size + 1, dim), nn.Flatten(), nn.Linear(N * dim, width), nn.SiLU(),
        nn.Linear(width, N * vocab_size), nn.Unflatten(1, (N, vocab_size)))
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95))  # 0.999 trains worse here
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        x = tokens[torch.randint(len(tokens), [batch_size])]
        is_hidden = torch.rand(x.shape) < torch.rand(batch_size, 1)  # one t / T for each image
        logits = net(torch.where(is_hidden, vocab_size, x))  # it sees what is hidden, needs no t
        loss = nn.functional.cross_entropy(logits[is_hidden], x[is_hidden])
        optimizer.zero_grad()
        loss.backward()  # lesson 10 weights each token by 1 / t, with the same best net
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

# --- D3PM's sampler. A token is hidden with probability t / T at time t and (t - 1) / T at t - 1.
# So a hidden token stays hidden with probability (t - 1) / t, and is revealed with 1 / t. Suppose
# an image can still be a 3 or a 7. In one round, a token may be sampled from the 3 and its neighbor
# from the 7, unless earlier rounds decided. So more rounds have higher accuracy, lower throughput.
@torch.no_grad()
def d3pm(net, xt, num_rounds, mask_token):
    """Replace each mask token in xt, (B, N), by any net from tokens to logits (B, N, V)."""
    for t in range(num_rounds, 0, -1):  # T is num_rounds
        guess = Categorical(logits=net(xt)).sample()  # (B, N)
        is_revealed = torch.rand(xt.shape) < 1 / t
        xt = torch.where(is_revealed & (xt == mask_token), guess, xt)
    return xt

# --- MaskGIT reveals the tokens of highest log p, called confidence. If a token is nearly certain,
# it hardly depends on other hidden ones, so such tokens fit together. But rare tokens are dropped,
# and the same few images come again and again. So MaskGIT adds Gumbel noise. At scale 1, the top
# position is drawn in proportion to p. The scale (choice temperature) falls, as late ones must fit.
@torch.no_grad()
def maskgit(net, xt, num_rounds, mask_token, noise):
    """Like d3pm. Each sequence reveals an equal share of its own hidden tokens in each round."""
    for t in range(num_rounds, 0, -1):
        p = Categorical(logits=net(xt))
        guess = p.sample()  # (B, N)
        scale = noise * (t - 1) / num_rounds
        confidence = p.log_prob(guess) + scale * Gumbel(0, 1).sample(xt.shape)
        confidence[xt != mask_token] = -torch.inf  # visible tokens rank last, so they stay
        rank = confidence.argsort(descending=True).argsort()  # (B, N), 0 is most confident
        num_keep = (xt == mask_token).sum(1, keepdim=True) // t  # (B, 1), 64 in 10 rounds: 6 or 7
        xt = torch.where(rank < num_keep, guess, xt)
    return xt

def score(x, tokens):
    """Return where x, (B, N), is wrong, how often on average, and how many of the images occur."""
    num_wrong, index = (x[:, None] != tokens).sum(2).min(1)  # (B,), for the most similar one
    return x != tokens[index], num_wrong.float().mean(), len(index[num_wrong == 0].unique())

net = train(tokens, vocab_size, args.iters)
blank = torch.full([200, 64], mask_token)

fig, axes = plt.subplots(5, 3, figsize=(14, 7), height_ratios=[9] * 4 + [1], layout="constrained")
rounds = plt.Slider(axes[4, 0], "rounds", 1, 64, valinit=args.rounds, valstep=1)
noise = plt.Slider(axes[4, 2], "noise", 0, 5, valinit=args.noise)
axes[4, 1].set_axis_off()
compare = lambda n: {"D3PM": d3pm(net, blank, n, mask_token),
                     "MaskGIT, no noise": maskgit(net, blank, n, mask_token, 0),
                     "MaskGIT with noise": maskgit(net, blank, n, mask_token, noise.val)}
def draw(row, num_rounds, samples):
    for ax, (name, x) in zip(row, samples.items()):
        is_wrong, wrong, num_images = score(x, tokens)
        ink = torch.where(is_wrong[:, :, None], -0.2 - codebook[x], codebook[x])
        pixels = nn.functional.fold(ink[:4].mT, (16, 16), 2, stride=2)  # (4, 1, 16, 16)
        ax.clear()
        ax.imshow(torch.hstack(list(pixels[:, 0])), "RdGy", vmin=-1, vmax=1)  # below 0 is red
        ax.set(xticks=[], yticks=[], title=f"{name}: {wrong:.1f} wrong tokens, {num_images} images")
    row[0].set_ylabel(f"rounds: {num_rounds}")

ROUNDS = [1, 4, args.rounds, 64]
samples = [compare(n) for n in ROUNDS]
for row, n, x in zip(axes, ROUNDS, samples):
    draw(row, n, x)
for slider in (rounds, noise):
    slider.on_changed(lambda _: draw(axes[2], int(rounds.val), compare(int(rounds.val))))
_, one_round, _ = score(samples[0]["MaskGIT with noise"], tokens)
_, wrong, num_images = score(samples[2]["MaskGIT with noise"], tokens)
fig.suptitle(f"MaskGIT, noise {args.noise:g}, {args.rounds} rounds: {wrong:.1f} of 64 are wrong\n"
             "Red: differs from the most similar of 40 images. 4 of 200 samples. Sliders: row 3")
fig.savefig("12_maskgit.png", dpi=110)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
# In ten rounds, only a tenth of all pairs of tokens are sampled together. A fifth leaves a margin.
claim("C1", "Wrong tokens, and a fifth of those in one round", wrong, "<", one_round / 5)
claim("C2", "How many of the 40 images occur in 200 samples", num_images, ">", 20)
print("figure: 12_maskgit.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
