"""The files of the inspection page: whole, immutable, compressed, under a strict policy, below any prefix."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np

from model.version.palette import BOX_RGB, PALETTE, box_rgb, keypoint_rgb
from service.estimates.drawing import keypoint_colour

PAGE = Path(__file__).resolve().parents[3] / "service" / "page"


async def test_every_file_that_the_page_loads_is_served_for_good(http):
    document = await http.get("/")
    assert document.headers["cache-control"] == "no-cache"
    addresses = set(re.findall(r'(?:src|href)="(page/[^"]+)"', document.text))
    folder = next(iter(addresses)).rpartition("/")[0]
    imported = {
        f"{folder}/{name}" for file in PAGE.glob("*.js") for name in re.findall(r'"\./(\w+\.js)"', file.read_text())
    }
    assert len(imported) >= 12
    for address in (*addresses, *imported, f"{folder}/sample0.jpg", f"{folder}/sample.zip"):
        answer = await http.get(f"/{address}")
        assert answer.status_code == 200, address
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert (await http.get(f"/{folder}/sample.zip")).content == (PAGE.parent / "samples" / "dog.zip").read_bytes()


async def test_a_browser_that_has_the_document_gets_no_second_one(http):
    first = await http.get("/")
    again = await http.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_scripts_are_sent_compressed_where_that_is_accepted(http):
    address = re.search(r'src="(page/\w+/app\.js)"', (await http.get("/")).text)[1]
    async with http.stream("GET", f"/{address}", headers={"Accept-Encoding": "gzip"}) as answer:
        packed = b"".join([part async for part in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed) == (PAGE / "app.js").read_bytes()
    plain = await http.get(f"/{address}", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == (PAGE / "app.js").read_bytes()


async def test_policy_allows_no_script_or_style_in_the_document(http):
    document = await http.get("/")
    policy = document.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "style-src 'self';" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|<script>| style=| on\w+=", document.text)


async def test_no_text_becomes_markup():
    text = "".join(file.read_text() for file in PAGE.glob("*.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)


async def test_other_files_are_not_there(http, problem):
    folder = re.search(r'src="(page/\w+)/app\.js"', (await http.get("/")).text)[1]
    for address in (f"/{folder}/index.html", f"/{folder}/none.js", "/page/0123456789abcdef/app.js"):
        problem(await http.get(address), 404, "not_found")


async def test_below_a_prefix_the_addresses_have_it_and_no_key_is_needed(serve):
    http = await serve(root_path="/lab/ppl", api_keys=True)
    document = await http.get("/lab/ppl")
    address = re.search(r'src="(/lab/ppl/page/\w+/app\.js)"', document.text)[1]
    assert (await http.get(address)).content == (PAGE / "app.js").read_bytes()
    assert (await http.get("/lab/ppl/priors")).status_code == 401


async def test_page_and_overlays_have_the_same_colours(http):
    folder = re.search(r'src="(page/\w+)/app\.js"', (await http.get("/")).text)[1]
    shown = re.findall("#([0-9a-f]{6})", (await http.get(f"/{folder}/palette.js")).text)
    assert [tuple(bytes.fromhex(text)) for text in shown] == [*map(keypoint_rgb, range(32)), BOX_RGB]
    assert keypoint_colour(33).tolist() == list(PALETTE[1])
    boxes = [box_rgb(animal) for animal in range(8)]
    assert boxes[0] == boxes[7] == BOX_RGB
    assert {*boxes} == {*map(keypoint_rgb, range(7))}, "the colours that colour-blind people distinguish best"


# linear RGB as seen without red and without green cones (Machado, Oliveira and Fernandes 2009)
PROTANOPE = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
DEUTERANOPE = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))


def test_colours_of_consecutive_keypoints_differ_for_colour_blind_people():
    srgb = np.array([keypoint_rgb(index) for index in range(16)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    for cones in (PROTANOPE, DEUTERANOPE):
        seen = (linear @ np.array(cones).T).clip(0, 1)
        seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055) * 255
        apart = np.abs(seen[:, None] - seen[None]).max(axis=2)
        assert np.diag(apart, 1).min() > 40
        assert (apart + 999 * np.eye(16))[:7, :7].min() > 40
