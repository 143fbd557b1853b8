# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""13 Unified-token transformers: one net reads and writes images, audio, and text.

A number can be drawn, dialed, or spelled. Once all three are tokens of one vocabulary, a net that
predicts the next token, like GPT, translates any to any. A special token such as <text> says which
modality to write. (Real systems get tokens from images and sound as in lesson 11. We make them up.)
RUN    python 13_unified.py                       (5 seconds; slider: 7 and 8 digits fail)
BREAK  python 13_unified.py --no-special-tokens   (C1, C2 fail: the net must guess the modality)
PAPER  arXiv 2405.09818 (Chameleon: one transformer for interleaved text and image tokens)"""
import argparse, signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--no-special-tokens", action="store_true", help="withhold the first token")
parser.add_argument("--iters", type=int, default=800, help="training iterations (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- One vocabulary. A token is an index into VOCAB, and the net sees nothing but tokens.
SPECIAL = "<end> <image> <audio> <text>".split()
IMAGE = "0 1 2 3 4 5 6 7 8 9".split()  # the image of a digit is one token, so we need no tokenizer
AUDIO = "941+1336 697+1209 697+1336 697+1477 770+1209 770+1336 770+1477 852+1209 852+1336 852+1477"
TEXT = "zero one two three four five six seven eight nine".split()
VOCAB = SPECIAL + IMAGE + AUDIO.split() + TEXT  # audio: a key of a telephone, two tones in hertz
VALUE = SPECIAL + 3 * IMAGE  # what a token means: its digit, whatever the modality
MODALITIES = ["image", "audio", "text"]

def encode(digits, modality):  # (B, m) to tokens (B, m + 2)
    begin = torch.full_like(digits[:, :1], VOCAB.index(f"<{modality}>"))
    content = digits + len(SPECIAL) + 10 * MODALITIES.index(modality)
    return torch.cat([begin, content, torch.zeros_like(begin)], 1)  # <end> is token 0

# A training example: 42, from image to text. The net reads the prompt and what it has written, and
# predicts the next token of the answer: first <text>, then "four", then "two", then <end>.
#     prompt    <image>  4   2  <end>          answer    <text>  four  two  <end>
#     position     0     1   2    0            position     0     1     2     0
# Positions count digits. At "four", the position is 1, so the net can look up position 2 of the
# prompt and write "two". After "two", it finds no digit at position 3, and learns to write <end>.
def count_digits(tokens):  # (B, N) to positions (B, N)
    is_digit = tokens >= len(SPECIAL)
    return is_digit.cumsum(1) * is_digit  # special tokens get 0, and are not counted
# A prompt may mix modalities. The net never trains on that, but the second digit keeps position 2:
#     prompt    <image>  4  <end>  <audio>  697+1336  <end>
#     position     0     1    0       0        2        0
def interleave(digits):  # (B, m) to tokens (B, m + 4): three digits as an image, the rest as audio
    return torch.cat([encode(digits[:, :3], "image"), encode(digits[:, 3:], "audio")], 1)

class UnifiedTransformer(nn.Module):
    def __init__(self, vocab_size, num_positions=32, dim=64, num_heads=4):
        super().__init__()
        self.token = nn.Embedding(vocab_size, dim)
        self.position = nn.Embedding(num_positions, dim)
        self.layer = nn.TransformerEncoderLayer(
            dim, num_heads, 2 * dim, dropout=0, batch_first=True, norm_first=True)
        self.head = nn.Linear(dim, vocab_size)

    def forward(self, prompt, answer):  # (B, P), (B, n) to logits (B, n + 1, vocab_size)
        positions = torch.cat([count_digits(prompt), count_digits(answer)], 1)
        h = self.token(torch.cat([prompt, answer], 1)) + self.position(positions)
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1])  # hides later tokens
        h = self.layer(h, mask)  # (B, P + n, dim)
        return self.head(h[:, prompt.shape[1] - 1:])  # from the last token of the prompt on

def train(net, iters, max_digits=6, batch_size=16, lr=0.01):
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        digits = torch.randint(10, (batch_size, 1 + i % max_digits))
        prompt, answer = [encode(digits, MODALITIES[j]) for j in torch.randint(3, [2])]  # any two
        logits = net(prompt, answer[:, :-1])  # (B, N, V), a prediction for each token
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), answer.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 120 == 0:  # one digit: at best about log(3) / 3 = 0.37, as modalities are random
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

def generate(net, prompt, answer, length):  # continues the answer from (B, n) to (B, length)
    while answer.shape[1] < length:
        token = net(prompt, answer)[:, -1:].argmax(2)  # (B, 1), the most probable next token
        answer = torch.cat([answer, token], 1)
    return answer

net = train(UnifiedTransformer(len(VOCAB)), args.iters).requires_grad_(False)
num_given = 0 if args.no_special_tokens else 1  # how many tokens of the answer the net is given
fig, ax = plt.subplots(figsize=(12, 7.6), layout="constrained")
fig.suptitle("The special token chooses the modality. Without it, the net guesses.", size=18)
COLORS = {"given": "lightgray", "right": "lightblue", "wrong": "lightcoral", "guessed": "khaki"}
handles = ax.bar(range(4), 1, color=[*COLORS.values()])  # only for the legend, as draw clears ax
fig.legend(handles, COLORS, loc=(0.885, 0.3), fontsize=12)
def draw_row(y, title, tokens, marks):  # one tile per token, with its index in VOCAB
    ax.text(-0.6, y, title, size=13, ha="right", va="center")
    for x, (token, mark) in enumerate(zip(tokens, marks)):
        word = VOCAB[token]
        font = {"size": 36, "color": "w", "backgroundcolor": "k"} if word in IMAGE else {"size": 11}
        if "+" in word:
            word = f"\u266a key {VALUE[token]}\n{word} Hz".replace("+", " +\n")
        ax.bar(x, 0.9, width=0.96, bottom=y - 0.45, color=COLORS[mark])
        ax.text(x, y - 0.1, word, ha="center", va="center", **font)
        ax.text(x, y + 0.4, int(token), ha="center")

def draw_answer(y, title, prompt, wanted, num_given, first_marks):  # right in any modality is right
    answer = generate(net, prompt, wanted[:, :num_given], wanted.shape[1])[0]
    marks = ["right" if VALUE[a] == VALUE[b] else "wrong" for a, b in zip(answer, wanted[0])]
    marks[:len(first_marks)] = first_marks
    draw_row(y, title, answer, marks)
def draw(num_digits):
    number = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])[:, :int(num_digits)]
    prompt = interleave(number)
    ax.clear()
    ax.set(xlim=[-0.5, 11.5], ylim=[4.8, -0.5], xticks=[], yticks=[], frame_on=False)
    draw_row(0, "Prompt. Small numbers:\nvocabulary indices", prompt[0], ["given"] * len(prompt[0]))
    for y, name in enumerate(MODALITIES, 1):
        title = f"Wanted: {name}.\nGiven: " + (f"<{name}>" if num_given else "nothing")
        draw_answer(y, title, prompt, encode(number, name), num_given, ["given"] * num_given)
    p = net(prompt, prompt[:, :0])[0, 0].softmax(0)  # of the first token, if nothing is given
    title = f"Nothing given. Chances:\n<image> {p[1]:.0%}, <audio> {p[2]:.0%},\n<text> {p[3]:.0%}"
    draw_answer(4, title, prompt, encode(number, "text"), 0, ["guessed"])
draw(6)
slider = plt.Slider(plt.axes([.5, 0, .2, .03]), "digits (trained: 1-6)", 4, 8, valinit=6, valstep=1)
slider.on_changed(draw)  # training had 1 to 6 digits, so positions 7 and 8 are new to the net
fig.savefig("13_unified.png")

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
def measure(net, prompt, answer, num_given):  # share of B answers that it writes without a mistake
    written = generate(net, prompt, answer[:, :num_given], answer.shape[1])
    return (written == answer).all(1).float().mean()

digits = torch.randint(10, (100, 6))  # all six are right by chance once in a million
answers = [encode(digits, modality) for modality in MODALITIES]
pairs = [measure(net, prompt, answer, num_given) for prompt in answers for answer in answers]
mixed = [measure(net, interleave(digits), answer, num_given) for answer in answers]
claim("C1", "Numbers translated without a mistake, worst of 9 pairs", min(pairs), ">", 0.8)
claim("C2", "The same for part image, part audio, worst of 3 answers", min(mixed), ">", 0.8)
print("figure: 13_unified.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
