"""A Lightning checkpoint to a folder: which weights count, and that nothing of it runs."""

import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from tests.weights.runs import open_golden, whole_logits
from weights import CheckpointError, load_model
from weights.files.convert import convert_lightning
from weights.files.lightning_file import Placeholder, plain_config, read_lightning_file


@pytest.fixture
def checkpoint(golden):
    return golden / "esolm" / "model.ckpt"


def load(folder):
    return load_model(folder, dtype=torch.float32, device=torch.device("cpu"))


def changed(checkpoint, path, change):
    """A copy of a checkpoint after `change` was called with its content."""
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def test_the_moving_average_is_what_is_served(golden, checkpoint, tmp_path):
    folder = convert_lightning(checkpoint, tmp_path / "model")
    served, wanted = (
        load_file(folder / "model.safetensors"),
        load_file(golden / "esolm" / "model.safetensors"),
    )
    assert served.keys() == wanted.keys()
    assert all(torch.equal(served[name], wanted[name]) for name in wanted)


def test_the_folder_gives_the_golden_logits(golden, checkpoint, tmp_path):
    case = open_golden(golden / "esolm")
    model = load(convert_lightning(checkpoint, tmp_path / "model"))
    ids = case["forward_clean.rank_ids"][0].tolist()
    order = case["forward_clean.order"][0].tolist()
    got = whole_logits(model.network, ids, positions=order)
    torch.testing.assert_close(got, case["forward_clean.logits_by_rank"][0], atol=1e-4, rtol=0)
    assert model.family.name == "esolm"
    assert model.family.rule.mask_token_id == 127
    assert model.context_length == 32


def test_names_of_a_compiled_network_are_the_same(checkpoint, tmp_path):
    def rename(content):
        state = content["state_dict"]
        content["state_dict"] = {
            name.replace("backbone.", "backbone._orig_mod."): value for name, value in state.items()
        }

    path = changed(checkpoint, tmp_path / "m.ckpt", rename)
    folder = convert_lightning(path, tmp_path / "model")
    assert "backbone.vocab_embed.embedding" in load_file(folder / "model.safetensors")


def test_tokenizer_files_come_along(checkpoint, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tokenizer.json").write_text("{}")
    folder = convert_lightning(checkpoint, tmp_path / "model", tokenizer_folder=tmp_path / "text")
    assert (folder / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("ema"), "no moving average"),
        (lambda c: c.pop("state_dict"), "no state_dict"),
        (lambda c: c["ema"]["shadow_params"].pop(), "29 tensors, but the network 30 parameters"),
        (lambda c: c["ema"]["shadow_params"].reverse(), "does not fit parameter"),
        (
            lambda c: c["hyper_parameters"]["config"]["algo"].update(diffusion_attn_mode="mixed2"),
            "only variant B",
        ),
        (
            lambda c: c["hyper_parameters"]["config"]["algo"].update(name="duo"),
            "family duo; known are esolm",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(checkpoint, tmp_path, change, message):
    path = changed(checkpoint, tmp_path / "m.ckpt", change)
    with pytest.raises(CheckpointError, match=message):
        convert_lightning(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_unreadable_config_can_be_made_up_for(checkpoint, tmp_path):
    path = changed(checkpoint, tmp_path / "m.ckpt", lambda c: c.pop("hyper_parameters"))
    folder = convert_lightning(path, tmp_path / "model", family="esolm", model_length=48)
    assert load(folder).context_length == 48


def test_a_folder_in_the_way_is_not_touched(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="exists already"):
        convert_lightning(checkpoint, tmp_path)


class Harm:
    """Pickles as a call that would write a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


class Settings:
    """Pickles like a node of a config library."""

    def __init__(self, **state):
        self.__dict__.update(state)


class Sequence(list):
    """Pickles as a sequence of an unknown class."""


class Mapping(dict):
    """Pickles as a mapping of an unknown class."""


def write_pickle(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(content, protocol=2))
    return path


def test_nothing_of_a_checkpoint_runs(tmp_path):
    path = write_pickle(tmp_path / "m.ckpt", {"hyper_parameters": Harm(tmp_path / "harm")})
    content = read_lightning_file(path)
    assert isinstance(content["hyper_parameters"], Placeholder)
    assert not (tmp_path / "harm").exists()


def test_objects_of_unknown_classes_are_inert(tmp_path):
    content = {"a": Sequence([1, 2]), "b": Mapping(x=1), "c": {1, 2}, "d": Settings(_val=3)}
    read = read_lightning_file(write_pickle(tmp_path / "m.ckpt", content))
    assert isinstance(read["a"], Placeholder)
    assert plain_config(read["b"]) == {"x": 1}
    assert plain_config(read["d"]) == 3


def test_configs_of_a_library_are_unwrapped():
    leaf, node = Placeholder(), Placeholder()
    leaf.__setstate__({"_val": "causal"})
    node.__setstate__({"_content": {"mode": leaf, "list": [leaf]}})
    assert plain_config({"algo": node}) == {"algo": {"mode": "causal", "list": ["causal"]}}


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip at all", pickle.dumps({})])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "m.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.ckpt"):
        read_lightning_file(path)


def test_a_pickle_without_a_dictionary_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no dictionary"):
        read_lightning_file(write_pickle(tmp_path / "m.ckpt", [1]))


def test_tensors_may_not_reach_outside_their_memory(checkpoint, tmp_path):
    path = tmp_path / "m.ckpt"
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(path, "w") as copy:
        for name in source.namelist():
            data = source.read(name)
            copy.writestr(name, data[:4] if name.endswith("data/0") else data)
    with pytest.raises(CheckpointError, match="wrong size"):
        read_lightning_file(path)
