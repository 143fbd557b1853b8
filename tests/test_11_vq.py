"""Lesson 11: its codes, copied slope, grid, pictures and widgets, by autograd, textbook updates and plain numpy."""
import math
import re
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib import cbook
from matplotlib.colors import to_hex

NAME = "11_vq"


def error(z, codes):
    """Mean squared distance to the nearest code, by differences rather than by cdist."""
    return torch.cat([((part[:, None] - codes) ** 2).sum(2).min(1).values for part in z.double().split(500)]).mean().item()


def trained(ns, K, cure, start="far", n_iters=1000, seed=5):
    torch.manual_seed(seed)
    return ns.train_codes(ns.far[:K, :2] if start == "far" else ns.dots[:K], ns.dots, n_iters, cure)


def lloyd(z, codes, n_iters):
    """k-means in numpy."""
    z, codes = z.double().numpy(), codes.double().numpy().copy()
    for _ in range(n_iters):
        k = ((z[:, None] - codes) ** 2).sum(2).argmin(1)
        for j in set(k.tolist()):
            codes[j] = z[k == j].mean(0)
    return codes


@pytest.fixture(scope="module")
def ns(lesson):
    return lesson(NAME).ns


def test_default_run(lesson):
    run = lesson(NAME)
    assert run.claims() == {f"C{i}": True for i in range(1, 9)}
    image = plt.imread(run.folder / "11_vq.png")
    assert image.shape[0] > 400 and image[..., :3].std() > 0.05
    assert sum(" dB, rough " in line for line in run.text.splitlines()) == 5


def test_moons(ns):
    """Density: 64 equal Gaussians on two half circles, std .09 before the scaling."""
    th = (np.arange(32) + 0.5) * np.pi / 32
    centres = np.concatenate([np.stack([np.cos(th), np.sin(th)], 1), np.stack([1 - np.cos(th), 0.5 - np.sin(th)], 1)])
    raw = ns.dots.double().numpy() * 0.65 + [0.5, 0.25]
    gap = ((raw[:, None] - centres) ** 2).sum(2)
    assert 0.8 * 2 * 0.09**2 > gap.min(1).mean() > 0.3 * 2 * 0.09**2  # nearest centre: less than its own
    count = np.bincount(gap.argmin(1), minlength=64)
    assert count.min() > 60 and count.max() < 220
    assert np.abs(ns.dots.mean(0).numpy()).max() < 0.05 and abs(ns.dots.var(0).mean() - 1.2) < 0.1


def test_plain_step_is_gradient_descent(ns):
    torch.manual_seed(0)
    z, codes = torch.randn(300, 3), torch.randn(20, 3).requires_grad_()
    loss = torch.stack([((v - codes) ** 2).sum(1).min() for v in z]).mean()
    slope = torch.autograd.grad(loss, codes)[0]
    after = codes.detach().clone()
    ns.learn(after, torch.ones(20), z, "none")
    assert (after - (codes - 0.5 * slope)).abs().max() < 1e-5


def test_ema_is_a_running_mean(ns):
    """The update of the paper: count and total decay, code = total / count."""
    torch.manual_seed(1)
    start = torch.randn(12, 2)
    codes, count = start.clone(), torch.ones(12)
    n, total = torch.ones(12).double(), start.double().clone()
    for _ in range(150):
        z = torch.randn(64, 2)
        k = ns.nearest(z, codes)
        ns.learn(codes, count, z, "EMA")
        for j in range(12):
            n[j] = 0.98 * n[j] + 0.02 * (k == j).sum()
            total[j] = 0.98 * total[j] + 0.02 * z[k == j].double().sum(0)
        assert (codes - total / n[:, None]).abs().max() < 1e-4
    assert (count - n).abs().max() < 1e-4 and (codes - start).abs().max() > 0.3


def test_memory_0_is_k_means(ns):
    z, first = ns.dots[:2000], ns.dots[2000:2030]
    codes = ns.train_codes(first, z, 12, "EMA", memory=0)
    assert np.abs(codes.numpy() - lloyd(z, first, 12)).max() < 1e-3
    assert torch.equal(first, ns.dots[2000:2030])  # the start is not written to


def test_reset_moves_dead_codes_only(ns):
    torch.manual_seed(2)
    z = torch.randn(400, 2)
    codes = torch.cat([torch.randn(10, 2), 50 + torch.randn(6, 2)])
    count = torch.cat([torch.full((10,), 30.0), torch.full((6,), 0.5)])  # share is 25: dead below 2.5
    plain, plain_count, both, both_count = codes.clone(), count.clone(), codes.clone(), count.clone()
    ns.learn(plain, plain_count, z, "EMA")
    ns.learn(both, both_count, z, "EMA + reset")
    assert torch.equal(plain[:10], both[:10]) and torch.equal(plain[10:], codes[10:])
    assert all((v == z).all(1).any() for v in both[10:]) and (both_count[10:] == 25).all()
    assert (both_count[:10] < 31).all() and torch.equal(both_count[:10], plain_count[:10])


