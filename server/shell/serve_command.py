"""`estuary serve`: a model over HTTP."""

import argparse

from sampler import EngineClient
from server.app import create_app
from server.serve import leaving_on_sigterm, listen
from server.serve import run as run_server
from server.settings import ACCESS, API, ENGINE, HTTP, MODEL, PROCESS, Settings
from server.shell.flags import add_model, add_settings
from server.shell.model_source import engine_config, find_model, model_name, read_model_text
from server.watch.logging_setup import log_form, set_up_logging
from server.watch.tracing import tracing_of_environment


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every setting."""
    add_model(parser)
    add_settings(parser, groups=(MODEL, ENGINE, HTTP, ACCESS, API, PROCESS))


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Serve until told to stop and return the process's exit code."""
    del arguments
    with leaving_on_sigterm():
        return _serve_model(settings)


def _serve_model(settings: Settings) -> int:
    set_up_logging(form=settings.log_format, level=settings.log_level)
    settings.all_api_keys()
    tracing = tracing_of_environment()
    bound = listen(settings)
    path = find_model(settings)
    text = read_model_text(path, settings)
    engine = EngineClient(
        engine_config(settings, path),
        log_level=settings.log_level.upper(),
        log_format=log_form(settings.log_format),
    )
    app = create_app(
        engine,
        text,
        settings,
        model_name=model_name(settings, path),
        tracing=tracing,
    )

    def on_ready(address: str) -> None:
        print(_greeting(address, settings), flush=True)

    return run_server(app, engine, settings, bound=bound, on_ready=on_ready)


def _greeting(address: str, settings: Settings) -> str:
    key = " -H 'authorization: Bearer YOUR_KEY'" if settings.all_api_keys() else ""
    return (
        f"Estuary is ready at {address}\n"
        f"Try: curl {address}/v1/chat/completions{key} -H 'content-type: application/json' "
        '-d \'{"messages": [{"role": "user", "content": "Hello!"}], "stream": true}\''
    )
