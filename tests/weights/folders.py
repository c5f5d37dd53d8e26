"""Checkpoint folders for tests: copies of golden ones with something changed."""

import json
import shutil

from safetensors.torch import load_file, save_file


def copy_folder(source, target, *, config=None, drop=(), tensors=None):
    """Copy a golden checkpoint; change config fields (None removes one) and tensors."""
    target.mkdir()
    values = json.loads((source / "config.json").read_text())
    for name, value in (config or {}).items():
        if value is None:
            values.pop(name, None)
        else:
            values[name] = value
    (target / "config.json").write_text(json.dumps(values))
    stored = load_file(source / "model.safetensors")
    for name in drop:
        del stored[name]
    stored.update(tensors or {})
    save_file(
        {name: value.contiguous() for name, value in stored.items()}, target / "model.safetensors"
    )
    for folder in source.iterdir():
        if folder.is_dir():
            shutil.copytree(folder, target / folder.name)
    return target


def shard(folder, num_files):
    """Split a folder's single file into several with an index."""
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for number in range(num_files):
        file = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        names = sorted(stored)[number::num_files]
        save_file({name: stored[name] for name in names}, folder / file)
        places.update(dict.fromkeys(names, file))
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
