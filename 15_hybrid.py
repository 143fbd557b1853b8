# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""15 Hybrid pipelines: a language model reads the caption, and a flow-matching model draws.

A frozen language model turns each word of a caption into a feature vector. A generator puts colors
in their places if it attends to every feature, and if the feature of a color knows its place.
RUN    python 15_hybrid.py         (9 seconds; the radio buttons swap in a bag of words)
BREAK  python 15_hybrid.py --bag   (bare words don't say what goes where, so C1 fails)
PAPER  arXiv 2205.11487 (Imagen, cross), 2403.03206 (SD3, joint), 2204.06125 (DALL-E 2, pooled)"""
import argparse, signal
import torch
from matplotlib import pyplot as plt, widgets
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--bag", action="store_true", help="check the claims on a bag of words instead")
parser.add_argument("--iters", type=int, default=200, help="per training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Data. A flag is three colors, 0 to 7. Its caption names the stripes in random order.
WORDS = "left middle right black blue green cyan red magenta yellow white".split()  # word 3: black
COLORS = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)  # (8, RGB), ordered as in WORDS
def make_captions(flags):  # (B, 3), such as the flag 5 7 2: magenta white green
    position = torch.rand(len(flags), 3).argsort(1)  # (B, 3), a random order, such as 2 0 1
    color = flags.gather(1, position)  # (B, 3), the colors in this order: 2 5 7
    return torch.stack([position, color + 3], 2).flatten(1)  # (B, 6), as words: 2 5 0 8 1 10

# --- Text encoder: a language model predicts the next word of texts that state a caption twice:
#     right green left magenta middle white | left magenta middle white right green
# To predict the second "magenta", the feature of the first must record that "left" came before it.
class LanguageModel(nn.Module):
    def __init__(self, vocab_size, max_words, dim=32, num_heads=4, depth=2):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab_size, dim), nn.Linear(dim, vocab_size)
        self.position = nn.Parameter(torch.randn(max_words, dim))  # attention alone ignores order
        layer = nn.TransformerEncoderLayer(
            dim, num_heads, 4 * dim, dropout=0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    def forward(self, words):  # (B, N) to features (B, N, dim)
        mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1])  # hides later words
        return self.layers(self.embed(words) + self.position[:len(mask)], mask)

# --- Conditioning: stripes (B, 3, dim) read features (B, N, dim), by attention(query, key, value)
def cross(attention, stripes, features):  # stripes attend to all words, not to stripes
    return stripes + attention(stripes, features, features)[0], features
def joint(attention, stripes, features):  # words attend to the stripes, too
    tokens = torch.cat([stripes, features], 1)  # (B, 3 + N, dim)
    return cross(attention, tokens, tokens)[0].tensor_split([3], 1)
def pooled(attention, stripes, features):  # the mean changes little if two colors swap
    return cross(attention, stripes, features.mean(1, keepdim=True))

class Generator(nn.Module):
    def __init__(self, mechanism, dim=32, num_heads=4, depth=2):
        super().__init__()
        self.mechanism, self.embed = mechanism, nn.Linear(3, dim)
        self.time, self.position = nn.Parameter(torch.randn(dim)), nn.Parameter(torch.randn(3, dim))
        self.attentions = nn.ModuleList(
            [nn.MultiheadAttention(dim, num_heads, batch_first=True) for _ in range(depth)])
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 3))
    def forward(self, xt, t, y):  # flags (B, 3, RGB), features (B, N, dim) to velocity (B, 3, RGB)
        stripes = self.embed(xt) + t * self.time + self.position  # (B, 3, dim), left first
        for attention in self.attentions:
            stripes, y = self.mechanism(attention, stripes, y)
        return self.head(stripes)

def next_word_loss(lm, words, next_words):  # (B, N) and (B, N)
    return nn.functional.cross_entropy(lm.head(lm(words)).mT, next_words)  # (B, vocab_size, N)
def flow_loss(net, x, y):  # the velocity from noise to flags is x - eps (see lesson 06)
    eps, t = torch.randn_like(x), torch.rand(len(x), 1, 1)  # t = 0: noise, t = 1: flags
    return nn.functional.mse_loss(net(t * x + (1 - t) * eps, t, y), x - eps)

def train(net, loss_fn, x, y, iters, batch_size=64, lr=0.004):
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for i in range(iters):
        row = torch.randint(len(x), [batch_size])
        loss = loss_fn(net, x[row], y[row])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 20 == 0:
            print(f"{type(net).__name__}, iteration {i} of {iters}: loss {loss:.4f}")
    return net.requires_grad_(False)  # frozen
def sample(net, xt, y, num_steps):
    for i in range(num_steps):
        xt = xt + net(xt, i / num_steps, y) / num_steps  # Euler's method follows the velocity
    return xt

def measure(x, flags):  # drawn (B, 3, RGB), asked for (B, 3)
    color = torch.cdist(x, COLORS).argmin(2)  # (B, 3), the color that each stripe shows
    same = 1.0 * (color[..., None] == flags[:, None])  # (B, 3 drawn, 3 asked)
    is_asked, in_place = same.amax(2), same.diagonal(0, 1, 2)  # (B, 3) each, 0 or 1
    marks = (is_asked + in_place).int()  # 0: not asked for, 1: asked for elsewhere, 2: in place
    return marks, is_asked.mean(), in_place.mean(), same.mean()  # of all pairs: as if shuffled

flags, asked = torch.randint(8, [3800, 3]).tensor_split([3000])  # only 512 exist, most are in both
captions, prompts = make_captions(flags), make_captions(asked)
texts = torch.hstack([captions, make_captions(flags)])  # (3000, 12), each flag in two orders
lm = train(LanguageModel(11, 12), next_word_loss, texts[:, :-1], texts[:, 1:], args.iters)
encoders = {"language model": lm, "bag of words": lm.embed}  # one vector per word, wherever it is
mechanisms = {"cross-attention": cross, "joint attention": joint, "pooled (mean)": pooled}
drawn = {("goal", "the first 5 of 800"): COLORS[asked]}
for encoder, encode in encoders.items():
    for name, mechanism in mechanisms.items():
        net = train(Generator(mechanism), flow_loss, COLORS[flags], encode(captions), args.iters)
        drawn[encoder, name] = sample(net, torch.randn(800, 3, 3), encode(prompts), 10)

fig, axes = plt.subplots(5, 5, figsize=(10, 6.4), layout="constrained")
fig.suptitle("Attention to features that know the word order puts colors in their places\n"
             "X: a color that was not asked for. O: asked for, but for another stripe")
def draw(encoder):  # the goal, three rows of this encoder, and one of the other
    (other,) = encoders.keys() - {encoder}
    pairs = [pair for pair in drawn if pair[0] in ("goal", encoder)] + [(other, "cross-attention")]
    for row, pair in zip(axes, pairs):
        marks, is_asked, in_place, _ = measure(drawn[pair], asked)
        for ax, flag, flag_marks in zip(row, drawn[pair], marks):  # the first five
            ax.clear()
            ax.imshow(flag[None].clip(-1, 1) / 2 + 0.5, aspect="auto")
            for stripe, mark in enumerate(flag_marks):
                ax.plot(stripe, 0, ["wX", "wo", " "][mark], ms=15, mec="k")
            ax.set(xticks=[], yticks=[])
        label = f"{', '.join(pair)}\nasked for: {is_asked:.0%}\nin place: {in_place:.0%}"
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for ax, caption in zip(axes[0], prompts):
        ax.set_title("%s %s\n%s %s\n%s %s" % tuple(WORDS[word] for word in caption))
    plt.draw()

radio = widgets.RadioButtons(plt.axes([0.01, 0.87, 0.16, 0.09]), list(encoders), args.bag)
radio.on_clicked(draw)
draw(radio.value_selected)
fig.savefig("15_hybrid.png", dpi=140)

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
scores = [measure(drawn[radio.value_selected, name], asked) for name in mechanisms]
_, is_asked, in_place, shuffled = zip(*scores)  # three of each: cross, joint, pooled
claim("C1", "Colors in place, worse of cross and joint", min(in_place[:2]), ">", 0.9)
claim("C2", "Pooled, colors asked for (random colors: 0.33)", is_asked[2], ">", 0.5)
claim("C3", "Pooled, in place minus if shuffled", in_place[2] - shuffled[2], "<", 0.05)
print("figure: 15_hybrid.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
