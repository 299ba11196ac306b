"""Settings of the gateway, from environment variables (PPL_…)."""

from __future__ import annotations

import ipaddress
import os
from typing import Self

import redis
from pydantic import Field, SecretStr, field_validator, model_validator

from service.contract.errors import BadCategoryName
from service.contract.settings import CommonSettings
from service.contract.versions.store import check_category

from .secrets import check_webhook_secret


class Settings(CommonSettings):
    """The gateway's settings, beside those shared with the workers."""

    host: str = "127.0.0.1"
    """address the gateway listens on"""
    port: int = Field(default=8000, ge=1, le=65535)
    """port the gateway listens on"""

    api_keys: bool | None = None
    """require an API key; by default if the gateway listens beyond the loopback address"""
    allowed_hosts: str = ""
    """host names that requests may have without API keys, beside localhost; comma-separated"""
    root_path: str = Field(default="", pattern=r"^(/[A-Za-z0-9._~-]+)*$")
    """path below which a proxy serves the gateway, such as /ppl"""
    cors_origins: str = ""
    """sites whose pages may use the API, such as https://lab.example; comma-separated; * for all, if keys are needed"""
    open_health: bool = True
    """answer /livez and /readyz without a key (always answered to this machine)"""
    open_metrics: bool = True
    """answer /metrics without a key"""
    requests_per_s: float = Field(default=0.0, ge=0)
    """requests per second of one key, or of one address without a valid key; 0 for no limit"""
    jobs_per_key: int = Field(default=100, ge=1)
    """unfinished jobs of one key; more get 429"""
    ended_jobs_kept: int = Field(default=10_000, ge=1)
    """jobs that ended and are kept; beyond, the oldest are deleted after PPL_IDEMPOTENCY_TTL_S"""
    max_unfinished_jobs: int = Field(default=1000, ge=1)
    """unfinished jobs; more get 429"""
    redis_by_category: dict[str, str] = Field(default={})
    """further Redis servers for estimates, `{"dog": "redis://…"}`; a category that is not named uses `PPL_REDIS_URL`"""
    access_log: bool = True
    """log a line for each request; if false, only for refused ones"""

    max_body_bytes: int = Field(default=64 * 2**20, ge=1024)
    """bytes of a request other than an upload to store, train, fit or import"""
    slowest_body_bytes_per_s: float = Field(default=4096.0, ge=0)
    """slowest upload in bytes per second, after the first 30 s; slower ones get 408; 0 for no limit"""
    version_max_bytes: int = Field(default=4 * 2**30, ge=1024)
    """bytes of an imported version"""
    datasets_max_bytes: int = Field(default=64 * 2**30, ge=1024)
    """bytes of all datasets together"""
    landmarks_max_bytes: int = Field(default=256 * 2**20, ge=1024)
    """bytes of a request that fits landmarks; at most PPL_MAX_PENDING_BYTES"""
    landmarks_max_images: int = Field(default=256, ge=5, le=4096)
    """pictures of a request that fits landmarks"""
    max_images: int = Field(default=64, ge=1, le=4096)
    """pictures in one request; each box counts"""
    max_streamed_images: int = Field(default=1024, ge=1, le=100_000)
    """pictures, or frames of a video, in one request answered as JSON lines; each box counts"""
    max_drawn_pixels: int = Field(default=100_000_000, ge=4096)
    """pixels of all pictures drawn for one request (overlay, link_map)"""
    max_pending_bytes: int = Field(default=512 * 2**20, ge=1024)
    """bytes of all estimate requests held in memory; more get 429"""
    decode_threads: int = Field(default=max(2, min(8, os.cpu_count() or 2)), ge=1, le=128)
    """threads that decode and draw pictures"""

    batch_limit: int = Field(default=32, ge=1, le=512)
    """pictures in one batch"""
    max_videos: int = Field(default=4, ge=1, le=64)
    """videos decoded at once for requests that are answered at once; more get 429"""
    queue_limit: int = Field(default=512, ge=1)
    """pictures that may wait or be in flight; more get 429"""
    estimate_timeout_s: float = Field(default=30.0, gt=0, le=100)
    """how long a request waits for its poses, in seconds"""
    batch_wait_s: float = Field(default=0.08, ge=0, le=1)
    """seconds that a batch waits for pictures being decoded, until it holds half of all in progress"""
    late_batch_s: float = Field(default=5.0, gt=0)
    """seconds after which a batch without reply no longer delays others"""

    background_max_images: int = Field(default=10_000, ge=1)
    """pictures in one estimate in the background; each box counts"""
    background_max_frames: int = Field(default=500_000, ge=1)
    """frames of a video in one estimate in the background; each box counts"""
    background_max_waiting: int = Field(default=100, ge=1)
    """unfinished estimates in the background; more get 429"""
    background_per_key: int = Field(default=50, ge=1)
    """unfinished estimates in the background of one key; more get 429"""
    background_body_bytes: int = Field(default=8 * 2**30, ge=1024)
    """bytes of a request for an estimate in the background"""
    background_max_bytes: int = Field(default=32 * 2**30, ge=1024)
    """bytes of the files of unfinished estimates; more get 429"""
    background_key_bytes: int = Field(default=16 * 2**30, ge=1024)
    """bytes of the files of unfinished estimates of one key; more get 429"""
    background_results_bytes: int = Field(default=16 * 2**30, ge=1024)
    """bytes of the results of estimates in the background; the oldest are deleted first"""
    background_kept_s: float = Field(default=24 * 3600.0, gt=0)
    """seconds that an estimate in the background is kept after its end"""
    stale_upload_s: float = Field(default=3600.0, gt=0)
    """age in seconds at which files of an abandoned upload are deleted"""
    idempotency_ttl_s: int = Field(default=24 * 3600, ge=1)
    """seconds that the Idempotency-Key of a request to train is remembered; of others, as long as what they created"""
    webhook_private: bool = False
    """allow webhooks to private and loopback addresses"""
    webhook_secret: SecretStr | None = None
    """secret that signs webhooks, whsec_…; by default created when first needed"""
    sample_categories: bool = True
    """add the sample category `dog` to a data root without a category of that name"""
    metrics_include_workers: bool = True
    """include the workers' metrics in the gateway's /metrics"""

    @field_validator("redis_by_category")
    @classmethod
    def _check_servers(cls, value: dict[str, str]) -> dict[str, str]:
        for category, url in value.items():
            try:
                check_category(category)
                redis.ConnectionPool.from_url(url)
            except BadCategoryName as error:
                raise ValueError(f"{category!r} is not a category: {error.detail}") from error
            except ValueError as error:  # without the address, which may have a password
                raise ValueError(
                    f"the server of {category!r} is not an address such as redis://host:6379/0 or rediss://…"
                ) from error
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _is_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_webhook_secret(value.get_secret_value())
        return value

    @property
    def needs_keys(self) -> bool:
        """Whether requests need an API key."""
        return not self._is_loopback if self.api_keys is None else self.api_keys

    @property
    def host_names(self) -> tuple[str, ...]:
        """The names in ``allowed_hosts``, in lower case."""
        return tuple(name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip())

    @property
    def site_origins(self) -> tuple[str, ...]:
        """The origins in ``cors_origins``, without a final slash."""
        return tuple(name.strip().rstrip("/").lower() for name in self.cors_origins.split(",") if name.strip())

    @property
    def _is_loopback(self) -> bool:
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name, which may be any address
            return False

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.api_keys is False and not self._is_loopback:
            raise ValueError(
                f"PPL_API_KEYS is false and PPL_HOST is {self.host}: without keys the gateway listens on the loopback "
                "address only; leave PPL_API_KEYS unset, or set PPL_HOST to 127.0.0.1"
            )
        if "*" in self.site_origins and not self.needs_keys:
            raise ValueError(
                "PPL_CORS_ORIGINS is * and no API key is needed: any web page could train and delete; name the sites, "
                "or set PPL_API_KEYS to true"
            )
        if self.queue_limit < self.max_images:
            raise ValueError(
                f"PPL_QUEUE_LIMIT is {self.queue_limit}; it must be at least PPL_MAX_IMAGES ({self.max_images}), "
                "or a full request could never be served"
            )
        if self.max_pending_bytes < self.max_body_bytes:
            raise ValueError(
                f"PPL_MAX_PENDING_BYTES is {self.max_pending_bytes}; it must be at least PPL_MAX_BODY_BYTES "
                f"({self.max_body_bytes}), or a full request could never be served"
            )
        return self
