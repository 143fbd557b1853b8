"""The claims of each lesson on ten seeds that were never used for tuning, with `--slow` only: half an hour."""
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("path", sorted(ROOT.glob("[01][0-9]_*.py")), ids=lambda path: path.stem)
def test_claims_hold_on_ten_seeds(path, tmp_path):
    for seed in range(9300, 9310):
        run = subprocess.run([sys.executable, str(path), "--seed", str(seed)], cwd=tmp_path, capture_output=True, text=True,
                             env={**os.environ, "MPLBACKEND": "Agg", "PYTHONIOENCODING": "utf-8"})
        claims = [line for line in run.stdout.splitlines() if line.startswith(("ok ", "FAIL "))]
        assert run.returncode == 0 and len(claims) in (2, 3), run.stderr
        assert all(line.startswith("ok ") for line in claims), (seed, claims)
