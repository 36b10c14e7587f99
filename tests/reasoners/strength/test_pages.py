"""The results pages say what is kept, seed by seed, and what it was measured with."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
from scipy.stats import norm

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location("benchmarks_strength", BENCHMARKS / "strength.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def test_p_of_several_seeds_are_combined_and_not_averaged(benchmark: ModuleType) -> None:
    found = [(0.78, 17.0), (0.002, 13.0), (0.77, 15.0)]
    z = sum(math.sqrt(n) * norm.isf(p) for p, n in found) / math.sqrt(sum(n for _, n in found))
    assert float(benchmark.combined(found)) == pytest.approx(norm.sf(z), rel=0.05)
    assert benchmark.each([-0.19, None, 0.82], ".2f") == "-0.19, –, 0.82"


@pytest.mark.parametrize("name", ["strength", "progress"])
def test_a_page_is_what_is_kept_and_says_what_it_was_measured_with(benchmark: ModuleType, name: str) -> None:
    folders = sorted(benchmark.KEPT.glob("seed-*"))
    page = (BENCHMARKS.parent / "docs" / "results" / f"{name}.md").read_text(encoding="utf-8")
    for part in getattr(benchmark, f"{name}_page")(folders):
        assert part in page
    assert (BENCHMARKS / f"{name}.md").read_text(encoding="utf-8").strip() in page
    assert benchmark.measured(folders) in page
    made = benchmark.kept(folders, "made")[0]
    assert made["commit"] in page
    assert made["processor"] in page
