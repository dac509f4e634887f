"""The Chat page in a browser, with models that really answer."""

import re
import threading
import time

import pytest

from app.pages import chat
from core.jobs.service import register_web
from core.studio import Studio
from tests.support.talkers import spec, talker
from tests.support.tiny import tiny_base

DONE = "[...document.querySelectorAll('.chat article footer')].every(f => !f.classList.contains('growing'))"
LONG = 6000  # tokens: no answer on the tiny base ends by itself before it is stopped


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """run-1 and run-2 with gates on the tiny base, run-3 on a base that is gone."""
    root = tmp_path_factory.mktemp("chat") / "home"
    base = tiny_base(tmp_path_factory.mktemp("base"), positions=8192)
    studio = Studio(root)
    talker(studio, spec(base), on=base, name="token gates <b>")
    talker(studio, spec(base, "sequence"), on=base, seed=1, name="sequence gates")
    talker(studio, spec(tmp_path_factory.mktemp("gone")), on=base, seed=2, name="elsewhere")
    with register_web(studio.home):  # as the web process does: the worker stays while this lives
        asking = studio.chats.ask(["run-1", "run-2"], "Wake up.", max_new_tokens=1)
        assert [answer.ended for answer in asking]
        studio.chats.delete(asking.conversation)
        yield root
    studio.chats.inference.stop()
    studio.close()


@pytest.fixture(scope="module")
def address(serve_long, home):
    return serve_long(home, chat=chat) + "/chat"


def opened(page, address, panes):
    page.goto(address)
    page.wait_for_function("window.tesseraChat")
    page.wait_for_selector(f"#chat-pane-{panes} header")


def ask(page, text):
    page.fill("#chat-box textarea", text)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#chat-pane-1 article:has-text('{text[:20]}')")


def settle(page):
    page.wait_for_function(f"document.querySelector('.chat article') && {DONE}", timeout=120_000)
    page.wait_for_selector("#chat-send:enabled")


def longest(page, tokens, temperature="2"):
    page.click("text=Sampling and system message")
    page.get_by_label("Longest answer, tokens").fill(str(tokens))
    page.get_by_label("number input for Temperature").fill(temperature)
    page.keyboard.press("Tab")


def words(page, number):
    return page.inner_text(f"#chat-pane-{number} article:last-of-type .said")


def computing(studio):
    return sum(worker["active"] for worker in studio.chats.inference.workers())


def test_a_new_studio_says_what_to_do(page, serve, tmp_path):
    page.goto(serve(tmp_path / "empty", chat=chat) + "/chat")
    page.wait_for_selector(".empty a[href='/experiment']")
    assert page.inner_text("#chat-pane-1 header").startswith("base")
    page.wait_for_selector("text=No model is in memory")


def test_models_answer_side_by_side_and_the_link_brings_it_back(page, address):
    opened(page, address + "?runs=run-1,run-2,base", 3)
    assert not page.is_visible("#chat-pane-4")
    longest(page, 12)
    ask(page, "Say <img src=x onerror=alert(1)> red.")
    settle(page)
    answers = [words(page, number) for number in (1, 2, 3)]
    assert len(set(answers)) == 3
    assert re.search(r"\d+ tokens? · [\d.]+ tokens/s", page.inner_text("#chat-pane-1 footer"))
    assert page.locator(".chat img").count() == 0 and "onerror" in page.inner_text("#chat-pane-1 .asked")
    link = page.get_attribute("#chat-pane-1 footer a", "href")
    assert re.fullmatch(r"/routing\?run=run-1&turn=\d+", link)
    assert page.locator("#chat-pane-3 footer a").count() == 0
    page.wait_for_url(re.compile(r"runs=run-1%2Crun-2%2Cbase&conversation=\d+"))
    page.picture("chat-answers")
    opened(page, page.url, 3)
    assert [words(page, number) for number in (1, 2, 3)] == answers
    assert page.locator(".chatline.on").count() == 1
    ask(page, "And blue?")
    settle(page)
    assert page.locator("#chat-pane-2 article").count() == 2
    assert page.inner_text("#chat-pane-2 article:last-of-type footer").startswith("12 tokens"), "settings came back too"


