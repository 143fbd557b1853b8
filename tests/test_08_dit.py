"""Lesson 08: the net, training, sampling, and images by other roads; saving; own folders; what attention, patches, targets, and gates do."""
import math
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import ROOT, page_agrees, paste
from PIL import Image
from torch import nn

NAME = "08_dit"
ASKED = torch.arange(1, 11).repeat(4)

@pytest.fixture(scope="module")
def pieces():
    return paste(NAME, "Block", "DiT", "train", "sample", "load_image", "draw_digit", "FONTS")

@pytest.fixture(scope="module")
def images(pieces):  # (40, 1, 16, 16) from -1 to 1; their labels are ASKED
    return torch.stack([0.5 - pieces.draw_digit(str(k % 10), pieces.FONTS[k // 10]) for k in range(40)])[:, None] * 2

@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)

def awake(net):  # in double precision, with random weights of adaLN
    for block in net.blocks:
        nn.init.normal_(block.adaLN, std=0.3)
    return net.double()

def by_hand(net, xt, t, y, patch, num_heads):
    """One image (channels, size, size) through the net, token by token, in numpy and float64."""
    w = {name: p.detach().numpy() for name, p in net.named_parameters()}
    dim, cuts = len(w["time.bias"]), range(0, xt.shape[1], patch)
    norm = lambda x: (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    c = w["time.weight"][:, 0] * t + w["time.bias"] + w["label.weight"][y]
    c = c / (1 + np.exp(-c))  # SiLU
    kernels = w["patchify.weight"].reshape(dim, -1)  # PatchEmbed is one matrix product
    x = np.stack([kernels @ xt[:, r:r + patch, k:k + patch].ravel() for r in cuts for k in cuts]) + w["patchify.bias"] + w["position"]
    for b in range(len(net.blocks)):
        p = {name.split(".", 2)[2]: value for name, value in w.items() if name.startswith(f"blocks.{b}.")}
        shift1, scale1, gate1, shift2, scale2, gate2 = (c @ p["adaLN"]).reshape(6, dim)
        h, heads = norm(x) * (1 + scale1) + shift1, []
        q, k, v = np.split(h @ p["qkv.0.weight"].T + p["qkv.0.bias"], 3, axis=1)
        for part in np.split(np.arange(dim), num_heads):
            like = np.exp(q[:, part] @ k[:, part].T / math.sqrt(len(part)))
            heads.append(like / like.sum(1, keepdims=True) @ v[:, part])
        x = x + gate1 * (np.hstack(heads) @ p["out.weight"].T + p["out.bias"])
        h = (norm(x) * (1 + scale2) + shift2) @ p["mlp.0.weight"].T + p["mlp.0.bias"]
        x = x + gate2 * (h * (1 + np.vectorize(math.erf)(h / math.sqrt(2))) / 2 @ p["mlp.2.weight"].T + p["mlp.2.bias"])
    x = norm(x) * w["head.0.weight"] + w["head.0.bias"]
    rows, out = iter(x @ w["head.1.weight"].T + w["head.1.bias"]), np.zeros_like(xt)
    for r in cuts:
        for k in cuts:
            out[:, r:r + patch, k:k + patch] = next(rows).reshape(-1, patch, patch)
    return out

@pytest.mark.parametrize("size, patch, channels, depth, num_heads", [(16, 4, 1, 2, 3), (28, 4, 3, 1, 1), (16, 16, 1, 1, 3), (12, 2, 3, 3, 2)])
def test_the_net_is_its_formula_token_by_token(pieces, size, patch, channels, depth, num_heads):
    net = awake(pieces.DiT(size, patch, channels, 5, 24, depth, num_heads))
    for number in net.head[0].parameters():
        nn.init.normal_(number)
    xt, t, y = torch.randn(3, channels, size, size).double(), torch.rand(3).double(), torch.tensor([0, 5, 2])
    out = net(xt, t, y).detach().numpy()
    for i in range(3):
        assert np.abs(out[i] - by_hand(net, xt[i].numpy(), t[i].item(), y[i], patch, num_heads)).max() < 1e-10
    assert torch.allclose(net.float()(xt.float(), 0.3, y), net(xt.float(), torch.full((3, 1, 1, 1), 0.3), y), atol=1e-5)

def test_new_blocks_are_the_identity_and_attention_reaches_all_pixels(pieces, run):
    net, xt = pieces.DiT(16, 4, 1, 10, 48, 4, 4), torch.randn(2, 1, 16, 16)
    before = net(xt, 0.5, torch.tensor([1, 2]))
    net.blocks = nn.ModuleList()
    assert torch.equal(net(xt, 0.1, torch.tensor([3, 0])), before)
    assert all(block.adaLN.abs().mean() > 0.01 for block in run.ns.net.blocks)

    def reach(net):
        x = torch.randn(1, 1, 16, 16).double().requires_grad_()
        net(x)[0, 0, 5, 6].backward()
        return (x.grad != 0).sum().item()
    dit = awake(pieces.DiT(16, 4, 1, 10, 24, 2, 3))
    for pixels in 256, 16:
        assert reach(lambda x: dit(x, torch.tensor(0.5).double(), torch.tensor([1]))) == pixels
        [nn.init.zeros_(block.out.weight) for block in dit.blocks]  # attention returns nothing
    assert reach(nn.Conv2d(1, 1, 3, padding=1).double()) == 9

class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.given = nn.Parameter(torch.zeros(())), []
    def forward(self, xt, t, y):
        self.given.append((xt, t, y))
        return self.value.expand(xt.shape)

def test_training_points_target_rate_labels_and_ten_lines(pieces, monkeypatch, capsys):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    net, images = Recorder(), torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 3, 8, 8)
    torch.manual_seed(3)
    pieces.train(net, images, torch.arange(1, 6), 250, 0.01, 64)
    text = capsys.readouterr().out
    assert np.allclose(rates, 0.01 * (1 - np.arange(250) / 250))
    assert re.findall(r"^iteration (\d+) of 250: loss", text, re.M) == [str(i) for i in range(0, 250, 25)]
    (xt, t, y), _ = net.given[0], torch.manual_seed(3)  # the first iteration, drawn again
    row, kept = torch.randint(5, [64]), torch.rand(64) > 0.1
    eps, x = torch.randn(64, 3, 8, 8), images[row]
    assert torch.equal(y, torch.where(kept, row + 1, 0)) and t.shape == (64, 1, 1, 1) and 0 <= t.min() and t.max() <= 1
    assert (xt - eps - t * (x - eps)).abs().max() < 1e-5
    assert abs((x - eps).square().mean() - float(re.search(r"loss (\S+)", text)[1])) < 1e-3
    assert abs(torch.cat([y == 0 for _, _, y in net.given]).float().mean() - 0.1) < 0.01

@pytest.mark.parametrize("dropped", [False, True])
def test_the_trained_net_is_near_the_exact_mean_velocity(run, images, dropped):
    """v = (E[x | xt, y] - xt) / (1 - t); the mean is a softmax over the images of the label, or over all 40 without one."""
    t, y = 0.5, ASKED.repeat(10)
    xt = t * images.repeat(10, 1, 1, 1) + (1 - t) * torch.randn(400, 1, 16, 16)
    log_p = -torch.cdist(xt.flatten(1), t * images.flatten(1)).square() / (2 * (1 - t) ** 2)
    if not dropped:
        log_p[y[:, None] != ASKED] = -torch.inf
    exact = ((log_p.softmax(1) @ images.flatten(1)).view_as(xt) - xt) / (1 - t)
    with torch.no_grad():
        assert (run.ns.net(xt, t, y * (not dropped)) - exact).square().mean() < 0.2 * exact.square().mean()

def test_guidance_is_linear_in_w_and_sampling_is_euler_and_ddim(pieces):
    for w in (0, 1, 2.5):
        guided = pieces.sample(lambda xt, t, y: xt * (t + 0.5) + y.view(-1, 1, 1, 1), torch.ones(2, 1, 1, 1), torch.tensor([1, 3]), 1, w)
        assert guided.flatten().tolist() == [1.5 + w, 1.5 + 3 * w]
    x, noise, seen = torch.randn(1, 1, 8, 8).double(), torch.randn(5, 1, 8, 8).double(), []
    ends = pieces.sample(lambda xt, t, y: seen.append(t) or (x - xt) / (1 - t), noise, torch.zeros(5), 7)
    assert (ends - x).abs().max() < 1e-6 and np.allclose(seen, np.arange(7).repeat(2) / 7)
    xt = noise
    for i in range(7):  # for v = xt, x_hat and eps_hat give xt at the next t
        x_hat, eps_hat = xt + (1 - i / 7) * xt, xt - i / 7 * xt
        xt = (i + 1) / 7 * x_hat + (1 - (i + 1) / 7) * eps_hat
    assert (pieces.sample(lambda xt, t, y: xt, noise, torch.zeros(5), 7) - xt).abs().max() < 1e-12

def gaps(samples, images):
    return np.array([[np.linalg.norm(a - b) for b in images.double().numpy()] for a in samples.double().numpy()])

def guided_euler(net, xt, y, w, steps=20):
    with torch.no_grad():
        for i in range(steps):
            xt = xt + ((1 - w) * net(xt, i / steps, 0 * y) + w * net(xt, i / steps, y)) / steps
    return xt

def test_claims_by_brute_force_digits_progress_and_page(run, images):
    assert run.claims() == {"C1": True, "C2": True} and not list(run.folder.glob("*.pt")) and plt.imread(run.folder / f"{NAME}.png")[..., :3].std() > 0.05
    assert re.findall(r"^iteration (\d+) of 800", run.text, re.M) == [str(i) for i in range(0, 800, 80)] * 2
    assert torch.equal(run.ns.images.cpu(), images) and torch.equal(run.ns.labels.cpu(), ASKED) and len(images.flatten(1).unique(dim=0)) == 40
    assert images[:, 0, 0, 0].min() == 1 and images.flatten(1).amin(1).max() < 0  # paper is 1, ink is black
    page_agrees(NAME, run)
    assert torch.equal(run.ns.y, ASKED) and run.ns.noise.shape == (40, 1, 16, 16) and abs(run.ns.noise.std() - 1) < 0.05
    gap, one = (gaps(guided_euler(net, run.ns.noise, ASKED, 2), images) for net in (run.ns.net, run.ns.one_token))
    (share, _), (factor, _) = run.numbers().values()
    assert share == (ASKED[gap.argmin(1)] == ASKED).float().mean() and abs(factor / (one.min(1).mean() / gap.min(1).mean()) - 1) < 2e-3
    assert gap.min(1).mean() < 5.19  # half the mean distance of two images
    assert run.ns.one_token.position.shape == (1, 48) and run.ns.net.position.shape == (16, 48)

def test_rows_show_training_images_noise_means_and_samples(run, images):
    for w in (1, 0, 2):
        run.ns.slider.set_val(w)
        shown, = [torch.tensor(np.asarray(image.get_array())) * 2 - 1 for image in run.ns.ax.get_images()]
        samples = [guided_euler(run.ns.one_token if i == 3 else run.ns.net, run.ns.noise, ASKED, (0, 1, w, w)[i], (1, 1, 20, 20)[i]) for i in range(4)]
        for row, drawn in zip(shown.view(6, 18, 10, 18).transpose(1, 2), [images, run.ns.noise, *samples], strict=True):
            assert (row - nn.functional.pad(drawn[:10, 0].clamp(-1, 1), [1] * 4, value=1)).abs().max() < 2e-3  # white frames
        right = (ASKED[gaps(samples[2], images).argmin(1)] == ASKED).float().mean()
        assert right > 0.8 if w else right < 0.5
    means = [images.mean(0), images.view(4, 10, 1, 16, 16).mean(0).repeat(4, 1, 1, 1)]  # of all, of each digit
    assert all((row - mean).square().mean() < 0.03 for row, mean in zip(samples, means))
    said = [label.get_text() for label in run.ns.ax.get_yticklabels()]
    assert said == ["training data", "noise, 256 numbers", "1 step, no label", "1 step, label", "20 steps, 16 tokens of 48", "the same, 1 token"] and (run.ns.ax.get_yticks() == range(6)).all()

def test_both_nets_train_at_the_same_rates(lesson, monkeypatch):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    lesson(NAME, "--iters", "4", "--seed", "7")
    assert np.allclose(rates, 2 * [0.015, 0.01125, 0.0075, 0.00375])

def test_breaks_and_same_seed_same_numbers(lesson, first_loss, limits):
    limits(NAME)
    assert lesson(NAME, "--dim", "8").claims() == {"C1": False, "C2": False}
    a, b = lesson(NAME, "--iters", "12"), lesson(NAME, "--iters", "12", "--seed", "0")
    assert a.text == b.text and first_loss(NAME, "--iters", "12", "--seed", "4294967295") not in a.text

@pytest.mark.parametrize("mode, name", [("RGB", "a.png"), ("RGBA", "a.PNG"), ("L", "a.png"), ("LA", "a.png"), ("P", "a.png"), ("L", "a.JPEG"), ("RGB", "a.jpg")])
@pytest.mark.parametrize("height, width", [(32, 64), (48, 32)])
def test_images_are_resized_and_put_on_white(pieces, tmp_path, mode, name, height, width):
    levels = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 4)).repeat(4, 0).repeat(4, 1)
    image, jpg = Image.fromarray(levels.astype("uint8")).convert(mode), "j" in name.lower()
    image.save(tmp_path / name, **({"quality": 100, "subsampling": 0} if jpg else {}))
    rgba = np.asarray(image.convert("RGBA")) / 255
    on_white = rgba[..., 3:] * rgba[..., :3] + 1 - rgba[..., 3:]
    expected = on_white.reshape(8, height // 8, 8, width // 8, 3).mean((1, 3)).transpose(2, 0, 1) * 2 - 1
    assert np.abs(pieces.load_image(tmp_path / name, 8).numpy() - expected).max() < (0.05 if jpg else 0.01)

def test_own_folder_has_a_class_for_each_subfolder_or_one_and_its_weights_load_by_the_page(lesson, tmp_path):
    for k in range(10):
        (tmp_path / "ab"[k // 5]).mkdir(exist_ok=True)
        Image.new("RGB", (20 + 9 * k, 31), ["red", "blue"][k // 5]).save(tmp_path / "ab"[k // 5] / f"{k}.PNG")
    run = lesson(NAME, "--data", str(tmp_path), "--size", "16", "--iters", "20")
    assert run.claims() == {} and run.ns.labels.tolist() == [1] * 5 + [2] * 5 and run.ns.images.shape == (10, 3, 16, 16)
    assert torch.equal(run.ns.images[9].cpu().mean((1, 2)), torch.tensor([-1.0, -1, 1])) and run.ns.y.tolist() == [1, 2] * 20
    assert list(run.ns.config.values()) == [16, 4, 3, 2, 128, 4] and run.ns.lr == 0.004
    shown = np.asarray(run.ns.ax.get_images()[0].get_array())
    assert shown.shape == (108, 180, 3) and np.array_equal(shown[1, 1::18], [[1, 0, 0], [0, 0, 1]] * 5)  # the first of each class
    torch.save((run.ns.noise, run.ns.y), tmp_path / "given.pt")
    code = f"""import sys, torch; sys.path.insert(0, {str(ROOT / "tests")!r}); from conftest import paste
globals().update(vars(paste("{NAME}", "DiT", "sample")))
{re.search(r"```.(config, weights = torch.load[^`]+)```", README, re.S)[1]}
assert images.shape == noise.shape == (10, 3, 16, 16)
torch.save(sample(net, *torch.load(sys.argv[1] + "/given.pt"), 20, 2), sys.argv[1] + "/samples.pt")"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=run.folder, check=True)
    assert (torch.load(tmp_path / "samples.pt") - guided_euler(run.ns.net, run.ns.noise, run.ns.y, 2)).abs().max() < 1e-3
    one = lesson(NAME, "--data", str(tmp_path / "a"), "--iters", "4", "--dim", "8")
    assert list(one.ns.config.values()) == [28, 4, 3, 1, 8, 4] and one.ns.labels.tolist() == [1] * 5

def test_each_bad_folder_and_flag_gets_one_line_that_names_it(refused, tmp_path):
    for folder in ("text", "torn"):
        (tmp_path / folder / "a").mkdir(parents=True)
        Image.new("L", (9, 9)).save(tmp_path / folder / "a" / "0.png")
    (tmp_path / "text/a/notes.txt").write_text("hello")
    (tmp_path / "torn/a/1.png").write_text("nothing")
    (tmp_path / "bare").mkdir()
    for folder, named in {"none": "none", "bare": "bare", "text": "notes.txt", "torn": "1.png"}.items():
        said = refused(NAME, "--data", str(tmp_path / folder))
        assert named in said and "png or jpg" in said, said
    for flags in (("--w", "-1"), ("--w", "9"), ("--iters", "0"), ("--seed", "-1"), ("--size", "30"), ("--dim", "9")):
        assert flags[0] in refused(NAME, *flags)

README = (ROOT / "README.md").read_text(encoding="utf-8")
OLD = ["xt = t * x + (1 - t) * eps", "loss = nn.functional.mse_loss(net(xt, t, y), x - eps)", "xt = xt + (null + w * (cond - null)) / num_steps"]
DDPM = re.search(r"```\n(xt = .*)\n(loss = .*)\n\n(eps_hat[^`]+)```", README).groups()  # the page's answer: three lines, and what takes their place
NEW = {"flow": OLD, "x": [OLD[0], OLD[1].replace("x - eps", "x"), "xt = xt + (cond - xt) / (1 - t) / num_steps"],
       "ddpm": [*DDPM[:2], DDPM[2].strip().replace("\n", "\n        ")]}

@pytest.fixture  # of 40 samples from the nearest image of their digit, root mean square
def distance(images):
    def measure(target="flow", patch=4, depth=2, lr=0.015, iters=300, gate=0):
        changes = [*zip(OLD, NEW[target]), *[(f"x + gate{i}", f"x + ({gate} + gate{i})") for i in (1, 2)]]  # the value at which gates start
        changed = paste(NAME, "Block", "DiT", "train", "sample", changes=changes)
        torch.manual_seed(0)
        net = changed.DiT(16, patch, 1, 10, 48, depth, 4)
        changed.train(net, images, ASKED, iters, lr)
        samples = changed.sample(net, torch.randn(40, 1, 16, 16), ASKED, 20)
        apart = (samples - images.view(4, 10, 1, 16, 16)[:, ASKED - 1]).square().mean((2, 3, 4)).sqrt()  # (4, 40)
        return apart.amin(0).mean().item()
    return measure

def test_the_pages_ddpm_ends_at_the_only_image_if_eps_is_exact():
    x, noise = torch.rand(1, 8, 8) * 2 - 1, torch.randn(5, 1, 8, 8)
    sample = paste(NAME, "sample", changes=zip(OLD, NEW["ddpm"])).sample
    assert (sample(lambda xt, t, y: (xt - t * x) / (1 - t**2).sqrt(), noise, torch.zeros(5), 7) - x).abs().max() < 1e-4

def test_objectives_nets_an_mlp_that_predicts_the_image_and_gates(distance):
    table = {(target, patch): distance(target, patch) for target, patch in [("ddpm", 4), ("flow", 4), ("ddpm", 16), ("flow", 16), ("x", 16)]}
    assert max(table["ddpm", 4], table["flow", 4]) < 0.5 and min(table["ddpm", 16], table["flow", 16]) > 0.75
    assert table["x", 16] < table["flow", 4]
    zero, one = (distance(depth=6, iters=150, gate=gate, lr=0.02) for gate in (0, 1))
    assert zero < 0.6 and one > 0.8
