# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""15 Hybrid pipelines: a language model reads a caption, a flow draws the picture.
In goes a caption, "right green left pink middle white". Out comes a flag with these three stripes.
A language model (LM) learns to predict the next word of captions that tell each flag twice. In the
second telling it can know the colour after "right", if it has kept what the first one said of it.
Then it is frozen, and makes a vector of each word, its feature. The painter is a flow-matching net
(lesson 06) that gets the features by one of three interfaces:
    pooled   all stripes get the same vector, the mean of the features
    cross    each stripe looks at all features, by attention (lesson 08)
    joint    stripes and features form one sequence, in which each looks at all
Its score is the share of stripes with the asked colour: 1/8 for a blind guess. A painter that knows
WHAT to draw, but not WHERE, puts the right colours in random places: 1/3 + 2/3 x 1/8 = 5/12.
C1 Pooled, with its stripes shuffled, beats a blind guess: it has learned some of WHAT.
C2 Pooled, not shuffled, scores no more: it has not found WHERE. C3 Cross and joint score nearly 1.
A reason for C2: attention adds what it finds, so the feature of "green" is about green + right, the
word before. As (green + right) + (pink + left) = (pink + right) + (green + left), WHERE is faint.
RUN    python 15_hybrid.py         (12 seconds; slider: more flags)
BREAK  python 15_hybrid.py --bag   all painters get words without context and order: C3 fails
PAPER  DALL-E 2, arXiv 2204.06125 (pooled); Imagen, 2205.11487 (cross); SD3, 2403.03206 (joint)"""
import argparse
import matplotlib.pyplot as plt
import torch
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--bag", action="store_true", help="a bag of words for all: breaks C3")
parser.add_argument("--iters", type=int, default=200, help="of each net; 50 fails (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if args.iters < 1 or args.seed < 0:
    parser.error("--iters must be 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small are fastest on one core

# --- data: a flag is three numbers 0 to 7, its colours from left to right
WORDS = "left middle right black blue green cyan red pink yellow white".split()
OFF_ON = torch.tensor([-1.0, 1.0])
PAINT = torch.cartesian_prod(OFF_ON, OFF_ON, OFF_ON)  # (8, 3), red, green, blue of black to white
def tell(flags):
    """Captions (B, 6) of flags (B, 3), as numbers of WORDS, with the places in any order."""
    # flag       pink white green                    = 5 7 2
    # caption    right green left pink middle white  = 2 5 0 8 1 10 (in WORDS, black is 3)
    place = torch.rand(len(flags), 3).argsort(1)  # (B, 3): 0, 1, 2 in a random order
    colour = 3 + flags.gather(1, place)  # (B, 3): the word for the colour at each place
    return torch.stack([place, colour], 2).flatten(1)

# --- network, with torch's form of lesson 08's block: 48 numbers a token, 4 x 48 = 192 inside
BLOCK = dict(d_model=48, nhead=8, dim_feedforward=192, dropout=0, batch_first=True, norm_first=True)
class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.word, self.next_word = nn.Embedding(11, 48), nn.Linear(48, 11)  # 11 WORDS
        self.place = nn.Parameter(torch.randn(12, 48))  # a caption, told twice, is 12 words
        block = nn.TransformerEncoderLayer(**BLOCK)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)  # or torch warns
    def forward(self, words):  # (B, N) to features (B, N, 48)
        mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1])  # no later words
        return self.blocks(self.word(words) + self.place[:words.shape[1]], mask)
    def loss(self, caption, again):
        words = torch.cat([caption, again], 1)  # (B, 12), the same flag in two orders
        guess = self.next_word(self(words[:, :-1]))  # (B, 11 places, 11 logits)
        return nn.functional.cross_entropy(guess.transpose(1, 2), words[:, 1:])

def pooled(stripes, features):  # returns tokens, which look at each other, and what they see next
    return stripes, features.mean(1, keepdim=True)  # tokens (B, 3, 48), seen (B, 1, 48)
def cross(stripes, features):
    return stripes, features  # tokens (B, 3, 48), seen (B, 6, 48)
def joint(stripes, features):
    tokens = torch.cat([stripes, features], 1)  # (B, 9, 48)
    return tokens, tokens  # the block also looks at what is seen: here its own input

class Painter(nn.Module):
    def __init__(self, interface):
        super().__init__()
        self.interface = interface
        self.stripe, self.velocity = nn.Linear(3, 48), nn.Linear(48, 3)
        self.time, self.place = nn.Parameter(torch.randn(48)), nn.Parameter(torch.randn(3, 48))
        self.blocks = nn.TransformerDecoder(nn.TransformerDecoderLayer(**BLOCK), 2)
    def forward(self, xt, t, features):  # noisy flags (B, 3, RGB) to v_hat (B, 3, RGB)
        stripes = self.stripe(xt) + t * self.time + self.place  # (B, 3, 48)
        tokens, seen = self.interface(stripes, features)
        return self.velocity(self.blocks(tokens, seen)[:, :3])
    def loss(self, x, features):
        eps, t = torch.randn_like(x), torch.rand(len(x), 1, 1)
        xt = t * x + (1 - t) * eps
        return (self(xt, t, features) - (x - eps)).square().mean()

# --- train
def train(net, inputs, others, iters):
    """Make net.loss small on pairs of rows from inputs and others. Returns the net, frozen."""
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95), fused=True)
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.006 * (1 - i / iters)  # large steps first, then small
        pick = torch.randint(len(inputs), (64,))
        loss = net.loss(inputs[pick], others[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{type(net).__name__}: {iters} iterations, loss {loss:.3f}")
    return net.requires_grad_(False)

known, asked = torch.randint(8, (3000, 3)), torch.randint(8, (800, 3))  # asked: most are known
captions, asked_captions = tell(known), tell(asked)
lm = train(LanguageModel(), captions, tell(known), args.iters)
reader = lm.word if args.bag else lm  # lm.word: a vector for each word, without its place
rows = [(pooled, reader), (cross, reader), (joint, reader), (cross, lm.word)]  # last: a bag

# --- sample and measure
drawn, score, shuffled = [PAINT[asked]], [], []
for interface, read in rows:
    painter = train(Painter(interface), PAINT[known], read(captions), args.iters)
    features, xt = read(asked_captions), torch.randn(800, 3, 3)  # of one telling: (800, 6, 48)
    for i in range(10):  # Euler's steps, lesson 06
        xt = xt + painter(xt, i / 10, features) / 10
    colour = torch.cdist(xt, PAINT).argmin(2)  # (800, 3 stripes), the nearest of the 8
    drawn.append(xt)
    score.append((colour == asked).float().mean().item())  # C1, C2, C3
    shuffled.append((colour[:, :, None] == asked[:, None, :]).float().mean().item())  # all orders

# --- figure
fig, (left, chart) = plt.subplots(1, 2, figsize=(12, 5), width_ratios=[3, 1], layout="constrained")
flags = torch.cat([torch.stack(drawn), torch.full((5, 800, 1, 3), 0.5)], 2)  # (5, 800, 3 + 1, 3)
left.imshow(flags.view(5, 3200, 3).clip(-1, 1) / 2 + 0.5, aspect="auto")  # grey between flags
left.hlines([0.5, 1.5, 2.5, 3.5], -0.5, 3200, color="0.75", lw=12)  # grey between the rows
left.set_yticks(range(5), ["asked", "pooled", "cross", "joint", "bag of words"])
chart.barh(range(1, 5), score, color=["tab:blue" if s > 0.9 else "tab:red" for s in score])
chart.plot(shuffled, range(1, 5), "k|", ms=60)
chart.set(title="score (black: shuffled)", yticks=[], ylim=(4.5, -0.5), xticks=[1 / 8, 5 / 12, 1])
slider = plt.Slider(chart.inset_axes([0.2, 0.9, 0.5, 0.06]), "flag", 0, 795, valinit=0, valstep=1)
def draw(k):  # flags k to k + 4 into view, each 4 wide with its gap
    caption = " ".join(WORDS[word] for word in asked_captions[int(k)])
    left.set(xlim=(4 * k - 0.5, 4 * k + 18.5), xticks=[], title=f"the first asks for: {caption}")
draw(0)
slider.on_changed(draw)
fig.savefig("15_hybrid.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", "score of pooled, shuffled (blind .125, WHAT .417)", shuffled[0], ">", 0.2)
claim("C2", "how much more it is, not shuffled", score[0] - shuffled[0], "<", 0.05)
claim("C3", "score, the worse of cross and joint", min(score[1:3]), ">", 0.9)
print("figure: 15_hybrid.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
