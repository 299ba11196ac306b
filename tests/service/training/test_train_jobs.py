"""Training jobs over HTTP: started, listed, followed, stopped, forgotten; bad input leaves no trace."""

from __future__ import annotations

import errno
import io
import os
import tarfile
import time
import zipfile

import pytest

from model.config import resolve, settings
from service.contract import routing
from service.contract.jobs.job import Job, JobStatus
from service.training.retention import remove_stale_jobs
from tests.support.jobs import move as move_job


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def tar_of(files: dict[str, bytes], mode: str = "w:gz", link: str | None = None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return file.getvalue()


GOOD = zip_of({"a.png": b"x", "b/c.jpg": b"y"})


@pytest.fixture
def post(http):
    async def send(archive: bytes | None = GOOD, client=None, **fields: str):
        files = {} if archive is None else {"archive": ("pictures.zip", archive)}
        return await (client or http).post("/train-jobs", data={"category": "dog", **fields}, files=files)

    return send


def move(http, job_id: str, *statuses: JobStatus) -> None:
    move_job(http.gateway.jobs, job_id, *statuses)


# starting


@pytest.mark.parametrize(
    "archive", [GOOD, tar_of({"a.png": b"x"}, "w"), tar_of({"a.png": b"x"}, "w:gz")], ids=["zip", "tar", "tar.gz"]
)
async def test_upload_becomes_a_job(http, post, data_root, archive):
    response = await post(archive, preset="compact", steps="123", seed="7", horizontal_flip="true")
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["location"] == f"/train-jobs/{job['id']}"
    assert set(job) == set(Job.model_fields)  # which test_jobs.py lists
    assert (job["category"], job["status"]) == ("dog", "validating")
    assert job["progress"] == {"step": 0, "total_steps": 123, "fraction": 0.0, "eta_s": None, "stage": None}
    expected = resolve("compact", {"steps": 123, "seed": 7, "horizontal_flip": True})
    assert job["settings"] == {"preset": "compact", **expected.to_dict()}
    assert (data_root / "jobs" / job["id"] / "archive").read_bytes() == archive
    assert (await http.get(response.headers["location"])).json() == job


async def test_every_setting_is_a_field_of_its_own_name(post):
    values = resolve("paper").to_dict()
    job = (await post(preset="paper", **{name: str(value) for name, value in values.items()})).json()
    assert job["settings"] == {"preset": "paper", **values}
    assert set(values) == set(settings())


async def test_compact_is_the_preset_unless_given(post):
    assert (await post()).json()["settings"]["preset"] == "compact"
    assert (await post(preset="", steps="")).json()["settings"]["steps"] == resolve("compact").steps


async def test_order_of_the_fields_does_not_matter(http):
    form = [("archive", ("a.zip", GOOD)), ("category", (None, "cat")), ("steps", (None, "5"))]
    job = (await http.post("/train-jobs", files=form)).json()
    assert (job["category"], job["settings"]["steps"]) == ("cat", 5)


@pytest.mark.parametrize("body", [{"steps": 9, "preset": "paper"}, {"settings": {"steps": 9}, "preset": "paper"}])
async def test_json_names_a_folder_below_the_data_root(http, data_root, body):
    folder = data_root / "imports" / "dogs"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"x")
    response = await http.post("/train-jobs", json={"category": "dog", "folder": "imports/dogs", **body})
    assert response.status_code == 202, response.text
    job = response.json()
    assert (job["settings"]["preset"], job["settings"]["steps"]) == ("paper", 9)
    source = http.gateway.jobs.record(job["id"]).source
    assert (source.kind, source.folder) == ("folder", "imports/dogs")
    assert not (data_root / "jobs").exists()


async def test_upload_larger_than_the_estimate_limit_is_taken(serve, post):
    client = await serve(max_body_bytes=2000)
    archive = zip_of({"a.png": os.urandom(50_000)})
    assert (await post(archive, client)).status_code == 202


