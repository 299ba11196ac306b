from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import redis
import torch

from model.predictor import Predictor
from model.training.trainer import Trainer
from service.contract import routing
from service.contract.jobs.progress import EventLog
from service.contract.jobs.store import Job, JobStatus
from service.contract.routing import lease_key
from service.contract.versions.store import new_version_id
from worker import jobs
from worker.settings import WorkerSettings, usable_cores


def test_job_becomes_the_active_version(desk: SimpleNamespace) -> None:
    job = desk.prepared()
    desk.runner.run(job.id)
    done = desk.jobs.get(job.id)
    assert done.status is JobStatus.SUCCEEDED
    assert done.error is None
    assert (done.progress.step, done.progress.fraction, done.progress.eta_s) == (6, 1.0, None)
    assert {"images", "skipped", "skipped_files", "total", "steps_per_s", "device"} <= set(done.metrics)
    assert done.started_at is not None
    assert done.version == desk.store.active("dog")
    info = desk.store.info("dog", done.version)
    assert (info["job_id"], info["preset"], info["settings"]["steps"]) == (job.id, "compact", 6)
    assert info["training"]["images"] == 9
    assert info["training"]["steps"] == 6
    assert info["training"]["seconds"] > 0
    assert info["training"]["losses"]["total"] == done.metrics["total"]
    assert set(info["files"]) == {f"{name}.json" for name in ("config", "history", "memory", "prior")} | {
        "weights.safetensors"
    }
    folder = desk.store.path("dog", done.version)
    assert Predictor.load(folder, "cpu").predict(np.zeros((1, 32, 32, 3), np.uint8)).keypoints.shape == (1, 4, 2)
    assert desk.files.ids() == []
    assert not desk.jobs.is_leased(job.id)
    assert 'ppl_training_jobs_total{outcome="succeeded"} 1.0' in desk.metrics.text()


def test_job_without_activation_leaves_the_active_version(desk: SimpleNamespace) -> None:
    first, second = desk.prepared(), desk.prepared()
    desk.runner.run(first.id)
    desk.jobs.update(second.id, lambda record: setattr(record.job, "activate", False))
    desk.runner.run(second.id)
    versions = [desk.jobs.get(job.id).version for job in (first, second)]
    assert desk.jobs.get(second.id).status is JobStatus.SUCCEEDED
    assert desk.store.active("dog") == versions[0]
    assert set(desk.store.versions("dog")) == set(versions)


def test_version_says_with_how_many_threads_it_was_trained(
    desk: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_step = desk.tiny(steps=1)  # threads that wait for each other are slow beside other processes
    fixed, chosen = desk.prepared(one_step), desk.prepared(one_step)
    desk.runner.run(fixed.id)
    monkeypatch.setattr(desk.runner, "settings", WorkerSettings(data_root=desk.settings.data_root, device="cpu"))
    before = torch.get_num_threads()
    try:
        desk.runner.run(chosen.id)
    finally:
        torch.set_num_threads(before)
    trained = [desk.store.info("dog", desk.jobs.get(job.id).version)["training"] for job in (fixed, chosen)]

    assert "threads" not in trained[0]
    assert trained[1]["threads"][0] == [0, usable_cores()]


def test_resumed_job_publishes_what_an_uninterrupted_one_does(
    desk: SimpleNamespace, during: Callable[..., None]
) -> None:
    whole, stopped = desk.prepared(), desk.prepared()
    desk.runner.run(whole.id)
    during(3, lambda trainer: desk.stop.request())
    desk.runner.run(stopped.id)
    paused = desk.jobs.record(stopped.id)
    assert paused.job.status is JobStatus.QUEUED
    assert (paused.checkpointed, paused.starts) == (3, 0)
    assert paused.job.progress.step == 3
    assert not desk.jobs.is_leased(stopped.id)
    desk.stop.requested = False
    desk.runner.run(stopped.id)
    versions = [desk.jobs.get(job.id).version for job in (whole, stopped)]
    checksums = [desk.store.info("dog", version)["files"] for version in versions]
    models = [Predictor.load(desk.store.path("dog", version), "cpu").model.state_dict() for version in versions]
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor)
    assert checksums[0]["config.json"] == checksums[1]["config.json"]
    seconds = desk.store.info("dog", versions[1])["training"]["seconds"]
    assert seconds > paused.trained_s > 0, "time of both processes counts"


