"""A real server on a real port: events, limits, readers that leave, and an end."""

from __future__ import annotations

import html
import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from forethought.errors import ArtefactError
from forethought.reasoners.progress.stream import CONNECTIONS, PAGE, ProgressServer
from forethought.reasoners.progress.trained import Trained
from forethought.reasoners.progress.watching import Watcher, plain
from forethought.reasoners.reasoner import Reasoner

QUESTION = "sum 3 9 4"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def watcher(reasoner: Reasoner, trained: Trained) -> Watcher:
    return Watcher(reasoner, trained, max_new_tokens=60, temperature=1.0, top_p=1.0, seed=1)


def serving(watcher: Watcher, **more: Any) -> Iterator[ProgressServer]:
    server = ProgressServer(watcher, **more)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.close()


@pytest.fixture
def server(watcher: Watcher) -> Iterator[ProgressServer]:
    yield from serving(watcher)


def at_length(watcher: Watcher) -> Watcher:
    """So hot that nearly every token is as likely as the others, with a seed that leaves time to break it off."""
    for seed in range(50):
        found = replace(watcher, max_new_tokens=800, temperature=100.0, seed=seed)
        *_, ending = found.stream(QUESTION)
        if ending.tokens > 250:
            return found
    raise AssertionError("every text is short")


