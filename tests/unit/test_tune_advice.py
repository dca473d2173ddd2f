# SPDX-License-Identifier: Apache-2.0
"""The grid, and the line to paste: vLLM's own parser reads it back."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vllm_parser import serve_parser
from vllm_cold.method.arguments import parse_engine_defaults, parse_request_args
from vllm_cold.method.settings import ADAPTIVE, DEFAULT_BETA_MAX
from vllm_cold.tools.adapters import Adapter, engine_arguments
from vllm_cold.tools.contrast import read_contrast
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.advice import request_args, serve_line
from vllm_cold.tools.tune.grid import AXES, Setting, make_grid, weights_of

pytestmark = pytest.mark.unit


def test_the_grid_is_a_product_each_point_once_the_mildest_first() -> None:
    found = make_grid({"alpha": "0.3, 0.1,0.1", "beta": "1,adaptive, 0.5"})
    assert found == [
        Setting(alpha=0.3, beta=0.5),
        Setting(alpha=0.1, beta=0.5),
        Setting(alpha=0.3, beta=1.0),
        Setting(alpha=0.1, beta=1.0),
        Setting(alpha=0.3, beta="adaptive", beta_max=DEFAULT_BETA_MAX),
        Setting(alpha=0.1, beta="adaptive", beta_max=DEFAULT_BETA_MAX),
    ]
    assert len(make_grid({})) == 9
    assert make_grid({"alpha": "0.1"}) == make_grid({"alpha": "0.1", "beta": AXES["beta"]})
    (one,) = make_grid({"alpha": "0.1", "beta": "adaptive", "beta_max": "2", "expert_top_k": "20"})
    assert str(one) == "alpha 0.1, beta adaptive, beta_max 2, expert_top_k 20"
    assert Setting(**json.loads(json.dumps(one.values))) == one


def test_presets_stand_beside_a_grid_or_in_its_place() -> None:
    cad, adacad = Setting("cad"), Setting("adacad", beta_max=1.0)
    assert make_grid({}, "cad, adacad,cad") == [cad, adacad]
    assert make_grid({"alpha": "0.1", "beta": "1"}, "cad") == [Setting(alpha=0.1, beta=1.0), cad]
    assert [s.preset for s in make_grid({"alpha": "0.1"}, "cad")] == [None, None, None, "cad"]
    (up_to_2,) = make_grid({"beta_max": "2", "expert_top_k": "9"}, "adacad")
    assert up_to_2.args == {
        "cold_preset": "adacad", "cold_beta_max": 2.0, "cold_expert_top_k": 9,
    }  # fmt: skip


def test_weights_take_the_place_of_beta() -> None:
    (half,) = make_grid({"alpha": "0.1"}, weights=(-0.5,))
    assert half.args == {"cold_alpha": 0.1, "cold_weights": -0.5}
    (two,) = make_grid({"alpha": "0.1"}, weights=(0.25, "adaptive"))
    assert two.args == {
        "cold_alpha": 0.1, "cold_beta_max": DEFAULT_BETA_MAX, "cold_weights": [0.25, "adaptive"],
    }  # fmt: skip
    assert str(two) == "alpha 0.1, beta_max 1, weights 0.25, adaptive"
    (cad,) = make_grid({}, "cad", weights=(-0.25,))
    assert cad.args == {"cold_preset": "cad", "cold_weights": -0.25}


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
    given = {"alpha": alpha, "beta": None if weights else beta, "expert_top_k": cap}
    for setting in make_grid(given, presets, weights):
        other = {"cold_amateur": ["a", "b"], "cold_amateur_prompt": ["A", "B"]}
        contrast = read_contrast({**other, **setting.args})
        told = [w.weight if not w.adaptive else ADAPTIVE for w in contrast.weights]
        knobs = {"alpha": 0.1, "beta": 0.5, **setting.knobs}
        beta_told = [ADAPTIVE if knobs["beta"] == ADAPTIVE else -knobs["beta"]] * 2
        assert told == [*weights_of(setting)] or (told == beta_told and not weights_of(setting))
        assert contrast.settings.alpha == knobs["alpha"]
        assert contrast.settings.expert_top_k == (None if cap is None else 3)


@pytest.mark.parametrize(
    ("given", "presets", "weights", "message"),
    [
        ({"alpha": "-1"}, None, (), r"--alpha=-1.0: must be a number in \[0, 1\]"),
        ({"alpha": "nan"}, None, (), r"--alpha=nan: must be"),
        ({"alpha": "0.1,"}, None, (), r"--alpha='': must be a number"),
        ({"alpha": "adaptive"}, None, (), r"--alpha='adaptive': must be a number in"),
        ({"beta": "half"}, None, (), r"--beta='half': must be a number >= 0, at most 1e6, or 'ada"),
        ({"beta": "inf"}, None, (), r"--beta=inf: must be"),
        ({"beta": "1"}, None, (-0.5,), r"--beta='1': no amateur uses it"),
        ({"beta_max": "-1"}, None, (), r"--beta-max=-1.0: must be a number >= 0, at most 1e6$"),
        ({"beta_max": "2"}, None, (), r"--beta-max=2.0: is for an adaptive beta, and beta is 0.25"),
        ({"beta_max": "2"}, "cad", (), r"--beta-max=2.0: is for an adaptive beta, and beta is cad"),
        ({}, "what", (), r"--preset='what': must be one of cold, cad"),
    ],
)
def test_wrong_grids(given: Any, presets: str | None, weights: Any, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        make_grid(given, presets, weights)


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
    found = parse(serve_line("/models/my model", adapters, engine, Setting(alpha=0.05, beta=1e-05)))
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
    (Setting(alpha=0.1, beta=0.5), {"cold_without": "system"}, False, {}),
    (Setting(alpha=0.1, beta=0.5), {"cold_without": ["system", 2]}, False, {}),
    (Setting(alpha=0.1, beta="adaptive", beta_max=1.5), {}, False, {}),
    (Setting("cfg"), {"cold_without": 1}, False, {}),
    (Setting("adacad", beta_max=2.0, expert_top_k=7), {"cold_without": "tool"}, False, {}),
    (Setting("cold"), {}, False, {}),
    # What no server has a default for.
    (Setting(alpha=0.1, beta=0.5), {"cold_part": "0:5"}, False, {"cold_part": "0:5"}),
    (Setting("cad"), {}, True, {}),
    (
        Setting("dexperts"),
        {"cold_amateur": ["a", "b"]},
        False,
        {"cold_amateur": ["a", "b"], "cold_weights": [1.0, -1.0]},
    ),
    (
        Setting(alpha=0.1, beta_max=2.0, weights=("adaptive",)),
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
    settings, resolved = request.settings(defaults, [*weights_of(setting)] or [None])
    measured = read_contrast({"cold_amateur": "a", **args, **row, **setting.args})
    assert settings == measured.settings
    assert resolved == measured.weights
    if not sent and not own:
        without = defaults.contrast.without
        assert without == (
            ",".join(map(str, w)) if isinstance(w := args.get("cold_without"), list) else w
        )
