"""Lesson 10: its strings, orders, codes, sliders and breaks, by enumeration of all strings and in plain Python."""
import contextlib
import itertools
import math
from collections import Counter

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_hex

NAME = "10_discrete"
START, UP = [10, 5, 3, 2, 1, 1], 0.7


def probability(string):
    """p of one string of 8 pitches, from the words of the lesson: two voices, each on its own."""
    total = 1.0
    for notes in (string[::2], string[1::2]):
        total *= START[notes[0]] / 22
        for a, b in zip(notes, notes[1:]):
            total *= UP if (a + 1) % 6 == b else 1 - UP if (a - 1) % 6 == b else 0
    return total


@pytest.fixture(scope="module")
def world():
    """All 6^8 strings as a table of p: one voice has 6^4 = 1296 candidates, the other too."""
    voices = {v: math.sqrt(probability([n for note in v for n in (note, note)])) for v in itertools.product(range(6), repeat=4)}
    voices = {v: q for v, q in voices.items() if q > 0}
    return {tuple(n for pair in zip(a, b) for n in pair): voices[a] * voices[b] for a in voices for b in voices}


@contextlib.contextmanager
def replaced(function, **names):
    """The lesson's function with other globals for a while."""
    before = {k: function.__globals__[k] for k in names}
    function.__globals__.update(names)
    try:
        yield
    finally:
        function.__globals__.update(before)


def bayes(ns):
    """log p(token | known tokens) + const, exact: a sum over the legal strings that agree with x (B, 8)."""
    onehot = torch.nn.functional.one_hot(ns.legal, 6).double()  # (2304, 8, 6)

    def log_share(x):
        agree = ((x[:, None] == ns.legal) | (x[:, None] == ns.MASK)).all(2).double()  # (B, 2304)
        return (torch.einsum("bs,s,snv->bnv", agree, ns.p.double(), onehot) + 1e-9).log().float()

    return log_share


def test_default_run(lesson):
    run = lesson(NAME)
    assert run.claims() == {f"C{i}": True for i in range(1, 8)}
    image = plt.imread(run.folder / "10_discrete.png")
    assert image.shape[0] > 400 and image[..., :3].std() > 0.05
    lines = run.text.splitlines()
    assert sum(line.startswith("iter") for line in lines) == 8
    verdicts = {line.split(":")[0]: line.split(": ")[-1] for line in lines if ": legal" in line}
    assert verdicts == {"AR": "near exact", "hybrid": "near exact", "MaskGIT": "biased", "diffusion": "illegal"}


def test_world_by_enumeration(lesson, world):
    ns = lesson(NAME).ns
    assert len(world) == 2304 == len(set(map(tuple, ns.legal.tolist())))
    assert abs(sum(world.values()) - 1) < 1e-12
    assert max(abs(world[tuple(s)] - q) for s, q in zip(ns.legal.tolist(), ns.p.tolist())) < 1e-7
    assert max(abs(world[s] - probability(s)) for s in list(world)[::97]) < 1e-12


def test_floor_of_the_loss_is_entropy_over_n(lesson, world):
    """Mean over 1 .. 8 unknown tokens, all sets of them: H(token | known) = H(token, known) - H(known)."""
    def entropy(places):
        part = Counter()
        for s, q in world.items():
            part[tuple(s[i] for i in places)] += q
        return -sum(q * math.log(q) for q in part.values())

    h = {k: entropy(k) for n in range(9) for k in itertools.combinations(range(8), n)}
    loss = 0.0
    for known in h:
        hidden = [i for i in range(8) if i not in known]
        if hidden:
            nats = sum(h[tuple(sorted((*known, i)))] - h[known] for i in hidden) / len(hidden)
            loss += nats / math.comb(8, len(hidden)) / 8
    assert abs(loss - h[tuple(range(8))] / 8) < 1e-9
    assert abs(loss - float(lesson(NAME).text.split("floor ")[1].split()[0])) < 0.006


def test_tally_in_plain_python(lesson, world):
    ns = lesson(NAME).ns
    g = torch.Generator().manual_seed(3)
    for x in (ns.real, ns.fill_in("diffusion", 3), torch.randint(6, (ns.M, 8), generator=g)):
        count = Counter(map(tuple, x.tolist()))
        legal = sum(n for s, n in count.items() if s in world) / len(x)
        tv = sum(abs(count.get(s, 0) / len(x) - world.get(s, 0)) for s in set(count) | set(world)) / 2
        seen = sum(s in world for s in count) / 2304
        assert max(abs(a - b) for a, b in zip(ns.tally(x), (legal, tv, seen))) < 1e-5
    assert ns.floor == ns.tally(ns.real)


