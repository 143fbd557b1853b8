# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""15 Hybrid pipelines: a language model (LM) reads a caption, a flow draws it. How do words enter?
One frozen LM, one DiT (lesson 08), three doors of equal size. pooled: the MEAN of the words joins
the time in adaLN; cross: patches query the words; joint: patches and words share one attention.
janus needs no door: patches join the LM's own sequence, and one net reads, answers and paints.
C1 pooled knows WHAT, not WHERE: words in place .3 .. 9/16 (blind guess 1/4, a bag shuffled 1/2,
   the best guess from a bag 9/16), while C2 --interface, joint and janus draw whole scenes right
C3 trained on captions with 1/3 random words, 3/4 of its words are right, as of theirs: recaption
C4 guidance, null + w (cond - null): pixels are clean at --w, not at 12 (w = 3 repairs much of C3)
RUN    python 15_hybrid.py    (24 s; sliders: caption, w; every interface is drawn)
BREAK  python 15_hybrid.py --interface pooled (C2, C3 fail) or --captions noisy (C2) or --w 12 (C4)
PAPER  Imagen 2205.11487 (cross), SD3 2403.03206 (joint), JanusFlow 2411.07975, DiT 2212.09748"""
import argparse
import os
import torch
from matplotlib import pyplot as plt
from torch.nn import Embedding, LayerNorm, Linear, ModuleDict, ModuleList, functional as F
# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--interface", choices=["pooled", "cross", "joint", "janus"], default="cross",
                    help="whose pictures C2 to C4 judge; pooled breaks C2, C3 (%(default)s)")
parser.add_argument("--captions", default="clean", choices=["clean", "noisy"], help="noisy breaks")
parser.add_argument("--w", type=float, default=1, help="guidance; 12 breaks it (%(default)s)")
parser.add_argument("--iters", type=int, default=300, help="of each net; 50 fails (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="15_hybrid.png", help=".png or .pdf (%(default)s)")
args = parser.parse_args()
if not (0 <= args.w <= 12 and args.iters > 0 <= args.seed <= 2**31):
    parser.error("--w: 0 .. 12, --iters: from 1, --seed: 0 .. 2^31")
ok = args.out[-4:] in (".png", ".pdf") and os.access(args.out, os.W_OK) == os.path.isfile(args.out)
ok and os.access(os.path.dirname(args.out) or ".", os.W_OK) or parser.error("--out cannot be saved")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small gain little or nothing from a second thread
torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
# --- data: a picture is 3 cells of 6 x 6 RGB pixels, each with one of 4 x 4 = 16 objects on white
WORDS = ". left middle right red green blue black square frame plus cross".split()
NAMES = torch.cartesian_prod(torch.arange(4, 8), torch.arange(8, 12))  # (16, 2) words of an object
i, j = torch.meshgrid(*2 * [(torch.arange(6) - 2.5).abs()], indexing="ij")  # from the cell's centre
shape = torch.stack([i.maximum(j) < 2, i.maximum(j) > 2, i.minimum(j) < 1, i == j]).float()
CELLS = 1 - 2 * torch.einsum("cr,sij->csrij", 1 - torch.eye(4, 3), shape).reshape(16, 108)
def tell(said):  # words (B, 3, n) of 3 cells -> (B, 3 + 3 n): places in any order, each + its words
    order = torch.rand(len(said), 3).argsort(1)[..., None]  # (B, 3, 1), a permutation of 0 .. 2
    return torch.cat([1 + order, said.gather(1, order.expand_as(said))], 2).flatten(1)
scene = torch.randint(16, (6000, 3))
x, true = CELLS[scene], NAMES[scene]  # (6000, 3, 108), (6000, 3, 2): as recaptioning finds them
noisy = torch.where(torch.rand(true.shape) < 1 / 3, NAMES[0] + torch.randint(4, true.shape), true)
# --- network: tokens are 3 patches, 10 words (. right red plus left ..), 12 answers (right red ..)
C, norm, MASK = 48, LayerNorm(48, elementwise_affine=False), torch.ones(25, 25).tril() > 0
MASK[:3, :13], MASK[3:, :3] = True, False  # a patch sees no answers, a word what is before it
def heads(q, k, v, mask=None):  # attention by 4 heads; q (B, N, C), k and v (B, M, C) -> (B, N, C)
    q, k, v = [z.unflatten(2, (4, -1)).transpose(1, 2) for z in (q, k, v)]  # (B, 4, N, C / 4)
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
def build():  # the weights of a net; all get the same door, read and write (LM, janus: unused)
    maps = dict(qkv=13, out=11, up=14, down=41, adaln=16, read=13, write=11).items()  # 13: C to 3 C
    two = [ModuleDict({k: Linear(n // 10 * C, n % 10 * C) for k, n in maps}) for _ in range(2)]
    return ModuleDict(dict(word=Embedding(12, C), at=Embedding(25, C), blocks=ModuleList(two),
        answer=Linear(C, 12), patch=Linear(108, C), time=Linear(16, C), paint=Linear(C, 108)))
def run(net, door, xt, t, text, depth=2):  # (B, 3, 108), (B, 1), words or features -> x_hat, h
    c = net.time((t * torch.arange(16) * torch.pi / 2).cos())  # (B, C); waves read better than t
    h, mask = net.patch(xt) + net.at.weight[:3], MASK if door == "janus" else None  # (B, 3, C)
    text = net.word(text) + net.at.weight[3:] / 3 if door == "janus" else text  # (B, 22 or 10, C)
    h = torch.cat([h, text], 1) if door in ("joint", "janus") else h  # (B, 3 or 13 or 25, C)
    for b in net.blocks[:depth]:  # the door, then lesson 08's block, but with gates open at first
        if door == "pooled":  # one vector for all patches joins the time, through a small net
            c = c + b.write(F.silu(b.read(text.mean(1))).unflatten(1, (3, C)).sum(1))
        elif door == "cross":  # patches ask (queries), words answer (keys, values)
            h = h + b.write(heads(b.read(norm(h))[..., :C], *b.read(text)[..., C:].chunk(2, 2)))
        elif door == "joint":  # words ask words by weights of their own; below all ask all
            h = h + F.pad(b.write(heads(*b.read(norm(h[:, 3:])).chunk(3, 2))), (0, 0, 3, 0))
        shift, scale, gate, shift2, scale2, gate2 = b.adaln(F.silu(c))[:, None].chunk(6, 2)
        h = h + (1 + gate) * b.out(heads(*b.qkv((1 + scale) * norm(h) + shift).chunk(3, 2), mask))
        h = h + (1 + gate2) * b.down(F.silu(b.up((1 + scale2) * norm(h) + shift2)))
    return net.paint(norm(h[:, :3])), norm(h)  # (B, 3, 108), (B, 3 or 13 or 25, C)
def enter(door, said):  # janus gets words (B, 22), others what the LM's FIRST block makes of them
    text = F.pad(torch.cat([tell(said), tell(said[..., :1]), tell(said[..., 1:])], 1), (1, 0))
    x, t = torch.zeros(len(said), 3, 108), torch.zeros(len(said), 1)  # the LM sees no picture
    return text if door == "janus" else run(nets["LM"], "janus", x, t, text, 1)[1][:, 3:13]
nets, main = {}, args.interface  # six nets, each by its door
doors = dict(LM="janus", pooled="pooled", cross="cross", joint="joint", janus="janus", noisy=main)
for name, door in doors.items():
    net, text = build(), enter(door, noisy if "noisy" in (name, args.captions) else true)
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99), fused=True)
    for i in range(args.iters):  # large steps, as the rate falls to 0
        optimizer.param_groups[0]["lr"] = 8e-3 * min((i + 1) / 60, 1) * (1 - i / args.iters)
        pick, t = torch.randint(6000, (48,)), torch.rand(48, 1, 1) ** 2  # more noise: words matter
        xt, given = t * x[pick] + (1 - t) * torch.randn(48, 3, 108), text[pick]
        given[torch.rand(48) < 0.1] = 0  # one in ten without a caption, for guidance
        x_hat, h = run(net, door, xt, t[:, 0], given)  # x: 48 numbers cannot carry a v of 108
        loss = (x_hat - x[pick]).square().mean() * (name != "LM")  # an LM does not paint
        if door == "janus":  # + nats a word of answers; floor .9 ln 12 / 11 = .2: order is free
            loss = loss + F.cross_entropy(net.answer(h[:, 13:24]).mT, given[:, 11:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    nets[name] = net.requires_grad_(False)
    print(f"{name:7} {sum(p.numel() for p in optimizer.state)} weights, loss {loss:.3f}")
# --- sample and measure
torch.manual_seed(args.seed + 1)  # one noise for all interfaces, whatever --iters was
asked, eps, W = torch.randint(16, (200, 3)), torch.randn(200, 3, 108), (1, 2, 3, 6, 12)
tests = {name: enter(door, NAMES[asked]) for name, door in doors.items() if name != "LM"}
def judge(name, w, grid=torch.linspace(0, 1, 13) ** 2):  # 12 Euler steps, small ones first
    net, door, text, xt = nets[name], doors[name], tests[name], eps
    for t, after in zip(grid, grid[1:]):
        cond, null = [run(net, door, xt, t.expand(200, 1), z)[0] for z in (text, 0 * text)]
        xt = xt + (after - t) * (null + w * (cond - null) - xt) / (1 - t)  # v = (x - xt) / (1 - t)
    near = torch.cdist(xt.flatten(0, 1), CELLS).min(1)  # what was drawn: the most similar object
    ok, off = NAMES[near.indices].view(200, 3, 2) == NAMES[asked], near.values / 108**0.5
    return [*(z.double().mean().item() for z in (ok, ok.flatten(1).all(1), off)), xt]  # shares; x
got = {(n, w): judge(n, w) for n in tests for w in W if w == 1 or n in ("pooled", main, "noisy")}
placed, scenes, off = [{key: z[i] for key, z in got.items()} for i in range(3)]  # C1-3
# --- figure and claims
fig, (left, plot) = plt.subplots(1, 2, figsize=(12, 6), subplot_kw=dict(xlabel="w", ylim=(0, 1.8)))
number = plt.Slider(plt.axes([0.15, 0.95, 0.3, 0.03]), "caption ", 0, 199, valinit=0, valstep=1)
guide = plt.Slider(plt.axes([0.57, 0.95, 0.3, 0.03]), "w ", 0, 12, valinit=args.w)
for n, label, share, style in (("pooled", "words", placed, "C3"), ("noisy", "scenes", scenes, "C1"),
                               (main, "scenes", scenes, "C0"), (main, "pixels off", off, "C0:")):
    plot.plot(W, [share[n, w] for w in W], style, marker=".", label=f"{n}: {label}")
plot.axhline(9 / 16, c="k", ls="--", label="words, best guess from a bag")
plot.legend(fontsize=8, title=f"share right, or off; pooled at w = 1: {placed['pooled', 1]:.2f}")
def draw(_=None):
    k, now = int(number.val), {n: got.get((n, guide.val)) or judge(n, guide.val) for n in tests}
    cells = torch.stack([CELLS[asked[k]], *[z[3][k] for z in now.values()]])  # (6, 3, 108)
    rows, cols = (torch.cdist(cells, CELLS).argmin(2) != asked[k]).nonzero().T.cpu()  # wrong: red
    tiles = F.pad(cells.view(6, 3, 3, 6, 6), 4 * [1], value=0.5).permute(0, 3, 1, 4, 2)
    left.clear()
    left.imshow(tiles.reshape(48, 24, 3).clip(-1, 1).cpu().numpy() / 2 + 0.5)
    left.plot(8 * cols + 3.5, 8 * rows + 3.5, "s", c="tab:red", mfc="none", ms=42, mew=3)
    left.set_yticks(range(4, 48, 8), ["asked"] + [
        f"{n}: words {z[0]:.2f},\nscenes {z[1]:.2f}, off {z[2]:.2f}" for n, z in now.items()])
    left.set(title=" ".join(WORDS[i] for i in tests["janus"][k, 1:10]), xticks=[])
draw()
number.on_changed(draw)
guide.on_changed(draw)
fig.savefig(args.out, dpi=120)
print(f"""WHERE does not matter?    pooled, one vector: words in place {placed["pooled", 1]:.2f}
it does, the LM stays?    cross or joint: scenes {scenes["cross", 1]:.2f}, {scenes["joint", 1]:.2f}
it does, one net for all? janus: scenes {scenes["janus", 1]:.2f}
captions bad: {scenes["noisy", 1]:.2f}?      recaption; or guide, w = 3 {scenes["noisy", 3]:.2f}""")
claims = [("C1", "pooled: words in place, off .43", abs(placed["pooled", 1] - 0.43), "<", 0.13),
    ("C2", "right scenes, worst", min(scenes[n, 1] for n in (main, "joint", "janus")), ">", 0.9),
    ("C3", "noisy captions: words right, off 3/4", abs(placed["noisy", 1] - 0.75), "<", 0.1),
    ("C4", f"{main}, w = {args.w:g}: pixels off", judge(main, args.w)[2], "<", 0.4)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