# listing and following


async def test_list_is_paged_from_the_newest(http, post):
    ids = [(await post(category=category)).json()["id"] for category in ("dog", "cat", "dog", "cat", "dog")]
    seen, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await http.get("/train-jobs", params=params)).json()
        assert set(page) == {"items", "next_cursor"}
        seen += [job["id"] for job in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]


async def test_list_is_filtered_by_category_and_status(http, post):
    ids = [(await post(category=category)).json()["id"] for category in ("dog", "cat") * 4]
    move(http, ids[0], JobStatus.FAILED)
    move(http, ids[2], JobStatus.QUEUED)

    async def listed(**params):
        found, cursor = [], None
        while True:
            page = (await http.get("/train-jobs", params=params | ({"cursor": cursor} if cursor else {}))).json()
            assert len(page["items"]) <= params.get("limit", 50)
            found += [job["id"] for job in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                return found

    assert await listed(category="dog") == ids[6::-2]
    assert await listed(category="dog", limit=1) == ids[6::-2]
    assert await listed(status="failed") == [ids[0]]
    assert await listed(category="dog", status="queued") == [ids[2]]
    assert await listed(category="cat", status="failed") == []
    assert await listed(category="cow") == []


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("limit=0", 422, "bad_request"),
        ("limit=many", 422, "bad_request"),
        ("limit=201", 422, "bad_request"),
        ("status=dreaming", 422, "bad_request"),
        ("cursor=../..", 400, "bad_cursor"),
    ],
)
async def test_bad_listings_are_refused(http, problem, query, status, code):
    problem(await http.get(f"/train-jobs?{query}"), status, code)


@pytest.mark.parametrize("job_id", ["0123456789abcdef", "nonsense", "..%2f..", "x" * 300])
async def test_unknown_job(http, problem, job_id):
    for method, path in (("GET", ""), ("POST", "/cancel"), ("DELETE", "")):
        response = await http.request(method, f"/train-jobs/{job_id}{path}")
        if "%2f" in job_id:  # a path of its own
            assert response.status_code in (404, 405)
        else:
            problem(response, 404, "unknown_job")


# stopping and forgetting


async def test_cancel_ends_a_waiting_job_and_removes_its_files(http, post, data_root):
    job_id = (await post()).json()["id"]
    response = await http.post(f"/train-jobs/{job_id}/cancel")
    assert response.status_code == 200
    assert response.json()["status"] == "cancelled"
    assert response.json()["finished_at"]
    assert not (data_root / "jobs" / job_id).exists()


async def test_cancel_of_a_running_job_leaves_it_to_its_worker(http, post, data_root):
    job_id = (await post()).json()["id"]
    move(http, job_id, JobStatus.QUEUED, JobStatus.RUNNING)
    response = await http.post(f"/train-jobs/{job_id}/cancel")
    assert response.json()["status"] == "running"
    assert http.gateway.jobs.is_cancel_requested(job_id)
    assert (data_root / "jobs" / job_id / "archive").exists()


async def test_cancel_of_an_ended_job_is_a_conflict(http, post, problem):
    job_id = (await post()).json()["id"]
    move(http, job_id, JobStatus.FAILED)
    document = problem(await http.post(f"/train-jobs/{job_id}/cancel"), 409, "job_not_active")
    assert "failed" in document["detail"]


async def test_delete_removes_an_ended_job_only(http, post, problem):
    job_id = (await post()).json()["id"]
    problem(await http.delete(f"/train-jobs/{job_id}"), 409, "job_not_ended")
    await http.post(f"/train-jobs/{job_id}/cancel")
    response = await http.delete(f"/train-jobs/{job_id}")
    assert (response.status_code, response.content) == (204, b"")
    problem(await http.get(f"/train-jobs/{job_id}"), 404, "unknown_job")
    problem(await http.delete(f"/train-jobs/{job_id}"), 404, "unknown_job")
    assert (await http.get("/train-jobs")).json()["items"] == []


