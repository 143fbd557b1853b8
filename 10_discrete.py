# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""10 Why discrete? Text, sound and pictures become integers (tokens); four methods write tokens.
Chain rule: p(string) = product of p(token | known tokens), in any order. ONE net learns them all;
its calls fill in the unknown (MASK), and a method is an order: autoregressive (AR) the next token,
hybrid the next block, MaskGIT the surest guesses, diffusion (its absorbing kind) random places.
C1 quiet sound as bytes: mu-law beats equal steps   C2 picture: patch numbers beat mean greys
C3 next token: the net, a probability for each, is legal (p > 0) where p's own Gaussian often is not
C4 AR: total variation (TV, sum |q - p| / 2) from the exact p is near that of exact draws
C5 hybrid: so it is in 4 calls, as a block is a token of each voice: independent, given the past
C6 MaskGIT (here without its noise) is more often legal than diffusion, C7 but writes fewer kinds
RUN    python 10_discrete.py                    (11 s; sliders: calls, temperature)
BREAK  python 10_discrete.py --calls 1 (C5, C6, C7 fail) or --temperature 0 (C4, C5, C6: one string)
PAPER  arXiv 2202.04200, section 3.2 (MaskGIT); 2107.03006, section 3 (absorbing diffusion)"""
import argparse
import math
import os
import torch
from matplotlib import cbook, pyplot as plt
from torch.nn import Embedding, Linear, ModuleList, functional as F

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--calls", type=int, default=4, help="of the net; 1 breaks it (%(default)s)")
parser.add_argument("--temperature", type=float, default=1, help="0 breaks it (%(default)s)")
parser.add_argument("--iters", type=int, default=800, help="of training; 100 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="10_discrete.png", help=".png or .pdf (%(default)s)")
args = parser.parse_args()
if not (0 < args.calls < 9 and 0 <= args.temperature <= 2 and args.iters > 0 <= args.seed <= 2**31):
    parser.error("--calls: 1 .. 8, --temperature: 0 .. 2, --iters: from 1, --seed: 0 .. 2^31")
ok = args.out[-4:] in (".png", ".pdf") and os.access(args.out, os.W_OK) == os.path.isfile(args.out)
ok and os.access(os.path.dirname(args.out) or ".", os.W_OK) or parser.error("--out cannot be saved")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small gain little or nothing from a second thread
device = "cuda" if torch.cuda.is_available() else "cpu"

# --- data: text, sound (quiet: peak .01 is 40 dB below full) and a picture as bytes, and back
print(ascii(bytes(text := list("Why? 为什么?".encode())).decode()), text)  # UTF-8 loses nothing
wave = sum((f * torch.arange(8000) * math.pi / 4000).sin() for f in (220, 277, 330)) / 300
law = (1 + 255 * wave.abs()).log() / math.log(256) * wave.sign()  # mu-law: fine steps near 0
sound = ((1 + law) * 127.5).round().long()  # (8000,) integers 0 .. 255 are the sound
heard = (256 ** (sound / 127.5 - 1).abs() - 1) / 255 * (sound - 127.5).sign()
photo = torch.tensor(plt.imread(cbook.get_sample_data("grace_hopper.jpg", False))) / 255
patch = F.unfold(photo.mean(2)[None, None], 4, stride=4)[0].T  # grey (600, 512) -> (19200, 16)
book = patch[torch.randperm(len(patch))[:256]]  # of its own patches; lesson 11 learns better ones
code, grey = torch.cdist(patch, book).argmin(1), (patch.mean(1, keepdim=True) * 255).round() / 255
gain = [10 * math.log10((b - x).square().mean() / (a - x).square().mean()) for x, a, b in  # C1 C2
        ((wave, heard, (wave * 127.5).round() / 127.5), (patch, book[code], grey))]  # decibels, dB
N, V, MASK, M = 8, 6, 6, 3000  # M strings of N tokens: 2 voices in turn, V pitches; 6: unknown
steps = torch.cartesian_prod(torch.arange(V), *3 * [torch.tensor([1, -1])])  # (48, 4), one voice
p = torch.tensor([10, 5, 3, 2, 1, 1])[steps[:, 0]] / 22 * (0.5 + 0.2 * steps[:, 1:]).prod(1)
voice = steps.cumsum(1) % V  # starts low more often, then goes up (.7) or down (.3), three times
legal = torch.stack([voice.repeat_interleave(48, 0), voice.repeat(48, 1)], 2).flatten(1).to(device)
p, place = torch.outer(p, p).flatten().to(device), torch.arange(N, device=device)  # (2304,), (8,)

# --- method
def fill_in(method, calls, temperature=1):  # all unknown; a call keeps N / calls of its guesses
    torch.manual_seed(args.seed + 1)  # the same dice for each method, whatever --iters was
    x, calls = torch.full((M, N), MASK, device=device), N if method == "AR" else calls
    for i in range(calls):
        rows, back = (x * 7**place).sum(1).unique(return_inverse=True)  # base 7: equal, asked once
        log_p = logits(rows[:, None] // 7**place % 7).log_softmax(2)[back].flatten(0, 1)  # (M N, V)
        guess = (log_p / max(temperature, 1e-3)).softmax(1).multinomial(1)
        order = {"MaskGIT": log_p.gather(1, guess).view(M, N),  # largest stay; AR, hybrid: left
                 "diffusion": torch.rand(M, N, device=device)}.get(method, 0.0 * x - place)
        keep = order.masked_fill(x < MASK, -1e9).topk(N * (i + 1) // calls - N * i // calls).indices
        x = x.scatter(1, keep, guess.view(M, N).gather(1, keep))
    return x

# --- network and train: each token sees all others; the rate: 50 to warm up, flat, from 1/3 to 0
SIZES = [(32, V)] + 2 * [(32, 96), (32, 32), (32, 128), (128, 32)]  # head, 2 x qkv, out, up, down
net = ModuleList([Embedding(V + 1, 32), Embedding(N, 32), *(Linear(*s) for s in SIZES)]).to(device)
def block(h, sees, qkv, out, up, down, heads=4):  # h (B, N, C); sees (n, N): the last n tokens ask
    q, k, v = qkv(F.layer_norm(h, h.shape[2:])).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mix = F.scaled_dot_product_attention(q[:, :, -len(sees):], k, v, sees)  # weighted means of v
    h = h[:, -len(sees):] + out(mix.transpose(1, 2).flatten(2))  # attention, then a plain net
    return h + down(F.silu(up(F.layer_norm(h, h.shape[2:]))))  # (B, n, C)
def logits(x):  # (B, N) -> (B, N, V)
    (embed, where, head, *layers), sees = net, torch.ones(N, N, device=device) > 0  # each sees all
    h = block(embed(x) + where(place), sees, *layers[:4])
    return head(F.layer_norm(block(h, sees, *layers[4:]), [32]))
optimizer = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.99), fused=True)
for i in range(args.iters):
    optimizer.param_groups[0]["lr"] = 1e-2 * min((i + 1) / 50, 1.5 * (1 - i / args.iters), 1)
    x, hidden = legal[p.multinomial(128, True)], torch.randint(1, N + 1, (128, 1), device=device)
    hide = torch.rand(128, N, device=device).argsort(1) < hidden  # 1 .. 8 places at random
    loss = F.cross_entropy(logits(x.masked_fill(hide, MASK)).mT, x, reduction="none")  # (128, N)
    loss = (loss * hide / hidden).sum(1).mean()  # nats a token; floor: p's entropy / N, chain rule
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (i + 1) % max(1, args.iters // 8) == 0:
        print(f"iter {i + 1:5d}  loss {loss:.2f} +- .06  floor {-(p * p.log()).sum() / N:.2f}")

# --- measure
net.requires_grad_(False)
def tally(x):  # of strings x (M, N): share that is legal, TV, coverage: share of the 2304 met
    q = torch.bincount((x * V**place).sum(1), minlength=V**N)[(legal * V**place).sum(1)] / M
    # subtle: q exceeds p elsewhere by as much as p exceeds q here, so this sum is half of |q - p|
    return q.sum().item(), (p - q).clamp(min=0).sum().item(), (q > 0).double().mean().item()
methods = {"AR": "orange", "hybrid": "cyan", "MaskGIT": "blue", "diffusion": "purple"}
curves = {m: [tally(fill_in(m, n))[1] for n in range(1, 9)] for m in methods}
real = legal[p.multinomial(M, True)]
ways = (real[:, 4:5] + torch.tensor([1, -1], device=device)) % V  # (M, 2): token 6 follows token 4
mean, std = 0.7 * ways[:, 0] + 0.3 * ways[:, 1], 0.21**0.5 * ways.diff()[:, 0].abs()
ours = logits(real.masked_fill(place > 5, MASK))[:, 6].softmax(1).multinomial(1)[:, 0]
good = [(guess[:, None] == ways).any(1).double().mean().item() for guess in  # C3
        (ours, (mean + std * torch.randn_like(mean)).round(), mean.round())]

# --- figure
fig, (left, right) = plt.subplots(1, 2, figsize=(13, 6), gridspec_kw={"bottom": 0.2, "top": 0.78})
both = torch.stack([patch, book[code]]).view(2, 150, 128, 4, 4).permute(1, 3, 0, 2, 4)
left.imshow(both.reshape(600, 1024).numpy(), "gray")
left.set(title=f"8 and .5 bits a pixel: {gain[1]:.1f} dB over mean greys", xticks=[], yticks=[])
calls = plt.Slider(plt.axes([0.6, 0.06, 0.25, 0.03]), "calls ", 1, 8, valinit=args.calls, valstep=1)
heat = plt.Slider(plt.axes([0.6, 0.01, 0.25, 0.03]), "temperature ", 0, 2, valinit=args.temperature)
floor, table = tally(real), {}  # exact draws also have a TV: they are M, not infinitely many
def draw(_=None):
    right.clear()
    right.axhline(floor[1], c="k", ls="--", label="exact draws: TV %.3f, coverage %.3f" % floor[1:])
    for m, colour in methods.items():
        share, tv, met = table[m] = tally(fill_in(m, int(calls.val), heat.val))  # C4-7
        use = "near exact" if tv < floor[1] + 0.08 else "illegal" if share < 0.7 else "biased"
        right.plot(range(1, 9), curves[m], f"tab:{colour}",
                   label=f"{m}: legal {share:.3f}, TV {tv:.3f}, coverage {met:.3f}: {use}")
        right.plot(calls.val, tv, "o", ms=9, c="tab:red" if tv > 0.9 else f"tab:{colour}")
    right.set(xlabel="calls (AR: always 8); lines: temperature 1", ylabel="TV to p", ylim=(0, 1.1))
    right.legend(loc="lower left", bbox_to_anchor=(0, 1))
draw()
calls.on_changed(draw)
heat.on_changed(draw)
fig.savefig(args.out, dpi=120)

# --- claims
print(*right.get_legend_handles_labels()[1], sep="\n")
claims = [("C1", "quiet sound, mu-law over equal steps, dB", gain[0], ">", 15),
    ("C2", "picture, patch numbers over mean greys, dB", gain[1], ">", 1),
    ("C3", f"legal, net less Gaussian (mean alone {good[2]:.2f})", good[0] - good[1], ">", 0.4),
    ("C4", "AR: TV over exact draws'", table["AR"][1] - floor[1], "<", 0.08),
    ("C5", f"hybrid, {args.calls} calls: the same", table["hybrid"][1] - floor[1], "<", 0.08),
    ("C6", "legal, MaskGIT less diffusion", table["MaskGIT"][0] - table["diffusion"][0], ">", 0.08),
    ("C7", "coverage, MaskGIT / diffusion", table["MaskGIT"][2] / table["diffusion"][2], "<", 0.5)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
