"""Runs a lesson as a reader does (headless, in an empty folder) and hands its namespace to the tests; pastes its pieces."""
import ast
import contextlib
import io
import os
import pathlib
import runpy
import sys
import types
import warnings

os.environ["MPLBACKEND"] = "Agg"
import matplotlib
import pytest
import torch

matplotlib.rcParams["figure.max_open_warning"] = 0  # each run leaves its figure open for the tests
ROOT = pathlib.Path(__file__).resolve().parent.parent


def paste(name, *wanted):
    """The named functions and classes of a lesson in an empty namespace, with the imports, the UPPER_CASE constants and the
    other functions that they name, as a reader would paste them. Nothing else of the lesson is run."""
    body = ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8")).body
    pieces, chosen, todo = {}, [], list(wanted)
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            pieces[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in ast.walk(node.targets[0]):
                if isinstance(target, ast.Name) and target.id.isupper():
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
    """A lesson may choose torch's precision and switch gradients off: each test finds and leaves them as they were."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)


class Run(types.SimpleNamespace):
    """ns: the globals that the run leaves behind; text: what it printed; folder: where it ran."""

    def claims(self):
        """{"C1": True, ...} as printed in the claims table."""
        rows = [line.split() for line in self.text.splitlines()]
        return {r[1]: r[0] == "ok" for r in rows if len(r) > 1 and r[0] in ("ok", "FAIL")}


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
            cache[key] = Run(ns=types.SimpleNamespace(**ns), text=text.getvalue(), folder=folder)
        return cache[key]

    return run


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
        assert stop.value.code == 2 and not caught, err.getvalue()
        assert out.getvalue() == "" and not list(folder.iterdir())
        last = err.getvalue().splitlines()[-1]
        assert last.startswith(f"{name}.py: error: ")
        return last

    return check
