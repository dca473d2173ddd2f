# SPDX-License-Identifier: Apache-2.0
"""The report of a device: no speed next to a wrong result, and no names.
(tests/engine/test_device_report.py makes one.)
"""

import getpass
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import device_report as report

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_what_is_wrong_has_no_speed() -> None:
    stages = report.plan("cuda", False)
    assert [stage.speed for stage in stages] == [False] * 4 + [True] * 3
    ran: list[str] = []

    def run(stage: report.Stage) -> tuple[int, str]:
        ran.append(stage.title)
        return int(stage.title == wrong), f"output of {stage.title}"

    wrong = ""
    right, text = report.make_report(stages, "", run)
    assert right and text.startswith("# vllm-cold on a device: PASS")
    assert ran == [stage.title for stage in stages]
    ran.clear()
    wrong = "kernels against the reference"
    right, text = report.make_report(stages, report.DRY_NOTE, run)
    assert not right and "FAIL" in text and report.DRY_NOTE in text
    assert ran == [stage.title for stage in stages if not stage.speed]
    assert text.count("left out") == 3 and "output of scoring" not in text


def test_a_wrong_kernel_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vllm_cold.ops import backend_registry

    right = backend_registry.load("torch")

    def scores(logits: Any, groups: Any, out: Any, statistics: Any) -> None:
        right.scores(logits, groups, out, statistics)
        if out is None:
            logits[0, -1] = 1e4

    monkeypatch.setattr(backend_registry, "load", lambda name: SimpleNamespace(scores=scores))
    assert report.check_kernels("cpu", dry=True) == 1
    first, *others = capsys.readouterr().out.strip().splitlines()
    count, total = int(first.split()[0]), int(first.split()[2])
    assert 0 < count < total > 30 and others  # some forms are right


def test_no_names() -> None:
    text = (
        "File '/home/ann/x/vllm_cold/a.py' and /usr/lib/python3.11/site-packages/torch/b.py, on "
        "host-7 (10.1.2.3, fe80::1:2:3:4:5) of ann; 3/4 of GB/s"
    )
    assert report.nameless(text, ["host-7", "ann"]) == (
        "File '.../a.py' and torch/b.py, on NAME (ADDRESS, ADDRESS) of NAME; 3/4 of GB/s"
    )
    known = {socket.gethostname(), socket.gethostname().split(".")[0], getpass.getuser()}
    assert set(report.names_here()) <= known
