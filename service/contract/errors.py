"""The errors that cross the queue and the API, one class for each code.

PPLError
├── BadRequest                 400  the request itself makes no sense
│   ├── BadCategoryName        BadVersionName   BadSetting   BadBoxes   BadCursor   BadFolder
│   ├── NoImages               TooManyImages   BadPrior   BadLabels   NoMemory
│   ├── BadAliasName           BadKeypointNames   BadLandmarks   BadVersionFile
│   ├── BadPicture             NotAnImage  TruncatedImage  TooManyPixels  TooSmall  Animated  UnsupportedFormat
│   │                               BadVideoFile
│   └── BadArchive             UnsafeArchive  EncryptedArchive  ArchiveTooLarge  EmptyArchive
├── Unauthorized               401  no key, or one that opens nothing
├── Forbidden                  403  the key may not do this
├── NotFound                   404  UnknownCategory  UnknownVersion  UnknownJob  NoHistory
│                                   UnknownAlias  UnknownLandmarks  UnknownDataset  UnknownKey
│                                   UnknownEstimate
├── KeyReused                  422  an Idempotency-Key that came with another request before
├── Conflict                   409  JobNotActive  JobNotEnded  NameTaken  VersionExists  VersionInUse
│                                   DatasetInUse  DatasetNotReady
├── PreconditionFailed         412  If-Match names another state than there is
├── PreconditionRequired       428  a change of what exists says nothing of the state that it expects
├── BodyTooLarge               413
├── DatasetsFull               507  as many bytes of datasets as may be kept
├── TooMany                    429  says when to come back
│   ├── QueueFull  RateExceeded  TooManyJobs
├── Unavailable                503  RedisUnavailable  WorkerUnavailable  PixelsExpired
│   ├── EstimateTimeout        504  past the deadline, though a worker lives
│   └── ContractMismatch            gateway and worker are of different releases
├── ServerFault                500  ModelFailed  StoreCorrupt, and of it UnreadableJob
└── JobFailed                  (the reason written into a failed job; never a response of its own)
    TrainingFailed  TooFewPictures  Diverged  NeedsWeights  DiskFull  Abandoned

A detail is written for the client: no path of the server, no trace.
Names are those of what went wrong, without the suffix Error that all would share.
"""

# ruff: noqa: N818

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar


class ErrorCode(StrEnum):
    """What went wrong, as a word that programs can compare. Never renamed once released."""

    BAD_REQUEST = "bad_request"
    BAD_CATEGORY_NAME = "bad_category_name"
    BAD_VERSION_NAME = "bad_version_name"
    BAD_SETTING = "bad_setting"
    BAD_BOXES = "bad_boxes"
    BAD_CURSOR = "bad_cursor"
    BAD_FOLDER = "bad_folder"
    BAD_PRIOR = "bad_prior"
    BAD_LABELS = "bad_labels"
    BAD_WEBHOOK = "bad_webhook"
    NO_MEMORY = "no_memory"
    BAD_ALIAS_NAME = "bad_alias_name"
    BAD_KEYPOINT_NAMES = "bad_keypoint_names"
    BAD_LANDMARKS = "bad_landmarks"
    BAD_VERSION_FILE = "bad_version_file"
    NO_IMAGES = "no_images"
    TOO_MANY_IMAGES = "too_many_images"
    BAD_PICTURE = "bad_picture"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED_IMAGE = "truncated_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    IMAGE_TOO_SMALL = "image_too_small"
    ANIMATED_IMAGE = "animated_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    BAD_VIDEO = "bad_video"
    BAD_ARCHIVE = "bad_archive"
    UNSAFE_ARCHIVE = "unsafe_archive"
    ENCRYPTED_ARCHIVE = "encrypted_archive"
    ARCHIVE_TOO_LARGE = "archive_too_large"
    EMPTY_ARCHIVE = "empty_archive"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    UNKNOWN_CATEGORY = "unknown_category"
    UNKNOWN_VERSION = "unknown_version"
    UNKNOWN_JOB = "unknown_job"
    NO_HISTORY = "no_history"
    UNKNOWN_ALIAS = "unknown_alias"
    UNKNOWN_LANDMARKS = "unknown_landmarks"
    UNKNOWN_DATASET = "unknown_dataset"
    UNKNOWN_KEY = "unknown_key"
    UNKNOWN_ESTIMATE = "unknown_estimate"
    CONFLICT = "conflict"
    JOB_NOT_ACTIVE = "job_not_active"
    JOB_NOT_ENDED = "job_not_ended"
    NAME_TAKEN = "name_taken"
    VERSION_EXISTS = "version_exists"
    VERSION_IN_USE = "version_in_use"
    DATASET_IN_USE = "dataset_in_use"
    DATASET_NOT_READY = "dataset_not_ready"
    KEY_REUSED = "idempotency_key_reused"
    PRECONDITION_FAILED = "precondition_failed"
    PRECONDITION_REQUIRED = "precondition_required"
    BODY_TOO_LARGE = "body_too_large"
    DATASETS_FULL = "datasets_full"
    TOO_MANY = "too_many_requests"
    QUEUE_FULL = "queue_full"
    RATE_EXCEEDED = "rate_exceeded"
    TOO_MANY_JOBS = "too_many_jobs"
    UNAVAILABLE = "unavailable"
    REDIS_UNAVAILABLE = "redis_unavailable"
    WORKER_UNAVAILABLE = "worker_unavailable"
    TIMEOUT = "timeout"
    PIXELS_EXPIRED = "pixels_expired"
    CONTRACT_MISMATCH = "contract_mismatch"
    INTERNAL = "internal"
    MODEL_FAILED = "model_failed"
    STORE_CORRUPT = "store_corrupt"
    TRAINING_FAILED = "training_failed"
    TOO_FEW_PICTURES = "too_few_pictures"
    TRAINING_DIVERGED = "training_diverged"
    WEIGHTS_UNAVAILABLE = "weights_unavailable"
    DISK_FULL = "disk_full"
    ABANDONED = "abandoned"


