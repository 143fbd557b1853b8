"""Lesson 12: its pipes, chains, bound, nets, orders, widgets and breaks, by enumeration, simulation and Bayes' rule."""
import contextlib
import itertools
import math
import unicodedata

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_hex

NAME = "12_maskgit"
RHO = 0.35


@contextlib.contextmanager
def replaced(function, **names):
    """The lesson's function with other globals for a while."""
    before = {k: function.__globals__[k] for k in names}
    function.__globals__.update(names)
    try:
        yield
    finally:
        function.__globals__.update(before)


def bayes(name, x, i=0, past=None):
    """log p(tile | known tiles), exact: a known neighbour settles a side, an unknown one leaves a coin, the frame is closed."""
    out = torch.zeros(len(x), 8, 8, 16)
    grid, codes = x.view(-1, 8, 8), torch.arange(16)
    for bit, (dr, dc) in enumerate([(0, 1), (1, 0), (0, -1), (-1, 0)]):  # right, down, left, up
        for r, c in itertools.product(range(8), range(8)):
            if 0 <= r + dr < 8 and 0 <= c + dc < 8:
                near = grid[:, r + dr, c + dc]
                share = torch.where(near == 16, RHO, (near >> (bit + 2) % 4 & 1).float())[:, None]
            else:
                share = torch.zeros(len(x), 1)
            out[:, r, c] += torch.where(codes >> bit & 1 > 0, share, 1 - share).clamp(min=1e-30).log()
    return out.flatten(1, 2)


def test_default_run(lesson):
    run = lesson(NAME)
    assert run.claims() == {f"C{i}": True for i in range(1, 7)}
    image = plt.imread(run.folder / "12_maskgit.png")
    assert image.shape[0] > 400 and image[..., :3].std() > 0.05
    assert sum(" iter " in line for line in run.text.splitlines()) == 8
    assert "floor 1.13" in run.text and "AR 64: " in run.text and "chessboard 2: " in run.text


def test_the_sixteen_tokens_are_the_box_characters(lesson):
    ns, arms = lesson(NAME).ns, {"RIGHT": 1, "DOWN": 2, "LEFT": 4, "UP": 8, "HORIZONTAL": 5, "VERTICAL": 10}
    assert len(ns.TILES) == 16 and ns.TILES[0] == " "
    for code in range(1, 16):
        words = unicodedata.name(ns.TILES[code]).removeprefix("BOX DRAWINGS LIGHT ").split(" AND ")
        assert sum(arms[word] for word in words) == code
        assert [b for b in range(4) if code >> b & 1] == ns.BITS[code].nonzero().flatten().tolist()


def test_pipes_and_wrong_in_plain_python(lesson):
    ns = lesson(NAME).ns
    x = ns.pipes(2000)
    assert x.min() == 0 and x.max() == 15 and ns.wrong(x).sum() == 0
    open_sides = ns.BITS[x].view(-1, 8, 8, 4).float().mean(0)
    assert open_sides[:, 7, 0].max() == open_sides[7, :, 1].max() == open_sides[:, 0, 2].max() == open_sides[0, :, 3].max() == 0
    assert (open_sides[:, :7, 0] - RHO).abs().max() < 0.06 and (open_sides[:7, :, 1] - RHO).abs().max() < 0.06
    right = ns.BITS[x][:, :, 0].float()
    assert abs(torch.corrcoef(torch.stack([right[:, 0], right[:, 1]]))[0, 1]) < 0.1  # a coin each

    y = torch.randint(16, (50, 64))
    y = y.view(-1, 8, 8)
    for edge, bit in ((y[:, :, 7], 1), (y[:, 7], 2), (y[:, :, 0], 4), (y[:, 0], 8)):
        edge &= 15 - bit  # no pipe through the frame
    want = 0
    for grid in y.tolist():
        want += sum((grid[r][c] & 1 > 0) != (grid[r][c + 1] & 4 > 0) for r in range(8) for c in range(7))
        want += sum((grid[r][c] & 2 > 0) != (grid[r + 1][c] & 8 > 0) for r in range(7) for c in range(8))
    assert ns.wrong(y.flatten(1)).sum() == 2 * want
    leak = torch.zeros(1, 64, dtype=torch.long)
    leak[0, 7] = 1  # a pipe out of the picture
    assert ns.wrong(leak).sum() == 2


