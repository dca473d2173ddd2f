# SPDX-License-Identifier: Apache-2.0
"""ColdParams is SamplingParams and a few checked fields more."""

import copy
import math
import pickle
from typing import Any

import pytest
from vllm.lora.request import LoRARequest
from vllm.sampling_params import StructuredOutputsParams

from vllm_cold import Amateur, Blur, ColdParams, Noise
from vllm_cold.settings.presets import PRESETS
from vllm_cold.settings.table import SETTINGS, ColdSettings, combine

pytestmark = pytest.mark.unit

OTHER = LoRARequest("other", 2, "/adapters/other")
COMMON: dict[str, Any] = {
    "n": 2,
    "temperature": 0.7,
    "top_p": 0.9,
    "stop": ["\n"],
    "logprobs": 3,
    "max_tokens": 12,
    "logit_bias": {5: 1.0},
    "extra_args": {"mine": 1},
    "structured_outputs": StructuredOutputsParams(regex="a+"),
}
NAMES = (*SETTINGS, "amateur", "amateurs")
MESSAGES = [{"role": "user", "content": "Who?"}]


def cold(**changed: Any) -> ColdParams:
    return ColdParams(**{"alpha": 0.3, "beta": 2.0, "expert_top_k": 5, **COMMON, **changed})


def test_our_fields_are_keywords() -> None:
    """SamplingParams takes its own by position, beginning with n: never alpha."""
    params = ColdParams(2)
    assert (params.n, params.alpha) == (2, 0.1)
    with pytest.raises(TypeError, match="positional"):
        Amateur("prompt")  # type: ignore[misc]
    with pytest.raises(TypeError, match="gamma"):
        ColdParams(gamma=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "changed",
    [
        {"amateur": OTHER, "beta": 0.5, "rule": "mti", "rule_parameters": {"tau": 2.0}},
        {
            "amateurs": [Amateur(prompt=MESSAGES), Amateur(weight="mti")],
            "rule_parameters": {"tau": 2.0},
        },
        {"amateurs": [Amateur(prompt="x"), Amateur(lora_request=None)]},
    ],
)
def test_copies_keep_everything(changed: dict[str, Any]) -> None:
    params = cold(**changed)
    params.all_stop_token_ids  # noqa: B018  (cached in the instance's dict)
    pickled = pickle.loads(pickle.dumps(params))
    for made in (params.clone(), copy.copy(params), copy.deepcopy(params), pickled):
        assert type(made) is ColdParams
        for name in (*NAMES, *COMMON):
            assert getattr(made, name) == getattr(params, name), name


