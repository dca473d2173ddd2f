# SPDX-License-Identifier: Apache-2.0
"""The grid, and the line to paste: vLLM's own parser reads it back."""

from __future__ import annotations

import json
import shlex
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vllm_parser import serve_parser
from vllm_cold.method.arguments import parse_engine_defaults, parse_request_args
from vllm_cold.method.settings import ADAPTIVE, DEFAULT_BETA_MAX
from vllm_cold.tools.adapters import Adapter, engine_arguments
from vllm_cold.tools.contrast import read_contrast
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.grid import AXES, Setting, make_grid
from vllm_cold.tools.tune.serve import request_args, serve_line

pytestmark = pytest.mark.unit


def grid(alpha: str | None = None, beta: str | None = None, **more: str) -> list[Setting]:
    presets = more.pop("presets", None)
    return make_grid({"alpha": alpha, "beta": beta, **more}, presets)


def test_the_grid_is_a_product_each_point_once() -> None:
    assert grid("0.3, 0.1,0.1", "1,0.5") == [
        Setting(0.1, 0.5), Setting(0.1, 1.0), Setting(0.3, 0.5), Setting(0.3, 1.0),
    ]  # fmt: skip
    assert len(grid()) == 9 and grid("0.1", None) == grid("0.1", AXES["beta"])
    assert grid("0.1", "1", expert_top_k="20") == [Setting(0.1, 1.0, expert_top_k=20)]


def test_an_adaptive_beta_comes_behind_the_numbers() -> None:
    most = DEFAULT_BETA_MAX
    found = grid("0.3,0.1", "adaptive, 1,0.5,adaptive")
    assert [(s.alpha, s.beta, s.beta_max) for s in found] == [
        (0.1, 0.5, None), (0.1, 1.0, None), (0.1, "adaptive", most),
        (0.3, 0.5, None), (0.3, 1.0, None), (0.3, "adaptive", most),
    ]  # fmt: skip
    assert grid("0.1", "adaptive", beta_max="2") == [Setting(0.1, "adaptive", 2.0)]
    assert str(Setting(0.1, "adaptive", 2.0)) == "alpha 0.1, beta adaptive up to 2"
    for point, greedy in (
        (Setting(0.1, "adaptive", 2.0), False),
        (Setting(1.0, "adaptive", 2.0), True),
        (Setting(0.1, "adaptive", 0.0), True),
        (Setting(0.1, 0.5, expert_top_k=1), True),
        (Setting(0.1, 0.0, weights=(-0.5,)), False),
        (Setting(0.1, 0.5, weights=(0.0, 0.0)), True),
    ):
        assert point.is_greedy is greedy


def test_presets_stand_beside_a_grid_or_in_its_place() -> None:
    cad, adacad = Setting(0.0, 0.5, preset="cad"), Setting(0.0, "adaptive", 1.0, preset="adacad")
    assert grid(presets="cad, adacad,cad") == [cad, adacad]
    assert grid("0.1", "1", presets="cad") == [Setting(0.1, 1.0), cad]
    assert [s.preset for s in grid("0.1", presets="cad")] == [None, None, None, "cad"]
    (up_to_2,) = grid(presets="adacad", beta_max="2", expert_top_k="9")
    assert str(up_to_2) == "adacad (alpha 0, beta adaptive up to 2, top-k 9)"
    assert up_to_2.args == {
        "cold_preset": "adacad", "cold_alpha": 0.0, "cold_beta": "adaptive", "cold_beta_max": 2.0,
        "cold_expert_top_k": 9,
    }  # fmt: skip
    own = {**up_to_2.args, "cold_beta_max": 1.0}
    del own["cold_expert_top_k"]
    assert adacad.args == own
    (dexperts,) = grid(presets="dexperts")
    assert (dexperts.args, dexperts.strength) == (
        {"cold_preset": "dexperts", "cold_alpha": 0.0}, 1.0,
    )  # fmt: skip
    assert str(dexperts) == "dexperts (alpha 0, weights 1, -1)"
    for presets in ("cad,cfg", "cad"):
        with pytest.raises(ToolError, match="decodes as .* does; leave one out"):
            grid("0", "0.5", presets=presets)
    with pytest.raises(ToolError, match="--preset='what': must be one of cold, cad"):
        grid(presets="what")
    with pytest.raises(ToolError, match="--beta-max=2.0: is for an adaptive beta, and beta is cad"):
        grid(presets="cad", beta_max="2")


def test_weights_take_the_place_of_beta() -> None:
    (half,) = make_grid({"alpha": "0.1"}, weights=(-0.5,))
    assert half.args == {"cold_alpha": 0.1, "cold_weights": -0.5}
    (two,) = make_grid({"alpha": "0.1"}, weights=(0.25, "adaptive"))
    assert two.args == {
        "cold_alpha": 0.1, "cold_beta_max": DEFAULT_BETA_MAX, "cold_weights": [0.25, "adaptive"],
    }  # fmt: skip
    assert str(two) == "alpha 0.1, weights 0.25, adaptive up to 1"
    (cad,) = make_grid({}, "cad", weights=(-0.25,))
    assert cad.args == {"cold_preset": "cad", "cold_alpha": 0.0, "cold_weights": -0.25}
    with pytest.raises(ToolError, match="--beta='1': no amateur uses it"):
        make_grid({"beta": "1"}, weights=(-0.5,))