def test_exact_numbers_of_the_world(lesson):
    """Entropy, pipes and tiles that differ in two pictures, in closed form; the script names 72.5, 39.2 and 56."""
    ns = lesson(NAME).ns
    assert abs(-112 * (RHO * math.log(RHO) + (1 - RHO) * math.log(1 - RHO)) - 72.5) < 0.05
    assert abs(112 * RHO - 39.2) < 1e-9
    same = RHO**2 + (1 - RHO) ** 2
    differ = 36 * (1 - same**4) + 24 * (1 - same**3) + 4 * (1 - same**2)
    assert abs(differ - 56) < 0.5
    x = ns.pipes(4000)
    assert abs((x != x.roll(1, 0)).sum(1).float().mean() - differ) < 0.3


@pytest.mark.parametrize("absorbing", [False, True])
def test_matrices_and_posterior_against_a_simulated_chain(lesson, absorbing):
    """400,000 tokens that really run through three steps: marginals, and what stood before, given the end and the start."""
    ns, n = lesson(NAME).ns, 400_000
    g = torch.Generator().manual_seed(1)
    goal = ns.eye[3].expand(4, 4) if absorbing else torch.full((4, 4), 0.25).double()
    Q = [(1 - b) * ns.eye + b * goal for b in (1 / 3, 1 / 2, 1)]
    if absorbing:
        assert max((a - b).abs().max() for a, b in zip(Q, ns.Q)) < 1e-15
    walk = [torch.randint(3, (n,), generator=g)]
    for beta in (1 / 3, 1 / 2, 1):
        new = torch.full((n,), 3) if absorbing else torch.randint(4, (n,), generator=g)
        walk.append(torch.where(torch.rand(n, generator=g) < beta, new, walk[-1]))
    for t in (1, 2, 3):
        abar = 1 - t / 3
        for x in range(3):
            here = torch.bincount(walk[t][walk[0] == x], minlength=4).double()
            want = abar * ns.eye[x] + (1 - abar) * goal[x]
            assert (here / here.sum() - want).abs().max() < 0.01
            for xt in range(4):
                rows = (walk[0] == x) & (walk[t] == xt)
                if rows.sum() > 5000:
                    before = torch.bincount(walk[t - 1][rows], minlength=4).double() / rows.sum()
                    past = math.prod([1]) * ns.eye
                    for S in Q[: t - 1]:
                        past = past @ S
                    bayes_rule = past[x] * Q[t - 1][:, xt]
                    assert (before - bayes_rule / bayes_rule.sum()).abs().max() < 0.025
                    if absorbing and xt == 3:
                        assert abs(before[x] - 1 / t) < 0.01


def test_bound_by_enumeration_of_masking_times(lesson):
    """Each token is masked at a step 1, 2 or 3, a third each; the model unmasks with 1 / t and guesses by p_hat."""
    ns = lesson(NAME).ns
    total = 0.0
    for x in itertools.product(range(3), repeat=2):
        weight = ns.p[4 * x[0] + x[1]].item()
        for times in itertools.product((1, 2, 3), repeat=2):
            log_model = 0.0
            for t in (3, 2, 1):
                state = [3 if times[k] <= t else x[k] for k in (0, 1)]
                for k in (0, 1):
                    if times[k] == t:  # masked at t, not before: unmasked on the way back
                        log_model += math.log(ns.p_hat[4 * state[0] + state[1], k, x[k]].item() / t)
                    elif times[k] < t:
                        log_model += math.log(1 - 1 / t)
            total += weight / 9 * (math.log(1 / 9) - log_model)
    assert abs(total - ns.nelbo.item()) < 1e-12 and abs(total - ns.simple.item()) < 1e-12 and total > 1


def test_bound_is_a_bound(lesson):
    """The model's own p(x), through its three matrices, costs fewer nats."""
    ns = lesson(NAME).ns
    model = (ns.back[2] @ ns.back[1] @ ns.back[0])[15]  # from MASK, MASK
    states = [4 * a + b for a in range(3) for b in range(3)]
    assert abs(model[states].sum() - 1) < 1e-12
    exact = -(ns.p[states] * model[states].log()).sum()
    assert exact < ns.nelbo < exact + 5


def test_many_steps_become_the_training_loss():
    """sum_t E[cross-entropy of the masked] / t -> a count drawn evenly from 1 .. N, cross-entropy x N / count; a net at random."""
    n, g = 3, torch.Generator().manual_seed(2)
    cost = {s: torch.rand(n, generator=g).double() for k in range(1, n + 1) for s in itertools.combinations(range(n), k)}
    cost = {s: sum(c[i].item() for i in s) for s, c in cost.items()}
    trained = sum(sum(c for s, c in cost.items() if len(s) == k) / math.comb(n, k) / k for k in range(1, n + 1))
    gaps = []
    for steps in (100, 1000):
        bound = sum(c / t * (t / steps) ** len(s) * (1 - t / steps) ** (n - len(s))
                    for t in range(1, steps + 1) for s, c in cost.items())
        gaps.append(abs(bound - trained))
    assert gaps[1] < 2e-3 and gaps[1] < gaps[0] / 5


