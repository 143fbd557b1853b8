# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""12 Masked and discrete diffusion (two methods of 10): guess all tokens, keep some, ask again.
D3PM, a diffusion, noises a token by a matrix, Q = (1 - beta) I + beta M. If M turns all into MASK,
its bound on -log p(x) is sum_t E[cross-entropy of masked tokens] / t: to diffuse is to fill blanks.
MaskGIT: all masked; each round guesses all and keeps the K it is surest of (K even; paper: cosine).
C1 products of Q, the way back from MASK (1 / t), the bound over all chains of a tiny world: exact
C2 random order: wrong seams fall nearly as 1 / rounds, C3 by a formula; C4 by confidence hardly
faster, C5 and pictures bleach, the more the less noise it has. C6 A chessboard takes two rounds
RUN    python 12_maskgit.py               (14 s; widgets: rounds, noise, order)
BREAK  python 12_maskgit.py --rounds 1 (pipes end anywhere: C2) or --noise 0 (much is blank: C5)
PAPER  arXiv 2107.03006 (D3PM); 2202.04200, section 3.2 (MaskGIT); 2406.04329 (the simple bound)"""
import argparse
import os
import time
import torch
from matplotlib import pyplot as plt, widgets
from torch.nn import Embedding, Linear, ModuleList, functional as F
# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--rounds", type=int, default=10, help="for 64 tokens; 1 breaks (%(default)s)")
parser.add_argument("--noise", type=float, default=4.5, help="in the order; 0 breaks (%(default)s)")
parser.add_argument("--iters", type=int, default=400, help="of each net; 100 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="12_maskgit.png", help=".png or .pdf (%(default)s)")
args = parser.parse_args()
if not (0 < args.rounds < 17 and 0 <= args.noise <= 20 and args.iters > 0 <= args.seed <= 2**31):
    parser.error("--rounds: 1 .. 16, --noise: 0 .. 20, --iters: from 1, --seed: 0 .. 2^31")
ok = args.out[-4:] in (".png", ".pdf") and os.access(args.out, os.W_OK) == os.path.isfile(args.out)
ok and os.access(os.path.dirname(args.out) or ".", os.W_OK) or parser.error("--out cannot be saved")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small gain little or nothing from a second thread
device = "cuda" if torch.cuda.is_available() else "cpu"
# --- data: 8 x 8 tiles; across a seam of two, 112 in all, runs a pipe with probability .35, a coin
TILES, MASK, N, SEAMS, OPEN, M = " ╶╷┌╴─┐┬╵└│├┘┴┤┼", 16, 64, 112, 0.35, 200  # M are judged
BITS = torch.arange(16, device=device)[:, None] >> torch.arange(4, device=device) & 1  # (16, 4)
def pipes(n):  # (n, 64) tokens 0 .. 15: right + 2 down + 4 left + 8 up, 1 where a pipe leaves
    right, down = (torch.rand(2, n, 8, 8, device=device) < OPEN).long()
    right[:, :, 7], down[:, 7] = 0, 0  # no pipe leaves the picture; roll takes these 0 to row 0
    return (right + 2 * down + 4 * right.roll(1, 2) + 8 * down.roll(1, 1)).flatten(1)
def wrong(x):  # (B, 64) -> (B, 64, 4): sides that differ from the neighbour's; right of a row
    near = torch.stack([x.roll(k, 1) for k in (-1, -8, 1, 8)], 2)  # the next begins: 0 meets 0
    return BITS[x] != near >> torch.tensor([2, 3, 0, 1], device=device) & 1
# --- method: D3PM in float64, 2 tokens of 3 symbols (MASK: 3), T = 3; pair (16, 2): the 16 states
eye, off, back, pair = torch.eye(4).double(), [], [], torch.cartesian_prod(*2 * [torch.arange(4)])
for goal in (torch.full_like(eye, 1 / 4), eye[3].expand(4, 4)):  # M: uniform, last absorbing
    Q = [(1 - beta) * eye + beta * goal for beta in (1 / 3, 1 / 2, 1)]  # beta = 1 / (T - t + 1)
    chain = [eye, Q[0], Q[0] @ Q[1], Q[0] @ Q[1] @ Q[2]]  # chain[t][x, xt] = q(xt | x)
    off += [(chain[t] - (1 - t / 3) * eye - t / 3 * goal).abs().max() for t in range(4)]
p, p_hat = torch.rand(16).double() * (pair < 3).all(1), torch.randn(16, 2, 3).double().softmax(2)
for t in (1, 2, 3):  # p: any weights of the data; p_hat: any net, for each token, given the pair
    off.append(abs(chain[t - 1][0, 0] * Q[t - 1][0, 3] / chain[t][0, 3] - 1 / t))  # C1: x | MASK, x
    u = torch.where((pair == 3)[..., None], F.pad(p_hat / t, (0, 1), value=1 - 1 / t), eye[pair])
    back.append((u[:, 0, :, None] * u[:, 1, None]).flatten(1))  # (16, 16), the net's step back
q = torch.einsum("x,xa,ab,bc->xabc", p, *[torch.kron(S, S) for S in Q])  # 16^4 chains, E log q / p:
nelbo = (q * (q / p.view(16, 1, 1, 1) / torch.einsum("ax,ba,cb->xabc", *back)).log())[q > 0].sum()
ce = -(p_hat[:, torch.arange(2), pair.clamp(max=2)].log() * (pair == 3)[:, None]).sum(2)  # (xt, x)
simple = sum((torch.kron(chain[t], chain[t]).T * p * ce).sum() / t for t in (1, 2, 3))  # C1
# --- network and train: transformers of one block; near tiles learn sooner; each picture is new
place = torch.cartesian_prod(*2 * [torch.arange(8.0)]).to(device)  # (64, 2)
near = -2 * torch.cdist(place, place, p=1)  # added to logits; subtle: AR's input i is token i - 1
sees = {"masked": near, "AR": near.roll(1, 1) + torch.full_like(near, -1e9).triu(1)}
nets = {name: ModuleList([Embedding(17, 48), Embedding(16, 48), Linear(48, 144), Linear(48, 48),
        Linear(48, 192), Linear(192, 48), Linear(48, 16)]).to(device) for name in sees}
def block(h, sees, qkv, out, up, down, heads=4):  # h (B, N, C); sees (n, N): the last n tokens ask
    q, k, v = qkv(F.layer_norm(h, h.shape[2:])).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mix = F.scaled_dot_product_attention(q[:, :, -len(sees):], k, v, sees)  # weighted means of v
    h = h[:, -len(sees):] + out(mix.transpose(1, 2).flatten(2))  # attention, then a plain net
    return h + down(F.silu(up(F.layer_norm(h, h.shape[2:]))))  # (B, n, C)
def answer(name, x, i, past):  # (B, n) tokens for the places from i on -> (B, n, 16)
    (embed, where, qkv, *layers, head), end = nets[name], i + x.shape[1]
    def store(h):  # AR keeps keys and values: an earlier token sees no later one, so they stay
        past.append(qkv(h))
        return torch.cat(past, 1)  # (B, end, 144)
    h = embed(x) + (where.weight[:8, None] + where.weight[8:]).flatten(0, 1)[i:end]  # row, column
    return head(F.layer_norm(block(h, sees[name][i:end, :end], store, *layers, heads=8), [48]))
for name, net in nets.items():
    optimizer = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.99), fused=True)
    for i in range(args.iters):
        optimizer.param_groups[0]["lr"] = 1.6e-2 * min((i + 1) / 50, 1.5 * (1 - i / args.iters), 1)
        count = torch.randint(N if name == "AR" else 1, N + 1, (32, 1), device=device)
        x, hide = pipes(32), torch.rand(32, N, device=device).argsort(1) < count
        xt = F.pad(x[:, :-1], (1, 0), value=MASK) if name == "AR" else x.masked_fill(hide, MASK)
        loss = F.cross_entropy(answer(name, xt, 0, []).mT, x, reduction="none")  # (32, 64)
        loss = (loss * hide / count).sum(1).mean()  # subtle: C1's sum over t, for T to infinity
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (i + 1) % max(1, args.iters // 4) == 0:  # floor: the entropy, 72.5 nats a picture
            print(f"{name:6} iter {i + 1:5d}  loss {loss:.2f} +- .1  floor {72.5 / N:.2f}")
    net.requires_grad_(False)
# --- sample and measure
def write(order, R, noise=args.noise, n=M):  # -> n pictures; means: wrong seams, pipes, tiles
    torch.manual_seed(args.seed + 1)  # unlike the last picture's; pictures a second
    x, past, R = torch.full((n, N + 1), MASK, device=device), [], N if order == "AR" else R
    y, start, spot = x[:, 1:], time.perf_counter(), torch.arange(N, device=device)  # y: the picture
    for i in range(R):
        out = answer("AR", x[:, i:i + 1], i, past) if order == "AR" else answer("masked", y, 0, [])
        p = torch.distributions.Categorical(logits=out)
        guess, luck = p.sample(), -torch.empty(n, N, device=device).exponential_().log()  # Gumbel
        sure = {"confidence": p.log_prob(guess) + noise * (1 - (i + 1) / R) * luck, "random": luck,
                "chessboard": luck + 99 * (place.sum(1) % 2), "AR": -1.0 * spot}[order]
        keep = sure.masked_fill(y < MASK, -1e9).topk(N * (i + 1) // R - N * i // R).indices
        y.scatter_(1, keep, guess.expand(n, N).gather(1, keep))  # known ones are not guessed again
    rate = n / (time.perf_counter() - start)
    return y, *[a.sum().item() / n for a in (wrong(y) / 2, BITS[y] / 2, y != y.roll(1, 0))], rate
law = [2 * OPEN * (1 - OPEN) * SEAMS * (N // r) * (N + N % r - r) / 4032 for r in range(1, N + 1)]
ROUNDS = sorted({1, 2, 4, 7, 10, args.rounds})  # law: P(coins differ) x seams x P(share a round)
RUNS = {"random": ROUNDS, "confidence": ROUNDS, "chessboard": [2], "AR": [N]}
table = {o: {r: write(o, r)[1:] + write(o, r, n=1)[4:] for r in rs} for o, rs in RUNS.items()}
rand, conf, board, _ = table.values()  # C2-6
# --- figure
fig, (left, right) = plt.subplots(1, 2, figsize=(13, 6), gridspec_kw={"bottom": 0.25})
right.semilogx(range(1, N + 1), law, "k--", base=2, label="random, exact")
for (o, rows), colour in zip(table.items(), ("tab:purple", "tab:blue", "tab:cyan", "tab:orange")):
    right.plot(rows.keys(), [row[0] for row in rows.values()], "o", c=colour, label=o)
    for r, row in rows.items():
        print(f"{o} {r}: %.1f wrong seams, %.1f pipes, %.1f tiles differ, %.0f/s, alone %.0f" % row)
right.set(xlabel="calls of the net (AR: 1 token each, else all 64)", ylabel="wrong seams of 112")
right.legend(title=f"{args.rounds} rounds: {rand[args.rounds][0] / rand[1][0]:.0%} of one's")
bar = plt.Slider(plt.axes([0.5, 0.1, 0.4, 0.03]), "rounds ", 1, 16, valinit=args.rounds, valstep=1)
noise = plt.Slider(plt.axes([0.5, 0.03, 0.4, 0.03]), "noise ", 0, 20, valinit=args.noise)
radio = widgets.RadioButtons(plt.axes([0.12, 0.01, 0.15, 0.17]), list(RUNS), 1)
def draw(_=None):
    x, bad, n, *_ = write(radio.value_selected, int(bar.val), noise.val)
    left.clear()
    for pen, show in (("tab:blue", x * ~wrong(x).any(2)), ("tab:red", x * wrong(x).any(2))):
        for i, row in enumerate(show[:8].view(2, 4, 8, 8).transpose(1, 2).flatten(0, 1).tolist()):
            art = "  ".join("".join(TILES[token] for token in part) for part in row)  # 4 pictures
            left.text(0.01, (16 - i - i // 8) / 17, art, c=pen, size=13.7, family="monospace")
    left.set(xticks=[], yticks=[], title=f"{bad:.1f} wrong seams (exact: 0), {n:.0f} pipes (39)")
    fig.canvas.draw_idle()
draw()
for connect in (bar.on_changed, noise.on_changed, radio.on_clicked):
    connect(draw)
fig.savefig(args.out, dpi=120)
# --- claims
claims = [("C1", "off the closed forms, worst", max(abs(nelbo - simple), *off).item(), "<", 1e-10),
    ("C2", "random order, wrong seams of one round's", rand[args.rounds][0] / rand[1][0], "<", 0.2),
    ("C3", "off the formula, worst", max(abs(rand[r][0] - law[r - 1]) for r in rand), "<", 2),
    ("C4", "mended by confidence, most", max(rand[r][0] - conf[r][0] for r in rand), "<", 3),
    ("C5", "by confidence, pipes of 39.2", conf[args.rounds][1] / (OPEN * SEAMS), ">", 0.6),
    ("C6", "chessboard, two rounds: wrong seams", board[2][0], "<", 2)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
