# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""13 Unified-token transformers: one net reads and writes words, pictures and sounds.
A number can be written in words, as a picture, or as the sound of telephone keys. Each medium is a
row of tokens (integers), looked up in a table: a digit is one word, four strips of a picture, or
two tones. This document is 41 as a picture, the source, and then in words, the target:
    token  <image>  s s s s  s s s s  <end>  <text>  four  one  <end>
    place     0     1 1 1 1  2 2 2 2    0      0      1     2     0
A transformer learns to predict each token of the target from all tokens before it. At <text> it has
to look (attend) at the tokens of place 1, and writes "four". At "four" it looks at place 2, and
writes "one", and then <end>. Places mean the same in all media, and <text> says what to write, so
any medium can be given or wanted. Two nets, one to read and one to write, with one vector between
them, must pack all digits into it. They learn that slowly, above all for long numbers (the tests).
C1 One net writes each medium from each medium.
C2 It reads a number that is half a picture and half a sound, although it never saw such a mixture.
RUN    python 13_unified.py                 (12 seconds; slider: digits; 7 and 8, untrained, break)
BREAK  python 13_unified.py --markers off   nothing says which medium to write: C1 and C2 fail
PAPER  Chameleon, arXiv 2405.09818 (words and pictures); LWM, 2402.08268 (and films)"""
import argparse
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--markers", choices=["on", "off"], default="on", help="off breaks it (on)")
parser.add_argument("--iters", type=int, default=700, help="of training; 100 fails (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if args.iters < 1 or args.seed < 0:
    parser.error("--iters must be 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small are fastest on one core

# --- data: tokens 0 .. 9 are words, 10 .. 13 markers, 14 .. 20 tones, 21 .. 60 strips of pictures
def draw_digit(digit, font):
    """A digit in a font as a picture (16, 16): 0 is paper, 1 is ink."""
    figure = Figure(figsize=(1, 1), dpi=16)  # one inch: 16 x 16 pixels
    figure.text(0.5, 0.5, digit, font=font, size=80, ha="center", va="center_baseline")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    red = np.asarray(canvas.buffer_rgba())[:, :, 0] / 255  # of grey ink: green and blue are alike
    return 1 - torch.tensor(red, dtype=torch.float32)
row = torch.cat([draw_digit(d, "DejaVu Sans") for d in "0123456789"], 1)  # (16, 160)
PIXELS = torch.zeros(61, 16, 4)  # how a token looks; the net never sees it
PIXELS[21:] = row.view(16, 40, 4).transpose(0, 1)  # 40 strips; no two are alike
KEY = torch.tensor([10, 0, 1, 2, 3, 4, 5, 6, 7, 8])  # place on the pad: 123, 456, 789, *0#
SPELL = {"text": torch.arange(10).view(10, 1), "image": torch.arange(21, 61).view(10, 4),
         "audio": torch.stack([14 + KEY // 3, 18 + KEY % 3], 1)}  # (10, 2): tones of row and column
BEGIN, END = {"text": 10, "image": 11, "audio": 12}, 13
if args.markers == "off":
    BEGIN = {"text": 10, "image": 10, "audio": 10}

def segment(digits, medium, first=1):
    """Numbers (B, m) in a medium, with markers: tokens and places (from first), (B, N, 2)."""
    B, m, k = SPELL[medium][digits].shape  # a digit is k tokens
    pairs = torch.zeros(B, m * k + 2, 2).long()  # with a marker before and after
    pairs[:, 0, 0], pairs[:, -1, 0] = BEGIN[medium], END
    pairs[:, 1:-1, 0] = SPELL[medium][digits].flatten(1)
    pairs[:, 1:-1, 1] = torch.arange(first, first + m).repeat_interleave(k)  # as 1 1 2 2
    return pairs

# --- network and train
class TokenNet(nn.Module):
    """Source (B, S, 2), n tokens of a target (B, n, 2) to logits of the next ones (B, n, V)."""
    def __init__(self, V):
        super().__init__()
        self.token = nn.Embedding(V, 64)
        self.place = nn.Embedding(9, 64)  # of a digit. Within it, tokens tell their order
        block = nn.TransformerEncoderLayer(64, 4, 256, dropout=0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2)
        self.head = nn.Linear(64, V)

    def forward(self, source, target):
        x = torch.cat([source, target], 1)  # (B, N, 2)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])  # hides later tokens
        h = self.token(x[:, :, 0]) + self.place(x[:, :, 1])  # (B, N, C), C = 64
        return self.head(self.blocks(h, mask)[:, source.shape[1]:])
PAIRS = [(given, wanted) for given in SPELL for wanted in SPELL]
def train_documents(net, iters):
    """Learn to write random numbers in one medium from another. Returns the net."""
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.95))  # .999 is a little worse here
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.006 * min((i + 1) / 100, 1 - i / iters)  # rise, fall
        digits = torch.randint(10, (32, 1 + torch.randint(6, ())))  # 32 numbers of 1 to 6 digits
        source, target = [segment(digits, medium) for medium in PAIRS[i % 9]]
        logits = net(source, target[:, :-1])  # (B, n, V)
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), target[:, 1:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (i + 1) % max(1, iters // 8) == 0:
            print(f"iter {i + 1:4d}  loss {loss:.4f}")
    return net.requires_grad_(False)
net = train_documents(TokenNet(61), args.iters)

# --- sample and measure
def reply(net, source, target):
    """Write target (B, N, 2) anew. Given are only its first token, its places and its length."""
    target = target.clone()
    for n in range(1, target.shape[1]):
        target[:, n, 0] = net(source, target[:, :n])[:, -1].argmax(1)  # the likeliest token
    return target
def share_right(net, source, target):
    """The share of the B numbers that the net writes without any mistake."""
    return (reply(net, source, target) == target).flatten(1).all(1).float().mean().item()

digits = torch.randint(10, (100, 6))
spelled = [segment(digits, medium) for medium in SPELL]
right = [share_right(net, source, target) for source in spelled for target in spelled]  # C1
mixed = torch.cat([segment(digits[:, :3], "image"), segment(digits[:, 3:], "audio", first=4)], 1)
mixed_right = [share_right(net, mixed, target) for target in spelled]  # C2

# --- figure. Decoders: a strip is pixels (above), a tone is a wave of .1 seconds, a word is text
HERTZ = torch.tensor([697, 770, 852, 941, 1209, 1336, 1477])  # of 4 rows and 3 columns of keys
WAVES = (2 * torch.pi * HERTZ[:, None] * torch.arange(800) / 8000).sin()  # 800 of 8000 a second
WORDS = "zero one two three four five six seven eight nine".split() + 51 * ["?"]  # no word
fig, (given, written) = plt.subplots(2, 1, figsize=(12, 5), layout="constrained")
slider = plt.Slider(plt.axes([0.84, 0.96, 0.1, 0.03]), "digits", 1, 8, valinit=6, valstep=1)

def draw(m):
    number = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])[:, :int(m)]
    wave = WAVES[SPELL["audio"][number[0]] - 14].sum(1)  # (m, 800): two tones at once
    given.clear()
    given.specgram(wave.flatten(), Fs=8000, cmap="Greys")
    given.set(title="given: sound (in hertz); written (red: wrong):", ylim=(500, 1700))
    source, target = segment(number, "audio"), segment(number, "image")
    drawn, words = reply(net, source, target), reply(net, source, segment(number, "text"))
    strips = PIXELS[drawn[0, 1:-1, 0]]  # (4 m, 16, 4)
    written.clear()
    written.imshow(torch.cat(list(strips), 1), "Blues" if drawn.equal(target) else "Reds")
    written.set_title("as picture and words: " + " ".join(WORDS[k] for k in words[0, 1:-1, 0]))
draw(6)
slider.on_changed(draw)
fig.savefig("13_unified.png", dpi=120)

# --- claims
def claim(name, words, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
claim("C1", "numbers right, the worst of 9 pairs (a guess: 1e-6)", min(right), ">", 0.8)
claim("C2", "half picture, half sound, the worst of 3 targets", min(mixed_right), ">", 0.8)
print("figure: 13_unified.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
