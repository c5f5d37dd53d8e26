"""`Settings`: the only reader of flags, environment and configuration file.

A value comes from the flag, else from the environment variable `ESTUARY_<NAME>`, else from the
YAML file named by `--config`, else from the default written here. Unknown names are refused.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.config import JsonDict
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ENVIRONMENT_PREFIX = "ESTUARY_"
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?\s*", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


def _parse_size(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError(f"a size is a number with an optional unit, like 4MiB; got {value!r}")
    return int(float(match[1]) * _SIZE_UNITS[(match[2] or "").upper()])


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


Bytes = Annotated[int, BeforeValidator(_parse_size)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_commas)]

# Groups of the help page, in its order.
MODEL, ENGINE, HTTP, ACCESS, API, PROCESS = (
    "model",
    "engine",
    "http",
    "access",
    "api",
    "process",
)


def _about(group: str, unit: str | None = None) -> JsonDict:
    return {"group": group} if unit is None else {"group": group, "unit": unit}


class Settings(BaseSettings):
    """Everything an operator can choose; frozen once read."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, extra="forbid", frozen=True, protected_namespaces=()
    )

    model: str | None = Field(
        None,
        description="Model folder, GGUF file or hub id; the embedded default model when left out.",
        json_schema_extra=_about(MODEL),
    )
    served_model_name: Names = Field(
        (),
        description="Name that clients use; may be repeated, the first one stands in answers. "
        "The model's own name when left out.",
        json_schema_extra=_about(MODEL),
    )
    revision: str | None = Field(
        None,
        description="Commit, tag or branch of a hub id; all files come from it.",
        json_schema_extra=_about(MODEL),
    )
    download_dir: Path | None = Field(
        None,
        description="Folder that fetched models are kept in; the user's cache when left out.",
        json_schema_extra=_about(MODEL),
    )
    chat_template: Path | None = Field(
        None,
        description="File with a Jinja chat template to use in place of the model's own.",
        json_schema_extra=_about(MODEL),
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None,
        description="Type of weights and cache; when left out, bfloat16 on a GPU and float32 on "
        "a CPU.",
        json_schema_extra=_about(MODEL),
    )
    quantization: Literal["int8", "none"] | None = Field(
        None,
        description="Weight quantization; when left out, int8 for the embedded default model on "
        "a CPU, else none.",
        json_schema_extra=_about(MODEL),
    )
    linear_format: Literal["w8a8", "w8a7"] | None = Field(
        None,
        description="How int8 products round their rows on a CPU, to 8 bits or to 7; when left "
        "out, 8 where the CPU multiplies them exactly (VNNI, AMX), else 7. Pin it where several "
        "machines have to give the same answers.",
        json_schema_extra=_about(MODEL),
    )
    mask_token_id: int | None = Field(
        None,
        ge=0,
        description="Token that open positions hold, where a diffusion checkpoint does not say it "
        "or says it wrong.",
        json_schema_extra=_about(MODEL),
    )
    block_length: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Length of the blocks that a diffusion checkpoint was trained with, where it "
        "does not say it or says it wrong.",
        json_schema_extra=_about(MODEL, "tokens"),
    )
    canvas_adapter: str | None = Field(
        None,
        description="Folder of a canvas adapter made for the model, or none; when left out, the "
        "embedded default model gets its own.",
        json_schema_extra=_about(MODEL),
    )
    max_model_len: int | None = Field(
        None,
        ge=1,
        description="Prompt and answer together; the model's own limit when left out.",
        json_schema_extra=_about(MODEL, "tokens"),
    )

    device: Literal["cpu", "cuda"] | None = Field(
        None,
        description="Where the network runs; when left out, a GPU if there is one.",
        json_schema_extra=_about(ENGINE),
    )
    max_num_seqs: int = Field(
        64,
        ge=1,
        le=4096,
        description="Requests that run at the same time.",
        json_schema_extra=_about(ENGINE),
    )
    max_num_batched_tokens: int = Field(
        2048,
        ge=1,
        le=1 << 20,
        description="Rows of a step at most; longer prompts are cut.",
        json_schema_extra=_about(ENGINE, "rows"),
    )
    max_queued_requests: int = Field(
        1024,
        ge=0,
        le=1 << 20,
        description="Requests that may wait beside those that run; more are answered with 503.",
        json_schema_extra=_about(ENGINE),
    )
    page_size: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Cache entries in a page; when left out, 64 on a GPU and 16 on a CPU.",
        json_schema_extra=_about(ENGINE, "tokens"),
    )
    kv_cache_memory: Bytes | None = Field(
        None,
        ge=1,
        description="Memory of the KV cache, like 4GiB; when left out, 90 % of what is free on a "
        "GPU and 2 GiB on a CPU.",
        json_schema_extra=_about(ENGINE, "bytes"),
    )
    enable_prefix_caching: bool = Field(
        default=True,
        description="Keep pages of finished requests for prompts that begin alike.",
        json_schema_extra=_about(ENGINE),
    )
    cuda_graphs: bool = Field(
        default=True,
        description="On a GPU: capture small steps at the start and replay them, which takes "
        "seconds once and saves launches in every step. No effect on a CPU.",
        json_schema_extra=_about(ENGINE),
    )
    num_threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of the network; one a core when left out.",
        json_schema_extra=_about(ENGINE),
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**63 - 1,
        description="Seeds the requests that bring no seed.",
        json_schema_extra=_about(ENGINE),
    )

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on; 0.0.0.0 for all.",
        json_schema_extra=_about(HTTP),
    )
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        description="Port to listen on; 0 takes a free one.",
        json_schema_extra=_about(HTTP),
    )
    root_path: str = Field(
        "",
        description="Path prefix that a proxy takes off before it passes requests on.",
        json_schema_extra=_about(HTTP),
    )
    forwarded_allow_ips: str = Field(
        "127.0.0.1",
        description="Comma-separated proxies whose X-Forwarded headers are believed.",
        json_schema_extra=_about(HTTP),
    )
    limit_concurrency: int = Field(
        4096,
        ge=1,
        description="Open connections at most, more are answered with 503.",
        json_schema_extra=_about(HTTP),
    )
    limit_concurrency_per_address: int = Field(
        1024,
        ge=1,
        description="Open connections of one address at most, more are answered with 429; proxies "
        "of --forwarded-allow-ips have no such limit.",
        json_schema_extra=_about(HTTP),
    )
    max_body_size: Bytes = Field(
        4 * 2**20,
        ge=1024,
        description="Size of a request body at most.",
        json_schema_extra=_about(HTTP, "bytes"),
    )
    header_timeout: float = Field(
        10.0,
        gt=0,
        description="Time a client has to send its request headers.",
        json_schema_extra=_about(HTTP, "seconds"),
    )
    body_timeout: float = Field(
        30.0,
        gt=0,
        description="Time a client has to send its request body.",
        json_schema_extra=_about(HTTP, "seconds"),
    )
    write_timeout: float = Field(
        30.0,
        gt=0,
        description="Time a client may leave what is sent to it unread.",
        json_schema_extra=_about(HTTP, "seconds"),
    )
    keep_alive_timeout: float = Field(
        5.0,
        gt=0,
        description="Time an idle connection stays open.",
        json_schema_extra=_about(HTTP, "seconds"),
    )
    sse_keep_alive_interval: float = Field(
        15.0,
        gt=0,
        description="A stream that is silent for so long sends a comment.",
        json_schema_extra=_about(HTTP, "seconds"),
    )
    ssl_certfile: Path | None = Field(
        None,
        description="TLS certificate chain; turns HTTPS on.",
        json_schema_extra=_about(HTTP),
    )
    ssl_keyfile: Path | None = Field(
        None,
        description="Private key of the TLS certificate.",
        json_schema_extra=_about(HTTP),
    )

    api_key: Secrets = Field(
        (),
        description="Key that requests must bring; may be repeated. No key is asked for when left "
        "out.",
        json_schema_extra=_about(ACCESS),
    )
    api_key_file: Path | None = Field(
        None,
        description="File with one key a line, beside those of --api-key.",
        json_schema_extra=_about(ACCESS),
    )
    allowed_origins: Names = Field(
        (),
        description="Browser origin that may call the API (CORS); may be repeated, * for all. "
        "None when left out.",
        json_schema_extra=_about(ACCESS),
    )

    request_timeout: float | None = Field(
        None,
        gt=0,
        description="Time in which an answer must be complete; a request may ask for less. No "
        "limit when left out.",
        json_schema_extra=_about(API, "seconds"),
    )
    strict_params: bool = Field(
        default=False,
        description="Refuse unknown fields of a request instead of ignoring them.",
        json_schema_extra=_about(API),
    )
    metrics_compat: Literal["vllm", "none"] = Field(
        "vllm",
        description="Also emit metrics under the names that existing dashboards read.",
        json_schema_extra=_about(API),
    )
    playground: bool = Field(
        default=True,
        description="Serve the playground page at /.",
        json_schema_extra=_about(API),
    )

    stuck_timeout: float = Field(
        60.0,
        gt=0,
        description="An engine that has work and says nothing for so long is stuck: neither "
        "healthy nor ready.",
        json_schema_extra=_about(PROCESS, "seconds"),
    )
    drain_grace: float = Field(
        5.0,
        ge=0,
        description="After SIGTERM, time in which new requests are still taken.",
        json_schema_extra=_about(PROCESS, "seconds"),
    )
    shutdown_timeout: float = Field(
        30.0,
        ge=0,
        description="After that, time in which running requests may finish.",
        json_schema_extra=_about(PROCESS, "seconds"),
    )
    restart_engine: bool = Field(
        False,
        description="Start an engine that ended by itself again, and answer 503 meanwhile; "
        "without this the process ends.",
        json_schema_extra=_about(PROCESS),
    )
    log_format: Literal["json", "console"] | None = Field(
        None,
        description="Form of log lines; when left out, console on a terminal, else json.",
        json_schema_extra=_about(PROCESS),
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Least severe log lines that are written.",
        json_schema_extra=_about(PROCESS),
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ValueError("ssl_certfile and ssl_keyfile must be given together")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens must be at least max_num_seqs ({self.max_num_seqs}), "
                f"got {self.max_num_batched_tokens}"
            )
        if self.root_path and not self.root_path.startswith("/"):
            raise ValueError(f"root_path must begin with /, got {self.root_path!r}")
        return self

    @property
    def cache_dir(self) -> Path:
        """Folder that fetched models are kept in."""
        if self.download_dir is not None:
            return self.download_dir
        base = os.environ.get("XDG_CACHE_HOME")  # noqa: TID251
        return (Path(base) if base else Path.home() / ".cache") / "estuary"

    def all_api_keys(self) -> tuple[str, ...]:
        """The keys of flags and file.

        Raises SettingsError when the file cannot be read or holds no key.
        """
        keys = [key.get_secret_value() for key in self.api_key]
        if self.api_key_file is not None:
            try:
                lines = self.api_key_file.read_text().splitlines()
            except OSError as error:
                raise SettingsError(f"api_key_file: {error.strerror}: {error.filename}") from error
            from_file = [line.strip() for line in lines if line.strip()]
            if not from_file:
                raise SettingsError(f"api_key_file: no key in {self.api_key_file}")
            keys += from_file
        if any(not key for key in keys):
            raise SettingsError("api_key: a key may not be empty")
        return tuple(keys)


