# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""10 Why discrete? Generating images from tokens, the way a language model generates text.

A token is an integer that stands for a piece of data: the text "Why?" is 87 104 121 63, its bytes.
Here, a token stands for a row of an image. A net that predicts tokens can say "this row or that
row". A net that predicts pixels by squared error says their gray mean, which diffusion sharpens in
many steps. And with tokens, one net can write both text and images. But the tokens of one forward
pass (short: pass) are sampled independently. We compare four methods, which keep different ones.

RUN    python 10_discrete.py              (6 seconds; sliders set the passes and the temperature)
BREAK  python 10_discrete.py --passes 1   (C2, C3 fail: hybrid, MaskGIT, diffusion are all the same)
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

# --- Data: the ten digits in four fonts that come with matplotlib
FONTS = ["DejaVu Sans", "DejaVu Serif", "STIXGeneral", "cmss10"]

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

# --- Training: hide some tokens of an image, and predict them from the others
# If every image is A A or B B (two rows), the net learns to copy a visible row. If both are hidden,
# it learns that A and B have probability 1/2 each. Why divide by t? If we reveal tokens one by one,
# each has its turn at a random t, the fraction still hidden, and costs -log p nats. Here, it counts
# with probability t only. Divided by t, the sum is the image's code length, on average >= log 40.
def train(tokens, vocab_size, iters, dim=16, width=128, batch_size=64, lr=0.01):
    N, V = tokens.shape[1], vocab_size  # the net takes (B, N), where V means hidden, to (B, N, V)
    net = nn.Sequential(nn.Embedding(V + 1, dim), nn.Flatten(), nn.Linear(N * dim, width),
                        nn.SiLU(), nn.Linear(width, N * V), nn.Unflatten(1, (N, V)))
    optimizer = torch.optim.Adam(net.parameters())
    t = torch.linspace(1 / batch_size, 1, batch_size)[:, None]  # (B, 1), one t for each image
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        x = tokens[torch.randint(len(tokens), [batch_size])]  # (B, N)
        is_hidden = torch.rand(x.shape) < t
        logits = net(torch.where(is_hidden, vocab_size, x))
        nats = nn.functional.cross_entropy(logits.mT, x, reduction="none")  # (B, N), -log p
        loss = (is_hidden * nats / t).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 200 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.2f} (best mean: {log(len(tokens)):.2f})")
    return net
net = train(tokens, len(codebook), args.iters)

# --- Sampling: all tokens are hidden at first, and each pass keeps some of its guesses
# The guesses of one pass are independent. If we kept them all, half of the images in our example
# would be A B or B A. So we keep only some, and the next pass sees them. The methods are:
# - "autoregressive" keeps the topmost guess, as a language model does: one pass for each token.
# - "hybrid" starts like this, but keeps all the rest in its last pass, when it is nearly certain.
# - "MaskGIT" keeps the most confident guesses, as a certain one fits, whatever the others are. But
#   a rare row has low confidence whenever it is sampled, so it is dropped, and images repeat.
# - "diffusion" keeps random ones. Its noise hides tokens in random order, and this undoes it.
METHODS = ["autoregressive", "hybrid", "MaskGIT", "diffusion"]

@torch.no_grad()
def sample(net, method, num_samples, num_tokens, mask_token, num_passes, temperature=1.0):
    """Sample tokens (B, N) with any net(x) that returns logits (B, N, V), in 1 to N passes."""
    equal = [(num_tokens + i) // num_passes for i in range(num_passes)]
    plan = {"autoregressive": [1] * num_tokens, "MaskGIT": equal, "diffusion": equal,
            "hybrid": [1] * (num_passes - 1) + [num_tokens - num_passes + 1]}
    x = torch.full((num_samples, num_tokens), mask_token)
    for num_keep in plan[method]:  # in 8 passes: equal is 2 2 2 2 2 2 2 2, hybrid 1 1 1 1 1 1 1 9
        dist = torch.distributions.Categorical(logits=net(x) / max(temperature, 0.001))
        guess = dist.sample()  # (B, N)
        priority = torch.arange(num_tokens, 0, -1.0).expand(x.shape)  # the topmost first
        if method in ("MaskGIT", "diffusion"):
            priority = dist.log_prob(guess) if method == "MaskGIT" else torch.rand_like(priority)
        priority = priority.masked_fill(x != mask_token, -torch.inf)  # never replace a kept token
        positions = priority.topk(num_keep).indices  # (B, num_keep)
        x = x.scatter(1, positions, guess.gather(1, positions))  # copy these guesses into x
    return x

def measure(net, method, codebook, tokens, num_passes, temperature=1.0, num_samples=100):
    """Compare samples x (B, N) with the tokens (n, N) of all correct images."""
    x = sample(net, method, num_samples, tokens.shape[1], len(codebook), num_passes, temperature)
    nearest = (x[:, None] == tokens).sum(2).argmax(1)  # (B,), the image with most equal tokens
    is_wrong = x != tokens[nearest]  # (B, N)
    found = nearest[~is_wrong.any(1)]  # for each correct sample, which image it is
    return {"pixels": codebook[x], "is_wrong": is_wrong, "correct": len(found),
            "distinct": len(found.unique())}

fig, (top, *rows, bar, bar2) = plt.subplots(
    7, figsize=(14, 7), layout="tight", height_ratios=[6] * 5 + [1, 1])
top.imshow(torch.hstack([*images[::3], images.mean(0)]), "Greys")
top.set(xticks=[], yticks=[], title="Every third of the 40 images, and their mean. Red: wrong rows")
passes = plt.Slider(bar, "passes", 1, 16, valinit=args.passes, valstep=1)
temperature = plt.Slider(bar2, "temperature", 0, 2, valinit=1)

def draw(_):
    torch.manual_seed(args.seed)
    for ax, method in zip(rows, METHODS):
        r = measure(net, method, codebook, tokens, int(passes.val), temperature.val)
        pixels = r["pixels"][:, :, 1:-1]  # without the outer columns, which stay white
        pixels[pixels < r["is_wrong"][:, :, None]] = -0.5  # the paper of wrong rows: light red
        ax.clear()
        ax.imshow(torch.hstack([*r["pixels"][:15]]), "RdGy", vmin=-1)  # -1 is red, 1 black
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"{method}, passes: {16 if 'auto' in method else int(passes.val)}. Of 100 "
                     f"samples, {r['correct']} are correct, showing {r['distinct']} of 40 images")
passes.on_changed(draw)
temperature.on_changed(draw)
draw(None)
fig.savefig("10_discrete.png", dpi=100)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
torch.manual_seed(args.seed)  # so these are the samples of the figure
ar, hybrid, maskgit, diffusion = [measure(net, m, codebook, tokens, args.passes) for m in METHODS]
claim("C1", "most are correct, autoregressive", ar["correct"], ">", 50)
# A count out of n has a std of at most sqrt(n) / 2, and distinct images have half of that in fair
# draws. The bounds are two std of a difference.
claim("C2", "correct, hybrid - diffusion", hybrid["correct"] - diffusion["correct"], ">", 200**0.5)
claim("C3", "distinct, hybrid - MaskGIT", hybrid["distinct"] - maskgit["distinct"], ">", 20**0.5)
print("figure: 10_discrete.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
