"""Requests whose answer is lost after the server has done the work: the client repeats them, and nothing is doubled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.client import APIError, Client
from service.contract.jobs.record import JobRecord
from service.contract.jobs.store import JobStatus, JobStore, NewJob
from service.contract.versions.store import VersionStore
from service.runtime.settings import Settings
from tests.service.versions.test_landmarks import labelled, truth  # noqa: F401 - fixtures
from tests.service.versions.test_transfer import version  # noqa: F401 - a fixture
from tests.support.answer_cutter import AnswerCutter, answer_cutter
from tests.support.jobs import move
from tests.support.live_gateway import live_gateway


@pytest.fixture
def lossy(make_settings: Callable[..., Settings]) -> Iterator[AnswerCutter]:
    with live_gateway(make_settings()) as url, answer_cutter(url) as cutter:
        yield cutter


def posts(lossy: AnswerCutter, end: str) -> int:
    return sum(line.startswith("POST") and line.split()[1].endswith(end) for line in lossy.requests)


def test_version_is_imported_once(lossy: AnswerCutter, version: str, data_root: Path, tmp_path: Path) -> None:  # noqa: F811
    with Client(lossy.url) as client:
        file = client.versions.export("dog", "active", tmp_path / "dog.zip")
        lossy.cut = ["POST /priors/hound/versions/import"]
        entry = client.versions.import_file("hound", file)
        assert lossy.cut == []
        assert posts(lossy, "/import") == 2
        assert [found.version for found in client.versions.list("hound")] == [entry.version]
        assert client.prior("hound").version == entry.version
        with pytest.raises(APIError) as refused:  # by another request
            client.versions.import_file("hound", file)
        assert refused.value.code == "version_exists"
    assert not VersionStore(data_root).list_staged()


def test_landmarks_are_fitted_once(lossy: AnswerCutter, publish, labelled, tmp_path: Path) -> None:  # noqa: F811
    publish("dog")
    pictures, _, labels = labelled()
    for name, data in pictures.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "labels.csv").write_bytes(labels)
    files = [tmp_path / name for name in pictures]
    with Client(lossy.url) as client:
        lossy.cut = ["POST /priors/dog/landmarks"]
        fitted = client.landmarks.fit("dog", "anatomy", files, tmp_path / "labels.csv")
        assert lossy.cut == []
        assert posts(lossy, "/landmarks") == 2
        assert fitted.maps == client.landmarks.get("dog", "anatomy").maps
        assert (fitted.images, fitted.unlabelled_images) == (len(files), 0)
        with pytest.raises(APIError) as refused:  # by another request
            client.landmarks.fit("dog", "anatomy", files, tmp_path / "labels.csv")
        assert refused.value.code == "name_taken"


@pytest.mark.parametrize("is_made", [True, False], ids=["made before it is asked again", "made later"])
def test_one_version_is_made_of_a_running_job(lossy: AnswerCutter, redis_client, is_made: bool) -> None:
    jobs = JobStore(redis_client)
    job_id = jobs.create(NewJob("dog", {}, 5)).id
    move(jobs, job_id, JobStatus.QUEUED, JobStatus.RUNNING)

    def publish(record: JobRecord) -> None:  # as the job's worker does
        if record.publish_wanted:
            record.publish_checkpoint(3, f"v{len(record.job.checkpoint_versions)}")

    if is_made:
        lossy.on_cut = lambda: jobs.update(job_id, publish)
    with Client(lossy.url) as client:
        lossy.cut = [f"POST /train-jobs/{job_id}/publish"]
        if is_made:
            assert client.publish(job_id, timeout_s=20) == "v0"
        else:
            with pytest.raises(TimeoutError):
                client.publish(job_id, poll_s=0.05, timeout_s=0.2)
        assert posts(lossy, "/publish") == 2
        jobs.update(job_id, publish)
        assert [made.version for made in client.job(job_id).checkpoint_versions] == ["v0"]
