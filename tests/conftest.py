"""Runs a lesson as a reader does (headless, in an empty folder) and hands its namespace to the tests; pastes its pieces."""
import ast
import contextlib
import io
import os
import pathlib
import re
import runpy
import signal
import sys
import types
import warnings

os.environ["MPLBACKEND"] = "Agg"
import matplotlib
import pytest
import torch

matplotlib.rcParams["figure.max_open_warning"] = 0  # each run leaves its figure open for the tests
ROOT = pathlib.Path(__file__).resolve().parent.parent

def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")

def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; only run with --slow")

def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow: run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)

def paste(name, *wanted, changes=()):
    """The named functions and classes of a lesson in an empty namespace, with the imports, the UPPER_CASE constants and the
    other functions that they name, as a reader would paste them, after changes (old, new). Nothing else of the lesson is run."""
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    body = ast.parse(text).body
    pieces, chosen, todo = {}, [], list(wanted)
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            pieces[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in ast.walk(node.targets[0]):
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store) and target.id.isupper():
                    pieces[target.id] = node
    while todo:
        node = pieces[todo.pop()]
        if node not in chosen:
            chosen.append(node)
            todo += [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in pieces]
    imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    module = ast.Module(imports + [node for node in body if node in chosen], [])
    ns = {}
    exec(compile(module, name, "exec"), ns)
    return types.SimpleNamespace(**ns)

@pytest.fixture(autouse=True)
def settings():
    """A lesson may choose torch's precision, switch gradients off, and take Ctrl-C: each test finds and leaves them as they
    were. Each test begins with the same random numbers."""
    dtype, grad, ctrl_c = torch.get_default_dtype(), torch.is_grad_enabled(), signal.getsignal(signal.SIGINT)
    torch.manual_seed(0)
    yield
    signal.signal(signal.SIGINT, ctrl_c)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)

class Run(types.SimpleNamespace):
    """ns: the globals that the run leaves behind; text: what it printed; folder: where it ran."""

    def claims(self):
        """{"C1": True, ...} as printed."""
        return {name: mark == "ok" for mark, name, *_ in self.printed()}

    def numbers(self):
        """{"C1": (value, bound), ...} as printed."""
        return {name: (float(value), float(bound)) for _, name, value, _, bound in self.printed()}

    def printed(self):
        """("ok", "C1", "0.0534", "<", "0.1"), a claim each; that mark, sign and numbers agree is checked here."""
        rows = re.findall(r"^(ok|FAIL) +(C\d) .*: (\S+) ([<>]) (\S+)$", self.text, re.M)
        for mark, name, value, sign, bound in rows:
            below, above = float(value) < float(bound), float(value) > float(bound)
            assert value == bound or (below if sign == "<" else above) == (mark == "ok"), (name, value, sign, bound)
        return rows

RECIPES = {"01": (96, 512, 0.01), "02": (64, 1024, 0.03), "03": (512, 0.04), "04": (64, 1024, 0.03), "05": (32, 1024, 0.04),
           "06": (64, 256, 0.02), "08": (32,), "10": (16, 128, 64, 0.01), "12": (16, 256, 64, 0.006),
           "13": (6, 16, 0.01), "14": (16, 0.003), "15": (64, 0.004)}  # the defaults of `train`, with which all was measured

def page_agrees(name, run):
    """The lesson's rows of tests/README.md hold its claims: the same bounds, and values within the range of ten seeds.
    Seed 0 is none of the ten, so it may lie outside by the range's own width, or by a quarter of what is left to the bound.
    The gallery's figure has the size of the one that the run drew. Training told how it went on."""
    assert name[:2] not in RECIPES or run.ns.train.__defaults__ == RECIPES[name[:2]]
    said = re.findall(r"iteration (\d+) of \d+: loss \d", run.text)  # at 0, and after tens of iterations
    assert said and said[0] == "0" and len(set(said)) > 2 and all(number[-1] == "0" for number in said), said
    page = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {name[:2]} ")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| C")]
    printed = run.printed()
    assert [row[0].split()[0] for row in rows] == [p[1] for p in printed]
    for (words, span, written), (_, _, value, sign, bound) in zip(rows, printed):
        a, b = float(written.split()[1]), float(bound)
        digits = max(len(number.replace(".", "").lstrip("-0")) for number in (bound, written.split()[1]))
        rounded = digits > 2 and abs(a - b) < 0.15 * abs(b)  # a bound that is measured
        assert written.split()[0] == sign and (a == b or rounded), (words, written, bound)
        low, high, value, bound = *map(float, (span.split(" .. ") * 2)[:2]), float(value), float(bound)
        left = bound - max(high, value) if sign == "<" else min(low, value) - bound
        room = max(high - low, abs(bound - (high if sign == "<" else low)) / 4)
        assert low <= high and left > 0 and low - room <= value <= high + room, (words, span, value, bound)
    pictures = [(folder / f"{name}.png").read_bytes() for folder in (ROOT / ".github/gallery", run.folder)]
    assert pictures[0][16:24] == pictures[1][16:24]  # width and height in a PNG's header

