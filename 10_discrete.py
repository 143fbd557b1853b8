# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""10 Why discrete? Generating images from tokens, the way a language model generates text.

A token is an integer that stands for a piece of data, like a byte of text. As tokens, text, audio,
and images can share one net and one loss. Diffusion makes images from pixels (lesson 08), but in
many small steps, because a net with squared error returns the mean of all images that fit, a blur.
For tokens, a net returns probabilities. One forward pass (short: pass) can sample all tokens of an
image, but each without seeing the others, so they may not fit together.
RUN    python 10_discrete.py              (8 seconds; the slider sets the number of passes)
BREAK  python 10_discrete.py --passes 1   (C1 and C2 fail: one pass has to keep all its guesses)
PAPER  arXiv 2202.04200, section 3.2 (MaskGIT); 2107.03006, section 3 (absorbing diffusion)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--passes", type=int, default=8, help="forward passes (default: %(default)s)")
parser.add_argument("--iters", type=int, default=1500, help="training iterations (%(default)s)")
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

# --- Training: hide each token with probability t, and predict the hidden ones from the visible.
# Why does this learn p(x)? Imagine a uniformly random time for each token, and a clock t from 1 to
# 0. At its time, a token is revealed and costs -log p nats. By the chain rule, the costs add up to
# -log p(x | order), whose mean over orders is at least -log p(x) (Jensen's inequality). This bound
# is our loss. A token that is hidden at t is revealed in the next dt with probability dt / t, so we
# divide by t. On average, the loss is log 40 = 3.69 at best, as all 40 images are equally likely.
def train(tokens, vocab_size, iters, dim=16, width=128, batch_size=64, lr=0.01):
    N = tokens.shape[1]
    net = nn.Sequential(nn.Embedding(vocab_size + 1, dim), nn.Flatten(), nn.Linear(N * dim, width),
                        nn.SiLU(), nn.Linear(width, N * vocab_size), nn.Unflatten(1, (N, -1)))
    optimizer = torch.optim.Adam(net.parameters())
    t = torch.linspace(1 / batch_size, 1, batch_size)[:, None]  # (B, 1), one t for each image
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        x = tokens[torch.randint(len(tokens), [batch_size])]  # (B, N)
        is_hidden = torch.rand(x.shape) < t
        logits = net(torch.where(is_hidden, vocab_size, x))  # (B, N, V); vocab_size means "hidden"
        nats = nn.functional.cross_entropy(logits.mT, x, reduction="none")  # (B, N), -log p
        loss = (is_hidden * nats / t).sum(1).mean()  # in nats for an image
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 200 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.2f}")
    return net

# --- Sampling: all tokens are hidden at first, and each pass keeps some of its guesses. If an image
# is A A or B B (two rows), half of all independent guesses are A B or B A. But if we keep only one
# guess, the next pass sees it and copies it. The most probable guesses seldom clash, as the net is
# sure of them. But other guesses are drawn again, so MaskGIT loses rare rows, and images repeat.
METHODS = {"autoregressive": "top row first", "hybrid": "top row first, then all the rest",
           "MaskGIT": "most probable rows first", "masked diffusion": "random rows first"}

def sample(net, method, num_samples, num_tokens, mask_token, num_passes):
    """Sample tokens (B, N) with any net(x) that returns logits (B, N, V), in 1 to N passes."""
    assert method in METHODS
    if method == "autoregressive":
        num_passes = num_tokens  # one token a pass, so that only the net's errors remain
    x = torch.full((num_samples, num_tokens), mask_token)
    for passes_left in range(num_passes, 0, -1):
        dist = torch.distributions.Categorical(logits=net(x))
        guess = dist.sample()  # (B, N)
        num_keep = (x[0] == mask_token).sum() // passes_left  # of 16, in 8 passes: 2 2 2 2 2 2 2 2
        if method == "hybrid" and passes_left > 1:
            num_keep = 1  # so 1 1 1 1 1 1 1 9: the top seven leave few images possible
        priority = torch.linspace(1, 0, num_tokens).expand(x.shape)  # (B, N), the topmost first
        if method == "MaskGIT":
            priority = dist.log_prob(guess)
        if method == "masked diffusion":
            priority = torch.rand(x.shape)  # the reverse of hiding tokens in random order
        priority = priority.masked_fill(x != mask_token, -torch.inf)  # never replace a kept token
        positions = priority.topk(num_keep).indices  # (B, num_keep)
        x = x.scatter(1, positions, guess.gather(1, positions))  # copy these guesses into x
    return x

