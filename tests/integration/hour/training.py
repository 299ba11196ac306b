"""Actions that train, and on what comes of it: jobs, events, webhooks, versions, datasets, landmarks."""

from __future__ import annotations

import threading

import httpx
import numpy as np
from numpy.typing import NDArray

from service.client import APIError, Client, JobStatus
from service.contract.datasets.dataset import DatasetStatus
from tests.integration.faults.load import TOLERANCE_PX
from tests.support.stack_process import TINY, drawing, within

from .world import PATIENCE_S, World, keypoints_of, require

_PICTURES = 24  # of the archive
_KEPT = 3  # versions
_SETTINGS = {**TINY, "steps": 20}
_LONG = {**TINY, "steps": 20_000}
_versions_change = threading.Lock()  # so that an action's version is not deleted by another


def train(world: World, client: Client) -> None:
    """Train a version, every third time on the weights of another; follow its events, and estimate with it."""
    turn = world.turn
    with _versions_change:
        newest = _list_versions(client, "cross")
        job = client.train(
            "cross",
            world.crosses,
            "compact",
            _SETTINGS,
            activate="always",
            webhook_url=world.hooks.url,
            continue_from=newest[0] if turn % 3 == 0 and newest else None,
        )
        events = [event.id for event in client.events(job.id)]
        require(events == list(range(1, len(events) + 1)), f"the events have the ids {events}")
        job = client.job(job.id)
        require(job.status is JobStatus.SUCCEEDED, f"job {job.id} {job.status}: {job.error}")
        require(job.progress.step == _SETTINGS["steps"], f"the job ended after {job.progress.step} steps")
        require(world.hooks.wait(job.id), f"no webhook came of job {job.id}")
        require(client.preview(job.id).startswith(b"\x89PNG"), "the preview is no PNG")
        one, two = (_poses(client, "cross", job.version) for _ in range(2))
        require(np.abs(one - two).max() <= TOLERANCE_PX, "the new version's poses differ when asked again")


def train_on_dataset(world: World, client: Client) -> None:
    """Keep a dataset, look at it, train on it, and delete both."""
    created = client.datasets.create(world.crosses)
    dataset = client.datasets.wait(created.id, poll_s=0.2, timeout_s=PATIENCE_S)
    require(dataset.status is DatasetStatus.READY, f"dataset {dataset.id} {dataset.status}: {dataset.error}")
    require(dataset.found.pictures == _PICTURES, f"{dataset.found.pictures} pictures were found")
    require(len(list(client.datasets.pictures(dataset.id))) == _PICTURES, "pictures are missing")
    client.datasets.contact_sheet(dataset.id)
    client.datasets.picture(dataset.id, 3)
    job = client.train("cross", None, "compact", _SETTINGS, activate="always", dataset=dataset.id)
    job = client.wait(job.id, poll_s=0.2, timeout_s=PATIENCE_S)
    require(job.status is JobStatus.SUCCEEDED, f"job {job.id} {job.status}: {job.error}")
    client.delete(job.id)
    client.datasets.delete(dataset.id)


def keep_video(world: World, client: Client) -> None:
    """Keep a dataset of a video, look at a frame, and delete it."""
    created = client.datasets.create(world.film)
    dataset = client.datasets.wait(created.id, poll_s=0.2, timeout_s=PATIENCE_S)
    require(dataset.status is DatasetStatus.READY, f"dataset {dataset.id} {dataset.status}: {dataset.error}")
    require(dataset.found.videos == 1, f"{dataset.found.videos} videos were found")
    client.datasets.frame(dataset.id, dataset.found.frames[0])
    client.datasets.delete(dataset.id)


