"""The errors that cross the queue and the API, one class for each code, grouped by their bases.

Details are written for the client: no server path, no traceback. Codes are never renamed once released.
"""

# ruff: noqa: N818

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

_MAX_DETAIL = 1500  # characters


class PPLError(Exception):
    """Base of every error that a client may see; code, HTTP status and title are fixed by the class.

    Args:
        detail: one sentence for the client, cut after 1,500 characters; the title if empty.
        retry_after_s: value of the header Retry-After.
        extra: further members of the problem document, plain JSON values.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init_subclass__(cls, code: str | None = None, status: int | None = None) -> None:
        cls.code, cls.status = code or cls.code, status or cls.status
        cls.title = cls.code.replace("_", " ").capitalize()

    def __init__(
        self, detail: str = "", *, retry_after_s: float | None = None, extra: Mapping[str, Any] | None = None
    ) -> None:
        # it may quote a value of the request, which may be long
        self.detail = (detail if len(detail) <= _MAX_DETAIL else f"{detail[: _MAX_DETAIL - 1]}…") or self.title
        super().__init__(self.detail)
        self.retry_after_s = retry_after_s
        self.extra: dict[str, Any] = dict(extra or {})

    def to_dict(self) -> dict[str, str]:
        """Return {"code", "detail"}, the form used in replies and job records."""
        return {"code": self.code, "detail": self.detail}


class BadRequest(PPLError, code="bad_request", status=400):
    """The request cannot be served; sending it again gives the same answer."""


class BadCategoryName(BadRequest, code="bad_category_name"): ...


class BadVersionName(BadRequest, code="bad_version_name"): ...


class BadSetting(BadRequest, code="bad_setting", status=422):
    """A setting is unknown or out of range; the detail names it and the range."""


class BadBoxes(BadRequest, code="bad_boxes", status=422):
    """Boxes are not one [x, y, width, height] a picture, or lie outside of it."""


class BadCursor(BadRequest, code="bad_cursor"):
    """The cursor does not come from a page of this list."""


class BadFolder(BadRequest, code="bad_folder", status=422):
    """The training folder is not a folder of pictures below the data root."""


class BadPrior(BadRequest, code="bad_prior", status=422):
    """The prior to start from is invalid, missing, or does not match the settings."""


class BadLabels(BadRequest, code="bad_labels", status=422):
    """Labels cannot be read or scored, or match no picture of the job."""


class BadWebhook(BadRequest, code="bad_webhook", status=422):
    """Webhooks cannot be sent to this address."""


class NoMemory(BadRequest, code="no_memory", status=422):
    """Refinement was requested from a version trained without a memory."""


class BadAliasName(BadRequest, code="bad_alias_name"): ...


class BadKeypointNames(BadRequest, code="bad_keypoint_names", status=422):
    """The names are not K different ones."""


class BadLandmarks(BadRequest, code="bad_landmarks", status=422):
    """The landmarks have an invalid name, or cannot be fitted on the labelled pictures."""


class BadVersionFile(BadRequest, code="bad_version_file", status=422):
    """The upload is not an exported version, is damaged, or of a later release."""


class NoImages(BadRequest, code="no_images", status=422): ...


class TooManyImages(BadRequest, code="too_many_images", status=413): ...


class BadPicture(BadRequest, code="bad_picture", status=422): ...


class NothingFound(BadPicture, code="nothing_found"):
    """No box shows where the thing is in this picture or frame."""


class NoHeading(BadPicture, code="no_heading"):
    """The picture must be rotated so that the thing faces up, but its heading is not known."""


class NotAnImage(BadPicture, code="not_an_image", status=415): ...


class TruncatedImage(BadPicture, code="truncated_image"):
    """The picture ends early or is damaged."""


class TooManyPixels(BadPicture, code="too_many_pixels", status=413):
    """The picture has more pixels than the limit; checked before decoding."""


class TooSmall(BadPicture, code="image_too_small"):
    """A side of the picture has too few pixels."""


class Animated(BadPicture, code="animated_image"):
    """The picture has more than one frame."""


class BadVideoFile(BadPicture, code="bad_video"):
    """The video, or the rest of it, cannot be read."""


class UnsupportedFormat(BadPicture, code="unsupported_format", status=415):
    """The picture is not a JPEG, PNG, WebP, AVIF, HEIC, BMP or TIFF."""


class BadArchive(BadRequest, code="bad_archive", status=422):
    """The upload is not a zip, tar or tar.gz, or is damaged."""


class UnsafeArchive(BadArchive, code="unsafe_archive"):
    """A member leads out of the archive's folder, is a link or a device."""


class EncryptedArchive(BadArchive, code="encrypted_archive"): ...


class ArchiveTooLarge(BadArchive, code="archive_too_large", status=413):
    """The archive has too many members, or too many bytes once unpacked."""


class EmptyArchive(BadArchive, code="empty_archive"): ...


class Unauthorized(PPLError, code="unauthorized", status=401):
    """The API key is missing, unknown or revoked."""


class Forbidden(PPLError, code="forbidden", status=403):
    """The API key lacks the scope for this request."""


class NotFound(PPLError, code="not_found", status=404):
    """The path names nothing that exists."""


