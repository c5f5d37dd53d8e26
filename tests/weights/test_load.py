"""Checkpoint folders: what is loaded, and what is refused and how."""

import json
import pickle
import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.weights.folders import copy_folder, shard
from tests.weights.runs import open_golden, whole_logits
from weights import CheckpointError, Placement, Quantize, build_network, load_model
from weights.families import find_family
from weights.files.checkpoint import open_checkpoint
from weights.network.tensor_reader import TensorReader
from weights.progress_store import ProgressStore


def load(folder, **options):
    options = {"dtype": torch.float32, "device": torch.device("cpu"), **options}
    return load_model(folder, **options)


@pytest.fixture
def llama(golden):
    return golden / "llama"


@pytest.fixture
def ids(llama):
    return open_golden(llama)["forward_causal.input_ids"][0].tolist()


@pytest.fixture
def wanted(llama):
    return open_golden(llama)["forward_causal.logits"][0]


def test_sharded_files_give_the_same_network(llama, tmp_path, ids, wanted):
    folder = copy_folder(llama, tmp_path / "model")
    shard(folder, 3)
    torch.testing.assert_close(whole_logits(load(folder).network, ids), wanted, atol=1e-4, rtol=0)


def test_weights_are_no_view_of_the_file(llama, tmp_path, ids, wanted):
    folder = copy_folder(llama, tmp_path / "model")
    network = load(folder).network
    (folder / "model.safetensors").write_bytes(b"")
    torch.testing.assert_close(whole_logits(network, ids), wanted, atol=1e-4, rtol=0)


def test_each_file_is_opened_once(llama, tmp_path, monkeypatch):
    folder = copy_folder(llama, tmp_path / "model")
    shard(folder, 3)
    opened = []

    def counted(path, **options):
        opened.append(path.name)
        return safe_open(path, **options)

    monkeypatch.setattr("weights.files.safetensors_store.safe_open", counted)
    load(folder)
    assert sorted(opened) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]


def test_progress_ends_when_all_has_been_read(llama):
    said = []
    load(llama, progress=lambda done, total: said.append((done, total)))
    total = sum(tensor.numel() for tensor in load_file(llama / "model.safetensors").values())
    assert said[-1] == (total, total)
    assert [done for done, _ in said] == sorted(done for done, _ in said)
    assert len(said) == len(load_file(llama / "model.safetensors"))


def test_host_memory_is_bounded_by_a_tensor(golden):
    """A matrix joined of several is never held twice: its pieces go straight to their place."""
    seen = []

    class Watched(ProgressStore):
        def tensor(self, name):
            alive = sum(ref() is not None for ref in seen)
            assert alive <= 1, "an earlier tensor is still held"
            tensor = super().tensor(name)
            seen.append(weakref.ref(tensor))
            return tensor

    checkpoint = open_checkpoint(golden / "qwen3")
    family = find_family(checkpoint.config)
    store = Watched(checkpoint.tensors, lambda *_: None)
    reader = TensorReader(store, family.names)
    config = family.parse(checkpoint.config)
    build_network(config, reader, Placement(torch.float32, torch.device("cpu")))
    reader.finish()
    assert len(seen) == len(list(checkpoint.tensors.names()))


