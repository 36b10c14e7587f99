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
    """

    name: str
    about: str
    url: str
    reader: str
    terms: str
    sha256: str | None = None


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
        ),
        Source("steam", "reviews of games", f"{_STEAM}/steam_reviews.json.gz", "steam", _RESEARCH),
        Source("steam-items", "titles and genres of games", f"{_STEAM}/steam_games.json.gz", "steam", _RESEARCH),
    )
}  # fmt: skip


def download(
    name: str,
    out: str | os.PathLike[str],
    *,
    url: str | None = None,
    sha256: str | None = None,
    accept_unverified: bool = False,
    timeout: float = 30.0,
    max_bytes: int = 20 << 30,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Fetch a data set into a folder of its own; a zip is unpacked there.

    Nothing appears at ``out`` unless the file came whole and its SHA-256 is the expected one.

    Args:
        name: one of :data:`SOURCES`, or any name where ``url`` is given.
        out: the folder to make.
        url: another place to fetch it from.
        sha256: the digest to expect, 64 hexadecimal digits, where the registry knows none or another one is wanted.
        accept_unverified: go without a digest; the one found is noted in the file SOURCE.
        timeout: seconds that the server may be silent.
        max_bytes: of the file, and of what a zip unpacks to.
        progress: called with the bytes so far and the bytes expected (None where the server does not say).

    Returns:
        The folder.

    Raises:
        DataError: unknown name, no digest, refused, cut off, too large, or not what it should be.
        ArtefactError: ``out`` exists or cannot be written.
    """
    source = SOURCES.get(name)
    if source is None and url is None:
        raise DataError(f"There is no data set {name!r}; choose {', '.join(SOURCES)}, or give --url.")
    place = url or (source.url if source else "")
    if urlsplit(place).scheme not in ("http", "https"):
        raise DataError(f"{place} is no web address; it has to begin with http:// or https://.")
    expected = (sha256 or (source.sha256 if source else None) or "").lower()
    if expected and not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise DataError(f"{expected!r} is no SHA-256; it has 64 hexadecimal digits.")
    if not expected and not accept_unverified:
        raise DataError(
            f"No SHA-256 is known for {place}; give the one its owners publish with --sha256, "
            "or take the file as it comes with --accept-unverified."
        )
    file = re.sub(r"[^\w.-]", "_", PurePosixPath(urlsplit(place).path).name) or "data"
    with atomic_folder(out) as folder:
        target = folder / file
        found = _fetch(place, target, timeout, max_bytes, progress)
        if expected and found != expected:
            raise DataError(f"{place} has the SHA-256 {found}, expected {expected}; nothing was kept.")
        if zipfile.is_zipfile(target):
            _unpack(target, folder, max_bytes)
            target.unlink()
        (folder / "SOURCE").write_text(_note(place, found, bool(expected), source))
    return Path(out)


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


def _note(url: str, digest: str, checked: bool, source: Source | None) -> str:
    lines = [f"url: {url}", f"sha256: {digest} ({'as expected' if checked else 'as found, not checked'})"]
    if source is not None:
        lines += [f"terms: {source.terms}", f"format: {source.reader}"]
    return "\n".join(lines) + "\n"
