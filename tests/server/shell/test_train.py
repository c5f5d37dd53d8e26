"""`estuary train`: the recipes as commands."""

import pytest

from server.shell.cli import build_parser, main
from weights.training.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_is_a_command(recipe, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["train", recipe.name, "--help"])
    assert ended.value.code == 0
    assert recipe.summary.split()[0] in capsys.readouterr().out


def test_text_that_is_not_there_is_refused_in_one_sentence(tmp_path, capsys):
    missing = tmp_path / "nowhere"
    assert main(["train", "evo", "--text", str(missing), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"estuary: {missing} does not exist"


def test_a_command_without_a_recipe_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train"])
    assert ended.value.code == 2
    assert "RECIPE" in capsys.readouterr().err