class UnknownCategory(NotFound, code="unknown_category"): ...


class UnknownVersion(NotFound, code="unknown_version"): ...


class UnknownJob(NotFound, code="unknown_job"): ...


class NoHistory(NotFound, code="no_history"):
    """The version was published by a release that kept no history."""


class NoPreview(NotFound, code="no_preview"):
    """The job has drawn no preview yet, or its preview was deleted."""


class NoBoxes(NotFound, code="no_boxes"):
    """The job takes pictures whole, has not prepared them yet, or its boxes were deleted."""


class UnknownAlias(NotFound, code="unknown_alias"): ...


class UnknownLandmarks(NotFound, code="unknown_landmarks"): ...


class UnknownDataset(NotFound, code="unknown_dataset"): ...


class UnknownPicture(NotFound, code="unknown_picture"):
    """The dataset has no picture of that number."""


class UnknownEstimate(NotFound, code="unknown_estimate"): ...


class UnknownKey(NotFound, code="unknown_key"): ...


class Conflict(PPLError, code="conflict", status=409):
    """The current state does not allow the request."""


class JobNotActive(Conflict, code="job_not_active"):
    """The job has ended; it cannot be cancelled, paused or resumed."""


class JobNotEnded(Conflict, code="job_not_ended"):
    """The job has not ended; its record cannot be deleted."""


class NameTaken(Conflict, code="name_taken"): ...


class VersionExists(Conflict, code="version_exists"):
    """The category has a version of this name, and versions never change."""


class VersionInUse(Conflict, code="version_in_use"):
    """An alias points to the version; it cannot be deleted."""


class DatasetInUse(Conflict, code="dataset_in_use"):
    """An unfinished job uses the dataset; it cannot be deleted."""


class DatasetNotReady(Conflict, code="dataset_not_ready"):
    """The dataset is not inspected yet, or its inspection failed."""


class KeyReused(PPLError, code="idempotency_key_reused", status=422):
    """The Idempotency-Key was used by a different request."""


class PreconditionFailed(PPLError, code="precondition_failed", status=412):
    """The current state does not match If-Match or If-None-Match."""


class PreconditionRequired(PPLError, code="precondition_required", status=428):
    """A change of something that exists needs If-Match."""


class BodyTooLarge(PPLError, code="body_too_large", status=413): ...


class DatasetsFull(PPLError, code="datasets_full", status=507):
    """All datasets together have reached their limit in bytes."""


class TooMany(PPLError, code="too_many_requests", status=429):
    """A limit is reached for now; the same request may succeed later."""


class QueueFull(TooMany, code="queue_full"):
    """The limit on waiting pictures, jobs or estimates is reached."""


class RateExceeded(TooMany, code="rate_exceeded"):
    """The caller sent more requests a second than allowed."""


class TooManyJobs(TooMany, code="too_many_jobs"):
    """The API key has reached its limit on unfinished jobs."""


class Unavailable(PPLError, code="unavailable", status=503):
    """A part of the platform does not answer now."""


class RedisUnavailable(Unavailable, code="redis_unavailable"): ...


class StoreUnavailable(Unavailable, code="store_unavailable"):
    """The object store of PPL_STORE_URL can't be reached, or refuses."""


class WorkerUnavailable(Unavailable, code="worker_unavailable"):
    """No worker took the request in time, and none is alive."""


class EstimateTimeout(Unavailable, code="timeout", status=504):
    """No worker answered before the deadline, though one is alive."""


class PixelsExpired(Unavailable, code="pixels_expired"):
    """The batch waited past its deadline, or until its pixels expired."""


class ContractMismatch(Unavailable, code="contract_mismatch"):
    """Gateway and worker are of different releases."""


class ServerFault(PPLError):
    """An error of the server; its log has the traceback."""


class ModelFailed(ServerFault, code="model_failed"):
    """The model raised on a batch."""


class StoreCorrupt(ServerFault, code="store_corrupt"):
    """A stored file is missing or damaged."""


class UnreadableJob(StoreCorrupt):
    """A job's record is damaged or of a later release; the job is not changed."""


class JobFailed(PPLError, code="internal"):
    """The reason why a job failed; never a response."""


class TrainingFailed(JobFailed, code="training_failed"):
    """Training raised an unexpected error."""


class TooFewPictures(JobFailed, code="too_few_pictures"):
    """The upload has fewer readable pictures than training needs."""


class Diverged(JobFailed, code="training_diverged"):
    """A loss became infinite or NaN."""


class NeedsWeights(JobFailed, code="weights_unavailable"):
    """Weights of the perceptual network are not available; the detail says what to do."""


class DiskFull(JobFailed, code="disk_full"): ...


class Abandoned(JobFailed, code="abandoned"):
    """The job's worker crashed repeatedly without progress."""


def _subclasses(root: type[PPLError]) -> list[type[PPLError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _subclasses(child))]


# of two classes with one code the first, more general one is used
ERROR_BY_CODE = {error.code: error for error in reversed(_subclasses(PPLError))}


def error_from_code(code: str, detail: str) -> PPLError:
    """Return an error of a code's class; a plain PPLError for a code of a later release."""
    return ERROR_BY_CODE.get(code, PPLError)(detail)
