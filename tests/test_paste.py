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
