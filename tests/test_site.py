"""The documents as a site: links and anchors lead somewhere, nothing is loaded from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import dynammo

ROOT = Path(__file__).parents[1]


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    done = subprocess.run([*command, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    commands = (tmp_path / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert "dynammo apply-delta" in commands
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]* src="?(?:https?:)?//', text), page
        links = re.findall(r"<link[^>]*>", text)
        loaded = [link for link in links if "stylesheet" in link or "preconnect" in link]
        assert not [link for link in loaded if "//" in link], page


def test_the_reference_has_every_public_name() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    names = re.findall(r"^::: (\S+)\.(\w+)$", text, re.M)
    assert [name for _, name in names] == dynammo.__all__
