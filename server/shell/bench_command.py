"""`estuary bench`: a model's engine under load."""

import argparse
import asyncio
import json
from dataclasses import asdict
from pathlib import Path

from sampler import EngineClient
from server.serve import EXIT_OK
from server.settings import ENGINE, MODEL, Settings
from server.shell.bench import BenchLoad, bench, measure_step_time, step_time_table
from server.shell.decision_chart import draw_decisions
from server.shell.flags import add_model, add_settings
from server.shell.model_source import engine_config, find_model
from server.watch.logging_setup import set_up_logging


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the load is like and where numbers and pictures go."""
    add_model(parser)
    add_settings(parser, groups=(MODEL, ENGINE))
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


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Measure and print the numbers."""
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
