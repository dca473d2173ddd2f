# SPDX-License-Identifier: Apache-2.0
"""The grid, and the line to paste: vLLM's own parser reads it back."""

import json
import shlex
from typing import Any

import pytest

from tests.vllm_parser import serve_parser
from vllm_cold.settings.arguments import parse_engine_defaults, parse_request_args
from vllm_cold.tools.adapters import Adapter, engine_arguments
from vllm_cold.tools.contrast_args import read_contrast
from vllm_cold.tools.tune.grid import AXES, Setting, make_grid
from vllm_cold.tools.tune.tune_report import serve_line, server_defaults

pytestmark = pytest.mark.unit

TAU = '{"tau": 2}'


def test_the_grid_is_a_product_each_point_once_the_mildest_first() -> None:
    found = make_grid({"alpha": "0.3, 0.1,0.1", "beta": "1, 0.5,1", "rule": "adaptive,acd"})
    assert found == [
        Setting(alpha=0.3, beta=0.5),
        Setting(alpha=0.1, beta=0.5),
        Setting(alpha=0.3, beta=1.0),
        Setting(alpha=0.1, beta=1.0),
        Setting(alpha=0.3, rule="acd"),
        Setting(alpha=0.1, rule="acd"),
        Setting(alpha=0.3, rule="adaptive"),
        Setting(alpha=0.1, rule="adaptive"),
    ]
    assert len(make_grid({})) == 9
    assert make_grid({"alpha": "0.1"}) == make_grid({"alpha": "0.1", "beta": AXES["beta"]})
    (one,) = make_grid({"alpha": "0.1", "beta": "2", "expert_top_k": "20"})
    assert str(one) == "alpha 0.1, beta 2, expert_top_k 20"
    assert Setting(**json.loads(json.dumps(one.values))) == one
    assert hash(one) != hash(found[0])  # answers are kept by it


def test_parameters_are_for_points_with_a_rule() -> None:
    given = {"alpha": "0.1", "beta": "0.5", "rule": "mti", "rule_parameters": TAU}
    assert make_grid(given, "mti,cad") == [
        Setting(alpha=0.1, beta=0.5),
        Setting(alpha=0.1, rule="mti", rule_parameters=TAU),
        Setting("mti", rule_parameters=TAU),
        Setting("cad"),
    ]
    # A weight may name one, for all; where nothing does, the method refuses them.
    cad, mti = Setting("cad", rule_parameters=TAU), Setting("mti", rule_parameters=TAU)
    assert make_grid({"rule_parameters": TAU}, "cad,mti", ["mti", 0.5]) == [cad, mti]
    assert make_grid({"rule_parameters": TAU}, "cad") == [cad]


def test_presets_stand_beside_a_grid_or_in_its_place() -> None:
    cad, adacad = Setting("cad"), Setting("adacad")
    limited = [Setting(preset="bound", bits=8.0), Setting(preset="bound", bits=16.0)]
    assert make_grid({"bits": "8,16"}, "bound,cad") == [*limited, cad]
    assert str(limited[0]) == "bound, bits 8"
    # No alpha, unless it is said: then the method refuses it.
    assert make_grid({"rule": "bound", "bits": "8"}) == [Setting(rule="bound", bits=8.0)]
    assert make_grid({"rule": "bound", "alpha": "0.1"}) == [Setting(rule="bound", alpha=0.1)]
    assert make_grid({"bits": "8"}, "cad") == [Setting(preset="cad", bits=8.0)]
    assert make_grid({}, "cad, adacad,cad") == [cad, adacad]
    assert make_grid({"alpha": "0.1", "beta": "1"}, "cad") == [Setting(alpha=0.1, beta=1.0), cad]
    assert [s.preset for s in make_grid({"alpha": "0.1"}, "cad")] == [None, None, None, "cad"]
    (up_to_2,) = make_grid({"rule_parameters": '{"beta_max": 2}', "expert_top_k": "9"}, "adacad")
    assert up_to_2.args == {
        "cold_preset": "adacad",
        "cold_rule_parameters": '{"beta_max": 2}',
        "cold_expert_top_k": 9,
    }