def expected_tv(q, p, n):
    """E of half the sum of |count / n - p| for counts ~ Binomial(n, q), by the normal approximation."""
    total = 0.0
    for a, b in zip(q, p):
        s, d = math.sqrt(a * (1 - a) / n) + 1e-12, a - b
        total += s * math.sqrt(2 / math.pi) * math.exp(-(d**2) / (2 * s**2)) + d * math.erf(d / s / math.sqrt(2))
    return total / 2


def written(ns, width):
    """What the net writes from left to right in blocks of `width`: its q of each legal string, by 2304 products."""
    q = torch.ones(2304, dtype=torch.float64)
    for first in range(0, 8, width):
        x = ns.legal.clone()
        x[:, first:] = ns.MASK
        share = ns.logits(x).double().softmax(2).gather(2, ns.legal[..., None])[..., 0]
        q *= share[:, first : first + width].prod(1)
    return q


@pytest.mark.parametrize("method, calls, width", [("AR", 3, 1), ("hybrid", 8, 1), ("hybrid", 4, 2), ("hybrid", 2, 4), ("hybrid", 1, 8)])
def test_orders_with_known_q(lesson, method, calls, width):
    """Share of legal strings and TV of the drawn strings against q by enumeration."""
    ns = lesson(NAME).ns
    q, p = written(ns, width), ns.p.double()
    legal, tv, _ = ns.tally(ns.fill_in(method, calls))
    mass = q.sum().item()
    assert abs(legal - mass) < 5 * math.sqrt(mass * (1 - mass) / ns.M) + 1e-3
    assert abs(tv - (expected_tv(q.tolist(), p.tolist(), ns.M) + (1 - mass) / 2)) < 0.02
    if width <= 2:  # C4, C5 without the noise of draws
        assert (q - p).abs().sum().item() / 2 + (1 - mass) / 2 < 0.15 and mass > 0.97
    else:
        assert mass < 0.2
    if width == 8:  # one round: every unknown token for itself, and any method does the same
        x = torch.full((1, 8), ns.MASK)
        one = ns.logits(x).softmax(2)[0].double()
        total = sum(math.prod(one[i, s[i]].item() for i in range(8)) for s in map(tuple, ns.legal.tolist()))
        assert abs(total - mass) < 1e-6
        assert torch.equal(ns.fill_in("hybrid", 1), ns.fill_in("MaskGIT", 1))


def test_net_against_bayes(lesson):
    ns = lesson(NAME).ns
    g = torch.Generator().manual_seed(5)
    x = ns.legal[ns.p.multinomial(600, True, generator=g)]
    x = x.masked_fill(torch.rand(600, 8, generator=g) < torch.rand(600, 1, generator=g), ns.MASK)
    gap = (ns.logits(x).softmax(2) - bayes(ns)(x).softmax(2)).abs()[x == ns.MASK]
    assert gap.mean() < 0.03 and gap.sum(1).mean() / 2 < 0.08


def test_exact_conditionals_leave_the_orders_apart(lesson):
    """With Bayes' rule in the place of the net: what is left is the order's own error."""
    ns = lesson(NAME).ns
    with replaced(ns.fill_in, logits=bayes(ns)):
        result = {(m, n): ns.tally(ns.fill_in(m, n)) for m, n in
                  [("AR", 8), ("hybrid", 4), ("hybrid", 3), ("diffusion", 8), ("diffusion", 4), ("MaskGIT", 4), ("MaskGIT", 8)]}
    for exact in [("AR", 8), ("hybrid", 4), ("diffusion", 8)]:
        assert result[exact][0] > 0.9999 and abs(result[exact][1] - ns.floor[1]) < 0.03
    for broken in [("hybrid", 3), ("diffusion", 4)]:  # blocks across time; two at once
        assert result[broken][0] < 0.75 and result[broken][1] > ns.floor[1] + 0.15
    assert result["MaskGIT", 8][0] > 0.9999 and result["MaskGIT", 8][1] > 0.6  # all legal, far from p
    assert result["MaskGIT", 4][0] > result["diffusion", 4][0] + 0.08
    assert result["MaskGIT", 8][2] < result["diffusion", 8][2] / 3


