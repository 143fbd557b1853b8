# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""15 Hybrid pipelines: a language model reads the caption, and a flow-matching model draws.

A frozen language model can be the text encoder of an image generator: it turns each word of the
caption into a feature vector. A conditioning mechanism hands these over: as one pooled vector, by
cross-attention, or by joint attention. Does the generator then know WHAT colors a flag has, and
WHERE? As a control, we use plain word embeddings, which ignore order (a bag of words).

RUN    python 15_hybrid.py         (8 seconds; the radio buttons swap in the bag of words)
BREAK  python 15_hybrid.py --bag   (attention cannot find WHERE either, and C3 fails)
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
WORDS = "left middle right black blue green cyan red magenta yellow white".split()
COLORS = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)  # (8, RGB), from black to white
def make_captions(flags):  # (B, 3), such as 5 7 2, to words (B, 6): position, color, position, ...
    position = torch.rand(len(flags), 3).argsort(1)  # (B, 3) in random order, such as 2 0 1
    color = 3 + flags.gather(1, position)  # (B, 3), the colors there: 5 8 10, since black is word 3
    return torch.stack([position, color], 2).flatten(1)  # 2 5 0 8 1 10: right green left magenta...

# --- Text encoder: a language model. It predicts the next word of captions that are told twice:
#     right green left magenta middle white | left magenta middle white right green
# To predict the second "magenta", it helps if the feature of the first also says "left" (WHERE).
OPTIONS = {"dropout": 0, "batch_first": True, "norm_first": True}
class LanguageModel(nn.Module):
    def __init__(self, vocab_size, dim=32, num_heads=4, depth=2):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab_size, dim), nn.Linear(dim, vocab_size)
        layer = nn.TransformerEncoderLayer(dim, num_heads, 4 * dim, **OPTIONS)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    def forward(self, words):  # (B, N) to features (B, N, dim)
        mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1])  # no later words
        return self.layers(self.embed(words), mask)  # the mask also tells the words' order

# --- Conditioning mechanisms: stripes (B, 3, dim) and features (B, N, dim) to (tokens, memory).
# Why does pooled lose WHERE? If a feature is color + position, a swap does not change the mean:
#     (green + right) + (magenta + left) = (magenta + right) + (green + left)
# Attention sees each feature on its own: the left stripe can look for "left" and find "magenta".
def pooled(stripes, features):
    return stripes, features.mean(1, keepdim=True)  # memory is one vector, (B, 1, dim)
def cross(stripes, features):
    return stripes, features  # each stripe attends to all features
def joint(stripes, features):
    tokens = torch.cat([stripes, features], 1)  # (B, 3 + N, dim), one sequence
    return tokens, tokens  # twice, only so that all generators have the same weights

class Generator(nn.Module):
    def __init__(self, mechanism, dim=32, num_heads=4):
        super().__init__()
        self.mechanism, self.time = mechanism, nn.Parameter(torch.randn(dim))
        self.embed, self.head = nn.Linear(3, dim), nn.Linear(dim, 3)
        self.position = nn.Parameter(torch.randn(3, dim))  # tells left, middle, and right apart
        self.layer = nn.TransformerDecoderLayer(dim, num_heads, 4 * dim, **OPTIONS)
    def forward(self, xt, t, y):  # flags (B, 3, RGB), features (B, N, dim) to velocity (B, 3, RGB)
        stripes = self.embed(xt) + t * self.time + self.position  # (B, 3, dim)
        tokens = self.layer(*self.mechanism(stripes, y))  # attend to tokens, then to memory
        return self.head(tokens[:, :3])  # the first three are the stripes

def next_word_loss(lm, caption, again):
    words = torch.hstack([caption, again])  # (B, 12)
    return nn.functional.cross_entropy(lm.head(lm(words[:, :-1])).mT, words[:, 1:])
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

# --- Scores. Shuffling measures WHAT alone: it is the accuracy, averaged over all 6 orders of the
# drawn stripes. If all colors are right, a stripe is in its own position 1/3 of the time. In the
# other 2/3, that position asks for the same color 1 time in 8. So 1/3 + 2/3 x 1/8 = 5/12 are right.
def measure(x, flags):  # (B, 3, RGB) and (B, 3) to accuracy, shuffled accuracy
    color = torch.cdist(x, COLORS).argmin(2)  # (B, 3), the nearest color
    pairs = color[..., None] == flags[:, None]  # (B, 3 stripes, 3 positions), all equally often
    return (color == flags).float().mean(), pairs.float().mean()

flags, asked = torch.randint(8, [3800, 3]).split([3000, 800])  # of 512, so most are in both
captions, again, asked_captions = map(make_captions, [flags, flags, asked])  # in new orders
lm = train(LanguageModel(len(WORDS)), next_word_loss, captions, again, args.iters)
results = {"language model": [], "bag of words": []}
for encoder, encode in zip(results, [lm, lm.embed]):
    for mechanism in [pooled, cross, joint]:
        net = train(Generator(mechanism), flow_loss, COLORS[flags], encode(captions), args.iters)
        x = sample(net, torch.randn(800, 3, 3), encode(asked_captions), 10)
        results[encoder].append([f"{mechanism.__name__}\n{encoder}", x, *measure(x, asked)])

fig, ax = plt.subplots(figsize=(14, 7), layout="constrained")
place = (torch.arange(15) * 0.18 + torch.arange(15) // 3 * 0.06 - 2.9).repeat(5)  # left of 0
caption = "{} {}\n{} {}\n{} {}".format(*[WORDS[i] for i in asked_captions[0]])
def draw(encoder):
    ax.clear()
    names, drawn, accuracy, shuffled = zip(*results[encoder], results["bag of words"][1])
    rgb = torch.stack([COLORS[asked], *drawn])[:, :5].flatten(0, 2).clip(-1, 1) / 2 + 0.5  # (75, 3)
    ax.bar(place, 0.8, 0.18, torch.arange(75) // 15 - 0.4, color=rgb.numpy(), edgecolor="0.7")
    ax.barh(range(1, 5), accuracy)
    ax.plot(shuffled, range(1, 5), "ko")
    ax.grid(axis="x")
    ax.set_xticks([1 / 8, 5 / 12, 1], ["1/8\nchance", "5/12\nonly WHAT", "1\nall right"])
    ax.set_yticks(range(5), [f"asked for:\n{caption}\n(first flag)", *names])
    ax.set(xlim=(-3.1, 1.1), ylim=(4.5, -0.5), title=f"Attention to the {encoder} gets "
           f"{min(accuracy[1:3]):.0%} of colors right, pooling {accuracy[0]:.0%} (dots: shuffled)")
    fig.canvas.draw_idle()
radio = RadioButtons(plt.axes([0.79, 0.8, 0.15, 0.1]), list(results))
radio.on_clicked(draw)
radio.set_active(int(args.bag))  # calls draw
fig.savefig("15_hybrid.png")

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
_, _, accuracy, shuffled = zip(*results["bag of words" if args.bag else "language model"])
claim("C1", "Pooled, shuffled (chance: 1/8 +- 0.007, perfect: 5/12)", shuffled[0], ">", 0.2)
claim("C2", "Pooled, gain from right order (perfect: 7/12)", accuracy[0] - shuffled[0], "<", 0.05)
claim("C3", "Accuracy of attention, the lower of both", min(accuracy[1:]), ">", 0.9)
print("figure: 15_hybrid.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
