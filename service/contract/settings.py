"""Settings shared by gateway and workers, read from the environment (PPL_…)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict


class CommonSettings(BaseSettings):
    """Settings on which gateway and workers must agree; a relative data root is resolved at the start."""

    model_config = SettingsConfigDict(
        env_prefix="PPL_", env_ignore_empty=True, extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    redis_url: str = "redis://127.0.0.1:6379/0"
    """the Redis or Valkey server"""
    data_root: Path = Path("data")
    """folder of versions and job files"""
    store_url: str | None = Field(default=None, pattern=r"^(s3|s3a|gs|az|azure|abfs|abfss|file)://.+$")
    """object store of versions, datasets, jobs, estimates and API keys (`s3://bucket/folder`, `gs://`, `az://`, `file:///folder`)"""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """least severe message logged"""
    log_format: Literal["text", "json"] = "text"
    """text, or one JSON object a line with the ids of request, batch and job"""
    tracing: bool = False
    """send traces by OpenTelemetry (`OTEL_EXPORTER_OTLP_ENDPOINT` says where)"""
    # limits on pictures and archives
    image_max_pixels: int = Field(default=50_000_000, ge=64)
    """pixels of one picture, checked before decoding"""
    image_min_side_px: int = Field(default=8, ge=1)
    """shorter side of a picture"""
    image_max_bytes: int = Field(default=32 * 2**20, ge=1024)
    """bytes of one picture file"""
    archive_max_bytes: int = Field(default=4 * 2**30, ge=1024)
    """bytes of an uploaded archive"""
    archive_max_files: int = Field(default=200_000, ge=1)
    """members of an archive, or files of a folder; boxes of pictures with several"""
    archive_max_unpacked_bytes: int = Field(default=16 * 2**30, ge=1024)
    """bytes of an archive once unpacked"""
    archive_max_ratio: float = Field(default=200.0, gt=1.0)
    """compression ratio of an archive that unpacks to 64 MiB or more"""
    video_memory_bytes: int = Field(default=4 * 2**30, ge=2**28)
    """memory for decoding a video"""
    training_processes: int = Field(default=1, ge=1, le=64)
    """processes that train a job together, one for each GPU"""
    training_min_pictures: int = Field(default=8, ge=1)
    """readable pictures that a training needs"""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing but arguments and the environment: a source takes as long where it has no file."""
        return init_settings, env_settings

    @field_validator("data_root")
    @classmethod
    def _resolve(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("log_level", mode="before")
    @classmethod
    def _to_upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value
