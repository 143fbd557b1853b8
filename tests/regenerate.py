"""Runs the lessons as a reader does and brings the README up to date. Not a test.

python tests/regenerate.py            figures, seconds (README, docstrings), the example of 06; prints a table
python tests/regenerate.py --check    prints that table, changes nothing: status 1 if more than seconds would change
python tests/regenerate.py --moving   the moving pictures: each lesson's own widget, from good to broken and back
python tests/regenerate.py --proofs   the pictures of the README that belong to no lesson; ten minutes
python tests/regenerate.py --seeds 2000 2009 --jobs 2
                                      the column "min .. max" of the claims tables (half an hour on two cores)

Seconds belong to the machine: let nothing else run. The status is 1, too, if a claim fails or a lesson stops."""
import argparse
import contextlib
import math
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MEASURED = ROOT / "tests" / "README.md"
GALLERY = ROOT / ".github" / "gallery"
MOVES = {  # the name of the widget, and its values on the way from good to broken (08: a flag, training goes on)
    "01_problem": ("slider", [20, 10, 7, 5, 4, 3, 2, 1]),
    "02_ddpm_forward": ("slider", [1000, 700, 500, 400, 300, 200, 150, 100, 50, 20]),
    "03_elbo": ("slider", [0, 0.0005, 0.001, 0.0015, 0.002, 0.0025, 0.003]),
    "04_ancestral": ("slider", [100, 20, 10, 5, 3, 1]),
    "05_cfm": ("slider", [0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
    "06_euler": ("slider", [16, 8, 5, 4, 3, 2, 1]),
    "07_bridge": ("slider", [1, 0.8, 0.6, 0.4, 0.2, 0]),
    "08_dit": ("--iters", [10, 25, 50, 100, 200, 400, 800]),
    "09_knobs": ("slider", [2, 3, 4, 5, 6, 7, 8]),
    "10_discrete": ("passes", [16, 12, 8, 6, 4, 3, 2, 1]),
    "11_vq": ("start", [0, 0.5, 0.8, 1, 1.2, 1.5, 2]),
    "12_maskgit": ("noise", [1, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0]),
    "13_unified": ("slider", [4, 5, 6, 7, 8]),
    "14_reasoning_gen": ("radio", [4, 3, 2, 1, 0, 5]),
    "15_hybrid": ("radio", [0, 1, 0, 1]),
}

def run(name, *flags, figure=False, **environment):
    """One run in an empty folder: what it printed (C0: it stopped), and seconds."""
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONIOENCODING": "utf-8", **environment}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        start = time.time()
        status = subprocess.run([sys.executable, str(ROOT / f"{name}.py"), *flags], cwd=folder, env=environment,
                                stdout=out, stderr=subprocess.STDOUT).returncode
        seconds = time.time() - start
        if figure and status == 0:
            shutil.copy(pathlib.Path(folder, f"{name}.png"), GALLERY)
        out.seek(0)
        text = out.read()
        if status:
            print(text[-1000:], file=sys.stderr)
            text += f"\nFAIL  C0 stopped: {status} < 1"
        return text, seconds

def claims(text):
    """[("ok", "C1", "0.05342"), ...]: the measured number stands before the comparison."""
    return re.findall(r"^(ok|FAIL) +(C\d+) .*: (\S+) [<>] \S+$", text, re.M)

def span(printed):
    """["0.0163", "0.0951", ...] -> "0.016 .. 0.095": two digits of the width, but none that was not printed."""
    low, high = min(map(float, printed)), max(map(float, printed))
    digits = max(len(word.partition(".")[2]) for word in ["", *printed] if "e" not in word)
    if low < high:
        digits = max(0, min(digits, 1 - math.floor(math.log10(high - low))))

    def short(x):
        if max(-low, high) < 1e-4:  # round-off
            return f"{x:.0e}".replace("e-0", "e-") if x else "0"
        first = -math.floor(math.log10(abs(x))) if x else 0  # a number that is not 0 is not written as 0
        return f"{x:.{max(digits, first)}f}"

    return " .. ".join(dict.fromkeys([short(low), short(high)]))  # once if they are the same

def with_seconds(text, seconds):
    """The README with new seconds in the table of lessons, and with their sum."""
    total = 0

    def number(row):
        nonlocal total
        new = round(seconds.get(row[2], float(row[4])))
        total += new
        return f"{row[1]}{row[2]}{row[3]}{new} s<br>"

    text = re.sub(r"^(<tr><td><img .*<code>)(\d\d_\w+)(\.py</code></a>, )(\d+) s<br>", number, text, flags=re.M)
    pair = "<!-- total -->", "<!-- /total -->"
    return re.sub(".*?".join(pair), f"All together: {total} s.".join(pair), text, flags=re.S)

def with_example(text, printed):
    """The README with what `06_euler.py` prints."""
    block = f"```\n{printed.rstrip()}\n```"
    return re.sub(r"^```\nWe train on.*?\n```$", lambda _: block, text, flags=re.M | re.S)

def with_ranges(text, name, seeds, texts):
    """tests/README.md with the ranges of what the seeds printed in the claims table of that lesson's section."""
    before, section, after = re.split(rf"^(## {name[:2]} .*?)(?=^## |\Z)", text, maxsplit=1, flags=re.M | re.S)
    header = f"| claim | seeds {seeds[0]} to {seeds[1]}, min .. max | bound |"
    section = re.sub(r"^\| claim \|.*", header, section, flags=re.M)
    for rows in zip(*map(claims, texts)):  # one claim, all seeds
        cell = span([value for _, _, value in rows])
        section = re.sub(rf"^(\| {rows[0][1]} .*\|)[^|]*(\|[^|]*\|)$", rf"\1 {cell} \2", section, flags=re.M)
    return before + section + after

def many_seeds(names, seeds, jobs):
    """{name: [what each seed printed]}."""
    seeds = range(seeds[0], seeds[1] + 1)
    with ThreadPoolExecutor(jobs) as pool:
        runs = {name: [pool.submit(run, name, "--seed", str(seed), OMP_NUM_THREADS="1") for seed in seeds] for name in names}
        for name, jobs_of_it in runs.items():
            print(f"{name}: {sum(job.result()[1] for job in jobs_of_it):.0f} s", flush=True)
    return {name: [job.result()[0] for job in jobs_of_it] for name, jobs_of_it in runs.items()}

def figure(name, *flags):
    """The names that a run of the lesson leaves, its figure among them."""
    import torch

    before, argv, sys.argv = os.getcwd(), sys.argv, [f"{name}.py", *flags]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        os.chdir(folder)
        try:
            torch.set_default_dtype(torch.float32)  # the lesson before may have chosen another
            torch.set_grad_enabled(True)
            return runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
        finally:
            os.chdir(before)
            sys.argv = argv

def moving(name):
    """Write NN_name.gif: the lesson's own figure while its widget goes from good to broken and back, or in training."""
    import numpy as np
    from PIL import Image  # it comes with matplotlib

    knob, values = MOVES[name]
    training, frames = knob[0] == "-", []
    ns = figure(name) if not training else None
    for value in values:
        if training:
            ns = figure(name, knob, str(value))
            ns["ax"].set_title(f"After {value} iterations of training")
        else:
            ns[knob].set_val(value) if hasattr(ns[knob], "set_val") else ns[knob].set_active(value)
        ns["fig"].canvas.draw()
        picture = Image.fromarray(np.asarray(ns["fig"].canvas.buffer_rgba())[:, :, :3])
        picture = picture.resize((720, round(720 * picture.height / picture.width)), Image.Resampling.LANCZOS)
        frames.append(picture.quantize(128, Image.Quantize.MAXCOVERAGE, 4, dither=Image.Dither.NONE))
    inner = max(1, len(frames) - 2)
    still = [800] + [1200 // inner] * (len(frames) - 2) + [2000]  # broken within two seconds
    if training:
        still, way = [960] * (len(frames) - 1) + [2240], frames
    else:  # and back, without showing the ends twice
        still, way = still + [2400 // inner] * (len(frames) - 2), frames + frames[-2:0:-1]
    way[0].save(GALLERY / f"{name}.gif", save_all=True, append_images=way[1:], duration=still, loop=0, optimize=True)
    print(f"{name}.gif: {(GALLERY / f'{name}.gif').stat().st_size / 1000:.0f} kB, {sum(still) / 1000:.1f} s", flush=True)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--only", nargs="+", default=[""], help="numbers of lessons, as 06 13 (all)")
parser.add_argument("--seeds", nargs=2, type=int, help="first and last seed for the claims tables")
parser.add_argument("--jobs", type=int, default=1, help="runs at a time, with --seeds (1)")
parser.add_argument("--check", action="store_true", help="change nothing")
parser.add_argument("--moving", action="store_true", help="write the moving pictures, and nothing else")
parser.add_argument("--proofs", action="store_true", help="write the pictures of proofs, and nothing else")
args = parser.parse_args()
names = [path.stem for path in sorted(ROOT.glob("[01][0-9]_*.py")) if path.stem.startswith(tuple(args.only))]
if args.proofs:
    import proof_pictures

    for picture in ("10", "heart", "handwriting", "path", "chain", "grid", "rounds"):
        getattr(proof_pictures, f"draw_{picture}")()
    sys.exit()
if args.moving:
    os.environ["MPLBACKEND"] = "Agg"
    for name in names:
        moving(name)
    sys.exit()
if args.seeds:
    printed = many_seeds(names, args.seeds, args.jobs)
else:
    print("| lesson | seconds | claims |\n|---|---|---|")
    printed, seconds = {}, {}
    for name in names:
        text, seconds[name] = run(name, figure=not args.check)
        printed[name] = [text]
        row = ", ".join(f"{claim} {value}" for _, claim, value in claims(text))
        print(f"| {name} | {seconds[name]:.1f} | {row} |", flush=True)
failed = [f"FAIL {name} seed {seed}: {claim} {value}" for name, texts in printed.items()
          for seed, text in enumerate(texts, (args.seeds or [0])[0])
          for mark, claim, value in claims(text) if mark == "FAIL"]
print(*failed, sep="\n")
if any(" C0 " in line for line in failed):
    sys.exit("a lesson stopped: the README is left as it was")

page = MEASURED if args.seeds else README
old = new = page.read_text(encoding="utf-8")  # only now: it may have been edited in the meantime
for name in [name for name in names if args.seeds and f"\n## {name[:2]} " in old]:
    new = with_ranges(new, name, args.seeds, printed[name])
if not args.seeds and "06_euler" in names:
    new = with_example(new, printed["06_euler"][0])
if not args.check:
    page.write_text(new if args.seeds else with_seconds(new, seconds), encoding="utf-8")
    for name in [] if args.seeds else names:  # the docstring's RUN names the same seconds
        path = ROOT / f"{name}.py"
        text = re.sub(r"^(RUN .*?\()\d+ s", rf"\g<1>{seconds[name]:.0f} s", path.read_text(encoding="utf-8"), 1, re.M)
        path.write_text(text, encoding="utf-8", newline="\n")
sys.exit(bool(failed) or args.check and new != old)
