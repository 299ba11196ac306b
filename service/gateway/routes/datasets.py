"""/datasets: upload pictures once, inspect them, and train any number of jobs from them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from service.contract.datasets.dataset import CreatedDataset, Dataset, DatasetPage, DatasetStatus
from service.contract.errors import DatasetNotReady
from service.contract.jobs.store import MAX_PAGE
from service.gateway.gateway import gateway_of
from service.http.problems import responses
from service.training.dataset_intake import accept_dataset, check_unused
from service.training.openapi import dataset_body

router = APIRouter(tags=["datasets"])

_AGAIN_S = 2.0


@router.post(
    "/datasets",
    status_code=201,
    summary="Send a dataset",
    response_model=CreatedDataset,
    responses={
        200: {"model": CreatedDataset, "description": "the dataset was there already, and is left as it is"},
        **responses(400, 408, 413, 415, 422, 507),
    },
    openapi_extra=dataset_body(),
)
async def post_dataset(request: Request) -> Response:
    """Store pictures or clips, so that any number of jobs can be trained from them.

    Send an archive, or the files themselves:

    ```sh
    curl -F archive=@pictures.zip http://127.0.0.1:8000/datasets
    curl -F images=@photo.jpg http://127.0.0.1:8000/datasets
    ```

    The address in `Location` lists its content once a training worker has inspected every file; its `status` is
    `inspecting` until then. Then name it in `dataset` of `POST /train-jobs`. The same bytes, sent with the same
    mode and labels, are the same dataset: they are kept once, and the answer is 200 with `already_there`.
    """
    dataset, is_new = await accept_dataset(gateway_of(request).training, request)
    return JSONResponse(
        {**dataset.model_dump(mode="json"), "already_there": not is_new},
        status_code=201 if is_new else 200,
        headers={"Location": f"/datasets/{dataset.id}"},
    )


@router.get("/datasets", summary="List datasets", response_model=DatasetPage, responses=responses(400, 422))
async def get_datasets(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="datasets in a page")] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> DatasetPage:
    """Return datasets, newest first."""
    gateway = gateway_of(request)
    return await gateway.threads.io(gateway.datasets.page, limit, cursor)


@router.get(
    "/datasets/{dataset_id}", summary="See what is in a dataset", response_model=Dataset, responses=responses(404)
)
async def get_dataset(request: Request, dataset_id: str) -> Dataset:
    """Return a dataset: how many pictures and clips, of which sizes and formats, and what will be left out
    and why. While it is inspected, what was found so far. A failed one's `error` says why no job can use it.
    """
    gateway = gateway_of(request)
    return await gateway.threads.io(gateway.datasets.get, dataset_id)


@router.get(
    "/datasets/{dataset_id}/contact-sheet",
    summary="Look at a dataset",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}, "description": "a JPEG"}, **responses(404, 409)},
)
async def get_contact_sheet(request: Request, dataset_id: str) -> Response:
    """Return one picture of up to 48 pictures spread over the dataset, each cut to the square in its middle; with mode
    clips a row of 8 frames for each of up to 12 clips. It is there once the dataset is ready.
    """
    gateway = gateway_of(request)
    dataset = await gateway.threads.io(gateway.datasets.get, dataset_id)
    if dataset.status is not DatasetStatus.READY:
        again_s = _AGAIN_S if dataset.status is DatasetStatus.INSPECTING else None
        raise DatasetNotReady(
            f"dataset {dataset_id} is {dataset.status}; it has a contact sheet once it is ready", retry_after_s=again_s
        )
    sheet = await gateway.threads.io(gateway.datasets.read_sheet, dataset_id)
    return Response(sheet, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


@router.delete(
    "/datasets/{dataset_id}", status_code=204, summary="Delete a dataset", responses=responses(404, 409, 503)
)
async def delete_dataset(request: Request, dataset_id: str) -> None:
    """Delete a dataset for good, unless a job that has not ended was started with it. Versions that were trained
    from it stay as they are.
    """
    gateway = gateway_of(request)
    await gateway.threads.io(gateway.datasets.record, dataset_id)
    await gateway.threads.io(check_unused, gateway.jobs, dataset_id)
    await gateway.threads.io(gateway.datasets.remove, dataset_id)