def test_paused_job_frees_its_worker_and_goes_on_bit_for_bit(
    desk: SimpleNamespace, during: Callable[..., None]
) -> None:
    steps = {"steps": 12, "checkpoint_every": 1000}
    whole, paused, other = (desk.prepared(desk.tiny(**steps)) for _ in range(3))
    desk.runner.run(whole.id)

    def pause_in_a_step_that_takes_long(trainer: Trainer) -> None:
        desk.jobs.pause(paused.id)
        time.sleep(5 * jobs._PERIOD_S)  # by then it has been seen

    during(3, pause_in_a_step_that_takes_long)
    desk.runner.run(paused.id)
    record = desk.jobs.record(paused.id)
    assert (record.job.status, record.starts, record.pause_wanted) == (JobStatus.PAUSED, 0, False)
    assert record.checkpointed == record.job.progress.step == 3
    assert record.job.progress.eta_s is None
    assert not desk.jobs.is_leased(paused.id)
    during()
    desk.runner.run(other.id)
    assert desk.jobs.get(other.id).status is JobStatus.SUCCEEDED, "the worker is free for others"
    desk.runner.run(paused.id)  # a message that was still on its way
    desk.caretaker.sweep()
    assert desk.jobs.get(paused.id).status is JobStatus.PAUSED
    assert desk.files.checkpoint(paused.id).exists()
    desk.jobs.resume(paused.id)
    desk.runner.run(paused.id)
    done = [desk.jobs.get(job.id) for job in (whole, paused)]
    assert done[1].status is JobStatus.SUCCEEDED
    weights = [
        Predictor.load(desk.store.path("dog", job.version), "cpu").model.state_dict() for job in done if job.version
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_pause_asked_of_a_worker_that_died_holds_before_the_next_takes_it_up(desk: SimpleNamespace) -> None:
    job = desk.prepared()
    desk.jobs.update(job.id, lambda record: record.move(JobStatus.RUNNING))
    desk.jobs.update(job.id, lambda record: record.request_pause())
    desk.runner.run(job.id)
    assert desk.jobs.get(job.id).status is JobStatus.PAUSED
    assert desk.jobs.get(job.id).progress.step == 0


def test_job_paused_while_it_was_prepared_is_not_sent(desk: SimpleNamespace) -> None:
    job = desk.upload()
    desk.jobs.pause(job.id)
    desk.caretaker.run_once()
    assert desk.jobs.get(job.id).status is JobStatus.PAUSED
    assert desk.sent == []
    assert desk.files.pictures(job.id).exists()


def test_events_and_checkpoints_describe_the_training(desk: SimpleNamespace) -> None:
    job = desk.prepared()
    desk.runner.run(job.id)
    log = EventLog(desk.jobs._redis)
    reported = log.page(job.id, 0, 500).items
    assert [event.data["status"] for event in reported if event.kind == "status"] == [
        "validating",
        "queued",
        "running",
        "succeeded",
    ]
    assert any("9 pictures prepared" in event.data["message"] for event in reported if event.kind == "log")
    assert [event.data["step"] for event in reported if event.kind == "checkpoint"] == [2, 4, 6]
    assert [event.data["step"] for event in reported if event.kind == "metric"][-1] == 6
    assert reported[-1].kind == "completed"
    assert reported[-1].data["version"] == desk.jobs.get(job.id).version
    last = log.checkpoints(job.id).items[0]
    assert last.step == 6
    assert last.size_bytes > 1000
    assert last.losses["total"] == desk.jobs.get(job.id).metrics["total"]


def test_cancel_stops_a_running_job_within_a_few_steps(desk: SimpleNamespace, during: Callable[..., None]) -> None:
    job = desk.prepared(desk.tiny(steps=100_000))
    during(5, lambda trainer: desk.jobs.cancel(job.id))
    started = time.monotonic()
    desk.runner.run(job.id)
    assert time.monotonic() - started < 100  # of hours
    stopped = desk.jobs.get(job.id)
    assert stopped.status is JobStatus.CANCELLED
    assert 4 <= stopped.progress.step < 1000  # it may be noticed within the fifth step
    assert desk.files.ids() == []
    assert desk.store.categories() == []


def test_progress_and_losses_are_shown_while_it_trains(desk: SimpleNamespace) -> None:
    job = desk.prepared(desk.tiny(steps=100_000))
    runner = threading.Thread(target=desk.runner.run, args=(job.id,))
    runner.start()
    seen: list[Job] = []
    until = time.monotonic() + 20
    while time.monotonic() < until and len({item.progress.step for item in seen}) < 4:
        seen.append(desk.jobs.get(job.id))
        time.sleep(0.05)
    text = desk.metrics.text()
    desk.jobs.cancel(job.id)
    runner.join()
    last = seen[-1]
    assert last.status is JobStatus.RUNNING
    assert last.progress.step > 0
    assert last.progress.fraction == pytest.approx(last.progress.step / 100_000)
    # the last quarter also hides parts, and its steps are dearer
    left = 75_000 - last.progress.step + 25_000 * 1.35
    assert last.progress.eta_s == pytest.approx(left / last.metrics["steps_per_s"], rel=0.05)
    assert last.metrics["total"] > 0
    assert 'ppl_training_loss{name="total"}' in text
    assert "ppl_training_total_steps 100000.0" in text
    assert "ppl_training_step 0.0" in desk.metrics.text(), "nothing is left of it once it ended"


def test_worker_that_lost_its_lease_stops_and_writes_nothing(
    desk: SimpleNamespace, during: Callable[..., None]
) -> None:
    job = desk.prepared(desk.tiny(steps=100_000))
    during(3, lambda trainer: desk.jobs._redis.set(lease_key(job.id), "another's"))
    desk.runner.run(job.id)
    left = desk.jobs.get(job.id)
    assert left.status is JobStatus.RUNNING
    assert desk.jobs._redis.get(lease_key(job.id)) == b"another's"
    assert desk.files.ids() == [job.id], "the other one needs them"


def test_lease_lost_at_the_last_moment_publishes_nothing(desk: SimpleNamespace, during: Callable[..., None]) -> None:
    job = desk.prepared()
    during(6, lambda trainer: desk.jobs._redis.set(lease_key(job.id), "another's"))
    desk.runner.run(job.id)
    assert desk.jobs.get(job.id).status is JobStatus.RUNNING
    assert desk.store.categories() == []


def test_worker_killed_between_publishing_and_activating_is_made_good(desk: SimpleNamespace, publish) -> None:
    job = desk.prepared()
    version = publish(version=new_version_id(job.id), job_id=job.id)
    desk.runner.run(job.id)
    done = desk.jobs.get(job.id)
    assert (done.status, done.version) == (JobStatus.SUCCEEDED, version)
    assert desk.store.active("dog") == version
    assert desk.store.versions("dog") == [version], "it was not trained again"


def test_job_is_trained_on_from_its_checkpoint_after_a_kill(desk: SimpleNamespace, during: Callable[..., None]) -> None:
    class Killed(BaseException):
        pass

    def kill(trainer: Trainer) -> None:
        raise Killed

    job = desk.prepared()
    during(6, kill)
    with pytest.raises(Killed):
        desk.runner.run(job.id)
    assert desk.jobs.get(job.id).status is JobStatus.RUNNING
    steps: list[int] = []
    for step in range(1, 7):
        during(step, lambda trainer: steps.append(trainer.step + 1))
    desk.runner.run(job.id)
    assert desk.jobs.get(job.id).status is JobStatus.SUCCEEDED
    assert steps == [5, 6], "it went on from the checkpoint of step 4"


def test_job_set_aside_as_its_worker_stops_is_the_next_one(
    desk: SimpleNamespace, during: Callable[..., None], redis_client: redis.Redis
) -> None:
    job, waiting = desk.prepared(), desk.prepared()
    queue = routing.queue_key("training")

    def send(job_id: str) -> None:
        redis_client.lpush(queue, json.dumps({"headers": {"id": job_id}}))

    desk.caretaker._send = send
    send(waiting.id)
    during(3, lambda trainer: desk.stop.request())
    desk.runner.run(job.id)
    desk.caretaker.hand_over(job.id)
    assert desk.jobs.waiting_order() == [job.id, waiting.id]
    desk.caretaker.hand_over(waiting.id)
    desk.caretaker.hand_over("0" * 22)
    assert desk.jobs.waiting_order() == [job.id, waiting.id], "only a job that was set aside is handed over"


def test_what_a_killed_publication_left_is_removed_when_the_job_is_taken_up_again(desk: SimpleNamespace) -> None:
    job = desk.prepared()
    versions = desk.store.path("dog", "v1").parent
    left, other = (versions / f".staging-20260101T000000-{suffix}" for suffix in (job.id[-6:], "ffffff"))
    for folder in (left, other):
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(b"half of it")
    desk.runner.run(job.id)
    assert desk.jobs.get(job.id).status is JobStatus.SUCCEEDED
    assert not left.exists()
    assert other.exists(), "another job may be publishing it"


def test_staged_folders_of_jobs_that_are_over_are_swept_up_once_old(desk: SimpleNamespace) -> None:
    job, over = desk.prepared(), desk.prepared()
    desk.jobs.cancel(over.id)
    versions = desk.store.path("dog", "v1").parent
    folders = [versions / f".staging-20260101T000000-{item.id[-6:]}" for item in (job, over)]
    for folder in folders:
        folder.mkdir(parents=True)
    desk.caretaker.sweep()
    assert all(folder.exists() for folder in folders)
    for folder in folders:
        os.utime(folder, (time.time() - 7200,) * 2)
    desk.caretaker.sweep()
    assert [folder.exists() for folder in folders] == [True, False]


def test_damaged_checkpoint_starts_the_job_over(desk: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    job = desk.prepared()
    folder = desk.files.checkpoint(job.id)
    folder.mkdir()
    (folder / "checkpoint.safetensors").write_bytes(b"damaged")
    desk.runner.run(job.id)
    assert desk.jobs.get(job.id).status is JobStatus.SUCCEEDED
    assert "starts over" in caplog.text


def test_message_for_a_job_that_ended_or_is_unknown_or_held_does_nothing(desk: SimpleNamespace) -> None:
    ended, held, validating = desk.prepared(), desk.prepared(), desk.upload()
    desk.jobs.cancel(ended.id)
    lease = desk.jobs.acquire(held.id, "another")
    before = [desk.jobs.get(job.id) for job in (ended, held, validating)]
    for job_id in (ended.id, held.id, validating.id, "0123456789abcdef"):
        desk.runner.run(job_id)
    assert [desk.jobs.get(job.id) for job in (ended, held, validating)] == before
    assert lease is not None
    assert lease.renew()


def test_version_json_is_plain_json(desk: SimpleNamespace) -> None:
    job = desk.prepared()
    desk.runner.run(job.id)
    path = desk.store.path("dog", desk.store.active("dog")) / "version.json"
    assert json.loads(path.read_text())["format"] == 1


def test_report_does_not_undo_a_later_write(desk: SimpleNamespace) -> None:
    job = desk.upload()
    lease = desk.jobs.acquire(job.id, "test")
    renew, is_renewing, may_go_on = lease.renew, threading.Event(), threading.Event()

    def renew_late() -> bool:
        is_renewing.set()
        return may_go_on.wait(100) and renew()

    lease.renew = renew_late
    with jobs.HeldJob(desk.jobs, lease, desk.stop) as held:
        held.report(lambda record: record.job.metrics.update(images=1))
        assert is_renewing.wait(100)
        held.write(lambda record: record.job.metrics.update(images=2))
        may_go_on.set()
    assert desk.jobs.get(job.id).metrics["images"] == 2
