"""The README against the scripts: commands, figures, seconds, code, formulas, links. No lesson is run here: each lesson's own
tests compare its run with the page."""
import ast
import contextlib
import functools
import io
import re
import shlex
import sys

import proof_pictures
import pytest
import torch
from conftest import ROOT
from PIL import Image

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
BOTH = f"{TEXT}\n{MEASURED}"
NAMES = [path.stem for path in sorted(ROOT.glob("[01][0-9]_*.py"))]
LINES = TEXT.splitlines()
SECTIONS = {part[:2]: part for part in TEXT.split("\n## ")[1:]}  # "06": its section
ROWS = [line for line in LINES if line.startswith("<tr><td><img ")]
SEVERAL_FLAGS = r"--[a-zA-Z][\w-]*(?: [\w.][\w.+-]*)?(?: --[a-zA-Z][\w-]*(?: [\w.][\w.+-]*)?)*"
PROOFS = {f".github/gallery/{name}.png" for name in ("10_media", "chain", "grid", "handwriting", "heart", "path", "rounds")}  # by tests/proof_pictures.py
each_lesson = pytest.mark.parametrize("name", NAMES)


@functools.cache
def complaint(name, flags):
    """What the script's own parser and checks say against these flags: it is run up to its data, no further."""
    knobs = (ROOT / f"{name}.py").read_text(encoding="utf-8").partition("\ntorch.set_num_threads")[0]
    argv, sys.argv, error = sys.argv, [f"{name}.py", *shlex.split(flags)], io.StringIO()
    try:
        with contextlib.redirect_stderr(error):
            exec(compile(knobs, name, "exec"), {"__name__": "__main__"})
    except SystemExit:
        return error.getvalue().splitlines()[-1]
    finally:
        sys.argv = argv


def docstring(name):
    """Its three parts: idea and claims, RUN, BREAK (with PAPER, which holds no flag)."""
    doc = ast.get_docstring(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8")))
    return re.fullmatch(r"(.*)\nRUN (.*?)\nBREAK (.*)", doc, re.S).groups()


def breaks(name):
    return [flags.rstrip(".") for flags in re.findall(SEVERAL_FLAGS, docstring(name)[2])]


def slug(heading):
    """The anchor that a Markdown page gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def commands():
    """(lesson, flags) of each code that names a lesson's file, or only flags, as `--T 50` in section 02 means 02."""
    here, section, fenced = None, None, False
    for line in BOTH.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("## "):
            here = section = next((n for n in NAMES if line.startswith(f"## {n[:2]} ")), None)
        for inline, block in [("", line)] if fenced else re.findall(r"`([^`]+)`|^    (.+)", line):
            code = inline or block
            if found := re.search(r"(\d\d_\w+)\.py\b(.*)", code):
                yield found[1], found[2]
                here = section or found[1]
            elif code.startswith("--"):
                yield here, code


def test_commands_of_the_readme_are_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = list(commands())
    assert {name for name, _ in found} == set(NAMES) and len(found) > 3 * len(NAMES)
    for name, flags in found:
        wrong = complaint(name, flags)
        assert not wrong or len(flags.split()) == 1 and wrong.endswith("expected one argument"), (name, flags)
    assert not [path for path in re.findall(r"\btests/\w+\.\w+", BOTH) if not (ROOT / path).exists()]


def test_commands_that_install_and_run_and_install_and_test():
    blocks = re.findall(r"^```\n(pip install [^`]*)\n```$", TEXT, re.M)
    assert blocks == ["pip install torch numpy matplotlib\npython 06_euler.py --steps 5",
                      "pip install torch numpy matplotlib mlxtend pytest pytest-xdist\npython -m pytest -n 2 --dist loadfile"]


def test_proofs_that_are_cited_exist():
    cited = set(re.findall(r"`(test_\w+)`", BOTH)) - {"test_paste"}
    written = {name for path in (ROOT / "tests").glob("test_*.py")
               for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)}
    assert not cited - written


