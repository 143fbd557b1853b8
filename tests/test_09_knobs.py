"""Lesson 09: schedules, solvers and guidance on exact fields, targets and clocks of a net, the menu, window, breaks."""
import ast
import math

import matplotlib.pyplot as plt
import moons
import numpy as np
import pytest
import torch
from conftest import page_agrees, paste, ROOT

NAME = "09_knobs"
CENTRES = torch.tensor(moons.CENTRES)  # the first 32 are the upper moon
WIDE = 0.3 / 0.7107  # with this std the two moons overlap


@pytest.fixture(scope="module")
def run(lesson):
    return lesson(NAME)


def test_claims_and_figure_are_those_of_the_page(run):
    page_agrees(NAME, run)


@pytest.fixture(scope="module")
def ns(run):
    return run.ns


def points(n, seed=0):
    """x of the moons and eps, (n, 2) each, float64."""
    rng = np.random.default_rng(seed)
    return torch.tensor(moons.samples(n, rng)), torch.tensor(rng.standard_normal((n, 2)))


def field(width=moons.WIDTH, wrong=0.2, centres=CENTRES):
    """v(xt, phi, label), exact, for Gaussians of this width at the centres, if so many labels are wrong (phi: a number)."""
    def v(xt, phi, label):
        where, share = centres.to(xt), 0.5 + label.to(xt).reshape(-1, 1) * (0.5 - wrong)
        half = len(where) // 2
        prior = torch.cat([share.expand(-1, half), (1 - share).expand(-1, half)], 1)
        a, s = phi.sin(), phi.cos()
        var = (a * width) ** 2 + s**2
        near = ((a * xt @ where.T - a**2 * (where**2).sum(1) / 2) / var + prior.log()).softmax(1) @ where
        pull = (xt - a * near) / var
        return s * (near + a * width**2 * pull) - a * s * pull  # s E[x | xt] - a E[eps | xt]
    return v


def blank_field(xt, phi):
    return field()(xt, phi, torch.zeros(1))


def ddim(v, x, t, h):
    """x_hat and eps_hat are kept for the step."""
    x_hat, eps_hat = t.sin() * x + t.cos() * v(x, t), t.cos() * x - t.sin() * v(x, t)
    return (t + h).sin() * x_hat + (t + h).cos() * eps_hat


def rk4(v, x, t, h):
    k1 = v(x, t)
    k2 = v(x + h / 2 * k1, t + h / 2)
    k3 = v(x + h / 2 * k2, t + h / 2)
    return x + h * (k1 + 2 * k2 + 2 * k3 + v(x + h * k3, t + h)) / 6


CALLS = {"euler": 1, "heun": 2, "ddim": 1, "rk4": 4}


def edited(name, function, *changes):
    """The function of a lesson, pasted, after each (old, new) in its text; old must be there once."""
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    node = next(node for node in ast.parse(text).body if getattr(node, "name", "") == function)
    source = ast.get_source_segment(text, node)
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    space = vars(paste(name, function))
    exec(source, space)
    return space[function]


def train(seed, *changes, iters=500, **names):
    """The lesson's training on batches of 256, with changes in its text; names: what the changes name."""
    learn = edited(NAME, "train_labelled", ("labelled_moons(1024)", "labelled_moons(256)"),
                   ("torch.rand(1024) <", "torch.rand(256) <"),
                   ("torch.randn(1024, 2), torch.rand(1024, 1)", "torch.randn(256, 2), torch.rand(256, 1)"), *changes)
    learn.__globals__.update(names)
    torch.manual_seed(seed)
    return learn(iters)


PIECE = paste(NAME, "follow", "euler", "heun", "linear_beta", "equal_angles", "guide", "energy_distance", "labelled_moons")
STEP = {"euler": PIECE.euler, "heun": PIECE.heun, "ddim": ddim, "rk4": rk4}
ONE, ZERO = torch.ones(1), torch.zeros(1)


def test_default_run_keeps_every_claim_and_draws(run):
    assert run.claims() == {f"C{i}": True for i in (1, 2, 3)}
    picture = plt.imread(run.folder / f"{NAME}.png")
    assert picture.shape[1] > 1000 and picture[..., :3].std() > 0.05
    assert run.text.splitlines()[-1] == f"figure: {NAME}.png"


# --- the window and the breaks


def look(ns):
    """Energy distance in the title, colour and dots of the cloud without guidance and of the guided one."""
    return [(float(ax.get_title().split()[-1]), ax.lines[1].get_color(), ax.lines[1].get_xydata().copy(), ax.get_title())
            for ax in (ns.left, ns.right)]


def bars(ns):
    return [bar.get_height() for bar in ns.bars.patches], ns.bars.get_title()


