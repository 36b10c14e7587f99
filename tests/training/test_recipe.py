"""Recipes: every key typed, every error one sentence that says where and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from forethought.errors import RecipeError
from forethought.recommenders import model_class
from forethought.training.recipe import DataRecipe, Recipe, TrainingRecipe


def load(tmp_path: Path, text: str, **overrides: object) -> Recipe:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return Recipe.load(file, lambda kind: model_class(kind).config_class, dotted)


def test_defaults_are_written_out(tmp_path: Path):
    recipe = load(tmp_path, "model: {type: sasrec}")
    assert recipe.name == "mine"
    assert recipe.model["hidden_size"] == 64
    assert "num_items" not in recipe.model  # the data decides
    assert recipe.training == TrainingRecipe()
    assert recipe.data == DataRecipe()


def test_numbers_in_any_notation(tmp_path: Path):
    # YAML 1.1 reads 1e-3 as text
    recipe = load(tmp_path, "model: {type: sasrec, dropout: 2e-1}\ntraining: {learning_rate: 1e-3, epochs: '7'}")
    assert (recipe.training.learning_rate, recipe.training.epochs) == (1e-3, 7)
    assert recipe.model["dropout"] == 0.2


def test_overrides_win_and_are_converted_from_text(tmp_path: Path):
    recipe = load(
        tmp_path,
        "model: {type: sasrec}\ntraining: {max_steps: 5}",
        model__norm="original",
        model__logq="false",
        training__evaluate_every="50",
        training__max_steps="null",
        training__report_to="[tensorboard]",
        data__targets="last",
        seed="7",
        name="3",
    )
    assert (recipe.model["norm"], recipe.model["logq"]) == ("original", False)
    assert (recipe.training.evaluate_every, recipe.training.max_steps) == (50, None)
    assert recipe.training.report_to == ("tensorboard",)
    assert (recipe.data.targets, recipe.seed, recipe.name) == ("last", 7, "3")


def test_what_is_saved_loads_equal(tmp_path: Path):
    recipe = load(tmp_path, "model: {type: sasrec, dropout: 0.35}\ntraining: {report_to: [wandb], beta2: 0.98}")
    recipe.save(tmp_path / "resolved.yaml")
    assert Recipe.load(tmp_path / "resolved.yaml", lambda kind: model_class(kind).config_class) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epochs: 3}", "model.type is missing"),
        ("model: sasrec", "model is 'sasrec'; it has to be a section of keys"),
        ("model: {type: sasrek}", "model.type is 'sasrek'; choose one of popularity"),
        ("model: {type: sasrec, hiden_size: 3}", "no key model.hiden_size; did you mean model.hidden_size?"),
        ("model: {type: sasrec, hidden_size: big}", "model.hidden_size is 'big'; it has to be a whole number"),
        ("model: {type: sasrec, hidden_size: 3.5}", "model.hidden_size is 3.5; it has to be a whole number"),
        ("model: {type: sasrec, dropout: .nan}", "model.dropout is nan; it has to be a finite number"),
        ("model: {type: sasrec}\ntraining: {learning_rate: .inf}", "training.learning_rate is inf; it has to be a fin"),
        ("model: {type: prefergrow, guidance: -.inf}", "model.guidance is -inf; it has to be a finite number"),
        ("model: {type: prefergrow, ce_weight: .inf}", "model.ce_weight is inf; it has to be a finite number"),
        ('name: "a\\ud83d"\nmodel: {type: knn}', "name is 'a\\ud83d'; it has to be text"),
        ("model: {type: sasrec, norm: none}", "model.norm is 'none'; it has to be 'pre' or 'original' or 'post'"),
        ("model: {type: sasrec, num_items: 3}", "model.num_items is read from the data"),
        ("model: {type: sasrec, is_encoder_decoder: true}", "no key model.is_encoder_decoder"),
        ("model: {type: sasrec, num_heads: 3}", "hidden_size 64 cannot be shared by 3 heads"),
        ("model: {type: sasrec, dropout: 1.0}", "dropout is 1.0; it has to be at least 0 and less than 1"),
        ("model: {type: markov, max_length: 0}", "max_length is 0; it has to be at least 1"),
        ("model: {type: sasrec}\nmodl: {}", "no key modl; did you mean model?"),
        ("model: {type: sasrec}\ntraining: {lr: 3}", "no key training.lr"),
        ("model: {type: sasrec}\ntraining: {learning_rat: 3}", "did you mean training.learning_rate?"),
        ("model: {type: sasrec}\ntraining: {beta1: fast}", "training.beta1 is 'fast'; it has to be a number"),
        ("model: {type: sasrec}\ntraining: {learning_rate: }", "training.learning_rate is None; it has to be a number"),
        ("model: {type: sasrec}\ntraining: {weight_decay: -1}", "training.weight_decay is -1; it has to be at least 0"),
        ("model: {type: sasrec}\ntraining: {ema_decay: 1.5}", "ema_decay is 1.5; it has to be at least 0 and below 1"),
        ("model: {type: sasrec}\ntraining: {beta1: 1}", "training.beta1 is 1; it has to be at least 0 and below 1"),
        ("model: {type: sasrec}\ntraining: {batch_size: 0}", "training.batch_size is 0; it has to be at least 1"),
        ("model: {type: sasrec}\ntraining: {evaluate_every: never}", "has to be 'epoch' or a whole number"),
        ("model: {type: sasrec}\ntraining: {select_by: recall}", "training.select_by is 'recall'; it has to be "),
        ("model: {type: sasrec}\nseed: -1", "seed is -1; it has to be between 0 and"),
        ("model: {type: sasrec\ntraining", "is not valid YAML (line "),
        ("- model", "holds no keys"),
        ("", "holds no keys"),
        ("model: {type: sasrec}\nmodel: {type: sasrec}", "(line 2, column 1): the key model is there twice"),
    ],
)  # fmt: skip
def test_errors_name_the_file_the_key_and_what_was_found(tmp_path: Path, text: str, message: str):
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert str(tmp_path / "mine.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_override_is_named_in_its_error(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"mine\.yaml with --training\.epochs: training\.epochs is 'many'"):
        load(tmp_path, "model: {type: sasrec}", training__epochs="many")


def test_a_binary_file_is_no_recipe(tmp_path: Path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path / "mine.yaml", lambda kind: model_class(kind).config_class)
