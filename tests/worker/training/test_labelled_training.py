"""Jobs with labels, clips or a prior: what training is given, what it never sees, and what is measured in the end."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.predictor import Predictor
from model.scoring.labels import hashed_split, to_square
from model.scoring.protocols import evaluate
from model.training.trainer import Trainer
from service.contract.durable_files import write_json
from service.contract.jobs.store import Job, JobStatus
from worker.training.runner import load_pictures, load_training_input

NAMES = [f"{number}.jpg" for number in range(12)]
JOINTS = ("nose", "left_eye", "right_eye")


def csv(names: list[str], split: Callable[[int], str] | None = None, points: Any = None) -> bytes:
    """Three keypoints of some pictures of 48 x 40 pixels, in pixels."""
    points = np.random.default_rng(5).uniform(2, 38, (len(names), len(JOINTS), 2)) if points is None else points
    lines = ["image,keypoint,x,y" + (",split" if split else "")]
    for row, name in enumerate(names):
        for joint, (x, y) in zip(JOINTS, points[row], strict=True):
            lines.append(f"{name},{joint},{x},{y}" + (f",{split(row)}" if split else ""))
    return "\n".join(lines).encode()


@pytest.fixture
def start(desk: SimpleNamespace) -> Callable[..., Job]:
    """start(labels=..., members=..., prior=..., **settings) uploads, prepares, and gives the job as it stands."""

    def run(labels: bytes | None = None, members: Any = None, prior: Any = None, **settings: Any) -> Job:
        members = members or {name: desk.picture(index) for index, name in enumerate(NAMES)}
        # with these poses differ enough for a map that is fitted to ten pictures
        config = desk.tiny(**{"features": "efficientnet_lite0", "memory_width": 128, **settings})
        job = desk.upload(members, config)
        if labels is not None:
            desk.files.labels(job.id).write_bytes(labels)
        if prior is not None:
            write_json(desk.files.prior(job.id), prior)
        desk.caretaker.prepare(job.id)
        return desk.jobs.get(job.id)

    return run


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """The trainers that were made."""
    made: list[Trainer] = []

    class Noted(Trainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            made.append(self)

    monkeypatch.setattr("worker.training.runner.Trainer", Noted)
    return made


def test_test_pictures_are_held_out_and_scored(
    desk: SimpleNamespace, start: Callable[..., Job], trainers: list[Trainer]
) -> None:
    points = np.random.default_rng(1).uniform(2, 38, (len(NAMES), len(JOINTS), 2))
    job = start(csv(NAMES, lambda row: "test" if row in (2, 5) else "train", points))
    assert job.status is JobStatus.QUEUED
    pictures = np.array(load_pictures(desk.files, job.id))
    desk.runner.run(job.id)
    done = desk.jobs.get(job.id)
    assert done.status is JobStatus.SUCCEEDED, done.error

    kept = [row for row in range(len(NAMES)) if row not in (2, 5)]
    np.testing.assert_array_equal(trainers[0].batches.images, pictures[kept])
    info = desk.store.info("dog", done.version)
    assert info["evaluation"] == done.evaluation
    assert info["training"]["images"] == 10
    assert (done.metrics["images"], done.metrics["held_out"]) == (12, 2)
    # not as it is read from disk: a map fitted to ten pictures makes much of what that rounds otherwise
    poses = Predictor(trainers[0].model, "cpu").predict(pictures).keypoints
    found, labels = (poses.astype(np.float64) + 1) / 2, to_square(points, 48, 40)
    seen = np.ones(labels.shape[:2])
    expected = evaluate(
        (found[kept], labels[kept], seen[kept]), (found[[2, 5]], labels[[2, 5]], seen[[2, 5]]), (0, 2, 1)
    )
    assert done.evaluation is not None
    assert done.evaluation["headline"] == pytest.approx(expected["headline"], rel=1e-3)
    assert set(done.evaluation) >= {"per_keypoint", "whole_pose", "summed"}
    assert (done.evaluation["train_images"], done.evaluation["heldout_images"]) == (10, 2)
    assert (done.evaluation["split_from"], done.evaluation["keypoint_names"]) == ("labels", list(JOINTS))
    json.dumps(done.evaluation, allow_nan=False)


def test_without_a_split_a_fifth_is_held_out_by_name(desk: SimpleNamespace, start: Callable[..., Job]) -> None:
    job = start(csv(NAMES[:10]))
    given = load_training_input(desk.files, job.id)
    pictures = load_pictures(desk.files, job.id)
    kept = [row for row, mine in enumerate(hashed_split(NAMES[:10])) if mine == "train"] + [10, 11]
    np.testing.assert_array_equal(given.images, pictures[kept])
    desk.runner.run(job.id)
    evaluation = desk.jobs.get(job.id).evaluation
    assert evaluation is not None
    assert (evaluation["split_from"], evaluation["train_images"], evaluation["heldout_images"]) == ("names", 8, 2)


def test_held_out_pictures_are_those_of_the_preparation(
    desk: SimpleNamespace, start: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process, or a later release, does not parse and match the labels again."""
    job = start(csv(NAMES, lambda row: "test" if row in (2, 5) else "train"))
    # as releases before wrote it, too: their jobs are continued
    with np.load(desk.files.folder(job.id) / "labelled.npz", allow_pickle=False) as stored:
        assert sorted(stored.files) == ["facts", "heldout", "keypoints", "pictures", "visibility"]
        assert json.loads(stored["facts"].tobytes()) == {
            "keypoint_names": list(JOINTS),
            "split_from": "labels",
            "without_picture": 0,
        }
        assert np.flatnonzero(stored["heldout"]).tolist() == [2, 5]
    monkeypatch.setattr("worker.uploads.preparer.read_labels", None)
    desk.runner.run(job.id)
    done = desk.jobs.get(job.id)
    assert done.status is JobStatus.SUCCEEDED, done.error
    assert done.evaluation is not None
    assert (done.evaluation["train_images"], done.evaluation["heldout_images"]) == (10, 2)
    assert done.evaluation["keypoint_names"] == list(JOINTS)


