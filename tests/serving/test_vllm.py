"""vLLM, for real: an engine and a server are started on the embedded reasoner, and steered.

They run in a Python of their own, which ``make test-vllm`` builds: vLLM pins other versions than we do.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from forethought.reasoners.reasoner import EMBEDDED

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("FORETHOUGHT_VLLM_PYTHON", ROOT / "build/vllm/bin/python"))
MODEL = Path(os.environ.get("FORETHOUGHT_VLLM_MODEL", EMBEDDED))
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"there is no vLLM at {PYTHON}; make test-vllm builds it"),
]

SHIFTED = [(0.4, "unsteered"), (-1.0, "unsteered 1")]  # λ, and the same prompt without it

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"steer": "first"}, "gives no strength"),
    ({"strength": 0.2}, "no vector to steer with"),
    ({"bias": "closing"}, "no alpha"),
    ({"alpha": 1.0}, "no bias"),
    ({"steer": "nowhere", "strength": 1}, "no steering file called 'nowhere', known are .*first"),
    ({"steer": "../narrow", "strength": 1}, "no steering file called '../narrow'"),
    ({"steer": "/etc/passwd", "strength": 1}, "no steering file called '/etc/passwd'"),
    ({"steer": 3, "strength": 1}, "no steering file called 3"),
    ({"steer": "gone", "strength": 1}, "gone.npy, called 'gone', is not there"),
    ({"steer": "narrow", "strength": 1}, r"narrow.npy are \[\d+, \d+\], but the model has \d+ blocks of width"),
    ({"steer": "closing", "strength": 1}, r"closing.npy are \[\d+\], but the model"),
    ({"steer": "pickled", "strength": 1}, "pickled.npy is no npy array of numbers"),
    ({"steer": "first", "strength": "much"}, "strength is 'much', which is no finite number"),
    ({"steer": "first", "strength": [0.1, 0.2]}, "strength lists 2 numbers and the model has"),
    ({"steer": "first", "strength": 1, "phase": "later"}, "phase is 'later'; choose all, generated or think"),
    ({"bias": "first", "alpha": 1}, r"first.npy is \[\d+, \d+\], but the model has \d+ tokens"),
    ({"bias": "closing", "alpha": "much"}, "alpha is 'much'"),
    ({"bias": "closing", "alpha": 1, "bias_phase": "all"}, "bias_phase is 'all'; choose generated or think"),
]


def environment(folder: Path) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FORETHOUGHT", "steering_"))}
    return {
        **inherited,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # the script takes a hook away
        "VLLM_CACHE_ROOT": str(folder / "cache"),  # of compiled models
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the vectors and the report; all of vLLM's runs share it."""
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "wrong.json").write_text(json.dumps([args for args, _ in WRONG]))
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("vllm_script.py")
    run = subprocess.run(
        [PYTHON, script, MODEL, folder],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
    result: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return {**result, "log": run.stdout + run.stderr}


def cases(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: case for name, case in report.items() if isinstance(case, dict) and "vllm" in case}


def same(case: dict[str, Any]) -> None:
    vllm, transformers = case["vllm"], case["transformers"]
    assert vllm["ids"] == transformers["ids"]
    assert vllm["logprobs"] == pytest.approx(transformers["logprobs"], abs=1e-3)


def test_every_way_of_steering_gives_the_tokens_and_logprobs_of_transformers(report: dict[str, Any]) -> None:
    assert len(cases(report)) > 25
    for name, case in cases(report).items():
        print(name)
        same(case)


def test_strength_zero_is_no_steering(report: dict[str, Any]) -> None:
    assert report["strength 0"]["vllm"]["touched"] == report["unsteered"]["vllm"]["touched"] == 0
    assert report["strength 0"]["vllm"]["ids"] == report["unsteered 1"]["vllm"]["ids"]
    assert report["strength 0"]["vllm"]["logprobs"] == report["unsteered 1"]["vllm"]["logprobs"]


def test_steering_shifts_what_is_said_and_a_changed_file_shifts_it_otherwise(report: dict[str, Any]) -> None:
    def apart(one: str, other: str) -> bool:
        """Other tokens, or the same of another probability."""
        first, second = report[one]["vllm"], report[other]["vllm"]
        return bool(first["ids"] != second["ids"] or abs(sum(first["logprobs"]) - sum(second["logprobs"])) > 1e-2)

    for name in ("steered 0.4", "new file", "changed file", "instrument", "generated 0", "think 0"):
        assert apart(name, "unsteered"), name
    assert apart("changed file", "new file")
    assert any(report[f"steered {λ}"]["vllm"]["ids"] != report[plain]["vllm"]["ids"] for λ, plain in SHIFTED)


def test_every_position_that_is_to_be_steered_is_counted_once(report: dict[str, Any]) -> None:
    for case in [*cases(report).values(), *report["mixed"]]:
        # what comes from the prefix cache was steered when the cache was filled
        cached = case["vllm"]["cached"] if case["vllm"]["touched"] else 0
        assert case["vllm"]["touched"] + cached == case["transformers"]["touched"]
    steered = report["steered 0.4"]
    assert steered["vllm"]["touched"] == steered["transformers"]["prompt"] + len(steered["vllm"]["ids"]) - 1


def test_nothing_is_steered_after_the_thought(report: dict[str, Any]) -> None:
    closed = [report[f"think {index}"]["vllm"] for index in range(4)]
    closed = [case for case in closed if report["closing"] in case["ids"]]
    assert closed, "no thought ended, so that nothing is tested"
    for case in closed:
        assert case["touched"] == case["ids"].index(report["closing"]) + 1 < len(case["ids"])


def test_the_prefix_cache_never_crosses_from_one_steering_to_another(report: dict[str, Any]) -> None:
    first, again = report["long steered"]["vllm"], report["long steered again"]["vllm"]
    assert (first["cached"], report["long steered otherwise"]["vllm"]["cached"]) == (0, 0)
    assert again["cached"] > 0, "the same steering shares its cache"
    assert report["long unsteered again"]["vllm"]["cached"] > 0


def test_requests_of_one_batch_are_steered_each_its_own_way(report: dict[str, Any]) -> None:
    assert len(report["mixed"]) == 32
    assert report["preemptions"] > 0
    for case in report["mixed"]:
        same(case)


def test_the_logit_route_is_the_direction_at_the_final_norm(report: dict[str, Any]) -> None:
    same(report["direction 1.0"])
    closed = report["closing 8.0"]["vllm"]["ids"].index(report["closing"])
    plain = report["unsteered 1"]["vllm"]["ids"]
    assert closed < (plain.index(report["closing"]) if report["closing"] in plain else len(plain))
    assert report["closing -20.0"]["vllm"]["ids"].count(report["closing"]) == 0


def test_an_engine_that_would_skip_the_hooks_does_not_start(report: dict[str, Any]) -> None:
    kind, message = report["compiled"]
    assert kind == "ArtefactError"
    assert "compiles the model, which skips them; start it with enforce_eager=True" in message
    kind, message = report["compiled steered"]
    assert kind == "VLLMValidationError"
    assert "cannot steer the residual stream; start it with enforce_eager" in message


def test_the_logit_route_works_in_a_compiled_model(report: dict[str, Any]) -> None:
    same(report["compiled direction"])
    same(report["compiled closing"])
    assert report["compiled closing"]["vllm"]["ids"] != report["compiled unsteered"]["vllm"]["ids"]


def test_an_engine_whose_hooks_are_skipped_stops(report: dict[str, Any]) -> None:
    assert report["skipped"][0] == "EngineDeadError"
    assert re.search(r"Steering was asked for and ran at \d+ of \d+ sites: vLLM skipped hooks", report["log"])


def test_a_mistake_is_one_sentence_and_the_engine_goes_on(report: dict[str, Any]) -> None:
    for (args, pattern), (asked, kind, message) in zip(WRONG, report["errors"], strict=True):
        assert asked == args
        assert kind == "VLLMValidationError", (args, kind, message)
        assert re.search(pattern, message), (pattern, message)
        assert "\n" not in message
        assert str(PYTHON.parent) not in message
    same(report["after the errors"])


@pytest.fixture(scope="module")
def server(folder: Path, report: dict[str, Any]) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    steering = f"{folder / 'steering'},gone={folder / 'gone.npy'},narrow={folder / 'narrow.npy'}"
    # not "vllm serve": the command asks for the version of a package "vllm", and this build is called vllm-cpu
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL, "--port", str(port)]
    command += ["--host", "127.0.0.1"]
    command += ["--served-model-name", "reasoner", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
    command += ["--worker-extension-cls", "forethought.serving.vllm_plugin.SteeringWorker"]
    command += ["--logits-processors", "forethought.serving.vllm_logits:SteeringLogits"]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**environment(folder), "FORETHOUGHT_STEERING": steering}, stdout=log, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 900
        while True:
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, (folder / "server.log").read_text()[-6000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def ask(url: str, path: str, **body: Any) -> tuple[int, Any]:
    data = json.dumps({"model": "reasoner", "temperature": 0, "max_tokens": 60, **body}).encode()
    request = urllib.request.Request(f"{url}/v1/{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_server_steers_each_request_as_it_asks(server: str, report: dict[str, Any]) -> None:
    prompt = report["prompts"][0]
    ways = [
        (None, "unsteered"),
        ({"steer": "first", "strength": 0.4}, "steered 0.4"),
        ({"steer": "first", "strength": 0.2, "phase": "think"}, "think 0"),
        ({"steer": "first", "strength": 0.2, "phase": "generated"}, "generated 0"),
        ({"steer": "kept", "strength": 0.4}, "instrument"),
    ]

    def answer(args: Any) -> tuple[int, Any]:
        return ask(server, "completions", prompt=prompt, vllm_xargs=args, return_token_ids=True)

    with ThreadPoolExecutor(len(ways)) as pool:
        answers = list(pool.map(answer, [args for args, _ in ways]))
    for (status, body), (_, name) in zip(answers, ways, strict=True):
        assert status == 200, body
        assert body["choices"][0]["token_ids"] == report[name]["transformers"]["ids"], name


def test_the_server_steers_chats_and_logits(server: str, report: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": report["questions"][1]}]
    for args, name in ((None, "unsteered 1"), ({"bias": "closing", "alpha": 8.0}, "closing 8.0")):
        status, body = ask(server, "chat/completions", messages=messages, vllm_xargs=args, return_token_ids=True)
        assert status == 200, body
        assert body["choices"][0]["token_ids"] == report[name]["transformers"]["ids"], name


def test_the_server_refuses_what_cannot_be_and_goes_on(server: str, report: dict[str, Any]) -> None:
    for args, pattern in WRONG:
        status, body = ask(server, "completions", prompt=report["prompts"][0], vllm_xargs=args)
        assert status == 400, body
        assert re.search(pattern, body["error"]["message"]), (pattern, body)
    order = {"vector": "/etc/passwd", "strength": [1.0]}
    assert ask(server, "completions", prompt="a", vllm_xargs={"forethought": json.dumps(order)})[0] == 200
    assert urllib.request.urlopen(f"{server}/health", timeout=5).status == 200