def test_perplexity(ns):
    torch.manual_seed(3)
    k = torch.randint(40, (5000,)) * torch.randint(2, (5000,))
    share = [n / 5000 for n in Counter(k.tolist()).values()]
    assert abs(ns.perplexity(k) - math.exp(-sum(p * math.log(p) for p in share))) < 1e-3
    assert abs(ns.perplexity(torch.zeros(9, dtype=torch.long)) - 1) < 1e-6
    assert abs(ns.perplexity(torch.arange(64)) - 64) < 1e-3


@pytest.mark.parametrize("cure", ["none", "EMA"])
def test_far_codes_collapse(ns, cure):
    codes, seen = trained(ns, 64, cure), ns.nearest(ns.dots, trained(ns, 64, cure))
    assert ns.perplexity(seen) < 8 and len(seen.unique()) < 10
    assert error(ns.dots, codes) > 10 * error(ns.dots, trained(ns, 64, "EMA", "data"))


def test_cures(ns):
    best = min(error(ns.dots, ns.train_codes(ns.dots[i : i + 64], ns.dots, 40, "EMA", memory=0)) for i in (0, 64, 128))
    for cure, start in [("reset", "far"), ("EMA + reset", "far"), ("none", "data"), ("EMA", "data")]:
        codes = trained(ns, 64, cure, start)
        assert 0.93 < error(ns.dots, codes) / best < 1.3
        assert ns.perplexity(ns.nearest(ns.dots, codes)) > 54


def test_straight_through_by_hooks(ns):
    """What reaches q in the decoder is what arrives at z; q itself, a constant to autograd, gets nothing."""
    torch.manual_seed(4)
    z, codes = torch.randn(50, 8, dtype=torch.float64, requires_grad=True), torch.randn(256, 8, dtype=torch.float64, requires_grad=True)
    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.SiLU(), torch.nn.Linear(32, 16)).double()
    q, caught = codes[ns.nearest(z.detach(), codes.detach())], {}
    out = ns.straight_through(z, q, True)
    z.register_hook(lambda g: caught.update(z=g.clone()))
    out.register_hook(lambda g: caught.update(q=g.clone()))
    net(out).sin().sum().backward()
    leaf = q.detach().requires_grad_()
    alone = torch.autograd.grad(net(leaf).sin().sum(), leaf)[0]  # the decoder by itself, at q
    assert (out - q).abs().max() < 1e-14 and torch.equal(caught["z"], caught["q"])
    assert (caught["z"] - alone).abs().max() < 1e-10 < alone.abs().max() and codes.grad is None
    assert ns.straight_through(z, q, False) is q


def test_grid_is_rounding(ns):
    """FSQ: the nearest of the 240 codes is each number rounded to its own 8, 6, 5 levels."""
    torch.manual_seed(6)
    z = torch.randn(5000, 3).tanh()
    half = (torch.tensor([8, 6, 5]) - 1) / 2
    want = ((z + 1) * half).round() / half - 1
    assert len(ns.grid.unique(dim=0)) == 240
    assert ((ns.grid[ns.nearest(z, ns.grid)] - want).abs().max(1).values < 1e-5).float().mean() > 0.999  # but for ties
    assert ns.encode(ns.patch).abs().max() <= 1


def test_slope_of_the_choice_is_0_and_the_copied_one_leads_down(ns):
    with torch.no_grad():
        before = ns.lost(ns.start)
        tiny = [abs(ns.lost(ns.start + 1e-5 * torch.randn_like(ns.start)) - before) / before for _ in range(5)]
        assert max(tiny) < 2e-3  # next to no code changes
        changed = (ns.nearest(ns.start - ns.step, ns.grid) != ns.nearest(ns.start, ns.grid)).float().mean()
        assert changed > 0.6  # the step goes over borders
        down, up = ns.lost(ns.start - ns.step) / before, ns.lost(ns.start + ns.step) / before
        aside = torch.nn.functional.normalize(torch.randn_like(ns.step)) * ns.step.norm(dim=1, keepdim=True)
        assert down < 0.3 and up > 1 and ns.lost(ns.start + aside) / before > 0.7
        table = ns.decode(ns.grid)
        best = torch.stack([((v - table) ** 2).sum(1).min() for v in ns.x]).sum()
        assert best < ns.lost(ns.start - ns.step)


