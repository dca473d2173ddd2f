# SPDX-License-Identifier: Apache-2.0
"""The blocks of docs/explain.md as a reader runs them."""

import json
import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, block
from tests.recipes.page import run, served, words
from tests.unit.test_explain_command import asks
from tests.vllm_parser import serve_parser

PAGE = "docs/explain.md"


@pytest.mark.engine
def test_one_prompt(tmp_path: Path, variables: dict[str, str]) -> None:
    script = block(PAGE, "prompt").rstrip() + " --dtype float32"
    printed = run(script, tmp_path, variables)
    page = (tmp_path / "sorting.html").read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert data
    [explained] = json.loads(data[1])["explanations"]
    assert [answer["title"] for answer in explained["answers"]] == ["Contrastive", "Greedy"]
    assert all(answer["steps"] for answer in explained["answers"])
    assert "against base model, weight -0.5" in printed and "page: sorting.html" in printed


@pytest.mark.engine
def test_limits(tmp_path: Path, variables: dict[str, str]) -> None:
    script = block(PAGE, "limits").rstrip() + " --dtype float32"
    printed = run(script, tmp_path, variables)
    page = (tmp_path / "shop.html").read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert data
    [explained] = json.loads(data[1])["explanations"]
    bounded, greedy = explained["answers"]
    [limit], [amateur] = bounded["limits"], explained["amateurs"]
    assert amateur["label"] == "base model without a text, limit 8 bits"
    assert "4711" not in str(amateur["pieces"]) and greedy["limits"] == []
    costs = [step["cost"][0] for step in bounded["steps"]]
    assert limit["spent"] == pytest.approx(sum(costs), abs=1e-3) and limit["bits"] == 8
    assert sum(max(cost, 0.0) for cost in costs) < 8.001
    left = [step["left"][0] for step in bounded["steps"]]
    assert (
        left[0] == 8 and min(left) >= 0 and all(step["weights"] == [] for step in bounded["steps"])
    )
    assert limit["reached"] == any(step["limited"][0] for step in bounded["steps"])
    assert "left of 8 bits: █" in printed and "weight" not in printed


COMMANDS = {
    "prompts": block(PAGE, "prompts"),
    "guided": block(PAGE, "guided"),
    "several": block(PAGE, "several"),
    "url": block(PAGE, "url"),
    "limits": block(PAGE, "limits"),
}


@pytest.mark.unit
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_asked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other commands of the page are taken, with their files."""
    monkeypatch.chdir(tmp_path)
    adapters = {"MODEL": "org/model", "URL": "http://localhost:8000"}
    adapters["ADAPTERS"] = str(ROOT / "examples" / "adapters")
    for file, here in re.findall(
        r"cat > (\S+) <<'END'\n(.*?)END\n", "".join(COMMANDS.values()), re.S
    ):
        Path(file).write_text(here)
    command = COMMANDS[name].rpartition("vllm-cold explain")[2]
    questions = asks(*words(command, adapters))
    labels = [str(amateur.source) for each in questions for amateur in each.contrast.amateurs]
    reads = {"guided": ["without system", "without 0:39"], "limits": ["without a text"]}
    assert labels == reads.get(name, ["None"] * 2)


@pytest.mark.unit
def test_the_server() -> None:
    options = served(block(PAGE, "server"), {"MODEL": "org/model", "ADAPTERS": "/adapters"})
    modules = serve_parser().parse_args(options).lora_modules
    assert [module.name for module in modules] == ["sorting", "orders"]
