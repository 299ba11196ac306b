"""/datasets: upload pictures once, inspect them, and train any number of jobs from them."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import Path as PathParameter
from fastapi import Query, Request
from starlette.responses import JSONResponse, Response

from service.access.guard import key_id_of
from service.contract.datasets.dataset import (
    CreatedDataset,
    Dataset,
    DatasetPage,
    DatasetPicturePage,
    DatasetStatus,
)
from service.contract.errors import DatasetNotReady
from service.contract.media.archives import ArchiveLimits
from service.contract.media.pictures import PictureLimits
from service.estimates.video_frames import video_limits
from service.gateway.gateway import CurrentGateway, Gateway, Limit, new_router
from service.http.problems import responses
from service.runtime.redis_clients import QUEUE_ERRORS
from service.training.dataset_intake import accept_dataset, check_unused
from service.training.dataset_pictures import list_pictures, read_frame, read_picture
from service.training.openapi import dataset_body

log = logging.getLogger(__name__)

router = new_router("datasets")

_AGAIN_S = 2.0
_FRAME_TIMEOUT_S = 60.0

Number = Annotated[int, PathParameter(ge=0, lt=10**9, description="of the picture, from 0", examples=[0])]


@router.post(
    "/datasets",
    status_code=201,
    summary="Send a dataset",
    response_model=CreatedDataset,
    responses={
        200: {"model": CreatedDataset, "description": "the dataset was there already, and is left as it is"},
        **responses(507),
    },
    openapi_extra=dataset_body(),
)
async def post_dataset(request: Request, gateway: CurrentGateway) -> Response:
    """Store pictures or clips, so that any number of jobs can be trained from them.

    Send an archive, or the files themselves:

    ```sh
    curl -F archive=@pictures.zip http://127.0.0.1:8000/datasets
    curl -F images=@photo.jpg http://127.0.0.1:8000/datasets
    ```

    A training worker inspects every file; until then the `status` is `inspecting`, afterwards the address in `Location`
    lists the content. Then name the dataset in `dataset` of `POST /train-jobs`. The same bytes with the same mode and
    labels are the same dataset: they are stored once, and the response is 200 with `already_there`.
    """
    dataset, is_new = await accept_dataset(gateway.training, request)
    dataset = await _add_pace(gateway, dataset)
    return JSONResponse(
        {**dataset.model_dump(mode="json"), "already_there": not is_new},
        status_code=201 if is_new else 200,
        headers={"Location": f"/datasets/{dataset.id}"},
    )


@router.get("/datasets", summary="List datasets")
async def get_datasets(gateway: CurrentGateway, limit: Limit = 50, cursor: str | None = None) -> DatasetPage:
    """Return datasets, newest first."""
    return await gateway.threads.io(gateway.datasets.page, limit, cursor)


@router.get("/datasets/{dataset_id}", summary="See what is in a dataset")
async def get_dataset(gateway: CurrentGateway, dataset_id: str) -> Dataset:
    """Return a dataset: its numbers of pictures and clips, sizes, formats, and the skipped files with reasons.

    `motion` has boxes around the thing that moves before a fixed camera, in some of the frames. A training finds the
    same by itself; to correct it, send the corrected boxes as `boxes` of `POST /train-jobs`, a row of the CSV for each.
    During the inspection it contains the findings so far. If it failed, `error` is the reason why no job can use it.
    """
    return await _add_pace(gateway, await gateway.threads.io(gateway.datasets.get, dataset_id))


async def _add_pace(gateway: Gateway, dataset: Dataset) -> Dataset:
    try:
        step_s = await gateway.threads.io(gateway.queue.read_step_s)
    except QUEUE_ERRORS as error:  # datasets are files, and are stored and shown without Redis
        log.warning("pace not known, Redis does not answer: dataset=%s: %s", dataset.id, error)
        step_s = None
    return dataset.model_copy(update={"step_s": step_s})


@router.get(
    "/datasets/{dataset_id}/contact-sheet",
    summary="Look at a dataset",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}, "description": "a JPEG"}, **responses(409)},
)
async def get_contact_sheet(gateway: CurrentGateway, dataset_id: str) -> Response:
    """Return a contact sheet of up to 48 pictures spread over the dataset, each cropped to its central square.

    Where `found.motion` is sure, pictures are whole, with the boxes that were found by motion. With mode clips it has
    a row of 8 frames for each of up to 12 clips. It exists once the dataset is ready.
    """
    dataset = await gateway.threads.io(gateway.datasets.get, dataset_id)
    if dataset.status is not DatasetStatus.READY:
        again_s = _AGAIN_S if dataset.status is DatasetStatus.INSPECTING else None
        raise DatasetNotReady(
            f"dataset {dataset_id} is {dataset.status}; it has a contact sheet once it is ready", retry_after_s=again_s
        )
    sheet = await gateway.threads.io(gateway.datasets.read_sheet, dataset_id)
    return Response(sheet, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


@router.get("/datasets/{dataset_id}/pictures", summary="List the pictures of a dataset")
async def get_pictures(
    gateway: CurrentGateway, dataset_id: str, limit: Limit = 50, cursor: str | None = None
) -> DatasetPicturePage:
    """Return the pictures of a dataset in the upload's order, by number and name; videos are not among them."""
    await gateway.threads.io(gateway.datasets.record, dataset_id)
    await gateway.threads.upload(gateway.datasets.complete, dataset_id)
    path, limits = gateway.datasets.archive(dataset_id), ArchiveLimits.of(gateway.settings)
    return await gateway.threads.upload(list_pictures, path, limits, limit, cursor)