class SettingsError(Exception):
    """Settings that cannot be used, in one sentence a line."""


def load_settings(flags: Mapping[str, object], *, config: Path | None = None) -> Settings:
    """The settings in force: flags, then environment, then the file, then defaults.

    flags: by field name, only those that were given. Raises SettingsError.
    """
    if config is None and f"{ENVIRONMENT_PREFIX}CONFIG" in os.environ:  # noqa: TID251
        config = Path(os.environ[f"{ENVIRONMENT_PREFIX}CONFIG"])  # noqa: TID251
    from_file = {} if config is None else _read_yaml(config)
    _check_environment(os.environ)  # noqa: TID251

    class Layered(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, from_file)

    try:
        return Layered.model_validate(dict(flags))
    except ValidationError as error:
        raise SettingsError(_sentences(error)) from None


def _sentences(error: ValidationError) -> str:
    lines = []
    for detail in error.errors(include_url=False, include_input=False):
        path = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = "no such setting"
        lines.append(f"{path}: {message}" if path else message)
    return "\n".join(lines)


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SettingsError(f"config: {error.strerror}: {error.filename}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"config: {path} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"config: {path} must hold names and values")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _check_environment(environment: Mapping[str, str]) -> None:
    known = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in Settings.model_fields}
    known.add(f"{ENVIRONMENT_PREFIX}CONFIG")
    unknown = sorted(
        name
        for name in environment
        if name.upper().startswith(ENVIRONMENT_PREFIX) and name.upper() not in known
    )
    if not unknown:
        return
    hint = ""
    if any(name.endswith(("_SERVICE_HOST", "_SERVICE_PORT")) for name in unknown):
        hint = " (Kubernetes adds these for a Service named estuary; set enableServiceLinks: false)"
    raise SettingsError(f"{', '.join(unknown)}: no such setting{hint}")


