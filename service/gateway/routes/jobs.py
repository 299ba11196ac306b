"""/train-jobs: start, list, cancel, pause, resume and delete training jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import JSONResponse, Response

from service.contract.jobs.job import JobPage
from service.contract.jobs.store import MAX_PAGE, Job, JobStatus
from service.gateway.gateway import gateway_of
from service.http.headers import KEY_HEADER, REPLAYED_HEADER, media_type
from service.http.problems import UnsupportedMedia, responses
from service.training.job_intake import accept_training
from service.training.job_request import read_json, read_upload
from service.training.openapi import train_body
from service.training.retention import list_jobs

router = APIRouter(tags=["training"])


@router.post(
    "/train-jobs",
    status_code=202,
    summary="Train a category",
    response_model=Job,
    responses=responses(400, 404, 408, 409, 413, 415, 422, 429, 503, 507),
    openapi_extra=train_body(),
)
async def create_job(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias=KEY_HEADER, description="names the request, so that it can be sent again: 1 to 255 ASCII characters"
        ),
    ] = None,
) -> Response:
    """Create a job that learns a category's prior from pictures. The response does not wait for it.

    Send an archive as a form, with any setting of the model as a field of that name:

    ```sh
    curl -F category=dog -F archive=@pictures.zip -F steps=2000 http://127.0.0.1:8000/train-jobs
    ```

    or name a folder below the server's data root as JSON. Make it first, here `imports/dog`, and put pictures into it:

    ```sh
    curl --json '{"category": "dog", "folder": "imports/dog"}' http://127.0.0.1:8000/train-jobs
    ```

    or name in `dataset`, in a form or as JSON, a dataset that was sent before; any number of jobs may share one.

    Follow it at the address in `Location`. When it succeeds, its version becomes the category's active one, unless
    `activate` is false. The archive is checked at once; the pictures in it are read while the job is `validating`,
    and one that can't be read is named in the job's metrics and left out.

    With an `Idempotency-Key`, a client can repeat the request if the response was lost: the same key with the same
    request returns the job that the first one created, with `Idempotent-Replayed: true`; with another request it is
    refused with 422. Keys are scoped to the API key and kept for a day. The dataset or version that the request names
    may have been deleted since.

    With `continue_from`, a version or alias of the category or CATEGORY@VERSION, training starts from that version's
    weights with new schedules, for example on new pictures. Settings that are not sent are those of the version
    (`steps` too); those that determine the model's shape can't change. Keypoints keep their meaning and names;
    landmarks must be fitted again.

    With `webhook_url` the server reports the job's end: a POST of `{"type": "train_job.succeeded", "timestamp": …,
    "data": the job}` (or `…failed`, `…cancelled`), signed by Standard Webhooks (`GET /webhooks/secret`), retried for
    about a day until the response is 2xx. The job's `webhook` has the result.
    """
    gateway = gateway_of(request)
    kind = media_type(request.headers)
    if kind == "application/json":
        job, replayed = await accept_training(gateway.training, request, read_json)
    elif kind == "multipart/form-data":
        job, replayed = await accept_training(gateway.training, request, read_upload)
    else:
        raise UnsupportedMedia(
            f"the body is {kind[:80] or 'of no media type'}; send multipart/form-data with an archive, "
            "or application/json with a folder; both may name a dataset instead"
        )
    job = await gateway.threads.io(gateway.queue.add_position, job)
    headers = {"Location": f"/train-jobs/{job.id}", **({REPLAYED_HEADER: "true"} if replayed else {})}
    return JSONResponse(job.model_dump(mode="json"), status_code=202, headers=headers)


@router.get("/train-jobs", summary="List training jobs", response_model=JobPage, responses=responses(400, 422, 503))
async def get_jobs(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="jobs in a page")] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
    category: Annotated[str | None, Query(description="only jobs of this category")] = None,
    status: Annotated[JobStatus | None, Query(description="only jobs of this status")] = None,
) -> JobPage:
    """Return jobs, newest first. Beyond some thousands (`PPL_ENDED_JOBS_KEPT`) those that ended first are deleted."""
    gateway = gateway_of(request)
    page = await gateway.threads.io(list_jobs, gateway.jobs, limit, cursor, category, status)
    return page.model_copy(update={"items": await gateway.threads.io(gateway.queue.add_positions, page.items)})


@router.get("/train-jobs/{job_id}", summary="Follow a training job", response_model=Job, responses=responses(404, 503))
async def get_job(request: Request, job_id: str) -> Job:
    """Return a job.

    `progress.eta_s` is the time to its end in seconds, including the wait; null until the pace of this job, or of an
    earlier one with the same settings, is known. `queue_position` is the position among waiting jobs, 1 for the next.
    `metrics` has the number of pictures, the unreadable files, and the last losses. `error` is the reason of a failure.
    """
    gateway = gateway_of(request)
    return await gateway.threads.io(gateway.queue.add_position, await gateway.threads.io(gateway.jobs.get, job_id))


@router.post(
    "/train-jobs/{job_id}/cancel",
    summary="Stop a training job",
    response_model=Job,
    responses=responses(404, 409, 503),
)
async def cancel_job(request: Request, job_id: str) -> Job:
    """Cancel a job. One that is running stops at its next step: its status changes a moment later."""
    gateway = gateway_of(request)
    job = await gateway.threads.io(gateway.jobs.cancel, job_id)
    if job.status.ended:
        await gateway.threads.io(gateway.files.remove, job_id)
    return job


@router.post(
    "/train-jobs/{job_id}/pause",
    summary="Pause a training job",
    response_model=Job,
    responses=responses(404, 409, 503),
)
async def pause_job(request: Request, job_id: str) -> Job:
    """Pause a job until it is resumed; its worker continues with others meanwhile.

    A queued job is paused at once. A running job first writes a checkpoint at its next step, so its status changes a
    moment later. A job whose upload is being read is paused after that. A paused job stays paused.
    """
    gateway = gateway_of(request)
    return await gateway.threads.io(gateway.jobs.pause, job_id)


@router.post(
    "/train-jobs/{job_id}/resume",
    summary="Resume a training job",
    response_model=Job,
    responses=responses(404, 409, 503),
)
async def resume_job(request: Request, job_id: str) -> Job:
    """Put a paused job back into the queue; it resumes from its checkpoint as if it had never stopped.

    A pause that its worker has not seen yet is withdrawn. A job that is not paused does not change.
    """
    gateway = gateway_of(request)
    job = await gateway.threads.io(gateway.jobs.resume, job_id)
    await gateway.wake_trainers()
    return await gateway.threads.io(gateway.queue.add_position, job)


@router.delete(
    "/train-jobs/{job_id}", status_code=204, summary="Forget a training job", responses=responses(404, 409, 503)
)
async def delete_job(request: Request, job_id: str) -> None:
    """Delete the record of a job that ended. The version that it published stays."""
    gateway = gateway_of(request)
    await gateway.threads.io(gateway.jobs.delete, job_id)
