# SPDX-License-Identifier: Apache-2.0
"""What an engine must not have is refused, and a vLLM that calls it otherwise is noticed."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import vllm.engine.arg_utils  # noqa: F401 - imported below, it would keep what is lost there

from tests.engine_config import config
from vllm_cold.compat import active, availability, hardware, places, refused_options, versions
from vllm_cold.compat.patching import Relies
from vllm_cold.compat.refused_options import ALWAYS, MEDIA, NPU, OPTIONS, SPECULATION, SSM
from vllm_cold.compat.refused_options import RefusedOption as Option
from vllm_cold.frontend import request_media
from vllm_cold.frontend.support import unsupported

pytestmark = pytest.mark.unit

# What they are where they are on, if not 2.
ON = {
    "aux_output_config": SimpleNamespace(enabled=True),
    "rejection_sample_method": "fly",
}
CHECKED = [option for option in OPTIONS if not option.until]


def name(option: Any) -> str:
    return option.name if isinstance(option, Option) else ""


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin is loaded, and has not checked this vLLM."""
    monkeypatch.setattr(active, "is_loaded", True)
    monkeypatch.setattr(active, "unavailable", None)
    monkeypatch.setattr(availability, "_verified", False)
    monkeypatch.setattr(places, "NO_COLD", places.Time(places.TABLES[0], "never"))


def lose(patch: pytest.MonkeyPatch, option: Option) -> None:
    """Have vLLM call an option otherwise."""
    module, _, owner = option.owner.partition(":")
    if owner:
        patch.setattr(sys.modules[module], owner, type(owner, (), {"other": None}))
    else:
        patch.setitem(sys.modules, module, ModuleType(module))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("option", CHECKED, ids=name)
def test_one_with_another_name_is_noticed_at_the_start(
    option: Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    if versions.is_before(option.since):
        pytest.skip("came with a later vLLM")
    lose(monkeypatch, option)
    label = option.owner.replace(":", ".")
    assert f"{label} has no {option.name} any more" in str(availability.verify())
    assert str(active.unavailable).startswith("this vLLM (")
    assert str(active.unavailable).endswith("or a newer vllm-cold.")


def test_a_vllm_before_an_option_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "vllm_version", lambda: "0.23.0")
    for option in CHECKED:
        with monkeypatch.context() as patch:
            lose(patch, option)
            place = Relies(option.owner, has=option.name, since=option.since)
            assert (place.problem() is None) == (option.since != "0.23")


@pytest.mark.parametrize("option", OPTIONS, ids=name)
def test_the_installed_vllm_has_it(option: Option) -> None:
    gone = bool(option.until) and not versions.is_before(option.until)
    if versions.is_before(option.since):
        pytest.skip("came with a later vLLM")
    assert (Relies(option.owner, has=option.name).problem() is not None) == gone


def test_all_are_checked_before_the_first_engine() -> None:
    relied = [place for hook in places.rows(*places.EVERY_ENGINE) for place in hook.places]
    assert set(refused_options.places()) <= set(relied)
    assert len(refused_options.places()) == len(CHECKED) > 15


def engine(option: Option, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine that vllm-cold supports if it had not this option."""
    made = config()
    made.cache_config = SimpleNamespace(mamba_cache_mode="align")
    if option.when == SPECULATION:
        made.speculative_config = SimpleNamespace(
            method="ngram", num_speculative_tokens=3, max_num_new_slots_for_drafting=0
        )
    made.model_config.is_hybrid = option.when == SSM
    if option.when == NPU:
        monkeypatch.setattr(hardware, "is_on", lambda platform: platform == "npu")
    return made


@pytest.mark.parametrize("option", OPTIONS, ids=name)
def test_an_engine_with_it_is_refused(option: Option, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "vllm_version", lambda: "0.32.0")
    monkeypatch.setattr(places, "problem", lambda *when: None)
    monkeypatch.setattr(availability, "_adapters", None)
    monkeypatch.setattr(request_media, "_changed", lambda: None)
    judge = request_media.unsupported if option.when == MEDIA else unsupported
    changed = engine(option, monkeypatch)
    assert judge(changed) is None
    if option.owner == "vllm.envs":
        monkeypatch.setenv(option.name, "1")
    else:
        path = refused_options._IN_CONFIG[option.owner]
        setattr(getattr(changed, path) if path else changed, option.name, ON.get(option.name, 2))
    reason = str(judge(changed))
    assert option.what in reason
    if option.when == ALWAYS:
        said = f"it has {option.what}, which vllm-cold does not support; start it without."
        assert reason == said
