"""Fetch a public data set from where its owners publish it, and check that it is what it should be."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from forethought.atomic import atomic_folder
from forethought.errors import DataError

BLOCK = 1 << 18
_RESEARCH = "for research; see the terms of its owners"


@dataclass(frozen=True)
class Source:
    """A public data set.

    Attributes:
        name: what ``forethought data download`` calls it.
        about: one line.
        url: where its owners publish it.
        reader: the format to prepare it with.
        terms: what its owners allow, in short.
        sha256: of the file, where it is known for certain; None means the user has to give it or to go without.
        items: it describes the items of a log, and is none itself.
    """

    name: str
    about: str
    url: str
    reader: str
    terms: str
    sha256: str | None = None
    items: bool = False


_MOVIES = "https://files.grouplens.org/datasets/movielens"
_AMAZON = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/reviews"
_AMAZON_2023 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
_STEAM = "https://cseweb.ucsd.edu/~wckang"
_MOVIELENS = "research; no commercial use without permission, no endorsement implied, cite Harper and Konstan 2015"

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "movielens-1m-sasrec", "MovieLens-1M as 'user item' lines, the file most papers on sequences use",
            "https://raw.githubusercontent.com/kang205/SASRec/master/data/ml-1m.txt", "user-item", _MOVIELENS,
            "b725f3acb3986fe3130bffd1e77a74d182a1f51799567a236dbd60270f95b0a2",
        ),
        Source("movielens-latest-small", "0.1 M ratings", f"{_MOVIES}/ml-latest-small.zip", "movielens", _MOVIELENS),
        Source("movielens-1m", "1 M ratings", f"{_MOVIES}/ml-1m.zip", "movielens-dat", _MOVIELENS),
        Source("movielens-10m", "10 M ratings", f"{_MOVIES}/ml-10m.zip", "movielens-dat", _MOVIELENS),
        Source("movielens-20m", "20 M ratings", f"{_MOVIES}/ml-20m.zip", "movielens", _MOVIELENS),
        Source("movielens-32m", "32 M ratings", f"{_MOVIES}/ml-32m.zip", "movielens", _MOVIELENS),
        Source("amazon-2014-beauty", "Beauty, 5-core", f"{_AMAZON}_Beauty_5.json.gz", "amazon-2014", _RESEARCH),
        Source("amazon-2014-toys", "Toys, 5-core", f"{_AMAZON}_Toys_and_Games_5.json.gz", "amazon-2014", _RESEARCH),
        Source(
            "amazon-2014-sports", "Sports, 5-core", f"{_AMAZON}_Sports_and_Outdoors_5.json.gz", "amazon-2014", _RESEARCH
        ),
        Source(
            "amazon-2023-video-games", "reviews of Video Games",
            f"{_AMAZON_2023}/review_categories/Video_Games.jsonl.gz", "amazon-2023", _RESEARCH,
        ),
        Source(
            "amazon-2023-video-games-items", "titles and categories of Video Games",
            f"{_AMAZON_2023}/meta_categories/meta_Video_Games.jsonl.gz", "amazon-2023", _RESEARCH,
            items=True,
        ),
        Source("steam", "reviews of games", f"{_STEAM}/steam_reviews.json.gz", "steam", _RESEARCH),
        Source(
            "steam-items", "titles and genres of games", f"{_STEAM}/steam_games.json.gz", "steam", _RESEARCH, items=True
        ),
    )
}  # fmt: skip


def download(
    name: str,
    out: str | os.PathLike[str],
    *,
    url: str | None = None,
    path: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    accept_unverified: bool = False,
    timeout: float = 30.0,
    max_bytes: int = 20 << 30,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Fetch a data set into a folder of its own; a zip is unpacked there.

    Nothing appears at ``out`` unless the file came whole and its SHA-256 is the expected one.

    Args:
        name: one of :data:`SOURCES`, or any name where ``url`` or ``path`` is given.
        out: the folder to make.
        url: another place to fetch it from.
        path: the file, fetched already, or the folder it lies in; it is taken in place of fetching, and stays.
        sha256: the digest to expect, 64 hexadecimal digits, where the registry knows none or another one is wanted.
        accept_unverified: go without a digest; the one found is noted in the file SOURCE.
        timeout: seconds that the server may be silent, up to a day.
        max_bytes: of the file, and of what a zip unpacks to.
        progress: called with the bytes so far and the bytes expected (None where the server does not say).

    Returns:
        The folder.

    Raises:
        DataError: unknown name, no digest, refused, cut off, too large, or not what it should be.
        ArtefactError: ``out`` exists or cannot be written.
    """
    source = SOURCES.get(name)
    if source is None and url is None and path is None:
        raise DataError(f"There is no data set {name!r}; choose {', '.join(SOURCES)}, or give --url or --path.")
    if not 0 < timeout <= 86_400:
        raise DataError(f"The timeout is {timeout}; it has to be a number of seconds above 0, up to 86400.")
    address = url or (source.url if source else "")
    given = None if path is None else _given(Path(path), source)
    place = address if given is None else str(given)
    if given is None:
        _check_address(address)
    expected = (sha256 or (source.sha256 if source else None) or "").lower()
    if expected and not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise DataError(f"{expected!r} is no SHA-256; it has 64 hexadecimal digits.")
    if not expected and not accept_unverified:
        raise DataError(
            f"No SHA-256 is known for {place}; give the one its owners publish with --sha256, "
            "or take the file as it comes with --accept-unverified."
        )
    file = re.sub(r"[^\w.-]", "_", _file_name(address) if given is None else given.name) or "data"
    with atomic_folder(out) as folder:
        target = folder / file
        if given is None:
            found = _fetch(address, target, timeout, max_bytes, progress)
        else:
            found = _copy(given, target, max_bytes, progress)
        if expected and found != expected:
            raise DataError(f"{place} has the SHA-256 {found}, expected {expected}; nothing was kept.")
        if zipfile.is_zipfile(target):
            _unpack(target, folder, max_bytes)
            target.unlink()
        (folder / "SOURCE").write_text(_note(given, address, found, bool(expected), source), encoding="utf-8")
    return Path(out)


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isascii()
        _ = parts.port  # looked at only when it is asked for
    except ValueError:
        whole = False
    if not whole:
        raise DataError(f"{url} is no web address; it has to look like https://host/file, in ASCII.")