def comes_true(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether something happens soon, on a machine that may be busy."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def ask(server: ProgressServer, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response, response.read().decode()


def events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "data" in fields:
            found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found


def test_events_are_what_the_watcher_sees(server: ProgressServer, watcher: Watcher) -> None:
    response, text = ask(server, f"/events?question={quote(QUESTION)}")
    assert response.status == 200
    assert response.getheader("Content-Type").startswith("text/event-stream")
    *tokens, (name, ending) = events(text)
    assert name == "done"
    assert {"token", "text", "fraction", "low", "high", "eta_tokens", "phase", "closed", "source"} <= set(tokens[0][1])
    *wanted, last = [plain(item) for item in watcher.stream(QUESTION)]
    for (_, found), event in zip(tokens, wanted, strict=True):
        assert found | {"seconds": 0} == event | {"seconds": 0}
    assert ending | {"seconds": 0} == last | {"seconds": 0}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/events", 400),
        ("/events?question=%20", 400),
        ("/events?question=a&question=b", 400),
        ("/events?" + "&".join(f"a{i}=1" for i in range(20)), 400),
        ("/events?question=" + "a" * 4001, 400),
        ("/events?question=" + "a" * 20_000, 414),
        ("/elsewhere", 404),
        ("/../../etc/passwd", 404),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(server: ProgressServer, path: str, status: int) -> None:
    response, text = ask(server, path)
    assert response.status == status
    assert json.loads(text)["error"].endswith(".")


def test_an_address_that_is_none_is_refused(server: ProgressServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=30) as client:
        client.sendall(b"GET http://[/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b" 400 " in client.recv(100)


def test_bodies_other_methods_and_other_names_are_refused(server: ProgressServer) -> None:
    assert ask(server, "/events?question=a", body=b"x" * 10)[0].status == 413
    assert ask(server, "/", "POST", b"x")[0].status == 501
    assert ask(server, "/", Host="evil.example:80")[0].status == 403


def test_pages_of_other_sites_are_refused(server: ProgressServer) -> None:
    question = f"/events?question={quote(QUESTION)}"
    for headers in (
        {"Sec_Fetch_Site": "cross-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1", "Sec_Fetch_Site": "same-site"},
    ):
        for path in ("/", question):
            response, text = ask(server, path, **headers)
            assert response.status == 403
            assert json.loads(text)["error"] == "This server answers its own page, and no page of another site."
    for name in ("127.0.0.1", "localhost"):
        host = f"{name}:{server.server_address[1]}"
        own = {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
        assert ask(server, "/", **own)[0].status == 200
    assert ask(server, "/", Sec_Fetch_Site="none")[0].status == 200


def test_idle_connections_take_a_few_threads_and_no_more(server: ProgressServer) -> None:
    before = threading.active_count()
    idle = [socket.create_connection(server.server_address, timeout=30) for _ in range(CONNECTIONS)]
    assert comes_true(lambda: threading.active_count() == before + CONNECTIONS)
    for _ in range(8):
        with socket.create_connection(server.server_address, timeout=30) as late:
            assert b" 503 " in late.recv(100)
    assert threading.active_count() == before + CONNECTIONS
    for each in idle:
        each.close()
    assert comes_true(lambda: threading.active_count() == before)
    assert ask(server, "/")[0].status == 200


def test_a_browser_that_asks_again_by_itself_gets_nothing(server: ProgressServer) -> None:
    response, text = ask(server, f"/events?question={quote(QUESTION)}", Last_Event_ID="3")
    assert (response.status, text) == (204, "")


def test_a_question_that_fills_the_context_is_told_as_an_event(server: ProgressServer) -> None:
    _, text = ask(server, "/events?question=" + "1" * 2000)
    [(name, found)] = events(text)
    assert name == "error"
    assert "context" in found["error"]


def test_questions_wait_and_too_many_are_refused(watcher: Watcher) -> None:
    for server in serving(watcher, waiting=1):
        with server.thinking:
            waiting = [socket.create_connection(server.server_address, timeout=30) for _ in range(2)]
            for each in waiting:
                each.sendall(b"GET /events?question=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b" 200 " in each.recv(64)
            assert ask(server, "/events?question=1")[0].status == 503
            assert ask(server, "/")[0].status == 200  # the page is there all the same
        for each in waiting:
            text = b""
            while part := each.recv(65536):
                text += part
            assert b"event: done" in text
            each.close()


def test_a_reader_that_leaves_ends_the_thought(watcher: Watcher) -> None:
    slow = at_length(watcher)
    passes, left = [0], threading.Event()

    def wait(*_: Any) -> None:  # the fifth token comes after the reader has left, however fast the model is
        passes[0] += 1
        if passes[0] == 5:
            left.wait(timeout=60)

    for server in serving(slow):
        reader = socket.create_connection(server.server_address, timeout=30)
        handle = slow.reasoner.model.register_forward_pre_hook(wait)
        reader.sendall(b"GET /events?question=sum+3+9+4 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        reader.recv(1000)
        assert comes_true(server.thinking.locked)
        reader.close()
        left.set()
        assert comes_true(lambda: not server.thinking.locked())  # noqa: B023  # called here and now
        handle.remove()
        assert passes[0] < 250  # it did not go on to its end
        assert not slow.reasoner.model.model.norm._forward_hooks


def test_the_end_of_the_server_ends_the_thought(watcher: Watcher) -> None:
    slow = at_length(watcher)
    for server in serving(slow):
        reader = socket.create_connection(server.server_address, timeout=30)
        reader.sendall(b"GET /events?question=sum+3+9+4 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        reader.recv(1000)
        server.close()
        text = b""
        while part := reader.recv(65536):
            text += part
        assert b'"why": "stopped"' in text
        reader.close()


def test_a_port_that_is_taken_is_told(server: ProgressServer, watcher: Watcher) -> None:
    with pytest.raises(ArtefactError, match="choose another with --sse"):
        ProgressServer(watcher, server.server_address[1])
    with pytest.raises(ArtefactError, match="70000"):
        ProgressServer(watcher, 70000)


def test_the_page_needs_nothing_from_elsewhere(server: ProgressServer) -> None:
    response, text = ask(server, "/")
    assert response.status == 200
    assert "default-src 'none'" in response.getheader("Content-Security-Policy")
    assert text == PAGE.read_text()
    assert not re.search(r"https?:|src=|@import|innerHTML", text)


@pytest.mark.browser
def test_the_page_shows_the_bar_in_a_browser(server: ProgressServer, watcher: Watcher, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; install the package chromium")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    run = subprocess.run(
        [CHROMIUM, *flags, "--virtual-time-budget=20000", "--dump-dom", f"{server.url}?question={quote(QUESTION)}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    *events, ending = watcher.stream(QUESTION)
    shown = dict(re.findall(r'id="(status|thought|answer)"[^>]*>([^<]*)<', run.stdout))
    assert shown["status"].startswith(f"{ending.thinking_tokens} thinking tokens"), run.stderr[-2000:]
    for part, phase in (("thought", "think"), ("answer", "answer")):
        assert html.unescape(shown[part]) == "".join(event.text for event in events if event.phase == phase)
    assert 'id="question" aria-label' in run.stdout
    assert re.search(r'id="fill" style="width: [1-9]', run.stdout)
