# SPDX-License-Identifier: Apache-2.0
"""Where vLLM has changed, it runs as without the package, and who asks for CoLD is told why.

Each method that is wrapped is, in turn, renamed, moved to a base class, given another signature
and given one more parameter, throughout vLLM's source (``changes``); what becomes of it is seen in
a fresh process (``changed_vllm``).
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import changes
from tests.engine.changes import FIXED, TARGETS, Files, Target

pytestmark = pytest.mark.engine

Result = dict[str, Any]
Run = Callable[..., Result]

CHANGES: dict[str, Callable[[Target], Files]] = {
    "renamed": changes.renamed,
    "signature": changes.signature,
    "moved": changes.moved,
    "extended": changes.extended,
}
# Wrapped by servers alone, and by offline engines alone.
SERVERS = (".entrypoints.", "AsyncLLM.gen", "OnlineRenderer")
ONLINE = tuple(t.where for t in TARGETS if any(part in t.where for part in SERVERS))
OFFLINE = ("vllm:LLM.beam_search",)
# Engines of these are run in every test run: one for each part that gives up.
USUAL = (
    "InputProcessor.process_inputs",
    "ModelRunnerOutput.__init__",
    "BaseLayerWithLoRA.set_mapping",
    "LLM.beam_search",
)
# And the front ends of these: of all parts, as those of one part are next to each other.
IN_TURN = (*TARGETS[::3], *(t for t in TARGETS if t.where.endswith(USUAL)))


def _cases(usual: Callable[[str, Target], bool]) -> list[Any]:
    return [
        pytest.param(
            kind,
            target,
            id=f"{target.where.partition(':')[2]}-{kind}",
            marks=() if usual(kind, target) else pytest.mark.full,
        )
        for target in TARGETS
        for kind in CHANGES
        if not (kind == "renamed" and target.name in FIXED)
        and not (kind == "moved" and not target.cls)
        and not (kind == "signature" and not target.parameter)
    ]


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """``run(task, files)``: what a task of ``changed_vllm`` finds, and its "log"."""
    folder = tmp_path_factory.mktemp("changed")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.changed_vllm"],
        # vLLM's CPU worker sets VLLM_DIST_IDENT; the next engine warns that it does not know it.
        env={
            **{name: value for name, value in os.environ.items() if name != "VLLM_DIST_IDENT"},
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CACHE_ROOT": str(folder / "cache"),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    number = 0

    def run(
        task: str,
        files: Files | None = None,
        version: str | None = None,
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> Result:
        nonlocal number
        number += 1
        tree = None
        if files or version:
            tree = str(changes.tree(folder / str(number), files or {}, version))
        log = folder / f"{number}.log"
        request = {
            "tree": tree,
            "environment": environment or {},
            "tiny": str(tiny),
            "task": task,
            "options": options,
            "log": str(log),
        }
        print(json.dumps(request), file=process.stdin, flush=True)
        assert process.stdout.readline() == "done\n"
        found = log.with_suffix(".json")
        assert found.exists(), log.read_text()[-4000:]
        result: Result = json.loads(found.read_text())
        assert "failed" not in result, result["failed"] + log.read_text()[-2000:]
        return result | {"log": log.read_text()}

    yield run
    process.stdin.close()
    process.wait(timeout=60)


@pytest.fixture(scope="module")
def stock(run: Run) -> Result:
    """The tokens of vLLM without the package."""
    return run("engine", environment={"VLLM_PLUGINS": ""})


@pytest.fixture(scope="module")
def cold(run: Run) -> Result:
    """The tokens with it."""
    return run("engine")


def _places() -> dict[str, Any]:
    from vllm_cold.vllm import patch_points
    from vllm_cold.vllm.frontend import refusal
    from vllm_cold.vllm.worker import workarounds

    needed = (*patch_points.at_start(), *patch_points.later(), *patch_points.of_front_ends())
    without = (*patch_points.of_v2_runner(), *patch_points.dispensable())
    others = (*without, *workarounds.patch_points(), *refusal.PATCH_POINTS)
    return {place.where: place for place in (*needed, *others)}


def _is_broken(kind: str, target: Target, elsewhere: tuple[str, ...]) -> bool:
    """Whether CoLD cannot be had; ``elsewhere``: places that are not wrapped in this process."""
    from vllm_cold.vllm import patch_points
    from vllm_cold.vllm.frontend import refusal
    from vllm_cold.vllm.worker import workarounds

    without = (*patch_points.of_v2_runner(), *patch_points.dispensable())
    not_needed = (*without, *workarounds.patch_points(), *refusal.PATCH_POINTS)
    if target.where in (*elsewhere, *(place.where for place in not_needed)):
        return False
    return kind == "renamed" or (kind == "signature" and bool(_places()[target.where].takes))


def _check_refused(result: Result, reason: str, *asked: str) -> None:
    """Whoever asked was told, and the log has it once."""
    assert reason in result["reason"]
    for way in asked:
        assert result[way] is not None, way
        assert result["reason"] in result[way], way
        assert "unrecognized" not in result[way]
    assert result["log"].count("CoLD is unavailable; vLLM runs as without it") == 1


def _said_of(kind: str, target: Target) -> str:
    """What the reason says of the place."""
    if kind == "renamed":
        return f"{target.label.removesuffix('.__init__')}"
    return f"{target.label} takes ({target.parameter}{changes.RENAMED}"


def test_every_place_is_changed() -> None:
    places = _places()
    assert sorted(target.where for target in TARGETS) == sorted(places)
    for target in TARGETS:
        takes = places[target.where].takes
        assert not takes or takes[0] == target.parameter, target.where


@pytest.mark.parametrize(
    ("kind", "target"), _cases(lambda kind, target: kind == "renamed" and target in IN_TURN)
)
def test_front_end(run: Run, kind: str, target: Target) -> None:
    """What a server does before its engine starts: options, configuration, requests."""
    result = run("server", CHANGES[kind](target))
    assert result["help"]
    assert result["base"] is None and result["adapter"] is None
    if _is_broken(kind, target, OFFLINE):
        _check_refused(result, _said_of(kind, target), "--sampler cold", "ColdParams", "extra_args")
    else:
        for way in ("--sampler cold", "ColdParams", "extra_args", "reason"):
            assert result[way] is None, way


@pytest.mark.parametrize(
    ("kind", "target"),
    _cases(lambda kind, target: kind == "renamed" and target.where.endswith(USUAL)),
)
def test_engine(run: Run, stock: Result, cold: Result, kind: str, target: Target) -> None:
    result = run("engine", CHANGES[kind](target))
    for way in ("base", "adapter", "beam search"):
        assert result[way] == stock[way], way
    if _is_broken(kind, target, ONLINE):
        ways = ("ColdParams", "extra_args", "additional_config")
        _check_refused(result, _said_of(kind, target), *ways)
    else:
        assert result["reason"] is None
        assert result["ColdParams"] == result["extra_args"] == cold["ColdParams"]
        assert result["ColdParams"] != stock["adapter"]


def test_engine_that_is_compiled(run: Run, stock: Result) -> None:
    """What comes to light late must not leave vLLM's own LoRA, which cannot be compiled, in a
    model that is.
    """
    (target,) = (t for t in TARGETS if t.where in OFFLINE)
    result = run("engine", changes.renamed(target), enforce_eager=False)
    _check_refused(result, target.label, "ColdParams", "extra_args", "additional_config")
    for way in ("base", "adapter", "beam search"):
        assert result[way] == stock[way], way
    assert not result["compiled"]


UNKNOWN = "0.34.0"


@pytest.mark.parametrize("version", [None, "0.32.9", UNKNOWN])
def test_what_is_relied_on_beside_the_methods_that_are_wrapped(
    run: Run, version: str | None
) -> None:
    """Whatever vLLM calls itself; of a version that no test ran on the log warns."""
    result = run("server", version=version)
    for way in ("--sampler cold", "ColdParams", "extra_args", "reason"):
        assert result[way] is None, way
    warned = f"vLLM {version}+cpu is not among the validated versions" in result["log"]
    assert warned == (version == UNKNOWN)

    result = run("server", changes.rename("evict_blocks"), version=version)
    _check_refused(result, LOST, "--sampler cold", "ColdParams", "extra_args")
    assert result["base"] is None and result["adapter"] is None


LOST = "KVCacheManager has no evict_blocks any more"


@pytest.mark.full
def test_engine_of_a_version_that_was_not_validated(run: Run, stock: Result, cold: Result) -> None:
    result = run("engine", version=UNKNOWN)
    assert result["reason"] is None
    assert result["ColdParams"] == cold["ColdParams"]

    result = run("engine", changes.rename("evict_blocks"), version=UNKNOWN)
    _check_refused(result, LOST, "ColdParams", "extra_args", "additional_config")
    for way in ("base", "adapter"):
        assert result[way] == stock[way]


OPTION = r"(def add_cli_args\(parser: .*\n +\"\"\"Shared CLI arguments for vLLM engine.\"\"\"\n)"
FIELD = r"^(class EngineArgs:\n    \"\"\"Arguments for vLLM engine.\"\"\"\n)"


def test_an_option_of_the_same_name_is_vllms(run: Run) -> None:
    file = "engine/arg_utils.py"
    choices = "default='usual', choices=['usual', 'other']"
    files = changes.edit(file, OPTION, rf"\1        parser.add_argument('--sampler', {choices})\n")
    files = changes.edit(file, FIELD, r"\1    sampler: str = 'usual'\n", files)
    result = run("server", files, arguments=["--sampler", "other", "--cold-alpha", "0.2"])
    assert result["own sampler"] == "other" and result["reason"] is None
    assert result["additional"]["cold"] == {"enabled": False, "alpha": 0.2}
    assert "argument --sampler: invalid choice: 'cold'" in result["--sampler cold"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--cold-alpha", "2"],
            "vllm serve: error: argument --cold-alpha: '2': must be a number in [0, 1]",
        ),
        (["--cold-beta-max", "1"], "vllm: error: --cold-beta-max=1.0: is for an adaptive beta"),
        (["--sampler", "coald"], "vllm serve: error: argument --sampler: invalid choice: 'coald'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_option_is_named(run: Run, arguments: list[str], message: str) -> None:
    result = run("command", arguments=arguments)
    said = result["log"] if result["exit"] == 2 else f"{result['exit']}\n"
    *before, last = said.splitlines()
    assert last.startswith(message)
    if result["exit"] == 2:
        assert before[-1] == "usage: vllm serve [model_tag] [options]"


def test_names_of_variables(run: Run) -> None:
    """vLLM warns of variables that begin like its own and that it does not know."""
    ours = {"COLD_ENABLED": "1", "COLD_SCORING": "torch", "COLD_LORA": "torch"}
    result = run("server", environment=ours)
    assert result["ColdParams"] is None
    assert "environment variable" not in result["log"]

    old = {"VLLM_COLD": "off", "VLLM_COLD_LORA": "torch"}
    result = run("server", environment=old)
    assert "COLD_ENABLED=0 is set" in result["ColdParams"]
    assert "Unknown vLLM environment variable detected: VLLM_COLD" in result["log"]
    assert result["log"].count("VLLM_COLD is now called COLD_ENABLED; use that name") == 1
