"""The explorer page in a real browser: what a person sees and does, with mouse, keyboard and phone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gemirec.serving.app import App
from gemirec.serving.config import ServeConfig, ServePlan
from gemirec.serving.keys import Key, Keyring, digest
from gemirec.serving.run import build_app

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import expect, sync_playwright  # noqa: E402 - behind the question whether it is here

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
KEY = "0123456789abcdef-right"
Open = Callable[..., "Page"]
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")


class Live:
    """A server on a thread of this process."""

    def __init__(self, app: App) -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        listener.listen()
        self.thread.start()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return httpx.post(self.url + path, json=body).json()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)


@pytest.fixture(scope="module")
def live(dictionary_artifact: Path, artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """GemiRec, and ComiRec-SA to compare it with."""
    events = tmp_path_factory.mktemp("page") / "events.sqlite"
    plan = ServePlan(artifact=dictionary_artifact, compare=artifact, events=events)
    live = Live(build_app(plan, ServeConfig(), None))
    yield live
    live.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page_of(browser: Browser) -> Iterator[Open]:
    """Open a page; whatever a test does there, no other host is asked and no script fails."""
    contexts, asked, wrong = [], [], []

    def open_(url: str, *, width: int = 1280, height: int = 900, dark: bool = False, user: str = "") -> Page:
        scheme: Any = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        context.on("request", lambda request: asked.append((url, request.url)))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
        page.goto(url + (f"#user={user}" if user else ""))
        if user:
            expect(page.locator("#status")).to_contain_text(f"User {user}:")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert asked
    assert [other for url, other in asked if not other.startswith((url + "/", "data:"))] == []
    assert wrong == []


def ids(page: Page, where: str) -> list[str]:
    """The item ids of a list, in its order."""
    found: list[str] = page.locator(where).evaluate_all("rows => rows.map((row) => row.dataset.id)")
    return found


def answered(answer: Any) -> list[str]:
    return [str(item["item_id"]) for item in answer["items"]]


def test_a_user_is_searched_and_gets_the_cards_that_explain_tells(live: Live, page_of: Open) -> None:
    page = page_of(live.url)
    page.get_by_label("Artifacts").select_option("A")
    page.get_by_role("searchbox", name="User").fill("r-17")
    page.get_by_role("button", name="user-171").click()
    expect(page.get_by_role("status")).to_contain_text("User user-171: 20 items from 3 interests")
    told = live.post("/explain?variant=A", {"user_id": "user-171", "items": 10})["interests"]
    codes = live.post("/interests?variant=A", {"user_id": "user-171"})["interests"]
    cards = page.locator(".card")
    expect(cards).to_have_count(len(told))
    for number, (each, own) in enumerate(zip(told, codes, strict=True)):
        card = cards.nth(number)
        assert ids(page, f".card >> nth={number} >> .brings li") == [str(item) for item in each["items"]]
        expect(card.get_by_role("heading", level=4)).to_have_text(f"Interest {each['interest'] + 1}")
        path = (
            f"code {' › '.join(map(str, own['codes']))}" if own["codes"][0] >= 0 else "the user's own vector, no code"
        )
        expect(card.locator(".path")).to_have_text(path)
        expect(card.locator(".words li")).to_have_text([word["word"] for word in each["words"]])
        strongest = max(each["history"], key=lambda item: item["weight"])
        assert str(strongest["item_id"]) in ids(page, f".card >> nth={number} >> .behind li")
    marks = page.locator("canvas").get_attribute("data-marks")
    assert marks is not None
    listed, past, interests = map(int, marks.split())
    assert (listed, interests) == (20, len(told))
    assert past == len(set(httpx.get(f"{live.url}/users?query=user-171&count=1").json()["users"][0]["history"]))


def test_the_sliders_act_at_once(live: Live, page_of: Open) -> None:
    page = page_of(live.url, user="user-5")
    page.get_by_label("Artifacts").select_option("A")
    rows = page.locator(".list li")
    expect(rows).to_have_count(20)
    ask: dict[str, Any] = {"user_id": "user-5", "k": 20}
    assert ids(page, ".list li") == answered(live.post("/recommend?variant=A", ask))
    page.get_by_role("slider", name="Items in the list, k").fill("7")
    expect(rows).to_have_count(7)
    page.get_by_role("slider", name="Interests used, K").fill("1")
    expect(page.locator(".card.off")).to_have_count(2)
    ask |= {"k": 7, "max_interests": 1}
    assert ids(page, ".list li") == answered(live.post("/recommend?variant=A", ask))
    page.get_by_role("slider", name="Diversity, λ").fill("80")
    expect(page.locator(".list-says")).not_to_contain_text("λ 0.")
    page.get_by_role("slider", name="Diversity, λ").fill("100")
    shown = page.locator("#lambda-says")
    expect(page.locator(".list-says")).to_contain_text(f"λ {shown.text_content()}.")
    ask |= {"lambda": float(shown.text_content() or "nan")}
    diverse = answered(live.post("/recommend?variant=A", ask))
    assert ids(page, ".list li") == diverse
    assert diverse != answered(live.post("/recommend?variant=A", {**ask, "lambda": 0}))


def test_two_artifacts_stand_side_by_side(live: Live, page_of: Open) -> None:
    page = page_of(live.url, user="user-9")
    panels = page.locator(".panel")
    expect(panels.locator("> h2")).to_have_text(["A · gemirec", "B · comirec_sa"])
    lists = [answered(live.post(f"/recommend?variant={name}", {"user_id": "user-9"})) for name in "AB"]
    assert [ids(page, f".panel >> nth={number} >> .list li") for number in (0, 1)] == lists
    both = set(lists[0]) & set(lists[1])
    expect(page.get_by_role("status")).to_contain_text(f"{len(both)} item")
    assert set(ids(page, ".panel >> nth=0 >> .list li.both")) == both
    left, right = (panels.nth(number).bounding_box() for number in (0, 1))
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    expect(panels.nth(1).locator("button.path")).to_have_count(0)


def test_everything_can_be_done_from_the_keyboard(live: Live, page_of: Open) -> None:
    page = page_of(live.url)
    expect(page.locator("#found button")).to_have_count(8)
    focused = page.locator(":focus")
    for name in ("Skip to the interests", "Change to dark colours"):
        page.keyboard.press("Tab")
        expect(focused).to_have_accessible_name(name)
    page.keyboard.press("Tab")
    expect(focused).to_have_accessible_name("User")
    page.keyboard.type("user-24")
    expect(page.locator("#search-help")).to_contain_text("matches")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("User user-24")
    slider = page.get_by_role("slider", name="Items in the list, k")
    for _ in range(20):
        page.keyboard.press("Tab")
        if slider.evaluate("slider => slider === document.activeElement"):
            break
    page.keyboard.press("ArrowRight")
    expect(page.locator(".panel >> nth=0 >> .list li")).to_have_count(21)
    canvas = page.locator("canvas").first
    for _ in range(8):
        page.keyboard.press("Tab")
        if canvas.evaluate("canvas => canvas === document.activeElement"):
            break
    page.keyboard.press("n")
    expect(page.locator(".tip").first).to_contain_text("Interest 1")
    expect(page.locator(".said").first).to_contain_text("1 of ")
    page.keyboard.press("Escape")
    expect(page.locator(".tip").first).to_be_hidden()
    path = page.locator("button.path").first
    path.focus()
    codes = (path.locator("code").text_content() or "").split(" › ")
    page.keyboard.press("Enter")
    expect(focused.locator("code")).to_have_text(" › ".join(codes))
    inside = page.locator(f"details[data-path='{'.'.join(codes)}']")
    expect(inside).to_have_attribute("open", "")
    expect(inside.locator(".items li").first).to_be_visible()
    page.keyboard.press("Enter")  # a code opens and closes like any other disclosure
    expect(inside).not_to_have_attribute("open", "")


def test_the_map_moves_and_says_what_lies_under_the_pointer(live: Live, page_of: Open) -> None:
    page = page_of(live.url, user="user-3")
    page.get_by_label("Artifacts").select_option("A")
    expect(page.locator(".list li")).to_have_count(20)
    frame, canvas, tip = page.locator(".frame"), page.locator("canvas"), page.locator(".tip")
    page.locator(".list li").first.hover()
    expect(tip).to_contain_text(ids(page, ".list li")[0])
    before = tip.evaluate("tip => [tip.style.left, tip.style.top]")
    page.get_by_role("button", name="Zoom in").click()
    page.locator(".list li").first.hover()
    expect(tip).to_contain_text(ids(page, ".list li")[0])
    after = tip.evaluate("tip => [tip.style.left, tip.style.top]")
    assert before != after
    page.get_by_role("button", name="Whole map").click()
    page.locator(".list li").first.hover()
    assert tip.evaluate("tip => [tip.style.left, tip.style.top]") == before
    canvas.hover(position={"x": float(before[0][:-2]), "y": float(before[1][:-2])})
    expect(tip).to_be_visible()
    box = frame.bounding_box()
    assert box is not None
    page.mouse.down()
    page.mouse.move(box["x"] + float(before[0][:-2]) + 60, box["y"] + float(before[1][:-2]))
    page.mouse.up()
    page.locator(".list li").first.hover()
    moved = tip.evaluate("tip => [tip.style.left, tip.style.top]")
    assert float(moved[0][:-2]) - float(before[0][:-2]) == pytest.approx(60, abs=1.5)


def test_a_history_can_be_pasted(live: Live, page_of: Open) -> None:
    page = page_of(live.url)
    page.get_by_label("Artifacts").select_option("A")
    page.get_by_text("Or a history of your own").click()
    box = page.get_by_label("Item ids, oldest first")
    page.get_by_role("button", name="Show its interests").click()
    expect(page.locator("#fault")).to_contain_text("the history is empty")
    box.fill("item-1, item-7\nitem-20,, nothing-like-this")
    page.get_by_role("button", name="Show its interests").click()
    expect(page.locator(".summary")).to_contain_text("1 item of the history is unknown to it")
    asked = {"history": ["item-1", "item-7", "item-20", "nothing-like-this"]}
    assert ids(page, ".list li") == answered(live.post("/recommend?variant=A", asked))
    expect(page.locator("#fault")).to_be_hidden()
    assert ids(page, ".past li") == ["nothing-like-this", "item-20", "item-7", "item-1"]


def test_what_is_not_known_and_what_fails_is_said_in_words(live: Live, page_of: Open) -> None:
    page = page_of(live.url)
    page.get_by_label("Artifacts").select_option("A")
    page.get_by_role("searchbox", name="User").fill("stranger")
    expect(page.locator("#found")).to_contain_text("none of 400 users has an id like this")
    page.get_by_role("searchbox", name="User").press("Enter")
    for part in ("Nothing is known of user stranger", "Got: no stored history", "Fix: search for a part of the id"):
        expect(page.locator(".nothing")).to_contain_text(part)
    assert ids(page, ".list li") == answered(live.post("/recommend", {"user_id": "stranger"}))
    page.route("**/recommend?*", lambda route: route.abort())
    page.get_by_role("slider", name="Items in the list, k").fill("9")
    alarm = page.locator(".panel .fault")
    for part in ("the server does not answer", "Got: ", "Fix: see whether gemirec serve still runs"):
        expect(alarm).to_contain_text(part)
    page.unroute("**/recommend?*")
    said = '{"error": "the server has more to do than it can", "got": "300 wait", "fix": "ask again later"}'
    page.route("**/recommend?*", lambda route: route.fulfill(status=429, body=said))
    page.get_by_role("slider", name="Items in the list, k").fill("10")
    expect(alarm).to_contain_text("Got: 300 wait")
    page.unroute("**/recommend?*")
    page.get_by_role("slider", name="Items in the list, k").fill("11")
    expect(page.locator(".list li")).to_have_count(11)
    expect(alarm).to_be_hidden()


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_without_scrolling_sideways(live: Live, page_of: Open, dark: bool) -> None:
    page = page_of(live.url, width=360, height=740, dark=dark, user="user-12")
    page.locator("button.path").first.click()
    expect(page.locator(".tree details[open]").first).to_be_visible()
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths == [360, 360]
    page.set_viewport_size({"width": 800, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 800


def test_dark_and_light_differ_and_both_can_be_read(live: Live, page_of: Open) -> None:
    seen = {}
    for dark in (False, True):
        page = page_of(live.url, dark=dark, user="user-12")
        seen[dark] = colours(page)
        ground, inks = seen[dark]
        assert all(contrast(ground, ink) >= 4.5 for ink in inks)
        pixel = page.locator("canvas").first.evaluate(
            "canvas => { const at = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;"
            "return at.some((value, index) => index % 4 === 3 && value > 0) }"
        )
        assert pixel  # something is drawn
    assert seen[False] != seen[True]
    page.get_by_role("button", name="Change to light colours").click()
    assert colours(page) == seen[False]


def colours(page: Page) -> tuple[str, list[str]]:
    """The ground of a card, and the inks of its texts."""
    ground = page.locator(".card").first.evaluate("card => getComputedStyle(card).backgroundColor")
    inks = [
        page.locator(where).first.evaluate("part => getComputedStyle(part).color")
        for where in (".card h4", ".card h5", ".card small", ".list-says")
    ]
    return ground, inks


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, by WCAG 2."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        line = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * line[0] + 0.7152 * line[1] + 0.0722 * line[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_key_is_asked_for_and_kept_in_memory_only(artifact: Path, tmp_path: Path, page_of: Open) -> None:
    keys = Keyring([Key("page", digest(KEY), frozenset({"read"}), None)])
    plan = ServePlan(artifact=artifact, events=tmp_path / "events.sqlite")
    live = Live(build_app(plan, ServeConfig(), keys))
    try:
        page = page_of(live.url)
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("This server wants an API key")
        page.get_by_label("Key with the scope read").fill("not-the-key-at-all")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("no such API key")
        page.get_by_label("Key with the scope read").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#served")).to_contain_text("comirec_sa")
        page.get_by_role("button", name="user-").first.click()
        expect(page.locator(".card").first).to_be_visible()
        kept = page.evaluate("[document.cookie, localStorage.length, sessionStorage.length, location.href]")
        assert kept[:3] == ["", 0, 0]
        assert KEY not in kept[3]
        page.reload()
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#fault")).to_contain_text("this server answers with an API key only")
    finally:
        live.stop()


def test_the_headers_let_nothing_else_in(live: Live) -> None:
    for path in ("/", "/app.js", "/style.css"):
        policy = httpx.get(live.url + path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "http" not in policy
        assert "unsafe" not in policy