@given(
    st.sampled_from([None, "0.1", "0,1"]),
    st.sampled_from([None, "0.5", "1,adaptive", "adaptive"]),
    st.sampled_from([None, "3"]),
    st.sampled_from([None, "cad", "adacad", "cold,dexperts"]),
    st.sampled_from([(), (-0.5, 0.25), ("adaptive", -1.0)]),
)
def test_a_request_with_a_settings_arguments_is_decoded_with_it(
    alpha: str | None, beta: str | None, cap: str | None, presets: str | None, weights: Any
) -> None:
    beta = None if weights else beta
    try:
        found = make_grid({"alpha": alpha, "beta": beta, "expert_top_k": cap}, presets, weights)
    except ToolError as error:
        assert "decodes as" in str(error)
        return
    for setting in found:
        other = {"cold_amateur": ["a", "b"], "cold_amateur_prompt": ["A", "B"]}
        contrast = read_contrast({**other, **setting.args})
        told = [w.weight if not w.adaptive else ADAPTIVE for w in contrast.weights]
        assert told == ([*setting.weights] or [ADAPTIVE if setting.adaptive else -setting.beta] * 2)
        assert (contrast.settings.alpha, contrast.settings.expert_top_k) == (
            setting.alpha, setting.expert_top_k,
        )  # fmt: skip
        assert max(abs(w.weight) for w in contrast.weights) == setting.strength
        assert msgspec.convert(json.loads(json.dumps(setting.values)), Setting) == setting


def test_a_most_without_an_adaptive_beta() -> None:
    with pytest.raises(ToolError, match="--beta-max=2.0: is for an adaptive beta, and beta is 1,"):
        grid("0.1", "1,2", beta_max="2")
    with pytest.raises(ToolError, match=r"--beta-max=-1.0: must be a number >= 0, at most 1e6$"):
        grid("0.1", "1,adaptive", beta_max="-1")


def test_points_that_are_greedy() -> None:
    assert [setting.is_greedy for setting in grid("0.1,1", "0,0.5")] == [True, False, True, True]
    for more in ({"alpha": "1"}, {"beta": "0"}, {"expert_top_k": "1"}):
        with pytest.raises(ToolError, match="there is nothing to compare"):
            grid(**more)


@pytest.mark.parametrize(
    ("alphas", "betas", "message"),
    [
        ("-1", "1", r"--alpha=-1.0: must be a number in \[0, 1\]"),
        ("1.5", "1", r"--alpha=1.5: must be a number in \[0, 1\]"),
        ("nan", "1", r"--alpha=nan: must be"),
        ("0.1", "-1", r"--beta=-1.0: must be a number >= 0"),
        ("0.1", "inf", r"--beta=inf: must be"),
        ("0.1,", "1", r"--alpha='': must be a number"),
        ("0.1", "half", r"--beta='half': must be a number >= 0, at most 1e6, or 'adaptive'"),
        ("adaptive", "1", r"--alpha='adaptive': must be a number in"),
    ],
)
def test_wrong_grids(alphas: str, betas: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        grid(alphas, betas)


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
        **engine_arguments(adapters),
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
    adapter = Adapter("sql", "/sql", 8)
    line = serve_line("org/model", [adapter], engine_arguments([adapter]), None)
    assert line == (
        "vllm serve org/model --enable-lora --max-loras 1 --max-lora-rank 8 --lora-modules sql=/sql"
    )
    assert parse(line).sampler is None
    assert serve_line("org/model", [], engine_arguments([]), None) == "vllm serve org/model"
    engine = {"additional_config": {"other": 1, **engine_arguments([])["additional_config"]}}
    assert parse(serve_line("M", [], engine, None)).additional_config == {"other": 1}


CASES: list[tuple[Setting, dict[str, Any], bool, dict[str, Any]]] = [
    (Setting(0.1, 0.5), {"cold_without": "system"}, False, {}),
    (Setting(0.1, 0.5), {"cold_without": ["system", 2]}, False, {}),
    (Setting(0.0, 0.5, preset="cfg"), {"cold_without": 1}, False, {}),
    (Setting(0.0, "adaptive", 2.0, 7, preset="adacad"), {"cold_without": "tool"}, False, {}),
    (Setting(0.1, 0.5, preset="cold"), {}, False, {}),
    # What no server has a default for.
    (Setting(0.1, 0.5), {"cold_part": "0:5"}, False, {"cold_part": "0:5"}),
    (Setting(0.0, 0.5, preset="cad"), {}, True, {}),
    (
        Setting(0.0, 0.5, preset="dexperts", weights=(1.0, -1.0)),
        {"cold_amateur": ["a", "b"]},
        False,
        {"cold_amateur": ["a", "b"], "cold_weights": [1.0, -1.0]},
    ),
    (
        Setting(0.1, "adaptive", 2.0, weights=("adaptive",)),
        {"cold_without": "system"},
        False,
        {"cold_weights": "adaptive", "cold_beta_max": 2.0},
    ),
]


@pytest.mark.parametrize(("setting", "args", "own", "sent"), CASES)
def test_line_and_requests_together_say_what_was_measured(
    setting: Setting, args: dict[str, Any], own: bool, sent: dict[str, Any]
) -> None:
    assert request_args(setting, args, own) == sent
    found = parse(serve_line("M", [], engine_arguments([]), setting, args, own))
    assert found.sampler == "cold"
    engine = {name[5:]: v for name, v in vars(found).items() if name[:5] == "cold_"}
    defaults = parse_engine_defaults({k: v for k, v in engine.items() if v is not None})
    row = {"cold_amateur_prompt": "the row's own"} if own else {}
    request = parse_request_args({**sent, **row})
    weights = [*setting.weights] or [None]
    settings, resolved = request.settings(defaults, weights)
    measured = read_contrast({"cold_amateur": "a", **args, **row, **setting.args})
    assert (settings.alpha, settings.expert_top_k) == (setting.alpha, setting.expert_top_k)
    assert resolved == measured.weights
    if not sent and not own:
        without = defaults.contrast.without
        assert without == (
            ",".join(map(str, w)) if isinstance(w := args.get("cold_without"), list) else w
        )
