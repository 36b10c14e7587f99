"""Leaderboards group seeds, refuse to mix, claim no more than was shown, and say the same in every form."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

import forethought
from forethought.data.dataset import Dataset
from forethought.errors import ArtefactError
from forethought.evaluation import figures
from forethought.evaluation.compare import compare
from forethought.evaluation.evaluator import evaluate
from forethought.evaluation.leaderboard import print_leaderboard, to_markdown
from forethought.evaluation.report import write_report
from forethought.evaluation.runs import find_runs, read_run
from forethought.evaluation.significance import holm, paired_test

from .models import make_dataset, score_table, sum_of_vectors

ITEMS = 40
FEW = {"replicates": 400}


def write_run(
    folder: Path,
    dataset: Dataset,
    model: object,
    *,
    name: str,
    kind: str,
    seed: int = 0,
    parameters: int = 640,
    **settings: object,
) -> Path:
    """A run folder as training leaves it, with the evaluation of a real model."""
    evaluate(model, dataset, bootstrap=100).save(folder / "evaluation")
    data = {"path": "somewhere", "fingerprint": dataset.fingerprint, "protocol": dataset.protocol}
    info = {"format": "forethought.run", "version": 1, "name": name, "model": kind, "data": data, "seed": seed}
    info |= {
        "status": "finished",
        "seconds": 12.5 + seed,
        "parameters": parameters,
        "versions": {"forethought": "0.1.0"},
    }
    (folder / "run.json").write_text(json.dumps(info))
    recipe = {"name": name, "seed": seed, "model": {"type": kind, **settings}, "data": {"path": f"place {seed}"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    events = [{"epoch": epoch, "step": 10 * epoch, "valid/ndcg@10": 0.01 * epoch + 0.001 * seed} for epoch in (1, 2, 3)]
    if parameters:
        (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three seeds of one model, one seed of another, two counting baselines; 200 users."""
    home, dataset = tmp_path_factory.mktemp("runs"), make_dataset(200, ITEMS)
    flat = score_table(ITEMS, levels=1)
    flat.table += torch.from_numpy(dataset.item_counts()[1:]).float().log1p()
    paths = [
        write_run(
            home / f"grow-{seed}",
            dataset,
            sum_of_vectors(ITEMS, seed=seed),
            name="grow <b>|*",
            kind="prefergrow",
            seed=seed,
        )
        for seed in range(3)
    ]
    paths.append(write_run(home / "sasrec", dataset, sum_of_vectors(ITEMS, seed=9), name="sasrec", kind="sasrec"))
    paths.append(write_run(home / "pop", dataset, flat, name="popularity", kind="popularity", parameters=0))
    paths.append(write_run(home / "random", dataset, score_table(ITEMS), name="knn", kind="knn", parameters=0))
    return paths


@pytest.fixture(scope="module")
def comparison(runs):
    return compare(runs, **FEW)


def entry_of(comparison, model):
    return next(entry for entry in comparison.entries if entry.model == model)


def test_runs_that_differ_by_seed_are_one_row_with_mean_and_sd(runs, comparison):
    assert len(comparison.entries) == 4
    entry = entry_of(comparison, "prefergrow")
    assert entry.seeds == [0, 1, 2]
    values = [read_run(path).evaluation.metrics["seen_removed"]["ndcg@10"] for path in runs[:3]]
    assert entry.mean["seen_removed"]["ndcg@10"] == pytest.approx(np.mean(values))
    assert entry.sd["seen_removed"]["ndcg@10"] == pytest.approx(np.std(values, ddof=1))
    assert entry.seconds == pytest.approx(13.5)
    low, high = entry.intervals["seen_removed"]["ndcg@10"]
    assert low < entry.mean["seen_removed"]["ndcg@10"] < high


def test_the_best_is_first_and_tested_against_each_other(comparison):
    values = [entry.mean["seen_removed"]["ndcg@10"] for entry in comparison.entries]
    assert values == sorted(values, reverse=True)
    assert comparison.best.gap is None
    gaps = [entry.gap for entry in comparison.entries[1:]]
    assert [gap.p for gap in gaps] == holm([gap.test.p_randomisation for gap in gaps])
    for entry in comparison.entries[1:]:
        a, b = (
            np.stack([run.evaluation.values("ndcg@10", "removed") for run in e.runs]) for e in (comparison.best, entry)
        )
        alone = paired_test(a, b, comparison.evaluation.owners, replicates=400)
        assert entry.gap.test.p_randomisation == pytest.approx(alone.p_randomisation)
        assert entry.gap.test.difference == pytest.approx(values[0] - entry.mean["seen_removed"]["ndcg@10"])


