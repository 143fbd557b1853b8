# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""14 Think, then draw: a net writes its thoughts down in words before it draws a picture.
In go two pictures, A and B, and a start. A picture has 3 x 3 cells, named 0 to 8 row by row, with a
coloured digit in each. A's digits name the cell to hop to next; hops visit all nine cells before
they come back. The task: hop k times from the start, to the goal, then draw A with B's digit in the
goal. The net writes b words, its thoughts, then the goal, then the picture. A word names a cell.
Its role is the number of hops from it to the next word. With k = 3, b = 2, start 4, goal 0, this is
    input    A   B   4   7   2   0        cells 0 ... 8
    role             1   1   1   0
    output           7   2   0   unused   the picture
The net is one layer of attention and an MLP, called once for each word that it writes. Its 8 heads
look up cells at once: from the input 4 one finds the 7 in cell 4 of A. To look up cell 7, it needs
7 as an input, and this it is in the next call. So a call is one hop: b thoughts and the goal make
b + 1. One more call draws: each cell looks up its digits in A and B, and the goal. If k is larger
than b + 1, several hops are left for one call. The net is trained on this, too, but one layer looks
up only once. It guesses: of 7 cells (not the last word, not the one after it), one is right.
C1 With k - 1 thoughts, 1 to 5 hops end in the right picture. C2 Without thoughts, after 2 to 5 hops
about 1 picture in 7 is right. C3 The net hops on from a wrong thought.
RUN    python 14_reasoning_gen.py                 (13 seconds; sliders: hops, thoughts, wrong)
BREAK  python 14_reasoning_gen.py --thoughts 0    the net guesses from 2 hops on: C1 fails
PAPER  arXiv 2201.11903 (chain of thought), 2310.07923 (steps in series), 2405.09818 (Chameleon)"""
import argparse
import matplotlib.pyplot as plt
import torch
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--thoughts", type=int, default=4, help="in C1; 0 breaks it (%(default)s)")
parser.add_argument("--iters", type=int, default=400, help="training steps; 50 fail (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if not 0 <= args.thoughts <= 4 or args.iters < 1 or args.seed < 0:
    parser.error("--thoughts must be 0 to 4, --iters 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small are fastest on one core

# --- data
def make_tasks(n):  # pictures A and B, and a path (a ring) through all cells, each (n, 9)
    path = torch.rand(n, 9).argsort(1)  # all cells in random order: path[:, k] is k hops away
    A = torch.empty_like(path).scatter(1, path, path.roll(-1, 1))  # A[path[j]] = path[j + 1]
    B = (A + torch.randint(1, 9, A.shape)) % 9  # never the digit that A has in the same cell
    return A, B, path

def edit(A, B, goal):  # the right picture (n, 9): A with B's digit in one cell, goal (n, 1)
    return A.scatter(1, goal, B.gather(1, goal))

# --- network: an input is a sum of learned vectors
IN_A, IN_B, DRAW = 6, 7, 8  # roles; 0 to 5 are a word's hops
class Thinker(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        # for a cell (where a digit is, or which one a word names), a digit, a role
        self.cell, self.digit, self.role = [nn.Parameter(torch.randn(9, width)) for _ in range(3)]
        self.layer = nn.TransformerEncoderLayer(width, 8, 128, 0, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, 9)  # a cell for a word, a digit for a cell to draw
    def forward(self, A, B, words, k, b):  # (n, 9), (n, 9), (n, S), two numbers
        S = words.shape[1]
        in_A = self.digit[A] + self.cell + self.role[IN_A]  # (n, 9, C), where C is the width
        in_B = self.digit[B] + self.cell + self.role[IN_B]  # (n, 9, C)
        roles = [1] * b + [k - b, 0]  # b = 2: 1 1 1 0 if k = 3, 1 1 3 0 if k = 5
        said = self.cell[words] + self.role[roles[:S]]  # (n, S, C)
        draw = (self.cell + self.role[DRAW]).expand(len(A), 9, -1)  # (n, 9, C): query A, B, goal
        mask = nn.Transformer.generate_square_subsequent_mask(27 + S)  # only earlier words are seen
        h = self.layer(torch.cat([in_A, in_B, said, draw], 1), mask)  # (n, 9 + 9 + S + 9, C)
        return self.head(h[:, 18:-9]), self.head(h[:, -9:])  # words (n, S, 9), picture (n, 9, 9)

# --- train
def train_thinker(iters):  # for 1 to 5 hops, with any number of thoughts
    net = Thinker()
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = 0.008 * min((i + 1) / 50, 1 - i / iters)  # rise, fall
        A, B, path = make_tasks(64)
        k = i % 5 + 1  # hops, 1 to 5
        b = int(torch.randint(k, ()))  # thoughts, 0 to k - 1, so one net learns to think or not
        goal = path[:, [k]]  # (64, 1)
        words = path[:, [*range(b + 1), k]]  # (64, b + 2): start, thoughts, goal
        next_words, picture = net(A, B, words, k, b)
        logits = torch.cat([next_words[:, :-1], picture], 1)  # (64, b + 1 + 9, 9)
        target = torch.cat([words[:, 1:], edit(A, B, goal)], 1)  # (64, b + 10)
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{iters} iterations, loss {loss:.3f}")
    return net.requires_grad_(False)
net = train_thinker(args.iters)

# --- sample and measure
def answer(net, A, B, words, k, b):  # from S words to all words (n, b + 2) and a picture (n, 9)
    while words.shape[1] < b + 2:  # start, thoughts, goal
        next_words, _ = net(A, B, words, k, b)
        words = torch.cat([words, next_words[:, -1:].argmax(2)], 1)  # the one after the last
    return words, net(A, B, words, k, b)[1].argmax(2)
A, B, path = make_tasks(500)
right = torch.zeros(5, 5)  # right[b, k - 1], with b thoughts after k hops: C1, C2
for b in range(5):
    for k in range(1, 6):
        _, picture = answer(net, A, B, path[:, :1], k, min(b, k - 1))  # k - 1 thoughts are enough
        right[b, k - 1] = (picture == edit(A, B, path[:, [k]])).all(1).float().mean()
misled = path[:, [0, 1, 4]]  # start, a right thought, and a wrong one, 4 hops away, not 2
_, picture = answer(net, A, B, misled, k=5, b=4)  # 3 words more: 4 + 3 = 7 hops away
follows = (picture == edit(A, B, path[:, [7]])).all(1).float().mean()  # C3 (true goal: 5 hops away)

# --- figure: the boards show the first of the tasks
fig, axes = plt.subplots(1, 4, figsize=(12, 4), gridspec_kw=dict(left=0.04, right=0.99, bottom=0.2))
axes[0].imshow(right, "Blues", vmin=0, alpha=0.5, extent=(0.5, 5.5, 4.5, -0.5))
for i, share in enumerate(right.flatten()):
    axes[0].text(i % 5 + 1, i // 5, f"{share:.2f}", ha="center", va="center")
axes[0].set(title="share of right pictures", xlabel="hops", ylabel="thoughts (at most)")
hops = plt.Slider(plt.axes([0.1, 0, 0.2, 0.1]), "hops", 1, 5, valinit=5, valstep=1)
think = plt.Slider(plt.axes([0.4, 0, 0.2, 0.1]), "thoughts", 0, 4, valinit=args.thoughts, valstep=1)
wrong = plt.Slider(plt.axes([0.8, 0, 0.1, 0.1]), "thought 2 wrong", 0, 1, valinit=0, valstep=1)

def board(ax, title, picture, cells, colour):  # cells: along a path, the last is framed
    ax.clear()
    ax.imshow(picture.view(3, 3), "Pastel1", vmin=0, vmax=8)
    ax.plot(cells % 3, cells // 3, "s-", c=colour, ms=50, mfc="none", markevery=[-1])  # frame: last
    for cell in range(9):
        ax.text(cell % 3, cell // 3, int(picture[cell]), size=16, ha="center", va="center")
    ax.set(title=title, xticks=[], yticks=range(3), yticklabels=["cells\n0 1 2", "3 4 5", "6 7 8"])

def draw(_):
    k = int(hops.val)
    b = min(int(think.val), k - 1)
    said = misled if wrong.val and b > 1 else path[:, :1]
    words, picture = [x[0] for x in answer(net, A, B, said, k, b)]  # of the first task
    board(axes[1], f"A: {k} hops from cell {path[0, 0]}", A[0], path[0, :k + 1], "grey")
    board(axes[2], "B (frame: goal)", B[0], path[0, [k]], "grey")
    colour = "tab:blue" if picture.equal(edit(A, B, path[:, [k]])[0]) else "tab:red"
    board(axes[3], f"written: {words[1:].tolist()}\ndrawn (red: wrong)", picture, words, colour)
draw(None)
for slider in (hops, think, wrong):
    slider.on_changed(draw)
fig.savefig("14_reasoning_gen.png", dpi=120)

# --- claims
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "right with --thoughts, worst of 1 to 5 hops", right[args.thoughts].min(), ">", 0.95)
claim("C2", "right without thoughts, best of 2 to 5 hops (1/7 = .14)", right[0, 1:].max(), "<", 0.2)
claim("C3", "follow the wrong thought (if it is ignored: 0)", follows, ">", 0.95)
print("figure: 14_reasoning_gen.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