def test_labels_do_not_change_what_is_learned(desk: SimpleNamespace, start: Callable[..., Job]) -> None:
    jobs = [
        start(csv(NAMES, lambda row: "test" if row < 2 else "train", np.full((12, 3, 2), place)))
        for place in (5.0, 35.0)
    ]
    weights = []
    for job in jobs:
        desk.runner.run(job.id)
        folder = desk.store.path("dog", desk.jobs.get(job.id).version)
        weights.append((folder / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (csv(["elsewhere.jpg", "nowhere.jpg"]), "'elsewhere.jpg'"),
        (b"image,x\n", "column"),
        (b"{}", "JSON"),
        (csv(NAMES, lambda row: "train"), "none of 12 labelled pictures is in the split 'test'"),
        (csv(NAMES, lambda row: "test" if row else "train"), "11 labelled pictures are held out, which leaves 1"),
        (csv(NAMES[:1]), "none of 1 labelled pictures is in the split 'test'"),
        (csv(NAMES, None, np.full((12, 3, 2), 4000.0)), "far outside"),
    ],
)
def test_labels_of_no_use_fail_the_job_before_it_trains(
    desk: SimpleNamespace, start: Callable[..., Job], labels: bytes, said: str
) -> None:
    job = start(labels)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "bad_labels"
    assert said in job.error.detail
    assert desk.files.ids() == []


