# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""10 Why discrete? Generating images from tokens, the way a language model generates text.

A token is an integer that stands for a piece of data: the text "Why?" is 87 104 121 63, its bytes.
Here, a row of an image is a token, so one net could write text and images. A net that predicts
pixels by squared error returns the gray mean of all images that fit. A net that predicts tokens can
choose one. But the tokens of one forward pass (short: pass) are sampled independently.

RUN    python 10_discrete.py              (7 seconds; the slider sets the number of passes)
BREAK  python 10_discrete.py --passes 1   (C1, C2 fail: with one pass, three methods are identical)
PAPER  arXiv 2202.04200, section 3.2 (MaskGIT); 2107.03006, section 3 (absorbing diffusion)"""
import argparse
import signal
from math import log
import matplotlib.pyplot as plt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--passes", type=int, default=8, help="to sample (default: %(default)s)")
parser.add_argument("--iters", type=int, default=1500, help="of training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.passes <= 16 and 1 <= args.iters <= 1_000_000 and 0 <= args.seed < 2**32):
    parser.error("--passes must be 1 to 16, --iters 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such a small net runs fastest on a single core

FONTS = ["DejaVu Sans", "DejaVu Serif", "STIXGeneral", "cmss10"]  # they come with matplotlib

def draw_digit(digit, font, size=16):
    """Return a digit as an image of shape (size, size), where 1 is ink and 0 is paper."""
    canvas = FigureCanvasAgg(plt.Figure(figsize=(1, 1), dpi=size))  # one inch, so size pixels
    canvas.figure.text(0.5, 0.5, digit, font=font, size=80, ha="center", va="center_baseline")
    canvas.draw()
    return 1 - torch.tensor(canvas.buffer_rgba().tolist())[:, :, 0] / 255  # red equals green, blue

images = torch.stack([draw_digit(digit, font) for digit in "0123456789" for font in FONTS]).round()

# These 40 images are all that exist here, so a sample is correct if it is one of them. Their rows
# form the codebook, and a token is an index into it. The next free number means "hidden".
codebook, tokens = images.view(-1, 16).unique(dim=0, return_inverse=True)  # (V, 16), (640,)
tokens = tokens.view(40, 16)  # so codebook[tokens] is equal to images, (40, 16, 16)

# --- Training: hide each token with probability t, and predict the hidden ones from the others. Why
# is this a model of p(x)? Reveal the tokens of x in random order. By the chain rule, their log p,
# each given those before, add up to log p(x). In the mean over all orders,
#     -log p(x) = sum over tokens of the mean over t of -log p(token | tokens visible at t)
# A token counts only if it is hidden. As this has probability t, we divide by t.
def train(tokens, vocab_size, iters, dim=16, width=128, batch_size=64, lr=0.01):
    N = tokens.shape[1]
    net = nn.Sequential(
        nn.Embedding(vocab_size + 1, dim), nn.Flatten(), nn.Linear(N * dim, width), nn.SiLU(),
        nn.Linear(width, N * vocab_size), nn.Unflatten(1, (N, vocab_size)))
    optimizer = torch.optim.Adam(net.parameters())
    t = torch.linspace(1 / batch_size, 1, batch_size)[:, None]  # (B, 1), one t for each image
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        x = tokens[torch.randint(len(tokens), [batch_size])]  # (B, N)
        is_hidden = torch.rand(x.shape) < t
        logits = net(torch.where(is_hidden, vocab_size, x))  # (B, N, V); vocab_size means "hidden"
        nats = nn.functional.cross_entropy(logits.mT, x, reduction="none")  # (B, N), -log p
        loss = (is_hidden * nats / t).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 200 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.2f} (best mean: {log(len(tokens)):.2f})")
    return net

# --- Sampling: all tokens are hidden at first, and each pass keeps some of its guesses. If an image
# is A A or B B (two rows), half of all independent guesses are A B or B A. But if we keep only one
# guess, the next pass sees it and copies it. So which guesses should we keep?
# - "autoregressive" keeps the topmost guess, as a language model does: one pass for each token.
# - "hybrid" starts like this, but its last pass keeps all the rest, when it is nearly certain.
# - "MaskGIT" keeps the most probable guesses. They seldom clash, but unusual rows are never kept.
# - "diffusion" keeps random ones, because its forward process hides tokens in random order.
METHODS = ["autoregressive", "hybrid", "MaskGIT", "diffusion"]

@torch.no_grad()
def sample(net, method, num_samples, num_tokens, mask_token, num_passes):
    """Sample tokens (B, N) with any net(x) that returns logits (B, N, V), in 1 to N passes."""
    assert method in METHODS
    num_passes = num_tokens if method == "autoregressive" else num_passes
    x = torch.full((num_samples, num_tokens), mask_token)
    for passes_left in range(num_passes, 0, -1):
        dist = torch.distributions.Categorical(logits=net(x))
        guess = dist.sample()  # (B, N)
        num_keep = (x[0] == mask_token).sum() // passes_left  # of 16, in 8 passes: 2 2 2 2 2 2 2 2
        if method == "MaskGIT":
            priority = dist.log_prob(guess)  # low for a rare row, so it is dropped
        elif method == "diffusion":
            priority = torch.rand(x.shape)  # (B, N)
        else:
            priority = torch.arange(num_tokens, 0, -1.0).expand(x.shape)  # the topmost first
            num_keep = num_keep if passes_left == 1 else 1  # hybrid: 1 1 1 1 1 1 1 9
        priority = priority.masked_fill(x != mask_token, -torch.inf)  # never replace a kept token
        positions = priority.topk(num_keep).indices  # (B, num_keep)
        x = x.scatter(1, positions, guess.gather(1, positions))  # copy these guesses into x
    return x

def measure(x, tokens):
    """Compare samples x (B, N) with all correct images, tokens (n, N)."""
    nearest = (x[:, None] == tokens).sum(2).argmax(1)  # (B,), the most similar image
    is_wrong = x != tokens[nearest]  # (B, N)
    found = nearest[~is_wrong.any(1)]  # for each correct sample, which image it is
    return {"is_wrong": is_wrong, "correct": len(found), "distinct": len(found.unique())}

net = train(tokens, len(codebook), args.iters)
fig, (top, *rows) = plt.subplots(5, figsize=(14, 7.4), layout="constrained")
top.imshow(torch.hstack([*images[:39:3], images.mean(0)]), "Greys")
top.set(xticks=[], yticks=[], title="13 of the 40 images, and the mean of all (right), which is "
        "best by squared error. Below, a red row differs from the nearest image")
bar = plt.axes([0.2, 0.006, 0.7, 0.02])
passes = plt.Slider(bar, "passes (autoregressive: 16)", 1, 16, valinit=args.passes, valstep=1)

def draw(num_passes):
    torch.manual_seed(args.seed)
    for ax, method in zip(rows, METHODS):
        x = sample(net, method, 100, 16, len(codebook), int(num_passes))
        result = measure(x, tokens)
        colors = torch.ones(100, 16, 16, 3)  # white paper (sample, row, column, RGB)
        colors[:, :, 1:-1][result["is_wrong"]] = torch.tensor([1, 0.6, 0.5])  # light red
        colors[codebook[x] == 1] = 0  # black ink
        ax.clear()
        ax.imshow(torch.hstack(list(colors[:14])))
        ax.set(xticks=[], yticks=[], title=f"{method}: {result['correct']} of 100 samples are "
               f"correct, and they show {result['distinct']} of the 40 images")
passes.on_changed(draw)
draw(args.passes)
fig.savefig("10_discrete.png", dpi=100)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
torch.manual_seed(args.seed)  # so these are the samples of the figure
samples = [sample(net, method, 100, 16, len(codebook), args.passes) for method in METHODS]
_, hybrid, maskgit, diffusion = [measure(x, tokens) for x in samples]
# Both bounds are two std. A count out of 100 has a std of at most 5, and the difference of two has
# at most 7. For the numbers of distinct images in 100 fair draws, it is 1.5 and 2.
claim("C1", "correct, hybrid - diffusion", hybrid["correct"] - diffusion["correct"], ">", 2 * 7)
claim("C2", "distinct, hybrid - MaskGIT", hybrid["distinct"] - maskgit["distinct"], ">", 2 * 2)
print("figure: 10_discrete.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
