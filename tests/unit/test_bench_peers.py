# SPDX-License-Identifier: Apache-2.0
"""The comparison with other programs: what runs, what they choose, and the tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import bench_peers as bench
from benchmarks.e2e import naive
from benchmarks.peers import llama, run, show
from benchmarks.rounds import show_if_right

pytestmark = [pytest.mark.unit, pytest.mark.slow]

PROMPTS = [[1, 2, 3], [4, 5]]


def options(*arguments: str) -> Any:
    return bench.parse(arguments)


def made(dtype: str, batch: int, *arguments: str, missing: Any = ()) -> dict[str, Any]:
    return run.make_jobs(dtype, PROMPTS, batch, options("--tokens", "3", *arguments), missing)


def test_contrast_is_the_method() -> None:
    torch.manual_seed(0)
    expert, amateur = 3 * torch.randn(2, 40, 300)
    want = naive.scores(expert, amateur, beta=0.5).argmax(-1).tolist()
    assert llama.contrast(expert.numpy(), amateur.numpy(), 0.5) == want
    assert want != expert.argmax(-1).tolist()


def found(dtype: str, *arguments: str) -> run.Found:
    """Each system takes a second, llama.cpp three; its last token is another one."""
    jobs = made(dtype, 1, *arguments)
    for job in jobs.values():
        other = job.system.family.startswith("llama")
        job.output = [[1, 2, 9 if other else 3]]
        seconds = 3.0 if other else 1.0
        for _ in range(job.rounds):
            times = {"seconds": seconds, "first": [seconds / 2], "last": [seconds]}
            job.record({**times, "blocks": 0, "tokens": job.output})
    return run.Found(table={f"{dtype}, batch 1": jobs})


def test_tables() -> None:
    result = found("bfloat16", "--systems", "plugin", "llama", "llama-q8")
    cells = {row[0]: row for row in show.rows("bfloat16, batch 1", result)}
    assert cells["llama.cpp, CoLD"][1:] == [
        "67%", "3.00 (3.00-3.00)", "1500 (1500-1500)", "750 (750-750)", "1.00",
        "3.00 (3.00-3.00)",
    ]  # fmt: skip
    assert cells["this package, adapter"][-1] == "1.00 (1.00-1.00)"
    assert not any(name.startswith("transformers") for name in cells)  # it was not timed
    page = show.pages(result)
    assert "### bfloat16, batch 1" in page and "No CoLD in stock" in page
    assert {each["system"] for each in result.content()["runs"]} >= {"llama.cpp, Q8_0, CoLD"}
    assert run.Found(wrong=["x"]).content() == {"problems": ["x"]}


def test_no_speed_beside_a_wrong_token(capsys: pytest.CaptureFixture[str]) -> None:
    result = found("float32", "--systems", "plugin", "llama")
    [jobs] = result.table.values()
    wrong, notes = run.check_cell("t", True, jobs, lambda *_: 1.0, run.equal(True))
    near, ties = run.check_cell("t", True, jobs, lambda *_: 0.01, run.equal(True), run.PEERS_TIE)
    assert near == [] and len(ties) == 3 and "1.0e-02 apart" in ties[0]
    assert not run.check_cell("t", True, jobs, lambda *_: 1.0, run.equal(False))[0]
    assert len(wrong) == 2 and all("llama.cpp" in each for each in wrong)
    assert "66.7% of llama.cpp, CoLD" in notes[0]
    assert show_if_right(wrong, lambda: print(show.pages(result))) == 1
    assert "time ratio" not in capsys.readouterr().out
