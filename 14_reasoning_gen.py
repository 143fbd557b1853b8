# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""14 Think, then draw: one net for words and pictures (13) writes thoughts, then edits a picture.
A picture is 3 x 3 tokens (9 hues x 4 shades). In A hue h names cell h: from a start go k times to
the cell named, then copy B's token there into A; the other 8 are pasted. A thought is a hop written
as a word: if heard, the next input, a step in series; if not, none. Same weights, labels and calls.
C1 with --thoughts heard, k = 1 .. 5 hops end in the right picture; B's pairs were never copied
C2 b thoughts heard: right if k <= b + 1, C3 else at most a guess among the cells left, 1 / (7 - b)
C4 thoughts are causes: put a wrong cell for one, and the picture follows the wrong path
C5 prompt rewriting: a caption of the picture wanted, r of 9 shades named, keeps (r + 3) / 12 of A
C6 for B the A of another task, with a path of its own: the cell stays A's, the token is that B's
RUN    python 14_reasoning_gen.py                 (10 s; sliders: hops, thoughts, a wrong thought)
BREAK  python 14_reasoning_gen.py --thoughts 0    hears no word, wrong from k = 2: C1 C4 C6 fail
PAPER  arXiv 2201.11903 (chain of thought), 2310.07923 (steps in series), 2405.09818 (Chameleon)"""
import argparse
import os
import torch
from matplotlib import pyplot as plt
from torch.nn import Embedding, Linear, ModuleList, Sequential, functional as F
# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--thoughts", type=int, default=4, help="heard; 0 breaks it (%(default)s)")
parser.add_argument("--named", type=int, default=0, help="shades in a caption (%(default)s)")
parser.add_argument("--iters", type=int, default=800, help="of training; 50 fails (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="14_reasoning_gen.png", help=".png or .pdf (%(default)s)")
args = parser.parse_args()
if not (0 <= args.thoughts <= 4 and 0 <= args.named <= 9 and args.iters > 0 <= args.seed <= 2**31):
    parser.error("--thoughts: 0 .. 4, --named: 0 .. 9, --iters: from 1, --seed: 0 .. 2^31")
ok = args.out[-4:] in (".png", ".pdf") and os.access(args.out, os.W_OK) == os.path.isfile(args.out)
ok and os.access(os.path.dirname(args.out) or ".", os.W_OK) or parser.error("--out cannot be saved")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small gain little or nothing from a second thread
device = "cuda" if torch.cuda.is_available() else "cpu"
# --- data
cells = torch.arange(9, device=device)
def tasks(n, new=False):  # pictures A, B (n, 9): token = 4 hue + shade
    path = torch.rand(n, 9, device=device).argsort(1)  # start, hop 1, ..: each hue names the next
    A = torch.randint(4, (n, 9), device=device).scatter_add(1, path, 4 * path.roll(-1, 1))
    B = torch.randint(36, (n, 9), device=device)  # held out: cell + token is a multiple of 7;
    seen = torch.where((cells + B) % 7 == 0, B ^ 1, B)  # B ^ 1 is the same hue in another shade
    return path, A, 7 * (B % 5) + (-cells) % 7 if new else seen  # new: all 9 pairs are held out
def caption(x, named):  # a word a cell, (n, 9): hue and shade, but from cell named on the hue alone
    return torch.where(cells < named, x, 36 + x // 4)
# --- network: a transformer of one block, used once a call, so that about one hop fits in a call
TOKEN, ROLE, DRAW = 9, 45, 5  # 53 words: 9 names of cells, 36 tokens, 8 roles: hops since a word
word = Embedding(53, 48)  # was heard (0 .. 4), DRAW: a token is due, 6 and 7: in picture A, B
word.weight.data *= torch.tensor([0.5] * ROLE + [0.1] * 8)[:, None]  # roles must not drown names
*layers, head = map(Linear, [48, 48, 48, 192, 48], [144, 48, 192, 48, 45])  # in, out
renderer = Sequential(Embedding(45, 48), Linear(48, 36))  # the rival's: a caption's word -> token
nets = ModuleList([word, *layers, head, renderer]).to(device)
def block(h, sees, qkv, out, up, down, heads=4):  # h (B, N, C); sees (n, N): the last n tokens ask
    q, k, v = qkv(F.layer_norm(h, h.shape[2:])).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mix = F.scaled_dot_product_attention(q[:, :, -len(sees):], k, v, sees)  # weighted means of v
    h = h[:, -len(sees):] + out(mix.transpose(1, 2).flatten(2))  # attention, then a plain net
    return h + down(F.silu(up(F.layer_norm(h, h.shape[2:]))))  # (B, n, C)
def think(A, B, said, b, ends):  # said (n, S): start and words; b thoughts heard -> (n, S, 45)
    slot = torch.arange(said.shape[1], device=device).expand_as(said)  # j writes hop j + 1
    last = (slot == said.shape[1] - 1) & ends  # draws: hears the goal cell, whatever b is
    heard = said.gather(1, torch.where(last, slot, slot.clamp(max=b)))  # never a later word
    role = torch.where(last, DRAW, (slot - b).clamp(min=0))
    # subtle: a cell's name is also its place in A and B, so that a name heard finds its cell
    A, B = [word(cells) + word(TOKEN + x) + word.weight[r] for x, r in ((A, -2), (B, -1))]
    h = torch.cat([A, B, word(heard) + word(ROLE + role)], 1)  # (n, 18 + S, 48); S words ask:
    return head(F.layer_norm(block(h, h.new_ones(2 * h.shape[1:2]).tril()[18:] > 0, *layers), [48]))
# --- train: the two nets share this loop, but no weight
optimizer = torch.optim.AdamW(nets.parameters(), betas=(0.9, 0.99), fused=True)
for i in range(args.iters):
    optimizer.param_groups[0]["lr"] = 8e-3 * min((i + 1) / 50, 1.5 * (1 - i / args.iters), 1)
    (path, A, B), k, b = tasks(128), i % 5 + 1, torch.randint(5, (128, 1), device=device)
    label = torch.cat([path[:, 1:k + 1], TOKEN + B.gather(1, path[:, k:k + 1])], 1)  # whatever b is
    loss = F.cross_entropy(think(A, B, path[:, :k + 1], b, True).mT, label)  # nats a word
    floor = ((cells[:k] > b) * (7.0 - b).log()).sum() / label.numel()  # b + 2 cells are ruled out
    loss2 = F.cross_entropy(renderer(caption(A, torch.randint(10, (128, 1), device=device))).mT, A)
    optimizer.zero_grad()
    (loss + loss2).backward()
    optimizer.step()
    if (i + 1) % max(1, args.iters // 8) == 0:  # the renderer's floor: half of log 4, on average
        print(f"iter {i + 1:5d}  loss {loss:.3f} (one hop {floor:.3f}), renderer {loss2:.3f} (.69)")
# --- sample and measure
@torch.no_grad()
def edit(A, B, said, hops, b):  # said (n, S): start, words; writes on -> picture, all words
    while said.shape[1] <= hops:  # a word a call; b thoughts are heard
        said = torch.cat([said, think(A, B, said, b, False)[:, -1:, :TOKEN].argmax(2)], 1)
    token = think(A, B, said, b, True)[:, -1:, TOKEN:].argmax(2)  # for the last cell said
    return A.scatter(1, said[:, -1:], token), said  # token surgery: the other eight ARE A's
def right(x, y):  # share of pictures that are right in all nine tokens
    return (x == y).all(1).double().mean().item()
torch.manual_seed(args.seed + 1)  # the same tasks, whatever --iters was
path, A, B = tasks(500, new=True)
start, goal, other = path[:, :1], path[:, 5:6], A.roll(1, 0)  # other: the A of another task
wanted = [A.scatter(1, c, B.gather(1, c)) for c in path.split(1, 1)]  # after 0 .. 8 hops
stairs = torch.tensor([[right(edit(A, B, start, k, b)[0], wanted[k]) for k in range(1, 6)]
                       for b in range(5)])  # C1 C2; row: thoughts heard, column: hops
inside, guess = torch.ones(5, 5).tril() > 0, 1 / (7 - torch.arange(5)[:, None])  # k <= b + 1
excess = ((stairs - guess) / (guess * (1 - guess) / len(A)) ** 0.5)[~inside]  # C3, in std
follows = min(right(edit(A, B, path[:, [0, 1, 2 + far]], 5, args.thoughts)[0], wanted[5 + far])
              for far in (1, 2, 3))  # C4: thought 2 is a cell further on, then come 3 hops
kept = torch.tensor([(renderer(caption(wanted[5], r)).argmax(2) == A)[cells != goal].double().mean()
                     for r in range(10)])  # C5: the caption is of the picture wanted
swap = right(edit(A, other, start, 5, args.thoughts)[0], A.scatter(1, goal, other.gather(1, goal)))
# --- figure
dyes = torch.tensor([*plt.get_cmap("tab20b").colors, *plt.get_cmap("tab20c").colors])  # (40, RGB)
fig, axes = plt.subplot_mosaic("sABw;strc", figsize=(12, 5.6), width_ratios=[2.2, 1, 1, 1])
fig.subplots_adjust(0.05, 0.25, 0.98, 0.93)
bars = [plt.Slider(plt.axes([x, y, 0.25, 0.03]), name, low, high, valinit=at, valstep=1)
        for x, y, name, low, high, at in (
            (0.12, 0.1, "hops k ", 1, 5, 5), (0.12, 0.03, "thoughts b ", 0, 4, args.thoughts),
            (0.6, 0.1, "thought 2 skips ", 0, 3, 0), (0.6, 0.03, "shades told ", 0, 9, args.named))]
stair = axes.pop("s")
stair.imshow(stairs.numpy(), "Blues", vmax=3, extent=(0.5, 5.5, 4.5, -0.5))  # pale, for the numbers
for i, share in enumerate(stairs.flatten()):
    stair.text(i % 5 + 1, i // 5, f"{share:.2f}", ha="center", va="center")
stair.step([1.5, 1.5, 2.5, 3.5, 4.5, 5.5], [-0.5, 0.5, 1.5, 2.5, 3.5, 3.5], "k--", where="post")
stair.set(title="share right; above the dashes a guess", xlabel="hops k", ylabel="thoughts heard b")
mark, = stair.plot(1, 0, "s", ms=40, mfc="none", mew=3)
def draw(_=None):
    k, b, far, named = [int(bar.val) for bar in bars]
    mark.set(xdata=[k], ydata=[b], c="C3" if far and k > 1 or stairs[b, k - 1] < 0.95 else "C0")
    told, goal, cell = path[:, [0, 1, 2 + far]] if far and k > 1 else start, wanted[k], path[:, [k]]
    panels = [("A, the path", A, path[:, :k + 1]), ("B", B, cell), ("wanted", goal, cell),
              (f"{b} thoughts", *edit(A, B, told, k, b)), ("silent", *edit(A, B, start, k, 0)),
              (f"caption: {kept[named]:.2f} kept", renderer(caption(goal, named)).argmax(2), cell)]
    for i, (ax, (title, x, way)) in enumerate(zip(axes.values(), panels)):
        ax.clear()
        ax.imshow(dyes[x[0].cpu()].view(3, 3, 3).numpy() * 0.7 + 0.3)  # the first task
        colour = "k" if i < 3 else "tab:blue" if torch.equal(x[0], goal[0]) else "tab:red"
        ax.spines[:].set(lw=4, color=colour)
        ax.set(title=title + f": {right(x, goal):.2f} right" * (2 < i < 5), xticks=[], yticks=[])
        ax.plot(way[0].cpu() % 3, way[0].cpu() // 3, "o-" if i else "o--", c=colour, markevery=[-1])
        for j in range(9):  # the hue of each token, so in A the cell that it names
            ax.text(j % 3 - 0.4, j // 3 + 0.4, (x[0, j] // 4).item(), size=8)
draw()
for bar in bars:
    bar.on_changed(draw)
fig.savefig(args.out, dpi=120)
# --- claims
claims = [("C1", "right with --thoughts, worst k", stairs[args.thoughts].min(), ">", 0.95),
    ("C2", "right, worst of all k <= b + 1", stairs[inside].min(), ">", 0.95),
    ("C3", "else: most over the guess, in standard deviations", excess.max(), "<", 4),
    ("C4", "the picture follows the wrong thought", follows, ">", 0.95),
    ("C5", "kept, off (r + 3) / 12", (kept - (torch.arange(10) + 3) / 12).abs().max(), "<", 0.05),
    ("C6", "right, B is the A of another task", swap, ">", 0.95)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
