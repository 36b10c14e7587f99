"""What holds for the repository as a whole: imports, recipes, rules, and that what the README shows works."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import forethought
from forethought.errors import RecipeError
from forethought.recipes import recipe_path, shipped_recipes

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "pandas", "matplotlib", "ibis", "duckdb", "scipy", "pyarrow", "rich"}


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=900)


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [REPOSITORY / name for name in listing.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def modules() -> list[ModuleType]:
    found = {module.name for module in pkgutil.walk_packages(forethought.__path__, prefix="forethought.")}
    found -= {"forethought.__main__"}
    if importlib.util.find_spec("vllm") is None:
        found -= {"forethought.serving.vllm_logits"}  # a subclass of one of vLLM's, which loads it alone
    return [importlib.import_module(name) for name in sorted(found)]


def test_importing_the_package_imports_nothing_heavy():
    run = python("-c", "import forethought, sys, json; print(json.dumps([m for m in sys.modules if '.' not in m]))")
    assert run.returncode == 0, run.stderr
    assert not HEAVY & set(json.loads(run.stdout))


def test_every_public_name_of_the_package_loads():
    for name in forethought.__all__:
        assert getattr(forethought, name).__name__ == name
    assert set(forethought.__all__) <= set(dir(forethought))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        forethought.nothing  # noqa: B018


def test_the_version_is_the_installed_one():
    try:
        installed = metadata.version("forethought")
    except metadata.PackageNotFoundError:
        pytest.skip("forethought is on the path but not installed")
    assert installed == forethought.__version__


def test_no_tracked_file_names_a_machine_path_or_a_package_host():
    parts = ["/work" + "/", "/root" + "/", "/home" + "/", "/Users" + "/", "/opt/" + "wheels", "/opt/" + "pypi"]
    hosts = ["pypi" + ".org", "python" + "hosted", "npmjs" + ".org", "deb." + "debian", "download." + "pytorch"]
    contents = {path.relative_to(REPOSITORY): path.read_bytes() for path in tracked_files()}
    found = [
        f"{name}: {text.decode()}"
        for name, content in contents.items()
        for text in map(str.encode, parts + hosts)
        if text in content and re.search(rb"(?<![\w.])" + re.escape(text), content)  # the first test is the quick one
    ]
    assert not found


def test_the_environment_holds_no_cuda_libraries_in_ci():
    if os.environ.get("CI") != "true":
        pytest.skip("a machine with a GPU may well have them")
    names = [distribution.metadata["Name"] or "" for distribution in metadata.distributions()]
    assert not [name for name in names if name.lower().startswith("nvidia")]


def test_every_shipped_recipe_validates():
    from forethought.reasoners.training import config_class
    from forethought.recipes import model_type, recipe_path
    from forethought.recommenders import MODELS
    from forethought.recommenders.models import read_recipe
    from forethought.training.recipe import Recipe

    names = shipped_recipes()
    reasoners = {name for name in names if model_type(recipe_path(name)) == "reasoner"}
    assert reasoners < set(names)
    assert {read_recipe(name).model["type"] for name in set(names) - reasoners} <= set(MODELS)
    assert {Recipe.load(recipe_path(name), config_class).model["type"] for name in reasoners} == {"reasoner"}


@pytest.mark.parametrize("spelling", ["{}", "{}.yaml", "recipes/{}", "recipes/{}.yaml"])
def test_a_shipped_recipe_is_found_by_name_from_anywhere(spelling, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = shipped_recipes()[0]
    assert recipe_path(spelling.format(name)).read_text() == (REPOSITORY / "recipes" / f"{name}.yaml").read_text()


def test_the_users_own_file_comes_before_a_shipped_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "recipes" / f"{shipped_recipes()[0]}.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("name: mine\n")
    assert recipe_path(own.relative_to(tmp_path)).read_text() == "name: mine\n"


def test_an_unknown_recipe_is_refused_with_what_there_is():
    with pytest.raises(RecipeError, match=r"no recipe file 'prefergrow/beuty'.*try prefergrow/beauty"):
        recipe_path("prefergrow/beuty")
    with pytest.raises(RecipeError, match=r"try prefergrow/default, prefergrow/demo, prefergrow/aso-adaptive"):
        recipe_path("prefergrow")
    with pytest.raises(RecipeError, match=r"try prefergrow/default, prefergrow/demo, rearec/demo, sasrec/default"):
        recipe_path("xyz")


def test_imports_run_one_way():
    pytest.importorskip("importlinter")
    run = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


def test_everything_public_is_documented():
    missing = []
    for module in modules():
        if module.__name__.startswith("forethought.cli."):
            continue  # what a command does is said in its help
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
                continue
            if not (inspect.isclass(thing) or inspect.isfunction(thing)):
                continue
            if not inspect.getdoc(thing):
                missing.append(f"{module.__name__}.{name}")
            if inspect.isclass(thing) and not getattr(thing, "_is_protocol", False):
                missing += [
                    f"{module.__name__}.{name}.{method}"
                    for method, function in vars(thing).items()
                    if not method.startswith("_")
                    and inspect.isfunction(function)
                    and not inspect.getdoc(getattr(thing, method))
                ]
    assert missing == []


def test_every_module_says_what_it_is_for():
    packages = {forethought.__name__}
    assert not [
        m.__name__
        for m in modules()
        if not m.__doc__ and m.__name__ not in packages and "__init__" not in str(m.__file__)
    ]


def readme_code() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 1, "the README shows one block of Python"
    return blocks[0]


@pytest.mark.slow
def test_the_python_in_the_readme_runs(tmp_path):
    rows = ["user,item,timestamp"]
    rows += [
        f"u{user},film {(user * 3 + step * 7) % 40},{1_600_000_000 + 60 * step}"
        for user in range(120)
        for step in range(8)
    ]
    rows += [f"ada,film {step},{1_600_000_000 + 60 * step}" for step in range(6)]
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "ten.py").write_text(readme_code())
    run = python("ten.py", cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "film " in run.stdout


def test_the_readme_shows_every_command():
    text = (REPOSITORY / "README.md").read_text()
    for command in ["make demo", "make test", "forethought data prepare", "forethought train", "forethought compare"]:
        assert command in text
