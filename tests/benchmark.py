"""Seconds and claims of every lesson at its defaults, as the README's table: python tests/benchmark.py [--seed N].

Not a test: seconds belong to the machine. Run it when nothing else runs."""
import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seed", type=int, nargs="*", default=[0], help="one run of each lesson per seed (0)")
args = parser.parse_args()
env = {**os.environ, "MPLBACKEND": "Agg"}
print("| lesson | seed | seconds | claims |\n|---|---|---|---|")
for path in sorted(ROOT.glob("[01][0-9]_*.py")):
    for seed in args.seed:
        with tempfile.TemporaryDirectory() as folder:
            start = time.time()
            done = subprocess.run([sys.executable, str(path), "--seed", str(seed)], cwd=folder, env=env,
                                  capture_output=True, text=True)
            seconds = time.time() - start
        rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("ok ", "FAIL "))]
        # the measured number is the word before the comparison sign
        words = [f"{r[1]} {r[-3]}{'' if r[0] == 'ok' else ' FAIL'}" for r in rows]
        print(f"| {path.stem} | {seed} | {seconds:.1f} | {', '.join(words)} |{done.stderr[-200:]}", flush=True)
