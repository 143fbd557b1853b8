# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""12 Masked and discrete diffusion: draw the 64 tokens of a picture in ten calls of a net.
A codebook (lesson 11) turns a picture into tokens: each 2 x 2 patch becomes the number of the code
nearest to it. D3PM is DDPM for tokens: its noise turns more and more tokens into MASK, for good, so
that at time t of T each is MASK with probability t / T. In a step back to t - 1, the share 1 / T of
all tokens must return, out of the share t / T. So each MASK returns with probability 1 / t. A net,
trained to guess hidden tokens from visible ones, says as which. A step back calls the net once: a
round. The tokens of one round are drawn independently, so they can contradict each other: if a 3
and a 7 are both possible, one may be a piece of the 3 and its neighbour a piece of the 7. With more
rounds, fewer are drawn at once. MaskGIT draws a guess for every hidden token, but keeps only the K
guesses that the net finds most probable. If one is nearly certain, it hardly depends on the others,
so such guesses fit together. But variety is lost: rare guesses get a low rank, so they stay hidden
and are drawn again, mostly as common ones. Noise, added to log p, lets some of them win.
C1 Ten rounds of MaskGIT leave less than a tenth of one round's wrong tokens (no real picture's).
C2 With noise in the choice, most of the 40 pictures are drawn without a mistake, not the same few.
RUN    python 12_maskgit.py                         (7 seconds; slider: noise)
BREAK  python 12_maskgit.py --rounds 1              all tokens at once, mixed digits: C1, C2 fail
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
    canvas = FigureCanvasAgg(Figure(figsize=(1, 1), dpi=16))  # 16 x 16 pixels; size 80 fills them
    canvas.figure.text(0.5, 0.5, digit, font=font, size=80, ha="center", va="center_baseline")
    canvas.draw()
    return 1 - torch.tensor(canvas.buffer_rgba().tolist())[:, :, 0] / 255  # red, as all is grey
PICTURES = torch.stack([draw_digit(d, font) for d in "0123456789" for font in FONTS])  # (40,16,16)

patches = nn.functional.unfold(PICTURES[:, None], 2, stride=2).mT  # (40, 64, 4): patches of 2 x 2
different = patches.flatten(0, 1).unique(dim=0)  # (about 900, 4), sorted
codes = different[::55][:16]  # (16, 4), a first guess: spread over all of them
for i in range(20):  # k-means (lesson 11): after 14 rounds nothing changes any more
    tokens = torch.cdist(patches, codes).argmin(2)  # (40, 64), the nearest code's number, 0 .. 15
    codes = torch.stack([patches[tokens == k].mean(0) for k in range(16)])  # mean of its patches
V = 16  # kinds of token
MASK = V  # the next number stands for a hidden token

# --- network and train
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
def d3pm(net, xt, rounds):  # here T is rounds; the net sees how much is hidden, so it needs no t
    """Draw the hidden tokens of rows xt (B, N): whole rows (B, N)."""
    for t in range(rounds, 0, -1):
        guess = torch.distributions.Categorical(logits=net(xt)).sample()  # (B, N)
        back = (xt == MASK) & (torch.rand(xt.shape) < 1 / t)
        xt = torch.where(back, guess, xt)
    return xt

def maskgit(net, xt, rounds, noise):
    """Draw the hidden tokens of rows xt (B, N). Every row must hide the same number of them."""
    for t in range(rounds, 0, -1):
        p = torch.distributions.Categorical(logits=net(xt))
        guess = p.sample()  # (B, N)
        gumbel = -torch.empty(xt.shape).exponential_().log()  # largest log p + gumbel: odds p
        fade = (t - 1) / rounds  # noise varies what is begun; in the last rounds only fit counts
        sure = p.log_prob(guess) + noise * fade * gumbel  # (B, N)
        K = int((xt[0] == MASK).sum()) // t  # 64 tokens in 10 rounds: 6 6 6 6 6 6 7 7 7 7
        place = sure.masked_fill(xt != MASK, -torch.inf).topk(K).indices  # (B, K), none is visible
        xt = xt.scatter(1, place, guess.gather(1, place))  # write the guesses at these places
    return xt

# --- measure
def compare(x, tokens):
    """Of x (B, N), real rows (n, N): the nearest (B,), mean wrong tokens, how many rows occur."""
    wrong, near = (x[:, None] != tokens).sum(2).min(1)  # of (B, n) numbers the least, and its place
    return near, wrong.float().mean().item(), len(near[wrong == 0].unique())
blank = torch.full((400, 64), MASK)
_, wrong_one, _ = compare(maskgit(net, blank, 1, args.noise), tokens)
_, wrong, kinds = compare(maskgit(net, blank, args.rounds, args.noise), tokens)  # C1, C2

# --- figure
fig, axes = plt.subplots(5, 3, figsize=(12, 6), gridspec_kw={"left": 0, "right": 1, "wspace": 0.1})
slider = plt.Slider(plt.axes([0.72, 0.03, 0.22, 0.03]), "noise", 0, 5, valinit=args.noise)
fig.text(0.02, 0.03, "6 of 50 draws; red: wrong ink; different: of the 40, drawn right (fair: 29)")
def paint(ax, rounds, x, tokens, codes):  # six of the rows x (B, 64); wrong tokens are red
    near, wrong, kinds = compare(x, tokens)
    sign = torch.where(x == tokens[near], 1, -1)  # (B, 64), -1 is painted red, if it is ink
    ink = codes[x] * sign[:, :, None]  # (B, 64, 4)
    pictures = nn.functional.fold(ink[:6].mT, (16, 16), 2, stride=2)  # undo unfold: (6, 1, 16, 16)
    ax.clear()
    ax.imshow(torch.cat(list(pictures[:, 0]), 1), "RdBu", vmin=-1, vmax=1)  # (16, 96)
    ax.set_title(f"rounds: {rounds}   wrong: {wrong:.1f}   different: {kinds}")
    ax.set_axis_off()

def draw(noise, column=2):  # the slider hands over its value, the noise for the right column
    for ax, n in zip(axes[:, column], (1, 2, 4, args.rounds, 64)):
        x = d3pm(net, blank[:50], n) if column == 0 else maskgit(net, blank[:50], n, noise)
        paint(ax, n, x, tokens, codes)
for column, name in enumerate(["D3PM", "MaskGIT, noise 0", "MaskGIT, noise of the slider"]):
    fig.text((column + 0.5) / 3, 0.95, name, size=14, ha="center")
    draw([None, 0, args.noise][column], column)  # D3PM takes no noise
slider.on_changed(draw)
fig.savefig("12_maskgit.png", dpi=120)

# --- claims
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "wrong tokens of 64, against a tenth of one round's", wrong, "<", 0.1 * wrong_one)
claim("C2", "how many of the 40 pictures occur in 400 draws", kinds, ">", 20)
print("figure: 12_maskgit.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