def test_sliders_break_heun_and_guidance_and_go_back(ns):
    before, heights = look(ns), bars(ns)
    assert [b[1] for b in before] == ["tab:blue", "tab:blue"] and "w = 2.0," in before[1][3]
    assert heights[0] == ns.miss and "16 calls" in heights[1]
    try:
        for n in (1, 2):
            ns.steps.set_val(n)
            linear, equal, heun = bars(ns)[0]
            assert equal < linear and heun > equal > 0.1 and bars(ns)[1].startswith(f"{2 * n} calls")
        ns.steps.set_val(50)
        assert bars(ns)[0][2] < 0.1 * heights[0][2] and "100 calls" in bars(ns)[1]
        ns.steps.set_val(8)
        ns.guidance.set_val(8)
        far = look(ns)
        assert far[0][0] == before[0][0] == round(ns.before, 3) and far[1][0] > 0.25
        assert [b[1] for b in far] == ["tab:blue", "tab:red"] and "w = 8.0," in far[1][3]
        assert np.abs(far[1][2] - before[1][2]).max() > 0.5
        ns.guidance.set_val(0)  # no label: half of the samples are of the other moon
        none = look(ns)
        assert none[1][0] > 0.3 and none[1][1] == "tab:red" and abs((none[1][2][:, 1] > 0).mean() - 0.5) < 0.1
    finally:
        ns.guidance.set_val(2)
        ns.steps.set_val(8)
    assert bars(ns) == heights
    for was, now in zip(before, look(ns)):
        assert was[0] == now[0] and was[1] == now[1] and (was[2] == now[2]).all() and was[3] == now[3]


@pytest.mark.parametrize("seed", ["0", "1"])
def test_two_steps_of_heun_lose_to_four_of_euler(lesson, seed):
    run = lesson(NAME, "--steps", "2", "--iters", "300", "--seed", seed)
    assert run.claims() == {"C1": True, "C2": False, "C3": True}
    assert [bar.get_height() for bar in run.ns.bars.patches] == run.ns.miss and "4 calls" in run.ns.bars.get_title()


def test_w_8_goes_too_far(lesson):
    run = lesson(NAME, "--w", "8", "--iters", "300", "--seed", "1")
    assert run.claims() == {"C1": True, "C2": True, "C3": False}
    assert run.ns.after > 0.25 and [b[1] for b in look(run.ns)] == ["tab:blue", "tab:red"]


def test_same_seed_same_numbers_and_another_seed_others(lesson):
    flags = ("--steps", "2", "--iters", "300")
    texts = [lesson(NAME, *flags, "--seed", "0").text, lesson(NAME, "--seed", "0", *flags).text,
             lesson(NAME, *flags, "--seed", "1").text]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("flags", [
    ("--steps", "0"), ("--steps", "51"), ("--steps", "2.5"), ("--w", "-0.1"), ("--w", "8.1"), ("--w", "nan"),
    ("--iters", "0"), ("--seed", "-1"), ("--t-scale", "1")])
def test_bad_flags_end_in_one_line(refused, flags):
    assert flags[0] in refused(NAME, *flags)


# --- the mathematics by another road


def test_labelled_moons_are_the_moons_and_one_label_in_five_is_wrong():
    torch.manual_seed(0)
    x, label = PIECE.labelled_moons(50_000)
    gap = np.linalg.norm(PIECE.MU.numpy()[:, None] - moons.CENTRES, axis=2)
    assert max(gap.min(0).max(), gap.min(1).max()) < 1e-6 and abs(PIECE.STD - moons.WIDTH) < 1e-9
    assert x.shape == (50_000, 2) and label.shape == (50_000, 1) and set(label.ravel().tolist()) == {-1, 1}
    assert abs(x.var(0).mean().item() - 1) < 0.02
    upper = torch.cdist(x, CENTRES.float()).argmin(1) < 32
    for where, mean in ((upper, 0.6), (~upper, -0.6)):  # .8 minus .2
        assert abs(label[where].mean().item() - mean) < 0.02


@pytest.mark.parametrize("n", [1, 3, 8, 50, 1000])
def test_schedules_run_from_noise_to_data_and_linear_beta_dwells_near_noise(n):
    for schedule in (PIECE.linear_beta, PIECE.equal_angles):
        angles = schedule(n)
        assert angles.shape == (n + 1,) and (angles.diff() > 0).all() and angles[0] < 0.0065
        assert abs(angles[-1].item() - math.pi / 2) < 1e-6
    steps = PIECE.equal_angles(n).diff()
    assert (steps - math.pi / 2 / n).abs().max() < 1e-6
    beta = np.linspace(1e-4, 0.02, 1000)
    k = [round(1000 - 1000 * i / n) for i in range(n + 1)]
    abar = np.array([np.exp(np.log1p(-beta[:j]).sum()) for j in k])
    off = PIECE.linear_beta(n).numpy() - np.arcsin(np.sqrt(abar))
    assert np.abs(off[:-1]).max() < 2e-3  # .5 is rounded either way
    if n == 1000:
        assert 16 < math.degrees(PIECE.linear_beta(n)[500]) < 17


