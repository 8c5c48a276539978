"""What the service can be told, by argument or by `SAFE_SAIL_*` in the environment, which it reads nowhere else."""

import ipaddress
from functools import lru_cache
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from api.logs import LogForm
from api.offers import Offers

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


class ServiceSettings(BaseSettings):
    """Settings of one service process; frozen, checked when made."""

    model_config = SettingsConfigDict(env_prefix="SAFE_SAIL_", frozen=True, extra="forbid")

    database_url: str = Field(
        default="sqlite:///safe-sail.db",
        description="Where results are kept: sqlite:///FILE or postgresql://USER@HOST/NAME.",
    )
    host: str = Field(
        default="127.0.0.1", description="Address to listen on; beyond loopback every request needs an API key."
    )
    port: int = Field(default=8420, ge=0, le=65535, description="Port to listen on; 0 lets the system choose one.")
    allowed_hosts: tuple[str, ...] = Field(
        default=LOOPBACK_NAMES,
        description="Host names that a request may be addressed to, without port. A page of another site whose name "
        "was made to point at this machine (DNS rebinding) is refused by it.",
    )
    models: dict[str, str] = Field(
        default={}, description="Models that jobs may name, beside the organism's: name to folder or hub name, as JSON."
    )
    saes: dict[str, str] = Field(
        default={}, description="SAEs that jobs may name: name to folder, file or registry name, as JSON."
    )
    guards: dict[str, str] = Field(
        default={}, description="Guards that live requests may ask: name to folder, as JSON."
    )
    files: Path | None = Field(
        default=None, description="Folder of texts, concepts and taxonomies that jobs may name; none offers no file."
    )
    made_in: Path | None = Field(
        default=Path("safe-sail-made"),
        description="Folder where jobs leave SAEs, pairs and guards; later jobs name what is in it as `made/NAME/...`.",
    )
    llm_base_url: str | None = Field(
        default=None, description="OpenAI-compatible endpoint that jobs ask; its key stands in SAFE_SAIL_LLM_KEY."
    )
    llms: tuple[str, ...] = Field(default=(), description="Names of the endpoint's models that jobs may name, as JSON.")
    llm_in_flight: int = Field(default=64, ge=1, description="Requests of a job open at once at the endpoint.")
    reads_per_minute: int = Field(default=6000, ge=1, description="GET requests that one API key may make a minute.")
    writes_per_minute: int = Field(default=120, ge=1, description="Other requests that one API key may make a minute.")
    max_body_bytes: int = Field(default=2**20, ge=1, description="Bytes of a request's body at most.")
    request_seconds: float = Field(
        default=60.0, gt=0, description="Time in which an answer must begin; a longer one is given up with a 504."
    )
    log: LogForm = Field(
        default="off", description="A line for each request on standard error: off, text or json; mistakes always."
    )
    default_limit: int = Field(default=50, ge=1, le=200, description="Items on one page of the web page's lists.")

    @field_validator("allowed_hosts")
    @classmethod
    def _lower_case(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.lower().strip("[]") for name in names)

    def offers(self) -> Offers:
        """What jobs may name."""
        return Offers(
            models=self.models, saes=self.saes, guards=self.guards, files=self.files, llm_base_url=self.llm_base_url,
            llms=self.llms, made_in=self.made_in,
        )  # fmt: skip


@lru_cache(maxsize=8)
def listens_on_loopback(host: str) -> bool:
    """Whether a bind address can be reached from this machine alone; a name other than localhost counts as not."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
