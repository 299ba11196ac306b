"""What may come beside the pictures of a training job: labels, a prior to start from, or the name of one."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from PIL import Image

from model.config import resolve
from service.contract.jobs.files import MAX_LABELS_BYTES
from service.training import label_check


def _archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", b"x")
        archive.writestr("b.png", b"x")
    return file.getvalue()


GOOD = _archive()
LABELS = b"image,keypoint,x,y\na.png,nose,3,4\nb.png,nose,5,6\n"
PREDEFINED = {"keypoint_prior": "predefined", "connectivity_prior": "predefined"}


def prior(**changes):
    """A prior of four keypoints with two links."""
    document = {
        "keypoint_names": ["nose", "neck", "hip", "tail"],
        "keypoint_prior": [[-0.5, -0.5], [0, -0.25], [0.25, 0.25], [1, 0]],
        "links": [{"i": 0, "j": 1, "weight": 2.0}, {"i": 1, "j": 2, "weight": 0.5}],
    }
    return {**document, **changes}


@pytest.fixture
def post(http):
    async def send(fields=(), client=None, **files):
        parts = {name: (f"{name}.bin", data) for name, data in {"archive": GOOD, **files}.items()}
        return await (client or http).post("/train-jobs", data={"category": "dog", **dict(fields)}, files=parts)

    return send


@pytest.fixture
def pictures(data_root):
    """A folder of pictures below the data root, with labels beside it."""
    folder = data_root / "imports" / "dogs"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"x")
    (folder / "b.png").write_bytes(b"x")
    (data_root / "imports" / "dogs.csv").write_bytes(LABELS)
    return {"category": "dog", "folder": "imports/dogs"}


# labels


async def test_labels_are_kept_beside_the_archive(post, data_root):
    job = (await post(labels=LABELS)).json()
    assert (data_root / "jobs" / job["id"] / "labels").read_bytes() == LABELS
    assert (data_root / "jobs" / job["id"] / "archive").read_bytes() == GOOD


async def test_labels_may_come_before_the_archive(http, data_root):
    form = [("labels", ("l.csv", LABELS)), ("archive", ("a.zip", GOOD)), ("category", (None, "cat"))]
    job = (await http.post("/train-jobs", files=form)).json()
    assert (data_root / "jobs" / job["id"] / "labels").read_bytes() == LABELS


async def test_labels_of_a_folder_are_taken_as_they_are_now(http, data_root, pictures):
    response = await http.post("/train-jobs", json={**pictures, "labels": "imports/dogs.csv"})
    assert response.status_code == 202, response.text
    (data_root / "imports" / "dogs.csv").write_bytes(b"changed")
    assert (data_root / "jobs" / response.json()["id"] / "labels").read_bytes() == LABELS


@pytest.mark.parametrize(
    "name", ["../l.csv", "/etc/passwd", "nowhere.csv", "imports", "out.csv", "jobs/x/labels", "e", "stack.lock"]
)
async def test_labels_that_are_no_file_below_the_data_root_are_refused(
    http, data_root, tmp_path, pictures, problem, no_trace, name
):
    (tmp_path / "l.csv").write_bytes(LABELS)
    (data_root / "out.csv").symlink_to(tmp_path / "l.csv")
    (data_root / "e").write_bytes(b"")
    (data_root / "stack.lock").write_bytes(LABELS)
    response = await http.post("/train-jobs", json={**pictures, "labels": name})
    problem(response, 422, "bad_labels")
    assert not list(data_root.glob("jobs/*"))


def _picture(name, width, height, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "JPEG", exif=exif)
    return name, file.getvalue()


def _zip(*members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


STORED = [_picture("a.jpg", 64, 32, 6), _picture("b.jpg", 64, 32, 6)]  # shown as 32 x 64
SIZED = "image,keypoint,x,y,width,height\n{0}.jpg,nose,3,4,{2},{3}\n{1}.jpg,nose,5,6,{2},{3}\n"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (SIZED.format("a", "b", 32, 64), None),
        (SIZED.format("a", "b", 64, 32), "64 x 32 pixels, and the picture that came has 32 x 64 as it is shown"),
        (SIZED.format("a", "b", 64, 128), "64 x 128 pixels, and the picture that came has 32 x 64; send the pictures"),
        (SIZED.format("c", "d", 32, 64), "none of the 2 labelled pictures ('c.jpg', 'd.jpg') is among the 2 pictures"),
        (SIZED.format("a", "c", 32, 64), "none of 1 labelled pictures is in the split 'test'"),
        ("nonsense", "the header is 'nonsense'"),
    ],
)
@pytest.mark.parametrize("path", ["/train-jobs", "/datasets"])
async def test_labels_are_held_against_the_pictures_before_a_job_is_accepted(
    http, problem, no_trace, path, labels, message
):
    form = [("archive", ("a.zip", _zip(*STORED))), ("labels", ("l.csv", labels.encode()))]
    form += [("category", (None, "dog"))] if path == "/train-jobs" else []
    answer = await http.post(path, files=form)
    if message is None:
        assert answer.is_success, answer.text
        return
    assert message in problem(answer, 422, "bad_labels")["detail"]
    no_trace()


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((64, 32), None),  # of the stored picture
        ((64, 128), None),  # of one twice as large
        ((64, 64), "64 x 64 pixels, and the picture that came has 32 x 64"),
        (("", ""), "the labels state no size of their pictures, and labels_fit is scale"),
    ],
)
async def test_labels_of_another_size_are_accepted_if_the_request_says_to_scale_them(
    http, problem, no_trace, monkeypatch, size, message, apart
):
    if apart:
        monkeypatch.setattr(label_check, "_APART_BYTES", 10)
    fields = {"category": "dog", "labels_fit": "scale"}
    files = {"archive": ("a.zip", _zip(*STORED)), "labels": ("l.csv", SIZED.format("a", "b", *size).encode())}
    answer = await http.post("/train-jobs", data=fields, files=files)
    if message is None:
        assert answer.json()["settings"]["labels_fit"] == "scale"
        return
    assert message in problem(answer, 422, "bad_labels")["detail"]
    no_trace()


def check_labels_answer(answer, message, problem, no_trace):
    """Hold that labels were accepted, or refused with a message and without a trace of the upload."""
    if message is None:
        assert answer.is_success, answer.text
    else:
        assert message in problem(answer, 422, "bad_labels")["detail"]
        no_trace()


@pytest.mark.parametrize("path", ["/train-jobs", "/datasets"])
@pytest.mark.parametrize("apart", [False, True])
async def test_labels_of_a_picture_with_two_boxes_are_refused(http, problem, no_trace, monkeypatch, path, apart):
    if apart:
        monkeypatch.setattr(label_check, "_APART_BYTES", 10)
    boxes = "image,x,y,width,height\na.jpg,1,2,20,30\nb.jpg,1,2,20,30\n"
    for more, message in (("b.jpg,9,9,20,30\n", "'b.jpg' has several boxes, and one labelled animal"), ("", None)):
        form = [("archive", ("a.zip", _zip(*STORED))), ("boxes", ("b.csv", (boxes + more).encode()))]
        form += [("labels", ("l.csv", SIZED.format("a", "b", 32, 64).encode()))]
        form += [("category", (None, "dog"))] if path == "/train-jobs" else []
        answer = await http.post(path, files=form)
        check_labels_answer(answer, message, problem, no_trace)


FILM_BOXES = json.dumps(
    {"images": [{"file": "a.jpg", "frame_rate": 9, "detections": [{"bbox": [0, 0, 1, 1], "frame_number": 2}]}]}
)


@pytest.mark.parametrize(
    ("boxes", "settings", "code"),
    [
        ("image,x,y,width,height\na.jpg,1,2,20,30\n", {"locate": "off"}, "bad_boxes"),
        ("image,x,y,width,height,angle\na.jpg,1,2,20,30,\n", {"locate": "off"}, "bad_boxes"),
        ("image,x,y,width,height\na.jpg,1,2,20,30\n", {}, None),  # motion may show it
        ("image,x,y,width,height\na.jpg,1,2,20,30\n", {"locate": "motion"}, None),
        ("image,x,y,width,height,animal\na.jpg,1,2,20,30,0\n", {}, "bad_boxes"),  # it is not asked
        (FILM_BOXES, {}, "bad_boxes"),
        (FILM_BOXES, {"locate": "motion"}, None),
        ("image,x,y,width,height,angle\na.jpg,1,2,20,30,90\n", {"locate": "off"}, None),
        (None, {"locate": "off"}, "bad_setting"),
        (None, {}, None),
    ],
)
async def test_pictures_that_nothing_can_align_are_refused(http, problem, no_trace, boxes, settings, code):
    form = [("archive", ("a.zip", _zip(*STORED))), ("category", (None, "dog")), ("align", (None, "heading"))]
    form += [(name, (None, value)) for name, value in settings.items()]
    form += [("boxes", ("b.csv", boxes.encode()))] if boxes else []
    answer = await http.post("/train-jobs", files=form)
    if code is None:
        assert answer.json()["settings"]["align"] == "heading"
    else:
        assert "angle" in problem(answer, 422, code)["detail"]
        no_trace()


@pytest.mark.parametrize(
    ("field", "text", "code", "message"),
    [
        ("boxes", "image,x,y,width,height\n", "bad_boxes", "the boxes have a header and no row"),
        ("boxes", "image,x,y,width,height\n,,,,\n,,,,\n", "bad_boxes", "the boxes have a header and no row"),
        ("boxes", "image,x,y,width,height\na.jpg,,,,\n", "bad_boxes", "in which nothing is, and have no box"),
        ("labels", "image,keypoint,x,y\n", "bad_labels", "the labels have a header and no row"),
        ("labels", "image,keypoint,x,y\n,,,\n,,,\n", "bad_labels", "the labels have a header and no row"),
        ("labels", "image,keypoint,x,y\na.jpg,nose,,\n", "bad_labels", "no keypoint is labelled in 1 pictures"),
    ],
)
async def test_tables_without_content_are_refused_with_what_came(http, problem, no_trace, field, text, code, message):
    form = [("archive", ("a.zip", _zip(*STORED))), (field, ("t.csv", text.encode()))]
    form += [("category", (None, "dog")), ("locate", (None, "off"))]
    assert message in problem(await http.post("/train-jobs", files=form), 422, code)["detail"]
    no_trace()


@pytest.mark.parametrize("path", ["/train-jobs", "/datasets", "dataset"])
async def test_boxes_of_other_pictures_are_refused_before_a_job_is_accepted(http, problem, no_trace, path, video):
    """Which frames of a video are taken is not known then."""
    clip = video(12)
    archive = [("archive", ("a.zip", _zip(*STORED, ("cam/walk.mp4", clip))))]
    category = [("category", (None, "dog")), ("mode", (None, "stills"))]
    if path == "dataset":
        made = await http.post("/datasets", files=[*archive, ("mode", (None, "stills"))])
        archive, path = [("dataset", (None, made.json()["id"]))], "/train-jobs"
    else:
        category = category if path == "/train-jobs" else category[1:]
    for name, message in (
        ("other.jpg", "none of the 1 pictures with boxes ('other.jpg') is among the"),
        ("run.mp4#3", ""),
    ):
        sent = ("boxes", ("b.csv", f"image,x,y,width,height\n{name},1,2,20,30\n".encode()))
        detail = problem(await http.post(path, files=[*archive, *category, sent]), 422, "bad_boxes")["detail"]
        assert message in detail
    if archive[0][0] == "archive":
        no_trace()
    for name in ("a.jpg", "walk.mp4#000003", "cam/walk.mp4#999999"):
        sent = ("boxes", ("b.csv", f"image,x,y,width,height\n{name},1,2,20,30\n".encode()))
        answer = await http.post(path, files=[*archive, *category, sent])
        assert answer.status_code in (201, 202), answer.text


@pytest.mark.parametrize("kind", ["upload", "dataset"])
async def test_motion_is_not_asked_for_numbered_animals(http, problem, no_trace, kind):
    boxes = ("b.csv", b"image,x,y,width,height,animal\na.jpg,1,2,20,30,0\n")
    form = [("archive", ("a.zip", _zip(*STORED))), ("boxes", boxes)]
    if kind == "dataset":
        dataset = (await http.post("/datasets", files=form)).json()["id"]
        form = [("dataset", (None, dataset))]
    form.append(("category", (None, "dog")))
    detail = problem(await http.post("/train-jobs", files=[*form, ("locate", (None, "motion"))]), 422, "bad_boxes")
    assert "the boxes number animals" in detail["detail"]
    if kind == "upload":
        no_trace()
    assert (await http.post("/train-jobs", files=form)).status_code == 202


@pytest.mark.parametrize("path", ["/train-jobs", "/datasets"])
async def test_large_labels_are_checked_in_another_process(http, problem, no_trace, monkeypatch, path):
    monkeypatch.setattr(label_check, "_APART_BYTES", 10)
    monkeypatch.setattr(label_check, "_check", None)  # of this process
    fields = [("category", (None, "dog"))] if path == "/train-jobs" else []
    for labels, message in (
        (SIZED.format("a", "b", 64, 128), "64 x 128 pixels, and the picture that came has 32 x 64"),
        (SIZED.format("a", "b", 32, 64), None),
    ):
        form = [("archive", ("a.zip", _zip(*STORED))), ("labels", ("l.csv", labels.encode())), *fields]
        answer = await http.post(path, files=form)
        check_labels_answer(answer, message, problem, no_trace)


@pytest.mark.parametrize(("frame", "status"), [("walk.mp4#000003", 202), ("run.mp4#000003", 422)])
async def test_labels_of_frames_name_a_video_of_the_upload(http, frame, status):
    form = [
        ("archive", ("a.zip", _zip(("films/walk.mp4", b"x")))),
        ("labels", ("l.csv", f"image,keypoint,x,y\n{frame},nose,3,4\n".encode())),
        ("category", (None, "dog")),
    ]
    assert (await http.post("/train-jobs", files=form)).status_code == status


async def test_empty_labels_are_refused(post, problem, no_trace):
    assert "empty" in problem(await post(labels=b""), 422, "bad_labels")["detail"]
    no_trace()


async def test_labels_over_the_limit_are_refused(post, problem, no_trace):
    document = problem(await post(labels=bytes(MAX_LABELS_BYTES + 1)), 413, "body_too_large")
    assert "'labels'" in document["detail"]
    no_trace()


async def test_labels_without_an_archive_leave_nothing(http, problem, no_trace):
    form = [("category", (None, "dog")), ("labels", ("l.csv", LABELS))]
    problem(await http.post("/train-jobs", files=form), 422, "bad_archive")
    no_trace()


async def test_labels_given_twice_are_refused(http, problem, no_trace):
    form = [("category", (None, "dog")), ("archive", ("a", GOOD)), ("labels", ("l", b"x")), ("labels", ("l", b"y"))]
    problem(await http.post("/train-jobs", files=form), 422, "bad_request")
    no_trace()


# priors


@pytest.mark.parametrize("as_file", [True, False])
async def test_prior_is_checked_and_kept_for_the_worker(http, data_root, as_file):
    text = json.dumps(prior(category="cat", version="v3")).encode()
    form = {name: (None, value) for name, value in {"category": "dog", **PREDEFINED}.items()}
    form |= {"archive": ("a.zip", GOOD), "prior": ("prior.json" if as_file else None, text)}
    response = await http.post("/train-jobs", files=form)
    assert response.status_code == 202, response.text
    job = response.json()
    kept = json.loads((data_root / "jobs" / job["id"] / "prior.json").read_text())
    assert kept["keypoint_names"] == ["nose", "neck", "hip", "tail"]
    assert [link["weight"] for link in kept["links"]] == [2.0, 0.0, 0.0, 0.5, 0.0, 0.0]
    assert job["settings"]["num_keypoints"] == 4, "the prior's, as none was given"
    assert job["settings"]["keypoint_prior"] == "predefined"


async def test_prior_of_a_category_is_copied_when_the_job_is_accepted(http, post, publish, data_root):
    publish("cat", "20260101T000000-aaaaaa")
    publish("cat", "20260102T000000-bbbbbb")
    folder = data_root / "categories" / "cat" / "versions" / "20260101T000000-aaaaaa"
    edited = json.loads((folder / "prior.json").read_text())
    edited["keypoint_prior"][0] = [0.125, 0.0]
    (folder / "prior.json").write_text(json.dumps(edited))
    for named, x in (("cat", 0.0), ("cat@20260101T000000-aaaaaa", 0.125)):
        response = await post({**PREDEFINED, "prior_from": named})
        assert response.status_code == 202, response.text
        kept = json.loads((data_root / "jobs" / response.json()["id"] / "prior.json").read_text())
        assert kept["keypoint_prior"][0] == [x, 0.0]
        assert response.json()["settings"]["num_keypoints"] == 5


async def test_json_may_hold_or_name_a_prior(http, data_root, pictures, publish):
    publish("cat")
    for given, count in (({"prior": prior()}, 4), ({"prior_from": "cat"}, 5)):
        response = await http.post("/train-jobs", json={**pictures, **given, "settings": PREDEFINED})
        assert response.status_code == 202, response.text
        assert response.json()["settings"]["num_keypoints"] == count
        assert (data_root / "jobs" / response.json()["id"] / "prior.json").exists()


async def test_largest_prior_fits_into_a_json_body(http, pictures):
    count = 32
    matrix = [[0.0 if i == j else 1 / 3 for j in range(count)] for i in range(count)]
    links = [{"i": i, "j": j, "weight": 1 / 3} for i in range(count) for j in range(i + 1, count)]
    points = [[1 / 3, -1 / 7]] * count
    large = {"keypoint_prior": points, "connectivity_prior": matrix, "links": links}
    body = json.dumps({**pictures, **PREDEFINED, "prior": large, "settings": resolve().to_dict()}, indent=2)
    body = body.replace('"num_keypoints": 16', '"num_keypoints": 32')
    for name, value in PREDEFINED.items():
        body = body.replace(f'"{name}": "{resolve().to_dict()[name]}"', f'"{name}": "{value}"')
    response = await http.post("/train-jobs", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 202, response.text


@pytest.mark.parametrize(
    ("fields", "document", "code", "said"),
    [
        (PREDEFINED, None, "bad_prior", "send one in the field prior"),
        ({}, prior(), "bad_prior", "a prior is given, but"),
        (
            {**PREDEFINED, "num_keypoints": "16"},
            prior(),
            "bad_prior",
            "the setting num_keypoints is 16",
        ),
        (PREDEFINED, prior(keypoint_prior=[[0, 9]] * 4), "bad_prior", "-1.5 to 1.5"),
        (PREDEFINED, "no object", "bad_prior", "JSON object"),
        ({**PREDEFINED, "prior_from": "cat"}, prior(), "bad_request", "both prior and prior_from"),
    ],
)
async def test_priors_that_do_not_suit_are_refused(post, problem, no_trace, fields, document, code, said):
    files = {} if document is None else {"prior": json.dumps(document).encode()}
    assert said in problem(await post(fields, **files), 422, code)["detail"]
    no_trace()


@pytest.mark.parametrize(
    ("named", "status", "code"),
    [
        ("cow", 404, "unknown_category"),
        ("cat@v9", 404, "unknown_version"),
        ("../cat", 400, "bad_category_name"),
        ("cat@", 400, "bad_version_name"),
        ("cat@../v", 400, "bad_version_name"),
    ],
)
async def test_unknown_priors_are_refused(post, publish, problem, named, status, code):
    publish("cat")
    problem(await post({**PREDEFINED, "prior_from": named}), status, code)


async def test_prior_over_the_limit_is_refused(post, problem, no_trace):
    problem(await post(PREDEFINED, prior=b" " * (2**20 + 1)), 413, "body_too_large")
    no_trace()


async def test_folder_job_without_extras_has_no_files(http, data_root, pictures):
    assert (await http.post("/train-jobs", json=pictures)).status_code == 202
    assert not (data_root / "jobs").exists()
