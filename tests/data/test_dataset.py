"""A prepared folder is read back as it was written, or refused with a sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forethought.data.dataset import COUNTS, Dataset
from forethought.data.interactions import Interactions
from forethought.errors import ArtefactError, DataError
from tests.data.logs import SEQUENCES, sequences_of, write_csv


@pytest.fixture
def prepared(tmp_path: Path) -> Dataset:
    return Interactions.read(write_csv(tmp_path / "log.csv")).prepare(tmp_path / "out")


def folder_of(dataset: Dataset) -> Path:
    assert dataset.path is not None
    return dataset.path


def test_it_comes_back_memory_mapped(prepared: Dataset) -> None:
    again = Dataset.open(folder_of(prepared), verify=True)
    assert isinstance(again.sequences.items, np.memmap)
    assert sequences_of(again) == SEQUENCES
    assert again.manifest == prepared.manifest
    assert again.item_counts().tolist() == [0, 3, 2, 1, 0, 0]
    assert again.user_index("u4") == 3
    with pytest.raises(DataError, match="User 'u9' is not in"):
        again.user_index("u9")
    again.sequences.items[0] = 5  # copied on writing: the file stays
    Dataset.open(folder_of(prepared), verify=True)


def test_training_items_leave_held_out_users_aside(prepared: Dataset) -> None:
    sequences = prepared.sequences
    expected = [
        sequences.items[start:stop] for start, stop in zip(sequences.offsets, prepared.train_stop, strict=False)
    ]
    assert prepared.train_items().tolist() == np.concatenate(expected).tolist()
    held_out = Dataset(
        sequences,
        np.array([0, 4, 9, 9]),
        np.array([3]),
        np.array([7]),
        prepared.catalog,
        prepared.users,
        prepared.manifest,
    )
    assert held_out.train_items().tolist() == [sequences.items[8]]


def test_targets(prepared: Dataset) -> None:
    targets = prepared.targets("test")
    assert prepared.catalog.decode(targets.items) == ["d", "e", "e"]
    assert prepared.users.take(pa.array(targets.users)).to_pylist() == ["u1", "u2", "u4"]
    assert targets.lengths.tolist() == [3, 3, 2]
    with pytest.raises(DataError, match="no split 'train'"):
        prepared.targets("train")  # type: ignore[arg-type]


def test_the_fingerprint_sees_every_part(prepared: Dataset, tmp_path: Path) -> None:
    seen = {prepared.fingerprint}
    log = tmp_path / "log.csv"
    text = log.read_text()
    for number, (old, new) in enumerate([("u3", "u5"), (",e,", ",f,"), (",500", ",501"), ("u2,d,180", "u2,d,410")]):
        log.write_text(text.replace(old, new))
        seen.add(Interactions.read(log).prepare(tmp_path / f"out{number}").fingerprint)
    log.write_text(text)
    seen.add(Interactions.read(log).prepare(split="user-split").fingerprint)
    assert len(seen) == 6
    assert Interactions.read(log).prepare().fingerprint in seen


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path, old: bytes, new: bytes) -> None:
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new))


def broken_ids(folder: Path) -> None:
    items = pq.read_table(folder / "items.parquet")
    ids = pa.array([b"\xff", b"b", b"c", b"d", b"e"])
    pq.write_table(items.set_column(0, "id", ids.view(pa.string())), folder / "items.parquet")


def change(**entries: object) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, **entries}))

    return rewrite


def recount(**counts: object) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        change(counts={**json.loads((folder / "manifest.json").read_text())["counts"], **counts})(folder)

    return rewrite


def drop(folder: Path, key: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no prepared data folder"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "no prepared data folder"),
    "half a manifest": (lambda folder: cut(folder / "manifest.json"), "damaged"),
    "a manifest that is a list": (lambda folder: (folder / "manifest.json").write_text("[]"), "damaged"),
    "bytes for a manifest": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"), "damaged"),
    "another format": (change(format="else"), "is else version 1; this forethought reads"),
    "a later version": (change(version=99), "version 99; this forethought reads"),
    "a protocol of its own": (change(protocol="mine"), "has the protocol 'mine'; this forethought knows leave-one-out"),
    "no counts": (lambda folder: drop(folder, "counts"), r"damaged \(KeyError: 'counts'\)"),
    "counts of nothing": (change(counts={"users": 4}), r"damaged \(KeyError: 'items'\)"),
    "counts that are none": (change(counts=dict.fromkeys(COUNTS, "many")), "damaged"),
    "a count as text": (recount(users="4"), "its counts are no whole numbers"),
    "a count of nothing": (recount(events=0), "its manifest contradicts its arrays"),
    "another count": (recount(test=2), "its manifest contradicts its arrays"),
    "a list of what was dropped": (change(dropped=[1]), "damaged"),
    "text for what was dropped": (change(dropped={"a": "b"}), "its counts are no whole numbers"),
    "another protocol": (change(protocol="user-split"), "its manifest contradicts its arrays"),
    "rules that are none": (change(rules=["split"]), "damaged"),
    "a deep manifest": (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "damaged"),
    "no protocol": (lambda folder: drop(folder, "protocol"), r"damaged \(KeyError: 'protocol'\)"),
    "no arrays named": (change(arrays={}), "damaged"),
    "a path for an array": (change(arrays={"../../x": {"dtype": "int64", "length": 1}}), "damaged"),
    "no array": (lambda folder: (folder / "items.npy").unlink(), "damaged"),
    "half an array": (lambda folder: cut(folder / "items.npy"), "damaged"),
    "an empty array file": (lambda folder: (folder / "times.npy").write_bytes(b""), "damaged"),
    "another array": (lambda folder: np.save(folder / "items.npy", np.arange(3)), "the manifest says int32"),
    "objects": (
        lambda folder: np.save(folder / "items.npy", np.array([{}], dtype=object), allow_pickle=True), "damaged"
    ),
    "an item that is not there": (
        lambda folder: np.save(folder / "items.npy", np.full(12, 6, dtype=np.int32)), "contradict each other"
    ),
    "offsets that fall": (
        lambda folder: np.save(folder / "offsets.npy", np.array([0, 9, 8, 9, 12])), "contradict each other"
    ),
    "a target beyond the end": (
        lambda folder: np.save(folder / "test_positions.npy", np.array([1, 2, 99])), "contradict each other"
    ),
    "half a catalogue": (lambda folder: cut(folder / "items.parquet"), "items.parquet cannot be read"),
    "no users": (lambda folder: (folder / "users.parquet").unlink(), "damaged"),
    "half the users": (lambda folder: cut(folder / "users.parquet"), "damaged"),
    "a header with a bracket that is not closed": (
        lambda folder: flip(folder / "times.npy", b"(12,)", b"(12,("), r"damaged \((TokenError|SyntaxError)"
    ),
    "ids that are no text": (broken_ids, r"damaged \(UnicodeDecodeError"),
    "a catalogue without ids": (
        lambda folder: pq.write_table(pa.table({"x": [1]}), folder / "items.parquet"), "needs a column 'id'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused_with_a_sentence(what: str, prepared: Dataset) -> None:
    harm, sentence = DAMAGE[what]
    harm(folder_of(prepared))
    with pytest.raises(DataError, match=sentence) as refusal:
        Dataset.open(folder_of(prepared), verify=True)
    assert "\n" not in str(refusal.value)


def test_a_quiet_change_is_found_by_verifying(prepared: Dataset) -> None:
    file = folder_of(prepared) / "items.npy"
    items = np.load(file)
    items[0] = items[0] % 5 + 1
    np.save(file, items)
    Dataset.open(folder_of(prepared))
    with pytest.raises(DataError, match="does not match its fingerprint"):
        Dataset.open(folder_of(prepared), verify=True)


def test_an_existing_folder_stays_unless_replaced(prepared: Dataset, tmp_path: Path) -> None:
    interactions = Interactions.read(tmp_path / "log.csv")
    with pytest.raises(ArtefactError, match="exists already"):
        interactions.prepare(folder_of(prepared))
    replaced = interactions.prepare(folder_of(prepared), replace=True, split="user-split", seed=1)
    assert Dataset.open(folder_of(prepared)).fingerprint == replaced.fingerprint != prepared.fingerprint
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.csv", "out"]


@pytest.mark.parametrize("content", [None, "{}", '{"format": "forethought.run"}', "[", "[]"])
def test_only_an_empty_folder_or_a_prepared_one_is_replaced(
    content: str | None, prepared: Dataset, tmp_path: Path
) -> None:
    foreign = tmp_path / "papers"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    if content is not None:
        (foreign / "manifest.json").write_text(content)
    before = sorted(path.name for path in foreign.iterdir())
    for place in (foreign, tmp_path / "log.csv", tmp_path / "nowhere" / ".." / "log.csv"):
        with pytest.raises(ArtefactError, match="neither an empty folder nor a prepared data folder") as refusal:
            prepared.save(place, replace=True)
        assert str(refusal.value).startswith(str(place))
        with pytest.raises(ArtefactError, match="neither an empty folder nor"):
            Interactions.read(tmp_path / "log.csv").prepare(place, replace=True)
    assert sorted(path.name for path in foreign.iterdir()) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    assert prepared.save(empty, replace=True).fingerprint == prepared.fingerprint


def test_a_folder_does_not_go_with_the_log_that_it_is_made_of(prepared: Dataset, tmp_path: Path) -> None:
    out = folder_of(prepared)
    log, items = write_csv(out / "log.csv"), out / "things.csv"
    items.write_text("id,title\na,Alpha\n")
    for interactions, held in (
        (Interactions.read(log), log),
        (Interactions.read(tmp_path / "log.csv", items=items), items),
    ):
        with pytest.raises(ArtefactError, match=rf"out holds {held}, which is read, so it is not replaced"):
            interactions.prepare(out, replace=True)
    assert log.is_file()
    assert items.is_file()


def test_a_path_through_a_folder_that_is_not_there(prepared: Dataset, tmp_path: Path) -> None:
    made = prepared.save(tmp_path / "nowhere" / ".." / "again")
    assert made.path == tmp_path / "again"
    assert made.fingerprint == prepared.fingerprint


def test_the_folder_this_runs_in_is_not_replaced(
    prepared: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "below").mkdir()
    for place, name in ((tmp_path / "out", "."), (tmp_path / "out" / "below", "..")):
        monkeypatch.chdir(place)
        with pytest.raises(ArtefactError, match=r"^\.+ is the folder that this runs in"):
            prepared.save(name, replace=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.csv", "out"]
    Dataset.open(tmp_path / "out", verify=True)


# Room for 16 kB a file, so that writing stops half way as it does on a full disk.
FULL_DISK = """
import resource, signal, sys
import numpy as np, pyarrow as pa
from forethought.data.dataset import Dataset
from forethought.errors import ArtefactError
dataset = Dataset.open(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))
try:
    dataset.save(sys.argv[1], replace=True)