def test_stored_keys_and_values(lesson):
    """AR token by token = AR at once, in float64; no later token has a say."""
    ns = lesson(NAME).ns
    x = torch.nn.functional.pad(ns.pipes(5)[:, :-1], (1, 0), value=16)
    nets = {"AR": ns.nets["AR"].double()}
    try:
        with replaced(ns.answer, nets=nets, sees={"AR": ns.sees["AR"].double()}):
            past = []
            stored = torch.cat([ns.answer("AR", x[:, i : i + 1], i, past) for i in range(64)], 1)
            at_once = ns.answer("AR", x, 0, [])
            assert (stored - at_once).abs().max() < 1e-10
            other = x.clone()
            other[:, 30:] = 5
            assert torch.equal(ns.answer("AR", other, 0, [])[:, :30], at_once[:, :30])
    finally:
        ns.nets["AR"].float()


def test_nets_against_bayes(lesson):
    ns = lesson(NAME).ns
    g = torch.Generator().manual_seed(5)
    x = ns.pipes(400)
    hide = torch.rand(400, 64, generator=g) < torch.rand(400, 1, generator=g)
    xt = x.masked_fill(hide, 16)
    gap = (ns.answer("masked", xt, 0, []).softmax(2) - bayes("", xt).exp()).abs().sum(2)[hide] / 2
    assert gap.mean() < 0.05
    nats = torch.nn.functional.cross_entropy(ns.answer("AR", torch.nn.functional.pad(x[:, :-1], (1, 0), value=16), 0, []).mT, x, reduction="none")
    pipes = ns.BITS[x].sum((1, 2)) / 2
    exact = -(pipes * math.log(RHO) + (112 - pipes) * math.log(1 - RHO))
    assert -0.01 < (nats.sum(1) - exact).mean() < 1


