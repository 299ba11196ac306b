"""Datasets at the gateway: sent once, listed, trained from, deleted; and nothing left of what was refused."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import time
import zipfile

import pytest
from PIL import Image

from model.config import DEFAULT_PRESET, resolve
from service.contract.datasets.dataset import DatasetStatus, Findings
from service.contract.datasets.store import DatasetFiles
from service.contract.jobs.job import JobError
from service.contract.jobs.progress import Pace, PaceBook
from service.contract.jobs.store import JobStatus
from service.contract.media.archives import check_archive

LABELS = b"image,keypoint,x,y\na.png,nose,3,4\nb.png,nose,5,6\n"


def packed(*names, data=b"x"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names or ("a.png", "b.png"):
            archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


GOOD = packed()


@pytest.fixture
def post(http):
    async def send(archive=GOOD, client=None, images=(), **fields):
        files = [("archive", ("birds.zip", archive))] if archive is not None else []
        files += [(name, fields.pop(name)) for name in ("labels", "boxes") if name in fields]
        files += [("images", image) for image in images]
        files += [(name, (None, value)) for name, value in fields.items()] or [("mode", (None, ""))]
        return await (client or http).post("/datasets", files=files)

    return send


@pytest.fixture
def files(data_root):
    return DatasetFiles(data_root)


# coming


async def test_dataset_is_kept_as_it_came(post, http, files):
    answer = await post(name="garden", labels=("l.csv", LABELS))
    dataset = answer.json()

    assert answer.status_code == 201
    assert answer.headers["location"] == f"/datasets/{dataset['id']}"
    assert dataset["digest"] == f"sha256:{hashlib.sha256(GOOD).hexdigest()}"
    assert (dataset["name"], dataset["mode"], dataset["files"], dataset["labels"]) == ("garden", "stills", 2, True)
    assert (dataset["status"], dataset["already_there"]) == ("inspecting", False)
    assert dataset["size_bytes"] == len(GOOD) + len(LABELS)
    assert files.archive(dataset["id"]).read_bytes() == GOOD
    assert files.labels(dataset["id"]).read_bytes() == LABELS
    shown = (await http.get(answer.headers["location"])).json()
    assert shown == {name: value for name, value in dataset.items() if name != "already_there"}


async def test_dataset_has_the_pace_of_the_last_training(post, http, redis_client):
    assert (await post()).json()["step_s"] is None
    settings = {"preset": DEFAULT_PRESET, **resolve().to_dict()}
    others = {**settings, "num_keypoints": 30}
    PaceBook(redis_client).note(others, Pace(9.0, None))
    PaceBook(redis_client).note({**settings, "steps": 300, "align": "heading"}, Pace(0.2, 2.0))
    sent = (await post()).json()
    shown = (await http.get(f"/datasets/{sent['id']}")).json()
    # of all steps, the last ones take twice as long
    assert sent["step_s"] == shown["step_s"] == pytest.approx(0.2 * (2 - settings["occlusion_start"]), abs=1e-4)


async def test_same_bytes_are_the_same_dataset_and_take_no_room(post, data_root):
    first = (await post(name="one")).json()
    before = sorted(data_root.rglob("*"))
    again = await post(name="two")

    assert again.status_code == 200
    assert again.headers["location"] == f"/datasets/{first['id']}"
    assert (again.json()["id"], again.json()["name"], again.json()["already_there"]) == (first["id"], "one", True)
    assert sorted(data_root.rglob("*")) == before


async def test_another_mode_or_other_labels_make_another_dataset(post):
    answers = [await post(), await post(mode="clips"), await post(labels=("l.csv", LABELS))]
    assert [answer.status_code for answer in answers] == [201] * 3
    assert len({answer.json()["id"] for answer in answers}) == 3
    assert (await post(mode="stills")).json()["id"] == answers[0].json()["id"], "what auto takes it for"


async def test_dataset_is_called_as_its_file_unless_named(post):
    assert (await post()).json()["name"] == "birds.zip"


async def test_files_may_come_one_by_one(post, files):
    big = b"p" * 3_000_000  # goes to the disk in several parts
    images = [("a.jpg", b"1"), ("walks/b.png", big), ("a.jpg", b"2"), ("../../up.jpg", b"3"), ("empty.png", b"")]
    dataset = (await post(None, images=images, mode="stills")).json()

    with zipfile.ZipFile(files.archive(dataset["id"])) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    assert held == {"a.jpg": b"1", "walks/b.png": big, "a-2.jpg": b"2", "up.jpg": b"3", "empty.png": b""}
    assert dataset["files"] == 5
    again = await post(None, images=images, mode="stills")
    assert (again.status_code, again.json()["id"]) == (200, dataset["id"])


async def test_video_is_a_dataset_of_clips(post, video):
    data = video()
    bare = (await post(data)).json()
    assert (bare["mode"], bare["files"]) == ("clips", 1)
    several = (await post(None, images=[("a.mp4", data), ("b.mp4", data)])).json()
    assert (several["mode"], several["files"]) == ("clips", 2)


@pytest.mark.parametrize(
    ("sent", "status", "code", "detail"),
    [
        ({"archive": None}, 422, "bad_archive", "send a zip"),
        ({"archive": b""}, 422, "bad_archive", "empty"),
        ({"archive": b"no archive at all" * 99}, 422, "bad_archive", "not an archive"),
        ({"archive": packed("notes.txt")}, 422, "empty_archive", "no file with the suffix of a picture"),
        ({"archive": packed("../a.png")}, 422, "unsafe_archive", "leads out"),
        ({"archive": packed("a.png", "b.mp4")}, 422, "bad_setting", "mode"),
        ({"images": [("b.png", b"x")]}, 422, "bad_request", "both an archive and images"),
        ({"mode": "films"}, 422, "bad_request", "stills, clips or auto"),
        ({"name": "x" * 101}, 422, "bad_request", "100"),
        ({"category": "dog"}, 422, "bad_request", "unknown field 'category'"),
        ({"labels": ("l.csv", b"")}, 422, "bad_labels", "empty"),
    ],
)
async def test_refused_dataset_leaves_nothing(post, problem, no_trace, sent, status, code, detail):
    document = problem(await post(**sent), status, code)
    assert detail in document["detail"]
    no_trace()


async def test_json_is_no_dataset(http, problem):
    problem(await http.post("/datasets", json={"name": "x"}), 415, "bad_request")


async def test_body_that_breaks_off_leaves_nothing(http, problem, no_trace):
    body = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + b"x" * 2_000_000
    headers = {"content-type": "multipart/form-data; boundary=b"}
    problem(await http.post("/datasets", content=body, headers=headers), 400, "bad_request")
    no_trace()


async def test_archive_longer_than_the_limit_is_refused(serve, post, problem, no_trace):
    client = await serve(archive_max_bytes=4096)
    problem(await post(packed(data=b"x" * 8000), client), 413, "body_too_large")
    images = [(f"{n}.png", b"x" * 2000) for n in range(4)]
    problem(await post(None, client, images=images), 413, "body_too_large")
    no_trace()


async def test_all_datasets_together_have_a_limit(serve, post, problem, no_trace, files):
    client = await serve(datasets_max_bytes=10_000)
    kept = (await post(packed("a.png", data=b"x" * 6000), client)).json()
    document = problem(await post(packed("a.png", data=b"y" * 6000), client), 507, "datasets_full")
    assert document["max_bytes"] == 10_000
    assert document["used_bytes"] == kept["size_bytes"]
    assert "PPL_DATASETS_MAX_BYTES" in document["detail"]

    async def undeclared():  # whose length is known only at its end
        yield b'--b\r\nContent-Disposition: form-data; name="archive"; filename="a.zip"\r\n\r\n'
        yield packed("a.png", data=b"y" * 6000)
        yield b"\r\n--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    problem(await client.post("/datasets", content=undeclared(), headers=headers), 507, "datasets_full")
    assert [item.id for item in files.page(9).items] == [kept["id"]]
    assert sorted(path.name for path in files.root.iterdir()) == [".lock", kept["id"]]
    await client.delete(f"/datasets/{kept['id']}")
    assert (await post(packed("a.png", data=b"y" * 6000), client)).status_code == 201


# being there


async def test_datasets_are_listed_the_newest_first_in_pages(post, http, problem):
    ids = [(await post(packed(f"{n}.png"))).json()["id"] for n in range(5)]
    first = (await http.get("/datasets", params={"limit": 2})).json()
    await http.delete(f"/datasets/{first['items'][-1]['id']}")  # the cursor holds all the same
    second = (await http.get("/datasets", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    last = (await http.get("/datasets", params={"limit": 2, "cursor": second["next_cursor"]})).json()

    assert [item["id"] for page in (first, second, last) for item in page["items"]] == ids[::-1]
    assert last["next_cursor"] is None
    problem(await http.get("/datasets", params={"cursor": "zzz"}), 400, "bad_cursor")


async def test_datasets_outlive_the_gateway_and_the_queue(post, serve, redis_client):
    dataset = (await post()).json()
    redis_client.flushall()
    other = await serve()
    assert (await other.get("/datasets")).json()["items"][0]["id"] == dataset["id"]


@pytest.mark.parametrize("name", ["0" * 24, "..", "0123", "A" * 24])
async def test_unknown_dataset(http, problem, name):
    for path in (f"/datasets/{name}", f"/datasets/{name}/contact-sheet"):
        response = await http.get(path.replace("..", "%2e%2e"))
        problem(response, 404, "unknown_dataset")
    problem(await http.delete(f"/datasets/{name.replace('..', '%2e%2e')}"), 404, "unknown_dataset")
    answer = await http.post("/train-jobs", json={"category": "dog", "dataset": name})
    problem(answer, 404, "unknown_dataset")


async def test_frame_of_a_video_is_given_by_its_name(post, http, problem, video):
    clip = video(frames=30, size=(64, 48))
    bare = (await post(clip)).json()["id"]
    inside = (await post(packed("walks/a.mp4", data=clip))).json()["id"]
    for dataset, name in ((bare, "birds.zip"), (inside, "walks/a.mp4")):
        for number in (0, 1, 17, 29):
            answer = await http.get(f"/datasets/{dataset}/frame", params={"name": f"{name}#{number:06}"})
            with Image.open(io.BytesIO(answer.content)) as frame:
                assert (frame.format, frame.size) == ("JPEG", (64, 48))
                assert abs(frame.convert("L").getpixel((40, 30)) - 4 * number) <= 4
    for name, words in (
        ("birds.zip#000030", "has no frame 30"),
        ("other.mp4#000001", "has no video 'other.mp4'"),
        ("birds.zip", "expected VIDEO#NUMBER"),
    ):
        answer = await http.get(f"/datasets/{bare}/frame", params={"name": name})
        assert words in problem(answer, 404, "unknown_picture")["detail"]
    broken = (await post(packed("b.mp4", data=b"no video at all"))).json()["id"]
    problem(await http.get(f"/datasets/{broken}/frame", params={"name": "b.mp4#000001"}), 422, "bad_video")


async def test_contact_sheet_is_there_once_the_dataset_is_ready(post, http, files, problem, make_picture):
    dataset = (await post()).json()
    path = f"/datasets/{dataset['id']}/contact-sheet"
    waiting = await http.get(path)
    problem(waiting, 409, "dataset_not_ready")
    assert int(waiting.headers["retry-after"]) >= 1

    sheet = make_picture(format="JPEG")
    files.sheet(dataset["id"]).write_bytes(sheet)
    files.write_findings(dataset["id"], Findings(status=DatasetStatus.READY))
    assert (await http.get(f"/datasets/{dataset['id']}")).json()["contact_sheet"] == path
    answer = await http.get(path)
    assert (answer.headers["content-type"], answer.content) == ("image/jpeg", sheet)


# training


async def test_pictures_that_can_not_be_shown_are_refused_by_name_of_the_fault(
    post, http, files, problem, make_picture
):
    damaged = bytearray(packed("a.png", "b.txt", "c.png", data=make_picture(90, 8)))
    damaged[damaged.index(b"IDAT") + 6] ^= 255  # of the first, so that its checksum in the archive is wrong
    address = f"/datasets/{(await post(bytes(damaged))).json()['id']}/pictures"

    assert (await http.get(address)).json()["items"] == [{"number": 0, "name": "a.png"}, {"number": 1, "name": "c.png"}]
    problem(await http.get(f"{address}/0"), 422, "truncated_image")
    with Image.open(io.BytesIO((await http.get(f"{address}/1")).content)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (90, 8))
    problem(await http.get(f"{address}/2"), 404, "unknown_picture")
    problem(await http.get(f"{address}?cursor=-1"), 400, "bad_cursor")

    wide = packed("a.png", data=make_picture(65_501, 8))
    address = f"/datasets/{(await post(wide)).json()['id']}/pictures"
    assert "65501 x 8" in problem(await http.get(f"{address}/0"), 422, "bad_picture")["detail"]
    files.archive(address.split("/")[2]).unlink()  # as it is deleted after its record was read
    for path in (address, f"{address}/0"):
        problem(await http.get(path), 404, "unknown_dataset")


@pytest.fixture
def train(http):
    async def send(as_json=False, files=(), **fields):
        fields = {"category": "dog", **fields}
        if as_json:
            return await http.post("/train-jobs", json=fields)
        form = [*files, *((name, (None, str(value))) for name, value in fields.items())]
        return await http.post("/train-jobs", files=form)

    return send


@pytest.mark.parametrize("as_json", [False, True])
async def test_jobs_train_from_a_dataset(post, http, train, files, data_root, as_json):
    dataset = (await post(mode="clips", name="walks", labels=("l.csv", LABELS))).json()
    named = {key: dataset[key] for key in ("id", "digest", "name")}
    for _ in range(2):
        answer = await train(as_json, dataset=dataset["id"], steps=20)
        job = answer.json()
        assert answer.status_code == 202, job
        assert job["dataset"] == named
        assert (await http.get(f"/train-jobs/{job['id']}")).json()["dataset"] == named
        assert (job["settings"]["mode"], job["settings"]["steps"]) == ("clips", 20)
        folder = data_root / "jobs" / job["id"]
        assert (folder / "archive").samefile(files.archive(dataset["id"])), "no second copy on the disk"
        assert (folder / "labels").read_bytes() == LABELS
        assert (await http.get(f"/datasets/{dataset['id']}")).status_code == 200
    assert (await train(dataset=dataset["id"], mode="stills")).json()["settings"]["mode"] == "stills"


async def test_labels_of_the_job_come_before_those_of_the_dataset(post, train, data_root):
    dataset = (await post(labels=("l.csv", LABELS))).json()
    other = LABELS + b"a.png,tail,1,1\n"
    job = (await train(dataset=dataset["id"], files=[("labels", ("l.csv", other))])).json()
    assert (data_root / "jobs" / job["id"] / "labels").read_bytes() == other
    (data_root / "mine.csv").write_bytes(other)
    job = (await train(True, dataset=dataset["id"], labels="mine.csv")).json()
    assert (data_root / "jobs" / job["id"] / "labels").read_bytes() == other


async def test_one_source_of_pictures_is_wanted(post, train, problem):
    dataset = (await post()).json()["id"]
    both = await train(dataset=dataset, files=[("archive", ("a.zip", GOOD))])
    assert "both a dataset and an archive" in problem(both, 422, "bad_request")["detail"]
    both = await train(True, dataset=dataset, folder="imports")
    assert "both a dataset and a folder" in problem(both, 422, "bad_request")["detail"]
    none = await train(files=[("labels", ("l.csv", LABELS))])
    assert "or name a dataset" in problem(none, 422, "bad_archive")["detail"]
    assert "or name a dataset" in problem(await train(True), 422, "bad_request")["detail"]
    problem(await train(True, dataset=7), 422, "bad_request")


async def test_refused_job_of_a_dataset_leaves_nothing(post, train, problem, data_root):
    dataset = (await post()).json()
    problem(await train(dataset=dataset["id"], steps="many"), 422, "bad_setting")
    problem(await train(dataset=dataset["id"], category="No!"), 400, "bad_category_name")
    assert list(data_root.glob("jobs/*")) == []
    assert sorted(path.name for path in (data_root / "datasets" / dataset["id"]).iterdir()) == [
        "archive",
        "dataset.json",
    ]


async def test_failed_dataset_is_refused_and_sending_it_again_looks_into_it_again(post, http, train, problem, files):
    dataset = (await post()).json()["id"]
    error = JobError(code="too_few_pictures", detail="nothing in the dataset can be read")
    files.write_findings(dataset, Findings(status=DatasetStatus.FAILED, error=error, starts=2))

    shown = (await http.get(f"/datasets/{dataset}")).json()
    assert (shown["status"], shown["error"]) == ("failed", error.model_dump())
    assert error.detail in problem(await train(dataset=dataset), 409, "dataset_not_ready")["detail"]
    problem(await http.get(f"/datasets/{dataset}/contact-sheet"), 409, "dataset_not_ready")
    again = await post()
    assert (again.status_code, again.json()["status"], again.json()["error"]) == (200, "inspecting", None)


async def test_folder_of_datasets_is_no_folder_to_train_on(post, train, problem):
    dataset = (await post()).json()["id"]
    answer = await train(True, folder=f"datasets/{dataset}")
    assert "belongs to the platform" in problem(answer, 422, "bad_folder")["detail"]


async def test_files_are_copied_where_the_disk_knows_no_links(post, train, data_root, monkeypatch):
    def refuse(*_):
        raise PermissionError

    dataset = (await post()).json()["id"]
    monkeypatch.setattr("service.training.job_intake.os.link", refuse)
    job = (await train(dataset=dataset)).json()
    assert (data_root / "jobs" / job["id"] / "archive").read_bytes() == GOOD


async def test_full_disk_is_reported_and_leaves_nothing(post, problem, no_trace, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("service.http.multipart.UploadFile._write", full)
    problem(await post(), 507, "disk_full")
    no_trace()
    monkeypatch.setattr("zipfile._ZipWriteFile.write", full)
    problem(await post(None, images=[("a.png", b"x")]), 507, "disk_full")
    no_trace()


# going


async def test_dataset_of_a_live_job_stays(post, http, train, problem, files):
    dataset = (await post()).json()["id"]
    job = (await train(dataset=dataset)).json()
    document = problem(await http.delete(f"/datasets/{dataset}"), 409, "dataset_in_use")
    assert document["jobs"] == [job["id"]]
    assert job["id"] in document["detail"]

    cancelled = (await http.post(f"/train-jobs/{job['id']}/cancel")).json()
    assert cancelled["status"] == JobStatus.CANCELLED
    assert files.archive(dataset).read_bytes() == GOOD, "the end of a job takes nothing from its dataset"
    assert (await http.delete(f"/datasets/{dataset}")).status_code == 204
    assert (await http.get("/datasets")).json() == {"items": [], "next_cursor": None}
    assert (await http.get(f"/train-jobs/{job['id']}")).json()["dataset"]["id"] == dataset
    assert [path.name for path in files.folder(dataset).parent.iterdir()] == [".lock"]


async def test_rest_of_a_removal_that_was_cut_off_is_swept_up(post, files):
    dataset = (await post()).json()["id"]
    folder = files.folder(dataset)
    folder.rename(folder.with_name(f".going-{dataset}"))
    files.sweep()
    assert [path.name for path in folder.parent.iterdir()] == [".lock"]


async def test_upload_that_was_cut_off_is_swept_up(post, http, files, data_root):
    """Also one of an import, and those where earlier releases put both: among the jobs."""
    dataset = (await post()).json()["id"]
    old, new = time.time() - http.gateway.settings.stale_upload_s - 60, time.time()
    earlier = data_root / "jobs" / f"{'0' * 20}aa"
    for root in (files.root / ".upload-0a", http.gateway.versions.store.root / ".upload-0b", earlier):
        (root / "version").mkdir(parents=True)
        for path in (root / "archive", root / "dataset.json", root / "version" / "prior.json"):
            path.write_bytes(b"{}")
        for path in (*root.rglob("*"), root):
            os.utime(path, (old, old))
    young = files.root / ".upload-0c"
    young.mkdir()
    os.utime(young, (new, new))
    os.utime(files.folder(dataset), (old, old))
    await http.gateway._clean()
    assert sorted(path.name for path in files.root.iterdir()) == [".lock", ".upload-0c", dataset]
    assert list(http.gateway.versions.store.root.iterdir()) == []
    assert not earlier.exists()


async def test_upload_is_staged_among_the_datasets(post, files, data_root, monkeypatch):
    staged = []
    check = check_archive

    def look(path, *arguments):
        staged.append((path.parent.parent, path.parent.name.startswith(".upload-")))
        assert files.page(9).items == []
        return check(path, *arguments)

    monkeypatch.setattr("service.training.dataset_intake.check_archive", look)
    assert (await post()).status_code == 201
    assert staged == [(files.root, True)]
    assert not (data_root / "jobs").exists()


async def test_shape_of_the_record_on_disk(post, files):
    dataset = (await post()).json()
    record = json.loads((files.folder(dataset["id"]) / "dataset.json").read_text())
    assert record["created_at"] == dataset["created_at"]
    assert record["created_at"].endswith("Z")


async def test_boxes_are_kept_with_the_dataset_and_used_by_its_jobs(post, train, files, problem, data_root):
    boxes, other = (f"image,x,y,width,height\na.png,{x},2,3,4\n".encode() for x in (1, 2))
    plain = (await post()).json()
    dataset = (await post(boxes=("b.csv", boxes))).json()
    assert (plain["boxes"], dataset["boxes"]) == (False, True)
    assert dataset["id"] != plain["id"]
    assert files.boxes(dataset["id"]).read_bytes() == boxes
    job = (await train(dataset=dataset["id"])).json()
    assert (data_root / "jobs" / job["id"] / "boxes").read_bytes() == boxes
    job = (await train(dataset=dataset["id"], files=[("boxes", ("o.csv", other))])).json()
    assert (data_root / "jobs" / job["id"] / "boxes").read_bytes() == other
    (data_root / "mine.csv").write_bytes(other)
    job = (await train(True, dataset=dataset["id"], boxes="mine.csv")).json()
    assert (data_root / "jobs" / job["id"] / "boxes").read_bytes() == other
    for bad in (b"", b"image,x\n"):
        problem(await post(boxes=("b.csv", bad)), 422, "bad_boxes")
        problem(await train(dataset=dataset["id"], files=[("boxes", ("b.csv", bad))]), 422, "bad_boxes")
