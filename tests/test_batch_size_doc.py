from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_stories_in_the_documentation_are_what_the_example_prints() -> None:
    script = ROOT / "scripts" / "batch_size_stories.py"
    printed = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed in (ROOT / "docs" / "batch-size.md").read_text(encoding="utf-8")