def test_repr() -> None:
    text = repr(cold(amateur=OTHER))
    start = "ColdParams(alpha=0.3, beta=2.0, rule=None, rule_parameters=None, expert_top_k=5, "
    assert text.startswith(start + "bits=None, bits_per_token=None, amateur='other', n=2, ")
    assert "temperature=0.7" in text and text.count("(") == text.count(")")
    several = repr(ColdParams(amateurs=[Amateur(prompt="Who?")]))
    assert "amateur=None, amateurs=[Amateur(prompt='Who?', " in several


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("amateur", "other", "must be a LoRARequest or an Amateur"),
        ("amateurs", [], "must be a list of 1 to 32 Amateurs"),
        ("amateurs", [OTHER], "must be a list of 1 to 32 Amateurs"),
        ("amateurs", Amateur(), "must be a list of 1 to 32 Amateurs"),
        ("amateurs", [Amateur()] * 33, "must be a list of 1 to 32 Amateurs"),
        ("prompt", "", "must not be empty"),
        ("prompt", [], "must not be empty"),
        ("prompt", b"text", "must be a text, a list of token ids, a list of messages, or {"),
        ("prompt", [1, -1], "must be a text"),
        ("prompt", [1, True], "must be a text"),
        ("prompt", {"prompt": "a"}, "must be a text, .*media by modality}"),
        ("prompt", [{"content": "a"}], "must be a list of messages, each with a role, .*`role`"),
        ("prompt", [*MESSAGES, {"role": "user"}], "message 1 must have a content"),
        ("prompt", [{"role": "user", "content": [{"type": "file"}]}], "of text, images, videos or"),
        ("prompt", {"multi_modal_data": {}}, "media by modality}"),
        ("prompt", {"prompt": "a", "multi_modal_data": 1}, "media by modality}"),
        ("prompt", {"prompt": "", "multi_modal_data": {"image": 1}}, "media by modality}"),
        ("without", 1.5, "must be a role"),
        ("without", "", "must be roles, or indices"),
        ("images", 3, "must be a Noise or a Blur"),
        ("images", lambda image: image, "must be a Noise or a Blur"),
        ("lora_request", "other", "must be a LoRARequest"),
        ("weight", math.nan, "must be a number from -1e6 to 1e6, or the name of a rule"),
        ("weight", "", "must be a number, or the name of a rule: acd, adaptive, "),
        ("weight", [1.0], "must be a number"),
    ],
)
def test_bad_amateurs(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*{allowed}"):
        (ColdParams if name.startswith("amateur") else Amateur)(**{name: value})


def test_what_an_amateur_may_read() -> None:
    parts = [{"type": "text", "text": "a"}]
    calls = [{"role": "assistant", "tool_calls": []}, {"role": "user", "content": parts}]
    for prompt in ("text", [1, 2], (1, 2), MESSAGES, calls):
        assert Amateur(prompt=prompt).source is not None


def test_one_amateur_is_said_in_several_ways() -> None:
    for amateur in (OTHER, Amateur(lora_request=OTHER)):
        assert ColdParams(amateur=amateur).contrast() == (Amateur(lora_request=OTHER),)
    assert ColdParams().contrast() == (Amateur(lora_request=None),)
    assert ColdParams(amateurs=(Amateur(),)).contrast() == (Amateur(),)
    with pytest.raises(ValueError, match="^amateurs=.*amateur is given too"):
        ColdParams(amateur=OTHER, amateurs=[Amateur()])


def test_presets() -> None:
    own = Amateur(prompt="Who?")
    for name in PRESETS.keys() - {"dexperts", "grounded"}:
        params = ColdParams.preset(name, amateur=own, max_tokens=7)
        assert params.combine()[0] == combine(PRESETS[name].settings)[0]
        assert (params.max_tokens, params.amateur, params.method) == (7, own, name)
    assert ColdParams.preset("cfg", amateur=own, beta=1.0).combine()[0] == ColdSettings(0.0, 1.0)
    assert ColdParams.preset("cold").combine()[0] == ColdSettings()
    # What the caller's fields leave nothing to do for is left out.
    for given, wanted in (
        ({"beta": 0.5}, ColdSettings(0.0, 0.5)),
        ({"rule": "mti"}, combine({"alpha": 0.0, "rule": "mti"})[0]),
        (
            {"rule_parameters": {"beta_max": 2}},
            ColdSettings(0.0, rule="adaptive", rule_parameters={"beta_max": 2.0}),
        ),
    ):
        assert ColdParams.preset("adacad", amateur=own, **given).combine()[0] == wanted
    weighted = ColdParams.preset("adacad", amateur=Amateur(prompt="Who?", weight=-0.25))
    assert weighted.combine()[1] == (-0.25,)
    adapters = [Amateur(lora_request=OTHER), Amateur(lora_request=LoRARequest("anti", 3, "/anti"))]
    params = ColdParams.preset("dexperts", amateurs=adapters)
    assert params.combine() == (ColdSettings(0.0), (1.0, -1.0))
    stronger = [adapters[0], Amateur(lora_request=OTHER, weight=-2.0)]
    assert ColdParams.preset("dexperts", amateurs=stronger).combine()[1] == (1.0, -2.0)
    apart = [own, Amateur(prompt="It was Ada.")]
    vcd = ColdParams.preset("vcd", max_tokens=7)
    assert vcd.combine()[0] == ColdSettings(0.1, 1.0) and vcd.method == "vcd"
    assert vcd.amateur == Amateur(images=Noise(500))
    assert ColdParams.preset("vcd", amateur=Amateur(images=Blur(3))).amateur.images == Blur(3)
    params = ColdParams.preset("grounded", amateurs=apart)
    assert params.combine() == (ColdSettings(0.3), (-0.25, -0.25))
    for wrong, message in (
        (lambda: ColdParams.preset("grounded", amateur=own), "'grounded': is for 2 amateurs; give"),
        (lambda: ColdParams.preset("grounded", amateurs=adapters), "contrasts with another prompt"),
        (lambda: ColdParams.preset("cat"), "^preset='cat': must be one of cold, cad,"),
        (lambda: ColdParams.preset("cad", amateurs=own), "^amateurs=.*must be a list of 1 to"),
        (lambda: ColdParams.preset("cad"), "^preset='cad': contrasts with another prompt"),
        (lambda: ColdParams.preset("vcd", amateur=OTHER), "^preset='vcd': contrasts with another"),
        (lambda: ColdParams.preset("dexperts"), "^preset='dexperts': is for 2 amateurs"),
        (lambda: ColdParams(method="my own"), "^method='my own': must be one of cold, cad,"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
