"""Real pictures: the README's code on 1797 handwritten digits, with lesson 08's pieces pasted, read, compared, searched for copies."""
import re

import pytest
import torch
from conftest import ROOT, paste


def draw_handwriting(iters=None):
    """What the README's code leaves behind: data (10, 140, 8, 8), x and y of all digits in its order, and the 400 that it drew."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Real handwriting\n")[2]
    code = re.search(r"^```python\n(.*?)^```$", text, re.M | re.S)[1]
    space = vars(paste("08_dit", "DiT", "train_pictures", "sample"))
    if iters:
        code, found = re.subn(r"data, \d+,", f"data, {iters},", code)
        assert found == 1
    exec(compile(code, "README.md", "exec"), space)
    return space


def unseen(space):
    """Pictures (397, 8, 8) that the net has not seen, and their digits."""
    rest = [space["x"][space["y"] == digit][140:] for digit in range(10)]
    return torch.cat(rest), torch.cat([torch.full((len(part),), digit) for digit, part in enumerate(rest)])


def nearest(pictures, space):
    """The digit that most of the three nearest pictures of the training show, and the distance to the nearest, (n,) each."""
    apart = torch.cdist(pictures.flatten(1), space["data"].flatten(0, 1).flatten(1))
    return (apart.topk(3, largest=False).indices // 140).mode(1).values, apart.amin(1)


def energy_distance(a, b):
    a, b = a.flatten(1), b.flatten(1)
    return (2 * torch.cdist(a, b).mean() - torch.pdist(a).mean() - torch.pdist(b).mean()).item()


def told_apart(a, b):
    """The share of pictures whose nearest neighbour among all is of their own kind: half if nobody can tell a from b."""
    both, kind = torch.cat([a, b]).flatten(1), torch.arange(2).repeat_interleave(torch.tensor([len(a), len(b)]))
    apart = torch.cdist(both, both).fill_diagonal_(float("inf"))
    return (kind[apart.argmin(1)] == kind).float().mean().item()


def gaussians(data):
    """40 draws for each digit from one Gaussian with the mean and covariance of its pictures, clamped as the net's are."""
    drawn = []
    for pictures in data.flatten(2):
        root = torch.linalg.cholesky(pictures.T.cov() + 1e-4 * torch.eye(64))  # some pixels are always paper
        drawn.append(pictures.mean(0) + torch.randn(40, 64) @ root.T)
    return torch.stack(drawn, 1).view(400, 8, 8).clamp(-1, 1)


@pytest.fixture(scope="module")
def space():
    pytest.importorskip("sklearn")  # which brings the handwritten digits
    torch.manual_seed(0)
    return draw_handwriting()


def test_400_handwritten_digits_are_read_as_what_was_asked_for(space):
    """Ten seeds: .96 to .98; of unseen real ones .97 to 1."""
    real, digits = unseen(space)
    assert (nearest(real, space)[0] == digits).float().mean() > 0.95
    assert space["drawn"].shape == (400, 8, 8) and space["drawn"].abs().max() <= 1
    assert (nearest(space["drawn"], space)[0] == torch.arange(10).repeat(40)).float().mean() > 0.92


def test_drawn_digits_are_no_copies(space):
    """Mean distance to the nearest picture of the training: 2.6 to 2.75, of unseen real ones 2.1; the smallest 1.2 to 1.6."""
    drawn, real = nearest(space["drawn"], space)[1], nearest(unseen(space)[0], space)[1]
    assert abs(real.mean() - 2.1) < 0.1 and drawn.mean() > real.mean() + 0.2 and drawn.min() > 0.9


def test_drawn_digits_are_nearer_to_unseen_ones_than_a_gaussian_for_each_digit_is(space):
    """Energy distance: -.005 to .005, real ones -.008 to -.003, the Gaussians .02 to .035, noise 3.6."""
    real = unseen(space)[0]
    net, gauss = energy_distance(space["drawn"], real), energy_distance(gaussians(space["data"]), real)
    assert net < 0.012 < 0.015 < gauss and abs(energy_distance(space["data"].flatten(0, 1), real)) < 0.015
    assert 3 < energy_distance(torch.randn(400, 8, 8), real) < 4


def test_two_drawn_digits_in_three_are_told_from_real_ones_and_the_gaussians_too(space):
    """Share of pictures whose nearest neighbour is of their own kind: .64 to .7, Gaussians .67 to .71, real ones .45 to .54."""
    real, digits = unseen(space)
    seen = torch.cat([space["data"][digit][:(digits == digit).sum()] for digit in range(10)])
    assert 0.57 < told_apart(space["drawn"], real) < 0.77
    assert 0.6 < told_apart(gaussians(space["data"]), real) < 0.78 and 0.4 < told_apart(seen, real) < 0.6
