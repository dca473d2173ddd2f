# SPDX-License-Identifier: Apache-2.0
"""The page of methods: its rule is one, and its tables are what the package has."""

import re
from pathlib import Path

import pytest
import torch

from tests.docs.blocks import ROOT, block
from tests.recipes.page import served, words
from tests.vllm_parser import serve_parser
from vllm_cold.ops.interface import Groups
from vllm_cold.rules import registry
from vllm_cold.rules.statistics import Statistics
from vllm_cold.settings.presets import PRESETS
from vllm_cold.tools.contrast_args import add_rules
from vllm_cold.tools.main import build_parser

pytestmark = pytest.mark.unit

PAGE = "docs/methods.md"
OWN = ROOT / "docs" / "write-a-rule.md"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block is where the page says, and the registry is as before afterwards."""
    (tmp_path / "my_rules.py").write_text(block("docs/write-a-rule.md", "rule"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_added", {})


@pytest.mark.usefixtures("own")
def test_the_rule_does_what_it_says() -> None:
    rule = registry.add("my_rules:Conflict")
    assert registry.get("conflict") is rule
    # Three groups of an expert and an amateur: the same best token, another one, the same.
    logits = torch.tensor([[5.0, 1, 0], [3, 2, 1], [5, 1, 0], [1, 5, 0], [0, 0, 2], [1, 0, 9]])
    s = Statistics(
        logits,
        Groups(torch.arange(6).view(3, 2), torch.zeros(3, 1), torch.full((3,), -torch.inf)),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(3, 1, 0),
    )

    class Given:
        beta = torch.tensor([[1.0], [2.0], [3.0]])

    assert torch.equal(rule.weights(s, Given), torch.tensor([[0.0], [-2.0], [0.0]]))


def test_the_example_package_has_the_same_rules() -> None:
    files = ROOT / "examples" / "rule"
    shown = block("docs/write-a-rule.md", "rule")
    assert (files / "cold_conflict.py").read_text().endswith(shown)
    shown = block("docs/write-a-rule.md", "scores")
    assert (files / "cold_robust_rag.py").read_text().endswith(shown)


@pytest.mark.usefixtures("own")
def test_the_server_takes_it(tiny: Path) -> None:
    """As an option, and as what the page says for offline."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    options = served(block("docs/write-a-rule.md", "serve"), {"MODEL": str(tiny / "model")})
    parsed = serve_parser().parse_args(options)
    parsed.model = parsed.model_tag  # as ``vllm serve`` does
    cold = AsyncEngineArgs.from_cli_args(parsed).additional_config["cold"]
    (offline,) = re.findall(r'additional_config=({"cold": .+?}})', OWN.read_text())
    assert {"cold": cold} == eval(offline, {})
    assert "conflict" in registry.names()
    # Next to rules that the configuration has, and a preset there that is none.
    parsed.additional_config = {"cold": {"rules": ["my_rules:Conflict"], "rule": "conflict"}}
    both = AsyncEngineArgs.from_cli_args(parsed).additional_config["cold"]
    assert both == {"rules": ["my_rules:Conflict"] * 2, "rule": "conflict"}
    parsed.additional_config = {"cold": {"preset": "cda"}}
    with pytest.raises(SystemExit, match="^vllm: error: --cold-preset='cda': must be one of cold"):
        AsyncEngineArgs.from_cli_args(parsed)
    parsed.additional_config = {}
    parsed.cold_rules = ["my_rules:Nothing"]
    with pytest.raises(SystemExit, match="^vllm: error: --cold-rule='my_rules:Nothing': cannot be"):
        AsyncEngineArgs.from_cli_args(parsed)


def rows(page: str, heading: str) -> dict[str, str]:
    """The rows of a section's first table, by the name in their first column."""
    section = (ROOT / page).read_text().split(f"\n{heading}\n")[1]
    table = section.split("\n|---")[1].split("\n\n")[0]
    found = [re.match(r"\| `(\w+)` \|", line) for line in table.splitlines()]
    return {m[1]: m.string for m in found if m}


def test_each_rule_is_in_the_table_with_its_defaults() -> None:
    of_page = rows(PAGE, "## The rules")
    assert of_page.keys() == {*registry.BUILT_IN}
    for name, row in of_page.items():
        declared = registry.get(name).parameters.items()
        defaults = [(key, f"{p.default:g}") for key, p in declared if p.default is not None]
        assert re.findall(r"`(\w+)` ([\d.e+]+)", row.split(" | ")[3]) == defaults
    presets = rows("docs/parameters.md", "## Presets")
    assert presets.keys() == PRESETS.keys()
    for name, preset in PRESETS.items():
        rule = preset.settings.get("rule")
        if isinstance(rule, str):
            assert f"| {preset.settings['alpha']:g} | rule `{rule}` |" in presets[name]


@pytest.mark.usefixtures("own")
def test_the_tools_take_it() -> None:
    """By the page's commands, of a rule that is made known and named."""
    explain = block("docs/write-a-rule.md", "explain-rule")
    for command in (explain, block("docs/write-a-rule.md", "tune-rule")):
        options = build_parser().parse_args(words(command, {})[1:])
        assert (options.rules, options.rule) == (["my_rules:Conflict"], "conflict")
        add_rules(options.rules)
        assert "conflict" in registry.names()


def test_what_a_rule_can_use_is_on_its_page() -> None:
    """All public names of the statistics."""
    (table,) = re.findall(r"\| attribute \|.*\n((?:\|.*\n)+)", OWN.read_text())
    shown = set(re.findall(r"`s\.(\w+)", table))
    public = {name for name in vars(Statistics) if name[0] != "_"}
    public |= {"step", "state", "paid", "temperature"}
    assert shown == public
