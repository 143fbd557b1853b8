# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""13 Unified-token transformers: one net reads and writes images, audio, and text.

A number can be drawn, dialed on a telephone, or spelled. We write all three as tokens of one
vocabulary, and a net that predicts the next token, like GPT, translates from any to any. Special
tokens say what to write. It even reads part image, part audio, which it was never trained on.

RUN    python 13_unified.py                       (7 seconds; slider: 7 and 8 digits fail)
BREAK  python 13_unified.py --no-special-tokens   (C1, C2 fail: it must guess what to write)
PAPER  arXiv 2405.09818 (Chameleon: one transformer for interleaved text and image tokens)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--no-special-tokens", action="store_true", help="begin all with <any>")
parser.add_argument("--iters", type=int, default=800, help="of training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- One unified vocabulary: the net gets these integers, never pixels or sound.
NAMES = """<end> <image> <audio> <text> <any> zero one two three four five six seven eight nine
           697 770 852 941 1209 1336 1477""".split() + [""] * 20  # special tokens, words, hertz
BEGIN = {"image": 1, "audio": 2, "text": 3}
if args.no_special_tokens:
    BEGIN = dict.fromkeys(BEGIN, 4)  # <any> does not say which modality it begins
KEY = (torch.arange(10) - 1) % 11  # 10, 0, ..., 8: where 0, 1, ..., 9 are on 123 456 789 *0#
TOKENS = {"image": torch.arange(22, 42).view(10, 2),  # the halves of its image. For a 4: 30 31
          "audio": torch.stack([15 + KEY // 3, 19 + KEY % 3], 1),  # its key's two tones: 16 19
          "text": torch.arange(5, 15).view(10, 1)}  # its word: 9

# A sequence may interleave modalities. Here the prompt has 4 as an image and 2 as audio, and the
# answer has 42 as text. Papers call <image> and its <end> BOI and EOI (begin, end of image).
#     token     <image> 30 31 <end>   <audio> 15 20 <end>   <text>  9  7  <end>
#     position     0     1  1   0        0     2  2   0        0    1  2    0
# Positions count digits. To write digit 2, the net attends to position 2 of the prompt, whatever
# its modality, and writes <end> if there is none. If positions counted tokens, digit 2 would be at
# another one in each modality, and each pair of modalities would need its own rule.
def encode(digits, modality):  # (B, m) to tokens (B, N), between a special token and <end>
    tokens = nn.functional.pad(TOKENS[modality][digits].flatten(1), (1, 0), value=BEGIN[modality])
    return nn.functional.pad(tokens, (0, 1))  # token 0 is <end>
def interleave(digits):  # (B, m) to (B, N). The first three are an image, and the others audio
    return torch.cat([encode(digits[:, :3], "image"), encode(digits[:, 3:], "audio")], 1)

def count_digits(tokens):  # (B, N) to positions (B, N), which are 0 for special tokens
    first = torch.cat([table[:, 0] for table in TOKENS.values()])  # with these, a digit begins
    return torch.isin(tokens, first).cumsum(1) * (tokens > 4)

# --- A decoder-only transformer: the causal mask lets a token attend to earlier ones only. In a
# two-tower pipeline (encoder-decoder), one net reads, and another one writes. Here one does both.
class UnifiedTransformer(nn.Module):
    def __init__(self, vocab_size, max_digits=32, dim=64, num_heads=4, depth=2):
        super().__init__()
        self.token = nn.Embedding(vocab_size, dim)
        self.position = nn.Embedding(1 + max_digits, dim)
        layer = nn.TransformerEncoderLayer(
            dim, num_heads, 2 * dim, dropout=0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(dim, vocab_size)

    def forward(self, prompt, answer):  # (B, P), (B, n) to logits (B, n + 1, vocab_size)
        tokens = torch.cat([prompt, answer], 1)  # (B, P + n)
        positions = torch.cat([count_digits(prompt), count_digits(answer)], 1)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        h = self.layers(self.token(tokens) + self.position(positions), mask)  # (B, P + n, dim)
        return self.head(h[:, prompt.shape[1] - 1:])

# The loss counts the answer only, and stays above 0, because the special token is random.
def train(net, iters, batch_size=16, lr=0.01):
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first
        digits = torch.randint(10, (batch_size, 1 + i % 6))  # 1 to 6 digits
        prompt, answer = [encode(digits, list(BEGIN)[j]) for j in torch.randint(3, [2])]
        loss = nn.functional.cross_entropy(net(prompt, answer[:, :-1]).mT, answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

@torch.no_grad()
def generate(net, prompt, answer, given=1):
    """Write as many tokens as the answer (B, N) has. Its first ones are given (None: all)."""
    written = answer[:, :given]
    while written.shape[1] < answer.shape[1]:
        token = net(prompt, written)[:, -1:].argmax(2)  # the most probable next token
        token[(written == 0).any(1)] = 0  # after <end>, there is nothing but <end>
        written = torch.cat([written, token], 1)
    return written
net = train(UnifiedTransformer(len(NAMES)), args.iters)

# --- Decoders: NAMES, and a table from tokens to 16 x 8 pixels. A tone is a bar at its frequency.
canvas = FigureCanvasAgg(plt.Figure(figsize=(10, 1), dpi=16))  # 16 x 160 pixels
for digit in range(10):
    canvas.figure.text(digit / 10 + 0.05, 0.5, digit, size=80, ha="center", va="center_baseline")
canvas.draw()
ink = 1 - torch.tensor(canvas.buffer_rgba().tolist())[:, :, 0] / 255  # red equals green, blue
PIXELS = torch.zeros(len(NAMES), 16, 8)
PIXELS[22:] = ink.view(16, 20, 8).transpose(0, 1)
PIXELS[range(15, 22), [14, 13, 11, 10, 5, 3, 1]] = 1  # each row of pixels is 60 hertz

TITLES = ["A prompt. The net translates it (blue: right, red: wrong). Training used 1 to 6 digits",
          "We want the image", "We want the image, but give no special token. The net has to guess",
          "We want the audio", "We want the text"]
fig, axes = plt.subplots(5, figsize=(13, 8), layout="constrained")
def draw(m):
    number = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])[:, :int(m)]
    prompt = interleave(number)
    wanted = [prompt] + [encode(number, name) for name in ["image", "image", "audio", "text"]]
    for ax, title, answer, given in zip(axes, TITLES, wanted, [None, 1, 0, 1, 1]):
        written = generate(net, prompt, answer, given)
        cmap = "Greys" if answer is prompt else "Blues" if written.equal(answer) else "Reds"
        ax.clear()
        ax.imshow(torch.hstack([*PIXELS[written[0]]]), cmap, vmin=-0.3, vmax=1)
        for i, token in enumerate(written[0]):
            ax.text(8 * i + 3.5, 7.5, NAMES[token], ha="center")
        ax.set_title(title, loc="left")
        ax.set(xlim=[0, 160], xticks=[], yticks=[], frame_on=False)

draw(6)
slider = plt.Slider(plt.axes([0.88, 0.96, 0.08, 0.03]), "digits", 4, 8, valinit=6, valstep=1)
slider.on_changed(draw)
fig.savefig("13_unified.png")

# --- Claims. 0.8 allows 1 wrong digit in 27. Without special tokens, the worst is at most 1/3.
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
digits = torch.randint(10, (100, 6))
answers = [encode(digits, modality) for modality in BEGIN]
shares = [(generate(net, p, a) == a).all(1).float().mean()
          for p in [*answers, interleave(digits)] for a in answers]
claim("C1", "Numbers translated without a mistake, worst of 9 pairs", min(shares[:9]), ">", 0.8)
claim("C2", "The same for part image, part audio, worst of 3 answers", min(shares[9:]), ">", 0.8)
print("figure: 13_unified.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
