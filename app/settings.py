"""Every setting of the service: one class, one line of why for each."""

from __future__ import annotations

import sys
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

# The caps that vLLM knows.
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def _served_rank(rank: int) -> int:
    if rank not in LORA_RANKS:
        raise ValueError(f"must be one of {', '.join(map(str, LORA_RANKS))}")
    return rank


def _gpus(chosen: str) -> str:
    if chosen not in ("all", "none") and not all(number.isdigit() for number in chosen.split(",")):
        raise ValueError("must be 'all', 'none', or numbers with commas, such as 0,1")
    return chosen


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """The networks that `text` lists, with commas. Raises `ValueError`, which names the one that is none."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def folders(text: str) -> tuple[Path, ...]:
    """The folders that `text` lists, with commas. Raises `ValueError`, which names one that is not absolute."""
    found = tuple(Path(part.strip()) for part in text.split(",") if part.strip())
    for folder in found:
        if not folder.is_absolute():
            raise ValueError(f"'{folder}' is not an absolute path")
    return found


def _folders(text: str) -> str:
    folders(text)
    return text


def _networks(text: str) -> str:
    networks(text)
    return text


def _public_url(text: str) -> str:
    """The URL as browsers write an origin: lower case, and no port where it is the scheme's own."""
    if not text:
        return ""
    parts = urlsplit(text)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
    ):
        raise ValueError("must be an address such as https://burnish.example.org, with a path at most")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    usual = {"http": 80, "https": 443}[parts.scheme]
    port = f":{parts.port}" if parts.port not in (None, usual) else ""
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"


class Settings(BaseSettings):
    """Read from `BURNISH_*` environment variables; `home` alone decides every embedded default."""

    model_config = SettingsConfigDict(env_prefix="BURNISH_", extra="ignore")

    home: Path = Field(
        Path("./.burnish"), description="All state of the embedded defaults: database, queue, blobs, caches."
    )
    host: str = Field("127.0.0.1", description="Address the API binds. Other than loopback only where a key exists.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the API.")
    public_url: Annotated[str, AfterValidator(_public_url)] = Field(
        "", description="Where a reverse proxy before the service is reached: https://burnish.example.org."
    )
    trusted_proxies: Annotated[str, AfterValidator(_networks)] = Field(
        "", description="Networks of proxies whose X-Forwarded-For and -Proto are believed, with commas: 127.0.0.1/32."
    )
    admin_key: str = Field("", description="An admin's key, valid beside those in the database.")
    secret_key: str = Field(
        "", description="What secrets are sealed with: long random text; old ones after commas. Empty: one in the home."
    )
    database_url: str = Field("", description="SQLAlchemy URL. Empty: SQLite in the home.")
    broker_url: str = Field("", description="Celery broker URL. Empty: Celery on an SQLite file in the home.")
    storage_url: str = Field("", description="fsspec URL of datasets and models. Empty: a directory in the home.")

    log_format: Literal["text", "json"] = Field("text", description="Format of log lines: `text` or `json`.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level of log lines: `debug`, `info`, `warning` or `error`."
    )

    max_upload_bytes: PositiveInt = Field(10 * 2**30, description="Largest dataset upload, in bytes.")
    max_decompressed_bytes: PositiveInt = Field(
        10 * 2**30,
        description="Most that a compressed or Parquet upload may unpack to, in bytes; small files can grow huge.",
    )
    max_request_bytes: PositiveInt = Field(16 * 2**20, description="Largest JSON request body, in bytes.")

    model_roots: Annotated[str, AfterValidator(_folders)] = Field(
        "", description="Folders, with commas, below which models may be registered once there are keys."
    )
    allow_remote_code: str = Field(
        "", description="Sources of models whose own code may run, with commas: what you would let run as this service."
    )

    webhook_networks: Annotated[str, AfterValidator(_networks)] = Field(
        "", description="Networks that webhooks may reach beside public addresses, with commas: 10.0.0.0/8,fd00::/8."
    )

    gpus: Annotated[str, AfterValidator(_gpus)] = Field(
        "all", description="The GPUs that are a training worker's own: `all`, `none`, or numbers with commas (`0,1`)."
    )
    training_slots: int = Field(
        0, ge=0, description="Jobs that one worker trains at the same time. 0: one for each of its GPUs, at least one."
    )
    trainer_threads: int = Field(0, ge=0, description="CPU threads of a trainer. 0: all cores.")
    lease_seconds: PositiveFloat = Field(30.0, description="A running job not heard of for this long is run again.")
    stop_grace_seconds: PositiveFloat = Field(10.0, description="From asking a trainer to stop until it is killed.")
    tensorboard: str = Field(
        "", description="Folder in which each job gets one with TensorBoard's files of its training. Empty: none."
    )
    min_free_bytes: int = Field(
        2**30, ge=0, description="A worker whose disk has less room than this claims no job, in bytes."
    )
    max_attempts: PositiveInt = Field(3, description="Attempts at a job whose worker or trainer dies, before it fails.")

    engine: Literal["auto", "vllm", "embedded"] = Field(
        "auto", description="Inference engine. auto: vLLM where it is installed."
    )
    vllm_python: Path = Field(
        Path(sys.prefix).parent / ".venv-vllm/bin/python",
        description="Python of vLLM's own environment. Default: beside the environment that Burnish is installed in.",
    )
    vllm_args: str = Field("", description="Further arguments for every vLLM server, as on a command line.")
    max_engines: PositiveInt = Field(2, description="Engines that may run at the same time.")
    max_model_len: PositiveInt = Field(2048, description="Longest context that an engine serves, in tokens.")
    max_lora_rank: Annotated[int, AfterValidator(_served_rank)] = Field(
        32, description="Largest adapter rank that engines serve, up to 512; a larger cap costs speed and memory."
    )
    engine_wait_seconds: PositiveFloat = Field(180.0, description="How long a request waits for an engine that starts.")

    @property
    def sqlalchemy_url(self) -> str:
        """The database, with the psycopg driver named for PostgreSQL URLs that name none."""
        if not self.database_url:
            return f"sqlite:///{self.home.resolve() / 'burnish.db'}"
        for prefix in ("postgresql://", "postgres://"):
            if self.database_url.startswith(prefix):
                return "postgresql+psycopg://" + self.database_url.removeprefix(prefix)
        return self.database_url

    @property
    def celery_broker_url(self) -> str:
        """The queue of wake-ups; a file of its own, so that its writes never wait for the database's."""
        return self.broker_url or f"sqla+sqlite:///{self.home.resolve() / 'queue.db'}"

    @property
    def blobs_url(self) -> str:
        """Where blobs and artifacts are kept."""
        return self.storage_url or f"file://{self.home.resolve() / 'blobs'}"


@lru_cache
def get_settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
