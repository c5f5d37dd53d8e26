"""`Checkpoint`: a model on disk, opened but not loaded: config, text side, tensors by name."""

from dataclasses import dataclass
from pathlib import Path

from weights.config_fields import ConfigFields, Json, read_json_object
from weights.errors import CheckpointError
from weights.files.gguf_file import MAGIC, GgufFile
from weights.files.gguf_layout import GgufStore, config_from_gguf
from weights.files.gguf_tokenizer import read_gguf_tokenizer
from weights.files.safetensors_store import open_folder
from weights.network.tensor_reader import TensorStore
from weights.text.chat_template import ChatTemplate
from weights.text.generation_defaults import GenerationDefaults, read_generation_defaults
from weights.text.tokenizer import Tokenizer, read_tokenizer_json

# Subfolders whose low-rank weights belong to the model; config.json gets a section of that name.
ADAPTER_FOLDERS = ("linear_spec_lora",)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk.

    name:   of its folder or file
    config: the fields of config.json, or their equivalent
    """

    name: str
    config: ConfigFields
    tensors: TensorStore
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    generation: GenerationDefaults


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder in the Hugging Face layout, or a GGUF file (alone in a folder, or itself).

    Raises CheckpointError when it is missing, broken, pickled or of another kind.
    """
    if path.is_dir():
        if (path / "config.json").is_file():
            return _open_hf_folder(path)
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return _open_gguf(files[0])
        raise CheckpointError(f"{path} holds no config.json and not exactly one GGUF file")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    if _begins_with(path, MAGIC):
        return _open_gguf(path)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} is one file of a checkpoint; name the folder it is in")
    raise CheckpointError(
        f"{path} is neither a GGUF file nor a folder with safetensors; pickled checkpoints are "
        "not opened, because they can run code"
    )


def _begins_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _open_gguf(path: Path) -> Checkpoint:
    file = GgufFile(path)
    config = ConfigFields(config_from_gguf(file), str(path))
    tokenizer = read_gguf_tokenizer(file.metadata, where=str(path))
    metadata = ConfigFields(file.metadata, str(path))
    template = None
    if metadata.has("tokenizer.chat_template"):
        template = ChatTemplate(
            metadata.text("tokenizer.chat_template"), special_tokens=_special_tokens(tokenizer)
        )
    eos_id = None if tokenizer is None else tokenizer.eos_token_id
    return Checkpoint(
        name=metadata.text("general.name", path.stem),
        config=config,
        tensors=GgufStore(file),
        tokenizer=tokenizer,
        chat_template=template,
        generation=read_generation_defaults(config, None, tokenizer_eos_id=eos_id),
    )


def _open_hf_folder(folder: Path) -> Checkpoint:
    config_path = folder / "config.json"
    values = read_json_object(config_path)
    for adapter in ADAPTER_FOLDERS:
        if (folder / adapter).is_dir():
            adapter_config = folder / adapter / "adapter_config.json"
            found = read_json_object(adapter_config) if adapter_config.is_file() else {}
            values[adapter] = found
    config = ConfigFields(values, str(config_path))
    tokenizer_config = _optional_fields(folder / "tokenizer_config.json")
    tokenizer = _read_folder_tokenizer(folder, tokenizer_config)
    generation = _optional_fields(folder / "generation_config.json")
    eos_id = None if tokenizer is None else tokenizer.eos_token_id
    return Checkpoint(
        name=folder.resolve().name,
        config=config,
        tensors=open_folder(folder, adapters=ADAPTER_FOLDERS),
        tokenizer=tokenizer,
        chat_template=_read_folder_template(folder, tokenizer_config, tokenizer),
        generation=read_generation_defaults(config, generation, tokenizer_eos_id=eos_id),
    )


def _optional_fields(path: Path) -> ConfigFields | None:
    return ConfigFields(read_json_object(path), str(path)) if path.is_file() else None


def _read_folder_tokenizer(folder: Path, config: ConfigFields | None) -> Tokenizer | None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    return read_tokenizer_json(
        _read_text(path),
        where=str(path),
        bos_token=_token_content(config, "bos_token"),
        eos_token=_token_content(config, "eos_token"),
        pad_token=_token_content(config, "pad_token"),
    )


def _token_content(config: ConfigFields | None, name: str) -> str | None:
    """A special token of tokenizer_config.json: its text, or an object that holds it."""
    if config is None or not config.has(name):
        return None
    if isinstance(config.values[name], dict):
        section = config.section(name)
        return None if section is None else section.text("content")
    return config.text(name)


def _read_folder_template(
    folder: Path, config: ConfigFields | None, tokenizer: Tokenizer | None
) -> ChatTemplate | None:
    """The template file wins over the one inside tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        source: str | None = _read_text(path)
    else:
        source = None if config is None else _inline_template(config)
    if source is None:
        return None
    return ChatTemplate(source, special_tokens=_special_tokens(tokenizer))


def _inline_template(config: ConfigFields) -> str | None:
    value: Json = config.values.get("chat_template")
    if not isinstance(value, list):
        return config.text("chat_template") if value is not None else None
    named = [ConfigFields(item, config.where) for item in value if isinstance(item, dict)]
    return next(
        (item.text("template") for item in named if item.text("name", "") == "default"), None
    )


def _special_tokens(tokenizer: Tokenizer | None) -> dict[str, str]:
    if tokenizer is None:
        return {}
    tokens = {
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
    }
    return {name: token for name, token in tokens.items() if token is not None}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
