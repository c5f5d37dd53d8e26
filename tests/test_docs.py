"""What the pages say can be found: links, files, settings, figures."""

import re
from pathlib import Path

import pytest

from sampler.state.acceptance import RULES
from server.schema.common import DecodingBody
from server.settings import Settings
from tests.bench.report import PAGE, RESULTS, rendered
from weights import FAMILIES

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# Flags of the commands beside `serve`, and of all of them.
OTHER_FLAGS = {"--help", "--config", "--print-config", "--max-tokens", "--stats"}
OTHER_FLAGS |= {"--num-requests", "--concurrency"}


def names(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_files_that_are_named_exist(page):
    paths = re.findall(
        r"`((?:server|sampler|weights|kernels|tests|docs|deploy)/[\w/.]+)`", page.read_text()
    )
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_the_life_of_a_request_names_files_in_its_order():
    section = (ROOT / "README.md").read_text().split("## The life of a request")[1]
    files = re.findall(r"^\| `([\w/.]+)`", section, re.MULTILINE)
    assert files[0] == "server/routes/chat.py"
    assert len(files) > 9


def test_every_setting_is_on_the_page_about_serving():
    page = (ROOT / "docs" / "serve.md").read_text()
    flags = ["--" + name.replace("_", "-") for name in Settings.model_fields if name != "model"]
    assert [flag for flag in flags if flag not in page] == []


def test_flags_on_the_page_about_serving_exist():
    page = (ROOT / "docs" / "serve.md").read_text()
    known = {"--" + name.replace("_", "-") for name in Settings.model_fields} | OTHER_FLAGS
    named = {flag.replace("--no-", "--") for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", page)}
    assert named <= known


def test_every_decoding_field_rule_and_family_is_on_the_page_about_decoding():
    page = (ROOT / "docs" / "decoding.md").read_text()
    words = [*DecodingBody.model_fields, *RULES, *(family.name for family in FAMILIES)]
    assert [word for word in words if f"`{word}`" not in page] == []


def test_figures_are_those_of_the_committed_results():
    assert PAGE.read_text() == rendered(PAGE.read_text())


def test_every_committed_result_is_on_the_page():
    page = PAGE.read_text()
    results = [path.stem for path in RESULTS.glob("*.json")]
    assert [name for name in results if f"<!-- results: {name} -->" not in page] == []