def test_another_metric_and_rule_sorts_by_it(runs):
    comparison = compare(runs, seen="kept", metric="hr@20", **FEW)
    values = [entry.mean["seen_kept"]["hr@20"] for entry in comparison.entries]
    assert values == sorted(values, reverse=True)
    with pytest.raises(ArtefactError, match="no metric 'hr@7'"):
        compare(runs, metric="hr@7", **FEW)


def test_popularity_beats_random_and_the_verdict_says_so(comparison):
    assert comparison.best.model == "popularity"
    verdict = comparison.verdict()
    assert verdict.startswith("popularity leads with NDCG@10")
    assert "Fewer than 3 seeds" in verdict
    assert verdict.rstrip(".").endswith("sasrec")  # the only trained row with one seed
    assert any("markov" in note for note in comparison.notes())
    assert any("own history" in note for note in comparison.notes())


def test_a_lead_within_chance_is_called_that(tmp_path):
    dataset = make_dataset(200, ITEMS)
    paths = [
        write_run(
            tmp_path / str(seed), dataset, score_table(ITEMS, seed=seed), name=f"random {seed}", kind="knn", number=seed
        )
        for seed in (1, 2)
    ]
    assert "within chance" in compare(paths, **FEW).verdict()
    assert "nothing to compare" in compare(paths[:1], **FEW).verdict()


def test_namesakes_are_told_apart_by_their_settings(tmp_path):
    dataset = make_dataset(100, ITEMS)
    paths = [
        write_run(
            tmp_path / str(gamma), dataset, sum_of_vectors(ITEMS), name="grow", kind="prefergrow", gamma=gamma, width=8
        )
        for gamma in (0.9, 0.99)
    ]
    assert sorted(entry.name for entry in compare(paths, **FEW).entries) == ["grow (gamma=0.9)", "grow (gamma=0.99)"]


def test_a_precision_left_to_the_machine_is_what_it_was(tmp_path):
    dataset, paths = make_dataset(100, ITEMS), []
    for number, (asked, used) in enumerate((("auto", "fp32"), ("fp32", "fp32"), ("auto", "bf16"))):
        path = write_run(
            tmp_path / str(number), dataset, sum_of_vectors(ITEMS, seed=number), name="a", kind="sasrec", seed=number
        )
        recipe, info = yaml.safe_load((path / "recipe.yaml").read_text()), json.loads((path / "run.json").read_text())
        phases = {phase: {"precision": asked} for phase in ("training", "post_training")}
        (path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **phases}))
        (path / "run.json").write_text(json.dumps({**info, "precision": used}))
        paths.append(path)
    assert sorted(entry.seeds for entry in compare(paths, **FEW).entries) == [[0, 1], [2]]


def test_texts_read_by_other_encoders_are_other_models(tmp_path):
    dataset = make_dataset(100, ITEMS)
    paths = []
    for number, encoder in enumerate(("mini", "large", "large")):
        path = write_run(
            tmp_path / str(number), dataset, sum_of_vectors(ITEMS, seed=number), name="text", kind="rearec", seed=number
        )
        info = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps({**info, "text_encoder": encoder}))
        paths.append(path)
    entries = {entry.name: entry.seeds for entry in compare(paths, **FEW).entries}
    assert entries == {"text (text_encoder=mini)": [0], "text (text_encoder=large)": [1, 2]}
    assert len(find_runs([tmp_path])) == 3


def test_seeds_evaluated_at_other_cutoffs_share_what_they_have(tmp_path):
    dataset = make_dataset(100, ITEMS)
    paths = [
        write_run(tmp_path / str(seed), dataset, sum_of_vectors(ITEMS, seed=seed), name="grow", kind="x", seed=seed)
        for seed in (0, 1)
    ]
    evaluate(sum_of_vectors(ITEMS, seed=1), dataset, ks=(10, 20)).save(paths[1] / "evaluation")
    (entry,) = compare(paths, **FEW).entries
    assert {"hr@10", "hr@20"} <= set(entry.mean["seen_removed"])
    assert "hr@5" not in entry.mean["seen_removed"]


def test_the_mark_on_a_learning_curve_is_the_checkpoint_that_was_kept(tmp_path):
    dataset = make_dataset(100, ITEMS)
    path = write_run(tmp_path / "run", dataset, sum_of_vectors(ITEMS), name="grow", kind="sasrec")
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**info, "best_step": 20}))  # chosen by another metric than is drawn
    figure = figures.learning_curves(compare([path], **FEW))
    marks = [line for line in figure.axes[0].get_lines() if line.get_marker() not in ("", "none", "None")]
    assert [line.get_xydata().tolist() for line in marks] == [[[2.0, 0.02]]]


