"""`estuary`: serve, fetch, complete, bench, score, convert and train from the shell."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sampler import EngineClient, EngineStopped
from sampler.scorer import Scorer
from server.app import create_app
from server.serve import EXIT_FAILED, EXIT_OK, listen, run
from server.settings import (
    ACCESS,
    API,
    ENGINE,
    HTTP,
    MODEL,
    PROCESS,
    Settings,
    SettingsError,
    load_settings,
    printable,
)
from server.shell.bench import BenchLoad, bench, measure_step_time, step_time_table
from server.shell.decision_chart import draw_decisions
from server.shell.flags import add_settings, given
from server.shell.model_source import engine_config, find_model, model_name, read_text_side
from server.shell.one_answer import CompleteOptions, complete
from server.state import package_version
from server.watch.logging_setup import log_form, set_up_logging
from server.watch.tracing import tracing_of_environment
from weights.errors import CheckpointError, FetchError, TemplateError
from weights.files.convert import convert_lightning
from weights.training.recipes import RECIPES

EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the process's exit code."""
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    try:
        settings = load_settings(given(parsed), config=parsed.config)
        if parsed.print_config:
            print(printable(settings), end="")
            return EXIT_OK
        code: int = parsed.command(settings, parsed)
    except SettingsError as error:
        print(f"estuary: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (CheckpointError, FetchError, TemplateError, EngineStopped, ValueError) as error:
        print(f"estuary: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_FAILED
    return code


def build_parser() -> argparse.ArgumentParser:
    """Every command with its flags."""
    parser = argparse.ArgumentParser(
        prog="estuary",
        description="Serve language models that decode autoregressively, by diffusion, or both.",
        epilog="A setting comes from its flag, else from the environment, else from the file "
        "of --config.",
    )
    parser.add_argument("--version", action="version", version=f"estuary {package_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_fetch(commands)
    _add_complete(commands)
    _add_bench(commands)
    _add_score(commands)
    _add_convert(commands)
    _add_train(commands)
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    *,
    groups: tuple[str, ...],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    if name != "complete":
        parser.add_argument(
            "model",
            nargs="?",
            default=argparse.SUPPRESS,
            metavar="MODEL",
            help="model folder, GGUF file or hub id; the embedded default model when left out",
        )
    parser.add_argument(
        "--model",
        dest="model",
        default=argparse.SUPPRESS,
        metavar="MODEL",
        help="the same as a flag",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the settings in force and exit"
    )
    add_settings(parser, groups=groups)
    return parser


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(
        commands,
        "serve",
        "Serve a model over HTTP.",
        groups=(MODEL, ENGINE, HTTP, ACCESS, API, PROCESS),
    )
    parser.set_defaults(command=_serve)


def _add_fetch(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(commands, "fetch", "Bring a model into the cache folder.", groups=(MODEL,))
    parser.set_defaults(command=_fetch)


def _add_complete(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(commands, "complete", "Answer one prompt.", groups=(MODEL, ENGINE))
    parser.add_argument("prompt", help="the prompt; - reads it from standard input")
    parser.add_argument(
        "--raw", action="store_true", help="continue the text as it is, without a chat template"
    )
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="default 256")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="X", help="default 0, the likeliest"
    )
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default 1")
    parser.add_argument(
        "--mode",
        choices=("auto", "ar", "diffusion", "speculative"),
        default="auto",
        help="how to decode; default auto",
    )
    parser.add_argument(
        "--sampling-seed", type=int, default=None, metavar="N", help="makes the answer repeatable"
    )
    parser.add_argument("--stats", action="store_true", help="print what it took to stderr")
    parser.set_defaults(command=_complete)


def _add_bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(
        commands, "bench", "Measure a model's engine under load.", groups=(MODEL, ENGINE)
    )
    for flag, default, text in (
        ("--num-requests", 32, "requests in all"),
        ("--concurrency", 8, "requests at a time"),
        ("--prompt-tokens", 64, "tokens of each prompt"),
        ("--answer-tokens", 64, "tokens of each answer"),
        ("--bench-seed", 0, "seed of the prompts"),
    ):
        parser.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{text}; default {default}"
        )
    parser.add_argument(
        "--mode",
        choices=("auto", "ar", "diffusion", "speculative"),
        default="auto",
        help="how to decode; default auto",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument(
        "--decisions",
        type=Path,
        metavar="FILE",
        help="draw what the balance chose over time, as an SVG picture",
    )
    parser.add_argument(
        "--step-time",
        action="store_true",
        help="print what a step costs here by its rows, as the balance believes, and do no more",
    )
    parser.set_defaults(command=_bench)


def _add_score(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _command(commands, "score", "Say how likely a text is, in nats.", groups=(MODEL,))
    parser.add_argument(
        "--text-file", type=Path, metavar="FILE", help="the text; standard input when left out"
    )
    parser.add_argument(
        "--orders",
        type=int,
        default=1,
        metavar="K",
        help="orders of the importance-weighted bound of any-order models; default 1",
    )
    parser.add_argument(
        "--alpha-0",
        type=float,
        metavar="X",
        help="share of an order that is random, 0 to 1; default the checkpoint's own",
    )
    parser.add_argument("--order-seed", type=int, default=0, metavar="N", help="default 0")
    parser.set_defaults(command=_score)


def _add_convert(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "Turn a Lightning checkpoint (Eso-LM) into a model folder; its averaged weights count."
    parser = commands.add_parser("convert", help=text, description=text)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="the .ckpt file")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made, must not exist")
    parser.add_argument(
        "--family",
        choices=("esolm", "mdlm", "bd3lm"),
        help="what it is, where the checkpoint's own configuration cannot be read",
    )
    parser.add_argument("--model-length", type=int, metavar="N", help="context in tokens, likewise")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="copy the tokenizer files of this folder"
    )
    parser.set_defaults(command=_convert, print_config=False, config=None)


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "Train a small model with one of the project's recipes."
    parser = commands.add_parser("train", help=text, description=text)
    recipes = parser.add_subparsers(title="recipes", required=True, metavar="RECIPE")
    for recipe in RECIPES:
        command = recipes.add_parser(recipe.name, help=recipe.summary, description=recipe.summary)
        recipe.add_flags(command)
        command.set_defaults(command=_train, recipe=recipe, print_config=False, config=None)


def _serve(settings: Settings, arguments: argparse.Namespace) -> int:
    del arguments
    set_up_logging(form=settings.log_format, level=settings.log_level)
    settings.all_api_keys()
    tracing = tracing_of_environment()
    bound = listen(settings)
    path = find_model(settings)
    text_side = read_text_side(path, settings)
    engine = EngineClient(
        engine_config(settings, path),
        log_level=settings.log_level.upper(),
        log_format=log_form(settings.log_format),
    )
    app = create_app(
        engine,
        text_side.tokenizer,
        text_side.chat_template,
        settings,
        model_name=model_name(settings, path),
        rule=text_side.rule,
        tracing=tracing,
    )

    def on_ready(address: str) -> None:
        print(_greeting(address, settings), flush=True)

    return run(app, engine, settings, bound=bound, on_ready=on_ready)


def _greeting(address: str, settings: Settings) -> str:
    key = " -H 'authorization: Bearer YOUR_KEY'" if settings.all_api_keys() else ""
    return (
        f"Estuary is ready at {address}\n"
        f"Try: curl {address}/v1/chat/completions{key} -H 'content-type: application/json' "
        '-d \'{"messages": [{"role": "user", "content": "Hello!"}], "stream": true}\''
    )


def _fetch(settings: Settings, arguments: argparse.Namespace) -> int:
    del arguments
    print(find_model(settings))
    return EXIT_OK


def _complete(settings: Settings, arguments: argparse.Namespace) -> int:
    set_up_logging(form="console", level="warning")
    path = find_model(settings)
    text_side = read_text_side(path, settings)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    options = CompleteOptions(
        prompt=prompt,
        is_raw=arguments.raw,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        mode=arguments.mode,
        seed=arguments.sampling_seed,
    )
    engine = EngineClient(engine_config(settings, path), log_level="WARNING")

    def write(text: str) -> None:
        print(text, end="", flush=True)

    usage = asyncio.run(complete(engine, text_side, settings, options, write=write))
    print()
    if arguments.stats:
        print(usage.model_dump_json(), file=sys.stderr)
    return EXIT_OK


def _bench(settings: Settings, arguments: argparse.Namespace) -> int:
    set_up_logging(form="console", level="warning")
    path = find_model(settings)
    if arguments.step_time:
        report = measure_step_time(engine_config(settings, path))
        print(step_time_table(report))
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
        return EXIT_OK
    load = BenchLoad(
        num_requests=arguments.num_requests,
        concurrency=arguments.concurrency,
        prompt_tokens=arguments.prompt_tokens,
        answer_tokens=arguments.answer_tokens,
        mode=arguments.mode,
        seed=arguments.bench_seed,
    )
    engine = EngineClient(engine_config(settings, path), log_level="WARNING")
    result = asyncio.run(bench(engine, load))
    print(result.table())
    if arguments.json is not None:
        arguments.json.write_text(result.json())
    if arguments.decisions is not None:
        arguments.decisions.write_text(draw_decisions(result.decisions))
    return EXIT_OK


def _score(settings: Settings, arguments: argparse.Namespace) -> int:
    set_up_logging(form="console", level="warning")
    scorer = Scorer.load(find_model(settings))
    source = arguments.text_file
    text = sys.stdin.read() if source is None else source.read_text(encoding="utf-8")
    found = scorer.score(
        text, num_orders=arguments.orders, alpha_0=arguments.alpha_0, seed=arguments.order_seed
    )
    print(
        f"{found.num_scored} tokens, {found.logprob:.4f} nats in all, "
        f"perplexity {found.perplexity:.4f}"
    )
    return EXIT_OK


def _convert(settings: Settings, arguments: argparse.Namespace) -> int:
    del settings
    convert_lightning(
        arguments.checkpoint,
        arguments.folder,
        family=arguments.family,
        model_length=arguments.model_length,
        tokenizer_folder=arguments.tokenizer,
    )
    print(arguments.folder)
    return EXIT_OK


def _train(settings: Settings, arguments: argparse.Namespace) -> int:
    set_up_logging(form=settings.log_format, level=settings.log_level)
    print(arguments.recipe.run(arguments))
    return EXIT_OK
