"""Plants faults in a lesson, one at a time, and reports those that the lesson's own tests miss. Not a test.

python tests/plant.py 06                      30 random faults (operators, constants, comparisons, dropped calls, axes)
python tests/plant.py 06 --count 5 --seed 3   fewer, others
python tests/plant.py 06 --swap "h / 2 * k1" "h * k1"   one fault of your own: the first text becomes the second

Faults in the parser, in imports and in the figure's layout are left out: no number depends on them."""
import argparse
import ast
import copy
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYOUT = {"plt", "ax", "axes", "fig", "chart", "left", "right", "middle", "slider", "radio", "parser", "signal", "subplots", "set", "legend"}
DROPPED = {"sqrt", "square", "exp", "log", "detach", "abs", "cumprod", "cumsum", "flip", "clone"}
OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult,
         ast.FloorDiv: ast.Mult, ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.Lt, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}


def is_layout(statement):
    """A statement that only sets up the parser or the figure: every call in it begins at one of these names."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return True
    names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
    return isinstance(statement, (ast.Expr, ast.Assign)) and bool(names & LAYOUT)


def places(tree):
    """Every (node, what to do) of the tree that is a fault in a number."""
    found = []

    def visit(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt) and is_layout(child) or isinstance(child, ast.JoinedStr):
                continue
            if isinstance(child, (ast.BinOp, ast.AugAssign)) and type(child.op) in OTHER:
                found.append((child, "operator"))
            if isinstance(child, ast.Compare) and type(child.ops[0]) in OTHER:
                found.append((child, "comparison"))
            if isinstance(child, ast.UnaryOp) and isinstance(child.op, ast.USub):
                found.append((child, "sign"))
            if isinstance(child, ast.Constant) and type(child.value) in (int, float):
                found.append((child, "constant"))
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute) and child.func.attr in DROPPED:
                found.append((child, "dropped"))
            visit(child)

    visit(tree)
    return found


def planted(tree, number):
    """The tree with fault `number`, and its description."""
    tree = copy.deepcopy(tree)
    node, kind = places(tree)[number]
    before = ast.unparse(node)
    if kind == "operator":
        node.op = OTHER[type(node.op)]()
    elif kind == "comparison":
        node.ops[0] = OTHER[type(node.ops[0])]()
    elif kind == "sign":
        node.op = ast.UAdd()
    elif kind == "constant":
        node.value = node.value + 1 if isinstance(node.value, int) else node.value * 1.5
    else:  # x.sqrt() becomes x, torch.sqrt(x) becomes x
        inner = node.args[0] if ast.unparse(node.func.value) in ("torch", "math", "np") else node.func.value
        node.func, node.args, node.keywords = ast.Name("id_", ast.Load()), [inner], []
        tree.body.insert(1, ast.parse("id_ = lambda x: x").body[0])
    return tree, f"line {node.lineno}, {kind}: {before[:60]} -> {ast.unparse(node)[:60]}"


def survives(name, source):
    """Whether the lesson's own tests pass on this source."""
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder, "course")
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "__pycache__", ".pytest_cache"))
        (tree / f"{name}.py").write_text(source, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/test_{name}.py"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        try:
            return subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=300).returncode == 0
        except subprocess.TimeoutExpired:
            return False


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("lesson", help="its number, as 06")
parser.add_argument("--count", type=int, default=30, help="random faults (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
parser.add_argument("--swap", nargs=2, action="append", metavar=("OLD", "NEW"), help="a fault of your own; may be repeated")
args = parser.parse_args()
path = next(ROOT.glob(f"{args.lesson}_*.py"))
text = path.read_text(encoding="utf-8")
faults = []
for old, new in args.swap or []:
    if text.count(old) < 1:
        parser.error(f"{path.name} does not hold {old!r}")
    faults.append((text.replace(old, new, 1), f"{old} -> {new}"))
if not args.swap:
    lesson = ast.parse(text)
    numbers = range(len(places(lesson)))
    for number in random.Random(args.seed).sample(numbers, min(args.count, len(numbers))):
        tree, words = planted(lesson, number)
        faults.append((ast.unparse(ast.fix_missing_locations(tree)), words))
missed = 0
for source, words in faults:
    alive = survives(path.stem, source)
    missed += alive
    print("MISSED" if alive else "caught", words, flush=True)
print(f"{len(faults) - missed} of {len(faults)} caught")
sys.exit(bool(missed))
