"""`complete` and `bench` around a scripted engine, and where models come from."""

import json
import subprocess
import sys
from importlib import import_module

import pytest

from sampler import DecodingMode, EngineConfig
from sampler.engine_process import load_engine
from server.settings import SettingsError, load_settings
from server.shell.bench import BenchLoad, bench, percentile
from server.shell.cli import COMMANDS, main
from server.shell.model_source import (
    engine_config,
    find_model,
    model_name,
    read_model_text,
)
from server.shell.one_answer import CompleteOptions, complete
from server.translate.model_text import ModelText
from tests.end_to_end.conftest import write_checkpoint
from tests.server.scripted_engine import ScriptedEngine, saying, template
from weights import CheckpointError


def _options(**changes):
    values = {
        "prompt": "hi",
        "is_raw": False,
        "max_tokens": 8,
        "temperature": 0.0,
        "top_p": 1.0,
        "mode": "ar",
        "seed": None,
    }
    return CompleteOptions(**(values | changes))


async def _complete(tokenizer, engine, options):
    written = []
    text = ModelText(tokenizer, template())
    usage = await complete(engine, text, load_settings({}), options, write=written.append)
    return "".join(written), usage


@pytest.mark.anyio
async def test_complete_answers_a_prompt_behind_the_template(tokenizer):
    engine = ScriptedEngine(saying("hello"))
    text, usage = await _complete(tokenizer, engine, _options(seed=3))
    assert text == "hello"
    assert usage.completion_tokens == 6
    assert bytes(engine.submitted[0].prompt) == b"<user>hi\n<assistant>"
    assert engine.submitted[0].params.seed == 3
    assert engine.submitted[0].params.decoding.mode is DecodingMode.AR
    assert engine.stopped_with == [0.0]


@pytest.mark.anyio
async def test_complete_continues_raw_text(tokenizer):
    engine = ScriptedEngine(saying("hello"))
    text, _ = await _complete(tokenizer, engine, _options(is_raw=True))
    assert text == "hello"
    assert bytes(engine.submitted[0].prompt) == b"hi"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "changes",
    [{"max_tokens": 0}, {"temperature": 9.0}, {"mode": "diffusion"}, {"prompt": "x" * 999}],
)
async def test_complete_refuses_what_cannot_be_served(tokenizer, changes):
    engine = ScriptedEngine()
    with pytest.raises(ValueError, match=r"max_tokens|temperature|decoding|prompt"):
        await _complete(tokenizer, engine, _options(**changes))
    assert engine.stopped_with == [0.0]


def _started(*arguments):
    command = [sys.executable, "-c", f"import server.shell.cli as cli; cli.main({[*arguments]})"]
    names = "import sys; print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    command[2] = f"""import atexit
def tell():
    {names}