@each_lesson
def test_commands_of_the_docstring_are_accepted(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, run, broken = docstring(name)
    assert set(re.findall(r"python (\S+)", run + broken)) == {f"{name}.py"} and breaks(name)
    assert not [flags for flags in breaks(name) if complaint(name, flags)]
    for flags in re.findall(SEVERAL_FLAGS, run):  # a flag may be named there without a value
        assert (complaint(name, flags.rstrip(".")) or "expected one argument").endswith("expected one argument")


def test_table_of_lessons():
    """Each row: moving picture; section as a link, headline, file as a link, seconds, the command that breaks it."""
    assert len(ROWS) == len(NAMES) == 15
    headings, total = {line[3:5]: line[3:] for line in LINES if re.match(r"## \d\d ", line)}, 0
    for name, row in zip(NAMES, ROWS):
        picture, section, number, headline, file, link, seconds, broken = re.fullmatch(
            r'<tr><td><img align="left" width="420" src="([^"]+)" alt="[^"]+"><b><a href="#([^"]+)">(\d\d) [^<]+</a></b><br>([^<]+)'
            r'<br><a href="([^"]+)"><code>([^<]+)</code></a>, (\d+) s<br>Break it: <code>([^<]+)</code></td></tr>', row).groups()
        assert picture == f".github/gallery/{name}.gif" and file == link == f"{name}.py" and headline
        assert number == name[:2] and section == slug(headings[number])
        assert broken in breaks(name), (broken, breaks(name))
        assert re.search(rf"\((takes )?{seconds} (s|seconds)\b", docstring(name)[1]), "the docstring names other seconds"
        total += int(seconds)
    assert total <= 180 and f"<!-- total -->All together: {total} s.<!-- /total -->" in TEXT


@each_lesson
def test_each_section_shows_its_figure(name):
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", SECTIONS[name[:2]])
    assert [path for path in shown if path not in PROOFS] == [f".github/gallery/{name}.png"]


def test_pictures_of_proofs_are_drawn_and_the_front_page_learns_the_moons(tmp_path, monkeypatch):
    """All but the handwriting, which takes ten minutes. The samples have the energy distance 0 to .006 (six seeds), as have both
    chains of DDPM at each time; fresh noise has .06 to .08, and real data 0 +- .0015."""
    monkeypatch.setattr(proof_pictures, "GALLERY", tmp_path)
    proof_pictures.draw_10()
    with torch.enable_grad():
        pairs = [proof_pictures.draw_heart(), *proof_pictures.draw_chain()]
    for x, y in pairs:
        far, spread = torch.cdist(x, y).mean(), (torch.pdist(x).mean() + torch.pdist(y).mean()) / 2
        assert x.shape == (1000, 2) and 2 * (far - spread) < 0.012
    proof_pictures.draw_path()
    proof_pictures.draw_grid(2)
    with torch.enable_grad():
        proof_pictures.draw_rounds(5)
    assert {f".github/gallery/{path.name}" for path in tmp_path.iterdir()} == PROOFS - {".github/gallery/handwriting.png"}
    for path in tmp_path.iterdir():
        assert path.read_bytes()[16:24] == (ROOT / ".github/gallery" / path.name).read_bytes()[16:24]  # width and height in a PNG's header


def test_pictures_are_those_of_the_gallery():
    shown = set(re.findall(r"(?:!\[[^\]]*\]\(|src=\")([^)\"]+)", TEXT))
    assert shown == {f".github/gallery/{name}.{kind}" for name in NAMES for kind in ("png", "gif")} | PROOFS
    assert shown == {path.relative_to(ROOT).as_posix() for path in (ROOT / ".github/gallery").iterdir()}


@each_lesson
def test_moving_pictures_are_short_small_and_go_there_and_back(name):
    path = ROOT / ".github/gallery" / f"{name}.gif"
    assert path.stat().st_size <= 1_000_000
    with Image.open(path) as film:
        still = []
        for frame in range(film.n_frames):
            film.seek(frame)
            still.append(film.info["duration"])
        assert film.info["loop"] == 0 and len(still) >= 4 and 6000 <= sum(still) <= 10_000


@each_lesson
def test_the_lines_of_code_in_a_section_are_the_lessons(name):
    """Each piece between two empty lines stands in the script, but for its indent and for numbers of equations."""
    script = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    script = [re.sub(r"  # equation \d+(: )?", lambda m: "  # " if m[1] else "", line).strip() for line in script.splitlines()]
    blocks = re.findall(r"^```python\n(.*?)^```$", SECTIONS[name[:2]], re.M | re.S)
    assert len(blocks) == 1 and len(blocks[0].splitlines()) <= 12
    for piece in blocks[0].split("\n\n"):
        lines = [line.strip() for line in piece.strip().splitlines()]
        assert any(script[i:i + len(lines)] == lines for i in range(len(script))), piece


def test_formulas_survive_markdown():
    """Where Markdown reads a formula before the typesetter does, it eats a backslash before punctuation and takes a _ or * between
    punctuation for emphasis; a dollar counts only with no space inside and no letter outside."""
    plain = re.sub(r"```.*?```|`[^`\n]*`", lambda m: re.sub(r"[^\n]", "x", m[0]), BOTH, flags=re.S)
    found = list(re.finditer(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", plain, re.S))
    assert plain.count("$") == sum(m[0].count("$") for m in found)
    for m in found:
        formula = m[1] or m[2]
        assert not re.search(r"\\[^\w\s]|[^\w\s]_[^\w\s]|\*|\$", formula), formula
        assert formula.count("{") == formula.count("}"), formula
        assert formula == formula.strip() and not (plain[m.start() - 1] + plain[m.end()]).strip().isalnum(), formula


def test_links():
    slugs = {page: [slug(line.lstrip("# ")) for line in text.splitlines() if line[:1] == "#"]
             for page, text in (("README.md", TEXT), ("tests/README.md", MEASURED))}
    for page, text in (("README.md", TEXT), ("tests/README.md", MEASURED)):
        for link in re.findall(r"(?:\]\(|(?:src|href)=\")([^)\"\s]+)", text):
            path, _, anchor = link.partition("#")
            target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
            assert link.startswith(("https://", "http://")) or target.exists(), link
            assert not anchor or anchor in slugs[target.relative_to(ROOT).as_posix()], link


def test_the_code_under_ddpms_derivation_turns_the_front_pages_program_into_ddpm():
    """With the exact net of N(0, I), eps_hat = s xt, the loss at t is 1 - s^2 = abar, and each step is the posterior's. (The chain of
    the picture is drawn by this code, and compared with the data above.)"""
    heart, train, sampler = proof_pictures.CODE
    with torch.enable_grad():
        exec(heart[:heart.index("for i in range")] + train.replace("2000", "1"), space := {})
    abar, batch = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0), slice(train.index("    x, eps"), train.index("    optimizer.zero"))
    abar = torch.cat([torch.ones(1), abar])
    assert torch.allclose(space["abar"], abar)
    space |= {"net": lambda x: (1 - abar[(1000 * x[:, 2:]).round().int()]).sqrt() * x[:, :2], "two_moons": lambda n: torch.randn(n, 2)}
    exec("for i in range(200):\n" + train[batch] + "    total = loss + (total if i else 0)\n", space)
    assert abs(space["total"] / 200 - abar[1:].mean()) < 0.01
    torch.manual_seed(1)
    exec(sampler, space)
    torch.manual_seed(1)
    x = torch.randn(1000, 2)
    for t in reversed(range(1, 1001)):  # by the posterior mean of x_0's estimate, sqrt(abar) x for N(0, I)
        beta = 1 - abar[t] / abar[t - 1]
        mean = ((1 - beta).sqrt() * (1 - abar[t - 1]) + abar[t - 1].sqrt() * beta * abar[t].sqrt()) / (1 - abar[t]) * x
        x = mean + beta.sqrt() * torch.randn(1000, 2) * (t != 1)
    assert (space["x"] - x).abs().max() < 0.01


def test_no_machine_and_no_host_but_arxiv_is_named():
    machine = r"(?<!\w)/(root|home|work|tmp|users|mnt|opt|usr|var)/|localhost|\b\d+\.\d+\.\d+\.\d+\b"
    assert not [line for line in BOTH.splitlines() if re.search(machine, line, re.I)]
    assert set(re.findall(r"https?://([^/)\s]+)", BOTH)) == {"arxiv.org"}
    assert not re.search(r"\b[a-z0-9-]+\.(org|com|io)\b", re.sub(r"https://arxiv\.org", "", BOTH))
