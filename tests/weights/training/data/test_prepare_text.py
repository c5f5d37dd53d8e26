import json

import pytest

from weights.training.data.prepare_text import SOURCES, is_prose, prepare
from weights.training.data.text import read_corpus

PROSE = (
    "This is a paragraph of plain English prose that is long enough to be kept, and it has all of "
    "the little words that such a paragraph has."
)


def page(*paragraphs):
    return (
        "<html><head><title>t</title></head><body><nav><p>" + PROSE + " in the menu</p></nav>"
        "<pre><p>"
        + PROSE
        + " in code</p></pre>"
        + "".join(f"<p>{paragraph}<a>\u00b6</a></p>" for paragraph in paragraphs)
        + "</body></html>"
    )


@pytest.fixture
def unpacked(tmp_path):
    django = tmp_path / "unpacked" / "usr" / "python-django-doc" / "html" / "topics"
    django.mkdir(parents=True)
    (django / "one.html").write_text(page(PROSE, "Too short.", PROSE + " And <em>more</em>."))
    (django / "two.html").write_text(page(PROSE))
    data = tmp_path / "unpacked" / "wheel" / "data"
    data.mkdir(parents=True)
    articles = {"Cats": {"extract": "Of cats: " + PROSE}, "Dogs": {"extract": "Of dogs: " + PROSE}}
    (data / "summaries_en-us.json").write_text(json.dumps(articles))
    return tmp_path / "unpacked"


def test_prose_of_every_package_that_is_there_is_kept_once(unpacked, tmp_path):
    sizes = prepare(unpacked, tmp_path / "out")
    assert (tmp_path / "out" / "django.txt").read_text() == f"{PROSE}\n{PROSE} And more.\n\f\n"
    wikipedia = (tmp_path / "out" / "wikipedia.txt").read_text()
    assert wikipedia == f"Of cats: {PROSE}\n\f\nOf dogs: {PROSE}\n\f\n"
    assert sizes == {"django": len(PROSE) * 2 + 14, "wikipedia": len(wikipedia)}


def test_the_notice_names_the_licence_of_what_was_found(unpacked, tmp_path):
    prepare(unpacked, tmp_path / "out")
    notice = (tmp_path / "out" / "NOTICE").read_text()
    assert "BSD-3-Clause" in notice
    assert "CC BY-SA 4.0" in notice
    assert "PostgreSQL" not in notice


def test_sources_can_be_chosen(unpacked, tmp_path):
    assert list(prepare(unpacked, tmp_path / "out", names=("django",))) == ["django"]


def test_a_folder_without_known_packages_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none of the packages"):
        prepare(tmp_path, tmp_path / "out")


def test_prepared_text_is_read_by_document(unpacked, tmp_path):
    prepare(unpacked, tmp_path / "out")
    (tmp_path / "out" / "django.txt").unlink()
    with pytest.raises(ValueError, match="2 documents"):
        read_corpus([tmp_path / "out"])


@pytest.mark.parametrize(
    "paragraph",
    [
        "short",
        "x = y + 1; " * 20,
        "Werkzeuge helfen beim Bauen grosser Programme, wenn niemand mehr weiterweiss und alle "
        "anderen schon gegangen sind.",
        "supercalifragilistic " * 8,
    ],
)
def test_what_is_not_running_english_is_left_out(paragraph):
    assert not is_prose(paragraph)


def test_every_source_says_its_package_and_licence():
    assert all(source.package and source.licence for source in SOURCES)
    assert len({source.name for source in SOURCES}) == len(SOURCES)