def test_what_is_not_comparable_is_refused(runs, tmp_path):
    other = write_run(tmp_path / "other", make_dataset(200, ITEMS, seed=5), sum_of_vectors(ITEMS), name="x", kind="knn")
    with pytest.raises(ArtefactError, match=r"differ in their data \(fingerprint\)"):
        compare([runs[0], other], **FEW)
    split = shutil.copytree(runs[1], tmp_path / "split")
    file = split / "evaluation" / "test.json"
    file.write_text(file.read_text().replace('"leave-one-out"', '"user-split"'))
    with pytest.raises(ArtefactError, match="differ in their protocol: user-split and leave-one-out"):
        compare([runs[0], split], **FEW)
    part = shutil.copytree(runs[1], tmp_path / "part")
    evaluate(sum_of_vectors(ITEMS), make_dataset(200, ITEMS), rows=np.arange(50), bootstrap=0).save(part / "evaluation")
    with pytest.raises(ArtefactError, match="differ in their number of cases: 50 and 200"):
        compare([runs[0], part], **FEW)
    evaluate(sum_of_vectors(ITEMS), make_dataset(200, ITEMS), rows=np.arange(200)[::-1], bootstrap=0).save(
        part / "evaluation"
    )
    with pytest.raises(ArtefactError, match="rank different users"):
        compare([runs[0], part], **FEW)
    twin = shutil.copytree(runs[0], tmp_path / "twin")
    with pytest.raises(ArtefactError, match="same recipe and seed 0"):
        compare([runs[0], twin], **FEW)


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        ("no run", "no run folder"),
        ("no evaluation", "forethought evaluate RUN --split test"),
        ("running", r"not finished \(running\)"),
        ("half", "is damaged"),
        ("log", "damaged in line 2"),
        ("recipe", "is damaged"),
    ],
)
def test_broken_runs_are_refused_with_a_sentence(runs, tmp_path, harm, sentence):
    run = shutil.copytree(runs[0], tmp_path / "run")
    info = run / "run.json"
    if harm == "no run":
        info.unlink()
    elif harm == "no evaluation":
        (run / "evaluation" / "test.json").unlink()
    elif harm == "running":
        info.write_text(info.read_text().replace("finished", "running"))
    elif harm == "half":
        info.write_text(info.read_text()[:40])
    elif harm == "log":
        (run / "log.jsonl").write_text('{"step": 1, "epoch": 1}\n{"epo')
    else:
        (run / "recipe.yaml").write_text("- a\n- [b")
    with pytest.raises(ArtefactError, match=sentence) as error:
        compare([run], **FEW)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [{"versions": [1]}, {"command": 5}, {"parameters": 1e30}, {"parameters": 10**30}, {"seconds": float("nan")},
     {"name": None}, {"seed": "first"}],
    ids=str,
)  # fmt: skip
def test_what_a_report_shows_of_a_run_is_checked(runs, tmp_path, wrong):
    run = shutil.copytree(runs[0], tmp_path / "run")
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | wrong))
    with pytest.raises(ArtefactError, match=f"run is damaged .*{next(iter(wrong))}"):
        compare([run], **FEW)


def test_damaged_events_and_files_too_deep_are_refused_with_a_sentence(runs, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / "run")
    for event in (
        f'{{"step": {10**400}}}', "5", '{"step": NaN}', '{"epoch": 1}', '{"step": "x"}',
        '{"step": 1, "valid/ndcg@10": null}', "[" * 100_000,
    ):  # fmt: skip
        (run / "log.jsonl").write_text(event + "\n")
        with pytest.raises(ArtefactError, match=r"log.jsonl is damaged in line 1"):
            compare([run], **FEW)
    for file, deep in (("recipe.yaml", "[" * 5000), ("run.json", "[" * 100_000)):
        (run / file).write_text(deep)
        for reading in (find_runs, compare):
            with pytest.raises(ArtefactError, match=r"run is damaged \(RecursionError"):
                reading([run, run.parent])