def trace_exporter() -> Literal["otlp", "console"] | None:
    """Where traces go by OpenTelemetry's own variables; the SDK reads the rest of them itself.

    Raises SettingsError for an exporter or a protocol that this server does not have.
    """
    environment = os.environ  # noqa: TID251
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    kind = environment.get("OTEL_TRACES_EXPORTER") or None
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    if kind is None and not any(environment.get(name) for name in endpoints):
        return None
    if kind not in (None, "otlp", "console", "none"):
        raise SettingsError(f"OTEL_TRACES_EXPORTER must be otlp, console or none, got {kind!r}")
    if kind in ("console", "none"):
        return "console" if kind == "console" else None
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environment.get(name) not in (None, "", "http/protobuf"):
            raise SettingsError(f"{name} must be http/protobuf, got {environment[name]!r}")
    return "otlp"


def printable(settings: Settings) -> str:
    """The settings in force as YAML that `--config` reads, with secrets masked."""
    values: dict[str, object] = {}
    for name in Settings.model_fields:
        value = settings.__dict__[name]
        if name == "api_key":
            value = ["********" for _ in settings.api_key]
        elif isinstance(value, Path):
            value = str(value)
        elif isinstance(value, tuple):
            value = list(value)
        values[name] = value
    return yaml.safe_dump(values, sort_keys=False)
