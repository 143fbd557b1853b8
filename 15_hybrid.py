# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""15 Hybrid pipelines: a language model reads the caption, and a flow-matching model draws.

A frozen language model can be the text encoder of an image generator: it turns each word of the
caption into a feature vector. Does the generator then know WHAT colors a flag has, and WHERE? That
depends on how it gets the features: as their mean, by cross-attention, or by joint attention.

RUN    python 15_hybrid.py         (8 seconds; the radio buttons swap in a bag of words)
BREAK  python 15_hybrid.py --bag   (words have no order, so attention cannot find WHERE: C2 fails)
PAPER  arXiv 2204.06125 (DALL-E 2, pooled), 2205.11487 (Imagen, cross), 2403.03206 (SD3, joint)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from matplotlib.widgets import RadioButtons
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--bag", action="store_true", help="make claims about the bag of words")
parser.add_argument("--iters", type=int, default=200, help="per training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Data: a flag is three colors, 0 to 7. Its caption names the stripes in random order.
WORDS = "left middle right black blue green cyan red magenta yellow white".split()  # 11 words
LEVELS = torch.tensor([-1.0, 1.0])
COLORS = torch.cartesian_prod(LEVELS, LEVELS, LEVELS)  # (8, RGB), in the order of WORDS

def make_captions(flags):  # (B, 3), such as 5 7 2, to words (B, 6): position, color, position, ...
    position = torch.rand(len(flags), 3).argsort(1)  # (B, 3) in random order, such as 2 0 1
    color = 3 + flags.gather(1, position)  # (B, 3), the colors there: 5 8 10, since black is word 3
    return torch.stack([position, color], 2).flatten(1)  # 2 5 0 8 1 10: right green left magenta...

# --- Text encoder: a language model. It predicts the next word of captions that are told twice:
#     right green left magenta middle white | left magenta middle white right green
# To predict the second "magenta", the net must recall which color followed the first "left". So it
# stores "left" with the first "magenta": the feature of this word holds both WHAT and WHERE.
OPTIONS = {"dropout": 0, "batch_first": True, "norm_first": True}
class LanguageModel(nn.Module):
    def __init__(self, vocab_size, dim=32, num_heads=4, depth=2):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab_size, dim), nn.Linear(dim, vocab_size)
        layer = nn.TransformerEncoderLayer(dim, num_heads, 4 * dim, **OPTIONS)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, words):  # (B, N) to features (B, N, dim)
        # The mask hides later words. As the n-th word sees n words, the net can tell their order.
        mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1])
        return self.layers(self.embed(words), mask)

# --- Conditioning mechanisms: stripes (B, 3, dim) and features (B, N, dim) to tokens and memory.
# Suppose each feature is a color + a position. Then two colors can swap without changing the mean:
#     (green + right) + (magenta + left) = (magenta + right) + (green + left)
# So pooling loses WHERE. Attention sees each feature, so the left stripe can look for "left".
def pooled(stripes, features):
    return stripes, features.mean(1, keepdim=True)  # memory is one vector, (B, 1, dim)
def cross(stripes, features):
    return stripes, features  # each stripe attends to all features
def joint(stripes, features):
    tokens = torch.cat([stripes, features], 1)  # (B, 3 + N, dim), one sequence
    return tokens, tokens  # as memory, too: the layer has cross-attention anyway

class Generator(nn.Module):
    def __init__(self, mechanism, dim=32, num_heads=4):
        super().__init__()
        self.mechanism = mechanism
        self.embed, self.head = nn.Linear(3, dim), nn.Linear(dim, 3)
        self.time = nn.Parameter(torch.randn(dim))
        self.position = nn.Parameter(torch.randn(3, dim))  # tells left, middle, and right apart
        self.layer = nn.TransformerDecoderLayer(dim, num_heads, 4 * dim, **OPTIONS)

    def forward(self, xt, t, y):  # flags (B, 3, RGB), features (B, N, dim) to velocity (B, 3, RGB)
        stripes = self.embed(xt) + t * self.time + self.position  # (B, 3, dim)
        tokens = self.layer(*self.mechanism(stripes, y))  # attend to tokens, then to memory
        return self.head(tokens[:, :3])  # the first three tokens are the stripes