def test_weights_take_the_place_of_beta() -> None:
    assert make_grid({"alpha": "0.1"}, weights=-0.5) == [Setting(alpha=0.1)]
    assert make_grid({"alpha": "0.1", "beta": "1"}, weights=["mti", ""]) == [
        Setting(alpha=0.1, beta=1.0)
    ]
    assert make_grid({}, "cad", weights=-0.25) == [Setting("cad")]


def parse(line: str) -> Any:
    """The line, as ``vllm serve`` reads it with the plugin."""
    from vllm_cold.compat import patching, places

    words = shlex.split(line)
    assert words[:2] == ["vllm", "serve"]
    patching.install(places.rows(places.START))
    return serve_parser().parse_args(words[2:])


def test_the_line_says_what_was_measured() -> None:
    adapters = [
        Adapter("sql", "/data/it's here/sql", 16),
        Adapter("chat", "/data/a=b,c/chat", 16),
        Adapter("-v2", "/data/-v2", 16),
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
    found = parse(serve_line("/models/my model", adapters, engine, {"alpha": 0.05, "beta": 1e-05}))
    assert [(m.name, m.path) for m in found.lora_modules] == [
        (one.name, one.folder) for one in adapters
    ]
    said = {name: getattr(found, name) for name in engine}
    assert said == {**engine, "logits_processors": said["logits_processors"]}
    assert found.model_tag == "/models/my model" and not found.logits_processors
    assert (found.sampler, found.cold_alpha, found.cold_beta) == ("cold", 0.05, 1e-05)


def test_the_greedy_line_has_no_cold_in_it() -> None:
    adapter = Adapter("sql", "/sql", 8)
    line = serve_line("org/model", [adapter], engine_arguments([adapter]), None)
    assert line == (
        "vllm serve org/model --enable-lora --max-loras 1 --max-lora-rank 8 --lora-modules sql=/sql"
    )
    assert parse(line).sampler is None
    assert serve_line("org/model", [], engine_arguments([]), None) == "vllm serve org/model"


@pytest.mark.parametrize(
    ("setting", "args"),
    [
        (Setting(alpha=0.1, beta=0.5), {"cold_without": ["system", 2]}),
        (Setting(alpha=0.1, rule="adaptive", rule_parameters='{"beta_max": 1.5}'), {}),
        (Setting(alpha=0.1, rule="acd"), {}),
        (
            Setting("adacad", rule_parameters='{"beta_max": 2.0}', expert_top_k=7),
            {"cold_without": "tool"},
        ),
        (Setting("cold"), {}),
    ],
)
def test_what_a_server_has_as_its_default(setting: Setting, args: dict[str, Any]) -> None:
    """A request that says nothing is decoded as one with the arguments was."""
    defaults = server_defaults({**args, **setting.args})
    found = vars(parse(serve_line("M", [], engine_arguments([], ["a:B", "c:D"]), defaults)))
    assert (found["sampler"], found.pop("cold_rules")) == ("cold", ["a:B", "c:D"])
    engine = {name[5:]: v for name, v in found.items() if name[:5] == "cold_" and v is not None}
    told = parse_engine_defaults(engine)
    settings, weights = parse_request_args({}).settings(told, [None])
    measured = read_contrast({"cold_amateur": "a", **args, **setting.args})
    assert (settings, weights) == (measured.settings, measured.weights)
    left_out = args.get("cold_without")
    is_list = isinstance(left_out, list)
    assert told.values.get("without") == (",".join(map(str, left_out)) if is_list else left_out)


@pytest.mark.parametrize(
    ("setting", "args"),
    [
        (Setting(alpha=0.1, beta=0.5), {"cold_part": "0:5"}),
        (Setting("cad"), {}),  # of what each row says
        (Setting("dexperts"), {"cold_amateur": ["a", "b"]}),
        (Setting(alpha=0.1), {"cold_without": "system", "cold_weights": -0.3}),
    ],
)
def test_what_no_server_has_a_default_for(setting: Setting, args: dict[str, Any]) -> None:
    assert server_defaults({**args, **setting.args}) is None
