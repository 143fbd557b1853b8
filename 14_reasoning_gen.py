# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""14 Think, then draw: a chain of thought before the image tokens, in one small transformer.

In image A, the digit in each cell names the next cell. The net follows A from a start cell to the
goal, 1 to 5 hops away. Then it copies image B, with the goal in black. But it can only hop once in
a forward pass. So it first writes down the cells on its way, as its thoughts.
RUN    python 14_reasoning_gen.py                 (10 seconds; the buttons show other thoughts)
BREAK  python 14_reasoning_gen.py --thoughts 0    (from 2 hops on, the net guesses, so C1 fails)
PAPER  arXiv 2201.11903 (chain of thought), 2310.07923 (why it helps), 2405.09818 (Chameleon)"""
import argparse, signal
import torch
from matplotlib import pyplot as plt, widgets
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--thoughts", type=int, choices=range(5), default=4, help="allowed in C1 (4)")
parser.add_argument("--iters", type=int, default=1000, help="training iterations (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 10**6 and 0 <= args.seed < 2**32):
    parser.error("--iters must be 1 to 1,000,000, and --seed 0 to 2**32 - 1")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the script without a traceback
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # such small nets run fastest on a single core

# --- Task. For example, A leads from cell 4 to 7, then to 2, then to 5: so 5 is 3 hops away.
#     cells    A        B        answer   The prompt ends at the start, 4. The net writes the rest:
#     0 1 2    8 4 5    3 1 6    3 1 6    first its thoughts, 7 and 2, then the goal, 5, and then a
#     3 4 5    6 7 0    0 2 8    0 2 #    copy of B, with 5 in black (#). The row of hops tells it
#     6 7 8    1 2 3    7 7 4    7 7 4    how far to go next, so we set the number of thoughts.
#   tokens     <image>  8 .. 3  <image>  3 ... 4  <text>  4  7  2  5  <image>  3 ... 4  <end>
#   positions  0        1 .. 9  10      11 .. 19  20     21 21 21 22  23      24 .. 32  33
#   hops       0        0 .. 0  0        0 ... 0  0       1  1  1  0  0        0 ... 0  0
BLACK, IMAGE, TEXT, END, VOCAB_SIZE = range(9, 14)  # the tokens 0 to 8 are digits or cells
START_POSITION, NUM_POSITIONS, MAX_HOPS = 21, 34, 5
GOAL = -12  # its place from the end. After it come <image>, nine cells, and <end>

def make_tasks(num_tasks):  # returns paths, maps A, and images B, (num_tasks, 9) each
    path = torch.rand(num_tasks, 9).argsort(1)  # all cells; the last one leads back to the first
    image_a = path.scatter(1, path, path.roll(-1, 1))  # A[path[i]] = path[i + 1]
    return path, image_a, torch.randint(9, path.shape)

def make_sequences(path, image_a, image_b, num_hops, num_thoughts):  # fewer thoughts than hops
    cells, goal = path[:, :num_thoughts + 1], path[:, [num_hops]]  # start and thoughts, goal
    answer = image_b.scatter(1, goal, BLACK)  # token surgery: only one token of B changes
    image, text, end = [torch.full_like(goal, token) for token in (IMAGE, TEXT, END)]
    tokens = torch.cat([image, image_a, image, image_b, text, cells, goal, image, answer, end], 1)
    positions = torch.tensor(sorted([*range(NUM_POSITIONS)] + [START_POSITION] * num_thoughts))
    hops = (positions == START_POSITION).int()  # start and thoughts share 21, so hops look alike
    hops[START_POSITION + num_thoughts] = num_hops - num_thoughts  # all hops left to the goal
    return tokens, positions, hops  # the three rows above: (num_tasks, N), (N,), (N,)

# --- Net. To hop from 4, the query of token 4 fits the key of cell 4 in A, and it finds 7. The next
# hop needs the query of a 7. With one layer, that takes another pass, which reads 7 as a thought.
class Thinker(nn.Module):  # like GPT, but with one layer
    def __init__(self, vocab_size, num_positions, max_hops, dim=64, num_heads=8):
        super().__init__()
        self.token = nn.Embedding(vocab_size, dim)
        self.position = nn.Embedding(num_positions, dim)
        self.hops = nn.Embedding(max_hops + 1, dim)
        self.layer = nn.TransformerEncoderLayer(
            dim, num_heads, 2 * dim, dropout=0, batch_first=True, norm_first=True)
        self.head = nn.Linear(dim, vocab_size)

    def forward(self, tokens, positions, hops):  # (B, N), (N,), (N,), to (B, N, vocab_size)
        x = self.token(tokens) + self.position(positions) + self.hops(hops)  # (B, N, dim)
        mask = nn.Transformer.generate_square_subsequent_mask(len(hops))  # look only back
        return self.head(self.layer(x, mask))  # a drawn cell looks at B and at the goal

def train(net, iters, batch_size=16, lr=0.003):  # to predict each token after the start
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        num_thoughts, num_hops = sorted(torch.randperm(MAX_HOPS + 1)[:2].tolist())  # two of 0..5
        tokens, positions, hops = make_sequences(*make_tasks(batch_size), num_hops, num_thoughts)
        logits = net(tokens, positions, hops)[:, START_POSITION:-1]  # each predicts the next token
        loss = nn.functional.cross_entropy(logits.mT, tokens[:, START_POSITION + 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 100 == 0:  # the loss is higher when thoughts are missing, as the net guesses
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

def generate(net, tokens, positions, hops):  # continues tokens (B, n) to (B, N)
    for n in range(tokens.shape[1], len(positions)):
        logits = net(tokens, positions[:n], hops[:n])  # one forward pass for each new token
        tokens = torch.cat([tokens, logits[:, -1:].argmax(2)], 1)
    return tokens

def evaluate(net, tasks, num_hops, max_thoughts, num_given=0):  # the first num_given are ours
    target, positions, hops = make_sequences(*tasks, num_hops, min(max_thoughts, num_hops - 1))
    written = generate(net, target[:, :START_POSITION + 1 + num_given], positions, hops)
    return written, (written == target).all(1).float().mean()  # the share without a wrong token

net = train(Thinker(VOCAB_SIZE, NUM_POSITIONS, MAX_HOPS), args.iters).requires_grad_(False)
path, image_a, image_b = tasks = make_tasks(100)
accuracy = torch.zeros(5, 5)  # the share of tasks in which the net writes every token right
outputs = {}  # what the net writes for task 1 with 5 hops, (N,), for each button
fig, axes = plt.subplot_mosaic("SSBMMM;SSRMMM;012345", figsize=(12, 7.5), layout="tight")
for thoughts in range(5):
    for num_hops in range(1, 6):
        written, accuracy[thoughts, num_hops - 1] = evaluate(net, tasks, num_hops, thoughts)
        axes["S"].text(num_hops, thoughts, f"{accuracy[thoughts, num_hops - 1]:.2f}", ha="center")
    outputs[f"thoughts: {thoughts}"] = written[1]
axes["S"].pcolormesh(range(1, 6), range(5), accuracy, cmap="Blues", vmax=2)  # 1 is mid blue
axes["S"].set(xlabel="hops from the start to the goal", ylabel="thoughts allowed",
              title="Accuracy: each extra hop needs a thought\n(else, the net guesses)")
# We give a wrong first thought, path[3]. If the net goes on from there, it ends at path[7].
detour = path[:, [0, *range(3, 9)]], image_a, image_b
written, follows = evaluate(net, detour, 5, 4, num_given=1)
outputs["wrong thought"] = written[1]

def draw_board(ax, title, tokens):  # nine cells, of a map or of an image
    for cell, token in enumerate(tokens):
        ax.text(cell % 3, cell // 3, "012345678■▦??"[token], ha="center", va="center", size=18)
    ax.pcolormesh(range(3), range(3), torch.zeros(3, 3), cmap="Greys", edgecolors="0.7")
    ax.set(title=title, xticks=[], yticks=[], ylim=(2.5, -0.5), aspect=1)
draw_board(axes["B"], "Image B", image_b[1])
for k, (label, output) in zip("012345", outputs.items()):  # all for task 1, with 5 hops
    draw_board(axes[k], f"{label}\n{output[START_POSITION + 1:GOAL].tolist()}", output[GOAL + 2:-1])
    axes[k].set_xlabel(f"goal: {output[GOAL]}", color="k" if output[GOAL] == path[1, 5] else "r")
axes["0"].set_ylabel("B with the goal in\nblack (red: wrong)")

def draw(label):  # shows the way on the map
    ax = axes["M"]
    ax.clear()
    draw_board(ax, f'Map A: each digit names the next cell\n(arrows: "{label}")', image_a[1])
    for cell, name in zip(path[1], "start,,,,,goal,,,".split(",")):
        ax.text(cell % 3 - 0.45, cell // 3 - 0.2, f"cell {cell}\n{name}")
    way = [(cell % 3, cell // 3) for cell in outputs[label][START_POSITION:GOAL + 1]]
    for here, there in zip(way, way[1:]):
        ax.annotate("", there, here, arrowprops=dict(arrowstyle="-|>", shrinkA=15, shrinkB=15))
    plt.draw()
radio = widgets.RadioButtons(axes["R"], list(outputs))
radio.on_clicked(draw)
radio.set_active(args.thoughts)
fig.savefig("14_reasoning_gen.png")
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Accuracy, worst of 1 to 5 hops", accuracy[args.thoughts].min(), ">", 0.95)
claim("C2", "Accuracy without thoughts, 2 hops (one cell of 7: 0.14)", accuracy[0, 1], "<", 2 / 7)
claim("C3", "Tasks in which it goes on from a wrong thought", follows, ">", 0.95)
print("figure: 14_reasoning_gen.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
