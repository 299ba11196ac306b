"""The list of threats names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (?!threat|---)(.+) \| (.+) \| (.+) \|$", re.MULTILINE)


def test_every_threat_names_tests_that_exist() -> None:
    rows = ROW.findall((ROOT / "docs" / "security.md").read_text())
    assert len(rows) > 30
    for threat, _, tests in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert named, threat
        assert tests == ", ".join(f"`{path}::{name}`" for path, name in named), threat
        for path, name in named:
            tree = ast.parse((ROOT / path).read_text())
            assert name in {getattr(node, "name", None) for node in tree.body}, f"{path}::{name}"