def test_the_cosine_schedule_of_the_paper_is_equal_angles():
    """2102.09672, eq. 17, without its small offset: abar = cos^2(pi / 2 k / T), so the angle is even in k."""
    k = np.arange(9) / 8
    paper = np.cos(np.pi / 2 * (1 - k)) ** 2
    assert np.abs(np.arcsin(np.sqrt(paper)) - PIECE.equal_angles(8).numpy()).max() < 1e-6


def test_euler_and_heun_are_the_textbook_steps_of_orders_1_and_2():
    """dx/dt = -x + t has the solution x(1) = exp(-1) (x(0) + 1); clouds of any shape, one or three columns."""
    def v(x, t):
        return -x + t

    for shape in ((5, 2), (4, 3), (7, 1)):
        x = torch.linspace(-2, 2, math.prod(shape), dtype=torch.float64).reshape(shape)
        for step, order in ((PIECE.euler, 1), (PIECE.heun, 2)):
            errors = []
            for n in (16, 32):
                end = PIECE.follow(v, x, torch.linspace(0, 1, n + 1, dtype=torch.float64), step)
                errors.append((end - math.exp(-1) * (x + 1)).abs().max())
            assert abs(torch.log2(errors[0] / errors[1]).item() - order) < 0.1
    h, t = 0.25, 0.5
    trial = x + h * v(x, t)
    assert (PIECE.heun(v, x, t, h) - (x + h / 2 * (v(x, t) + v(trial, t + h)))).abs().max() < 1e-12


@pytest.mark.parametrize("phi", [0.1, 0.8, 1.3])
def test_v_is_the_mean_of_s_x_minus_a_eps_by_bayes(phi):
    """The exact field of the tests against plain sums, and the way back: x_hat = a xt + s v, eps_hat = s xt - a v."""
    xt = points(200)[1]
    a, s = math.sin(phi), math.cos(phi)
    _, x_hat, eps_hat = (torch.tensor(part) for part in moons.parts(xt.numpy(), a, s))
    v = blank_field(xt, torch.tensor(phi, dtype=torch.float64))
    assert (v - (s * x_hat - a * eps_hat)).abs().max() < 1e-10
    assert (a * xt + s * v - x_hat).abs().max() < 1e-10 and (s * xt - a * v - eps_hat).abs().max() < 1e-10


def test_guidance_is_w_times_a_classifiers_gradient():
    """w = 0: no label; w = 1: the label; else w s / a grad log p(label | xt), by autograd; and other shapes."""
    xt = points(100)[1].requires_grad_()
    for phi in torch.tensor([0.4, 0.9, 1.4], dtype=torch.float64):
        a, s = phi.sin(), phi.cos()
        near = -((xt[:, None] - a * CENTRES) ** 2).sum(2) / (2 * ((a * moons.WIDTH) ** 2 + s**2))
        upper = near[:, :32].logsumexp(1) - near.logsumexp(1)
        slope = torch.autograd.grad((0.2 + 0.6 * upper.exp()).log().sum(), xt)[0]
        null, cond = field()(xt, phi, ZERO), field()(xt, phi, ONE)
        for w in (0, 0.5, 1, 2, 8):
            got = PIECE.guide(field(), w, ONE, ZERO)(xt, phi)
            assert (got - null - w * s / a * slope).abs().max() < 1e-9 * max(1, w)
            assert w != 0 or torch.equal(got, null)
            assert w != 1 or (got - cond).abs().max() < 1e-12

    def other(xt, phi, label):
        return xt * label.sum() + phi

    got = PIECE.guide(other, 3, torch.tensor([1.0, 2, 4]), torch.zeros(3))(torch.ones(5, 7), 0.5)
    assert got.shape == (5, 7) and (got - 21.5).abs().max() < 1e-6


def test_follow_asks_once_a_step_with_euler_and_twice_with_heun():
    seen = []

    def v(x, phi):
        seen.append(phi)
        return 0 * x

    for name in ("euler", "heun"):
        for n in (1, 5, 16):
            seen.clear()
            assert torch.equal(PIECE.follow(v, torch.ones(3, 4), PIECE.equal_angles(n), STEP[name]), torch.ones(3, 4))
            assert len(seen) == n * CALLS[name]


