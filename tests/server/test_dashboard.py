"""The dashboard in a headless Chromium: chat, stop, keys, live numbers, hostile text, palettes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from chromium import BINARY, Page, browser
from fake_backend import FakeBackend
from fastapi import FastAPI
from loopback import serving, tenants_of

from tenfold.core.messages import ClientStats
from tenfold.fleet.types import ChatPrompt, MemoryDecision, TextPrompt
from tenfold.server.app import create_app
from tenfold.server.settings import ServerSettings

pytestmark = pytest.mark.anyio
needs_chromium = pytest.mark.skipif(BINARY is None, reason="Chromium is not installed")
EVIL = "<img src=x onerror=\"document.title='broken'\"><script>alert(1)</script>"


async def test_files_and_headers(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy
    for name in ("app.js", "dom.js", "memory.js", "shares.js", "style.css", "icon.svg"):
        reply = await client.get(f"/ui/{name}")
        assert reply.status_code == 200
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "http://" not in reply.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in reply.text
        assert "innerHTML" not in reply.text


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with browser(tmp_path / "profile") as made:
        yield made
        assert made.problems == []


async def start(page: Page, address: str, *, width: int = 1300, scheme: str = "light") -> None:
    await page.open(f"{address}/", width=width, height=800, scheme=scheme)
    await page.until("!document.getElementById('model').disabled")


async def say(page: Page, text: str) -> None:
    await page.run("document.getElementById('prompt').focus()")
    await page.type(text)
    await page.press("Enter", 13)


ANSWERED = "!!document.querySelector('.turn.assistant:last-of-type .facts')"
LAST = "document.querySelector('.turn.assistant:last-of-type .text').textContent"


@needs_chromium
async def test_chat_shows_hostile_text_as_text(
    page: Page, address: str, backend: FakeBackend
) -> None:
    backend.tokens = ["See: ", EVIL, "\n```js\n", EVIL, "\n```"]
    await start(page, address)
    await say(page, EVIL)
    await page.until(ANSWERED)
    assert await page.run(LAST) == f"See: {EVIL}\n{EVIL}\n"
    assert await page.run("document.querySelectorAll('.log img, .log script').length") == 0
    assert await page.run("document.querySelectorAll('.log pre').length") == 1
    assert await page.run("document.title") == "Tenfold"
    assert "5 tokens" in await page.run("document.querySelector('.facts').textContent")
    backend.tokens = ["Fine"]
    await say(page, "And then?")
    await page.until(f"{LAST} === 'Fine'")
    prompt = backend.requests[1].prompt
    assert isinstance(prompt, ChatPrompt)
    assert [message["role"] for message in prompt.messages] == ["user", "assistant", "user"]


@needs_chromium
async def test_stop_frees_the_request(page: Page, address: str, backend: FakeBackend) -> None:
    backend.hold_after = 2
    await start(page, address)
    await say(page, "Hi")
    await page.until(f"{LAST} === 'Hello,'")
    await page.until("document.querySelectorAll('#queue tr td').length > 1")
    assert "running" in await page.run("document.getElementById('queue').textContent")
    assert await page.run("document.getElementById('send').textContent") == "Stop"
    await page.run("document.getElementById('send').click()")
    await backend.closed.wait()
    await page.until(ANSWERED)
    assert "stopped" in await page.run("document.querySelector('.facts').textContent")
    assert await page.run("document.getElementById('send').textContent") == "Send"


@needs_chromium
async def test_base_models_continue(page: Page, address: str, backend: FakeBackend) -> None:
    await start(page, address)
    models = "[...document.querySelectorAll('#model option')].map((each) => each.textContent)"
    assert await page.run(models) == ["tiny", "base (completion)"]
    assert await page.run("document.getElementById('mode').hidden")
    await page.run(
        "document.getElementById('model').value = 'base';"
        "document.getElementById('model').dispatchEvent(new Event('change'))"
    )
    assert "continues your text" in await page.run("document.getElementById('mode').textContent")
    await say(page, "Once ")
    await page.until(ANSWERED)
    assert await page.run(LAST) == "Once Hello, world!"
    assert backend.requests[0].prompt == TextPrompt("Once ")


@needs_chromium
async def test_live_numbers(page: Page, address: str, backend: FakeBackend) -> None:
    await start(page, address)
    await say(page, "Hi")
    await page.until(ANSWERED)
    await page.until("document.getElementById('clients').textContent.includes('anonymous')")
    memory = await page.run("document.getElementById('devices').textContent")
    assert "weights 40 pages (80 MiB), KV 10 (20 MiB)" in memory
    assert "of 800 MiB mapped" in memory
    assert await page.run("document.getElementById('state-text').textContent") == "Ready"
    await page.until("document.querySelector('#spark .line').getAttribute('d') !== ''")
    backend.is_ready = False
    await page.until("document.getElementById('state-text').textContent === 'Starting'")


SHARES = "[...document.querySelectorAll('#standing tr')].map((row) => row.textContent)"
LAYERS = (
    "[...document.querySelectorAll('#shares .layer')].map((layer) => layer.getAttribute('d') || '')"
)


@needs_chromium
async def test_shares_of_service(page: Page, address: str, backend: FakeBackend) -> None:
    def tell(*service: float) -> None:
        backend.clients = [
            ClientStats(EVIL if at == 2 else f"c{at}", each, fair=1 / 8, waiting=1, oldest_wait=2.5)
            for at, each in enumerate(service)
        ]
        backend.clients[0].credit, backend.clients[0].bound = -12345.0, 10.0
        backend.clients[0].drift, backend.clients[0].cached_tokens = -15.0, 3
        backend.clients[0].prompt_tokens = 4

    tell(*[1.0] * 8)
    await start(page, address)
    await page.until(f"{SHARES}.length === 8")
    assert await page.run(LAYERS) == [""] * 7, "nobody was served since"
    tell(41.0, 21.0, 11.0, 9.0, 7.0, 6.0, 3.0, 3.0)
    await page.until(f"{LAYERS}.every((layer) => layer)")
    rows = await page.run(SHARES)
    assert rows[0] == ("c075 % cached43 %due 13 %\u2212150 %credit \u221212,34512.5 s")
    assert rows[2].startswith(EVIL)
    assert await page.run("document.querySelector('#standing .beyond').textContent")
    tones = "[...document.querySelectorAll('#standing tr')].map((row) => row.className)"
    found = await page.run(tones)
    assert sorted(found[:6]) == [f"tone-{tone}" for tone in range(6)]
    assert found[6:] == ["tone-other"] * 2
    assert "c0 43 %" in await page.run("document.getElementById('shares').ariaLabel")
    assert await page.run("document.querySelectorAll('.live table img').length") == 0
    # Every layer begins where the one below ends; together they fill the chart.
    last = (
        f"{LAYERS}.map((layer) => layer.slice(1, -1).split('L'))"
        ".map((points) => [points[points.length / 2 - 1], points[points.length / 2]])"
    )
    edges = [[float(each.split()[1]) for each in pair] for pair in await page.run(last)]
    assert edges[0][1] == 120 and edges[-1][0] == 0
    assert [above for above, _ in edges[:-1]] == [below for _, below in edges[1:]]


MEMORY = "[...document.querySelectorAll('#memory-layers path')]"
MARKS = "[...document.querySelectorAll('#memory-marks span')]"


@needs_chromium
async def test_memory_by_model(page: Page, address: str, backend: FakeBackend) -> None:
    backend.log = [
        MemoryDecision("cpu:0", "awake", "tiny", EVIL, 30.0, 40, 0.125),
        MemoryDecision("cpu:0", "reserved", "", "base wants 12 pages", 60.0),
        MemoryDecision("cpu:0", "sleep", "gone", "idle for 45 s", 150.0, 40),
        MemoryDecision("cpu:0", "awake", "base", "long ago", 900.0),
    ]
    await backend.sleep("base", "cold", hold=True)
    await start(page, address)
    await page.until(f"{MEMORY}.length === 6")  # three models: weights, keys and values
    classes = await page.run(f"{MEMORY}.map((path) => path.getAttribute('class'))")
    assert classes[:3] == ["layer weights tone-0", "layer kv tone-0", "layer weights tone-1"]
    # 3 * 40 pages of weights and 10 + 20 + 30 of keys and values, below 400 pages of capacity.
    assert await page.run("document.getElementById('memory-now').textContent") == "360 MiB now"
    top = await page.run("document.getElementById('memory-top').textContent")
    assert top == "height 450 MiB, of 800 MiB"
    await page.until(f"{MEMORY}.every((path) => path.getAttribute('d').split('L').length > 3)")
    last = f"{MEMORY}.map((path) => path.getAttribute('d').slice(1, -1).split('L'))"
    last += ".map((points) => [points[points.length / 2 - 1], points[points.length / 2]])"
    edges = [[float(each.split()[1]) for each in pair] for pair in await page.run(last)]
    assert edges[0][1] == 120 and edges[-1][0] == pytest.approx(120 * 0.2, abs=0.1)
    assert [above for above, _ in edges[:-1]] == [below for _, below in edges[1:]]
    marks = await page.run(f"{MARKS}.map((mark) => [mark.textContent, mark.className])")
    assert marks == [["▲", "tone-0"], ["▼", "tone-other"]]
    left = await page.run(f"{MARKS}.map((mark) => parseFloat(mark.style.left))")
    assert left == pytest.approx([90, 50], abs=2)
    listed = "[...document.querySelectorAll('#decisions tr')].map((row) => row.textContent)"
    rows = await page.run(listed)
    assert len(rows) == 4 and rows[0].startswith(f"awake tiny{EVIL}")
    assert " · 40 pages · 125 ms" in rows[0] and "cpu:0" not in rows[0]
    assert await page.run("document.querySelectorAll('.live table img').length") == 0
    devices = await page.run("document.getElementById('devices').textContent")
    assert "tiny" in devices and "5 cached; sleeps in 32.5 s" in devices
    assert "baseasleepheld" in devices


@needs_chromium
async def test_errors_are_shown(page: Page, address: str, backend: FakeBackend) -> None:
    from tenfold.core.errors import WorkerLost

    backend.fail_later = WorkerLost("the worker died")
    backend.tokens = ["Hel"]
    await start(page, address)
    await say(page, "Hi")
    await page.until("!!document.querySelector('.turn .error')")
    assert await page.run("document.querySelector('.turn .error').textContent") == "the worker died"
    assert await page.run(LAST) == "Hel"


@needs_chromium
async def test_keys(tmp_path: Path, backend: FakeBackend) -> None:
    app = create_app(backend, ServerSettings(), tenants_of(ann="key-a"))
    async with serving(app) as address, browser(tmp_path / "profile") as page:
        await page.open(f"{address}/", width=1300, height=800)
        await page.until("document.getElementById('key').open")
        await page.run("document.getElementById('key-input').focus()")
        await page.type("key-a")
        await page.press("Enter", 13)
        await page.until("!document.getElementById('model').disabled")
        await say(page, "Hi")
        await page.until(ANSWERED)
        assert await page.run("sessionStorage.getItem('tenfold-api-key')") == "key-a"
    assert backend.requests[0].client == "ann"


# Text whose contrast with what lies under it is below WCAG's 4.5 (disabled controls are exempt).
CONTRAST = """
(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((value) => {
    const part = value / 255;
    return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  }).reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = parse(getComputedStyle(each).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
    if (!own || element.disabled || !element.checkVisibility()) continue;
    const colors = [parse(getComputedStyle(element).color), ground(element)];
    const pair = colors.map(luminance).sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) found.push(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
  }
  return found;
})()
"""
UNLABELLED = (
    "[...document.querySelectorAll('input, select, textarea')]"
    ".filter((each) => !each.labels.length).map((each) => each.id)"
)
NARROWER = "document.documentElement.scrollWidth <= innerWidth"

# Numbers that do not fit into their cell.
CUT = (
    "[...document.querySelectorAll('#standing .number, #standing .number small, "
    "#decisions .number, #decisions .number small')]"
    ".filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.textContent)"
)


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 380])
async def test_readable_everywhere(
    page: Page, app: FastAPI, backend: FakeBackend, scheme: str, width: int
) -> None:
    backend.tokens = ["word " * 30, "\n```\n" + "x" * 300 + "\n```", "y" * 300]
    backend.clients = [
        ClientStats(
            name, 9e9, 9e9, credit=-9e9, drift=drift, bound=1.0, waiting=99, oldest_wait=9.0
        )
        for name, drift in (("n" * 64, 0.5), ("beyond", 2.0))
    ]
    kinds = ["awake", "sleep", "migrate", "reserved"]
    for at in range(len(kinds)):
        backend.served[f"m{at}"] = replace(backend.served["tiny"], name=f"m{at}")
    models = [*backend.served] * 2
    backend.log = [
        MemoryDecision("cpu:0", kinds[at % 4], name, "w" * 90, 9.0 * at, 9999, 1.25)
        for at, name in enumerate(models)
    ]
    await backend.sleep("m1")
    async with serving(app) as address:
        await start(page, address, width=width, scheme=scheme)
        await say(page, "z" * 200)
        await page.until(ANSWERED)
        for view in ("chat", "live"):
            await page.run(f"document.querySelector('[data-show={view}]').click()")
            assert await page.run(CONTRAST) == []
            assert await page.run(NARROWER)
            assert await page.run(CUT) == []
        assert await page.run(UNLABELLED) == []
        dark = json.loads(await page.run("JSON.stringify(getComputedStyle(document.body).color)"))
        assert ("rgb(232" in dark) == (scheme == "dark")
        hide = "document.documentElement.style.setProperty('--soft', 'var(--surface)')"
        await page.run(hide)
        assert await page.run(CONTRAST), "the check itself must see bad contrast"


@needs_chromium
async def test_keyboard(page: Page, address: str) -> None:
    """Every control is reached by Tab, and Escape closes a panel."""
    await start(page, address)
    reached = set()
    for _ in range(20):
        await page.press("Tab", 9)
        reached.add(await page.run("document.activeElement.id || document.activeElement.tagName"))
    assert {"model", "prompt", "log", "SUMMARY"} <= reached
    await page.run("document.querySelector('.options summary').click()")
    await page.press("Escape", 27)
    assert not await page.run("document.querySelector('.options').open")


@needs_chromium
async def test_a_lost_server_is_said(page: Page, app: FastAPI) -> None:
    async with serving(app) as address:
        await start(page, address)
    await page.until("document.getElementById('state-text').textContent === 'Not reachable'")
    page.problems.clear()  # Chromium logs every failed fetch