def test_what_each_call_fills_in(lesson):
    """The net's inputs, call by call: their number and which tokens are known."""
    ns, seen = lesson(NAME).ns, []

    def spy(x):
        seen.append(x.clone())
        return ns.logits(x)

    with replaced(ns.fill_in, logits=spy):
        for method, calls, want in [("AR", 4, [*range(8)]), ("hybrid", 4, [0, 2, 4, 6]), ("hybrid", 3, [0, 2, 5]),
                                    ("MaskGIT", 5, [0, 1, 3, 4, 6]), ("diffusion", 8, [*range(8)])]:
            seen.clear()
            x = ns.fill_in(method, calls)
            assert x.min() >= 0 and x.max() <= 5 and len(seen) == len(want)
            for rows, n in zip(seen, want):
                assert ((rows != ns.MASK).sum(1) == n).all()
                assert len(set(map(tuple, rows.tolist()))) == len(rows)  # no string is asked twice
                if method in ("AR", "hybrid"):
                    assert (rows[:, :n] != ns.MASK).all() and (rows[:, n:] == ns.MASK).all()


def test_maskgit_takes_the_surest(lesson):
    """A made-up net that is surer at higher places: MaskGIT fills in from the right, the others do not."""
    ns, seen = lesson(NAME).ns, []

    def fake(x):
        seen.append(x.clone())
        return (torch.arange(1.0, 9)[:, None] * torch.tensor([0.5, 0, 0, 0, 0, 0])).expand(len(x), 8, 6)

    with replaced(ns.fill_in, logits=fake):
        ns.fill_in("MaskGIT", 8, 0)
        for n, rows in enumerate(seen):
            assert (rows[:, 8 - n :] == 0).all() and (rows[:, : 8 - n] == ns.MASK).all()
        seen.clear()
        ns.fill_in("diffusion", 8, 0)
        first = (ns.MASK - seen[1]).ne(0).sum(0)
        assert len(seen[1]) == 8 and (first == 1).all()  # each place comes first somewhere


def test_temperature(lesson):
    """Temperature t draws from p^(1/t) / sum; 0 from the likeliest."""
    ns = lesson(NAME).ns
    one = ns.logits(torch.full((1, 8), ns.MASK)).softmax(2)[0]
    for t in (0.5, 2.0):
        want = one ** (1 / t) / (one ** (1 / t)).sum(1, keepdim=True)
        got = torch.nn.functional.one_hot(ns.fill_in("hybrid", 1, t), 6).float().mean(0)
        assert (got - want).abs().max() < 0.05
    cold = ns.fill_in("hybrid", 1, 0)
    assert torch.equal(cold, one.argmax(1).expand_as(cold))
    assert len(ns.fill_in("AR", 8, 0).unique(dim=0)) == 1


def test_text_sound_and_picture_come_back(lesson):
    ns = lesson(NAME).ns
    assert bytes(ns.text).decode() == "Why? 为什么?" and max(ns.text) > 127
    error = {"law": 0.0, "even": 0.0}
    for i, y in enumerate(ns.wave.tolist()):
        code = round((1 + math.copysign(math.log1p(255 * abs(y)) / math.log(256), y)) * 127.5)
        if ns.sound[i] != code:  # a tie of float32
            assert abs(ns.sound[i] - code) == 1
        z = ns.sound[i].item() / 127.5 - 1
        error["law"] += (math.copysign((256 ** abs(z) - 1) / 255, z) - y) ** 2
        error["even"] += (round(y * 127.5) / 127.5 - y) ** 2
    assert ns.sound.min() >= 0 and ns.sound.max() <= 255 and 0.009 < ns.wave.abs().max() < 0.0101
    assert abs(10 * math.log10(error["even"] / error["law"]) - ns.gain[0]) < 0.05

    assert len(ns.code) == 600 * 512 // 16 and 0 <= ns.code.min() and ns.code.max() <= 255
    grey = ns.photo.double().mean(2).view(150, 4, 128, 4).permute(0, 2, 1, 3).reshape(-1, 16)  # by another road
    assert (grey - ns.patch).abs().max() < 1e-6
    some = torch.arange(0, len(grey), 997)
    near = ((grey[some, None] - ns.book.double()) ** 2).sum(2)
    assert (near.gather(1, ns.code[some, None])[:, 0] - near.min(1).values).abs().max() < 1e-5
    learned, plain = (ns.book[ns.code] - ns.patch).square().mean(), (ns.patch.mean(1, keepdim=True) - ns.patch).square().mean()
    assert abs(10 * math.log10(plain / learned) - ns.gain[1]) < 0.02  # rounding the greys costs nothing
    assert -10 * math.log10(learned) > 24.5  # PSNR, README
    shown = ns.left.images[0].get_array()
    assert abs(shown[:, :512] - ns.photo.mean(2).numpy()).max() < 1e-5
    assert abs(shown[100:104, 512 + 40 : 512 + 44].ravel() - ns.book[ns.code[25 * 128 + 10]].numpy()).max() < 1e-6