def interrupt_training(world: World, client: Client) -> None:
    """Leave a job's stream of events, pause the job, resume it, publish its checkpoint, cancel it."""
    job = client.train("cross", world.crosses, "compact", _LONG, activate=False)

    def shows(status: JobStatus, step: int = 0) -> bool:
        shown = client.job(job.id)
        return shown.status is status and shown.progress.step > step

    try:
        with httpx.stream(
            "GET",
            f"{world.stack.url}/train-jobs/{job.id}/events",
            headers={"Accept": "text/event-stream"},
            trust_env=False,
            timeout=60,
        ) as stream:
            next(stream.iter_raw())  # and leave
        require(within(PATIENCE_S, lambda: shows(JobStatus.RUNNING, 1)), "the job does not begin")
        client.pause(job.id)
        require(within(PATIENCE_S, lambda: shows(JobStatus.PAUSED)), "the job does not pause")
        step = client.job(job.id).progress.step
        client.resume(job.id)
        require(within(PATIENCE_S, lambda: shows(JobStatus.RUNNING, step)), "the job does not go on")
        version = client.publish(job.id, poll_s=0.2, timeout_s=PATIENCE_S)
        require(_poses(client, "cross", version).shape[1] == TINY["num_keypoints"], "keypoints are missing")
    finally:
        client.cancel(job.id)
    job = client.wait(job.id, poll_s=0.2, timeout_s=PATIENCE_S)
    require(job.status is JobStatus.CANCELLED, f"job {job.id} {job.status}: {job.error}")


def move_versions(world: World, client: Client) -> None:
    """Export a version, import it into a category of its own, compare their poses, and delete the copy and old ones."""
    with _versions_change:
        versions = _list_versions(client, "cross")
        active = client.aliases.get("cross", "active").version
        file = client.versions.export("cross", active, world.folder / "exported.zip")
        entry = client.versions.import_file("copy", file, activate=False)
        apart = np.abs(_poses(client, "cross", active) - _poses(client, "copy", entry.version)).max()
        require(apart <= TOLERANCE_PX, f"the imported version's poses are {apart:.2f} px off")
        client.aliases.put("copy", "moved", entry.version)
        client.aliases.delete("copy", "moved")
        client.versions.delete("copy", entry.version)
        for version in versions[_KEPT:]:
            if version != active:
                client.versions.delete("cross", version)


def fit_landmarks(world: World, client: Client) -> None:
    """Fit landmarks on labelled pictures, ask for them with poses, and delete them."""
    name = f"marks{world.turn}"
    fitted = client.landmarks.fit("dog", name, world.labelled, world.labels)
    errors = fitted.cross_validation
    require(errors.error_percent < errors.mean_place_percent, "the landmarks are no better than mean places")
    images = client.estimate("dog", [known.picture for known in world.known], landmarks=name).images
    world.check(world.known, images)
    require(any(image.landmarks for image in images), "there are no landmarks")
    client.landmarks.delete("dog", name)


def look_around(world: World, client: Client) -> None:
    """Read what a page or a scraper reads."""
    require(client.readiness().status == "ready", "the stack is not ready")
    names = [prior.category for prior in client.priors()]
    require("dog" in names, f"the priors are {names}")
    client.prior("dog", all_links=True)
    client.memory("dog", bank=0)
    client.history("dog")
    require(client.link_map("dog").startswith(b"\x89PNG"), "the link map is no PNG")
    client.name_keypoints("dog", [f"part {world.turn % 2} {number}" for number in range(16)])
    list(client.jobs())
    list(client.estimates())
    with httpx.Client(base_url=world.stack.url, trust_env=False, timeout=30) as http:
        for path in ("/metrics", "/", "/openapi.json", "/livez"):
            require(http.get(path, follow_redirects=True).status_code == 200, f"{path} is not shown")
    with _versions_change:
        versions = _list_versions(client, "cross")
        if len(versions) > 1:
            client.versions.diff("cross", versions[1], versions[0])


def _list_versions(client: Client, category: str) -> list[str]:
    """Return the versions of a category, the newest first; none if there is no such category."""
    try:
        return [entry.version for entry in client.versions.list(category)]
    except APIError as error:
        if error.status != 404:
            raise
        return []


def _poses(client: Client, category: str, version: str | None) -> NDArray[np.float64]:
    """Return the keypoints (3, K, 2) of three drawings."""
    images = client.estimate(category, [drawing(number) for number in range(3)], version).images
    return np.stack([keypoints_of(image) for image in images])
