# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""12 D3PM and MaskGIT: masked diffusion, which generates an image's tokens in a few rounds.

At first, all 64 tokens of an image are hidden. In each round, a net predicts the hidden tokens, and
we reveal some. Ten rounds leave few mistakes. D3PM reveals random tokens. MaskGIT reveals those of
which the net is most confident, and makes fewer mistakes, but repeats itself, unless we add noise.
RUN    python 12_maskgit.py              (12 seconds; sliders: rounds, Gumbel noise)
BREAK  python 12_maskgit.py --rounds 1   (C1 and C2 fail: samples mix parts of different digits)
PAPER  arXiv 2107.03006, section 3 (absorbing D3PM); 2202.04200, section 3.2 (MaskGIT)"""
import argparse, signal
import matplotlib.pyplot as plt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn
from torch.distributions import Categorical, Gumbel

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--rounds", type=int, default=10, help="forward passes (default: %(default)s)")
parser.add_argument("--iters", type=int, default=1000, help="training iterations (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.rounds <= 64 and 1 <= args.iters <= 1_000_000 and 0 <= args.seed < 2**32):
    parser.error("--rounds must be 1 to 64, --iters 1 to 1,000,000, and --seed 0 to 2**32 - 1")
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

images = torch.stack([draw_digit(digit, font) for digit in "0123456789" for font in FONTS]).round()

# The codebook: all 2^4 = 16 patches of 2 x 2 black or white pixels. A token is an index into it.
patches = nn.functional.unfold(images[:, None], 2, stride=2).mT  # (40, 64, 4)
codebook, tokens = patches.flatten(0, 1).unique(dim=0, return_inverse=True)  # (16, 4), (2560,)
tokens = tokens.view(40, 64)  # so codebook[tokens] is equal to patches
mask_token = len(codebook)  # 16, the next free number, means "hidden"

# --- Training. DDPM adds noise. D3PM hides tokens: at time t of T, each one with probability t / T.
def train(tokens, vocab_size, iters, dim=16, width=256, batch_size=64, lr=0.006):
    """Return a net from tokens (B, N), where vocab_size means hidden, to logits (B, N, V)."""
    N = tokens.shape[1]
    net = nn.Sequential(nn.Embedding(vocab_size + 1, dim), nn.Flatten(), nn.Linear(N * dim, width),
                        nn.SiLU(), nn.Linear(width, N * vocab_size), nn.Unflatten(1, (N, -1)))
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95))  # 0.999 trains worse here
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        x = tokens[torch.randint(len(tokens), [batch_size])]  # (B, N)
        is_hidden = torch.rand(x.shape) < torch.rand(batch_size, 1)  # one t / T for each image
        logits = net(torch.where(is_hidden, vocab_size, x))  # needs no t: mask tokens show it
        loss = nn.functional.cross_entropy(logits[is_hidden], x[is_hidden])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

# --- D3PM samples back from t = T to 0. A token is hidden with probability t / T before a round and
# (t - 1) / T after it, so a hidden one is revealed with probability 1 / t. Tokens of one round are
# sampled independently. If an image could become a 3 or a 7, one may fit the 3, and one the 7.
def d3pm(net, xt, num_rounds, mask_token):
    """Fill in the mask tokens of xt, (B, N), with any net from tokens to logits (B, N, V)."""
    assert num_rounds > 0, "d3pm needs at least one round, or mask tokens would remain"
    for t in range(num_rounds, 0, -1):  # more rounds: fewer errors, lower throughput
        guess = Categorical(logits=net(xt)).sample()  # (B, N)
        is_revealed = torch.rand(xt.shape) < 1 / t
        xt = torch.where(is_revealed & (xt == mask_token), guess, xt)
    return xt

# --- MaskGIT reveals the guesses of highest probability, called confidence. Where all images agree,
# a guess is safe. The rest waits, and is drawn again in the next round. So a token that few images
# have has little chance to be kept, and images with such tokens die out. Gumbel noise helps: the
# highest log p + scale * Gumbel is at a position with probability proportional to p**(1 / scale)
# (the Gumbel-max trick). At scale 0, this is the highest p, and at a huge scale random, as in D3PM.
def maskgit(net, xt, num_rounds, mask_token, noise):
    """Like d3pm. Each sequence reveals an equal share of its own hidden tokens in each round."""
    assert num_rounds > 0, "maskgit needs at least one round, or mask tokens would remain"
    for t in range(num_rounds, 0, -1):
        p = Categorical(logits=net(xt))
        guess = p.sample()  # (B, N)
        scale = noise * (t - 1) / num_rounds  # falls to 0: late tokens should fit the rest
        confidence = p.log_prob(guess) + scale * Gumbel(0, 1).sample(xt.shape)
        confidence[xt != mask_token] = -torch.inf  # visible tokens come last, so they stay
        order = confidence.argsort(descending=True)  # (B, N), for confidence -2 -5 -1: 2 0 1
        rank = order.argsort()  # (B, N), where each position stands in this order: 1 2 0
        num_keep = (xt == mask_token).sum(1, keepdim=True) // t  # (B, 1), 64 in 10 rounds: 6 or 7
        xt = torch.where(rank < num_keep, guess, xt)
    return xt

def sample(net, xt, num_rounds, mask_token, noise, seed):  # {name of method: samples (B, N)}
    torch.manual_seed(seed)  # so that only the sliders change the samples
    return {"D3PM": d3pm(net, xt, num_rounds, mask_token),
            "MaskGIT without noise": maskgit(net, xt, num_rounds, mask_token, 0),
            "MaskGIT with noise": maskgit(net, xt, num_rounds, mask_token, noise)}
def score(x, tokens):
    """Return where x (B, N) differs from the nearest image, how often, and how many are right."""
    nearest = (x[:, None] != tokens).sum(2).argmin(1)  # (B, 40) differences to (B,)
    is_wrong = x != tokens[nearest]  # (B, N)
    found = nearest[~is_wrong.any(1)]  # which images are drawn without a wrong token
    return is_wrong, is_wrong.sum(1).float().mean(), len(found.unique())

net = train(tokens, len(codebook), args.iters).requires_grad_(False)  # the training is over
blank = torch.full([200, 64], mask_token)  # 200 samples, all hidden

fig, axes = plt.subplots(3, 3, figsize=(12, 6.4), layout="constrained")
rounds = plt.Slider(plt.axes([0.1, 0, 0.25, 0.02]), "rounds", 1, 64, valinit=args.rounds, valstep=1)
noise = plt.Slider(plt.axes([0.56, 0, 0.38, 0.02]), "Gumbel noise", 0, 5, valinit=1)
def draw(row, num_rounds):
    samples = sample(net, blank, num_rounds, mask_token, noise.val, args.seed)
    for ax, (name, x) in zip(row, samples.items()):
        is_wrong, wrong, images = score(x, tokens)
        ink = codebook[x]  # (B, N, 4), 0 (paper) to 1 (ink), which "RdGy" draws white to black
        ink[is_wrong] = -0.4 - 0.5 * ink[is_wrong]  # -0.4 (paper) to -0.9 (ink), light to dark red
        pixels = nn.functional.fold(ink[:10].mT, (16, 16), 2, stride=2)  # (10, 1, 16, 16)
        rows = pixels.view(2, 5, 16, 16).transpose(1, 2).reshape(32, 80)  # from (2, 16, 5, 16)
        ax.clear()
        ax.imshow(rows, "RdGy", vmin=-1, vmax=1)
        ax.set(xticks=[], yticks=[], title=name if ax in axes[0] else "")
        ax.set_xlabel(f"{wrong:.1f} of 64 tokens wrong, {images} of 40 images drawn right\n")
    row[0].set_ylabel(f"rounds: {num_rounds}")

for row, num_rounds in zip(axes, [1, args.rounds, 64]):
    draw(row, num_rounds)
for slider in (rounds, noise):
    slider.on_changed(lambda _: draw(axes[1], int(rounds.val)))
fig.suptitle("More rounds leave fewer wrong tokens. Without noise, MaskGIT repeats a few images.\n"
             "10 of 200 samples. Red (dark: ink): unlike the nearest image. Sliders: row 2")
fig.savefig("12_maskgit.png", dpi=120)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
with_noise = lambda n: sample(net, blank, n, mask_token, 1, args.seed)["MaskGIT with noise"]
_, one_round, _ = score(with_noise(1), tokens)
_, wrong, num_images = score(with_noise(args.rounds), tokens)
# Of all pairs of tokens, a tenth share a round if there are ten. C1 allows twice that, a fifth.
claim("C1", "Wrong tokens, against a fifth of those in one round", wrong, "<", one_round / 5)
claim("C2", "Images of 40 that occur, drawn right, in 200 draws", num_images, ">", len(tokens) / 2)
print("figure: 12_maskgit.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
