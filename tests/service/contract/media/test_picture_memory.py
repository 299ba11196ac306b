"""Opening and fitting pictures takes memory in proportion to them: measured in processes of their own."""

import subprocess
import sys
import textwrap

import pytest

# VmHWM, not ru_maxrss: a child inherits the latter from the process that started it
_HARNESS = """
import io, resource, re
import numpy as np
from PIL import Image
from service.contract.media.fitting import fit_square
from service.contract.media.pictures import open_picture

def memory(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

fit_square(Image.new("RGB", (50, 40)), 16)
{prepare}
mapped = int(memory("VmSize") + 1500) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (mapped, mapped))  # a fault ends here, not with the machine
open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
before = memory("VmRSS")
{work}
print(memory("VmHWM") - before)
"""


def peak_mb(work: str, prepare: str = "") -> float:
    """Return the peak of additional memory of some lines of Python, in MB."""
    code = _HARNESS.format(prepare=textwrap.dedent(prepare), work=textwrap.dedent(work))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return float(ended.stdout)


def test_memory_is_measured():
    assert 190 < peak_mb("Image.new('RGB', (50, 1000000), 1)") < 230


@pytest.mark.parametrize("size", [(3_000_000, 8), (8, 3_000_000)])
def test_sliver_of_a_picture_is_fitted_in_little_memory(size):
    work = """
        square, frame = fit_square(picture, 64)
        assert frame.size == 3_000_000
        assert square[31:33, 31:33, 0].max() >= square[0, 0, 0]
    """
    assert peak_mb(work, f"picture = Image.new('RGB', {size}, (255, 0, 0))") < 120


@pytest.mark.parametrize("box", [(-1e6, -1e6, 2e6, 2e6), (-1e8, -1e8, 2e8, 2e8)])
def test_box_thousands_of_times_the_picture_is_all_grey_in_little_memory(box):
    work = f"""
        square, frame = fit_square(Image.new("RGB", (40, 30), (255, 0, 0)), 64, {box})
        assert frame.size == {box[2]}
        assert abs(int(square.mean()) - 128) <= 2
    """
    assert peak_mb(work) < 60


def test_large_picture_is_fitted_in_less_memory_than_its_own():
    work = "fit_square(picture, 64, (0.5, 0.5, 4995.0, 3990.0))"
    assert peak_mb(work, "picture = Image.new('RGB', (5000, 4000), 1)") < 60  # it takes 80


@pytest.mark.parametrize(
    ("make", "save"),
    [
        ("Image.new('F', SIZE, 0.5)", "'TIFF', compression='tiff_adobe_deflate'"),
        ("Image.new('I', SIZE, 70000)", "'TIFF', compression='tiff_adobe_deflate'"),
        ("Image.new('RGBA', SIZE, (9, 9, 9, 99))", "'PNG', compress_level=1"),
    ],
    ids=["F", "I", "RGBA"],
)
def test_picture_is_converted_in_memory_for_it_and_the_result(make, save):
    prepare = f"""
        SIZE = (5000, 4000)
        file = io.BytesIO()
        {make}.save(file, {save})
        data = file.getvalue()
    """
    assert peak_mb("open_picture(data)", prepare) < 3 * 80  # 4 bytes a pixel


def test_photograph_of_a_phone_is_opened_for_a_square_in_little_memory():
    prepare = """
        file = io.BytesIO()
        Image.linear_gradient("L").resize((4000, 3000)).convert("RGB").save(file, "JPEG")
        data = file.getvalue()
        from service.contract.media.fitting import reduction_for_boxes
        from service.contract.media.pictures import open_reduced
    """
    assert peak_mb("open_picture(data)", prepare) > 30
    assert peak_mb("open_reduced(data, reduction_for_boxes(64))", prepare) < 8