def _file_name(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name


def _given(path: Path, source: Source | None) -> Path:
    """The file on disk that stands for the one of the registry."""
    if path.is_dir() and source is not None:
        path = path / _file_name(source.url)
    if not path.is_file():
        found = "is a folder; give the file in it" if path.is_dir() else "does not exist; give the file itself"
        raise DataError(f"{path} {found}.")
    return path


def _copy(file: Path, target: Path, max_bytes: int, progress: Callable[[int, int | None], None] | None) -> str:
    """Copy a file; its SHA-256."""
    total, digest, done = file.stat().st_size, hashlib.sha256(), 0
    if total > max_bytes:
        raise DataError(f"{file} is {total:,} bytes, over the limit of {max_bytes:,}; nothing was kept.")
    try:
        source = file.open("rb")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    with source, target.open("wb") as copy:
        while block := source.read(BLOCK):
            done += len(block)
            digest.update(block)
            copy.write(block)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()


def _fetch(
    url: str, target: Path, timeout: float, max_bytes: int, progress: Callable[[int, int | None], None] | None
) -> str:
    """Stream to a file; its SHA-256."""
    digest, done = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "forethought"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer, target.open("wb") as file:
            length = answer.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            if total is not None and total > max_bytes:
                raise DataError(f"{url} is {total:,} bytes, over the limit of {max_bytes:,}; nothing was kept.")
            while block := answer.read(BLOCK):
                done += len(block)
                if done > max_bytes:
                    raise DataError(f"{url} is over the limit of {max_bytes:,} bytes; nothing was kept.")
                digest.update(block)
                file.write(block)
                if progress is not None:
                    progress(done, total)
    except urllib.error.HTTPError as error:
        raise DataError(
            f"{url} answers {error.code} {error.reason}; check the address or give another with --url."
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{url} could not be fetched ({reason}) after {done:,} bytes; try again or give another --url."
        ) from error
    if total is not None and done != total:
        raise DataError(f"{url} was cut off after {done:,} of {total:,} bytes; try again.")
    return digest.hexdigest()


def _unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    """The files of a zip, without the folders around them."""
    try:
        with zipfile.ZipFile(archive) as members:
            files = [member for member in members.infolist() if not member.is_dir()]
            names = [PurePosixPath(member.filename).name for member in files]
            if len(set(names)) < len(names) or archive.name in names:
                raise DataError(f"{archive.name} holds two files of one name; unpack it by hand.")
            if sum(member.file_size for member in files) > max_bytes:
                raise DataError(f"{archive.name} unpacks to more than {max_bytes:,} bytes; nothing was kept.")
            for member, name in zip(files, names, strict=True):
                with members.open(member) as packed, (folder / name).open("wb") as file:
                    shutil.copyfileobj(packed, file, BLOCK)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise DataError(f"{archive.name} is a damaged zip file ({error}); nothing was kept.") from error


def _note(given: Path | None, url: str, digest: str, checked: bool, source: Source | None) -> str:
    lines = [] if given is None else [f"file: {given.resolve()}"]
    lines += [f"url: {url}"] if url else []
    lines += [f"sha256: {digest} ({'as expected' if checked else 'as found, not checked'})"]
    if source is not None:
        lines += [f"terms: {source.terms}", f"format: {source.reader}"]
    return "\n".join(lines) + "\n"