atexit.register(tell)
{command[2]}"""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said, _, modules = ended.stdout.strip().rpartition("\n")
    return ended, said, set(modules.split())


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_what_needs_no_model_imports_nothing_heavy(flag):
    ended, said, modules = _started(flag)
    assert ended.returncode == 0
    assert "estuary" in said
    assert not modules & {"torch", "fastapi", "pydantic", "weights", "sampler", "numpy", "yaml"}


def test_a_misspelt_command_is_answered_at_once_with_what_was_meant():
    ended, _, modules = _started("srve")
    assert ended.returncode == 2
    assert "did you mean serve?" in ended.stderr
    assert "torch" not in modules


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["serve", "--prot", "9"], "--port"),
        (["bench", "--num-request", "9", "--max-num-seq=3", "--devise", "cpu"], "--device"),
        (["serve", "--device", "cda"], "cuda"),
    ],
)
def test_misspelt_flags_and_values_name_what_was_meant(arguments, meant, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


def test_nothing_is_suggested_where_nothing_is_near(capsys):
    with pytest.raises(SystemExit):
        main(["fetch", "--zzzzzz"])
    assert "did you mean" not in capsys.readouterr().err


def test_the_table_of_commands_says_what_each_one_is():
    for name, command in COMMANDS.items():
        module = import_module(f"server.shell.{command.module}")
        assert callable(module.run), name
        assert callable(module.add_flags), name
    commands = {"serve", "fetch", "complete", "bench", "score", "check", "convert", "train"}
    assert set(COMMANDS) == commands


def test_defaults_come_from_the_checkpoint_else_from_the_family(golden, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "dream").mkdir()
    model = write_checkpoint(golden, "llama", tmp_path / "own")
    silent = load_settings({"model": str(model)})
    assert read_model_text(model, silent).generation.temperature == 1.0
    (model / "generation_config.json").write_text('{"temperature": 0.5, "top_k": 7}')
    read = read_model_text(model, silent).generation
    assert (read.temperature, read.top_k, read.top_p) == (0.5, 7, None)
    dream = write_checkpoint(golden, "dream", tmp_path / "dream")
    own = load_settings({"model": str(dream)})
    assert read_model_text(dream, own).generation.temperature == 0.0


def test_the_embedded_model_has_its_authors_temperature(golden, tmp_path):
    model = write_checkpoint(golden, "llama", tmp_path)
    embedded = load_settings({"canvas_adapter": "none"})
    read = read_model_text(model, embedded).generation
    assert (read.temperature, read.top_p) == (0.2, 0.9)


def test_defaults_that_no_request_could_have_are_refused_by_name(golden, tmp_path):
    model = write_checkpoint(golden, "llama", tmp_path)
    (model / "generation_config.json").write_text('{"temperature": -1.0}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json: temperature"):
        read_model_text(model, load_settings({"model": str(model)}))


def _load(**changes):
    values = {
        "num_requests": 5,
        "concurrency": 2,
        "prompt_tokens": 7,
        "answer_tokens": 3,
        "mode": "auto",
        "seed": 1,
    }
    return BenchLoad(**(values | changes))


@pytest.mark.anyio
async def test_bench_runs_its_load_and_tells_the_numbers():
    engine = ScriptedEngine(saying("abc"), capacity=2)
    result = await bench(engine, _load())
    numbers = json.loads(result.json())
    assert [len(request.prompt) for request in engine.submitted] == [7] * 5
    assert len(result.first_token_s) == len(result.per_token_s) == 5
    assert "tokens/s" in result.table()
    assert numbers["load"]["num_requests"] == 5
    assert numbers["tokens_per_s"] > 0


@pytest.mark.anyio
async def test_bench_repeats_its_prompts():
    first, second = ScriptedEngine(), ScriptedEngine()
    await bench(first, _load())
    await bench(second, _load())
    assert [each.prompt for each in first.submitted] == [each.prompt for each in second.submitted]


@pytest.mark.anyio
@pytest.mark.parametrize("changes", [{"num_requests": 0}, {"prompt_tokens": 10_000}])
async def test_bench_refuses_a_load_that_cannot_be_run(changes):
    with pytest.raises(ValueError, match=r"num_requests|at most 512"):
        await bench(ScriptedEngine(), _load(**changes))


def test_percentiles_are_values_that_were_seen():
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([5.0], 50) == 5.0


@pytest.mark.parametrize(
    ("device", "has_gpu", "expected"),
    [
        ("cpu", True, 16),
        (None, False, 16),
        (None, True, 64),
        ("cuda", True, 64),
    ],
)
def test_pages_are_larger_on_a_gpu(device, has_gpu, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    flags = {"model": str(tmp_path)} | ({"device": device} if device else {})
    assert engine_config(load_settings(flags), tmp_path).page_size == expected
    chosen = load_settings(flags | {"page_size": 32})
    assert engine_config(chosen, tmp_path).page_size == 32


def test_settings_become_the_engines_configuration(tmp_path):
    flags = {
        "model": str(tmp_path),
        "dtype": "float16",
        "quantization": "none",
        "device": "cpu",
        "page_size": 8,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "max_model_len": 100,
        "kv_cache_memory": "1MiB",
        "max_queued_requests": 9,
        "enable_prefix_caching": False,
        "cuda_graphs": False,
        "num_threads": 2,
        "seed": 5,
    }
    assert engine_config(load_settings(flags), tmp_path) == EngineConfig(
        model=str(tmp_path),
        dtype="float16",
        quantization=None,
        device="cpu",
        page_size=8,
        max_sequences=4,
        max_rows=64,
        max_context=100,
        cache_bytes=2**20,
        max_waiting=9,
        prefix_caching=False,
        cuda_graphs=False,
        num_threads=2,
        seed=5,
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"device": "cpu"}, "int8"),
        ({"device": "cpu", "quantization": "none"}, None),
        ({"device": "cpu", "dtype": "float32"}, None),
        ({"device": "cpu", "model": "x"}, None),
        ({"device": "cpu", "model": "x", "quantization": "int8"}, "int8"),
    ],
)
def test_the_default_model_is_quantized_on_a_cpu(flags, expected, tmp_path):
    assert engine_config(load_settings(flags), tmp_path).quantization == expected


def test_a_model_is_named_by_where_it_comes_from(tmp_path):
    file = tmp_path / "My-Model.gguf"
    file.touch()
    assert model_name(load_settings({}), file) == "SmolLM2-135M-Instruct"
    assert model_name(load_settings({"model": str(file)}), file) == "My-Model"
    assert model_name(load_settings({"model": "org/name"}), tmp_path) == "org/name"


def test_a_model_that_is_nowhere_is_refused(tmp_path, capsys):
    missing = str(tmp_path / "none" / "x")
    with pytest.raises(SettingsError, match="neither a path nor a hub id"):
        find_model(load_settings({"model": missing}))
    assert main(["fetch", missing]) == 2
    assert "neither a path" in capsys.readouterr().err


def test_fetch_prints_the_path(tmp_path, capsys):
    assert main(["fetch", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path)


def test_a_broken_model_is_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    code = main(["complete", "hi", "--model", str(tmp_path)])
    error = capsys.readouterr().err.strip()
    assert code == 1
    assert error.startswith("estuary: ")
    assert "\n" not in error


def test_what_a_checkpoint_does_not_say_is_said_to_engine_and_text_side_alike(golden, tmp_path):
    model = write_checkpoint(golden, "sdar", tmp_path)
    flags = {"model": str(model), "mask_token_id": 7, "block_length": 8}
    settings = load_settings(flags)
    rule = read_model_text(model, settings).rule
    config = engine_config(settings, model)
    assert (rule.mask_token_id, rule.block_length) == (7, 8)
    assert (config.mask_token_id, config.block_length) == (7, 8)


def test_the_engine_loads_a_model_with_what_it_was_told(golden, tmp_path):
    model = write_checkpoint(golden, "sdar", tmp_path)
    config = EngineConfig(
        model=str(model), dtype="float32", device="cpu", block_length=8, cache_bytes=1 << 20
    )
    engine, info = load_engine(config)
    assert engine.family.block_length == info.block_length == 8


def test_bench_says_what_a_step_costs(golden, tmp_path, capsys):
    flags = ["--device", "cpu", "--dtype", "float32", "--num-threads", "1"]
    flags += ["--kv-cache-memory", "8MiB", "--json", str(tmp_path / "report.json")]
    assert main(["bench", str(golden / "llama"), "--step-time", *flags]) == 0
    shown = capsys.readouterr().out
    assert "us a row" in shown
    report = json.loads((tmp_path / "report.json").read_text())
    seconds = [knot[1] for knot in report["knots"]]
    assert report["num_steps"] > 20
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