def test_energy_distance_by_brute_force():
    torch.manual_seed(0)
    x, y = torch.randn(40, 2), torch.randn(30, 2) + 0.3

    def mean(p, q, same):
        d = [(a - b).norm().item() for i, a in enumerate(p) for j, b in enumerate(q) if not (same and i == j)]
        return sum(d) / len(d)

    brute = 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)
    assert abs(PIECE.energy_distance(x, y) - brute) < 1e-5
    for broken in (float("nan"), float("inf")):
        assert not np.isfinite(PIECE.energy_distance(torch.cat([x, torch.tensor([[broken, 0.0]])]), y))


def test_the_exact_ends_are_exact(ns):
    """Twice as many steps move them by less than a hundredth of what the solvers miss."""
    more = ns.follow(ns.plain, ns.noise[:500], ns.equal_angles(400), ns.heun)
    assert (more - ns.exact[:500]).norm(dim=1).mean() < 1e-2 * ns.miss[2]


def test_the_net_learned_all_three_labels(ns):
    """Its v is nearer to Bayes' than a fifth of its size, with either label and with none."""
    x, eps = (part.float() for part in points(3000, 7))
    for phi in (0.3, 0.8, 1.2):
        angle = torch.tensor(phi)
        xt = angle.sin() * x + angle.cos() * eps
        for label in (ONE, ZERO, -ONE):
            truth = field()(xt, angle, label)
            assert (ns.v(xt, angle, label) - truth).square().mean().sqrt() < 0.3 * truth.square().mean().sqrt()
    assert (ns.v(xt, angle, ONE) - ns.v(xt, angle, ZERO)).square().mean().sqrt() > 0.1


def test_a_net_of_50_iterations_blurs(ns):
    """Squared error of v about ten times the default's."""
    torch.manual_seed(0)
    assert mean_error(paste(NAME, "train_labelled").train_labelled(50)) > 3 * mean_error(ns.v)


# --- proofs: what the course says beyond the script's claims: schedules and solvers


