"""A training job's pictures out of a dataset, instead of an upload of its own."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from service.contract.datasets.dataset import DatasetStatus
from service.contract.datasets.store import DatasetFiles
from service.contract.errors import DatasetInUse, DatasetNotReady, UnknownDataset, UnknownJob
from service.contract.jobs.store import JobSource, JobStore
from service.runtime.threads import Threads

from .job_request import TrainingRequest
from .uploads import Intake


async def from_dataset(
    datasets: DatasetFiles, threads: Threads, wanted: TrainingRequest, dataset_id: str, intake: Intake
) -> tuple[TrainingRequest, JobSource]:
    """The dataset's files as the job's; its mode where the job says none, its labels where none came with the job.

    One that is still inspected will do: the job looks at its pictures itself.

    Raises:
        UnknownDataset, StoreCorrupt.
        DatasetNotReady: no picture of it can be used.
    """
    record = await threads.io(datasets.record, dataset_id)
    findings = await threads.io(datasets.findings, dataset_id)
    if findings.status is DatasetStatus.FAILED:
        reason = findings.error.detail if findings.error else "nothing in it can be used"
        raise DatasetNotReady(f"dataset {dataset_id} can't be trained from: {reason}")
    own_labels = await threads.io(intake.labels.path.exists)
    labels = datasets.labels(dataset_id) if record.labels and not own_labels else None
    try:
        await intake.link(datasets.archive(dataset_id), labels)
    except FileNotFoundError as error:
        raise UnknownDataset(f"dataset {dataset_id} was deleted meanwhile") from error
    if wanted.config.mode == "auto":
        wanted = replace(wanted, config=replace(wanted.config, mode=record.mode))
    return wanted, JobSource(name=record.file_name, dataset=record.reference)


def check_unused(jobs: JobStore, dataset_id: str) -> None:
    """Raises DatasetInUse while a job that has not ended was started with the dataset. Blocking.

    Raises UnreadableJob as well: what that one uses is not known.
    """
    ids = []
    for job_id in sorted(jobs.unfinished_ids()):
        with suppress(UnknownJob):  # deleted meanwhile
            used = jobs.get(job_id).dataset
            ids += [job_id] if used and used.id == dataset_id else []
    if ids:
        shown = ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
        raise DatasetInUse(
            f"dataset {dataset_id} is used by {shown}; wait for the end of its jobs, or cancel them",
            extra={"jobs": ids[:100]},
        )
