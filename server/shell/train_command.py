"""`estuary train`: small models by the project's recipes."""

import argparse

from server.serve import EXIT_OK
from server.settings import Settings
from server.watch.logging_setup import set_up_logging
from weights.training.recipes import RECIPES


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a command for each recipe, with the recipe's own flags."""
    recipes = parser.add_subparsers(title="recipes", required=True, metavar="RECIPE")
    for recipe in RECIPES:
        command = recipes.add_parser(recipe.name, help=recipe.summary, description=recipe.summary)
        recipe.add_flags(command)
        command.set_defaults(recipe=recipe, print_config=False, config=None)


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Train by the recipe that was named."""
    set_up_logging(form=settings.log_format, level=settings.log_level)
    print(arguments.recipe.run(arguments))
    return EXIT_OK
