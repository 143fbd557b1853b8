# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""14 Think, then draw: a chain of thought before the image tokens, in one small transformer.

The net reads two images and draws one. In A, the digit in each cell names the next cell. It follows
them for 1 to 5 hops. Then it draws B, but with the last cell, the goal, in black. In this training,
it learns one hop per forward pass, not two. So it writes each cell down, and hops on from there.

RUN    python 14_reasoning_gen.py                 (11 seconds; move the slider to remove thoughts)
BREAK  python 14_reasoning_gen.py --thoughts 0    (from 2 hops on, the net guesses, so C1 fails)
PAPER  arXiv 2201.11903 (chain of thought), 2310.07923 (why it helps), 2405.09818 (Chameleon)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--thoughts", type=int, default=4, help="0 to 4, in C1 (default: %(default)s)")
parser.add_argument("--iters", type=int, default=1200, help="of training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (0 <= args.thoughts <= 4 and 1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--thoughts must be 0 to 4, --iters 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Task: one sequence of tokens. Here, A leads from cell 4 to 7, 2, and 5, so 5 is 3 hops away.
#     cells    A        B        answer
#     0 1 2    8 4 5    3 1 6    3 1 6    The prompt ends at the start, 4. The net writes the rest:
#     3 4 5    6 7 0    0 2 8    0 2 #    first its thoughts, 7 and 2, then the goal, 5, and then a
#     6 7 8    1 2 3    7 7 4    7 7 4    copy of B, but with cell 5 in black (#).
# A role is a token's position, but in the text, it says how far away the next cell is: 21 asks for
# 1 hop, ..., 25 for 5. Without thoughts, the text would be 4 5, and its roles would be 23 26.
#   token  <image>  8 ... 3  <image>  3 ...  4  <text>  4   7   2   5  <image>  3 ...  4  <end>
#   role   0        1 ... 9  10      11 ... 19  20     21  21  21  26  27      28 ... 36
BLACK, IMAGE, TEXT, END, VOCAB_SIZE = range(9, 14)  # the tokens 0 to 8 are digits
START, HOP, GOAL, NUM_ROLES = 21, 20, 26, 37  # token 21 is the start; role HOP + n asks for n hops

def make_tasks(num_tasks):  # to paths, maps A, and images B, of shape (num_tasks, 9) each
    path = torch.rand(num_tasks, 9).argsort(1)  # all cells; the last one leads back to the first
    image_a = path.scatter(1, path, path.roll(-1, 1))  # A[path[i]] = path[i + 1]
    return path, image_a, torch.randint(9, path.shape)

def make_sequences(path, image_a, image_b, num_hops, num_thoughts):
    assert 0 <= num_thoughts < num_hops <= 5
    text = path[:, [*range(num_thoughts + 1), num_hops]]  # start, thoughts, goal
    answer = image_b.scatter(1, text[:, -1:], BLACK)  # token surgery: one token of B changes
    image, begin, end = [torch.full_like(text[:, :1], token) for token in (IMAGE, TEXT, END)]
    tokens = torch.cat([image, image_a, image, image_b, begin, text, image, answer, end], 1)
    hops = [HOP + 1] * num_thoughts + [HOP + num_hops - num_thoughts]  # the last may be longer
    roles = [*range(START), *hops, *range(GOAL, NUM_ROLES)]  # <end> is never an input: no role
    return tokens, torch.tensor(roles)  # (num_tasks, N + 1) and (N,)

# --- Net: like GPT, but with one layer. To hop from cell 4, token 4 sends out a query for cell 4 of
# A, and gets its digit, 7. The next hop needs a query for cell 7, but a layer computes all queries
# before it looks anything up. So this hop has to wait until 7 has been written and is an input.
class Thinker(nn.Module):  # to draw a cell, it looks up two things: this cell in B, and the goal
    def __init__(self, vocab_size, num_roles, dim=64, num_heads=8):  # 4 heads need more iterations
        super().__init__()
        self.token = nn.Embedding(vocab_size, dim)
        self.role = nn.Embedding(num_roles, dim)
        self.layer = nn.TransformerEncoderLayer(
            dim, num_heads, 2 * dim, dropout=0, batch_first=True, norm_first=True)
        self.head = nn.Linear(dim, vocab_size)
    def forward(self, tokens, roles):  # (B, N) and (N,), to logits (B, N, vocab_size)
        mask = nn.Transformer.generate_square_subsequent_mask(len(roles))  # look only back
        return self.head(self.layer(self.token(tokens) + self.role(roles), mask))

def train(net, iters, batch_size=16, lr=0.008):  # to predict each token after the start
    optimizer = torch.optim.Adam(net.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, iters)  # warmup, then decay
    for i in range(iters):
        num_thoughts, num_hops = sorted(torch.randperm(6)[:2].tolist())  # any two of 0 to 5
        tokens, roles = make_sequences(*make_tasks(batch_size), num_hops, num_thoughts)
        logits = net(tokens[:, :-1], roles)[:, START:]  # (B, num_thoughts + 12, vocab_size)
        loss = nn.functional.cross_entropy(logits.mT, tokens[:, START + 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if i % 100 == 0:  # the loss is higher when thoughts are missing, as the net guesses
            print(f"iteration {i} of {iters}: loss {loss:.4f}")

@torch.no_grad()
def generate(net, tokens, roles):  # continues tokens (B, n) to (B, N + 1)
    for n in range(tokens.shape[1], len(roles) + 1):
        token = net(tokens, roles[:n])[:, -1:].argmax(2)  # one forward pass for each new token
        tokens = torch.cat([tokens, token], 1)
    return tokens

@torch.no_grad()  # the net writes a token if it is the most probable one after those before it
def measure(net, tokens, roles, given=START):  # share of rows that it writes, from index given + 1
    is_right = net(tokens[:, :-1], roles).argmax(2) == tokens[:, 1:]  # (B, N), in one forward pass
    return is_right[:, given:].all(1).float().mean()

net = Thinker(VOCAB_SIZE, NUM_ROLES)
train(net, args.iters)
path, image_a, image_b = tasks = make_tasks(500)
accuracy = torch.tensor([[measure(net, *make_sequences(*tasks, hops, min(thoughts, hops - 1)))
                          for hops in range(1, 6)] for thoughts in range(5)])
wrong = path[:, [0, *range(3, 9)]], image_a, image_b  # the first thought is 3 hops from the start
follows = measure(net, *make_sequences(*wrong, 5, 4), START + 1)  # does the net hop on from it?

fig, axes = plt.subplot_mosaic("011;022", figsize=(14, 6.8), layout="constrained")
stairs, top, bottom = axes.values()
fig.suptitle("Boards: cells 012, 345, 678. Frames: start, true goal. Blue: right. Red: wrong. "
             "Below, the first cell that it wrote was replaced.")
stairs.imshow(accuracy, "Blues", vmax=2)
for i, value in enumerate(accuracy.flatten()):
    stairs.text(i % 5, i // 5, f"{value:.2f}", ha="center", va="center")
stairs.set(title="Each hop but the first needs a thought\n(with fewer, it guesses: 1/7 is 0.14)",
           xlabel="thoughts needed (hops - 1)", ylabel="thoughts written")

def draw(num_thoughts):
    for ax, task, given in (top, tasks, START + 1), (bottom, wrong, START + 2):
        tokens, roles = make_sequences(*task, 5, int(num_thoughts))
        tokens = generate(net, tokens[:1, :given], roles)[0]
        text, answer = tokens[START:-11], tokens[-10:-1]  # all but <image> and <end>
        color = "tab:blue" if answer[path[0, 5]] == BLACK else "tab:red"
        ax.clear()
        for i, digit in enumerate([*image_a[0], *image_b[0], *answer]):
            x, y = i % 3 + i // 9 * 4, i // 3 % 3
            mark = color if i % 9 in path[0, [0, 5]] else "k"  # start and true goal
            ax.plot(x, y, "s", ms=55, mec=mark, mew=3, mfc="k" if digit == BLACK else "w")
            ax.text(x, y, f"{digit}", size=20, ha="center", va="center")
        arrow = {"arrowstyle": "-|>", "connectionstyle": "arc3,rad=0.25", "color": color,
                 "lw": 2, "shrinkA": 12, "shrinkB": 12}
        for start, end in zip(text, text[1:]):
            ax.annotate("", (end % 3, end // 3), (start % 3, start // 3), size=20, arrowprops=arrow)
        ax.set(title=f"It wrote {text.tolist()}. Map A, B, and the answer:", ylim=(2.6, -0.6))
        ax.axis("off")
box = plt.axes([0.1, 0.02, 0.2, 0.03])
slider = plt.Slider(box, "thoughts", 0, 4, valinit=args.thoughts, valstep=1)
slider.on_changed(draw)
draw(args.thoughts)
fig.savefig("14_reasoning_gen.png")

def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Accuracy, worst of 1 to 5 hops", accuracy[args.thoughts].min(), ">", 0.95)
claim("C2", "Accuracy without thoughts, 2 hops (chance: 1/7)", accuracy[0, 1], "<", 2 / 7)
claim("C3", "Share that hops on from a replaced thought", follows, ">", 0.95)
print("figure: 14_reasoning_gen.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