def test_best_gaussian_and_mean(lesson):
    """The Gaussian's share by its distribution function, over the six notes before; a net trained on squared error."""
    ns = lesson(NAME).ns
    weight = [0.0] * 6
    for s, q in zip(ns.legal.tolist(), ns.p.tolist()):
        weight[s[4]] += q
    share = 0.0
    for a in range(6):
        up, down = (a + 1) % 6, (a - 1) % 6
        mean = UP * up + (1 - UP) * down
        std = math.sqrt(UP * (up - mean) ** 2 + (1 - UP) * (down - mean) ** 2)
        for b in (up, down):
            share += weight[a] * (math.erf((b + 0.5 - mean) / std / 2**0.5) - math.erf((b - 0.5 - mean) / std / 2**0.5)) / 2
    assert abs(share - ns.good[1]) < 0.05 and ns.good[2] < 0.01 and ns.good[0] > 0.97
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.SiLU(), torch.nn.Linear(32, 1))
    adam, real = torch.optim.Adam(net.parameters(), 1e-2), ns.real
    with torch.enable_grad():
        for _ in range(400):
            out = net(torch.nn.functional.one_hot(real[:, 4], 6).float())[:, 0]
            loss = (out - real[:, 6]).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    legal = ((out.round() - real[:, 4]) % 6 == 1) | ((out.round() - real[:, 4]) % 6 == 5)
    assert legal.float().mean() < 0.1


def state(ns):
    dots = [line for line in ns.right.lines if line.get_marker() == "o"]
    return ([t.get_text() for t in ns.right.get_legend().get_texts()], [d.get_ydata()[0] for d in dots],
            [d.get_xdata()[0] for d in dots], [to_hex(d.get_color()) for d in dots])


def test_sliders(lesson):
    ns = lesson(NAME).ns
    before, curve = state(ns), ns.right.lines[1].get_ydata()
    assert before[2] == [4] * 4 and to_hex("tab:red") not in before[3]
    assert abs(before[1][1] - ns.curves["hybrid"][3]) < 1e-9  # the dot lies on its line
    try:
        ns.calls.set_val(1)
        one = state(ns)
        assert one[1][0] == before[1][0] and min(one[1][1:]) > 0.97 and one[2] == [1] * 4
        assert one[3][1:] == [to_hex("tab:red")] * 3 and one[0][1] == before[0][1] and one[0][2] != before[0][2]
        assert all(label.endswith(": illegal") for label in one[0][2:])
        ns.calls.set_val(8)
        eight = state(ns)
        assert max(eight[1][0], eight[1][1], eight[1][3]) < ns.floor[1] + 0.08 and eight[1][2] > 0.6
        ns.calls.set_val(4)
        ns.heat.set_val(0)
        cold = state(ns)
        assert min(cold[1]) > 0.8 and cold[3][:3] == [to_hex("tab:red")] * 3
        assert all(label.endswith(": biased") and "legal 1.000" in label for label in cold[0][1:])
    finally:
        ns.calls.set_val(4)
        ns.heat.set_val(1)
    assert state(ns) == before and abs(ns.right.lines[1].get_ydata()[0] - curve[0]) < 1e-12  # the same dice


def test_break_calls(lesson):
    claims = lesson(NAME, "--calls", "1", "--iters", "400").claims()
    assert {c for c, ok in claims.items() if not ok} == {"C5", "C6", "C7"}


def test_break_temperature(lesson):
    claims = lesson(NAME, "--temperature", "0", "--iters", "400").claims()
    assert {c for c, ok in claims.items() if not ok} == {"C4", "C5", "C6"}


def test_refused(refused):
    for flags in [("--calls", "0"), ("--calls", "9"), ("--calls", "2.5"), ("--temperature", "-0.1"), ("--temperature", "2.1"),
                  ("--temperature", "nan"), ("--iters", "0"), ("--seed", "-1"), ("--seed", "9999999999"),
                  ("--out", "/nonexistent/x.png"), ("--out", "x.xyz")]:
        refused(NAME, *flags)