def test_stop_while_it_is_evaluated_goes_on_there(
    desk: SimpleNamespace, start: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(csv(NAMES))
    predict = Predictor.predict
    stages = []

    def watched(self: Predictor, *arguments: Any, **named: Any) -> Any:
        desk.stop.request()
        return predict(self, *arguments, **named)

    monkeypatch.setattr(Predictor, "predict", watched)
    monkeypatch.setattr("worker.training.runner._BATCH_SIZE", 3)
    desk.runner.run(job.id)
    paused = desk.jobs.record(job.id)
    assert paused.job.status is JobStatus.QUEUED
    assert (paused.checkpointed, paused.job.progress.stage) == (6, None)
    monkeypatch.setattr(Predictor, "predict", predict)
    desk.stop.requested = False
    evaluating = desk.runner._evaluate

    def staged(run: Any) -> Any:
        run.report_evaluation(0.0)
        run._held._pending(record := desk.jobs.record(job.id))
        stages.append((record.job.status, record.job.progress.stage))
        return evaluating(run)

    monkeypatch.setattr(desk.runner, "_evaluate", staged)
    desk.runner.run(job.id)
    done = desk.jobs.get(job.id)
    assert done.status is JobStatus.SUCCEEDED
    assert done.evaluation is not None
    assert stages == [(JobStatus.RUNNING, "evaluating")]
    assert done.progress.stage is None


def frames(clips: int, count: int) -> dict[str, bytes]:
    def jpeg(seed: int) -> bytes:
        noise = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "JPEG")
        return buffer.getvalue()

    return {f"{clip}/{frame}.jpg": jpeg(10 * clip + frame) for clip in range(clips) for frame in range(count)}


def test_clips_reach_the_trainer_and_are_held_out_whole(
    desk: SimpleNamespace, start: Callable[..., Job], trainers: list[Trainer]
) -> None:
    members = frames(5, 3)
    job = start(csv(list(members)), members, mode="clips")
    desk.runner.run(job.id)
    done = desk.jobs.get(job.id)
    assert done.status is JobStatus.SUCCEEDED, done.error
    assert (done.metrics["mode"], done.metrics["clips"]) == ("clips", 5)
    info = desk.store.info("dog", done.version)
    assert info["training"]["mode"] == "clips"
    assert trainers[0].mode == "clips"
    assert (len(trainers[0].batches.images), info["evaluation"]["heldout_images"]) == (12, 3)
    assert {"total", "images"} <= set(done.metrics)
    assert set(info["training"]["losses"]) & {"mode", "clips", "images"} == set()


def test_last_frame_left_of_a_clip_is_not_trained_on(desk: SimpleNamespace, start: Callable[..., Job]) -> None:
    members = frames(5, 3)
    job = start(csv(list(members), lambda row: "test" if row in (0, 1) else "train"), members, mode="clips")
    given = load_training_input(desk.files, job.id)
    assert given.clips is not None
    assert given.clips.tolist() == [clip for clip in (1, 2, 3, 4) for _ in range(3)]
    np.testing.assert_array_equal(given.images, load_pictures(desk.files, job.id)[3:])


def test_training_starts_from_the_prior_that_came(desk: SimpleNamespace, start: Callable[..., Job]) -> None:
    prior = {
        "keypoint_names": ["a", "b", "c", "d"],
        "keypoint_prior": [[-0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, -0.5]],
        "links": [{"i": 0, "j": 1, "weight": 1.0}],
    }
    job = start(prior=prior, keypoint_prior="predefined", connectivity_prior="predefined")
    desk.runner.run(job.id)
    done = desk.jobs.get(job.id)
    assert done.status is JobStatus.SUCCEEDED, done.error
    learned = desk.store.prior("dog", done.version)
    assert learned["keypoint_names"] == ["a", "b", "c", "d"]
    np.testing.assert_allclose(learned["keypoint_prior"], prior["keypoint_prior"], atol=1e-6)  # frozen
    assert (learned["links"][0]["i"], learned["links"][0]["j"]) == (0, 1)
    assert desk.store.history("dog", done.version)["snapshots"][0]["step"] == 0
    assert done.evaluation is None


def test_version_of_autolink_is_published(desk: SimpleNamespace, start: Callable[..., Job]) -> None:
    job = start(csv(NAMES), method="autolink")
    desk.runner.run(job.id)
    done = desk.jobs.get(job.id)
    assert done.status is JobStatus.SUCCEEDED, done.error
    assert desk.store.memory("dog", done.version)["num_banks"] == 0
    assert desk.store.prior("dog", done.version)["keypoint_prior_source"] == "mean_pose"
    assert done.evaluation is not None
