# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""13 Unified-token transformers: ONE net reads and writes words, pictures and sound.
A scene is a row of objects (colour, shape), each two words, one patch of pixels, or one note: all
tokens of one vocabulary. A document is <image> p p </image> <text> w w w w </text>; the net learns
p(next token | tokens so far) in any medium. Two towers: its first block reads, its second writes.
C1 any to any, six directions: the begin marker alone says which medium is to be written
C2 an edit: picture, words -> changed picture    C3 recall: the first of 32 frames (guess: 1/4)
C4 towers that pass ONE vector on learn far fewer objects in this time   C5 ALL: a third of it does
RUN    python 13_unified.py    (24 s; radio: what is given of a scene, with 10 objects it breaks)
BREAK  python 13_unified.py --markers off (a medium of two: C1) or --absolute (C1, C2, often C3)
PAPER  Chameleon, arXiv 2405.09818; LWM, 2402.08268; JanusFlow, 2411.07975 (lesson 15)"""
import argparse
import os
import torch
from matplotlib import pyplot as plt, widgets
from torch.nn import Embedding, Linear, ModuleList, functional as F
# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--markers", default="on", choices=["on", "off"], help="off breaks it (on)")
parser.add_argument("--absolute", action="store_true", help="places never restart: breaks it")
parser.add_argument("--iters", type=int, default=1100, help="of each net; 300 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="13_unified.png", help=".png or .pdf (%(default)s)")
args = parser.parse_args()
if not (4 <= args.iters <= 100_000 and 0 <= args.seed <= 2**31):
    parser.error("--iters: 4 .. 100000, --seed: 0 .. 2^31")
ok = args.out[-4:] in (".png", ".pdf") and os.access(args.out, os.W_OK) == os.path.isfile(args.out)
ok and os.access(os.path.dirname(args.out) or ".", os.W_OK) or parser.error("--out cannot be saved")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small gain little or nothing from a second thread
torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
# --- data and method: object o = 4 * colour + shape; tables decode it to a patch or to a note
WORDS = ["red", "green", "blue", "black", "disc", "square", "cross", "frame", "?"]
o, (i, j) = torch.arange(16), torch.cartesian_prod(*2 * [torch.arange(-2.5, 3).abs()]).T  # 6 x 6
inside = torch.stack([i + j < 3.5, i.maximum(j) < 2, i.minimum(j) < 1, i.maximum(j) > 2]).float()
angle = (3 + o[:, None] // 4) * torch.arange(100) * torch.pi / 50  # colour: 240 .. 480 Hz, at 8 kHz
RAW = {"image": (1 - inside[o % 4, :, None] * (1 - torch.eye(4, 3)[o // 4, None])).flatten(1),
       "audio": sum((h <= 1 + o % 4)[:, None] * (h * angle).sin() for h in range(1, 5))}
RANGE = {"text": (0, 8), "image": (8, 24), "audio": (24, 40)}  # one vocabulary for all
END, BEGIN, NUMBER, ALL = 40, 43, 46, 79 + 66 * args.absolute  # markers; numbers 0 .. 32, or 98
KINDS = [(a, b) for a in RANGE for b in RANGE if a != b] + ["edit", "recall"]  # (read, written)
def segment(medium, o, *before):  # objects (B, M) -> begin marker, tokens, end marker
    tokens = torch.stack([o // 4, 4 + o % 4], 2).flatten(1)  # (B, 2 M): "red", "disc"
    if medium != "text":  # noisy pixels or wave: the nearest patch, or the nearest spectrum
        pair = [RAW[medium][o] + 0.2 * torch.randn(*o.shape, RAW[medium].shape[1]), RAW[medium]]
        pair = [torch.fft.rfft(raw).abs() for raw in pair] if medium == "audio" else pair
        tokens = RANGE[medium][0] + torch.cdist(*pair).argmin(2)  # (B, M)
    kind = [*RANGE].index(medium) * (args.markers == "on")  # off: the markers are all alike
    tokens = F.pad(torch.cat([*before, tokens], 1), (1, 0), value=BEGIN + kind)
    return F.pad(tokens, (0, 1), value=END + kind)
def document(kind, m, n, first=False):  # n rows of m objects; where answers begin
    o, new, place = [torch.randint(high, (n, size)) for high, size in ((16, m), (16, 1), (m, 1))]
    if kind == "edit":  # a picture, words "3 red disc", the picture with its third object changed
        parts = [segment("image", o), segment("text", new, NUMBER + 1 + place),
                 segment("image", o.scatter(1, place, new))]
    elif kind == "recall":  # m frames of one object each; one alone has the colour asked for
        o = ((new // 4 * 4 + 4 + o * 3 // 4) % 16).scatter(1, place * (not first), new)
        parts = [segment("image", o.view(-1, 1)).view(n, -1), segment("text", new)]  # red: given
    else:
        parts = [segment(medium, o) for medium in kind]
    return torch.cat(parts, 1), sum(p.shape[1] for p in parts[:-1]) + 1 + (kind == "recall")
# --- network and train: one net for all documents; the towers for pictures to words alone
def block(h, sees, qkv, out, up, down, heads=4):  # h (B, N, C); sees (n, N): the last n tokens ask
    q, k, v = qkv(F.layer_norm(h, h.shape[2:])).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mix = F.scaled_dot_product_attention(q[:, :, -len(sees):], k, v, sees)  # weighted means of v
    h = h[:, -len(sees):] + out(mix.transpose(1, 2).flatten(2))  # attention, then a plain net
    return h + down(F.silu(up(F.layer_norm(h, h.shape[2:]))))  # (B, n, C)
def predict(name, x, n):  # a prompt of n tokens, and what is written -> (B, .., 43), from n on
    (embed, head, weigh, *layers), past = nets[name], torch.ones(2 * x.shape[1:]).tril() > 0
    count = ((x < 4) | (x > 7)).cumsum(1)  # of objects: the word of a shape adds none
    begins = (x >= BEGIN) & (x < NUMBER) & (not args.absolute)
    place = count - (count * begins).cummax(1).values  # since the marker, not since the start
    h = embed(x) + embed(NUMBER + place) / 2  # subtle: place 3 IS the vector of the word "3"
    if name == "unified":
        h = block(h, past, *layers[:4])  # past (N, N): row sees column, not what is to come
    else:  # two towers of the same parts: one block reads the source, the other writes
        seen = F.layer_norm(block(h[:, :n - 1], torch.ones(n - 1, n - 1) > 0, *layers[:4]), [64])
        if name == "one vector":  # a mean, of learned weights: (B, n - 1, C) -> (B, 1, C)
            seen = weigh(seen).softmax(1).mT @ seen
        h, n = torch.cat([seen, h[:, n - 1:]], 1), seen.shape[1] + 1
    return head(F.layer_norm(block(h, past[:len(h[0]), :len(h[0])], *layers[4:])[:, n - 1:], [64]))
SIZES, nets = [(64, 43), (64, 1)] + 2 * [(64, 192), (64, 64), (64, 256), (256, 64)], {}
for name, lr, share in ("unified", 3e-3, 1), ("one vector", 5e-3, 1), ("all vectors", 5e-3, 3):
    net = nets[name] = ModuleList([Embedding(ALL, 64), *(Linear(*size) for size in SIZES)])
    optimizer = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.95), fused=True)  # lr: best of 4
    for i in range(iters := args.iters // share):
        optimizer.param_groups[0]["lr"] = lr * min((i + 1) / 50, 1.5 * (1 - i / iters), 1)
        kind = KINDS[torch.randint(8, ())] if name == "unified" else ("image", "text")
        x, n = document(kind, 2 * int(torch.randint(1, 5, ())), 32)
        loss = F.cross_entropy(predict(name, x[:, :-1], n).mT, x[:, n:])  # of the answer alone
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{name}: {iters} iterations, last loss {loss:.3f}, floor 0")
# --- sample and measure
def reply(name, x, n):  # what the net puts in the place of x[:, n:-1]; length given
    x = x.clone()
    for i in range(n, x.shape[1] - 1):  # the likeliest token of ALL, one by one
        x[:, i] = predict(name, x[:, :i], n)[:, -1].argmax(1)
    return x[:, n:-1]
def score(kind, m, name="unified"):  # share of objects right, or (edit, recall) of whole answers
    torch.manual_seed(args.seed + 1)  # the same documents for every net, whatever --iters was
    x, n = document(kind, m, 100, first=True)
    right = (reply(name, x, n) == x[:, n:-1]).view(100, m if len(kind) == 2 else 1, -1).all(2)
    return right.float().mean().item()
pairs = [score(pair, 8) for pair in KINDS[:6]]  # C1
curves = {name: {m: score(("image", "text"), m, name) for m in (1, 2, 4, 6, 8)} for name in nets}
curves["recall"] = {m: score("recall", m) for m in (1, 2, 4, 8, 16, 32)}  # C3
# --- figure
fig, (scene, *panels) = plt.subplots(1, 3, figsize=(13, 5), width_ratios=[5, 2, 2])
radio = widgets.RadioButtons(plt.axes([0.01, 0.4, 0.1, 0.2]), [*RANGE, "image, 10"], 1)
def draw(_=None):
    given, _, m = radio.value_selected.partition(", ")  # the medium given, the number of objects
    m, got, right = int(m or 8), {}, 0
    for medium, (low, high) in RANGE.items():
        torch.manual_seed(args.seed + 2)  # one scene, in three media
        x, n = document((given, medium), m, 1)
        out = x[:, n:-1] if medium == given else reply("unified", x, n)
        right += (out == x[:, n:-1]).view(m, -1).all(1).sum().item()
        got[medium] = (out.clamp(low, high - (medium != "text")) - low).view(m, -1).cpu()
    picture = RAW["image"].cpu()[got["image"]].view(m, 6, 6, 3).transpose(0, 1).flatten(1, 2)
    scene.clear()
    fig.canvas.draw_idle()
    scene.imshow(picture.numpy(), extent=(0, 100 * m, 0, 1), aspect="auto")
    scene.plot(RAW["audio"].cpu()[got["audio"]].view(-1) / 9 - 0.6, "C3" if right < 3 * m else "C0")
    scene.set(title=f"given: {given}; written: {right - m} of {2 * m} objects right", yticks=[])
    scene.set_xticks(range(50, 100 * m, 100), ["\n".join(WORDS[i] for i in o) for o in got["text"]])
draw()
radio.on_clicked(draw)
for ax, name, c in zip(panels[:1] * 3 + panels[1:], curves, ("C0o-", "C1o-", "C0x:", "C0o-")):
    m, share = zip(*curves[name].items())
    ax.plot(m, share, c, label=f"{name}, {m[-1]}: {share[-1]:.2f}")
    ax.axhline(1 / 4 if name == "recall" else 1 / 16, c="k", ls="--")  # a guess
    ax.set(xlabel="frames" if name == "recall" else "objects in a picture", ylim=(0, 1.05))
    ax.legend(loc=(0.03, 0.26), title="share right")
fig.savefig(args.out, dpi=120)
# --- claims
claims = [("C1", f"any to any, worst direction (mean {sum(pairs) / 6:.3f})", min(pairs), ">", 0.9),
    ("C2", "edit: whole pictures right", score("edit", 8), ">", 0.5),
    ("C3", "recall of the first of 32 frames", curves["recall"][32], ">", 0.7),
    ("C4", "all less one vector", curves["all vectors"][8] - curves["one vector"][8], ">", 0.15),
    ("C5", "all vectors, a third of training", curves["all vectors"][8], ">", 0.9)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