def test_a_question_sent_before_the_page_is_filled_waits_for_its_models(page, address, monkeypatch):
    filled, sent = chat.start, threading.Event()
    monkeypatch.setattr(chat, "start", lambda *given: sent.wait(60) and filled(*given))
    page.goto(address + "?runs=run-2,base")
    page.wait_for_selector("#chat-box textarea", state="attached")
    page.evaluate("document.documentElement.classList.remove('opening')")  # as a page whose answer is late is shown
    page.fill("#chat-box textarea", "At once.")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert not page.is_visible("#chat-pane-1")
    sent.set()
    page.wait_for_selector("#chat-pane-1 article:has-text('At once.')")
    page.wait_for_selector("#chat-pane-2 article:has-text('At once.')")
    assert page.inner_text("#chat-pane-1 header").startswith("run-2")
    assert page.locator("#chat-pane-1 article").count() == 1, "asked once"


def test_one_answer_is_stopped_and_the_others_go_on(page, address, home):
    opened(page, address + "?runs=run-1,base", 2)
    longest(page, LONG, "0")
    ask(page, "Tell me everything.")
    page.wait_for_function("document.querySelector('#chat-pane-1 .said').textContent.length > 5", timeout=120_000)
    page.click("#chat-pane-1 button.stop")
    page.wait_for_selector("#chat-pane-1 footer.stopped")
    assert "stopped" in page.inner_text("#chat-pane-1 [role=status]"), "told to those who do not see it"
    before = page.inner_text("#chat-pane-2 footer")
    page.wait_for_function("before => document.querySelector('#chat-pane-2 footer').innerText !== before", arg=before)
    page.wait_for_selector("text=1 answering now")
    page.picture("chat-one-stopped")
    page.focus("#chat-box textarea")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "chat-stop", "the next stop of the keyboard"
    page.keyboard.press("Enter")
    page.wait_for_selector("#chat-pane-2 footer.stopped")
    studio = Studio(home)
    (worker,) = studio.chats.inference.workers()
    time.sleep(0.5)
    (later,) = studio.chats.inference.workers()
    assert worker["computed"] == later["computed"] and later["active"] == 0
    studio.close()
    settle(page)
    assert page.is_disabled("#chat-stop")


def test_leaving_the_page_stops_the_answer_and_keeps_its_beginning(page, address, home):
    opened(page, address + "?runs=run-1,base", 2)
    longest(page, LONG, "0")
    ask(page, "Go on and on.")
    page.wait_for_function("document.querySelector('#chat-pane-1 .said').textContent.length > 5", timeout=120_000)
    page.wait_for_url(re.compile("conversation="))
    link = page.url
    page.goto("about:blank")
    studio = Studio(home)
    deadline = time.monotonic() + 60
    while computing(studio) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not computing(studio)
    studio.close()
    page.goto(link)
    page.wait_for_selector("#chat-pane-1 footer.stopped")


def test_a_model_that_fails_says_why_and_the_other_answers(page, address, home):
    config = home / "runs" / "run-2" / "adapter" / "adapter_config.json"
    hidden = config.rename(config.with_name("hidden"))
    try:
        opened(page, address + "?runs=run-2,base", 2)
        longest(page, 5)
        ask(page, "Say red.")
        settle(page)
        assert "There is no trained adapter" in page.inner_text("#chat-pane-1 .problem")
        assert page.locator("#chat-pane-2 footer.length, #chat-pane-2 footer.end").count() == 1
        page.picture("chat-failure")
    finally:
        hidden.rename(config)


def test_models_of_two_bases_are_refused_with_a_reason(page, address):
    opened(page, address + "?runs=run-1,run-3", 2)
    page.wait_for_selector(".problem:has-text('one base at a time')")
    page.fill("#chat-box textarea", "Say red.")
    page.click("#chat-send")
    page.wait_for_selector(".problem:has-text('one base at a time')")
    assert page.locator("#chat-pane-1 article").count() == 0
    assert page.input_value("#chat-box textarea") == "Say red."


def test_a_conversation_is_exported_and_deleted(page, address):
    opened(page, address + "?runs=run-1", 1)
    longest(page, 4)
    ask(page, "Keep this.")
    settle(page)
    with page.expect_download() as download:
        page.click("text=Export as JSON lines")
    text = download.value.path().read_text("utf-8")
    assert '"Keep this."' in text and download.value.suggested_filename.endswith(".jsonl")
    page.click("text=Delete…")
    page.click("text=Yes, delete")
    page.wait_for_function("!document.querySelector('.chatline.on')")
    page.wait_for_function("!location.search.includes('conversation')")
    assert page.locator("#chat-pane-1 article").count() == 0


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_narrow_and_dark_nothing_is_cut_off(page, address, mode):
    page.emulate_media(color_scheme=mode)
    page.set_viewport_size({"width": 820, "height": 1100})
    opened(page, address + "?runs=run-1,run-2,base", 3)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.picture(f"chat-820-{mode}")
