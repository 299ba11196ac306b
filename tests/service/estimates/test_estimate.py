"""POST /estimate: pictures in, keypoints in pixels of the uploaded picture out."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time

import numpy as np
import pytest
import redis
from PIL import Image

from service.contract import routing
from service.contract.errors import ContractMismatch, ModelFailed
from service.estimates.schemas import Estimate
from service.runtime import worker_queue
from tests.support.clocks import set_clock


def images(*pictures: bytes):
    return [("images", (f"{index}.png", data)) for index, data in enumerate(pictures)]


def png_of(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.fixture
def dog(publish):
    return publish("dog")


async def test_answer_has_the_documented_shape(http, consumer, dog, make_picture):
    response = await http.post(
        "/estimate", data={"category": "dog"}, files=images(make_picture(), make_picture(50, 80))
    )
    assert response.status_code == 200, response.text
    answer = response.json()
    assert set(answer) == {"category", "version", "images", "timing_ms"}
    assert (answer["category"], answer["version"]) == ("dog", dog)
    assert [image["index"] for image in answer["images"]] == [0, 1]
    assert [(image["width"], image["height"]) for image in answer["images"]] == [(96, 64), (50, 80)]
    for image in answer["images"]:
        assert set(image) == {"index", "width", "height", "keypoints", "surprise", "present", "links"}
        assert (image["surprise"], image["present"]) == (0.5, 0.9)
        assert [set(point) for point in image["keypoints"]] == [{"id", "x", "y", "score"}] * 5
        assert [(link["i"], link["j"]) for link in image["links"]] == [(0, 1), (0, 2), (0, 3), (0, 4)]
        assert set(image["links"][0]) == {"i", "j", "weight"}
    assert set(answer["timing_ms"]) == {"decode", "queue", "model", "total"}
    assert answer["timing_ms"]["total"] >= answer["timing_ms"]["decode"]
    Estimate.model_validate(answer)
    fields = {"category": "dog", "include": "links"}
    every = (await http.post("/estimate", data=fields, files=images(make_picture()))).json()["images"][0]["links"]
    assert len(every) == 10


@pytest.mark.parametrize(("width", "height"), [(64, 64), (300, 100), (100, 300), (1000, 700), (20, 17)])
@pytest.mark.parametrize("where", [(0.5, 0.5), (0.3, 0.62)])
async def test_keypoints_are_pixels_of_the_uploaded_picture(http, consumer, dog, make_picture, width, height, where):
    files = images(make_picture(width, height, where))
    response = await http.post("/estimate", data={"category": "dog"}, files=files)
    spot = response.json()["images"][0]["keypoints"][0]
    ys, xs = np.mgrid[:height, :width]
    near = np.hypot(xs - where[0] * width, ys - where[1] * height) <= 0.12 * min(width, height)
    tolerance = 0.5 * max(width, height) / 64
    assert abs(spot["x"] - xs[near].mean()) < tolerance
    assert abs(spot["y"] - ys[near].mean()) < tolerance


async def test_exif_orientation_is_applied_to_size_and_keypoints(http, consumer, dog, make_picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    files = images(make_picture(120, 60, (0.25, 0.5), exif=exif))
    image = (await http.post("/estimate", data={"category": "dog"}, files=files)).json()["images"][0]
    assert (image["width"], image["height"]) == (60, 120)
    # (x, y) of the stored picture is (60 - y, x) upright
    assert abs(image["keypoints"][0]["x"] - 30) < 1.5
    assert abs(image["keypoints"][0]["y"] - 30) < 1.5


async def test_box_chooses_the_part_to_estimate(http, consumer, dog, make_picture):
    data = {"category": "dog", "boxes": "[[100, 50, 100, 80]]", "include": "link_map"}
    files = images(make_picture(400, 200, (0.375, 0.45)))
    image = (await http.post("/estimate", data=data, files=files)).json()["images"][0]
    assert (image["width"], image["height"]) == (400, 200)
    assert abs(image["keypoints"][0]["x"] - 150) < 1
    assert abs(image["keypoints"][0]["y"] - 90) < 1
    drawn = np.asarray(png_of(image["link_map"]))
    assert drawn.shape == (200, 400)
    ys, xs = np.nonzero(drawn > 128)
    assert abs(xs.mean() - 150) < 1
    assert abs(ys.mean() - 90) < 1
    assert drawn[:, :99].max() == drawn[:, 201:].max() == 0


async def test_each_picture_has_its_own_box(http, consumer, dog, make_picture):
    picture = make_picture(400, 200, (0.375, 0.45))
    data = {"category": "dog", "boxes": json.dumps([[100, 50, 100, 80], [0, 0, 400.5, 200]])}
    answer = (await http.post("/estimate", data=data, files=images(picture, picture))).json()
    first, second = (image["keypoints"][0] for image in answer["images"])
    assert abs(first["x"] - second["x"]) < 4


async def test_includes_what_is_asked_for(http, consumer, dog, make_picture):
    data = {"category": "dog", "refine_steps": "3", "include": "link_map, trajectory,overlay"}
    answer = (await http.post("/estimate", data=data, files=images(make_picture(90, 45)))).json()
    image = answer["images"][0]
    assert [len(step) for step in image["trajectory"]] == [5, 5, 5, 5]
    last = [(point["x"], point["y"]) for point in image["trajectory"][-1]]
    assert last == [(point["x"], point["y"]) for point in image["keypoints"]]
    assert image["trajectory"][0] != image["trajectory"][-1]
    link_map, overlay = png_of(image["link_map"]), png_of(image["overlay"])
    assert (link_map.mode, link_map.size) == ("L", (90, 45))
    assert (overlay.mode, overlay.size) == ("RGB", (90, 45))
    assert consumer.batches[0].refine_steps == 3
    Estimate.model_validate(answer)


async def test_codes_are_there_where_asked_for(http, consumer, dog, make_picture):
    data = {"category": "dog", "include": "codes"}
    image = (await http.post("/estimate", data=data, files=images(make_picture()))).json()["images"][0]
    assert image["codes"] == [1, 0, 1]
    assert consumer.batches[0].codes


async def test_reconstructions_are_there_for_each_pose_of_the_trajectory(http, consumer, dog, make_picture):
    data = {"category": "dog", "refine_steps": "2", "include": "trajectory,reconstructions"}
    answer = (await http.post("/estimate", data=data, files=images(make_picture(90, 45)))).json()
    image = answer["images"][0]
    squares = [png_of(square) for square in image["reconstructions"]]
    assert [square.getpixel((3, 3)) for square in squares] == [(0, 0, 0), (10, 10, 10), (20, 20, 20)]
    assert {(square.mode, square.size) for square in squares} == {("RGB", (32, 32))}
    assert len(image["trajectory"]) == 3
    Estimate.model_validate(answer)


async def test_version_without_a_scale_has_no_surprise(http, make_consumer, dog, make_picture):
    def older(reply):
        object.__setattr__(reply, "surprises", None)
        object.__setattr__(reply, "presences", None)

    await make_consumer(older)
    answer = (await http.post("/estimate", data={"category": "dog"}, files=images(make_picture()))).json()
    assert (answer["images"][0]["surprise"], answer["images"][0]["present"]) == (None, None)
    Estimate.model_validate(answer)


@pytest.mark.parametrize("word", ["codes", "reconstructions"])
async def test_what_an_older_worker_does_not_send_is_reported(http, make_consumer, dog, make_picture, problem, word):
    def older(reply):
        object.__setattr__(reply, word, None)

    await make_consumer(older)
    response = await http.post("/estimate", data={"category": "dog", "include": word}, files=images(make_picture()))
    assert f"leave {word} out" in problem(response, 503, "contract_mismatch")["detail"]


@pytest.mark.parametrize("word", ["codes", "reconstructions"])
async def test_what_needs_a_memory_is_refused_without_one(http, consumer, publish, make_picture, problem, word):
    publish("dog", method="autolink")
    response = await http.post("/estimate", data={"category": "dog", "include": word}, files=images(make_picture()))
    assert f"leave {word} out" in problem(response, 422, "no_memory")["detail"]


async def test_trajectory_without_refinement_is_the_pose(http, consumer, dog, make_picture):
    data = {"category": "dog", "include": "trajectory"}
    image = (await http.post("/estimate", data=data, files=images(make_picture()))).json()["images"][0]
    assert len(image["trajectory"]) == 1


async def test_version_is_the_active_one_unless_given(http, consumer, publish, make_picture):
    old, new = publish("dog", "20260101T000000-aaaaaa", side=32), publish("dog", "20260202T000000-bbbbbb", side=64)
    for version, expected, side in ((None, new, 64), ("", new, 64), (old, old, 32)):
        data = {"category": "dog"} | ({} if version is None else {"version": version})
        answer = (await http.post("/estimate", data=data, files=images(make_picture()))).json()
        assert answer["version"] == expected
        assert consumer.batches[-1].side == side


async def test_many_pictures_come_back_in_their_order(serve, consumer, dog, make_picture):
    http = await serve(batch_limit=8)
    places = [(0.2 + 0.015 * index, 0.5) for index in range(40)]
    files = images(*(make_picture(64, 64, where) for where in places))
    answer = (await http.post("/estimate", data={"category": "dog"}, files=files)).json()
    found = [image["keypoints"][0]["x"] for image in answer["images"]]
    assert found == sorted(found)
    assert np.abs(np.array(found) - [where[0] * 64 for where in places]).max() < 1
    assert sum(batch.count for batch in consumer.batches) == 40
    assert max(batch.count for batch in consumer.batches) == 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
async def test_every_format_is_read(http, consumer, dog, make_picture, kind):
    files = images(make_picture(format=kind))
    assert (await http.post("/estimate", data={"category": "dog"}, files=files)).status_code == 200


@pytest.mark.parametrize("mode", ["CMYK", "L", "LA", "RGBA", "P", "1", "I;16"])
async def test_unusual_pictures_are_converted(http, consumer, dog, mode):
    image = Image.new("L", (64, 64), 200)
    file = io.BytesIO()
    if mode == "I;16":
        image = Image.fromarray(np.full((64, 64), 51400, np.uint16))
    else:
        image = image.convert("RGB").convert(mode) if mode != "LA" else image.convert("LA")
    image.save(file, "TIFF" if mode == "CMYK" else "PNG")
    response = await http.post("/estimate", data={"category": "dog"}, files=images(file.getvalue()))
    assert response.status_code == 200, response.text
    expected = 255 if mode == "1" else 200
    if mode != "1":
        assert abs(int(consumer.pixels[-1].mean()) - expected) <= 1


async def test_worker_and_gateway_see_the_same_pixels(http, consumer, dog, make_picture):
    from service.contract.media.fitting import fit_square
    from service.contract.media.pictures import open_picture

    data = make_picture(333, 200, (0.4, 0.4))
    await http.post("/estimate", data={"category": "dog"}, files=images(data))
    assert np.array_equal(consumer.pixels[0][0], fit_square(open_picture(data), 64)[0])


# bad input: a problem document, and no trace


async def test_refuses_a_request_without_a_picture(http, dog, problem, no_trace):
    problem(await http.post("/estimate", files={"category": (None, "dog")}), 422, "no_images")
    no_trace()


async def test_a_browsers_empty_file_choice_is_no_picture(http, dog, problem):
    field = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    body = field % (b"category", b"", b"dog") + field % (b"images", b'; filename=""', b"") + b"--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    problem(await http.post("/estimate", content=body, headers=headers), 422, "no_images")


async def test_refuses_a_picture_sent_as_text(http, dog, problem):
    form = {"category": (None, "dog"), "images": (None, "photo.jpg")}
    document = problem(await http.post("/estimate", files=form), 422, "bad_request")
    assert "curl -F images=@" in document["detail"]


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 415, "not_an_image"),
        (b"hello" * 100, 415, "not_an_image"),
        (b"GIF89a" + bytes(60), 415, "unsupported_format"),
    ],
)
async def test_refuses_what_is_no_picture(http, dog, problem, no_trace, data, status, code):
    document = problem(await http.post("/estimate", data={"category": "dog"}, files=images(data)), status, code)
    assert "images[0] (0.png)" in document["detail"]
    assert "expected a JPEG, PNG, WebP, AVIF, HEIC, BMP or TIFF" in document["detail"]
    no_trace()


async def test_names_the_bad_picture_among_good_ones(http, dog, problem, make_picture):
    files = images(make_picture(), make_picture(), b"nonsense")
    document = problem(await http.post("/estimate", data={"category": "dog"}, files=files), 415, "not_an_image")
    assert document["index"] == 2
    assert "images[2]" in document["detail"]


async def test_refuses_a_truncated_picture(http, dog, problem, no_trace, make_picture):
    data = make_picture(300, 300, format="JPEG")
    files = images(data[: len(data) // 2])
    problem(await http.post("/estimate", data={"category": "dog"}, files=files), 422, "truncated_image")
    no_trace()


async def test_refuses_a_decompression_bomb(http, dog, problem, no_trace):
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    files = images(file.getvalue())
    problem(await http.post("/estimate", data={"category": "dog"}, files=files), 413, "too_many_pixels")
    no_trace()


async def test_refuses_a_picture_of_one_pixel(http, dog, problem, no_trace, make_picture):
    files = images(make_picture(1, 1))
    problem(await http.post("/estimate", data={"category": "dog"}, files=files), 422, "image_too_small")
    no_trace()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
async def test_refuses_an_animated_picture(http, dog, problem, no_trace, kind):
    frames = [Image.new("RGB", (32, 32), (value, 0, 0)) for value in (0, 100, 200)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    files = images(file.getvalue())
    problem(await http.post("/estimate", data={"category": "dog"}, files=files), 422, "animated_image")
    no_trace()


async def test_refuses_a_thousand_files(http, dog, problem, no_trace, make_picture):
    files = images(*[make_picture(8, 8)] * 1000)
    document = problem(await http.post("/estimate", data={"category": "dog"}, files=files), 413, "too_many_images")
    assert "a request may have 64" in document["detail"]
    no_trace()


async def test_refuses_a_body_over_the_limit(serve, dog, problem, no_trace):
    http = await serve(max_body_bytes=10_000)
    files = images(bytes(20_000))
    problem(await http.post("/estimate", data={"category": "dog"}, files=files), 413, "body_too_large")
    no_trace()


async def test_refuses_a_chunked_body_over_the_limit(serve, dog, problem, no_trace):
    http = await serve(max_body_bytes=10_000)

    async def body():
        yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield bytes(1000)
        yield b"\r\n--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    problem(await http.post("/estimate", content=body(), headers=headers), 413, "body_too_large")
    no_trace()


@pytest.mark.parametrize(("limit", "seconds"), [("http.requests.STALL_S", 0.1), ("estimates.request.BODY_S", 0.3)])
async def test_refuses_a_body_that_does_not_arrive(http, dog, problem, no_trace, monkeypatch, limit, seconds):
    monkeypatch.setattr(f"service.{limit}", seconds)

    async def body():
        yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        for _ in range(6):
            await asyncio.sleep(0.12)
            yield b"drip"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    problem(await http.post("/estimate", content=body(), headers=headers), 408, "bad_request")
    assert http.gateway.budget.held == 0
    no_trace()


async def test_refuses_a_picture_file_over_the_limit(serve, dog, problem, make_picture):
    http = await serve(image_max_bytes=2000)
    files = images(make_picture(40, 40), make_picture(100, 100, format="BMP"))
    document = problem(await http.post("/estimate", data={"category": "dog"}, files=files), 413, "body_too_large")
    assert "images[1]" in document["detail"]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"category": "cat"}, 404, "unknown_category"),
        ({"category": "dog", "version": "20200101T000000-ffffff"}, 404, "unknown_version"),
        ({"category": "dog", "version": "../../etc"}, 400, "bad_version_name"),
        ({"category": "../dog"}, 400, "bad_category_name"),
        ({"category": "/etc/passwd"}, 400, "bad_category_name"),
        ({"category": "Dog"}, 400, "bad_category_name"),
        ({}, 422, "bad_request"),
        ({"category": "dog", "refine_steps": "11"}, 422, "bad_request"),
        ({"category": "dog", "refine_steps": "-1"}, 422, "bad_request"),
        ({"category": "dog", "refine_steps": "two"}, 422, "bad_request"),
        ({"category": "dog", "refine_steps": "0000999"}, 422, "bad_request"),
        ({"category": "dog", "refine_steps": "²"}, 422, "bad_request"),
        ({"category": "dog", "include": "overlay,skeleton"}, 422, "bad_request"),
        ({"category": "dog", "refine": "1"}, 422, "bad_request"),
        ({"category": "dog", "boxes": "[["}, 422, "bad_boxes"),
        ({"category": "dog", "boxes": "{}"}, 422, "bad_boxes"),
        ({"category": "dog", "boxes": "[]"}, 422, "bad_boxes"),
        ({"category": "dog", "boxes": "[[1,2,3,4],[1,2,3,4]]"}, 422, "bad_boxes"),
        ({"category": "dog", "boxes": "[[1,2,3]]"}, 422, "bad_boxes"),
        ({"category": "dog", "boxes": "[[1,2,0,4]]"}, 422, "bad_boxes"),
        ({"category": "dog", "boxes": '[["1",2,3,4]]'}, 422, "bad_boxes"),
        ({"category": "dog", "boxes": "[[true,2,3,4]]"}, 422, "bad_boxes"),
        ({"category": "dog", "boxes": "[[NaN,2,3,4]]"}, 422, "bad_boxes"),
        ({"category": "dog", "boxes": "[[1e999,2,3,4]]"}, 422, "bad_boxes"),
        ({"category": "dog", "boxes": "[[1" + "0" * 500 + ",2,3,4]]"}, 422, "bad_boxes"),
        ({"category": "dog", "boxes": "[[500,500,30,30]]"}, 422, "bad_boxes"),
        ({"category": "dog", "boxes": "[[-4e8,-4e8,9e8,9e8]]"}, 422, "bad_boxes"),
        ({"category": "dog", "boxes": "[" * 100_000}, 422, "bad_boxes"),
    ],
)
async def test_refuses_bad_fields(http, dog, problem, no_trace, make_picture, fields, status, code):
    document = problem(await http.post("/estimate", data=fields, files=images(make_picture())), status, code)
    assert len(document["detail"]) < 500
    no_trace()


async def test_refuses_a_field_given_twice(http, dog, problem, make_picture):
    form = [("category", (None, "dog")), ("category", (None, "cat")), *images(make_picture())]
    assert "twice" in problem(await http.post("/estimate", files=form), 422, "bad_request")["detail"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{}", "application/json"),
        (b"", None),
        (b"category=dog", "application/x-www-form-urlencoded"),
        (b"--b--", "multipart/form-data"),
    ],
)
async def test_refuses_other_media(http, problem, content, kind):
    headers = {"content-type": kind} if kind else {}
    document = problem(await http.post("/estimate", content=content, headers=headers), 415, "bad_request")
    assert "multipart/form-data" in document["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"junk",
        b"--b\r\n",
        b'--b\r\nContent-Disposition: form-data; name="category"\r\n\r\ndog',
        b'--b\r\nContent-Disposition: form-data; name="images"; filename="x"\r\n\r\nabc\r\n--b',
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\n: bad\r\n\r\nx\r\n--b--\r\n",
    ],
)
async def test_refuses_malformed_forms(http, problem, no_trace, body):
    headers = {"content-type": "multipart/form-data; boundary=b"}
    problem(await http.post("/estimate", content=body, headers=headers), 400, "bad_request")
    no_trace()


async def test_refuses_more_drawn_pixels_than_the_limit(serve, consumer, dog, problem, make_picture):
    http = await serve(max_drawn_pixels=10_000)
    for include, wanted in (("overlay", 413), ("link_map,overlay", 413), ("trajectory", 200)):
        files = images(*[make_picture(96, 64)] * 2)
        response = await http.post("/estimate", data={"category": "dog", "include": include}, files=files)
        assert response.status_code == wanted
        if wanted == 413:
            problem(response, 413, "too_many_pixels")


# what the worker answers


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ModelFailed("the model failed on this batch"), 500, "model_failed"),
        (ContractMismatch("v2"), 503, "contract_mismatch"),
    ],
)
async def test_the_workers_error_reaches_the_client(http, consumer, dog, problem, make_picture, error, status, code):
    consumer.error = error
    document = problem(
        await http.post("/estimate", data={"category": "dog"}, files=images(make_picture())), status, code
    )
    assert document["detail"] == error.detail


async def test_no_worker_gives_503_after_the_timeout(serve, dog, problem, make_picture):
    http = await serve(estimate_timeout_s=0.3)
    response = await http.post("/estimate", data={"category": "dog"}, files=images(make_picture()))
    document = problem(response, 503, "worker_unavailable")
    assert "no inference worker is running" in document["detail"]
    assert int(response.headers["retry-after"]) >= 1
    assert http.gateway.batcher.pending == 0


async def test_no_worker_for_a_while_gives_503_at_once_until_one_is_seen(
    serve, make_consumer, dog, problem, make_picture, monkeypatch
):
    monkeypatch.setattr(routing, "ABSENT_S", 0.5)
    http = await serve(estimate_timeout_s=60)
    while not http.gateway.workers.are_gone("inference"):
        await asyncio.sleep(0.05)
    asked = {"data": {"category": "dog"}, "files": images(make_picture())}
    async with asyncio.timeout(2):
        document = problem(await http.post("/estimate", **asked), 503, "worker_unavailable")
    assert "none was seen lately" in document["detail"]
    assert http.gateway.batcher.pending == 0
    await make_consumer()
    while http.gateway.workers.are_gone("inference"):
        await asyncio.sleep(0.05)
    assert (await http.post("/estimate", **asked)).status_code == 200


async def test_a_new_gateway_without_a_worker_answers_503_within_two_seconds(
    serve, redis_client, dog, problem, make_picture
):
    asked = {"data": {"category": "dog"}, "files": images(make_picture())}
    async with asyncio.timeout(2):
        problem(await (await serve(estimate_timeout_s=60)).post("/estimate", **asked), 503, "worker_unavailable")
    # one was seen lately, by another gateway: it may be restarting
    redis_client.set(routing.seen_key("inference"), "1", px=2500)
    http, started = await serve(estimate_timeout_s=60), time.monotonic()
    problem(await http.post("/estimate", **asked), 503, "worker_unavailable")
    assert 2 < time.monotonic() - started < 6


async def test_nothing_is_known_of_workers_while_redis_does_not_answer(redis_url, monkeypatch):
    monkeypatch.setattr(routing, "ABSENT_S", 0.0)
    client = redis.asyncio.Redis.from_url(redis_url)
    workers = worker_queue.LiveWorkers(client)
    assert not workers.are_gone("inference")
    await workers.refresh()
    assert workers.are_gone("inference")
    zrange = client.zrange
    monkeypatch.setattr(client, "zrange", fail)
    with pytest.raises(redis.exceptions.ConnectionError):
        await workers.refresh()
    assert not workers.are_gone("inference")
    # their heartbeats may have expired in the outage: they have as long as after the gateway's start
    monkeypatch.setattr(client, "zrange", zrange)
    monkeypatch.setattr(routing, "ABSENT_S", 5.0)
    workers._last_seen["inference"] -= 60
    await workers.refresh()
    assert not workers.are_gone("inference")
    workers._last_seen["inference"] -= 60
    await workers.refresh()
    assert workers.are_gone("inference")
    await client.aclose()


async def test_worker_of_another_release_may_say_why_it_can_not_answer(redis_url, redis_client, monkeypatch):
    monkeypatch.setattr(routing, "ABSENT_S", 0.2)
    client = redis.asyncio.Redis.from_url(redis_url)
    workers = worker_queue.LiveWorkers(client)
    await asyncio.sleep(0.25)
    await client.zadd(routing.workers_key("inference"), {"old": 1})
    await client.set(routing.worker_key("inference", "old"), b'{"contract": 0}', ex=60)
    await workers.refresh()
    assert (workers.live["inference"], workers.incompatible) == ([], 1)
    assert not workers.are_gone("inference")
    await client.delete(routing.workers_key("inference"), routing.worker_key("inference", "old"))
    await client.aclose()


async def test_gateways_count_each_other(redis_url, redis_client, monkeypatch):
    redis_client.delete(routing.GATEWAYS)
    clients = [redis.asyncio.Redis.from_url(redis_url) for _ in range(2)]
    gateways = [worker_queue.LiveWorkers(client) for client in clients]
    for gateway in (*gateways, *gateways):
        await gateway.refresh()
    assert [gateway.gateways for gateway in gateways] == [2, 2]
    with monkeypatch.context() as elsewhere:  # machines' clocks may differ
        set_clock(elsewhere, 3600.0)
        await gateways[1].refresh()
    await gateways[0].refresh()
    assert [gateway.gateways for gateway in gateways] == [2, 2]
    # one that has not looked for longer than a heartbeat lives is gone, as is one whose clock ran ahead
    (gone,) = set(redis_client.zrange(routing.GATEWAYS, 0, -1)) - {gateways[0]._gateway.encode()}
    for away_s in (-routing.HEARTBEAT_TTL_S - 1, 3600):
        redis_client.zadd(routing.GATEWAYS, {gone: redis_client.time()[0] + away_s})
        await gateways[0].refresh()
        assert gateways[0].gateways == 1
    for client in clients:
        await client.aclose()


async def fail(*arguments):
    raise redis.exceptions.ConnectionError("away")


async def test_worker_that_comes_back_in_time_serves_those_who_waited(
    http, make_consumer, dog, make_picture, redis_client
):
    redis_client.set(routing.seen_key("inference"), "1", ex=routing.ABSENT_S)
    waiting = asyncio.create_task(http.post("/estimate", data={"category": "dog"}, files=images(make_picture())))
    await asyncio.sleep(0.4)
    await make_consumer()
    assert (await waiting).status_code == 200


async def test_busy_worker_gives_504_after_the_timeout(serve, consumer, dog, problem, make_picture):
    http = await serve(estimate_timeout_s=1.5)
    consumer.gate.clear()
    await http.gateway.workers.refresh()
    response = await http.post("/estimate", data={"category": "dog"}, files=images(make_picture()))
    problem(response, 504, "timeout")
    assert "retry-after" in response.headers
    consumer.gate.set()
    assert (await http.post("/estimate", data={"category": "dog"}, files=images(make_picture()))).status_code == 200


async def test_too_many_waiting_pictures_give_429(serve, consumer, dog, problem, make_picture):
    http = await serve(queue_limit=64)
    consumer.gate.clear()
    files = images(*[make_picture(16, 16)] * 60)
    first = asyncio.create_task(http.post("/estimate", data={"category": "dog"}, files=files))
    while http.gateway.batcher.pending < 60:
        await asyncio.sleep(0.01)
    refused = await http.post("/estimate", data={"category": "dog"}, files=files[:5])
    document = problem(refused, 429, "queue_full")
    assert "60 of at most 64 pictures are waiting" in document["detail"]
    assert int(refused.headers["retry-after"]) >= 1
    consumer.gate.set()
    assert (await first).status_code == 200
    assert (await http.post("/estimate", data={"category": "dog"}, files=files[:5])).status_code == 200


async def test_too_many_bytes_at_once_give_429(serve, consumer, dog, problem, make_picture):
    http = await serve(max_body_bytes=30_000, max_pending_bytes=30_000)
    consumer.gate.clear()
    files = images(make_picture(90, 90, format="BMP"))
    first = asyncio.create_task(http.post("/estimate", data={"category": "dog"}, files=files))
    while http.gateway.batcher.pending < 1:
        await asyncio.sleep(0.01)
    refused = await http.post("/estimate", data={"category": "dog"}, files=files)
    problem(refused, 429, "queue_full")
    assert "retry-after" in refused.headers
    consumer.gate.set()
    assert (await first).status_code == 200
    assert http.gateway.budget.held == 0


async def test_client_that_leaves_frees_its_place(http, consumer, dog, make_picture):
    """A raw ASGI call whose client goes away while its pictures wait."""
    consumer.gate.clear()
    request = http.build_request("POST", "/estimate", data={"category": "dog"}, files=images(make_picture()))
    body = b"".join([chunk async for chunk in request.stream])
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    gone, sent = asyncio.Event(), []

    async def receive():
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/estimate",
        "raw_path": b"/estimate",
        "root_path": "",
        "query_string": b"",
        "scheme": "http",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "http_version": "1.1",
        "client": ("here", 1),
        "server": ("there", 2),
        "asgi": {"version": "3.0"},
        "state": {},
    }
    call = asyncio.create_task(http.app(scope, receive, send))
    while http.gateway.batcher.pending < 1:
        await asyncio.sleep(0.01)
    gone.set()
    await call
    assert http.gateway.batcher.pending == 0
    assert http.gateway.budget.held == 0
    assert sent[0]["status"] == 499
    consumer.gate.set()


async def test_pictures_without_their_pixels_are_not_kept_in_redis(http, consumer, dog, make_picture, redis_client):
    await http.post("/estimate", data={"category": "dog"}, files=images(make_picture()))
    (batch,) = consumer.batches
    assert redis_client.exists(routing.pixels_key(batch.batch_id), batch.reply_to) == 0


async def test_pixels_expire_if_no_worker_takes_them(serve, dog, make_picture, redis_client):
    http = await serve(estimate_timeout_s=0.2)
    await http.post("/estimate", data={"category": "dog"}, files=images(make_picture()))
    await asyncio.sleep(0.2)
    assert redis_client.llen(routing.batch_queue_key(0)) == 1
    assert redis_client.keys("ppl:pixels:*") == []


async def test_broken_poses_are_an_error(http, make_consumer, dog, problem, make_picture):
    consumer = await make_consumer(spoil=lambda reply: reply.keypoints.__setitem__((0, 0, 0), np.nan))
    problem(await http.post("/estimate", data={"category": "dog"}, files=images(make_picture())), 500, "model_failed")
    assert len(consumer.batches) == 1


async def test_refinement_without_a_memory_is_refused(http, consumer, publish, make_picture, problem):
    publish("owl", method="autolink")
    files = {"images": ("a.png", make_picture())}
    response = await http.post("/estimate", data={"category": "owl", "refine_steps": "1"}, files=files)
    assert "leave refine_steps out" in problem(response, 422, "no_memory")["detail"]
    assert (await http.post("/estimate", data={"category": "owl"}, files=files)).status_code == 200
    assert [batch.refine_steps for batch in consumer.batches] == [0]