except ArtefactError as error:
    sys.exit(f"refused: {error}")
"""


def test_a_full_disk_leaves_the_old_folder_whole(tmp_path: Path) -> None:
    dataset = Interactions.read("bundled:movielens-latest-small").prepare(tmp_path / "out")
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path / "out")], capture_output=True, text=True)
    assert run.stderr.startswith(f"refused: Cannot write {tmp_path / 'out'}: "), run.stderr
    assert "Traceback" not in run.stderr
    assert Dataset.open(tmp_path / "out", verify=True).fingerprint == dataset.fingerprint
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_small_disk_that_is_really_full(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("256k")
    with pytest.raises(ArtefactError, match=r"(No space left on device|is the disk full\?)"):
        Interactions.read("bundled:movielens-latest-small").prepare(disk / "out")
    assert list(disk.iterdir()) == []


def test_a_read_only_place(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=256k", "tmpfs", str(place)], capture_output=True
    ).returncode == 0  # fmt: skip
    place.chmod(0o500) if not mounted else None
    try:
        if not mounted and os.geteuid() == 0:
            pytest.skip("root writes everywhere, and nothing can be mounted here")
        with pytest.raises(ArtefactError, match=r"(Read-only file system|Permission denied)"):
            Interactions.read(write_csv(tmp_path / "log.csv")).prepare(place / "out")
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)
        place.chmod(0o700)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="Cannot write"):
        Interactions.read(write_csv(tmp_path / "log.csv")).prepare(tmp_path / "file" / "out")
