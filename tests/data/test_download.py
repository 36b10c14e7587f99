"""Downloads against a server on this machine: only what came whole and is what it should be is kept."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from forethought.data.download import SOURCES, download
from forethought.data.formats import FORMATS
from forethought.data.interactions import Interactions
from forethought.errors import ArtefactError, DataError

LOG = b"1 5\n1 3\n1 4\n2 9\n2 8\n2 7\n" * 1000
DIGEST = hashlib.sha256(LOG).hexdigest()


def packed(files: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return memory.getvalue()


RATINGS = b"userId,movieId,rating,timestamp\n" + b"".join(b"1,%d,3.5,%d\n" % (i, i) for i in range(1, 200))
MOVIES = packed({"ml/ratings.csv": RATINGS, "ml/movies.csv": b"movieId,title,genres\n1,Alpha,Drama\n", "ml/": b""})


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        pages = {
            "/films.zip": MOVIES, "/broken.zip": MOVIES[:60] + b"\xff" * 40 + MOVIES[100:],
            "/twice.zip": packed({"a/x": b"1", "b/x": b"2"}),
            "/climbing.zip": packed({"../../out.txt": b"1", "x": b"2"}),
        }  # fmt: skip
        content = pages.get(self.path, LOG)
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/log.txt")
            self.end_headers()
            return
        if self.path == "/silent":
            time.sleep(3)
            return
        self.send_response(200)
        if self.path != "/unsaid":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path == "/cut" else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_a_file_that_is_what_it_should_be(server: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = download(
        "mine",
        tmp_path / "out",
        url=f"{server}/log.txt",
        sha256=DIGEST.upper(),
        progress=lambda *step: seen.append(step),
    )
    assert (folder / "log.txt").read_bytes() == LOG
    assert DIGEST in (folder / "SOURCE").read_text()
    assert "as expected" in (folder / "SOURCE").read_text()
    assert seen[-1] == (len(LOG), len(LOG))
    assert len(Interactions.read(folder / "log.txt")) == LOG.count(b"\n")
    with pytest.raises(ArtefactError, match="exists already"):
        download("mine", tmp_path / "out", url=f"{server}/log.txt", sha256=DIGEST)


def test_a_zip_is_unpacked_and_can_be_read(server: str, tmp_path: Path) -> None:
    folder = download("films", tmp_path / "out", url=f"{server}/films.zip", accept_unverified=True)
    assert sorted(file.name for file in folder.iterdir()) == ["SOURCE", "movies.csv", "ratings.csv"]
    assert "as found, not checked" in (folder / "SOURCE").read_text()
    dataset = Interactions.read(folder).prepare()
    assert dataset.catalog.title(1) == "Alpha"
    climbed = download("films", tmp_path / "climbed", url=f"{server}/climbing.zip", accept_unverified=True)
    assert sorted(file.name for file in climbed.iterdir()) == ["SOURCE", "out.txt", "x"]


@pytest.mark.parametrize("page", ["moved", "unsaid"])
def test_redirects_and_servers_that_say_no_length(page: str, server: str, tmp_path: Path) -> None:
    assert download("mine", tmp_path / "out", url=f"{server}/{page}", sha256=DIGEST).is_dir()


@pytest.mark.parametrize(
    ("page", "options", "sentence"),
    [
        ("log.txt", {"sha256": "0" * 64}, f"has the SHA-256 {DIGEST}, expected 0000"),
        ("log.txt", {"sha256": "abc"}, "'abc' is no SHA-256"),
        ("log.txt", {}, "No SHA-256 is known for .*--sha256.*--accept-unverified"),
        ("missing", {"sha256": DIGEST}, "answers 404"),
        ("cut", {"sha256": DIGEST}, r"was cut off after 12,000 of 24,000 bytes|could not be fetched"),
        ("silent", {"sha256": DIGEST, "timeout": 0.3}, "could not be fetched .*timed out"),
        ("log.txt", {"sha256": DIGEST, "max_bytes": 1000}, "is 24,000 bytes, over the limit of 1,000"),
        ("unsaid", {"sha256": DIGEST, "max_bytes": 1000}, "is over the limit of 1,000 bytes"),
        ("films.zip", {"accept_unverified": True, "max_bytes": len(MOVIES)}, "unpacks to more than"),
        ("broken.zip", {"accept_unverified": True}, "damaged zip"),
        ("twice.zip", {"accept_unverified": True}, "two files of one name"),
    ],
)
def test_what_is_wrong_leaves_nothing_behind(
    page: str, options: dict[str, object], sentence: str, server: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=sentence) as refusal:
        download("mine", tmp_path / "out", url=f"{server}/{page}", **options)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    closed = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    closed.server_close()
    with pytest.raises(DataError, match=r"could not be fetched .*Connection refused"):
        download("mine", tmp_path / "out", url=f"http://127.0.0.1:{closed.server_port}/x", sha256=DIGEST)


def test_addresses_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set 'mine'; choose movielens-1m-sasrec,"):
        download("mine", tmp_path / "out")
    (tmp_path / "secret").write_text("x")
    with pytest.raises(DataError, match="no web address"):
        download("mine", tmp_path / "out", url=f"file://{tmp_path}/secret", accept_unverified=True)


@pytest.mark.parametrize(
    "url",
    ["http://[bad", "http://", "http://host:port/x", "http://a b:1x/y", "http://exämple/x", "log.csv", "ftp://h/x"],
)
def test_addresses_that_are_malformed(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no web address; it has to look like https://host/file") as refusal:
        download("mine", tmp_path / "out", url=url, accept_unverified=True)
    assert str(refusal.value).startswith(url)


@pytest.mark.parametrize("timeout", [0, -3, float("nan"), float("inf"), 1e30])
def test_timeouts_that_are_none(timeout: float, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"The timeout is {re.escape(str(timeout))}; it has to be a number of seconds"):
        download("mine", tmp_path / "out", url="http://localhost/x", accept_unverified=True, timeout=timeout)


def test_a_file_on_disk_in_place_of_fetching(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "ml-1m.zip").write_bytes(MOVIES)
    digest = hashlib.sha256(MOVIES).hexdigest()
    seen: list[tuple[int, int | None]] = []
    for number, given in enumerate((shelf, shelf / "ml-1m.zip")):
        folder = download(
            "movielens-1m", tmp_path / str(number), path=given, sha256=digest, progress=lambda *step: seen.append(step)
        )
        assert sorted(file.name for file in folder.iterdir()) == ["SOURCE", "movies.csv", "ratings.csv"]
        note = (folder / "SOURCE").read_text()
        assert f"file: {shelf / 'ml-1m.zip'}\nurl: https://files.grouplens" in note
        assert f"sha256: {digest} (as expected)" in note
    assert seen == [(len(MOVIES), len(MOVIES))] * 2
    (shelf / "log.txt").write_bytes(LOG)
    folder = download("mine", tmp_path / "mine", path=shelf / "log.txt", accept_unverified=True)
    assert (folder / "log.txt").read_bytes() == LOG == (shelf / "log.txt").read_bytes()


@pytest.mark.parametrize(
    ("name", "path", "options", "sentence"),
    [
        ("movielens-1m", "log.txt", {}, r"No SHA-256 is known for .*log\.txt; give .*--sha256"),
        ("movielens-1m", "log.txt", {"sha256": "0" * 64}, rf"log\.txt has the SHA-256 {DIGEST}, expected 0000"),
        ("movielens-1m-sasrec", "log.txt", {}, r"log\.txt has the SHA-256 .*, expected b725f3"),  # the known one
        ("movielens-1m", ".", {"accept_unverified": True}, r"ml-1m\.zip does not exist; give the file itself"),
        ("mine", ".", {"accept_unverified": True}, "is a folder; give the file in it"),
        ("mine", "none.zip", {"accept_unverified": True}, r"none\.zip does not exist"),
        ("mine", "log.txt", {"sha256": DIGEST, "max_bytes": 1000}, "is 24,000 bytes, over the limit of 1,000"),
    ],
)
def test_a_file_on_disk_that_is_not_what_it_should_be(
    name: str, path: str, options: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "log.txt").write_bytes(LOG)
    with pytest.raises(DataError, match=sentence):
        download(name, tmp_path / "out", path=tmp_path / path, **options)  # type: ignore[arg-type]
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.txt"]


def test_the_registry() -> None:
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.reader in FORMATS
        assert source.url.startswith("https://")
        assert source.terms
        assert source.sha256 is None or len(source.sha256) == 64


@pytest.mark.data
def test_the_known_digest_is_that_of_the_file(shared_data: Path) -> None:
    import gzip

    content = gzip.decompress((shared_data / "movielens-1m" / "sequences-sasrec.txt.gz").read_bytes())
    assert hashlib.sha256(content).hexdigest() == SOURCES["movielens-1m-sasrec"].sha256
