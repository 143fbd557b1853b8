# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "numpy", "matplotlib>=3.8"]
# ///
"""08 DiT: a transformer that turns noise into pictures, and what its parts are good for.
A net sees xt = t x + (1 - t) eps, a mix of a picture x and noise eps, with t and a digit y. By
squared error it learns the mean velocity d xt / dt = x - eps of all x and eps that fit xt. Noise
that follows it from t = 0 to 1 becomes a picture (lesson 06): at first the mean blurs several, but
the closer t comes to 1, the more clearly xt tells which one it holds.
A DiT (diffusion transformer) cuts xt, 16 x 16 pixels, into 16 patches of 4 x 4. One matrix makes
each patch a token, a vector of 48 numbers. Then blocks change the tokens h, in two steps each:
    h = h + gate * f((1 + scale) * norm(h) + shift)
First f is attention: each token takes a weighted mean of all. Then f is an MLP on each token alone.
A matrix makes shift, scale and gate from t and y (adaLN). Gates start at 0 (adaLN-Zero), so a block
adds nothing until it learns. With gates from 1 it adds random numbers at once. If the learning rate
is high, what it adds grows to hundreds of times the h of the start, and xt is lost in that (C3).
Why patches? The velocity contains the noise, 256 numbers, and all of it has to go through tokens.
16 tokens of 48 have room for it, ONE has not. (As softmax over one token is 1, this DiT is an MLP.)
C1 The DiT draws the digits that we want.   C2 The MLP leaves noise in them.
C3 Four blocks at the rate .025, 150 iterations: with gates from 0 they learn, from 1 they do not.
RUN    python 08_dit.py                (14 seconds; --objective ddpm takes DDPM's loss)
BREAK  python 08_dit.py --model MLP    makes the first net an MLP, too: C1 fails
PAPER  Peebles, Xie 2022, arXiv 2212.09748, section 3.2"""
import argparse
import matplotlib.pyplot as plt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

# --- knobs
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--model", choices=["DiT", "MLP"], default="DiT", help="MLP breaks C1")
parser.add_argument("--objective", choices=["flow", "ddpm"], default="flow", help="first row")
parser.add_argument("--iters", type=int, default=1100, help="training; 50 blurs (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
args = parser.parse_args()
if args.iters < 1 or args.seed < 0:
    parser.error("--iters must be 1 or more, --seed 0 or more")
torch.manual_seed(args.seed)
torch.set_num_threads(1)  # nets this small are fastest on one core
torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")  # for nets and data

# --- data: the digits, a list of 40 pictures; p_data draws each of them equally often
FONTS = ["DejaVu Sans", "DejaVu Serif", "STIXGeneral", "cmss10"]  # they come with matplotlib
def draw_digit(digit, font):
    """A digit in a font as a picture (16, 16): 0 is paper, 1 is ink."""
    canvas = FigureCanvasAgg(Figure(figsize=(1, 1), dpi=16))  # 16 x 16 pixels; size 80 fills them
    canvas.figure.text(0.5, 0.5, digit, font=font, size=80, ha="center", va="center_baseline")
    canvas.draw()
    return 1 - torch.tensor(canvas.buffer_rgba().tolist())[:, :, 0] / 255  # red, as all is grey
PICTURES = torch.stack([draw_digit(d, font) for d in "0123456789" for font in FONTS])  # 40, 16, 16
data = (2 * PICTURES - 1).view(10, 4, 16, 16)  # digit, font, row, column: paper is -1 now, ink is 1

# --- network: B pictures, N tokens each, C numbers in a token
class DiTBlock(nn.Module):
    def __init__(self, C, gate):
        super().__init__()
        self.gate = gate  # the value at which both gates start
        self.norm = nn.LayerNorm(C, elementwise_affine=False)  # adaLN brings scale and shift
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.SiLU(), nn.Linear(4 * C, C))
        self.adaln = nn.Linear(C, 6 * C, bias=False)
        nn.init.zeros_(self.adaln.weight)  # the Zero of adaLN-Zero
    def forward(self, h, c):  # tokens (B, N, C); c (B, 1, C) is made of time and digit
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(c).chunk(6, 2)  # (B, 1, C) each
        query, key, value = self.qkv((1 + scale1) * self.norm(h) + shift1).chunk(3, 2)  # (B, N, C)
        match = query @ key.mT / h.shape[2] ** 0.5  # (B, N, N), each token with each
        h = h + (self.gate + gate1) * self.out(match.softmax(2) @ value)  # attention
        return h + (self.gate + gate2) * self.mlp((1 + scale2) * self.norm(h) + shift2)

