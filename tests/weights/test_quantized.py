"""Quantised checkpoints as published: every layout against the library that writes it."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels import Fp8Weight, Int4Weight
from tests.conftest import GOLDEN
from tests.weights.folders import copy_folder
from tests.weights.runs import whole_logits
from weights import CheckpointError, Placement, build_network, load_model
from weights.families import find_family
from weights.files.checkpoint import open_checkpoint
from weights.network.tensor_reader import TensorReader
from weights.scaled_values import ScaledValues, unpack_bits, unpack_fp4

FOLDERS = sorted(path.name for path in (GOLDEN / "quantized").iterdir() if path.is_dir())
CPU = torch.device("cpu")


@pytest.fixture
def folders(golden):
    return golden / "quantized"


@pytest.mark.parametrize("name", FOLDERS)
def test_values_are_those_of_the_library(folders, name):
    checkpoint = open_checkpoint(folders / name)
    cases = load_file(folders / name / "cases.safetensors")
    dense = {k.removeprefix("dense."): v for k, v in cases.items() if k.startswith("dense.")}
    assert dense
    for tensor, wanted in dense.items():
        assert checkpoint.tensors.shape(tensor) == tuple(wanted.shape)
        # Both multiply in float32; libraries may round the scale once more on the way.
        torch.testing.assert_close(checkpoint.tensors.tensor(tensor), wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", FOLDERS)
def test_network_agrees_with_transformers_over_the_same_values(folders, name):
    cases = load_file(folders / name / "cases.safetensors")
    network = load_model(folders / name, dtype=torch.float32, device=CPU).network
    logits = whole_logits(network, cases["input_ids"][0].tolist())
    torch.testing.assert_close(logits, cases["logits"][0], atol=1e-4, rtol=0)


PACKED = {
    "awq": Int4Weight,
    "gptq": Int4Weight,
    "gptq_act_order": Int4Weight,
    "gptq_8bit": Tensor,
    "compressed_tensors_int4": Int4Weight,
    "compressed_tensors_int4_asymmetric": Int4Weight,
    "compressed_tensors_fp8_dynamic": Fp8Weight,
    "compressed_tensors_fp8_static": Fp8Weight,
    "compressed_tensors_fp8_block": Fp8Weight,
    "compressed_tensors_nvfp4": Tensor,
    "fp8_block": Fp8Weight,
    "torchao_float8": Fp8Weight,
    "torchao_intx": Int4Weight,
}


@pytest.mark.parametrize("name", PACKED)
def test_matrices_stay_packed_where_there_is_a_product(folders, name):
    checkpoint = open_checkpoint(folders / name)
    family = find_family(checkpoint.config)
    config = family.parse(checkpoint.config)
    reader = TensorReader(checkpoint.tensors, family.names)
    network = build_network(config, reader, Placement(torch.float32, CPU, keeps_packed=True))
    reader.finish()
    cases = load_file(folders / name / "cases.safetensors")
    logits = whole_logits(network, cases["input_ids"][0].tolist())
    torch.testing.assert_close(logits, cases["logits"][0], atol=1e-4, rtol=0)
    layer = network.layers[0]
    assert isinstance(layer.attention.qkv.weight, PACKED[name])
    assert isinstance(network.head_weight, Tensor)
    if name == "gptq_act_order":
        assert layer.attention.qkv.weight.column_order is not None
        # The columns of this gate and up are in different orders.
        assert isinstance(layer.feed_forward.gate_up.weight, Tensor)


def changed(folders, name, target, *, quantization=None, tensors=None, drop=(), metadata=None):
    """Copy a golden folder with fields of its quantization_config or tensors changed."""
    target.mkdir()
    config = json.loads((folders / name / "config.json").read_text())
    config["quantization_config"].update(quantization or {})
    (target / "config.json").write_text(json.dumps(config))
    stored = load_file(folders / name / "model.safetensors")
    for dropped in drop:
        del stored[dropped]
    save_file({**stored, **(tensors or {})}, target / "model.safetensors", metadata=metadata)
    return target


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("gptq", {"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes'.*gptq"),
        ("gptq", {"bits": 3}, "bits is 3"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ("gptq", {"group_size": 0}, "group_size is 0"),
        ("awq", {"version": "gemv"}, "version is 'gemv'"),
        ("awq", {"bits": 8}, "bits is 8"),
        ("fp8_block", {"weight_block_size": [64]}, r"weight_block_size is \[64\]"),
        ("fp8_block", {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo"),
        ("compressed_tensors_int4", {"format": "marlin-24"}, "format is 'marlin-24'"),
        (
            "compressed_tensors_int4",
            {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparse weights",
        ),
        (
            "compressed_tensors_int4",
            {"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}},
            "rotated weights",
        ),
    ],
)
def test_unknown_variants_are_refused_by_name(folders, tmp_path, name, fields, message):
    folder = changed(folders, name, tmp_path / "model", quantization=fields)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}, "only NVFP4"),
        ({"num_bits": 9, "type": "int"}, "num_bits is 9"),
        ({"num_bits": 4, "type": "ternary"}, "type ternary"),
        ({"num_bits": 4, "strategy": "group"}, "size of its groups"),
        ({"num_bits": 4, "strategy": "token"}, "strategy is 'token'"),
    ],
)
def test_unknown_schemes_are_refused_by_name(folders, tmp_path, weights, message):
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    folder = changed(
        folders,
        "compressed_tensors_int4",
        tmp_path / "model",
        quantization={"config_groups": groups},
    )
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("gptq", "qzeros"),
        ("gptq_act_order", "g_idx"),
        ("awq", "scales"),
        ("compressed_tensors_nvfp4", "weight_global_scale"),
        ("compressed_tensors_int4", "weight_shape"),
        ("compressed_tensors_fp8_static", "weight"),
        ("fp8_block", "weight"),
        ("torchao_int8", "_weight_scale"),
    ],
)
def test_a_missing_part_is_named(folders, tmp_path, name, part):
    metadata = None
    if name == "torchao_int8":
        with safe_open(folders / name / "model.safetensors", framework="pt") as file:
            metadata = file.metadata()
    module = "model.layers.0.mlp.up_proj."
    folder = changed(folders, name, tmp_path / "model", drop=[module + part], metadata=metadata)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight"):
        load_model(folder, dtype=torch.float32, device=CPU)


def test_scales_that_do_not_cover_the_matrix_are_named(folders, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight_scale_inv"
    folder = changed(folders, "fp8_block", tmp_path / "model", tensors={name: torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match=r"up_proj\.weight have shape \[2, 2\].*\[3, 2\]"):
        load_model(folder, dtype=torch.float32, device=CPU)


def test_a_group_that_is_not_there_is_named(folders, tmp_path):
    name = "model.layers.0.mlp.up_proj.g_idx"
    index = torch.full((128,), 4, dtype=torch.int32)
    folder = changed(folders, "gptq_act_order", tmp_path / "model", tensors={name: index})
    with pytest.raises(CheckpointError, match=r"group index of tensor .*up_proj"):
        load_model(folder, dtype=torch.float32, device=CPU)


def test_packed_torchao_tensors_are_refused(folders, tmp_path):
    metadata = {"lm_head.weight": json.dumps({"_type": "Int4TilePackedTo4dTensor", "_data": {}})}
    folder = changed(folders, "torchao_int8", tmp_path / "model", metadata=metadata)
    with pytest.raises(CheckpointError, match="_type is 'Int4TilePackedTo4dTensor'"):
        open_checkpoint(folder)


def test_torchao_without_metadata_is_refused(folders, tmp_path):
    folder = changed(folders, "torchao_int8", tmp_path / "model", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="say nothing of it"):
        open_checkpoint(folder)


def test_modules_are_matched_by_name_before_class(folders, tmp_path):
    """Of two schemes, the one that names a module wins over the one for its class."""
    config = json.loads((folders / "compressed_tensors_int4" / "config.json").read_text())
    four_bits = config["quantization_config"]["config_groups"]["group_0"]
    eight_bits = {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}
    groups = {"group_0": eight_bits, "group_1": {**four_bits, "targets": [r"re:.*_proj$"]}}
    folder = changed(
        folders,
        "compressed_tensors_int4",
        tmp_path / "model",
        quantization={"config_groups": groups},
    )
    name = "model.layers.0.self_attn.k_proj.weight"
    wanted = load_file(folders / "compressed_tensors_int4" / "cases.safetensors")[f"dense.{name}"]
    torch.testing.assert_close(open_checkpoint(folder).tensors.tensor(name), wanted)


def test_activation_order_of_compressed_tensors(folders, tmp_path):
    """Columns that belong to other groups than their neighbours take those groups' scales."""
    name = "model.layers.0.self_attn.k_proj"
    order = torch.randperm(128)
    index = torch.empty(128, dtype=torch.int32)
    index[order] = (torch.arange(128) // 32).int()
    folder = changed(
        folders,
        "compressed_tensors_int4",
        tmp_path / "model",
        tensors={f"{name}.weight_g_idx": index},
    )
    stored = load_file(folder / "model.safetensors")
    codes = unpack_bits(stored[f"{name}.weight_packed"], 4, 128) - 8
    scales = stored[f"{name}.weight_scale"].float()
    wanted = torch.stack([codes[:, c] * scales[:, int(index[c])] for c in range(128)], dim=1)
    torch.testing.assert_close(open_checkpoint(folder).tensors.tensor(f"{name}.weight"), wanted)


def test_an_index_of_minus_one_says_nothing(folders, tmp_path):
    name = "model.layers.0.self_attn.k_proj"
    index = torch.full((128,), -1, dtype=torch.int32)
    folder = changed(
        folders,
        "compressed_tensors_int4",
        tmp_path / "model",
        tensors={f"{name}.weight_g_idx": index},
    )
    wanted = load_file(folders / "compressed_tensors_int4" / "cases.safetensors")
    got = open_checkpoint(folder).tensors.tensor(f"{name}.weight")
    torch.testing.assert_close(got, wanted[f"dense.{name}.weight"])


def test_gptq_goes_by_its_index_whatever_the_config_says(folders, tmp_path):
    """Some tools leave `desc_act` false and permute groups all the same."""
    folder = changed(
        folders, "gptq_act_order", tmp_path / "model", quantization={"desc_act": False}
    )
    name = "model.layers.0.self_attn.k_proj.weight"
    wanted = load_file(folders / "gptq_act_order" / "cases.safetensors")[f"dense.{name}"]
    torch.testing.assert_close(open_checkpoint(folder).tensors.tensor(name), wanted)


def test_modelopt_config_may_stand_in_a_file_of_its_own(folders, tmp_path):
    folder = changed(folders, "modelopt_nvfp4", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    stated = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    section = {name: value for name, value in stated.items() if name != "quant_method"}
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": section}))
    name = "model.layers.0.self_attn.k_proj.weight"
    wanted = load_file(folders / "modelopt_nvfp4" / "cases.safetensors")[f"dense.{name}"]
    torch.testing.assert_close(open_checkpoint(folder).tensors.tensor(name), wanted)


def test_scales_may_be_bare_exponents(folders, tmp_path):
    name = "model.layers.0.self_attn.k_proj"
    exponents = torch.tensor([[125, 128]], dtype=torch.uint8)
    folder = changed(
        folders,
        "fp8_block",
        tmp_path / "model",
        tensors={f"{name}.weight_scale_inv": exponents},
    )
    stored = load_file(folder / "model.safetensors")[f"{name}.weight"].float()
    wanted = torch.cat([stored[:, :64] * 0.25, stored[:, 64:] * 2.0], dim=1)
    assert torch.equal(open_checkpoint(folder).tensors.tensor(f"{name}.weight"), wanted)


@pytest.mark.parametrize("num_bits", range(1, 9))
def test_bits_are_unpacked_over_word_edges(num_bits):
    count = 75
    numbers = torch.randint(1 << num_bits, (3, count))
    words = []
    for row in numbers.tolist():
        stream = sum(number << (i * num_bits) for i, number in enumerate(row))
        size = -(-count * num_bits // 32)
        words.append([(stream >> (32 * i)) & 0xFFFFFFFF for i in range(size)])
    packed = torch.tensor(words).to(torch.uint32).view(torch.int32)
    assert torch.equal(unpack_bits(packed, num_bits, count), numbers.int())


def test_fp4_values_by_hand():
    packed = torch.tensor([[0x10, 0x9F, 0x75]], dtype=torch.uint8)
    wanted = torch.tensor([[0.0, 0.5, -6.0, -0.5, 3.0, 6.0]])
    assert torch.equal(unpack_fp4(packed), wanted)


def test_cut_blocks_and_leading_dimensions():
    """A grid of 2 x 2 blocks of 3 x 4 over matrices of 5 x 6, with zero points."""
    values = torch.randint(16, (2, 5, 6))
    scales, zeros = torch.rand(2, 2, 2), torch.randint(16, (2, 2, 2))
    found = ScaledValues(values, scales, (3, 4), zeros)
    found.check("w")
    dense = found.dense()
    for e in range(2):
        for row in range(5):
            for column in range(6):
                at = (e, row // 3, column // 4)
                wanted = (values[e, row, column] - zeros[at]) * scales[at]
                assert dense[e, row, column] == wanted


def test_families_that_turn_their_matrices_are_refused(golden, tmp_path):
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}
    folder = copy_folder(golden / "gpt2", tmp_path / "model", config=config)
    with pytest.raises(CheckpointError, match="family gpt2 are not supported"):
        load_model(folder, dtype=torch.float32, device=CPU)