@pytest.mark.parametrize("order, rounds", [("confidence", 1), ("confidence", 7), ("confidence", 10), ("random", 16), ("chessboard", 2), ("AR", 3)])
def test_what_each_round_fills_in(lesson, order, rounds):
    """As many as scheduled, none twice, all in the end."""
    ns, seen = lesson(NAME).ns, []

    def spy(name, x, i, past):
        seen.append((name, x.clone(), i))
        return ns.answer(name, x, i, past)

    with replaced(ns.write, answer=spy):
        end = ns.write(order, rounds, n=20)[0]
    assert end.min() >= 0 and end.max() <= 15 and end.shape == (20, 64)
    if order == "AR":
        assert [(name, x.shape[1], i) for name, x, i in seen] == [("AR", 1, i) for i in range(64)]
        assert (seen[0][1] == 16).all() and torch.equal(torch.cat([x for _, x, _ in seen[1:]], 1), end[:, :-1])
        return
    states = [x for _, x, _ in seen] + [end]
    assert len(seen) == rounds
    for i, x in enumerate(states):
        assert ((x < 16).sum(1) == 64 * i // rounds).all()
        assert (states[i - 1][states[i - 1] < 16] == x[states[i - 1] < 16]).all() or i == 0
    if order == "chessboard":
        first = (states[1] < 16)[0].view(8, 8)
        assert (first[:, 1:] != first[:, :-1]).all() and (first[1:] != first[:-1]).all()


def test_confidence_and_its_noise(lesson):
    """A made-up net that is sure of the lower half only: without noise it comes first, with much noise anything does."""
    ns, seen = lesson(NAME).ns, []

    def fake(name, x, i, past):
        seen.append(x.clone())
        return ((torch.arange(64) > 31).float()[:, None] * torch.tensor([9.0] + [0.0] * 15)).expand(len(x), 64, 16)

    with replaced(ns.write, answer=fake):
        ns.write("confidence", 8, 0, 50)
        assert (seen[3][:, 32:] < 16).sum() > 50 * 23.5 and (seen[1][:, :32] == 16).all()
        seen.clear()
        ns.write("confidence", 8, 1e4, 500)
        assert ((seen[1] < 16).float().mean(0) - 1 / 8).abs().max() < 0.07


def test_exact_conditionals_leave_the_orders_apart(lesson):
    """With Bayes' rule in the net's place what is left is the order's own error."""
    ns = lesson(NAME).ns
    with replaced(ns.write, answer=bayes):
        result = {(o, r): ns.write(o, r)[1:4] for o, r in
                  [("random", 1), ("random", 2), ("random", 4), ("random", 10), ("confidence", 4), ("confidence", 10), ("chessboard", 2)]}
        blank = ns.write("confidence", 10, 0)[1:4]
    for r, bound in ((1, 1.8), (2, 1.5), (4, 1.2), (10, 0.8)):
        assert abs(result["random", r][0] - ns.law[r - 1]) < bound
        assert abs(result["random", r][1] - 39.2) < 1.5
    for r in (4, 10):
        assert abs(result["confidence", r][0] - result["random", r][0]) < 1.2  # no better
        assert result["confidence", r][1] < result["random", r][1] - 2  # but paler
    assert result["chessboard", 2][0] == 0 and abs(result["chessboard", 2][1] - 39.2) < 1.5  # exact in two rounds
    assert blank[1] < 15 and blank[2] < 40


def test_formula_by_counting_pairs(lesson):
    """Two neighbours fall into one of r equal rounds with probability (N / r - 1) / (N - 1); then their coins differ with .455."""
    ns, g = lesson(NAME).ns, torch.Generator().manual_seed(4)
    for r in (2, 8):
        rounds = torch.rand(4000, 64, generator=g).argsort(1) % r
        grid = rounds.view(-1, 8, 8)
        together = (grid[:, 1:] == grid[:, :-1]).sum() + (grid[:, :, 1:] == grid[:, :, :-1]).sum()
        assert abs(together / 4000 * 2 * RHO * (1 - RHO) - ns.law[r - 1]) < 0.2
    assert ns.law[63] == 0 and len(ns.law) == 64


def state(ns):
    texts = [(t.get_text(), to_hex(t.get_color())) for t in ns.left.texts]
    return ns.left.get_title(), texts, sum(c.strip() != "" for t, colour in texts if colour == to_hex("tab:red") for c in t)


def test_widgets(lesson):
    ns = lesson(NAME).ns
    title, texts, red = state(ns)
    numbers = ns.conf[10]
    assert title.startswith(f"{numbers[0]:.1f} wrong seams") and len(texts) == 32 and 0 < red < 150
    x = ns.write("confidence", 10)[0]
    for i, row in enumerate((0, 5, 15)):
        blue, crimson = texts[row][0], texts[16 + row][0]
        both = "".join(a if a != " " else b for a, b in zip(blue.ljust(38), crimson.ljust(38)))
        want = "  ".join("".join(ns.TILES[c] for c in x[4 * (row // 8) + k, 8 * (row % 8) : 8 * (row % 8) + 8].tolist()) for k in range(4))
        assert both == want
    try:
        ns.bar.set_val(1)
        one = state(ns)
        assert one[2] > 2 * red and float(one[0].split()[0]) > 40
        ns.bar.set_val(16)
        assert float(state(ns)[0].split()[0]) < numbers[0]
        ns.bar.set_val(10)
        ns.noise.set_val(0)
        blank = state(ns)
        assert int(blank[0].split("), ")[1].split()[0]) < 20 and blank[1] != texts
        ns.noise.set_val(4.5)
        ns.radio.set_active(2)
        assert float(state(ns)[0].split()[0]) < 2
        ns.radio.set_active(3)
        assert float(state(ns)[0].split()[0]) < 2
        ns.radio.set_active(0)
        assert state(ns)[0].startswith(f"{ns.rand[10][0]:.1f} wrong")
    finally:
        ns.bar.set_val(10)
        ns.noise.set_val(4.5)
        ns.radio.set_active(1)
    assert state(ns) == (title, texts, red)


def test_break_rounds(lesson):
    claims = lesson(NAME, "--rounds", "1", "--iters", "300").claims()
    assert {c for c, ok in claims.items() if not ok} == {"C2"}


def test_break_noise(lesson):
    claims = lesson(NAME, "--noise", "0", "--iters", "300").claims()
    assert {c for c, ok in claims.items() if not ok} == {"C5"}


def test_refused(refused):
    for flags in [("--rounds", "0"), ("--rounds", "17"), ("--rounds", "2.5"), ("--noise", "-1"), ("--noise", "21"), ("--noise", "nan"),
                  ("--iters", "0"), ("--seed", "-1"), ("--seed", "9999999999"), ("--out", "/nonexistent/x.png"), ("--out", "x.xyz")]:
        refused(NAME, *flags)
