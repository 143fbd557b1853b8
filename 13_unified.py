# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""13 Unified-token transformers: one net reads and writes images, audio, and text.

A number can be drawn, dialed (each key of a telephone plays two tones), or spelled. All three are
tokens of one vocabulary, so a net that predicts the next token, like GPT, translates from any to
any. Special tokens say what to write. It even reads mixtures, which it was never trained on.

RUN    python 13_unified.py                       (7 seconds; slider: 7 and 8 digits fail)
BREAK  python 13_unified.py --no-special-tokens   (C1, C2 fail: it must guess what to write)
PAPER  arXiv 2405.09818 (Chameleon: one transformer for interleaved text and image tokens)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--no-special-tokens", action="store_true", help="let the net guess")
parser.add_argument("--iters", type=int, default=800, help="of training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- One unified vocabulary. A token is the index of a name, and the net sees nothing but tokens.
WORDS = "zero one two three four five six seven eight nine"
HALVES = "0L 0R 1L 1R 2L 2R 3L 3R 4L 4R 5L 5R 6L 6R 7L 7R 8L 8R 9L 9R"  # left and right of images
TONES = "941 1336 697 1209 697 1336 697 1477 770 1209 770 1336 770 1477 852 1209 852 1336 852 1477"
SPECIAL = ["<end>", "<image>", "<audio>", "<text>"]  # begin of image (BOI): <image>, EOI: <end>
VOCAB = SPECIAL + f"{WORDS} {HALVES} 697 770 852 941 1209 1336 1477".split()
END = VOCAB.index("<end>")
def lookup(names):  # to tokens, (10, 1) or (10, 2): a row for each digit
    return torch.tensor([VOCAB.index(name) for name in names.split()]).view(10, -1)
TOKENS = {"image": lookup(HALVES), "audio": lookup(TONES), "text": lookup(WORDS)}
FIRST = torch.cat([rows[:, 0] for rows in TOKENS.values()])  # left halves, low tones, and words

# A mixed prompt (4 is an image, and 2 is two tones in hertz), an answer, and what is predicted:
#     token       <image> 4L 4R <end> <audio> 697 1336 <end>  | <text>      four        two
#     position       0     1  1   0      0     2    2    0    |   0          1           2
#     predicts    (the next token)                     <text> | four        two         <end>
#     by reading                                      nothing | position 1  position 2  none is left
# Positions count digits. To write digit p, the net reads position p of the prompt, whatever its
# modality, so a mix is as easy. Training draws <text> at random, so the loss stays above 0.
def encode(digits, modality):  # (B, m) to tokens (B, N), between a special token and <end>
    tokens = TOKENS[modality][digits].flatten(1)
    tokens = nn.functional.pad(tokens, (1, 0), value=VOCAB.index(f"<{modality}>"))  # on the left
    return nn.functional.pad(tokens, (0, 1), value=END)  # on the right
def interleave(digits):  # (B, m) to (B, N). The first three are an image, and the others audio
    return torch.cat([encode(digits[:, :3], "image"), encode(digits[:, 3:], "audio")], 1)
def count_digits(tokens):  # (B, N) to positions (B, N), which are 0 for special tokens
    positions = torch.isin(tokens, FIRST).cumsum(1)  # one more where a digit begins
    return torch.where(tokens < len(SPECIAL), 0, positions)

# A two-tower (encoder-decoder) pipeline has a net that reads and a net that writes. Ours does both.
class UnifiedTransformer(nn.Module):
    def __init__(self, vocab_size, max_digits=32, dim=64, num_heads=4, depth=2):
        super().__init__()
        self.token = nn.Embedding(vocab_size, dim)
        self.position = nn.Embedding(1 + max_digits, dim)
        layer = nn.TransformerEncoderLayer(
            dim, num_heads, 2 * dim, dropout=0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)  # no padding
        self.head = nn.Linear(dim, vocab_size)

    def forward(self, prompt, answer):  # (B, P), (B, n) to logits (B, n + 1, vocab_size)
        positions = torch.cat([count_digits(prompt), count_digits(answer)], 1)
        h = self.token(torch.cat([prompt, answer], 1)) + self.position(positions)
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1])  # hides later tokens
        return self.head(self.layers(h, mask))[:, prompt.shape[1] - 1:]  # from its last token on

