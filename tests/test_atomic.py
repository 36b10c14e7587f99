"""Old or new, never half."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from forethought.atomic import atomic_file, atomic_folder
from forethought.errors import ArtefactError


class StoppedError(Exception):
    pass


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with atomic_folder(target) as scratch:
        (scratch / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert target.stat().st_mode & 0o777 == 0o777 & ~current_umask()
    for place in (target, tmp_path / "nowhere" / ".." / "deep" / "folder"):
        with (
            pytest.raises(ArtefactError, match="exists already; choose another folder or remove it"),
            atomic_folder(place),
        ):
            pass


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with atomic_folder(target) as scratch:
        (scratch / "a").write_text("old")

    def stop_half_way() -> None:
        with atomic_folder(target, replace=True) as scratch:
            (scratch / "a").write_text("new")
            raise StoppedError

    with pytest.raises(StoppedError):
        stop_half_way()
    assert (target / "a").read_text() == "old"
    with atomic_folder(target, replace=True) as scratch:
        (scratch / "b").write_text("new")
    assert [entry.name for entry in target.iterdir()] == ["b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "a").write_text("old")
    rename, calls = os.rename, []

    def refusing(source: Path, place: Path) -> None:
        calls.append(place)
        if len(calls) == 2:  # the old one is aside, the new one is to come
            raise OSError(16, "Device or resource busy")
        rename(source, place)

    monkeypatch.setattr("os.rename", refusing)
    with (
        pytest.raises(ArtefactError, match=r"Cannot write .*folder: Device or resource busy"),
        atomic_folder(target, replace=True) as scratch,
    ):
        (scratch / "b").write_text("new")
    assert len(calls) == 3
    assert (target / "a").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_place_that_cannot_be_moved_leaves_nothing_beside_it(
    tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    target = small_disk("64k")
    with pytest.raises(ArtefactError, match=r"Cannot write .*disk"), atomic_folder(target, replace=True):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["disk"]


def test_a_file_is_replaced_or_kept(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def stop_half_way() -> None:
        with atomic_file(target) as scratch:
            scratch.write_text("half")
            raise StoppedError

    with pytest.raises(StoppedError):
        stop_half_way()
    assert target.read_text() == "old"
    with atomic_file(target) as scratch:
        assert scratch.suffix == ".txt"
        scratch.write_text("new")
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_what_the_system_refuses_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for context in (atomic_file, atomic_folder):
        with (
            pytest.raises(ArtefactError, match=r"Cannot write .*: (Not a directory|File exists)"),
            context(tmp_path / "file" / "x"),
        ):
            pass


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