# bad input


def flipped(data: bytes) -> bytes:
    """A zip whose entries say that they are encrypted."""
    changed = bytearray(data)
    changed[changed.index(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("archive", "status", "code"),
    [
        (None, 415, "bad_request"),
        (b"", 422, "bad_archive"),
        (b"hello", 422, "bad_archive"),
        (GOOD[: len(GOOD) // 2], 422, "bad_archive"),
        (zip_of({}), 422, "empty_archive"),
        (zip_of({"readme.txt": b"x"}), 422, "empty_archive"),
        (tar_of({}), 422, "empty_archive"),
        (zip_of({"../a.jpg": b"x"}), 422, "unsafe_archive"),
        (zip_of({"/etc/a.jpg": b"x"}), 422, "unsafe_archive"),
        (tar_of({"../../a.jpg": b"x"}), 422, "unsafe_archive"),
        (tar_of({"a.jpg": b"x"}, link="b.jpg"), 422, "unsafe_archive"),
        (tar_of({"a.jpg": b"x"}, mode="w", link="b.jpg"), 422, "unsafe_archive"),
        (flipped(GOOD), 422, "encrypted_archive"),
        (zip_of({"a.bmp": bytes(70 * 2**20)}, zipfile.ZIP_DEFLATED), 413, "archive_too_large"),
        (tar_of({"a.bmp": bytes(70 * 2**20)}), 413, "archive_too_large"),
    ],
    ids=range(15),
)
async def test_bad_archives_are_refused_at_once(post, problem, no_trace, archive, status, code):
    document = problem(await post(archive), status, code)
    assert len(document["detail"]) < 400
    no_trace()


async def test_form_without_an_archive_is_refused(http, problem, no_trace):
    document = problem(await http.post("/train-jobs", files={"category": (None, "dog")}), 422, "bad_archive")
    assert "no archive came" in document["detail"]
    no_trace()


async def test_archive_over_the_limit_is_refused(serve, post, problem, no_trace):
    client = await serve(archive_max_bytes=2000)
    archive = zip_of({"a.png": os.urandom(2 * 2**20)})
    problem(await post(archive, client), 413, "body_too_large")
    no_trace()


async def test_batch_that_the_training_processes_cannot_share_is_refused(serve, post, problem, no_trace):
    client = await serve(training_processes=3)
    answer = await post(client=client, batch_size="32")
    problem(answer, 422, "bad_setting")
    assert "batch_size is 32; it must be a multiple of 3" in answer.json()["detail"]
    no_trace()
    assert (await post(client=client, batch_size="33")).status_code == 202


async def test_chunked_archive_over_the_limit_is_refused(serve, problem, no_trace):
    client = await serve(archive_max_bytes=2000)

    async def body():
        yield b'--b\r\nContent-Disposition: form-data; name="archive"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield os.urandom(2**16)
        yield b"\r\n--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    problem(await client.post("/train-jobs", content=body(), headers=headers), 413, "body_too_large")
    no_trace()


async def test_upload_that_breaks_off_leaves_nothing(http, problem, no_trace):
    body = b'--b\r\nContent-Disposition: form-data; name="archive"; filename="a"\r\n\r\n' + os.urandom(3 * 2**20)
    headers = {"content-type": "multipart/form-data; boundary=b"}
    problem(await http.post("/train-jobs", content=body, headers=headers), 400, "bad_request")
    no_trace()


@pytest.mark.parametrize(
    ("fields", "status", "code", "said"),
    [
        ({"category": "../dog"}, 400, "bad_category_name", "must start with a letter"),
        ({"category": "a/b"}, 400, "bad_category_name", "must start with a letter"),
        ({"category": "/etc"}, 400, "bad_category_name", "must start with a letter"),
        ({"category": "x" * 65}, 400, "bad_category_name", "64 characters"),
        ({"category": ""}, 422, "bad_request", "category"),
        ({"preset": "huge"}, 422, "bad_setting", "compact"),
        ({"stepz": "10"}, 422, "bad_setting", "unknown setting 'stepz'"),
        ({"steps": "0"}, 422, "bad_setting", "from 1 to 1000000"),
        ({"steps": "many"}, 422, "bad_setting", "must be a number"),
        ({"learning_rate": "nan"}, 422, "bad_setting", "learning_rate"),
        ({"num_keypoints": "500"}, 422, "bad_setting", "from 4 to 32"),
        ({"image_size": "65"}, 422, "bad_setting", "a multiple of 16"),
        ({"perceptual": "clip"}, 422, "bad_setting", "vgg19"),
        ({"horizontal_flip": "maybe"}, 422, "bad_setting", "true or false"),
    ],
)
async def test_bad_fields_are_refused(post, problem, no_trace, fields, status, code, said):
    document = problem(await post(**fields), status, code)
    assert said in document["detail"]
    if code == "bad_setting":
        assert document["field"] == next(iter(fields))
    no_trace()


async def test_two_archives_are_refused(http, problem, no_trace):
    form = [("category", (None, "dog")), ("archive", ("a.zip", GOOD)), ("archive", ("b.zip", GOOD))]
    problem(await http.post("/train-jobs", files=form), 422, "bad_request")
    no_trace()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad_request"),
        (b"{", 400, "bad_request"),
        pytest.param(b"[" * 60_000, 400, "bad_request", id="deep"),
        pytest.param(
            b'{"category": "dog", "folder": "mine", "steps": ' + b" " * 2**18 + b"1}", 413, "body_too_large", id="large"
        ),
        (b"[]", 400, "bad_request"),
        (b'{"folder": "mine"}', 422, "bad_request"),
        (b'{"category": "dog"}', 422, "bad_request"),
        (b'{"category": "dog", "folder": 3}', 422, "bad_request"),
        (b'{"category": ["dog"], "folder": "mine"}', 422, "bad_request"),
        (b'{"category": "dog", "folder": "mine", "settings": 3}', 422, "bad_request"),
        (b'{"category": "../dog", "folder": "mine"}', 400, "bad_category_name"),
        (b'{"category": "dog", "folder": "../mine"}', 422, "bad_folder"),
        (b'{"category": "dog", "folder": "/etc"}', 422, "bad_folder"),
        (b'{"category": "dog", "folder": "nowhere"}', 422, "bad_folder"),
        (b'{"category": "dog", "folder": "jobs"}', 422, "bad_folder"),
        (b'{"category": "dog", "folder": "empty"}', 422, "bad_folder"),
        (b'{"category": "dog", "folder": "out"}', 422, "bad_folder"),
        (b'{"category": "dog", "folder": "mine", "steps": 0}', 422, "bad_setting"),
        (b'{"category": "dog", "folder": "mine", "steps": 1.5}', 422, "bad_setting"),
        (b'{"category": "dog", "folder": "mine", "steps": true}', 422, "bad_setting"),
        (b'{"category": "dog", "folder": "mine", "steps": null}', 422, "bad_setting"),
        (b'{"category": "dog", "folder": "mine", "preset": 7}', 422, "bad_setting"),
        (b'{"category": "dog", "folder": "mine", "bogus": 1}', 422, "bad_setting"),
    ],
)
async def test_bad_json_is_refused(http, problem, data_root, tmp_path, body, status, code):
    (data_root / "mine").mkdir()
    (data_root / "mine" / "a.png").write_bytes(b"x")
    (data_root / "empty").mkdir()
    (data_root / "out").symlink_to(tmp_path)
    response = await http.post("/train-jobs", content=body, headers={"content-type": "application/json"})
    problem(response, status, code)
    assert not (data_root / "jobs").exists()
    assert (await http.get("/train-jobs")).json()["items"] == []


async def test_long_json_without_a_declared_length_is_refused(http, problem):
    async def body():
        for _ in range(100):
            yield b" " * 2**12

    response = await http.post("/train-jobs", content=body(), headers={"content-type": "Application/JSON; a=b"})
    problem(response, 413, "body_too_large")


async def test_form_may_be_named_in_capitals(serve):
    client = await serve(max_body_bytes=1024)
    form = client.build_request("POST", "/train-jobs", data={"category": "dog"}, files={"archive": ("a.zip", GOOD)})
    kind = form.headers["content-type"].replace("multipart/form-data", "Multipart/Form-Data")
    content = form.read() + b" " * 2000  # longer than other bodies may be
    response = await client.post("/train-jobs", content=content, headers={"content-type": kind})
    assert response.status_code == 202, response.text


async def test_boundary_that_is_too_long_is_refused(http, problem, no_trace):
    headers = {"content-type": "multipart/form-data; boundary=" + "b" * 300}
    response = await http.post("/train-jobs", content=b"x", headers=headers)
    assert "boundary" in problem(response, 400, "bad_request")["detail"]
    no_trace()


async def test_other_media_are_refused(http, problem):
    response = await http.post("/train-jobs", content=GOOD, headers={"content-type": "application/zip"})
    assert "multipart/form-data" in problem(response, 415, "bad_request")["detail"]


async def test_full_disk_is_said_and_leaves_nothing(http, post, problem, no_trace, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("service.http.multipart.UploadFile._write", full)
    assert "no room" in problem(await post(), 507, "disk_full")["detail"]
    no_trace()


# lost and left behind


async def test_job_that_no_worker_has_is_sent_again(http, post, redis_client):
    job_id = (await post()).json()["id"]
    move(http, job_id, JobStatus.QUEUED)
    redis_client.delete(routing.RECONCILE_LOCK)
    await http.gateway._reconcile()
    assert http.gateway.jobs.waiting_order() == [job_id]
    sent = redis_client.llen(routing.queue_key("training"))  # the gateway's own look may have come at the same moment
    redis_client.delete(routing.RECONCILE_LOCK)
    await http.gateway._reconcile()
    assert redis_client.llen(routing.queue_key("training")) == sent


async def test_files_of_ended_and_abandoned_uploads_are_removed(http, post, data_root):
    ids = [(await post()).json()["id"] for _ in range(3)]
    orphan = "00000000000000000000aa"
    (data_root / "jobs" / orphan).mkdir()
    move(http, ids[0], JobStatus.FAILED)
    assert remove_stale_jobs(http.gateway.files, http.gateway.jobs, 3600) == []
    old = time.time() - 7200
    for job_id in (ids[0], ids[1], orphan):
        for path in [data_root / "jobs" / job_id, *(data_root / "jobs" / job_id).iterdir()]:
            os.utime(path, (old, old))
    assert sorted(remove_stale_jobs(http.gateway.files, http.gateway.jobs, 3600)) == sorted([ids[0], orphan])
    assert http.gateway.files.ids() == sorted(ids[1:])


@pytest.mark.parametrize("suffix", [":lease", ":cancel"])
async def test_key_beside_a_job_is_an_unknown_job(http, post, problem, redis_client, suffix):
    job_id = (await post()).json()["id"]
    redis_client.set(f"ppl:job:{job_id}{suffix}", "1")
    path = f"/train-jobs/{job_id}{suffix}"
    for response in (await http.get(path), await http.delete(path), await http.post(f"{path}/cancel")):
        problem(response, 404, "unknown_job")


@pytest.mark.parametrize("query", ["cursor=zzz", "cursor=zzz&status=queued"])
async def test_cursor_that_is_no_id_is_refused(http, problem, query):
    problem(await http.get(f"/train-jobs?{query}"), 400, "bad_cursor")
