"""The form that all lessons share: length, width, imports, docstring, density, pasting, one body per shared name."""
import ast
import builtins
import io
import re
import sys
import tokenize

import pytest
from conftest import ROOT

FILES = sorted(ROOT.glob("[01][0-9]_*.py"))
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
BIG = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.With, ast.Try)
each_lesson = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def docstring_lines(path):
    """Numbers of the lines that belong to a docstring."""
    lines = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def tokens_by_line(path):
    """{line: tokens of code on it}, an f-string being one token in every Python."""
    count, inside, quoted = {}, 0, docstring_lines(path)
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        kind = tokenize.tok_name[token.type]
        if token.type not in SILENT and token.start[0] not in quoted and not inside:
            count[token.start[0]] = count.get(token.start[0], 0) + 1
        inside += (kind == "FSTRING_START") - (kind == "FSTRING_END")
    return count


def test_there_are_lessons():
    assert len(FILES) == 15


@each_lesson
def test_length_and_width(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100


@each_lesson
def test_no_line_is_packed(path):
    tokens = list(tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline))
    assert not [t for t in tokens if t.type == tokenize.OP and t.string == ";"]


@each_lesson
def test_density_is_what_people_read(path):
    part_a = path.stem[:2] in ("01", "02", "03", "04", "05", "06", "07", "09")
    counts = list(tokens_by_line(path).values())
    assert sum(counts) / len(counts) <= (15 if part_a else 16)
    assert sum(n > 20 for n in counts) / len(counts) <= (0.28 if part_a else 0.30)


@each_lesson
def test_there_is_air(path):
    quoted = docstring_lines(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sum(not line.strip() for i, line in enumerate(lines, 1) if i not in quoted) >= 10


@each_lesson
def test_comments_per_line_of_code(path):
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    said = docstring_lines(path) | {t.start[0] for t in tokens if t.type == tokenize.COMMENT}
    assert 0.4 <= len(said) / len(tokens_by_line(path)) <= 0.9


@each_lesson
def test_no_statement_has_more_than_40_expressions(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.stmt) and not isinstance(node, BIG):
            assert sum(isinstance(part, ast.expr) for part in ast.walk(node)) <= 40, node.lineno


@each_lesson
def test_functions_and_classes_can_be_pasted(path):
    """They read their arguments, imports, other functions and UPPER_CASE constants; `draw`, the callback, is exempt."""
    known = set(dir(builtins)) | {"__file__", "__doc__"}
    for node in tree(path).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            known |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            known.add(node.name)
    for node in tree(path).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("draw"):
            names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
            bound = {n.id for n in names if not isinstance(n.ctx, ast.Load)}
            bound |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
            bound |= {n.name for n in ast.walk(node) if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler))}
            loose = {n.id for n in names if isinstance(n.ctx, ast.Load)} - bound - known
            assert not [name for name in loose if not name.isupper()], node.name


@each_lesson
def test_imports(path):
    allowed = {"torch", "numpy", "matplotlib"} | sys.stdlib_module_names
    for node in ast.walk(tree(path)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= allowed


@each_lesson
def test_header_and_docstring(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith('# /// script\n# requires-python = ">=3.10"\n# dependencies = [')
    doc = ast.get_docstring(ast.parse(text))
    assert doc.startswith(path.stem[:2] + " ")
    for word in ("C1", "RUN", "BREAK", "PAPER", f"python {path.name}"):
        assert word in doc


@each_lesson
def test_the_docstring_has_12_to_22_lines(path):
    assert 12 <= len(path.read_text(encoding="utf-8").split('"""')[1].splitlines()) <= 22


@each_lesson
def test_rulers_stand_in_order(path):
    order = ["knobs", "data", "method", "network", "train", "sample", "measure", "figure", "claims"]
    rulers = re.findall(r"^# --- (\w+)(?: and (\w+))?", path.read_text(encoding="utf-8"), re.M)
    rulers = [word for pair in rulers for word in pair if word]
    places = [order.index(name) for name in rulers]
    assert places == sorted(places) and {"knobs", "figure", "claims"} <= set(rulers)


@each_lesson
def test_each_claim_is_measured_where_it_is_marked(path):
    text = path.read_text(encoding="utf-8")
    doc, body = text.split('"""')[1], text.split('"""', 2)[2]
    assert set(re.findall(r"\bC\d+\b", doc)) <= set(re.findall(r"\bC\d+\b", body))


@each_lesson
def test_two_to_four_claims_each_marked_where_it_is_measured(path):
    text = path.read_text(encoding="utf-8")
    claims = set(re.findall(r"\bC\d\b", text.split('"""')[1]))
    assert 2 <= len(claims) <= 4
    comments = re.findall(r"#.*", text.split('"""', 2)[2])
    assert claims <= set(re.findall(r"\bC\d\b", " ".join(comments)))


@each_lesson
def test_each_flag_says_what_it_does(path):
    """Every flag has a help; switches aside, it shows the default (or the list of choices has one that the text names)."""
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)
             and getattr(node.func, "attr", "") == "add_argument"]
    assert {"--seed", "--iters"} <= {call.args[0].value for call in calls}
    for call in calls:
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert len(given["help"]) > 8, call.args[0].value
        shown = ("default", f"({given.get('default')})", "(two moons)")
        assert any(words in given["help"] for words in shown) or {"choices", "action"} & set(given), call.args[0].value


@each_lesson
def test_no_flag_for_the_figures_name(path):
    text = path.read_text(encoding="utf-8")
    assert "--out" not in text and f'print("figure: {path.stem}.png")' in text


def test_a_shared_name_has_one_body():
    bodies = {}
    for path in FILES:
        for node in tree(path).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name != "draw":
                bodies.setdefault(node.name, set()).add(ast.dump(node))
    assert not [name for name, variants in bodies.items() if len(variants) > 1]
