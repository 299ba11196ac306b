"""The asynchronous client against a real gateway; the shared code is tested with the blocking one."""

from __future__ import annotations

import asyncio

import pytest

from service.aio import AsyncClient
from service.client import APIError, Client, InputError
from service.client.errors import CannotConnect
from service.client.types import EstimateStatus
from tests.service.training.test_train_jobs import GOOD
from tests.support.live_gateway import live_gateway


@pytest.fixture
def url(make_settings, publish):
    publish("dog", "v1")
    publish("dog", "v2")
    with live_gateway(make_settings()) as url:
        yield url


@pytest.fixture
async def client(url):
    async with AsyncClient(url) as client:
        yield client


async def test_poses_and_lines(client, make_picture):
    found = await client.estimate("dog", [make_picture(), make_picture()])
    assert [image.index for image in found.images] == [0, 1]
    lines = [line async for line in client.estimate_lines("dog", [make_picture(), b"junk"])]
    assert sorted(line.index for line in lines) == [0, 1]
    assert (await client.estimate_as("csv", "dog", [make_picture()])).count("image-0") == 1


async def test_background_and_video(client, make_picture, tmp_path, video):
    path = tmp_path / "walk.mp4"
    path.write_bytes(video(8))
    assert sorted([pose.frame async for pose in client.estimate_video("dog", path, every=4)]) == [0, 4]
    begun = await client.estimate_async("dog", [make_picture()])
    found = await client.wait_estimate(begun.id, poll_s=0.05)
    assert found.status is EstimateStatus.SUCCEEDED
    assert [item.id async for item in client.estimates()] == [begun.id]


async def test_jobs_and_their_events(client, tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(GOOD)
    job = await client.train("dog", path, settings={"steps": 5})
    assert [item.id async for item in client.jobs()] == [job.id]
    following = asyncio.create_task(_events(client, job.id))
    await client.cancel(job.id)
    assert (await client.wait(job.id, poll_s=0.05)).status == "cancelled"
    assert [event.kind for event in await following][-1] == "completed"
    assert [event.kind async for event in client.events(job.id, follow=False)][-1] == "completed"


async def _events(client, job_id):
    return [event async for event in client.events(job_id)]


async def test_a_folder_is_packed_in_a_thread(client, tmp_path, make_picture):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(make_picture())
    dataset = await client.datasets.create(tmp_path, name="garden")
    assert (await client.datasets.get(dataset.id)).files == 3
    assert [item.name async for item in client.datasets.list()] == ["garden"]


async def test_priors_versions_and_aliases(client, tmp_path):
    assert [entry.category async for entry in client.priors()] == ["dog"]
    assert (await client.prior("dog")).version == "v2"
    assert (await client.versions.diff("dog", "v1", "v2")).mean_moved == 0
    await client.aliases.put("dog", "champion", "v1")
    assert (await client.aliases.get("dog", "champion")).version == "v1"
    named = await client.name_keypoints("dog", ["a", "b", "c", "d", "e"])
    assert named.names == ["a", "b", "c", "d", "e"]
    assert (await client.versions.export("dog", "v1", tmp_path / "v1.zip")).stat().st_size > 1000
    assert [item async for item in client.landmarks.list("dog")] == []


async def test_errors_are_those_of_the_blocking_client(client, url):
    with pytest.raises(APIError) as refused:
        await client.prior("cat")
    assert (refused.value.status, refused.value.code) == (404, "unknown_category")
    with pytest.raises(InputError):
        await client.train("dog")
    async with AsyncClient("http://127.0.0.1:1") as client:
        with pytest.raises(CannotConnect):
            await client.prior("dog")


def test_both_clients_have_the_same_methods():
    def calls(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert calls(AsyncClient) - {"aclose"} == calls(Client) - {"close"}