@pytest.fixture(scope="session")
def lesson(tmp_path_factory):
    """lesson("06_euler", "--steps", "5") -> Run; the same command is run once a session."""
    cache = {}

    def run(name, *flags):
        key = (name, *flags)
        if key not in cache:
            folder, text = tmp_path_factory.mktemp(name), io.StringIO()
            before, argv = os.getcwd(), sys.argv
            os.chdir(folder)
            sys.argv = [f"{name}.py", *flags]
            torch.set_grad_enabled(True)  # a lesson may end with gradients off, as its process ends too
            dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)  # or in double precision
            try:
                with contextlib.redirect_stdout(text), warnings.catch_warnings():
                    warnings.simplefilter("error", RuntimeWarning)
                    ns = runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
            finally:
                os.chdir(before)
                sys.argv = argv
                torch.set_default_dtype(dtype)
                torch.set_default_device(None)  # 08 chooses one
            cache[key] = Run(ns=types.SimpleNamespace(**ns), text=text.getvalue(), folder=folder)
        return cache[key]

    return run

@pytest.fixture
def first_loss(monkeypatch):
    """first_loss("06_euler", "--seed", "7"): the first line with a loss, at which the lesson is stopped."""
    def run(name, *flags):
        def note(line):
            if "loss" in line:
                raise EOFError(line)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *flags])
        with pytest.raises(EOFError) as stop:
            runpy.run_path(str(ROOT / f"{name}.py"), {"print": note}, "__main__")
        torch.set_default_device(None)
        return str(stop.value)
    return run

@pytest.fixture
def limits(monkeypatch):
    """limits("06_euler"): --iters from 1 to 1,000,000 and --seed from 0 to 2**32 - 1 pass the lesson's checks, and no others."""
    def check(name):
        head = (ROOT / f"{name}.py").read_text(encoding="utf-8").partition("\nsignal.signal")[0]
        for flag, good, bad in [("--iters", (1, 10**6), (0, 10**6 + 1)), ("--seed", (0, 2**32 - 1), (-1, 2**32))]:
            for number in (*good, *bad):
                monkeypatch.setattr(sys, "argv", [f"{name}.py", flag, str(number)])
                with pytest.raises(SystemExit) if number in bad else contextlib.nullcontext():
                    exec(head, {})
    return check

@pytest.fixture(scope="session")
def refused(tmp_path_factory):
    """refused("06_euler", "--steps", "0"): ends in argparse's one line, status 2, and writes nothing."""

    def check(name, *flags):
        folder, out, err = tmp_path_factory.mktemp("refused"), io.StringIO(), io.StringIO()
        before, argv = os.getcwd(), sys.argv
        os.chdir(folder)
        sys.argv = [f"{name}.py", *flags]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                with warnings.catch_warnings(record=True) as caught, pytest.raises(SystemExit) as stop:
                    warnings.simplefilter("always")
                    warnings.simplefilter("ignore", ResourceWarning)  # the process ends, and closes its files
                    runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
        finally:
            os.chdir(before)
            sys.argv = argv
            torch.set_default_device(None)
        assert stop.value.code == 2 and not caught, err.getvalue()
        assert out.getvalue() == "" and not list(folder.iterdir())
        last = err.getvalue().splitlines()[-1]
        assert last.startswith(f"{name}.py: error: ")
        return last

    return check
