# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""12 Masked and discrete diffusion: draw the 64 tokens of a picture in ten calls of a net.
A codebook (lesson 11) turns a picture into tokens: each 2 x 2 patch becomes the number of the code
nearest to it. D3PM is DDPM for tokens: its noise turns one token after the other into MASK, for
good, so that at time t of T each token is MASK with probability t / T. Therefore, on the way back,
    p(MASK at t - 1, given MASK at t) = ((t - 1) / T) / (t / T) = 1 - 1 / t    (Bayes' rule)
so each MASK becomes a token again with probability 1 / t. A net, trained to guess hidden tokens
from visible ones, says which token. One step back takes one call of the net and is a round.
The tokens of one round are drawn independently, so they can contradict each other: where a 3 and a
7 are both possible, one token may become a piece of the 3 and its neighbour a piece of the 7. More
rounds cost more calls, but fewer tokens are drawn at once. MaskGIT asks the same net, but in each
round it keeps only the K guesses that the net is surest of. They contradict less. But the surest
token is one that many pictures share. Once it is there, the pictures without it are out, so a few
pictures come again and again. Noise, added to the sureness, lets rare tokens go first, too.
C1 Ten rounds of MaskGIT leave less than a tenth of the wrong tokens that one round leaves.
C2 With noise in the choice, MaskGIT draws most of the 40 pictures, not always the same few.
RUN    python 12_maskgit.py                         (11 seconds; slider: noise)
BREAK  python 12_maskgit.py --rounds 1              all tokens at once, mixed digits: C1 fails
       python 12_maskgit.py --noise 0 --rounds 64   no token is wrong, but few pictures: C2 fails
PAPER  Austin et al. 2021 (D3PM), arXiv 2107.03006; Chang et al. 2022 (MaskGIT), arXiv 2202.04200"""
import argparse
import matplotlib.pyplot as plt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--rounds", type=int, default=10, help="for 64 tokens; 1 breaks (%(default)s)")
parser.add_argument("--noise", type=float, default=1, help="in the order; 0 breaks (%(default)s)")
parser.add_argument("--iters", type=int, default=1000, help="of training; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if not 1 <= args.rounds <= 64 or not 0 <= args.noise <= 5 or args.iters < 1 or args.seed < 0:
    parser.error("--rounds must be 1 to 64, --noise 0 to 5, --iters 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small are fastest on one core

# --- data: the digits, a list of 40 pictures; p_data draws each of them equally often
FONTS = ["DejaVu Sans", "DejaVu Serif", "STIXGeneral", "cmss10"]  # they come with matplotlib
def draw_digit(digit, font):
    """A digit in a font as a picture (16, 16): 0 is paper, 1 is ink."""
    canvas = FigureCanvasAgg(Figure(figsize=(1, 1), dpi=16))  # one inch: 16 x 16 pixels
    canvas.figure.text(0.5, 0.5, digit, font=font, size=80, ha="center", va="center_baseline")
    canvas.draw()
    return 1 - torch.tensor(canvas.buffer_rgba().tolist())[:, :, 0] / 255  # red, as all is grey
PICTURES = torch.stack([draw_digit(d, font) for d in "0123456789" for font in FONTS])  # (40,16,16)

patches = PICTURES.view(40, 8, 2, 8, 2).transpose(2, 3).reshape(-1, 4)  # (40 * 64, 2 * 2 pixels)
codes = patches.unique(dim=0)[::55][:16]  # (16, 4): to begin with, every 55th different patch
for i in range(20):  # k-means (lesson 11); after 20 moves hardly anything changes
    nearest = torch.cdist(patches, codes).argmin(1)  # (40 * 64,)
    for k in nearest.unique():
        codes[k] = patches[nearest == k].mean(0)  # a code moves to the mean of its patches
tokens = nearest.view(40, 64)  # numbers 0 .. 15
MASK = 16  # the next number stands for a hidden token

# --- network and train
def train_unmask(tokens, iters, T=64):
    """Learn to guess hidden tokens of rows (n, N). Returns the net: xt to logits (B, N, MASK)."""
    N = tokens.shape[1]
    net = nn.Sequential(nn.Embedding(MASK + 1, 16), nn.Flatten(), nn.Linear(N * 16, 256), nn.SiLU(),
                        nn.Linear(256, N * MASK), nn.Unflatten(1, (N, MASK)))
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95))  # torch's .999 is worse here
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.006 * (1 - i / iters)  # large steps first, then small
        x = tokens[torch.randint(len(tokens), (T,))]  # (T, N)
        t = torch.arange(1, T + 1)[:, None]  # (T, 1), one row for each time
        hidden = torch.rand(T, N) < t / T
        xt = torch.where(hidden, MASK, x)
        nats = nn.functional.cross_entropy(net(xt).transpose(1, 2), x, reduction="none")  # (T, N)
        # Back from t to t - 1, a MASK is revealed with chance (1 / T) / (t / T) = 1 / t, and costs
        # -log p(token). All together cost -log p(picture) or more, by Jensen's inequality.
        loss = (nats * hidden / t).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (i + 1) % max(1, iters // 8) == 0:
            print(f"iter {i + 1:5d}  loss {loss:.2f} (of 40 pictures at least log 40 = 3.69)")
    return net.requires_grad_(False)
net = train_unmask(tokens, args.iters)

# --- sample
def d3pm(net, xt, rounds):
    """Draw the hidden tokens of rows xt (B, N), with T = rounds. The net needs no t: it sees xt."""
    for t in range(rounds, 0, -1):
        guess = torch.distributions.Categorical(logits=net(xt)).sample()  # (B, N)
        back = (xt == MASK) & (torch.rand(xt.shape) < 1 / t)
        xt = torch.where(back, guess, xt)
    return xt

def maskgit(net, xt, rounds, noise):
    """Draw the hidden tokens of rows xt (B, N), as many in each row: the surest guesses first."""
    for t in range(rounds, 0, -1):
        p = torch.distributions.Categorical(logits=net(xt))
        guess = p.sample()  # (B, N)
        luck = -torch.empty(xt.shape).exponential_().log()  # Gumbel noise, as in the paper's code
        sure = p.log_prob(guess) + noise * (t - 1) / rounds * luck  # less and less noise
        sure[xt != MASK] = -torch.inf  # never redraw what is visible
        K = int((xt[0] == MASK).sum()) // t  # t rounds are left to draw what is hidden
        place = sure.topk(K).indices  # (B, K)
        xt = xt.scatter(1, place, guess.gather(1, place))  # write the guesses at these places
    return xt

# --- measure
def compare(x, tokens):
    """Of each x (B, N), the nearest of the n real rows, tokens (n, N); how many tokens differ."""
    differ = (x[:, None] != tokens).sum(2)  # (B, n)
    wrong, near = differ.min(1)
    return near, wrong.float().mean().item()

blank = torch.full((400, 64), MASK)
_, wrong_one = compare(maskgit(net, blank, 1, args.noise), tokens)
near, wrong = compare(maskgit(net, blank, args.rounds, args.noise), tokens)  # C1, C2

# --- figure
fig, axes = plt.subplots(5, 2, figsize=(12, 5.4), gridspec_kw={"left": 0, "right": 1, "top": 0.94})
slider = plt.Slider(plt.axes([0.6, 0.02, 0.3, 0.03]), "noise", 0, 5, valinit=args.noise)

def paint(ax, name, x, tokens, codes):
    """Ten of the rows x (B, 64) as pictures side by side; the ink of wrong tokens is red."""
    near, wrong = compare(x, tokens)
    sign = torch.where(x == tokens[near], 1, -1)[:10, :, None]  # (10, 64, 1), -1 will be red
    ink = (sign * codes[x[:10]]).view(10, 8, 8, 2, 2).permute(1, 3, 0, 2, 4)  # y, y, picture, x, x
    ax.clear()
    ax.imshow(ink.reshape(16, 160), "RdBu", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[], frame_on=False, title=f"{name}: {wrong:.1f} of 64 wrong (red)")

def draw(_):
    for (left, right), n in zip(axes, (1, 2, 4, args.rounds, 64)):
        paint(left, f"D3PM, {n} rounds", d3pm(net, blank[::8], n), tokens, codes)
        paint(right, f"MaskGIT, {n} rounds", maskgit(net, blank[::8], n, slider.val), tokens, codes)
draw(None)
slider.on_changed(draw)
fig.savefig("12_maskgit.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", "wrong tokens of 64, against a tenth of one round's", wrong, "<", 0.1 * wrong_one)
claim("C2", "how many of the 40 pictures are nearest to a draw", len(near.unique()), ">", 20)
print("figure: 12_maskgit.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
