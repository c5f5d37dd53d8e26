"""What a checkpoint is and needs, without reading a weight."""

import json

import pytest
import torch
from safetensors.torch import load_file

from server.shell.cli import main
from tests.conftest import GOLDEN
from tests.weights.folders import copy_folder, shard
from weights import RuleOverrides
from weights.check import check_model, report
from weights.files.default_model import DEFAULT_CANVAS_ADAPTER
from weights.files.safetensors_store import SafetensorsStore
from weights.load import load_model

NO_TOKENIZER = "it has no tokenizer.json, which serving needs"
SERVED = sorted(
    folder.name
    for folder in GOLDEN.iterdir()
    if (folder / "model.safetensors").is_file() and folder.name != "diffusion_gemma"
)
# Their tiny vocabularies do not reach the mask id of the public checkpoints.
MASK_IDS = dict.fromkeys(("fast_dllm_v2", "llada2"), RuleOverrides(mask_token_id=159))
EXAMPLES = DEFAULT_CANVAS_ADAPTER.parent.parent / "examples"


@pytest.mark.parametrize("name", SERVED)
def test_every_family_is_recognised_by_shapes_alone(golden, name, monkeypatch):
    def unread(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(SafetensorsStore, "tensor", unread)
    found = check_model(golden / name, overrides=MASK_IDS.get(name))
    assert found.problem == NO_TOKENIZER
    assert found.family is not None
    stored = load_file(golden / name / "model.safetensors")
    assert found.parameters >= sum(tensor.numel() for tensor in stored.values())


@pytest.mark.parametrize("name", ["eso_lm", "evo"])
def test_a_model_that_can_be_served(name):
    found = check_model(EXAMPLES / name)
    assert found.problem is None
    assert report(found)[-1] == "can be served"


def test_figures_of_a_known_network(golden):
    found = check_model(golden / "llama")
    model = load_model(golden / "llama", dtype=torch.float32, device=torch.device("cpu"))
    config = model.config
    assert (found.family, found.modes) == ("llama", ("ar",))
    assert found.context_length == config.max_positions == 256
    # Two layers of two key heads of 16, keys and values, two bytes each.
    assert found.token_bytes == 2 * 2 * 2 * 16 * 2
    assert found.contexts() == (256,)
    assert found.weight_bytes(torch.float32) == 4 * found.parameters
    assert "  memory at 256 tokens:" in "\n".join(report(found))


@pytest.mark.parametrize("name", ["gptq", "compressed_tensors_int4_experts", "fp8_block"])
def test_quantised_checkpoints_count_unpacked(golden, name):
    found = check_model(golden / "quantized" / name)
    assert found.problem == NO_TOKENIZER
    method = json.loads((golden / "quantized" / name / "config.json").read_text())[
        "quantization_config"
    ]["quant_method"]
    assert found.form == f"safetensors ({method})"
    assert found.parameters * 4 > found.stored_bytes


def test_what_would_have_to_change_is_said(golden, tmp_path):
    bare = tmp_path / "pickled"
    bare.mkdir()
    (bare / "config.json").write_text((golden / "llama" / "config.json").read_text())
    (bare / "pytorch_model.bin").write_bytes(b"")
    missing = "model.layers.1.mlp.up_proj.weight"
    cases = {
        bare: "convert them to safetensors",
        tmp_path / "nowhere": "does not exist",
        golden / "diffusion_gemma": "DiffusionGemmaForBlockDiffusion is not supported",
        copy_folder(
            golden / "llama", tmp_path / "missing", drop=[missing]
        ): f"{missing} is missing",
        golden / "llada2": "name the right one (mask_token_id)",
        copy_folder(golden / "llama", tmp_path / "window", config={"sliding_window": 8}): (
            "sliding_window is 8"
        ),
        copy_folder(
            golden / "llama", tmp_path / "extra", tensors={"model.surprise": torch.ones(2)}
        ): "no place for: model.surprise",
    }
    for path, message in cases.items():
        found = check_model(path)
        assert message in (found.problem or "")
        assert report(found)[-1].startswith("cannot be served: ")


def test_shards_and_a_tied_head_in_the_file(golden, tmp_path):
    table = load_file(golden / "llama" / "model.safetensors")["model.embed_tokens.weight"]
    folder = copy_folder(
        golden / "llama", tmp_path / "model", tensors={"lm_head.weight": table.clone()}
    )
    shard(folder, 3)
    found = check_model(folder)
    assert found.problem == NO_TOKENIZER
    assert found.stored_bytes == sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_the_command_says_it_and_how_it_ended(golden, capsys):
    assert main(["check", str(EXAMPLES / "eso_lm")]) == 0
    assert "family: esolm; decodes by " in capsys.readouterr().out
    assert main(["check", str(golden / "llama")]) == 1
    assert NO_TOKENIZER in capsys.readouterr().out
