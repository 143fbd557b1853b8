# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""10 Why discrete? Text, sound and pictures, cut into tokens, are written by one kind of net.
A token is an integer that stands for a piece of data. The text "Why?" is the bytes 87 104 121 63, a
sound is a list of levels, a picture is a list of patches, here its 16 rows. A net that answers with
tokens gives each a probability: "this row or that row". A net that answers in pixels learns, by
least squared error, the mean of all rows that may come, a grey like none of them.
At first all tokens are hidden. A call of the net guesses each by itself. If all pictures were A A
or B B, half of its guesses would be A B or B A. So we keep only some of them, and the next call,
which sees these, guesses the rest. Four methods differ in which guesses they keep:
    AR (autoregressive): the next row       hybrid: the next row, in the last call all the rest
    MaskGIT: a share, the surest ones       diffusion (its noise hides tokens): a random share
The data are 40 pictures of digits, and a picture that is written is real if it is one of them.
C1 AR's pictures (16 calls) differ from the nearest real one in under a tenth as many pixels as the
mean of the 40, rounded. C2 Of 100 pictures, AR's and the hybrid's (8 calls) each show over half of
the 40. C3 In 8 calls, MaskGIT's are real more often than diffusion's. C4 They vary less than AR's.
RUN    python 10_discrete.py             (7 seconds; sliders: calls, temperature)
BREAK  python 10_discrete.py --calls 1   tokens of one call do not fit together: C2 and C3 fail
PAPER  arXiv 2202.04200, section 3.2 (MaskGIT); 2107.03006, section 3 (absorbing diffusion)"""
import argparse
import matplotlib.pyplot as plt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--calls", type=int, default=8, help="of the net; 1 is too few (%(default)s)")
parser.add_argument("--iters", type=int, default=1200, help="of training; 50 too few (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if not 1 <= args.calls <= 16 or args.iters < 1 or args.seed < 0:
    parser.error("--calls must be 1 to 16, --iters 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small are fastest on one core

# --- data: 40 digits, rounded to white 0 and black 1; each of their rows becomes a token
FONTS = ["DejaVu Sans", "DejaVu Serif", "STIXGeneral", "cmss10"]  # they come with matplotlib
def draw_digit(digit, font):
    """A digit in a font as a picture (16, 16): 0 is paper, 1 is ink."""
    canvas = FigureCanvasAgg(Figure(figsize=(1, 1), dpi=16))  # 16 x 16 pixels; size 80 fills them
    canvas.figure.text(0.5, 0.5, digit, font=font, size=80, ha="center", va="center_baseline")
    canvas.draw()
    return 1 - torch.tensor(canvas.buffer_rgba().tolist())[:, :, 0] / 255  # red, as all is grey
PICTURES = torch.stack([draw_digit(d, font) for d in "0123456789" for font in FONTS]).round()

ROWS, tokens = PICTURES.view(-1, 16).unique(dim=0, return_inverse=True)  # (88, 16), (640,)
tokens = tokens.view(40, 16)  # each row as its place in ROWS: ROWS[tokens] is PICTURES
V = len(ROWS)  # 88 kinds of token
MASK = V  # the next number stands for a hidden token

# --- train
def train_unmask(tokens, iters):
    """Learn to guess hidden tokens of rows (n, N). Returns a net: xt (B, N) to logits (B, N, V)."""
    N = tokens.shape[1]
    net = nn.Sequential(
        nn.Embedding(V + 1, 16), nn.Flatten(),  # (B, N, 16), then (B, 16 N)
        nn.Linear(16 * N, 256), nn.SiLU(), nn.Linear(256, N * V), nn.Unflatten(1, (N, V)))
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95))  # torch's .999 is worse here
    t = torch.arange(1, 65)[:, None] / 64  # (64, 1), of each of 64 pictures the share t is hidden
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.006 * (1 - i / iters)  # large steps first, then small
        x = tokens[torch.randint(len(tokens), (64,))]  # (64, N)
        hidden = torch.rand(64, N) < t
        xt = torch.where(hidden, MASK, x)
        nats = nn.functional.cross_entropy(net(xt).transpose(1, 2), x, reduction="none")  # (64, N)
        # Show tokens in random order: each has its turn at a random t, when the share t is hidden,
        # and costs -log p nats then. In xt it is hidden with probability t only: hence 1 / t.
        # The sum is a picture's code length. No code for 40 is shorter than log 40 on average.
        loss = (nats * hidden / t).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{iters} iterations, loss {loss:.2f} nats a picture (on average at least log 40 = 3.69)")
    return net.requires_grad_(False)
net = train_unmask(tokens, args.iters)

# --- sample
METHODS = ["AR", "hybrid", "MaskGIT", "diffusion"]
def write(net, method, calls, temperature):
    """100 pictures, (100, 16, 16), by one of METHODS. AR is the hybrid with a call for each row."""
    xt = torch.full((100, 16), MASK)
    for left in range(16 if method == "AR" else calls, 0, -1):  # calls that are left, with this one
        p = torch.distributions.Categorical(logits=net(xt) / max(temperature, 1e-3))  # never by 0
        guess = p.sample()  # (100, 16); p is, for each token, a distribution over the 88 rows
        rest = (xt[0] == MASK).sum().item()  # hidden tokens, as many in each of the 100 pictures
        keep = rest // left  # an equal share for each call: with 8 calls 2 2 2 2 2 2 2 2
        if method == "MaskGIT":
            # A guess that is nearly certain fits, whatever the others turn out to be (C3). A rare
            # one is not kept. The next call draws again there, mostly a common one (C4).
            score = p.log_prob(guess)
        elif method == "diffusion":
            score = torch.rand(100, 16)  # any place can score high
        else:  # AR and hybrid
            score = torch.arange(16, 0, -1.0).expand(100, 16)  # the top row scores highest
            keep = 1 if left > 1 else rest  # 8 calls: 1 1 1 1 1 1 1 9; 7 rows nearly decide
        score = score.masked_fill(xt != MASK, -torch.inf)  # a kept token stays as it is
        place = score.topk(keep).indices  # (100, keep), where the scores are highest
        xt = xt.scatter(1, place, guess.gather(1, place))  # write the guesses at these places
    return ROWS[xt]

# --- measure
def pixels_apart(pictures):
    """How many pixels of each (n, 16, 16) differ from each of the 40 PICTURES: (n, 40)."""
    return torch.cdist(pictures.flatten(1), PICTURES.flatten(1), p=1)  # a pixel is 0 or 1

mean = PICTURES.mean(0, keepdim=True)  # (1, 16, 16): what a net in pixels would answer first
wrong_mean = pixels_apart(mean.round()).min().item()  # in black and white, to the nearest of 40
torch.manual_seed(args.seed)  # as in draw, so the figure shows these pictures
apart = {m: pixels_apart(write(net, m, args.calls, 1)) for m in METHODS}  # each (100, 40)
wrong = apart["AR"].min(1).values.mean().item()  # C1, the average of 100 pictures
real = {m: (apart[m] == 0).any(1).sum().item() for m in METHODS}  # C3: of 100, so many are real
kinds = {m: (apart[m] == 0).any(0).sum().item() for m in METHODS}  # C2, C4

# --- figure
fig, axes = plt.subplots(5, figsize=(12, 5), gridspec_kw=dict(left=0.02, right=0.98, top=0.94))
calls = plt.Slider(plt.axes([0.2, 0.02, 0.2, 0.04]), "calls", 1, 16, valinit=args.calls, valstep=1)
heat = plt.Slider(plt.axes([0.6, 0.02, 0.2, 0.04]), "temperature", 0, 2, valinit=1)
axes[0].imshow(torch.cat([*PICTURES[0:38:2], mean[0]], 1), "Greys")  # every second of them, 19
axes[0].set(title="19 of the 40 real pictures, then the mean of all 40", xticks=[], yticks=[])

def draw(_):
    torch.manual_seed(args.seed)  # the pictures that were measured, until a slider moves
    for ax, method, n in zip(axes[1:], METHODS, [16] + 3 * [int(calls.val)]):  # AR takes 16 calls
        pictures = write(net, method, n, heat.val)
        same = pixels_apart(pictures) == 0  # (100, 40)
        sign = torch.where(same.any(1), 1, -1)[:, None, None]  # (100, 1, 1), -1 is red
        ax.clear()
        ax.imshow(torch.cat(list(sign * pictures)[:20], 1), "RdBu", vmin=-1, vmax=1)
        ax.set(title=f"{method}, {n} calls: {same.any(1).sum()} of 100 are real (others red), "
               f"{same.any(0).sum()} different ones of the 40", xticks=[], yticks=[])
draw(None)
calls.on_changed(draw)
heat.on_changed(draw)
fig.savefig("10_discrete.png", dpi=120)

# --- claims. C3: the bound is two std of a difference of two counts out of 100
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", f"wrong pixels, AR (rounded mean: {wrong_mean:.0f})", wrong, "<", wrong_mean / 10)
claim("C2", "different ones of the 40, AR or hybrid", min(kinds["AR"], kinds["hybrid"]), ">", 20)
claim("C3", "real, MaskGIT minus diffusion", real["MaskGIT"] - real["diffusion"], ">", 15)
claim("C4", "different ones, AR minus MaskGIT", kinds["AR"] - kinds["MaskGIT"], ">", 0)
print("figure: 10_discrete.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
