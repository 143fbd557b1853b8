# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""14 Think, then draw: a chain of thought before the image tokens, in one small transformer.

The net reads two images and draws one. In A, the digit in each cell names the next cell. The net
follows A from a start cell, for 1 to 5 hops. Then it draws B, with the last cell, the goal, in
black. It makes one hop per forward pass. So it writes down the cells on its way, as its thoughts.

RUN    python 14_reasoning_gen.py                 (12 seconds; move the slider to remove thoughts)
BREAK  python 14_reasoning_gen.py --thoughts 0    (from 2 hops on, the net guesses, so C1 fails)
PAPER  arXiv 2201.11903 (chain of thought), 2310.07923 (why it helps), 2405.09818 (Chameleon)"""
import argparse
import signal
import matplotlib.pyplot as plt
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--thoughts", type=int, default=4, help="in C1, 0 to 4 (default: %(default)s)")
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
#   token  <image>  8 ... 3  <image>  3 ...  4  <text>  4   7   2   5  <image>  3 ...  4  <end>
#   role   0        1 ... 9  10      11 ... 19  20     21  21  21  26  27      28 ... 36
# A role is a position. But start and thoughts have the role HOP + n: the next cell is n hops away.
BLACK, IMAGE, TEXT, END, VOCAB_SIZE = range(9, 14)  # the tokens 0 to 8 are digits
START = 21  # the index of the start, 4. Without thoughts, its role is HOP + 3, and 5 comes next
HOP, GOAL, NUM_ROLES = 20, 26, 37  # so the roles, not the net, set the number of thoughts
def make_tasks(num_tasks):  # to paths, maps A, and images B, of shape (num_tasks, 9) each
    path = torch.rand(num_tasks, 9).argsort(1)  # all cells; the last one leads back to the first
    image_a = path.scatter(1, path, path.roll(-1, 1))  # A[path[i]] = path[i + 1]
    return path, image_a, torch.randint(9, path.shape)

def make_sequences(path, image_a, image_b, num_hops, num_thoughts):
    assert 0 <= num_thoughts < num_hops <= 5
    cells, goal = path[:, :num_thoughts + 1], path[:, [num_hops]]  # start and thoughts, goal
    answer = image_b.scatter(1, goal, BLACK)  # token surgery: one token of B changes
    image, text, end = [torch.full_like(goal, token) for token in (IMAGE, TEXT, END)]
    tokens = torch.cat([image, image_a, image, image_b, text, cells, goal, image, answer, end], 1)
    hops = [HOP + 1] * num_thoughts + [HOP + num_hops - num_thoughts]  # the last may be longer
    roles = list(range(START)) + hops + list(range(GOAL, NUM_ROLES))
    return tokens, torch.tensor(roles)  # (num_tasks, N + 1) and (N,): <end> is never an input

# --- Net: like GPT, but with one layer. To hop from cell 4, token 4 sends out a query for cell 4 of
# A, and gets its digit, 7. The next hop needs a query for cell 7, but a layer computes all queries
# before it looks anything up. So this hop waits until 7 is an input. Drawing takes one lookup.
class Thinker(nn.Module):
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
        logits = net(tokens[:, :-1], roles)[:, START:]  # each is for the next token
        loss = nn.functional.cross_entropy(logits.mT, tokens[:, START + 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if i % 100 == 0:  # the loss is higher when thoughts are missing, as the net guesses
            print(f"iteration {i} of {iters}: loss {loss:.4f}")
    return net

def generate(net, tokens, roles):  # continues tokens (B, n) to (B, N + 1)
    for n in range(tokens.shape[1], len(roles) + 1):
        token = net(tokens, roles[:n])[:, -1:].argmax(2)  # one forward pass for each new token
        tokens = torch.cat([tokens, token], 1)
    return tokens
net = train(Thinker(VOCAB_SIZE, NUM_ROLES), args.iters).requires_grad_(False)
path, image_a, image_b = make_tasks(100)
accuracy = torch.zeros(5, 5)  # the share of tasks in which the net writes every token right
fig, (stairs, left, middle, right) = plt.subplots(1, 4, figsize=(16, 5), layout="constrained")
for thoughts in range(5):
    for hops in range(1, 6):
        tokens, roles = make_sequences(path, image_a, image_b, hops, min(thoughts, hops - 1))
        written = generate(net, tokens[:, :START + 1], roles)
        accuracy[thoughts, hops - 1] = (written == tokens).all(1).float().mean()
        stairs.text(hops, thoughts, f"{accuracy[thoughts, hops - 1]:.2f}", ha="center")
stairs.imshow(accuracy, "Blues", vmax=2, extent=[0.5, 5.5, 4.5, -0.5])
stairs.set(title="Accuracy: each hop but the first\nneeds a thought (chance: 1/7)",
           xlabel="hops from the start to the goal", ylabel="thoughts allowed")

colors = plt.get_cmap("Pastel1").with_extremes(over="black")  # for 0 to 8, and over 8
def draw_board(ax, title, board):
    ax.clear()
    ax.imshow(board.view(3, 3), colors, vmin=0, vmax=8)
    for cell, digit in enumerate(board):
        ax.text(cell % 3, cell // 3, f"{digit}", size=20, ha="center", va="center")
        ax.text(cell % 3 - 0.45, cell // 3 - 0.35, f"cell {cell}", color="gray")
    ax.set(title=title, xticks=[], yticks=[])

def draw(num_thoughts):
    tokens, roles = make_sequences(path, image_a, image_b, 5, int(num_thoughts))
    written = generate(net, tokens[:1, :START + 1], roles)[0]
    text, answer = written[START:-11].tolist(), written[-10:-1]  # <image> and <end> are left out
    draw_board(left, f"map A: start {text[0]}, thoughts {text[1:-1]}, goal {text[-1]}", image_a[0])
    draw_board(middle, "image B", image_b[0])
    draw_board(right, "answer (red arrows if the black cell is wrong)", answer)
    color = "tab:blue" if answer[path[0, 5]] == BLACK else "tab:red"
    arrow = {"arrowstyle": "-|>", "lw": 2, "color": color, "shrinkA": 15, "shrinkB": 15}
    for i, j in zip(text, text[1:]):
        left.annotate("", (j % 3, j // 3), (i % 3, i // 3), size=20, arrowprops=arrow)

slider = plt.Slider(plt.axes([.6, 0, .2, .1]), "thoughts", 0, 4, valinit=args.thoughts, valstep=1)
slider.on_changed(draw)
draw(args.thoughts)
fig.savefig("14_reasoning_gen.png")

# Does the net use its thoughts? We make the first one wrong: a cell that is 3 hops from the start.
tokens, roles = make_sequences(path, image_a, image_b, 5, 4)
tokens[:, START + 1] = path[:, 3]
written = generate(net, tokens[:, :START + 2], roles)
follows = (written[:, START + 5] == path[:, 7]).float().mean()  # the goal is 4 hops from there

# --- Claims. C1, C3 allow one mistake in 20. Without thoughts, the net can look up the cell after
# the start. A goal farther away is one of the other 7, so chance is 1/7. C2 allows twice that.
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "Accuracy, worst of 1 to 5 hops", accuracy[args.thoughts].min(), ">", 0.95)
claim("C2", "Accuracy without thoughts, 2 hops (chance: 1/7)", accuracy[0, 1], "<", 2 / 7)
claim("C3", "Goals that follow from a wrong thought, share", follows, ">", 0.95)
print("figure: 14_reasoning_gen.png")
if plt.get_backend().lower() != "agg":  # there is no window to show without a display
    plt.show()
