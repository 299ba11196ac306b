"""Datasets and the inspector that looks at them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.contract.datasets.dataset import Dataset, DatasetRecord, dataset_id
from service.contract.datasets.store import DatasetFiles
from service.contract.media.archives import check_archive
from tests.worker.conftest import zipped
from worker.jobs import Stop
from worker.settings import WorkerSettings
from worker.uploads.inspection import Inspector


@pytest.fixture
def lab(data_root: Path) -> SimpleNamespace:
    """An inspector that the test drives, and lab.put(members, …) that makes a dataset as the gateway does."""
    files, stop = DatasetFiles(data_root), Stop()
    settings = WorkerSettings(data_root=data_root, training_threads=1)

    def put(
        upload: dict[str, bytes] | bytes, mode: str = "auto", labels: bytes | None = None, *, boxes: bool = False
    ) -> str:
        data = zipped(upload) if isinstance(upload, dict) else upload
        staged = data_root / "staged"
        staged.mkdir()
        (staged / "archive").write_bytes(data)
        if labels is not None:
            (staged / "labels").write_bytes(labels)
        summary = check_archive(staged / "archive", mode=mode)
        record = DatasetRecord(
            id=dataset_id(str(hash(data)), None, summary.mode),
            digest="sha256:00",
            mode=summary.mode,
            size_bytes=len(data),
            pictures=summary.pictures,
            videos=summary.videos,
            file_name="walk.mp4",
            labels=labels is not None,
            boxes=boxes,
            created_at=datetime.now(UTC),
        )
        (staged / "dataset.json").write_text(record.model_dump_json())
        assert files.add(staged, record, 2**40)
        return record.id

    inspector = Inspector(files, settings, stop)

    def found(*given: object, **options: object) -> Dataset:
        dataset = put(*given, **options)  # type: ignore[arg-type]
        inspector.run_once()
        return files.get(dataset)

    return SimpleNamespace(files=files, stop=stop, settings=settings, put=put, found=found, inspector=inspector)