def next_word_loss(lm, words, next_words):  # (B, N) and (B, N)
    logits = lm.head(lm(words))  # (B, N, vocab_size)
    return nn.functional.cross_entropy(logits.mT, next_words)  # it expects (B, vocab_size, N)
def flow_loss(net, x, y):  # lesson 06: lines from noise, t = 0, to flags, t = 1
    eps, t = torch.randn_like(x), torch.rand(len(x), 1, 1)
    return nn.functional.mse_loss(net(t * x + (1 - t) * eps, t, y), x - eps)

def train(net, loss_fn, x, y, iters, batch_size=64, lr=0.004):
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for i in range(iters):
        row = torch.randint(len(x), [batch_size])
        loss = loss_fn(net, x[row], y[row])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{type(net).__name__}: {iters} iterations, loss {loss:.4f}")
    return net.requires_grad_(False)  # frozen
def sample(net, xt, y, num_steps):
    for i in range(num_steps):
        xt = xt + net(xt, i / num_steps, y) / num_steps  # Euler's method
    return xt

# --- Score. Knowing WHAT but not WHERE, a generator draws the right colors in a random order. Then
# 1/3 of the stripes are in their own position. The others are right by luck, 1 time in 8. So 5/12 =
# 1/3 + 2/3 x 1/8 are right. Pooled gets fewer: it is slow to learn even WHAT from a mean.
def measure(x, flags):  # (B, 3, RGB), (B, 3) to the share of stripes with the right color
    return (torch.cdist(x, COLORS).argmin(2) == flags).float().mean()  # the nearest color counts

flags, asked = torch.randint(8, [3800, 3]).split([3000, 800])  # only 512 exist, so most are in both
captions, asked_captions = make_captions(flags), make_captions(asked)
told_twice = torch.hstack([captions, make_captions(flags)])  # (3000, 12), in two orders
lm = train(LanguageModel(11), next_word_loss, told_twice[:, :-1], told_twice[:, 1:], args.iters)
drawn = {"language model": {}, "bag of words": {}}
for encoder, encode in zip(drawn, [lm, lm.embed]):  # lm.embed sees each word alone
    drawn[encoder]["asked for"] = COLORS[asked]  # (800, 3, RGB)
    for name, mechanism in {"pooled": pooled, "cross": cross, "joint": joint}.items():
        net = train(Generator(mechanism), flow_loss, COLORS[flags], encode(captions), args.iters)
        drawn[encoder][name] = sample(net, torch.randn(800, 3, 3), encode(asked_captions), 10)

fig, axes = plt.subplots(4, 5, figsize=(10, 6.4), layout="constrained")
plt.setp(axes, xticks=[], yticks=[])
for ax, caption in zip(axes[0], asked_captions):
    ax.set_title("{} {}\n{} {}\n{} {}".format(*[WORDS[i] for i in caption]))
def draw(encoder):
    for row, (name, x) in zip(axes, drawn[encoder].items()):
        row[0].set_ylabel(f"{name}\n{measure(x, asked):.0%} right")
        for ax, flag in zip(row, x):  # the first five
            ax.imshow(flag[None].clip(-1, 1) / 2 + 0.5, aspect=1.5)  # (1, 3, RGB), from 0 to 1
    right = measure(drawn[encoder]["cross"], asked)
    fig.suptitle(f"Cross-attention to the {encoder} gets {right:.0%} of the stripes right\n"
                 "(the right colors in a random order: 5/12 = 42%)\n\n\n")
    fig.canvas.draw_idle()
radio = RadioButtons(plt.axes([0.4, 0.84, 0.2, 0.08]), list(drawn))
radio.on_clicked(draw)
radio.set_active(int(args.bag))  # calls draw
fig.savefig("15_hybrid.png", dpi=140)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
score = {name: measure(x, asked) for name, x in drawn[radio.value_selected].items()}
claim("C1", "Stripes right, pooled (colors in random order: 5/12)", score["pooled"], "<", 5 / 12)
claim("C2", "Stripes right, worse of cross, joint", min(score["cross"], score["joint"]), ">", 0.9)
print("figure: 15_hybrid.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