def train(net, iters, max_digits=6, batch_size=16, lr=0.01):
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        digits = torch.randint(10, (batch_size, 1 + i % max_digits))
        source, target = torch.randint(3, [2])
        prompt = encode(digits, list(TOKENS)[source])
        answer = encode(digits, list(TOKENS)[target])
        logits = net(prompt, answer[:, :-1])  # (B, N, V), one prediction for each of N tokens
        loss = nn.functional.cross_entropy(logits.mT, answer)  # it expects (B, V, N)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

def generate(net, prompt, written, max_length):  # continues one sequence, (1, n), until <end>
    while END not in written and written.shape[1] < max_length:
        token = net(prompt, written)[:, -1:].argmax(2)  # (1, 1), the most probable next token
        written = torch.cat([written, token], 1)
    return written

# Teacher forcing: we show the right answer, which is what `generate` sees until its first mistake.
def measure(net, prompt, answer, num_given):  # share of answers, (B, N), without a mistake
    is_right = net(prompt, answer[:, :-1]).argmax(2) == answer  # (B, N)
    return is_right[:, num_given:].all(1).float().mean()
net = train(UnifiedTransformer(len(VOCAB)), args.iters).requires_grad_(False)
num_given = 0 if args.no_special_tokens else 1  # tokens of the answer that we give

fig, axes = plt.subplots(5, figsize=(11, 7), layout="constrained")
fig.suptitle("The net writes the modality that the special token names. Without one, it guesses.\n"
             "gray: given    blue: as wanted    red: not as wanted    697 to 1477: hertz", size=15)
ROWS = [("image", num_given), ("audio", num_given), ("text", num_given), ("image", 0)]
def draw_tokens(ax, label, tokens, num_given=20, color=None):  # gray: the given ones
    ax.clear()
    for i, name in enumerate(VOCAB[token] for token in tokens):
        tile_color = "lightgray" if i < num_given else color
        tile = ax.bar(i, 2, 0.96, align="edge", color=tile_color)
        if name in HALVES:  # draws the whole digit, clipped to the tile of its half
            x = i + 1 if name[1] == "L" else i
            ax.text(x, 0.3, name[0], size=80, ha="center", clip_on=True).set_clip_path(tile[0])
        else:
            angle = 90 if name in SPECIAL else 0
            ax.text(i + 0.48, 1, name, size=11, ha="center", va="center", rotation=angle)
    ax.set(xlim=[0, 20], ylim=[0, 2], xticks=[], yticks=[1], yticklabels=[label], frame_on=False)

def draw(num_digits):
    number = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])[:, :int(num_digits)]
    draw_tokens(axes[0], "mixed prompt (training:\n1 to 6 digits, no mix)", interleave(number)[0])
    for ax, (wanted, given) in zip(axes[1:], ROWS):
        answer = encode(number, wanted)
        written = generate(net, interleave(number), answer[:, :given], max_length=20)
        color = "lightblue" if written.equal(answer) else "lightcoral"
        draw_tokens(ax, f"wanted: {wanted}\ntokens given: {given}", written[0], given, color)

draw(6)
slider = plt.Slider(plt.axes([0.7, 0.2, 0.2, 0.03]), "digits", 4, 8, valinit=6, valstep=1)
slider.on_changed(draw)  # the vectors of positions 7 and 8 were not trained, and are random
fig.savefig("13_unified.png")

# --- Claims. If 96.4 % of digits are right, 0.964 ** 6 = 0.8 of the numbers are. Chance: 1e-6.
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
digits = torch.randint(10, (100, 6))
answers = [encode(digits, modality) for modality in TOKENS]
pairs = [measure(net, prompt, answer, num_given) for prompt in answers for answer in answers]
mixed = [measure(net, interleave(digits), answer, num_given) for answer in answers]
claim("C1", "Numbers translated without a mistake, worst of 9 pairs", min(pairs), ">", 0.8)
claim("C2", "The same for part image, part audio, worst of 3 answers", min(mixed), ">", 0.8)
print("figure: 13_unified.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
