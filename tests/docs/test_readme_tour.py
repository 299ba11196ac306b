"""Every command of the README's tour, in its order, in a shell, against the platform as `ppl up` starts it.

Only what takes long is made short: the steps, and the size of the model that is trained.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.stack_process import TINY, StackProcess, drawing

ROOT = Path(__file__).resolve().parents[2]
TOUR = (ROOT / "README.md").read_text(encoding="utf-8").split("### A tour of ten minutes", 1)[1].split("\n### ", 1)[0]
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TOUR, re.DOTALL) for line in block.splitlines() if line]
SMALL = " ".join(f"--set {name}={value}" for name, value in TINY.items() if name != "steps")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in Linux's /proc"),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    stack = StackProcess(tmp_path_factory.mktemp("tour") / "data")
    yield stack
    stack.end()


@pytest.fixture(scope="module")
def garden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tour says to have: folders of pictures, one picture more, and labels."""
    folder = tmp_path_factory.mktemp("garden")
    for name, first, count in (("photos", 0, 24), ("more", 100, 12), ("labelled", 200, 12)):
        (folder / name).mkdir()
        for number in range(first, first + count):
            (folder / name / f"{number:03}.jpg").write_bytes(drawing(number))
    (folder / "new.jpg").write_bytes(drawing(999))
    rows = [f"{number:03}.jpg,centre,{18 + number % 4},{14 + number % 3}" for number in range(200, 212)]
    (folder / "labels.csv").write_text("\n".join(["image,keypoint,x,y", *rows]) + "\n")
    return folder


def test_every_command_of_the_tour_does_what_it_says(stack: StackProcess, garden: Path) -> None:
    assert len(COMMANDS) >= 12
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PPL_URL": stack.url, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    for command in COMMANDS:
        short = re.sub(r"--set steps=\d+", "--set steps=6", command)
        if short.startswith("ppl train mine photos"):
            short = f"{short} {SMALL}"
        if short.startswith("ppl train"):
            short = f"{short} --activate-always"  # no run of six steps is any good
        done = subprocess.run(
            ["bash", "-c", short], cwd=garden, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{short}:\n{done.stdout}{done.stderr}"
    with Image.open(garden / "sheet.jpg") as sheet, Image.open(garden / "pose.png") as pose:
        assert sheet.format == "JPEG"
        assert pose.size == (40, 32)
    assert (garden / "poses.csv").read_text().count(".jpg") == 24
    assert (garden / "mine.zip").stat().st_size > 1000