def test_pictures(ns):
    """Photograph, decibels and sharpness in numpy, from the pixels."""
    photo = plt.imread(cbook.get_sample_data("grace_hopper.jpg", False)).astype(float).mean(2) / 255 - 0.5

    def pixels(p):
        return p.detach().double().numpy().reshape(150, 128, 4, 4).transpose(0, 2, 1, 3).reshape(600, 512)

    def steps(image):
        across = np.abs(np.diff(image, axis=1))
        return across[:, [i for i in range(511) if i % 4 != 3]].mean()  # not from patch to patch

    assert np.abs(pixels(ns.patch) - photo).max() < 1e-6
    for p, db, sharp in [(ns.drawn, ns.vq, ns.dull), (ns.judged, ns.gan, ns.keen)]:
        assert abs(10 * math.log10(1 / ((pixels(p) - photo) ** 2).mean()) - db) < 1e-3
        assert abs(steps(pixels(p)) / steps(photo) - sharp) < 1e-4
        assert 100 < len(p.unique(dim=0)) <= 256  # each patch is one of 256
    four = ns.square[5 * 64 + 7].view(4, 4, 4).double().numpy() - [[[0]]]
    want = photo[40:48, 56:64].reshape(2, 4, 2, 4).transpose(0, 2, 1, 3).reshape(4, 4, 4)
    assert np.abs(four - want).max() < 1e-6
    shown = ns.right.images[0].get_array()
    for i, p in enumerate((ns.patch, ns.drawn, ns.judged)):
        assert np.abs(shown[:, 144 * i : 144 * i + 144] - pixels(p)[40:248, 168:312]).max() < 1e-6


def test_order_of_the_pictures(ns):
    """No dictionary of 256 patches is far above k-means; the judge sharpens and pays for it."""
    assert ns.kmeans + 0.3 > ns.vq > ns.gan and ns.vq > ns.fsq > ns.blind + 3 and ns.vq - ns.gan < 2.5
    codes = ns.codes.double()
    assert abs(-10 * math.log10(error(ns.patch, codes) / 16) - ns.kmeans) < 1e-3 and len(codes) == 256
    counts = torch.bincount(ns.k, minlength=240)
    assert (counts > 0).sum() > 150 and ns.perplexity(ns.k) < 60  # most in use, far from evenly


def state(ns):
    return ns.left.get_title(), to_hex(ns.left.lines[1].get_color()), ns.left.lines[1].get_xydata().copy()


def numbers(ns):
    return [float(v) for v in re.findall(r"\d+\.\d+", ns.left.get_title())]  # perplexity, error, k-means


def test_widgets(ns):
    before = state(ns)
    assert before[1] == to_hex("tab:blue") and len(before[2]) == 64
    assert abs(error(ns.dots, torch.tensor(before[2])) - numbers(ns)[1]) < 1e-4
    try:
        ns.steps.set_val(0)
        assert numbers(ns)[0] < 10 and state(ns)[1] == to_hex("tab:red") and np.abs(state(ns)[2] - 2).max() < 0.6
        ns.steps.set_val(300)
        middle = numbers(ns)
        ns.steps.set_val(1000)
        assert middle[1] > numbers(ns)[1] * 0.95 and state(ns)[0] == before[0]
        for cure in ("none", "EMA"):
            ns.cures.set_active(ns.CURES.index(cure))
            assert numbers(ns)[0] < 10 and state(ns)[1] == to_hex("tab:red")
        ns.starts.set_active(1)  # at the data
        assert numbers(ns)[0] > 54 and state(ns)[1] == to_hex("tab:blue")
        ns.starts.set_active(0)
        ns.cures.set_active(2)
        assert numbers(ns)[0] > 54 and state(ns)[1] == to_hex("tab:blue")
        ns.size.set_val(1000)  # too many for the plain gradient: a 1000th of it for each
        assert len(state(ns)[2]) == 1000 and state(ns)[1] == to_hex("tab:red") and numbers(ns)[1] > 1.4 * numbers(ns)[2]
        ns.cures.set_active(3)
        assert numbers(ns)[1] < 1.4 * numbers(ns)[2] and state(ns)[1] == to_hex("tab:blue")
        ns.size.set_val(16)
        assert numbers(ns)[0] < 16 and numbers(ns)[1] > 2 * float(before[0].split("error ")[1].split()[0])
    finally:
        ns.size.set_val(64)
        ns.steps.set_val(1000)
        ns.starts.set_active(0)
        ns.cures.set_active(3)
    after = state(ns)
    assert after[:2] == before[:2] and np.array_equal(after[2], before[2])


def test_break_cure(lesson):
    run = lesson(NAME, "--cure", "none", "--iters", "600")
    assert {c for c, ok in run.claims().items() if not ok} == {"C2", "C6"}
    assert to_hex(run.ns.right.title.get_color()) == to_hex("tab:red") == state(run.ns)[1]
    assert len(run.ns.drawn.unique(dim=0)) < 10


def test_break_straight_through(lesson):
    run = lesson(NAME, "--no-straight-through", "--iters", "600")
    assert {c for c, ok in run.claims().items() if not ok} == {"C4", "C5", "C6", "C7"}
    assert to_hex(run.ns.right.title.get_color()) == to_hex("tab:red") and run.ns.step.abs().max() == 0


def test_refused(refused):
    for flags in [("--cure", "all"), ("--iters", "0"), ("--iters", "1.5"), ("--iters", "nan"), ("--seed", "-1"),
                  ("--seed", "9999999999"), ("--out", "/nonexistent/x.png"), ("--out", "x.xyz")]:
        refused(NAME, *flags)