class DiT(nn.Module):
    def __init__(self, size, patch, gate=0, C=48, depth=2, classes=10):
        super().__init__()
        self.patchify = nn.Unfold(patch, stride=patch)  # (B, 1, size, size) to (B, patch^2, N)
        self.unpatchify = nn.Fold(size, patch, stride=patch)  # and back

        self.embed = nn.Linear(patch**2, C)  # PatchEmbed: one matrix product for all patches
        self.place = nn.Parameter(torch.randn((size // patch) ** 2, C))  # attention sees no order
        self.time, self.digit = nn.Linear(1, C), nn.Embedding(classes, C)
        self.blocks = nn.ModuleList([DiTBlock(C, gate) for _ in range(depth)])
        self.head = nn.Sequential(nn.LayerNorm(C), nn.Linear(C, patch**2))
        nn.init.zeros_(self.head[1].weight)  # so the first answers are small, which steadies it
    def forward(self, xt, t, y):  # (B, size, size), (B, 1, 1), (B,) to velocities, shaped as xt
        c = nn.functional.silu(self.time(t) + self.digit(y)[:, None])  # (B, 1, C)
        h = self.embed(self.patchify(xt[:, None]).mT) + self.place  # (B, N, patch^2) to (B, N, C)
        for block in self.blocks:
            h = block(h, c)
        return self.unpatchify(self.head(h).mT)[:, 0]

# --- train and sample
def train_pictures(net, data, iters, lr, objective="flow"):  # data (digits, fonts, H, W)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)  # large steps first, then small
        y, font = [torch.randint(n, (32,)) for n in data.shape[:2]]  # B = 32 of each
        x = data[y, font]  # (B, 16, 16)
        t, eps = torch.rand(32, 1, 1), torch.randn_like(x)
        xt = t * x + (1 - t) * eps
        weight = t if objective == "ddpm" else 1  # DDPM: the error of eps_hat, that is xt - t v_hat
        loss = (weight * (net(xt, t, y) - (x - eps))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{iters} iterations, loss {loss:.2f}")
    return net.requires_grad_(False)
patch, lr = (4, 0.015) if args.model == "DiT" else (16, 0.007)  # best of .007 .01 .015
nets = {args.model: train_pictures(DiT(16, patch), data, args.iters, lr, args.objective),
        "MLP, one token": train_pictures(DiT(16, 16), data, args.iters, 0.007)}
nets |= {"4 blocks, gates from 0": train_pictures(DiT(16, 4, 0, depth=4), data, 150, 0.025),
         "4 blocks, gates from 1": train_pictures(DiT(16, 4, 1, depth=4), data, 150, 0.025)}

def sample(net, xt, y, steps=20):  # from noise xt (B, H, W) to pictures of the digits y (B,)
    for i in range(steps):
        xt = xt + net(xt, torch.full((1, 1, 1), i / steps), y) / steps
    return xt

def distance(samples, fonts):  # from samples (n, H, W) to the closest of their (n, 4, H, W)
    square = (samples[:, None] - fonts).square().mean((2, 3))  # (n, 4), mean over pixels
    return square.amin(1).sqrt().mean().item()

# --- measure and figure
noise, y = torch.randn(50, 16, 16), torch.arange(10).repeat(5)  # C1, C2, C3: each digit five times
dit, mlp, from_0, from_1 = [distance(sample(net, noise, y), data[y]) for net in nets.values()]
blur = distance(data.mean(1), data)  # what the mean of the four fonts, a blurred digit, scores
wrong = distance(data[:, 0], data.roll(1, 0))  # and real pictures, but of the digit before
fig, axes = plt.subplots(4, figsize=(12, 6))
slider = plt.Slider(plt.axes([0.4, 0.02, 0.2, 0.04]), "Euler steps ", 1, 20, valinit=20, valstep=1)
def draw(steps):
    for ax, name in zip(axes, nets):
        samples = sample(nets[name], noise, y, int(steps))
        miss = distance(samples, data[y])
        row = torch.cat([*samples[:10]], 1).cpu()  # (16, 160)
        ax.clear()
        ax.imshow(row, "Blues" if miss < wrong else "Reds", vmin=-1, vmax=1)
        ax.set(title=f"{name}: {miss:.2f} off (red: over {wrong:.2f})", xticks=[], yticks=[])
draw(20)
slider.on_changed(draw)
fig.savefig("08_dit.png", dpi=120)

# --- claims
def claim(name, sentence, value, sign, bound):
    holds = value < bound if sign == "<" else value > bound
    print(f"{'ok' if holds else 'FAIL':<5} {name} {sentence}: {value:.4g} {sign} {bound:.4g}")
claim("C1", "distance of the DiT's digits from real ones (bound: their blur)", dit, "<", blur)
claim("C2", "the same for the MLP (bound: that of a wrong digit)", mlp, ">", wrong)
claim("C3", "the same with gates from 1 (bound: 1.5 x gates from 0)", from_1, ">", 1.5 * from_0)
print("figure: 08_dit.png")
if plt.get_backend().lower() != "agg":  # no window without a display
    plt.show()