def measure(x, tokens):
    """Return which tokens of x (B, N) differ from the nearest of n images, and copies of each."""
    is_same = x[:, None] == tokens  # (B, n, N), each sample compared with each image
    nearest = is_same.sum(2).argmax(1)  # (B,), the image that has the most tokens in common
    return x != tokens[nearest], is_same.all(2).sum(0)  # (B, N), (n,)

net = train(tokens, len(codebook), args.iters).requires_grad_(False)  # the training is over
fig, axes = plt.subplots(5, figsize=(12, 6.6), height_ratios=[3, 2, 2, 2, 2], layout="constrained")
fig.suptitle("Rows guessed at once may not fit together. Keeping the most probable repeats images.")
passes = plt.Slider(plt.axes([.9, .95, .07, .04]), "passes ", 1, 16, valinit=args.passes, valstep=1)
grid = torch.vstack([torch.hstack([*half]) for half in images.split(20)])  # (32, 320)
mean = images.mean(0).kron(torch.ones(2, 2))  # (32, 32), twice as large
axes[0].imshow(torch.hstack([grid, mean]), "Greys")
axes[0].set_title("40 training images, each row a token. Right: their mean, as squared error gives")
axes[0].set_xlabel("Below: 16 of 100 samples (fair draws: 37 images). Red: unlike nearest image")

def draw(value):
    torch.manual_seed(args.seed)
    for ax, method in zip(axes[1:], METHODS):
        x = sample(net, method, 100, 16, len(codebook), int(value))
        is_wrong, counts = measure(x, tokens)
        paper = torch.where(is_wrong[..., None], torch.tensor([1, 0.6, 0.6]), 1)  # (100, 16, RGB)
        pixels = paper[:, :, None] * (1 - codebook[x][..., None])  # (100, 16, 16, RGB), black ink
        frames = nn.functional.pad(pixels[:16], [0, 0, 1, 1, 1, 1], value=1)  # (16, 18, 18, RGB)
        ax.clear()
        ax.imshow(torch.hstack([*frames]))
        num_passes = 16 if method == "autoregressive" else int(value)
        ax.set_title(f"{method} (passes: {num_passes}): {METHODS[method]}", loc="left")
        ax.set_title(f"{counts.sum()}% correct, {(counts > 0).sum()} of 40 images", loc="right")
    plt.setp(axes, xticks=[], yticks=[])

passes.on_changed(draw)
draw(args.passes)
fig.savefig("10_discrete.png", dpi=100)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
torch.manual_seed(args.seed)  # so these are the samples of the figure
samples = [sample(net, method, 100, 16, len(codebook), args.passes) for method in METHODS]
_, hybrid, maskgit, diffusion = [measure(x, tokens)[1] for x in samples]
# Both bounds are two std of chance. The share of correct samples has a std of at most 5%, and a
# difference of two 7%. The number of images in fair draws has a std of about 2, a difference 3.
claim("C1", "correct, hybrid - diffusion", hybrid.sum() - diffusion.sum(), ">", 2 * 7)
claim("C2", "distinct, hybrid - MaskGIT", (hybrid > 0).sum() - (maskgit > 0).sum(), ">", 2 * 3)
print("figure: 10_discrete.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
