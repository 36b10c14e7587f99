"""The pages on quality: which of the kept runs are rows of a table."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TABLE = "beauty-loo-latent"


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return runpy.run_path(str(BENCHMARKS / "quality.py"))


def folders(place: Path, kept: list[bool]) -> list[Path]:
    """Runs of both rows of LARES and of one that others share, a seed each."""
    found = []
    for seed, second in enumerate(kept):
        phase = {"metric": "ndcg@10", "before": 0.0725, "after": 0.08 if second else 0.0713, "kept": second}
        for name, record in (
            ("beauty-loo-sasrec", {}), (f"{TABLE}-lares-pretrained", {}), (f"{TABLE}-lares", {"post_training": phase}),
        ):  # fmt: skip
            found.append(place / f"{name}-s{seed}")
            found[-1].mkdir()
            (found[-1] / "run.json").write_text(json.dumps(record))
    return found


@pytest.mark.parametrize("kept", [[False], [False, False], [True, False, True], [True, True]])
def test_a_second_phase_that_was_not_kept_is_no_second_model(
    quality: dict[str, Any], kept: list[bool], tmp_path: Path
) -> None:
    given = folders(tmp_path, kept)
    shown, remarks = quality["second_phases"](TABLE, quality["studies"]()[TABLE], given)
    if any(kept):
        assert shown == given
    else:
        assert shown == [folder for folder in given if "-lares-s" not in folder.name]
    told = "lares: its second phase brought nothing on validation (seed "
    for seed, second in enumerate(kept):
        assert (f"seed {seed}: NDCG@10 0.0713 at best, 0.0725 before" in "".join(remarks)) != second
    assert [remark.startswith(told) for remark in remarks] == [True] * (not all(kept))
    for remark in remarks:
        end = "its weights of these seeds are" if any(kept) else "its weights are"
        assert remark.endswith(f"so {end} those of lares-pretrained.")


def test_rows_as_deep_as_the_models_that_reason(quality: dict[str, Any]) -> None:
    def blocks(system: Any) -> int:
        words = system.overrides
        return int(dict(zip(words[::2], words[1::2], strict=False)).get("--model.num_blocks", "1"))

    for name, study in quality["studies"]().items():
        if name.endswith("-latent"):
            rows = study.systems
            depths = {label: blocks(row) for label, row in rows.items() if label.startswith("deeper")}
            first = blocks(rows["lares"])
            assert depths["deeper"] == 3 * blocks(rows["erl"])
            assert depths.get("deeper-5", depths["deeper"]) == first + 4  # its core is one block, and taken four times


def test_jobs_are_what_is_not_kept_whole(
    quality: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(quality["jobs"].__globals__, "KEPT", tmp_path)
    study = quality["studies"]()[TABLE]

    def waiting(*labels: str) -> list[list[str]]:
        return [[job.run for job in chain] for chain in quality["jobs"](TABLE, study, [0, 1], list(labels))]

    assert waiting("lares-pretrained", "lares", "base", "knn") == [
        *([f"{TABLE}-lares-pretrained-s{seed}", f"{TABLE}-lares-s{seed}"] for seed in (0, 1)),
        ["beauty-loo-sasrec-s0"], ["beauty-loo-sasrec-s1"], ["beauty-loo-knn-s0"],
    ]  # fmt: skip
    for seed in (0, 1):
        (tmp_path / f"{TABLE}-erl-s{seed}" / "evaluation").mkdir(parents=True)
    assert waiting("erl") == [[f"{TABLE}-erl-s0"]]  # seed 0 is asked what its thought is worth
    for file in quality["THINKING"]:
        (tmp_path / f"{TABLE}-erl-s0" / "evaluation" / file).touch()
    assert waiting("erl") == []


def test_the_tables_of_thoughts_say_what_was_measured(quality: dict[str, Any]) -> None:
    folder = quality["KEPT"] / "toys-loo-latent-erl-s0" / "evaluation"
    found = {file: json.loads((folder / file).read_text()) for file in quality["THINKING"]}
    heads, _, row, _ = quality["worth"]([("erl", folder)])
    cells = dict(zip(heads.split(" | ")[1:], row.split(" | ")[1:], strict=True))
    steps = {f"{each['steps']} steps": each["ndcg@10"] for each in found[quality["THOUGHTS"]]["steps"]}
    assert {key: float(cells[key]) for key in steps} == pytest.approx(steps, abs=5e-5)
    assert "thoughts shuffled" in cells
    _, _, careful, by_mean, _ = quality["adaptive"]([("erl", folder)])
    for line, file in ((careful, quality["DIAL"]), (by_mean, quality["DIAL_BY_MEAN"])):
        rule = next(each for each in found[file]["rules"] if each["auto"])
        assert f"level {found[file]['level']:g}" in line
        assert f"| {rule['rule']} | {rule['steps']:.2f} | " in line


def test_the_parts_of_a_row_make_up_the_whole(quality: dict[str, Any]) -> None:
    folders = [quality["KEPT"] / f"beauty-loo-latent-{run}" for run in ("erl-s0", "erl-s1", "prl-heating-s0")]
    found = quality["compare"](folders, "test", seen="removed", replicates=100)
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in quality["for_whom"](found))
    slices = found.evaluation.slices
    assert heads[1:] == [part.band for part in slices]
    assert [row[0] for row in rows] == [entry.name for entry in found.entries]
    for entry, (_, *cells) in zip(found.entries, rows, strict=True):
        for by in ("history length", "target popularity"):
            parts = [(part.cases, float(cell)) for part, cell in zip(slices, cells, strict=True) if part.by == by]
            mean = sum(cases * value for cases, value in parts) / found.evaluation.cases
            assert mean == pytest.approx(entry.mean["seen_removed"]["ndcg@10"], abs=5e-5)