def missed(v, noise, home, name, calls, schedule=PIECE.equal_angles):
    end = PIECE.follow(v, noise, schedule(calls // CALLS[name]), STEP[name])
    return (end - home).norm(dim=1).mean().item()


@pytest.fixture(scope="module")
def ends():
    """Noise, and where the moons' exact field carries it."""
    noise = points(500, 0)[1].float()
    return noise, PIECE.follow(blank_field, noise, PIECE.equal_angles(100), rk4)


def test_equal_angles_leave_two_thirds_of_what_ddim_misses_with_4_to_64_steps(ends):
    """On the exact field, no net and no luck: .62 to .72 of linear beta's distance (.49 to .03) at every number of steps."""
    ratios = [missed(blank_field, *ends, "ddim", n) / missed(blank_field, *ends, "ddim", n, PIECE.linear_beta)
              for n in (4, 8, 16, 32, 64)]
    assert max(ratios) < 0.77 and min(ratios) > 0.55
    assert abs(missed(blank_field, *ends, "ddim", 8, PIECE.linear_beta) - 0.24) < 0.03


def test_equal_angles_leave_half_of_what_euler_misses_with_4_to_64_steps(ends):
    ratios = [missed(blank_field, *ends, "euler", n) / missed(blank_field, *ends, "euler", n, PIECE.linear_beta)
              for n in (4, 8, 16, 32, 64)]
    assert max(ratios) < 0.65 and min(ratios) > 0.33  # .41 to .57


def test_rk4_loses_to_euler_with_8_calls_and_wins_with_32(ends):
    """Two steps of 45 degrees: the order is a promise about short steps. Ratios 1.5 to 1.7, and 5 to 6."""
    euler, high = ([missed(blank_field, *ends, name, n) for n in (8, 32)] for name in ("euler", "rk4"))
    assert 1.3 < high[0] / euler[0] < 1.9 and 3.5 < euler[1] / high[1] < 8


def test_heun_loses_to_euler_with_8_calls_ties_with_16_and_wins_with_32(ends):
    """On the exact field of both moons: .090 against .045, .022 against .023, .006 against .012."""
    ratio = [missed(blank_field, *ends, "heun", n) / missed(blank_field, *ends, "euler", n) for n in (8, 16, 32)]
    assert ratio[0] > 1.5 and 0.7 < ratio[1] < 1.2 and ratio[2] < 0.7


def test_on_the_straight_path_rk4_wins_with_8_calls_already(ends):
    """xt = t x + (1 - t) eps, laid on the arc by dividing by r: .08 against Euler's .16."""
    def straight(xt, t):
        angle, r = torch.atan2(t, 1 - t), (t**2 + (1 - t) ** 2).sqrt()
        v = blank_field(xt / r, angle)
        return (angle.sin() - angle.cos()) * xt / r + (angle.cos() + angle.sin()) * v  # x_hat minus eps_hat

    lost = {name: missed(straight, *ends, name, 8, lambda n: torch.linspace(0, 1, n + 1)) for name in ("euler", "rk4")}
    assert lost["rk4"] < 0.65 * lost["euler"] and 0.12 < lost["euler"] < 0.2


def test_eulers_step_in_the_angle_ends_three_times_nearer_than_ddims(ends):
    """On the moons 3 to 3.8 times. On a ring of 8 Gaussians of the same width 1.4 to 1.6."""
    place = torch.arange(8, dtype=torch.float64) * math.pi / 4
    ring = math.sqrt(2 - 2 * moons.WIDTH**2) * torch.stack([place.cos(), place.sin()], 1)

    def on_ring(xt, phi):
        return field(centres=ring)(xt, phi, ZERO)

    home = PIECE.follow(on_ring, ends[0], PIECE.equal_angles(100), rk4)
    for n in (8, 16, 32):
        assert 2.6 < missed(blank_field, *ends, "ddim", n) / missed(blank_field, *ends, "euler", n) < 4.3
        assert 1.2 < missed(on_ring, ends[0], home, "ddim", n) / missed(on_ring, ends[0], home, "euler", n) < 1.75


def test_ddim_is_a_rotation_by_the_step(ends):
    """x_hat and eps_hat kept: x cos h + v sin h."""
    x, phi, h = points(50)[1], torch.tensor(0.7, dtype=torch.float64), 0.3
    turned = x * math.cos(h) + blank_field(x, phi) * math.sin(h)
    assert (ddim(blank_field, x, phi, h) - turned).abs().max() < 1e-12


# --- proofs: the target and the clock


TARGET = "target = phi.cos() * x - phi.sin() * eps"


def as_v(kind, ask):
    """What a net says about v that learned eps, x or v: the error is divided by a, by s or by 1."""
    return {"v": ask, "eps": lambda xt, phi, label: (phi.cos() * xt - ask(xt, phi, label)) / phi.sin(),
            "x": lambda xt, phi, label: (ask(xt, phi, label) - phi.sin() * xt) / phi.cos()}[kind]


def squared_error(v, phi):
    """Of v(xt, phi, label) against Bayes', over 2000 pairs and their labels."""
    x, eps = (part.float() for part in points(2000, 9))
    upper = torch.cdist(x, CENTRES.float()).argmin(1) < 32
    wrong = torch.rand(2000, generator=torch.Generator().manual_seed(9)) < 0.2
    label = torch.where(upper ^ wrong, 1.0, -1.0)[:, None]
    phi = torch.tensor(phi)
    xt = phi.sin() * x + phi.cos() * eps
    return (v(xt, phi, label) - field()(xt, phi, label)).square().mean().item()


@pytest.fixture(scope="module")
def targets():
    """Three nets with the same start and the same batches that learned v, eps and x, each read as v."""
    return {kind: as_v(kind, train(0, (TARGET, f"target = {words}")))
            for kind, words in (("v", TARGET[9:]), ("eps", "eps"), ("x", "x"))}


def test_a_net_for_eps_errs_at_the_noise_end_and_a_net_for_x_at_the_data_end(targets):
    """Read as v, a fiftieth of the way from the end: 23 to 28 and 13 to 14 times the error of the net for v."""
    noise_end, data_end = 0.02 * math.pi / 2, 0.98 * math.pi / 2
    error = {(kind, phi): math.sqrt(squared_error(v, phi))
             for kind, v in targets.items() for phi in (noise_end, 0.8, data_end)}
    assert error["eps", noise_end] > 10 * error["v", noise_end] and error["x", data_end] > 7 * error["v", data_end]
    assert error["eps", data_end] < 1.5 * error["v", data_end] and error["x", noise_end] < 1.5 * error["v", noise_end]
    for own in (error["eps", noise_end] * math.sin(noise_end), error["x", data_end] * math.cos(data_end)):
        assert own < 1.5 * max(error["v", noise_end], error["v", data_end])  # in its own target each errs no more than v
    for kind in ("eps", "x"):  # halfway all three know the same
        assert 0.4 < error[kind, 0.8] / error["v", 0.8] < 2.2


def test_a_sampler_spoils_what_a_net_for_eps_learned_and_heun_divides_a_net_for_x_by_0(targets):
    """w = 2, 8 steps of Heun from a = .0064 on: energy distance .12 to .4 with eps, .007 to .04 with v."""
    noise, upper = points(1000, 1)[1].float(), torch.tensor(moons.samples(4000, np.random.default_rng(2))).float()
    upper = upper[torch.cdist(upper, CENTRES.float()).argmin(1) < 32][:1500]
    angles = PIECE.equal_angles(8).clamp(min=PIECE.linear_beta(1)[0])
    found = {kind: PIECE.energy_distance(PIECE.follow(PIECE.guide(v, 2, ONE, ZERO), noise, angles, PIECE.heun), upper)
             for kind, v in targets.items()}
    assert found["v"] < 0.07 and found["eps"] > found["v"] + 0.04 and not found["x"] < 10
    from_noise = PIECE.follow(PIECE.guide(targets["eps"], 2, ONE, ZERO), noise, PIECE.equal_angles(8), PIECE.heun)
    assert not np.isfinite(PIECE.energy_distance(from_noise, upper))  # a = 0


def clock(scale):
    """(B, 1) angles to (B, 128): sines and cosines of scale times t, t = phi / (pi / 2), as a DiT reads time."""
    frequency = scale / (math.pi / 2) * 10_000 ** (-torch.arange(64) / 64)
    return lambda phi: torch.cat([(phi * frequency).sin(), (phi * frequency).cos()], 1)


@pytest.fixture(scope="module")
def clocks():
    """The lesson's net, and nets that read the time otherwise, at a rate (.01) that suits all of them."""
    slow = ("0.03 *", "0.01 *")
    raw = ("phi.expand(len(xt), 1)", "1000 * phi.expand(len(xt), 1)")
    nets = {"phi": train(0, slow, iters=1000), "1000 phi": train(0, slow, raw, iters=1000)}
    for scale in (1, 30, 1000, 10_000):
        nets[scale] = train(0, slow, ("nn.Linear(4, 64)", "nn.Linear(131, 64)"),
                            ("phi.expand(len(xt), 1)", "clock(phi.expand(len(xt), 1))"), iters=1000, clock=clock(scale))
    return nets


def test_of_128_features_of_time_22_move_at_scale_1_and_118_at_scale_1000():
    t = torch.linspace(0, math.pi / 2, 2001)[:, None]
    moved = [((c := clock(scale)(t)).amax(0) - c.amin(0) > 0.1).sum().item() for scale in (1, 30, 1000)]
    assert moved == [22, 70, 118]


def mean_error(v):
    return np.mean([squared_error(v, phi) for phi in np.linspace(0.03, 1.54, 12).tolist()])


def test_a_clock_at_scale_1_errs_twice_as_much_and_30_and_10_000_are_as_good_as_1000(clocks):
    """Squared error of v over scale 1's, four seeds: .38 to .53 with 1000, .98 to 1.11 of that with 30, 1.05 with 10,000."""
    error = {name: mean_error(v) for name, v in clocks.items()}
    assert error[1000] < 0.7 * error[1]
    assert 0.75 < error[30] / error[1000] < 1.3 and 0.75 < error[10_000] / error[1000] < 1.3


def test_the_angle_itself_is_nearly_as_good_as_128_features_of_it(clocks):
    """So the lesson needs none: squared error 1.13 to 1.23 of that with scale 1000, .43 to .65 of that with scale 1."""
    error = {name: mean_error(v) for name, v in clocks.items()}
    assert error["phi"] / error[1000] < 1.4 and error["phi"] < 0.8 * error[1]


def test_a_thousand_times_the_angle_without_sinusoids_fails(clocks):
    """Squared error 5.6 to 6 times that of the angle itself, the same net and rate."""
    assert mean_error(clocks["1000 phi"]) > 3.5 * mean_error(clocks["phi"])


def test_a_clock_at_scale_1000_takes_heuns_second_order_away(clocks):
    """Its v jitters in the angle: with 16 calls Heun misses .8 to 1.4 of what Euler does, else .25 to .31."""
    noise, ratio = points(300, 3)[1].float(), {}
    for name in ("phi", 30, 1000):
        plain = PIECE.guide(clocks[name], 1, ONE, ZERO)
        home = PIECE.follow(plain, noise, PIECE.equal_angles(200), PIECE.heun)
        ratio[name] = missed(plain, noise, home, "heun", 16) / missed(plain, noise, home, "euler", 16)
    assert ratio["phi"] < 0.42 and ratio[30] < 0.42 and ratio[1000] > 0.5


# --- proofs: guidance


def share(x, width=WIDE):
    """p(upper | x) (n,) of the moons at this width."""
    return (-(torch.cdist(x.double(), CENTRES) ** 2) / (2 * width**2)).softmax(1)[:, :32].sum(1)


def guided_ends(noise, w, width=WIDE, wrong=0.0, when=lambda phi: True, steps=25):
    guided, plain = (PIECE.guide(field(width, wrong), strength, ONE, ZERO) for strength in (w, 1))
    angles = PIECE.equal_angles(steps)
    return PIECE.follow(lambda x, phi: (guided if when(phi) else plain)(x, phi), noise, angles, PIECE.heun)


@pytest.fixture(scope="module")
def promise():
    """Noise, and draws of p(x) p(upper | x)^w: a draw of the wide moons is kept with probability p(upper | x)^w."""
    rng = np.random.default_rng(100)
    noise = torch.tensor(rng.standard_normal((1000, 2))).float()
    x = CENTRES[rng.integers(64, size=4000)] + WIDE * torch.tensor(rng.standard_normal((4000, 2)))
    even = torch.tensor(rng.random(4000))
    return noise, lambda w: x[share(x) ** w > even].float()


def test_with_wrong_labels_the_odds_of_the_asked_moon_are_4_to_the_w(ns):
    """Shares .8, .94, .98 at w = 1, 2, 3 on the exact field, of the trained net within .03."""
    noise = points(1000, 100)[1].float()
    for w in (1, 2, 3):
        odds = 4**w / (1 + 4**w)
        exact = guided_ends(noise, w, moons.WIDTH, 0.2, steps=40)
        learned = ns.follow(ns.guide(ns.v, w, ONE, ZERO), ns.noise, ns.equal_angles(20), ns.heun)
        assert abs((share(exact, moons.WIDTH) > 0.5).float().mean().item() - odds) < 0.04
        assert abs((share(learned, moons.WIDTH) > 0.5).float().mean().item() - odds) < 0.05


def test_w_8_crowds_the_samples_where_the_label_is_surest():
    """Exact field, wrong labels: 1.20 from the other moon (the whole moon: 1.04, w = 2: 1.00), and still on the moon."""
    noise, x = points(1000, 3)[1].float(), points(4000, 1)[0].float()

    def away(x):
        return torch.cdist(x, CENTRES[32:].float()).amin(1).mean().item()

    moon = x[torch.cdist(x, CENTRES.float()).argmin(1) < 32]
    two, eight = (guided_ends(noise, w, moons.WIDTH, 0.2, steps=60) for w in (2, 8))
    assert away(eight) > away(moon) + 0.1 and abs(away(two) - away(moon)) < 0.09
    assert (torch.cdist(eight, CENTRES.float()).amin(1) > 4 * moons.WIDTH).float().mean() < 0.01
    assert eight.std(0).mean() < 0.85 * moon.std(0).mean()


def test_guidance_puts_more_into_the_class_than_it_promises_and_overshoots_what_is_promised(promise):
    """Exact fields of overlapping moons, p(x) p(upper | x)^w: equal at w = 0 and 1, not beyond."""
    noise, draw = promise
    far, inside, promised = {}, {}, {}
    for w in (0, 0.5, 1, 1.5, 2, 4, 8):
        x, real = guided_ends(noise, w), draw(w)
        far[w] = PIECE.energy_distance(x, real)
        inside[w], promised[w] = ((share(q) > 0.5).float().mean().item() for q in (x, real))
    assert abs(far[0]) < 0.008 and abs(far[1]) < 0.008
    assert abs(inside[0] - 0.5) < 0.06 and abs(inside[1] - 0.915) < 0.03 and abs(promised[1] - 0.915) < 0.03
    assert inside[0.5] < promised[0.5] - 0.03 and 0.005 < far[0.5] < 0.045  # and too little below 1: .73 of .82
    assert inside[1.5] > 0.975 and abs(promised[1.5] - 0.957) < 0.015 and inside[1.5] > promised[1.5] + 0.01
    assert 0.008 < far[1.5] < 0.05 and 0.04 < far[2] < 0.14 and 0.3 < far[4] < 0.6 and 0.85 < far[8] < 1.25


def test_guidance_narrows_the_cloud_and_the_promised_density_is_not_narrower(promise):
    """Spread, guided: .85, .75, .60 at w = 1, 2, 8; promised .82 to .85 from w = 1 on."""
    noise, draw = promise
    spread = {w: (guided_ends(noise, w).std(0).mean().item(), draw(w).std(0).mean().item()) for w in (1, 2, 8)}
    assert spread[1][0] > spread[2][0] + 0.05 > spread[8][0] + 0.1
    for w, (guided, promised) in spread.items():
        assert abs(guided - {1: 0.85, 2: 0.755, 8: 0.6}[w]) < 0.05 and abs(promised - 0.83) < 0.05


def test_at_a_modest_w_more_than_three_quarters_of_the_spread_remain(ns):
    """The trained net, w = 2 against w = 1: .87 to .9; the clean upper moon itself has .83 of it."""
    ends = [ns.follow(ns.guide(ns.v, w, ONE, ZERO), ns.noise, ns.equal_angles(20), ns.heun) for w in (1, 2)]
    spread = [x.std(0).mean().item() for x in ends]
    assert 0.78 < spread[1] / spread[0] < 0.97
    assert 0.75 < ns.upper.std(0).mean().item() / spread[0] < 0.92


def test_guidance_at_angles_from_a_half_to_1_2_keeps_the_class_and_loses_the_overshoot(promise):
    """w = 4: .43 to .46 becomes .06 to .08, all stay in the class; the noise end does the harm, not the data end."""
    noise, draw = promise
    far = {}
    for name, when in (("all", lambda phi: True), ("middle", lambda phi: 0.5 < phi < 1.2),
                       ("late", lambda phi: phi > 0.5), ("early", lambda phi: phi < 1.2)):
        x = guided_ends(noise, 4, when=when)
        far[name] = PIECE.energy_distance(x, draw(4))
        assert (share(x) > 0.5).float().mean() > 0.99
    assert far["all"] > 0.3 and far["middle"] < 0.13 and far["late"] < 0.14 and far["early"] > 0.85 * far["all"]


# --- proofs: the menu


def test_the_menus_interval_is_one_line_of_guide_and_helps_the_net_at_w_4(ns):
    """Energy distance to the clean upper moon .15 becomes less than half."""
    middle = edited(NAME, "guide", ("null + w * (cond - null)", "null + (w if 0.5 < phi < 1.2 else 1) * (cond - null)"))
    ends = [ns.follow(make(ns.v, 4, ONE, ZERO), ns.noise, ns.equal_angles(20), ns.heun) for make in (ns.guide, middle)]
    far = [ns.energy_distance(x, ns.upper) for x in ends]
    assert far[1] < 0.6 * far[0]


def test_the_menus_autoguidance_is_one_line_of_guide_and_runs(ns):
    """Away from a net of 40 iterations, both with the label: w = 1 is the net itself."""
    worse = train(0, iters=40)
    auto = edited(NAME, "guide", ("null = v(xt, phi, blank)", "null = worse(xt, phi, label)"))
    auto.__globals__["worse"] = worse
    end = [ns.follow(auto(ns.v, w, ONE, ZERO), ns.noise, ns.equal_angles(20), ns.heun) for w in (1, 1.5)]
    plain = ns.follow(ns.plain, ns.noise, ns.equal_angles(20), ns.heun)
    assert (end[0] - plain).abs().max() < 1e-3
    assert (end[1] - plain).norm(dim=1).mean() > 0.02 and np.isfinite(ns.energy_distance(end[1], ns.upper))


def test_the_menus_karras_schedule_is_one_line_and_ends_on_the_data(ends):
    """Equal steps of (s / a)^(1/7) from a = .0064 on, then the data; 8 steps of Heun."""
    sigma = torch.linspace(156 ** (1 / 7), 0.01 ** (1 / 7), 8) ** 7
    angles = torch.cat([(1 / sigma).atan(), torch.tensor([math.pi / 2])])
    end = PIECE.follow(blank_field, ends[0], angles, PIECE.heun)
    real = points(1500, 5)[0].float()
    assert (angles.diff() > 0).all() and PIECE.energy_distance(end, real) < 0.02


def test_the_menus_multistep_solver_is_of_second_order_for_one_call_a_step(ends):
    """Adams-Bashforth, v becomes 1.5 v minus .5 times the last: half the step leaves a quarter of the error."""
    noise, home, lost = ends[0].double(), ends[1], []
    home = PIECE.follow(blank_field, noise, PIECE.equal_angles(100), rk4)
    for n in (64, 128, 256):
        last, x = None, noise
        for phi, phi_next in zip(PIECE.equal_angles(n).double(), PIECE.equal_angles(n).double()[1:]):
            slope = blank_field(x, phi)
            x = x + (phi_next - phi) * (slope if last is None else 1.5 * slope - 0.5 * last)
            last = slope
        lost.append((x - home).norm(dim=1).median().item())
    assert abs(math.log2(lost[0] / lost[2]) / 2 - 2) < 0.3


MENU = {  # row: (lesson, function, the arguments of a short training, the changes)
    "logit-normal angle": (NAME, "train_labelled", lambda: (3,),
                           [("torch.rand(1024, 1)", "torch.randn(1024, 1).sigmoid()")]),
    "target eps": (NAME, "train_labelled", lambda: (3,), [(TARGET, "target = eps")]),
}


@pytest.mark.parametrize("row", MENU)
def test_every_line_of_the_menu_is_in_its_lesson_and_runs_when_changed(row):
    name, function, arguments, changes = MENU[row]
    learn = edited(name, function, *changes)
    torch.manual_seed(0)
    given = [value.float() if torch.is_tensor(value) else value for value in arguments()]
    assert learn(*given) is not None