def test_a_folder_of_runs_stands_for_the_finished_runs_in_it(runs, tmp_path):
    for number, run in enumerate([*runs[:2], runs[0], runs[3]]):  # the third repeats the first
        shutil.copytree(run, tmp_path / "many" / f"trial-{number}")
    (tmp_path / "many" / "report").mkdir()
    (tmp_path / "many" / "study.sqlite3").write_text("")
    assert find_runs([tmp_path / "many"]) == [tmp_path / "many" / f"trial-{number}" for number in (0, 1, 3)]
    assert find_runs([tmp_path / "many", runs[1]]) == [runs[1], *(tmp_path / "many" / f"trial-{n}" for n in (0, 3))]
    failed = tmp_path / "many" / "trial-3" / "run.json"
    failed.write_text(failed.read_text().replace("finished", "failed"))
    assert [run.name for run in find_runs([tmp_path / "many"])] == ["trial-0", "trial-1"]
    assert len(forethought.compare([tmp_path / "many"], **FEW).entries) == 1
    with pytest.raises(ArtefactError, match=r"trial-3 is not finished \(failed\)"):
        find_runs([failed.parent])
    shutil.rmtree(tmp_path / "many" / "trial-0")
    shutil.rmtree(tmp_path / "many" / "trial-1")
    shutil.rmtree(tmp_path / "many" / "trial-2")
    with pytest.raises(ArtefactError, match=r"None of the runs in .*many is finished"):
        find_runs([tmp_path / "many"])
    with pytest.raises(ArtefactError, match=r"report is no run folder \(no run.json\) and holds none"):
        find_runs([tmp_path / "many" / "report"])


def test_no_two_entries_look_alike(comparison):
    for draw in (figures.slices, figures.cost):
        lines = [line for line in draw(comparison).axes[0].get_lines() if not line.get_label().startswith("_")]
        assert len(lines) == len(comparison.entries)
        assert len({line.get_marker() for line in lines}) == len(lines)
        assert len({line.get_color() for line in lines}) == len(lines)
        for line, entry in zip(lines, comparison.entries, strict=True):
            assert (line.get_markerfacecolor() == "none") == entry.baseline


def test_the_terminal_table_fits_and_names_everything(comparison):
    for width in (60, 80, 120, 200):
        console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        print_leaderboard(comparison, console)
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        for word in (
            "leave-one-out",
            comparison.evaluation.fingerprint[:12],
            "test users 200",
            "removed",
            "(baseline)",
        ):
            assert word in text


def test_markdown_is_one_table_with_a_row_an_entry(comparison):
    lines = to_markdown(comparison, "forethought compare a b").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(comparison.entries)
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "forethought compare a b" in lines[-1]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.svgs = 0

    def handle_starttag(self, tag, attributes):
        self.svgs += tag == "svg"
        for name, value in attributes:
            if name in ("href", "src", "xlink:href", "action", "data", "srcset"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
        if tag not in ("meta", "br", "link", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report(comparison, tmp_path_factory):
    return write_report(comparison, tmp_path_factory.mktemp("report"), "forethought compare x")


def test_the_page_is_whole_and_loads_nothing(report):
    source = report.read_text()
    page = Page()
    page.feed(source)
    assert page.open == []
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"https?:|//\w+\.\w|@import|url\((?!#)", source)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} | set(re.findall(r"url\(#([^)]*)\)", source)) <= set(page.ids)
    assert page.svgs == 4
    assert "grow <b>|*" in page.text  # a name with markup is text


def test_markdown_json_and_page_agree(report, comparison):
    saved = json.loads((report.parent / "leaderboard.json").read_text())
    assert saved["entries"][0]["mean"] == comparison.best.mean
    assert saved["fingerprint"] == comparison.evaluation.fingerprint
    value = f"{comparison.best.mean['seen_removed']['ndcg@10']:.4f}"
    assert value in report.read_text()
    assert value in (report.parent / "leaderboard.md").read_text()


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>
const table = document.querySelector("table.sortable");
const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].dataset.sort).join("/");
const before = names();
table.tHead.querySelectorAll("button")[1].click();
table.tHead.querySelectorAll("button")[1].click();
const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
const figures = document.querySelectorAll("svg").length;
document.body.dataset.probe = JSON.stringify({before, after: names(), wide, figures});
</script></body>"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_opens_and_sorts_in_a_browser(report, comparison, tmp_path, width):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; install the package chromium")
    page = tmp_path / "probe.html"
    page.write_text(report.read_text().replace("</body>", PROBE))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    run = subprocess.run(
        [CHROMIUM, *flags, f"--window-size={width},900", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'data-probe="([^"]*)"', run.stdout)
    assert found, run.stderr[-2000:]
    seen = json.loads(found[1].replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">"))
    names = [entry.name for entry in comparison.entries]
    assert seen["before"].split("/") == names
    assert seen["after"].split("/") == names[::-1]
    assert not seen["wide"]  # wide tables scroll in their own box, the page does not
    assert seen["figures"] == 4