@router.get(
    "/datasets/{dataset_id}/pictures/{number}",
    summary="Get a picture of a dataset",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}, "description": "a JPEG"}, **responses(415)},
)
async def get_picture(gateway: CurrentGateway, dataset_id: str, number: Number) -> Response:
    """Return a picture as JPEG of its own size, its EXIF orientation applied, for example to draw boxes on it."""
    await gateway.threads.io(gateway.datasets.record, dataset_id)
    await gateway.threads.upload(gateway.datasets.complete, dataset_id)
    path, limits = gateway.datasets.archive(dataset_id), ArchiveLimits.of(gateway.settings)
    data = await gateway.threads.upload(read_picture, path, number, limits, PictureLimits.of(gateway.settings))
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


@router.get(
    "/datasets/{dataset_id}/frame",
    summary="Get a frame of a dataset's video",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}, "description": "a JPEG"}, **responses(415, 503)},
)
async def get_frame(
    request: Request,
    gateway: CurrentGateway,
    dataset_id: str,
    name: Annotated[str, Query(max_length=1000, description="as boxes name it", examples=["walk.mp4#000012"])],
) -> Response:
    """Return a frame as JPEG of its own size, for example to look at the boxes of a job (`GET /train-jobs/{id}/boxes`).

    The video is decoded from a key frame before it on; where the file has no times, from its start, which takes long
    for a late frame.
    """
    record = await gateway.threads.io(gateway.datasets.record, dataset_id)
    await gateway.threads.upload(gateway.datasets.complete, dataset_id)
    path, limits = gateway.datasets.archive(dataset_id), ArchiveLimits.of(gateway.settings)
    video = video_limits(gateway.settings, _FRAME_TIMEOUT_S)
    with gateway.video_slots.hold(1, key_id_of(request.scope)):
        data = await gateway.threads.video(read_frame, path, name, record.file_name, limits, video)
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


@router.delete("/datasets/{dataset_id}", status_code=204, summary="Delete a dataset", responses=responses(409, 503))
async def delete_dataset(gateway: CurrentGateway, dataset_id: str) -> None:
    """Delete a dataset permanently; refused while an unfinished job uses it. Versions trained from it stay."""
    await gateway.threads.io(gateway.datasets.record, dataset_id)
    await gateway.threads.io(check_unused, gateway.jobs, dataset_id)
    await gateway.threads.io(gateway.datasets.remove, dataset_id)