def test_missing_tensor_is_named(llama, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    folder = copy_folder(llama, tmp_path / "model", drop=[name])
    with pytest.raises(CheckpointError, match=f"tensor {name} is missing") as error:
        load(folder)
    assert error.value.tensor == name


def test_extra_tensor_is_named(llama, tmp_path):
    folder = copy_folder(llama, tmp_path / "model", tensors={"model.surprise": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"no place for: model\.surprise"):
        load(folder)


def test_misshapen_tensor_is_named(llama, tmp_path):
    name = "model.layers.0.self_attn.k_proj.weight"
    folder = copy_folder(llama, tmp_path / "model", tensors={name: torch.ones(64, 64)})
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[64, 64\].*\[32, 64\]"):
        load(folder)


def test_integer_tensor_is_refused(llama, tmp_path):
    name = "model.norm.weight"
    folder = copy_folder(
        llama, tmp_path / "model", tensors={name: torch.ones(64, dtype=torch.int64)}
    )
    with pytest.raises(CheckpointError, match=f"{name} has type torch.int64"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_tensor_of_what_is_no_number_is_named(llama, tmp_path, value, dtype):
    name = "model.layers.0.self_attn.k_proj.weight"
    weight = torch.ones(32, 64, dtype=dtype)
    weight[7, 5] = value
    folder = copy_folder(llama, tmp_path / "model", tensors={name: weight})
    with pytest.raises(CheckpointError, match=f"{name} holds values") as error:
        load(folder)
    assert error.value.tensor == name


def test_stored_rotary_frequencies_are_ignored(llama, tmp_path):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    assert load(copy_folder(llama, tmp_path / "model", tensors=extra)).family.name == "llama"


def test_tied_head_may_stand_in_the_file_when_it_is_the_table(llama, tmp_path, ids, wanted):
    table = load_file(llama / "model.safetensors")["model.embed_tokens.weight"]
    folder = copy_folder(llama, tmp_path / "model", tensors={"lm_head.weight": table.clone()})
    torch.testing.assert_close(whole_logits(load(folder).network, ids), wanted, atol=1e-4, rtol=0)


def test_tied_head_that_is_another_is_refused(llama, tmp_path):
    head = {"lm_head.weight": torch.ones(160, 64)}
    with pytest.raises(CheckpointError, match="ties the output head"):
        load(copy_folder(llama, tmp_path / "model", tensors=head))


def test_untied_head_must_be_there(llama, tmp_path):
    folder = copy_folder(llama, tmp_path / "model", config={"tie_word_embeddings": False})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        load(folder)


def test_truncated_file_is_one_sentence(llama, tmp_path):
    folder = copy_folder(llama, tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="no readable safetensors") as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", "\xff", ""])
def test_broken_config_is_one_sentence(llama, tmp_path, content):
    folder = copy_folder(llama, tmp_path / "model")
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_pickled_weights_are_refused(llama, tmp_path, name):
    folder = copy_folder(llama, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match="pickled") as error:
        load(folder)
    assert name in str(error.value)


def test_pickled_file_is_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match="pickled"):
        load(path)


def test_missing_path_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")


def test_folder_without_weights_is_named(llama, tmp_path):
    folder = copy_folder(llama, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no safetensors"):
        load(folder)


def test_index_that_promises_too_much_is_refused(llama, tmp_path):
    folder = copy_folder(llama, tmp_path / "model")
    shard(folder, 2)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"]["model.ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(places))
    with pytest.raises(CheckpointError, match=r"model\.ghost stands in the index"):
        load(folder)


@pytest.mark.parametrize("file", ["../elsewhere.safetensors", "absent.safetensors"])
def test_index_that_names_a_wrong_file_is_refused(llama, tmp_path, file):
    folder = copy_folder(llama, tmp_path / "model")
    index = {"weight_map": {"model.norm.weight": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="safetensors, which is"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"sliding_window": 16}, "sliding_window is 16"),
        ({"num_key_value_heads": 3}, "cannot share 3 key heads"),
        ({"hidden_size": "wide"}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": None}, "no field num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_layers must be at least 1"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        ({"num_hidden_layers": 3}, r"layers\.2\.[a-z_.]+ is missing"),
        ({"num_hidden_layers": 1}, "no place for: model.layers.1"),
    ],
)
def test_config_that_cannot_be_served_is_refused(llama, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        load(copy_folder(llama, tmp_path / "model", config=change))


def test_context_can_be_shortened_but_not_lengthened(llama):
    assert load(llama, context_length=100).context_length == 100
    with pytest.raises(ValueError, match=r"within 1\.\.256"):
        load(llama, context_length=257)


def test_types_without_kernels_are_refused(llama):
    with pytest.raises(ValueError, match="dtype must be"):
        load(llama, dtype=torch.float64)


def test_int8_stays_near_float32(llama, ids, wanted):
    network = load(llama, quantize=Quantize.INT8).network
    got = whole_logits(network, ids)
    # One product of int8 rows and weights errs by 1 to 2.5 percent; eight lie on the way.
    assert (got - wanted).std() < 0.06 * wanted.std()
