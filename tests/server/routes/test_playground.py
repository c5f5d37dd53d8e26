"""The playground page: served with a policy that names its own script, and used in a browser."""

import re
import shutil

import pytest

from server.routes.playground import content_policy
from tests.server.test_serve import WAITS_S, running_server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.anyio
async def test_the_page_asks_nobody_else(serve):
    async with serve() as served:
        response = await served.client.get("/")
    policy = response.headers["content-security-policy"]
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in policy
    assert policy == content_policy(response.text)
    assert policy.count("sha256-") == 2
    assert (
        re.findall(r"(?:src|href)=\"(?!data:)[^\"]*\"|https?://|@import|style=\"", response.text)
        == []
    )
    assert "innerHTML" not in response.text
    assert len(response.content) < 60_000


@pytest.mark.anyio
async def test_the_page_needs_no_key_and_can_be_left_out(serve):
    async with serve(api_key=["one"]) as served:
        opened = await served.client.get("/")
    async with serve(playground=False) as served:
        absent = await served.client.get("/")
    assert (opened.status_code, absent.status_code) == (200, 404)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def address():
    with running_server("--api-key", "one") as (_, address):
        yield address


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page = context.new_page()
    page.set_default_timeout(WAITS_S * 1000)
    asked = []
    faults = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: said.type == "error" and faults.append(said.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(address)
    page.fill("#key", "one")
    page.press("#key", "Tab")
    page.get_by_text("tiny · 4096 tokens · ar").wait_for()
    yield page
    assert [url for url in asked if not url.startswith(address)] == []
    # A refused request is said so in the console too.
    assert [fault for fault in faults if not fault.startswith("Failed to load")] == []
    context.close()


def _wait_for_text(page, selector, text):
    page.locator(selector, has_text=re.compile(f"^{text}$")).wait_for(state="attached")


def _shown(page):
    return page.text_content("#text"), page.text_content("#step-value")


needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]


class TestInABrowser:
    """On a phone's screen, in dark mode, by keyboard."""

    pytestmark = needs_browser

    def test_a_prompt_is_answered_by_keyboard(self, page):
        page.focus("#prompt")
        page.keyboard.press("Control+Enter")
        _wait_for_text(page, "#n-finish", "stop")
        assert page.inner_text("#text") == "hello"
        assert page.inner_text("#n-tokens") == "6"
        assert page.text_content("#spoken") == "hello"
        assert "/v1/chat/completions" in page.text_content("#curl")
        assert "YOUR_KEY" in page.text_content("#curl")

    def test_tokens_are_coloured_and_the_steps_can_be_replayed(self, page):
        page.fill("#prompt", "trace")
        page.check("input[value=completion]")
        page.click("#send")
        _wait_for_text(page, "#n-finish", "length")
        kinds = page.eval_on_selector_all("#text .token", "all => all.map(one => one.className)")
        page.locator("#step").fill("0")
        opened = page.eval_on_selector_all("#text .token.open", "all => all.length")
        page.locator("#step").fill("2")
        replayed = page.inner_text("#text")
        assert kinds == ["token diffusion", "token ar", "token verified"]
        assert opened == 2
        assert replayed == "ABC"

    def test_the_canvas_is_shown_while_it_develops(self, page):
        page.fill("#prompt", "canvas")
        page.check("input[value=completion]")
        page.click("#send")
        _wait_for_text(page, "#text", "a ▨c ▨")
        drafts = page.eval_on_selector_all("#text .draft", "all => all.map(one => one.textContent)")
        page.keyboard.press("Escape")
        _wait_for_text(page, "#n-finish", "stopped")
        assert drafts == ["a", "c"]

    def test_the_snapshots_of_an_answer_can_be_gone_through_by_keyboard(self, page):
        page.fill("#prompt", "develop")
        page.check("input[value=completion]")
        page.click("#send")
        _wait_for_text(page, "#n-finish", "length")
        page.focus("#step")
        page.keyboard.press("Home")
        seen = [_shown(page)]
        for _ in range(3):
            page.keyboard.press("ArrowRight")
            seen.append(_shown(page))
        assert seen == [
            (" ▨i ▨ ▨", "1 of 3 · 0 final, 1 draft, 3 open"),
            ("tid ▨", "2 of 3 · 2 final, 1 draft, 1 open"),
            ("tide", "3 of 3 · 4 final, 0 draft, 0 open"),
            ("tide", "3 of 3 · 4 final, 0 draft, 0 open"),
        ]

    def test_a_snapshot_tells_kind_state_uncertainty_and_noise(self, page):
        page.fill("#prompt", "develop")
        page.check("input[value=completion]")
        page.click("#send")
        _wait_for_text(page, "#n-finish", "length")
        page.locator("#step").fill("1")
        looks = page.eval_on_selector_all(
            "#text .token",
            "all => all.map(one => [one.className, one.style.getPropertyValue('--strength'), "
            "one.style.getPropertyValue('--ripe')])",
        )
        assert looks == [
            ["token ar", "0.290", ""],
            ["token diffusion", "0.460", ""],
            ["token verified draft", "0.528", ""],
            ["token open", "", "0.600"],
        ]

    def test_the_numbers_of_an_answer_are_told(self, page):
        page.fill("#prompt", "develop")
        page.check("input[value=completion]")
        page.click("#send")
        _wait_for_text(page, "#n-finish", "length")
        told = [page.inner_text(f"#n-{name}") for name in ("tokens", "passes", "per", "ar")]
        assert told == ["4", "3", "1.33", "50 %"]
        assert re.fullmatch(r"\d+ ms", page.inner_text("#n-first"))

    def test_an_answer_can_be_played_and_is_drawn_as_a_map(self, page):
        page.fill("#prompt", "develop")
        page.check("input[value=completion]")
        page.click("#send")
        _wait_for_text(page, "#n-finish", "length")
        page.click("#play")
        _wait_for_text(page, "#play", "Pause")
        _wait_for_text(page, "#play", "Play")
        size = page.evaluate("[document.querySelector('#map').width, "
                             "document.querySelector('#map').height]")  # fmt: skip
        cells = page.evaluate(
            "Array.from(document.querySelector('#map').getContext('2d')"
            ".getImageData(0, 0, 4, 3).data).filter((_, index) => index % 4 === 3)"
        )
        assert _shown(page)[0] == "tide"
        assert size == [4, 3]
        assert cells[8:] == [255] * 4
        assert sorted(set(cells[:8])) == [102, 128, 255]

    def test_escape_stops_an_answer(self, page):
        page.fill("#prompt", "wait")
        page.check("input[value=completion]")
        page.click("#send")
        _wait_for_text(page, "#text", "A")
        page.keyboard.press("Escape")
        _wait_for_text(page, "#n-finish", "stopped")
        assert page.is_enabled("#send")

    def test_an_error_is_shown(self, page):
        page.fill("#prompt", "")
        page.check("input[value=completion]")
        page.click("#send")
        _wait_for_text(page, "#problem", "the prompt is empty")

    def test_nothing_is_wider_than_a_phone(self, page):
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390
