"""The form that all lessons share: length, width, imports, comments, docstring, one body per shared name."""
import ast
import io
import re
import sys
import tokenize

import pytest
from conftest import ROOT

FILES = sorted(ROOT.glob("[01][0-9]_*.py"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_there_are_lessons():
    assert len(FILES) == 15


def test_length_and_width(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100


def test_no_line_is_packed(path):
    tokens = list(tokenize.generate_tokens(io.StringIO(path.read_text()).readline))
    assert not [t for t in tokens if t.type == tokenize.OP and t.string == ";"]


def test_imports(path):
    allowed = {"torch", "numpy", "matplotlib"} | sys.stdlib_module_names
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= allowed


def test_header_and_docstring(path):
    text = path.read_text()
    assert text.startswith('# /// script\n# requires-python = ">=3.10"\n# dependencies = [')
    doc = ast.get_docstring(ast.parse(text))
    assert doc.startswith(path.stem[:2] + " ")
    for word in ("C1", "RUN", "BREAK", "PAPER", f"python {path.name}"):
        assert word in doc


def test_rulers_stand_in_order(path):
    order = ["knobs", "data", "method", "network", "train", "sample", "measure", "figure", "claims"]
    rulers = re.findall(r"^# --- (\w+)(?: and (\w+))?", path.read_text(), re.M)
    rulers = [word for pair in rulers for word in pair if word]
    places = [order.index(name) for name in rulers]
    assert places == sorted(places) and {"knobs", "measure", "figure", "claims"} <= set(rulers)


def test_each_claim_is_measured_where_it_is_marked(path):
    text = path.read_text()
    doc, body = text.split('"""')[1], text.split('"""', 2)[2]
    assert set(re.findall(r"\bC\d+\b", doc)) <= set(re.findall(r"\bC\d+\b", body))


def test_each_flag_says_what_it_does(path):
    """Every flag has a help; switches aside, it shows the default (or the list of choices has one that the text names)."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
             and getattr(node.func, "attr", "") == "add_argument"]
    assert len(calls) >= 5
    for call in calls:
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert len(given["help"]) > 8, call.args[0].value
        assert "default" in given["help"] or {"choices", "action"} & set(given), call.args[0].value


def test_a_file_that_cannot_be_saved_is_refused_at_once(path, refused, tmp_path):
    (tmp_path / "folder.png").mkdir()
    for out in ("onepng", "figure.svg", "", "missing/x.png", tmp_path / "folder.png", tmp_path / "missing" / "x.pdf"):
        refused(path.stem, "--out", str(out))


def test_a_shared_name_has_one_body():
    bodies = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name != "draw":
                bodies.setdefault(node.name, set()).add(ast.dump(node))
    assert not [name for name, variants in bodies.items() if len(variants) > 1]
