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
LIMITS = {"tokens": 14.05, "long": 0.22, "blank": 12, "docstring": 14, "claims": 3}
DENSE = {"tokens": 17.35, "long": 0.395}  # 08, a tool: folders, model, training, guidance, and saving in one file
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
BIG = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.With, ast.Try)
OWN = {"draw", "train", "sample", "show", "generate", "measure", "score"}  # each lesson has its own
each_lesson = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def limit(path, what):
    return {**LIMITS, **(DENSE if path.stem == "08_dit" else {})}[what]


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def tokens(path):
    return list(tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline))


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
    for token in tokens(path):
        kind = tokenize.tok_name[token.type]
        if token.type not in SILENT and token.start[0] not in quoted and not inside:
            count[token.start[0]] = count.get(token.start[0], 0) + 1
        inside += (kind == "FSTRING_START") - (kind == "FSTRING_END")
    return count


@each_lesson
def test_length_width_and_air(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 100
    assert not [t for t in tokens(path) if t.type == tokenize.OP and t.string == ";"]
    quoted = docstring_lines(path)
    assert sum(not line.strip() for i, line in enumerate(lines, 1) if i not in quoted) >= limit(path, "blank")


@each_lesson
def test_density_is_what_people_read(path):
    counts = list(tokens_by_line(path).values())
    assert sum(counts) / len(counts) <= limit(path, "tokens")
    assert sum(n > 20 for n in counts) / len(counts) <= limit(path, "long")
    said = docstring_lines(path) | {t.start[0] for t in tokens(path) if t.type == tokenize.COMMENT}
    assert 0.35 <= len(said) / len(counts) <= 0.9
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
def test_header_docstring_and_claims(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith('# /// script\n# requires-python = ">=3.10"\n# dependencies = [')
    doc = ast.get_docstring(ast.parse(text), clean=False)
    assert doc.startswith(path.stem[:2] + " ") and len(doc.splitlines()) <= limit(path, "docstring")
    for word in ("RUN", "BREAK", "PAPER", f"python {path.name}"):
        assert word in doc
    claims = re.findall(r'^ *claim\("(C\d)"', text, re.M)
    assert claims == [f"C{i + 1}" for i in range(len(claims))] and 2 <= len(claims) <= limit(path, "claims")
    assert f"figure: {path.stem}.png" in text and "--out" not in text


@each_lesson
def test_each_flag_says_what_it_does(path):
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"]
    assert {"--seed", "--iters"} <= {call.args[0].value for call in calls}
    for call in calls:
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        shown = ("default", f"({given.get('default')})", "(two moons)")
        assert any(words in given["help"] for words in shown) or {"choices", "action"} & set(given), call.args[0].value


def test_a_shared_name_has_one_body():
    bodies = {}
    for path in FILES:
        for node in tree(path).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name not in OWN:
                bodies.setdefault(node.name, set()).add(ast.dump(node))
    assert not [name for name, variants in bodies.items() if len(variants) > 1]
