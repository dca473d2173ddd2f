# SPDX-License-Identifier: Apache-2.0
"""The grid, and the line to paste: vLLM's own parser reads it back."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from tests.vllm_parser import serve_parser
from vllm_cold.method.settings import DEFAULT_BETA_MAX
from vllm_cold.tools.adapters import Adapter
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.grid import Setting, make_grid
from vllm_cold.tools.tune.serve import serve_line

pytestmark = pytest.mark.unit


def test_the_grid_is_a_product_each_point_once() -> None:
    grid = make_grid("0.3, 0.1,0.1", "1,0.5")
    assert grid == [Setting(0.1, 0.5), Setting(0.1, 1.0), Setting(0.3, 0.5), Setting(0.3, 1.0)]


def test_an_adaptive_beta_comes_behind_the_numbers() -> None:
    most = DEFAULT_BETA_MAX
    grid = make_grid("0.3,0.1", "adaptive, 1,0.5,adaptive")
    assert [(s.alpha, s.beta, s.beta_max) for s in grid] == [
        (0.1, 0.5, None), (0.1, 1.0, None), (0.1, "adaptive", most),
        (0.3, 0.5, None), (0.3, 1.0, None), (0.3, "adaptive", most),
    ]  # fmt: skip
    assert make_grid("0.1", "adaptive", 2) == [Setting(0.1, "adaptive", 2.0)]
    assert str(Setting(0.1, "adaptive", 2.0)) == "alpha 0.1, beta adaptive up to 2"
    for point, greedy in (
        (Setting(0.1, "adaptive", 2.0), False),
        (Setting(1.0, "adaptive", 2.0), True),
        (Setting(0.1, "adaptive", 0.0), True),
    ):
        assert point.is_greedy is greedy


def test_a_most_without_an_adaptive_beta() -> None:
    with pytest.raises(ToolError, match="--beta-max=2.0: is for an adaptive beta, and beta is 1,"):
        make_grid("0.1", "1,2", 2.0)
    with pytest.raises(ToolError, match=r"--beta-max=-1.0: must be a number >= 0, at most 1e6$"):
        make_grid("0.1", "1,adaptive", -1.0)


def test_points_that_are_greedy() -> None:
    grid = make_grid("0.1,1", "0,0.5")
    assert [setting.is_greedy for setting in grid] == [True, False, True, True]
    with pytest.raises(ToolError, match="there is nothing to compare"):
        make_grid("1", "0,0.5")


@pytest.mark.parametrize(
    ("alphas", "betas", "message"),
    [
        ("-1", "1", r"--alpha=-1.0: must be a number in \[0, 1\]"),
        ("1.5", "1", r"--alpha=1.5: must be a number in \[0, 1\]"),
        ("nan", "1", r"--alpha=nan: must be"),
        ("0.1", "-1", r"--beta=-1.0: must be a number >= 0"),
        ("0.1", "inf", r"--beta=inf: must be"),
        ("0.1,", "1", r"--alpha='0.1,': '' is not a number"),
        ("0.1", "half", r"--beta='half': 'half' is not a number; .* such as 0.5,1,adaptive"),
        ("adaptive", "1", r"--alpha='adaptive': 'adaptive' is not a number; .* such as 0.1,0.3"),
    ],
)
def test_wrong_grids(alphas: str, betas: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        make_grid(alphas, betas)


def parse(line: str) -> Any:
    """The line, as ``vllm serve`` reads it with the plugin."""
    from vllm_cold.vllm import patching
    from vllm_cold.vllm.frontend import cli

    words = shlex.split(line)
    assert words[:2] == ["vllm", "serve"]
    patching.install(cli.PLACES)
    return serve_parser().parse_args(words[2:])


def test_the_line_says_what_was_measured() -> None:
    adapters = [
        Adapter("sql", "/data/it's here/sql", 16),
        Adapter("chat", "/data/a=b,c/chat", 16),
    ]
    engine = {
        "max_lora_rank": 16,
        "max_loras": 2,
        "dtype": "bfloat16",
        "max_model_len": 1024,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "hf_overrides": {"rope_theta": 1e6},
        "quantization": None,
        "enable_chunked_prefill": None,
        "cudagraph_capture_sizes": [1, 2, 8],
        "ignore_patterns": ["a b/*", "c"],
        "logits_processors": [],
    }
    found = parse(serve_line("/models/my model", adapters, engine, Setting(0.05, 1e-05)))
    assert found.model_tag == "/models/my model"
    assert found.enable_lora
    assert [(m.name, m.path) for m in found.lora_modules] == [
        ("sql", "/data/it's here/sql"),
        ("chat", "/data/a=b,c/chat"),
    ]
    assert (found.max_lora_rank, found.max_loras) == (16, 2)
    assert (found.dtype, found.max_model_len) == ("bfloat16", 1024)
    assert found.enforce_eager is True
    assert found.enable_prefix_caching is False
    assert found.hf_overrides == {"rope_theta": 1e6}
    assert found.quantization is None and found.enable_chunked_prefill is None
    assert found.cudagraph_capture_sizes == [1, 2, 8]
    assert found.ignore_patterns == ["a b/*", "c"]
    assert not found.logits_processors
    assert (found.sampler, found.cold_alpha, found.cold_beta) == ("cold", 0.05, 1e-05)


def test_the_line_of_an_adaptive_beta() -> None:
    adapter = Adapter("sql", "/sql", 8)
    found = parse(serve_line("org/model", [adapter], {}, Setting(0.1, "adaptive", 1.5)))
    assert (found.cold_alpha, found.cold_beta, found.cold_beta_max) == (0.1, "adaptive", 1.5)
    found = parse(serve_line("org/model", [adapter], {}, Setting(0.1, 0.5)))
    assert found.cold_beta_max is None


def test_the_greedy_line_has_no_cold_in_it() -> None:
    line = serve_line("org/model", [Adapter("sql", "/sql", 8)], {"max_lora_rank": 8}, None)
    assert line == ("vllm serve org/model --enable-lora --lora-modules sql=/sql --max-lora-rank 8")
    assert parse(line).sampler is None
