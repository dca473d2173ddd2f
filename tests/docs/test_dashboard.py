# SPDX-License-Identifier: Apache-2.0
"""The board of docs/metrics.md is one that Grafana's published schema knows, and asks in PromQL.

That its metrics exist is tests/unit/test_step_stats.py's.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.docs.blocks import ROOT

pytestmark = pytest.mark.unit

BOARD = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text(encoding="utf-8"))


def lost(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """What of ``before`` is not in ``after``."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after.get(key), f"{where}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, values in enumerate(zip(before, after, strict=True)):
            yield from lost(*values, f"{where}[{index}]")
    elif before != after:
        yield where


def after_reading(board: Any) -> Any:
    """A board as Grafana's types keep it: what they do not know is gone."""
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(board)))


def test_the_schema_knows_all_of_it() -> None:
    assert list(lost(BOARD, after_reading(BOARD))) == []
    changed = json.loads(json.dumps(BOARD).replace('"legendFormat"', '"legendFormats"'))
    assert list(lost(changed, after_reading(changed)))


def test_queries_are_promql() -> None:
    queries = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    names = [variable["name"] for variable in BOARD["templating"]["list"]]
    assert len(queries) > 10
    for query in queries:
        assert set(re.findall(r"\$(\w+)", query)) <= {*names, "__rate_interval"}, query
        promql_parser.parse(re.sub(r"\$\w+", "5m", query))
    with pytest.raises(ValueError):
        promql_parser.parse("sum by method (rate(x[5m]))")