class PPLError(Exception):
    """Base of every error that a client may see.

    Args:
        detail: one sentence for the client; the class's title where empty.
        retry_after_s: when asking again makes sense (the header Retry-After).
        extra: further members of the problem document, plain JSON values.

    Attributes:
        code: of ErrorCode, fixed by the class.
        status: HTTP status, fixed by the class.
        title: short and always the same for one code.
    """

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init_subclass__(cls, code: ErrorCode | None = None, status: int | None = None) -> None:
        cls.code, cls.status = code or cls.code, status or cls.status
        cls.title = cls.code.replace("_", " ").capitalize()

    def __init__(
        self, detail: str = "", *, retry_after_s: float | None = None, extra: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after_s = retry_after_s
        self.extra: dict[str, Any] = dict(extra or {})

    def to_dict(self) -> dict[str, str]:
        """{"code", "detail"}: how an error travels in a reply and stands in a job."""
        return {"code": str(self.code), "detail": self.detail}


class BadRequest(PPLError, code=ErrorCode.BAD_REQUEST, status=400):
    """The request can't be served as it is; sending it again gives the same answer."""


class BadCategoryName(BadRequest, code=ErrorCode.BAD_CATEGORY_NAME):
    """A category is named by lower-case letters, digits, - and _, at most 64 of them."""


class BadVersionName(BadRequest, code=ErrorCode.BAD_VERSION_NAME):
    """A version that no version could be called."""


class BadSetting(BadRequest, code=ErrorCode.BAD_SETTING, status=422):
    """A setting that is unknown or out of its range; the detail names both."""


class BadBoxes(BadRequest, code=ErrorCode.BAD_BOXES, status=422):
    """Boxes that are not one [x, y, width, height] a picture, or lie outside of it."""


class BadCursor(BadRequest, code=ErrorCode.BAD_CURSOR):
    """A cursor that no listing gave out."""


class BadFolder(BadRequest, code=ErrorCode.BAD_FOLDER, status=422):
    """A training folder that is not a folder of pictures below the data root."""


class BadPrior(BadRequest, code=ErrorCode.BAD_PRIOR, status=422):
    """A prior to start from that can't be one, does not suit the settings, or is missing."""


class BadLabels(BadRequest, code=ErrorCode.BAD_LABELS, status=422):
    """Labels that can't be read or scored, or name no picture of the job."""


class BadWebhook(BadRequest, code=ErrorCode.BAD_WEBHOOK, status=422):
    """An address that no webhook may go to."""


class NoMemory(BadRequest, code=ErrorCode.NO_MEMORY, status=422):
    """Refinement asked of a version that was trained without a memory."""


class BadAliasName(BadRequest, code=ErrorCode.BAD_ALIAS_NAME):
    """An alias that none could be called."""


class BadKeypointNames(BadRequest, code=ErrorCode.BAD_KEYPOINT_NAMES, status=422):
    """Names that are not K different ones."""


class BadLandmarks(BadRequest, code=ErrorCode.BAD_LANDMARKS, status=422):
    """Landmarks that can't be called so, or labelled pictures that no map can be fitted on."""


class BadVersionFile(BadRequest, code=ErrorCode.BAD_VERSION_FILE, status=422):
    """An upload that is no exported version, is damaged, or of a later release."""


class NoImages(BadRequest, code=ErrorCode.NO_IMAGES, status=422):
    """A request without a picture."""


class TooManyImages(BadRequest, code=ErrorCode.TOO_MANY_IMAGES, status=413):
    """More pictures in one request than the limit."""


class BadPicture(BadRequest, code=ErrorCode.BAD_PICTURE, status=422):
    """A picture that can't be read."""


class NotAnImage(BadPicture, code=ErrorCode.NOT_AN_IMAGE, status=415):
    """Bytes that are no picture at all."""


class TruncatedImage(BadPicture, code=ErrorCode.TRUNCATED_IMAGE):
    """A picture that ends before its end, or is damaged."""


class TooManyPixels(BadPicture, code=ErrorCode.TOO_MANY_PIXELS, status=413):
    """More pixels than the limit; checked before anything is decoded."""


class TooSmall(BadPicture, code=ErrorCode.IMAGE_TOO_SMALL):
    """A picture with a side of too few pixels to hold a pose."""


class Animated(BadPicture, code=ErrorCode.ANIMATED_IMAGE):
    """A picture of more than one frame."""


class BadVideoFile(BadPicture, code=ErrorCode.BAD_VIDEO):
    """A video that can't be read, or its rest."""


class UnsupportedFormat(BadPicture, code=ErrorCode.UNSUPPORTED_FORMAT, status=415):
    """A picture of a format other than JPEG, PNG, WebP, BMP and TIFF."""


class BadArchive(BadRequest, code=ErrorCode.BAD_ARCHIVE, status=422):
    """An upload that is no zip, tar or tar.gz, or is damaged."""


class UnsafeArchive(BadArchive, code=ErrorCode.UNSAFE_ARCHIVE):
    """An archive with a member that climbs out of its folder, is a link or a device."""


class EncryptedArchive(BadArchive, code=ErrorCode.ENCRYPTED_ARCHIVE):
    """An archive that wants a password."""


class ArchiveTooLarge(BadArchive, code=ErrorCode.ARCHIVE_TOO_LARGE, status=413):
    """Too many members, or more bytes once unpacked than the limit."""


class EmptyArchive(BadArchive, code=ErrorCode.EMPTY_ARCHIVE):
    """An archive without a picture."""


class Unauthorized(PPLError, code=ErrorCode.UNAUTHORIZED, status=401):
    """A request without an API key, or with one that is unknown or revoked."""


class Forbidden(PPLError, code=ErrorCode.FORBIDDEN, status=403):
    """The API key is good, and may not do this."""


class NotFound(PPLError, code=ErrorCode.NOT_FOUND, status=404):
    """What the address names does not exist."""


class UnknownCategory(NotFound, code=ErrorCode.UNKNOWN_CATEGORY):
    """No version of this category was ever published."""


class UnknownVersion(NotFound, code=ErrorCode.UNKNOWN_VERSION):
    """The category has no such version."""


class UnknownJob(NotFound, code=ErrorCode.UNKNOWN_JOB):
    """No job of this id, or its record was removed."""


class NoHistory(NotFound, code=ErrorCode.NO_HISTORY):
    """The version was published by a release that kept no history."""


class UnknownAlias(NotFound, code=ErrorCode.UNKNOWN_ALIAS):
    """The category has no such alias."""


class UnknownLandmarks(NotFound, code=ErrorCode.UNKNOWN_LANDMARKS):
    """The version has no landmarks of this name."""


class UnknownDataset(NotFound, code=ErrorCode.UNKNOWN_DATASET):
    """No dataset of this id, or it was deleted."""


class UnknownEstimate(NotFound, code=ErrorCode.UNKNOWN_ESTIMATE):
    """No estimate of this id is kept."""


class UnknownKey(NotFound, code=ErrorCode.UNKNOWN_KEY):
    """No API key of this id was ever made here."""


class Conflict(PPLError, code=ErrorCode.CONFLICT, status=409):
    """The state of the thing forbids this now."""


class JobNotActive(Conflict, code=ErrorCode.JOB_NOT_ACTIVE):
    """Only a job that has not ended can be cancelled, paused or resumed."""


class JobNotEnded(Conflict, code=ErrorCode.JOB_NOT_ENDED):
    """Only the record of a job that ended can be removed."""


class NameTaken(Conflict, code=ErrorCode.NAME_TAKEN):
    """Something else has this name."""


class VersionExists(Conflict, code=ErrorCode.VERSION_EXISTS):
    """The category has a version of this name, and versions never change."""


class VersionInUse(Conflict, code=ErrorCode.VERSION_IN_USE):
    """A version that is active, or that another alias points to, can't be deleted."""


class DatasetInUse(Conflict, code=ErrorCode.DATASET_IN_USE):
    """A dataset that a job which has not ended was started with can't be deleted."""


class DatasetNotReady(Conflict, code=ErrorCode.DATASET_NOT_READY):
    """What is in the dataset is not known yet, or can't be used."""


class KeyReused(PPLError, code=ErrorCode.KEY_REUSED, status=422):
    """An Idempotency-Key came with another request before."""


class PreconditionFailed(PPLError, code=ErrorCode.PRECONDITION_FAILED, status=412):
    """What shall be changed is not as the request expects it."""


class PreconditionRequired(PPLError, code=ErrorCode.PRECONDITION_REQUIRED, status=428):
    """What exists is changed only by a request that says which state it expects."""


class BodyTooLarge(PPLError, code=ErrorCode.BODY_TOO_LARGE, status=413):
    """A request longer than the limit."""


class DatasetsFull(PPLError, code=ErrorCode.DATASETS_FULL, status=507):
    """All datasets together have as many bytes as they may; some must be deleted first."""


class TooMany(PPLError, code=ErrorCode.TOO_MANY, status=429):
    """More than may be asked for now; later it may."""


class QueueFull(TooMany, code=ErrorCode.QUEUE_FULL):
    """As many pictures or jobs wait as may wait."""


class RateExceeded(TooMany, code=ErrorCode.RATE_EXCEEDED):
    """More requests a second than a key, or an address, may send."""


class TooManyJobs(TooMany, code=ErrorCode.TOO_MANY_JOBS):
    """As many jobs of one key have not ended as may be."""


class Unavailable(PPLError, code=ErrorCode.UNAVAILABLE, status=503):
    """A part of the platform does not answer now; the same request may be served later."""


class RedisUnavailable(Unavailable, code=ErrorCode.REDIS_UNAVAILABLE):
    """The queue's server does not answer."""


class WorkerUnavailable(Unavailable, code=ErrorCode.WORKER_UNAVAILABLE):
    """No worker took the request in time, and none is alive."""


class EstimateTimeout(Unavailable, code=ErrorCode.TIMEOUT, status=504):
    """No answer within the time that a request may take."""


class PixelsExpired(Unavailable, code=ErrorCode.PIXELS_EXPIRED):
    """The batch waited so long that its pixels were gone, or its deadline passed."""


class ContractMismatch(Unavailable, code=ErrorCode.CONTRACT_MISMATCH):
    """A message of a contract version that this side does not speak."""


class ServerFault(PPLError):
    """A fault of ours; the log has the trace."""


class ModelFailed(ServerFault, code=ErrorCode.MODEL_FAILED):
    """The model raised on a batch."""


class StoreCorrupt(ServerFault, code=ErrorCode.STORE_CORRUPT):
    """A published version that lacks a file or can't be parsed."""


class UnreadableJob(StoreCorrupt):
    """A job's record is of another release, or damaged. The job stays as it is."""


class JobFailed(PPLError, code=ErrorCode.INTERNAL):
    """Why a job failed. Written into the job, never a response."""


class TrainingFailed(JobFailed, code=ErrorCode.TRAINING_FAILED):
    """Training raised something that it should not have."""


class TooFewPictures(JobFailed, code=ErrorCode.TOO_FEW_PICTURES):
    """The upload had fewer readable pictures than training needs."""


class Diverged(JobFailed, code=ErrorCode.TRAINING_DIVERGED):
    """A loss became infinite or not a number."""


class NeedsWeights(JobFailed, code=ErrorCode.WEIGHTS_UNAVAILABLE):
    """Weights of the perceptual network can't be had; the detail says what to do."""


class DiskFull(JobFailed, code=ErrorCode.DISK_FULL):
    """No room left under the data root."""


class Abandoned(JobFailed, code=ErrorCode.ABANDONED):
    """The job's worker died again and again without getting further."""


def _tree(root: type[PPLError]) -> list[type[PPLError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


# of two classes with one code the first, the more general, stands
_BY_CODE: dict[str, type[PPLError]] = {}
for _class in _tree(PPLError):
    _BY_CODE.setdefault(str(_class.code), _class)


def error_of(code: str, detail: str) -> PPLError:
    """The error that a reply carries, as the class it was raised as.

    A code of a later release becomes a plain PPLError that keeps its detail.
    """
    return _BY_CODE.get(code, PPLError)(detail)
