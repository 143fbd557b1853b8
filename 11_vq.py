# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""11 VQ-VAE, VQGAN, FSQ: lesson 10 drew its dictionary of patches at random; here it is learned.
A net turns a patch x into z, of which only the number of the nearest code q is kept; another net
draws from q. A code moves to the mean of its z. Choosing has slope 0: z gets q's, straight-through.
C1 64 codes that start far off collapse: few win all. Running means (EMA) do not help   C2 --cure
   does: error near k-means   C3 straight-through: slope at z = slope at q   C4 why it works: ONE
   step of a wrong z mends most   C5 without it FSQ's encoder never learns   C6 VQ: near k-means on
   a photo   C7 FSQ, a fixed grid, needs no cure   C8 VQGAN's judge makes it rough (noise would too)
RUN    python 11_vq.py    (13 s; then move iterations, K, cure, start: the codes learn again)
BREAK  python 11_vq.py --cure none (C2, C6 fail) or --no-straight-through (C4, C5, C6, C7)
PAPER  arXiv 1711.00937 eq. 3 (VQ), 2005.00341 (reset), 2012.09841 (VQGAN), 2309.15505 (FSQ)"""
import argparse
import os
import torch
from matplotlib import cbook, pyplot as plt, widgets
from torch.nn import LayerNorm, Linear, Sequential, SiLU, Tanh, functional as F
# --- knobs
CURES = ["none", "EMA", "reset", "EMA + reset"]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--cure", choices=CURES, default=CURES[3], help="none breaks it (%(default)s)")
parser.add_argument("--no-straight-through", action="store_true", help="z keeps slope 0: breaks it")
parser.add_argument("--iters", type=int, default=1500, help="of each net; 100 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
parser.add_argument("--out", default="11_vq.png", help=".png or .pdf (%(default)s)")
args = parser.parse_args()
if not (1 <= args.iters <= 100_000 and 0 <= args.seed <= 2**31):
    parser.error("--iters: 1 .. 100000, --seed: 0 .. 2^31")
ok = args.out[-4:] in (".png", ".pdf") and os.access(args.out, os.W_OK) == os.path.isfile(args.out)
ok and os.access(os.path.dirname(args.out) or ".", os.W_OK) or parser.error("--out cannot be saved")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small gain little or nothing from a second thread
device = "cuda" if torch.cuda.is_available() else "cpu"
# --- data and method: the moons of lesson 06 (2 x 32 Gaussians), a photograph in 4 x 4 patches
th = (torch.randint(64, (8000, 1)) + 0.5) * torch.pi / 32  # half circle up; half circle down, moved
dots = torch.cat([th.cos() + (th > torch.pi), th.sin() + 0.5 * (th > torch.pi)], 1)
dots = ((dots + 0.09 * torch.randn(8000, 2) - torch.tensor([0.5, 0.25])) / 0.65).to(device)
photo = torch.tensor(plt.imread(cbook.get_sample_data("grace_hopper.jpg", False))) / 255 - 0.5
patch = F.unfold(photo.mean(2)[None, None], 4, stride=4)[0].T.to(device)  # (19200, 16)
square = patch.view(75, 2, 64, 2, 16).transpose(1, 2).reshape(4800, 64)  # 2 x 2 patches in a row
def nearest(z, codes):
    return torch.cdist(z, codes).argmin(1)  # (B, D), (K, D) -> (B,): the numbers that are kept
def learn(codes, count, z, cure, memory=0.98):  # one step, in place: codes (K, D), count (K,)
    k, share = nearest(z, codes), len(z) / len(codes)  # share: z a code, if all win equally often
    pull = torch.zeros_like(codes).index_add(0, k, z - codes[k])  # of all z on the code they chose
    count.lerp_(torch.bincount(k, minlength=len(codes)).float(), 1 - memory)  # mean of 50 batches
    # subtle: EMA, a mean of late z, is the gradient step of |z - q|^2 with a rate for each code
    codes += pull * ((1 - memory) / count[:, None].clamp(min=1e-9) if "EMA" in cure else 1 / len(z))
    if "reset" in cure:  # a dead code, below a tenth of its share, restarts at some z
        dead = (count < share / 10).nonzero()[:, 0]
        codes[dead], count[dead] = z[torch.randint(len(z), dead.shape, device=device)], share
def train_codes(codes, z, n_iters, cure, memory=0.98):
    codes, count = codes.clone(), torch.ones_like(codes[:, 0])
    for _ in range(n_iters):  # EMA with memory 0, all z at once: this is k-means
        learn(codes, count, z[torch.randint(len(z), (256,))] if memory else z, cure, memory)
    return codes
far = 2 + 0.1 * torch.randn(1000, 8, device=device)  # codes in a clump, away from all z
def perplexity(k):  # 1 if one code has all, K if all are used alike
    return torch.special.entr(torch.bincount(k) / len(k)).sum().exp().item()
def straight_through(z, q, copy=not args.no_straight_through):  # the value of q, the slope of z
    return z + (q - z).detach() if copy else q  # subtle: to autograd the bracket is a constant
# --- network and train
def train(name, codes, cure=args.cure, sharpen=0, **copy):
    torch.manual_seed(args.seed)  # the same start and batches for each net
    encode = Sequential(Linear(16, 64), SiLU(), Linear(64, len(codes.T)), Tanh()).to(device)
    decode = Sequential(Linear(len(codes.T), 64), SiLU(), Linear(64, 16)).to(device)
    judge = Sequential(LayerNorm(64, 1e-3), Linear(64, 128), SiLU(), Linear(128, 1)).to(device)
    optimizer = torch.optim.Adam([{"params": [*encode.parameters(), *decode.parameters()]},
        {"params": judge.parameters()}], betas=(0.9, 0.99), fused=True)  # judge: rate .001
    count = torch.ones_like(codes[:, 0])  # of the z of each code in a batch, see learn
    for i in range(args.iters):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, 1.5 * (1 - i / args.iters))  # then to 0
        x = square[torch.randint(4800, (128,))]  # (128, 64), 8 x 8 pixels each, or 512 patches
        z = encode(x.view(512, 16))  # (512, D)
        q = codes[nearest(z, codes)]
        out = decode(straight_through(z, q, **copy)).view(128, 64)
        loss = (out - x).square().mean()
        if cure:  # a code comes to its z, and z to its code (commitment); FSQ needs neither
            learn(codes, count, z.detach(), cure)
            loss = loss + 0.02 * (z - q).square().sum(1).mean()
        if sharpen and i >= args.iters // 2:  # the judge learns > 1 for real, < -1 for drawn blocks
            fake = out.detach() - sharpen * (out - out.detach())  # subtle: value of out, slope the
            loss = loss + ((1 - judge(x)).relu() + (1 + judge(fake)).relu()).mean()  # other way
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    k = nearest(encode(patch), codes)  # (19200,)
    out = decode(codes[k]).detach()  # from the numbers alone. Rough: mean |step| to the next pixel
    db = -10 * (out - patch).square().mean().log10().item()  # decibels: 10 more is a 10th the error
    edge = [p.view(-1, 4, 4).diff().abs().mean().item() for p in (out, patch)]  # over the photo's
    print(f"{name:15} {db:.2f} dB, rough {edge[0] / edge[1]:.2f}, perplexity {perplexity(k):.0f}")
    return out, db, edge[0] / edge[1], k, encode, decode
_, (drawn, vq, dull, *_) = [train(f"VQ, {K} codes", far[:K].clone()) for K in (16, 256)]
judged, gan, keen, *_ = train("VQGAN", far[:256].clone(), sharpen=0.0015)  # C8; .003: too rough
grid = torch.cartesian_prod(*[torch.linspace(-1, 1, L, device=device) for L in (8, 6, 5)])  # FSQ:
_, blind, *_ = train("FSQ, slope cut", grid, None, copy=False)  # nearest = each number, rounded
_, fsq, _, k, encode, decode = train("FSQ, 240 codes", grid, None)  # C5 C7
# --- measure
codes = train_codes(patch[torch.multinomial(patch.var(1), 256)], patch, 40, "EMA", memory=0)
kmeans = -10 * (torch.cdist(patch, codes).square().amin(1).mean() / 16).log10().item()  # dB, C6
most = max(perplexity(nearest(dots, train_codes(far[:64, :2], dots, 1000, c))) for c in CURES[:2])
z, q = torch.randn(2, 99, dtype=torch.float64)  # C3, with a known slope: d sin(q) / dq = cos(q)
slope = torch.autograd.grad(straight_through(z.requires_grad_(), q, True).sin().sum(), z)[0]
def lost(z):  # C4: of patches x that are drawn from other patches' z
    return (decode(straight_through(z, grid[nearest(z, grid)])) - x).square().sum()
x, start = patch[torch.randperm(19200)[:1000]], encode(patch[torch.randperm(19200)[:1000]])
step = 0.3 * torch.autograd.grad(lost(start), start, materialize_grads=True)[0]
# --- figure
fig, (left, right) = plt.subplots(1, 2, figsize=(13, 5), gridspec_kw={"bottom": 0.3, "top": 0.93})
strip = torch.stack([patch, drawn, judged]).view(3, 150, 128, 4, 4)[:, 10:62, 42:78]  # the face
right.imshow(strip.permute(1, 3, 0, 2, 4).reshape(208, 432).cpu().numpy(), "gray")
right.set_title(f"photograph | VQ {vq:.1f} dB, rough {dull:.2f} | VQGAN {gan:.1f} dB, {keen:.2f}",
                c="tab:red" if kmeans - vq > 2 else "black")
cures = widgets.RadioButtons(plt.axes([0.38, 0, 0.1, 0.2]), CURES, CURES.index(args.cure))
starts = widgets.RadioButtons(plt.axes([0.48, 0, 0.07, 0.2]), ["far", "data"])
size = widgets.Slider(plt.axes([0.12, 0.11, 0.2, 0.04]), "K ", 2, 1000, valinit=64, valstep=1)
steps = widgets.Slider(plt.axes([0.12, 0.04, 0.2, 0.04]), "iterations ", 0, 1500, valinit=1000)
def draw(_=None):
    torch.manual_seed(args.seed + 1)  # the same path at each move of a slider
    first = far[: int(size.val), :2] if starts.value_selected == "far" else dots[: int(size.val)]
    codes = train_codes(first, dots, int(steps.val), cures.value_selected)
    best = train_codes(dots[: len(codes)], dots, 40, "EMA", memory=0)  # k-means
    error = [torch.cdist(dots, c).square().amin(1).mean().item() for c in (codes, best)]
    left.clear()
    left.plot(*dots.T.cpu(), "C7.", ms=2)
    left.plot(*codes.T.cpu(), "o", c="tab:blue" if error[0] < 1.4 * error[1] else "tab:red", ms=5)
    left.set(title=f"perplexity {perplexity(nearest(dots, codes)):.1f}, error {error[0]:.4f} "
             f"(k-means {error[1]:.4f})", xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    fig.canvas.draw_idle()  # radio buttons redraw themselves alone
    return error[0] / error[1]
excess = draw()  # C2
for connect in (size.on_changed, steps.on_changed, cures.on_clicked, starts.on_clicked):
    connect(draw)
fig.savefig(args.out, dpi=120)
# --- claims
claims = [("C1", "64 codes from far off, none or EMA: perplexity", most, "<", 10),
    ("C2", f"64 codes, {args.cure}: error over k-means'", excess, "<", 1.4),
    ("C3", "slope at z less slope at q, worst", (slope - q.cos()).abs().max().item(), "<", 1e-10),
    ("C4", "error after / before ONE step of z", lost(start - step) / lost(start), "<", 0.5),
    ("C5", "FSQ, dB lost without straight-through", fsq - blind, ">", 3),
    ("C6", "VQ, dB below k-means", kmeans - vq, "<", 2),
    ("C7", "FSQ, share of the codes used at all", len(k.unique()) / 240, ">", 0.6),
    ("C8", "roughness (photo: 1), VQGAN less VQ", keen - dull, ">", 0.1)]
for name, words, value, sign, bound in claims:
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {words}: {value:.4g} {sign} {bound:g}")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
