"""The main job from a shell."""

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(sys.executable).with_name("secateur")


def test_main_job_from_a_shell_without_a_terminal(tmp_path, model, data):
    done = subprocess.run(
        [
            SCRIPT,
            "prune-and-export",
            "--model",
            model,
            "--data",
            data,
            "--macs",
            "0.6",
            "--epochs",
            "1",
            "--batches",
            "1",
            "--out",
            "run",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "TERM": "dumb"},
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b[" not in done.stdout
    for stage in ("load", "explain", "plan", "repair", "recover", "evidence", "export", "accuracy", "latency"):
        assert re.search(rf"✓ {stage}\s+\d+\.\d s", done.stdout), stage
    assert "run/report.html" in done.stdout
    assert "run/evidence.html" in done.stdout
    assert (tmp_path / "run" / "evidence.html").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    again = subprocess.run([SCRIPT, "report", "--out", "run"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0
    quiet = subprocess.run(
        [SCRIPT, "prune-and-export", "--resume", "--recipe", "run/recipe.toml", "--out", "run", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert quiet.returncode == 0, quiet.stderr
    assert "✓" not in quiet.stdout
    assert "MACs" in quiet.stdout
