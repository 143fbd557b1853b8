"""Every function and class of a lesson, pasted into an empty namespace, and the lines of the table "Paste" of tests/README.md."""
import ast
import re

import pytest
import torch
from conftest import ROOT, paste

TEXT = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
PIECES = [(path.stem, node.name) for path in sorted(ROOT.glob("[01][0-9]_*.py"))
          for node in ast.parse(path.read_text(encoding="utf-8")).body
          if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("draw")]
TABLE = TEXT.split("\n## Paste\n")[1].split("\n## ")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in TABLE.splitlines() if line.startswith("| `")]

@pytest.mark.parametrize("lesson, name", PIECES)
def test_each_function_and_class_pastes(lesson, name):
    assert callable(getattr(paste(lesson, name), name))

@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("`"))
def test_the_line_of_the_paste_table_runs(row):
    take, source, _, line = row
    file, names = re.search(r"`(\w+)\.py`", source)[1], re.findall(r"`(\w+)`", take)
    helpers = [name for name in re.findall(r"\w+", line) if (file, name) in PIECES]  # as its net or its schedule
    ns = vars(paste(file, *names, *helpers))
    if "abar" in line:
        ns["abar"] = vars(paste("02_ddpm_forward", "linear_schedule"))["linear_schedule"](1000)[1]
    torch.manual_seed(0)
    code = line.strip("` |")
    exec(code, {**ns, "torch": torch})

def test_the_table_names_every_lesson_that_can_be_pasted_from():
    assert {row[1].strip("`") for row in ROWS} == {f"{lesson}.py" for lesson, _ in PIECES}
    assert all(set(re.findall(r"`(\w+)`", row[0])) <= {name for _, name in PIECES} for row in ROWS)

def test_images_pass_through_the_net_guidance_and_solvers_of_other_lessons():
    dit, knobs, euler, hybrid = (paste("08_dit", "Block", "DiT", "train", "sample"), paste("09_knobs", "guide", "sample"),
                                 paste("06_euler", "solve", "euler", "rk4"), paste("15_hybrid", "sample", "Generator", "joint"))
    images, y = torch.rand(9, 2, 8, 8), 1 + torch.arange(9) % 3
    net = dit.DiT(8, 4, 2, 3, 16, 1, 2)
    dit.train(net, images, y, 3, 0.01)
    noise, guided = torch.randn(9, 2, 8, 8), knobs.guide(net.requires_grad_(False), 2)
    ends = dit.sample(guided, noise, y, 4)
    assert (dit.sample(net, noise, y, 4, w=2) - ends).abs().max() < 1e-5
    v = lambda xt, t: guided(xt, t, y)
    for same in (hybrid.sample(guided, noise, y, 4), euler.solve(v, noise, 4, euler.euler)[-1], knobs.sample(guided, noise, y, torch.linspace(0, 1, 5), 1)):
        assert (same - ends).abs().max() < 1e-5
    assert (euler.solve(v, noise, 20, euler.rk4)[-1] - dit.sample(guided, noise, y, 400)).abs().max() < 0.02
    generator, features = hybrid.Generator(hybrid.joint, 16, 2).requires_grad_(False), torch.randn(9, 5, 16)
    assert dit.sample(knobs.guide(generator, 3), torch.randn(9, 3, 3), features, 2).shape == (9, 3, 3)

def test_tokens_of_11_are_learned_and_sampled_by_10_and_12():
    rows, rounds = paste("10_discrete", "train", "sample", "METHODS"), paste("12_maskgit", "train", "d3pm", "maskgit")
    tokens = paste("11_vq", "nearest").nearest(torch.randn(240, 2), torch.randn(5, 2)).view(40, 6)
    for net in (rows.train(tokens, 5, 3), rounds.train(tokens, 5, 3)):
        hidden = torch.full((7, 6), 5)
        with torch.no_grad():
            found = [rounds.d3pm(net, hidden, 3, 5), rounds.maskgit(net, hidden, 3, 5, 1.0)]
        for x in [rows.sample(net, method, 7, 6, 5, 3) for method in rows.METHODS] + found:
            assert x.shape == (7, 6) and 0 <= x.min() and x.max() < 5
