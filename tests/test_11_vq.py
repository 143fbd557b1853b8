"""Lesson 11: quantizers by other roads, k-means, the first training step by hand, collapse, figure, sliders, break."""
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste
from matplotlib import cbook
from matplotlib.colors import to_hex
from torch import nn

NAME = "11_vq"
piece = paste(NAME, "nearest", "update_codebook", "straight_through", "fsq", "train", "measure")
photo = plt.imread(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))[100:260, 180:340, 1] / 255 - 0.5
ROWS = np.stack([photo[r:r + 4, c:c + 4].reshape(16) for r in range(0, 160, 4) for c in range(0, 160, 4)])
x = torch.tensor(ROWS).float()


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


@pytest.fixture(scope="module")
def ns(run):
    return run.ns


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def lattice(levels, dim):
    """All points of a grid from -1 to 1, (levels ** dim, dim), the last number fastest, by counting."""
    return torch.tensor([[2 * (k // levels**i % levels) / (levels - 1) - 1 for i in reversed(range(dim))] for k in range(levels**dim)])


def start_of(seed):  # the first codebook of a run
    return 2 + 0.2 * torch.randn(49, 2, generator=torch.Generator().manual_seed(seed))


def test_nearest_is_the_brute_force_argmin():
    z, codebook = double(200, 3), double(20, 3, seed=1)
    assert piece.nearest(z, codebook).tolist() == [min(range(20), key=lambda k: (row - codebook[k]).norm()) for row in z]


def test_the_gradient_at_z_is_the_gradient_at_q():
    """d sin(q) / dq = cos(q) arrives at z, q itself gets nothing, and the value is q."""
    z, q = double(3, 4, 8).requires_grad_(), double(3, 4, 8, seed=1).requires_grad_()
    at_z, at_q = torch.autograd.grad(piece.straight_through(z, q).sin().sum(), (z, q), allow_unused=True)
    assert (piece.straight_through(z, q) - q).abs().max() < 1e-12 and (at_z - q.cos()).abs().max() < 1e-10 and at_q is None


def test_z_moves_until_the_next_entry_is_nearest_as_in_the_comment():
    z, path = torch.tensor([[0.2]], requires_grad=True), []
    for _ in range(3):
        q = piece.nearest(z, torch.tensor([[0.0], [1.0]]))[:, None].float()  # entries 0 and 1
        grad, = torch.autograd.grad((piece.straight_through(z, q) - 1).square().sum(), z)
        path.append((round(z.item(), 4), q.item(), grad.item()))
        z = (z - 0.1 * grad).detach().requires_grad_()
    assert path == [(0.2, 0, -2), (0.4, 0, -2), (0.6, 1, 0)]


@pytest.mark.parametrize("levels, dim", [(7, 2), (2, 5), (4, 3), (9, 1)])
def test_fsq_is_the_nearest_point_of_a_grid(levels, dim):
    grid, z = lattice(levels, dim).double(), double(3000, dim)  # a third of all numbers lie outside -1 to 1
    q = piece.fsq(z, levels)
    assert (q - grid[piece.nearest(z, grid)]).abs().max() < 1e-6 and (q - z.clip(-1, 1)).abs().max() <= 1 / (levels - 1) + 1e-6
    assert (piece.fsq(grid, levels) - grid).abs().max() < 1e-6  # none is out of reach


def test_entries_move_to_the_mean_of_their_z_and_unused_ones_restart():
    codebook = torch.cat([torch.tensor([[0.0, 0], [5, 0], [0, 5]]), 99 + torch.rand(5000, 2)]).double()
    z = codebook[:3].repeat(4, 1)[:10] + double(10, 2).tanh()
    mine = torch.stack([0.7 * codebook[k] + 0.3 * sum(z[k::3]) / len(z[k::3]) for k in range(3)])
    stay, moved = (piece.update_codebook(codebook, z, restart, decay=0.7) for restart in (False, True))
    assert (stay[:3] - mine).abs().max() < 1e-12 and (moved[:3] - mine).abs().max() < 1e-12 and torch.equal(stay[3:], codebook[3:])
    same = (moved[3:, None] == z).all(2)  # each z alike: 500 times
    assert (same.sum(1) == 1).all() and 400 < same.sum(0).min() and same.sum(0).max() < 600


def test_with_decay_0_and_all_data_a_step_is_one_of_k_means():
    z = torch.cat([double(200, 2), 5 + double(100, 2, seed=1)])
    codebook, centers, rows = z[:30], z[:30].numpy().copy(), z.numpy()
    for _ in range(10):
        codebook = piece.update_codebook(codebook, z, False, decay=0)
        tokens = ((rows[:, None] - centers) ** 2).sum(2).argmin(1)
        centers = np.stack([rows[tokens == k].mean(0) if (tokens == k).any() else centers[k] for k in range(30)])
    assert np.abs(codebook.numpy() - centers).max() < 1e-10


@pytest.mark.parametrize("quantizer, straight", [("vq", True), ("vq", False), ("fsq", True), ("fsq", False)])
def test_the_first_step_by_hand(quantizer, straight, capsys):
    """Adam's first step is lr times the sign of the gradient, which is put together here from those at q and at z."""
    codebook = 0.3 * torch.randn(27, 3) if quantizer == "vq" else lattice(3, 3)
    old, new = (piece.train(x[:300], quantizer, codebook, straight=straight, iters=1, seed=1, levels=3, lr=lr, width=20)
                for lr in (0, 0.02))
    z = old.encode(x[:300])
    q = codebook[torch.cdist(z, codebook).argmin(1)].requires_grad_()
    reconstruction = (old.decode(q) - x[:300]).square().mean()
    reconstruction.backward()
    commitment = 0.25 * (z - q.detach()).square().sum() / 900 if quantizer == "vq" else 0 * z.sum()
    z.backward(q.grad * straight + torch.autograd.grad(commitment, z)[0])
    for a, b in zip(old.parameters(), new.parameters()):
        step = -0.02 * a.grad / (a.grad.abs() + 1e-8)
        assert (b - a - step).abs().max() < 2e-3 and (b - a).abs().max() < 0.0201
    assert abs(float(re.search(r"loss (\S+)", capsys.readouterr().out)[1]) - (reconstruction + commitment).item()) < 6e-5
    moved = piece.update_codebook(codebook, z.detach(), False)
    assert (new.codebook - (moved if quantizer == "vq" else codebook)).abs().max() < 1e-6 and torch.equal(new.state_dict()["codebook"], new.codebook)


@pytest.mark.parametrize("quantizer, codebook", [("rvq", lattice(7, 2)), ("fsq", lattice(3, 2)), ("fsq", 0.9 * lattice(7, 2)), ("fsq", lattice(49, 2)[:49])])
def test_other_quantizers_and_fsq_without_its_grid_are_refused(quantizer, codebook):
    with pytest.raises(AssertionError, match="use vq, or fsq with its grid"):
        piece.train(x[:20], quantizer, codebook)


def test_all_z_start_close_together_and_choose_few_far_entries_for_ever():
    """Spread of z before training: 0.01 to 0.13. Of 49 entries around (2, 2), one to four are ever chosen."""
    for seed in range(3):
        codebook, chosen = start_of(seed), []
        for iters, lr in ((1, 0), (1, 0.02), (5, 0.02), (30, 0.02)):
            net = piece.train(x, "vq", codebook, iters=iters, seed=seed, lr=lr)
            z = piece.measure(net, x)[0]  # with lr 0, what it was before training
            assert lr or z.std(0).max() < 0.2
            chosen.append(set(piece.nearest(z, net.codebook if lr else codebook).tolist()))
        assert len(chosen[0]) < 6 and set.union(*chosen) <= chosen[0] | chosen[1]
        untouched = sorted(set(range(49)) - set.union(*chosen))
        assert torch.equal(net.codebook[untouched], codebook[untouched])


def nets_of(ns):
    """The four nets of a run; the first one has no name there, so it is trained again."""
    return piece.train(x, "vq", start_of(0)), ns.second_vq, ns.fsq_net, ns.without


def part(patches):  # the image that patches make
    return np.block([[patches[40 * r + c].reshape(4, 4) for c in range(40)] for r in range(40)])


def test_claims_figure_and_page(run):
    assert re.findall(r"^(\w+), iteration (\d+) of 300: loss 0\.", run.text, re.M) == [(q, i) for q in ("vq", "vq", "fsq", "fsq") for i in ("0", "100", "200")]
    assert run.claims() == {"C1": True, "C2": True, "C3": True} and plt.imread(run.folder / f"{NAME}.png")[..., :3].std() > 0.05
    page_agrees(NAME, run)


def test_claims_titles_and_images_are_what_the_nets_draw_from_tokens(run, ns):
    gray, errors, numbers = 1 - ROWS.mean(1).var() / ROWS.var(), [], run.numbers()  # by the law of total variance
    for column, net in enumerate(nets_of(ns), 1):
        with torch.no_grad():
            z = net.encode(x).double().numpy()
            tokens = ((z[:, None] - net.codebook.double().numpy()) ** 2).sum(2).argmin(1)
            drawn = net.decode(net.codebook[tokens]).numpy()
        errors.append(((drawn.astype(float) - ROWS) ** 2).mean() / ROWS.var())
        top, bottom = ns.axes[:, column]
        assert top.get_title().endswith(f"\n{len(set(tokens.tolist()))} of 49 in use") and bottom.get_title() == f"error {errors[-1]:.3f}"
        assert np.abs(bottom.images[-1].get_array() - part(drawn)).max() < 1e-4 and top.get_xlabel() == f"boxed patch: token {tokens[752]}"
        dots, crosses, entries, boxed = (line.get_xydata() for line in top.lines)
        assert np.abs(dots - z).max() < 1e-4 and np.abs(crosses - net.codebook.numpy()).max() < 1e-6 and top.get_aspect() == 1
        assert np.abs(entries - net.codebook.numpy()[tokens]).max() < 1e-6 and np.abs(boxed - [z[752], entries[752]]).max() < 1e-4
        assert to_hex(top.lines[2].get_color()) == to_hex("C3" if errors[-1] > gray else "C0") and top.lines[2].get_marker() == "."
    for ax in ns.axes[1]:  # the box is around the patch that is followed
        across, down = ax.lines[-1].get_xydata()[0].astype(int)
        assert np.abs(part(ROWS)[down - 1:down + 3, across - 1:across + 3].ravel() - ROWS[752]).max() == 0 and ax.lines[-1].get_markerfacecolor() == "none"
    assert np.abs(ns.axes[1, 0].images[0].get_array() - part(ROWS)).max() < 1e-6 and np.abs(part(ROWS) - photo).max() == 0
    key, marks = ns.axes[0, 0].get_legend(), [line.get_marker() for line in ns.axes[0, 3].lines]
    assert f"red: above {gray:.3f}," in key.get_title().get_text() and [text.get_text() for text in key.get_texts()] == ["z of a patch", "unused entry", "entry in use", "boxed patch"] and marks == [*".+.s"]
    printed = np.array([*numbers["C1"], *numbers["C2"], *numbers["C3"]])
    assert np.abs(printed / [errors[1], gray, errors[2], gray, errors[3], gray] - 1).max() < 1e-3
    assert errors[0] > 0.5 and errors[3] > 0.2  # both are red


def test_slider_leads_from_collapse_to_use_and_back(ns):
    def state():
        return ns.axes[0, 1].get_title(), ns.axes[1, 1].get_title(), to_hex(ns.axes[0, 1].lines[2].get_color())
    others = [ax.get_title() for ax in ns.axes[:, 2:].flat]
    before = state()
    assert "\n1 of 49" in before[0] and before[2] == to_hex("C3")
    ns.start.set_val(0)
    assert int(re.search(r"\n(\d+) of 49", state()[0])[1]) > 30 and state()[2] == to_hex("C0")
    ns.start.set_val(2)
    assert state() == before and others == [ax.get_title() for ax in ns.axes[:, 2:].flat] and len(ns.axes[1, 1].images) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [9300, 9301, 9302])
def test_a_discriminator_makes_images_rougher_and_easier_to_tell_from_real_ones(seed):
    """FSQ, trained on with and without the page's two lines. A second discriminator, trained afresh, tells how real blocks of 8 x 8 are."""
    def blocks(patches):  # (1600, 16) to (400, 64)
        return nn.functional.unfold(nn.functional.fold(patches.T, (160, 160), 4, stride=4)[None], 8, stride=8)[0].T
    def discriminator():
        return nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))
    def step(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = []
    for weight in (0, 0.002):
        net, D = piece.train(x, "fsq", lattice(7, 2), seed=seed), discriminator()
        first, second = torch.optim.Adam(net.parameters(), 0.005), torch.optim.Adam(D.parameters())
        for _ in range(150):
            z = net.encode(x)
            x_hat = net.decode(piece.straight_through(z, piece.fsq(z, 7)))
            step(first, (x_hat - x).square().mean() - weight * D(blocks(x_hat)).mean())
            step(second, (1 - D(blocks(x))).relu().mean() + (1 + D(blocks(x_hat.detach()))).relu().mean())
        x_hat, D, order = x_hat.detach(), discriminator(), torch.randperm(400)
        third = torch.optim.Adam(D.parameters())
        for _ in range(200):  # half of the blocks; the others are the test
            step(third, nn.functional.softplus(torch.cat([-D(blocks(x)[order[:200]]), D(blocks(x_hat)[order[:200]])])).mean())
        right = torch.cat([D(blocks(x)[order[200:]]) > 0, D(blocks(x_hat)[order[200:]]) < 0]).float().mean()
        rough, real = (p.view(-1, 4, 4).diff(dim=1).abs().mean() + p.view(-1, 4, 4).diff(dim=2).abs().mean() for p in (x_hat, x))
        found.append((rough / real, (x_hat - x).square().mean() / x.var(), right))
    (plain, error, seen), (gan, more, seen_gan) = found
    assert plain < 0.45 and gan > 1.2 * plain and 1 < more / error < 1.5 and 0.8 < seen < seen_gan  # 1: as without it


def test_break(lesson):
    assert lesson(NAME, "--no-restart", "--iters", "100").claims() == {"C1": False, "C2": True, "C3": True}


def test_same_seed_same_numbers_and_no_restart_changes_one_net_only(lesson, limits):
    limits(NAME)
    a, b, c, d = (lesson(NAME, "--iters", "20", *flags) for flags in ((), ("--seed", "0"), ("--seed", "4294967295"), ("--no-restart",)))
    assert a.text == b.text != c.text
    def drawn(run):
        return [run.ns.axes[1, column].images[-1].get_array() for column in range(1, 5)]
    assert [np.array_equal(*pair) for pair in zip(drawn(a), drawn(d))] == [True, False, True, True] and np.array_equal(*drawn(d)[:2])
    assert d.ns.axes[0, 2].get_title().startswith("VQ\n") and a.ns.axes[0, 2].get_title().startswith("VQ with restarts\n")
    first, grid = start_of(0), lattice(7, 2)
    settings = [("vq", first, False, True), ("vq", first, True, True), ("fsq", grid, False, True), ("fsq", grid, False, False)]
    for image, setting in zip(drawn(a), settings):
        assert np.abs(image - part(piece.measure(piece.train(x, *setting, iters=20), x)[2].numpy())).max() < 1e-3


@pytest.mark.parametrize("flags", [("--iters", "0"), ("--iters", "9" * 21), ("--seed", "-1"), ("--seed", "9" * 21), ("--start", "3")])
def test_bad_flags(refused, flags):
    assert flags[0] in refused(NAME, *flags)
