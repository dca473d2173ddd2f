# SPDX-License-Identifier: Apache-2.0
"""Which engines are refused, by their configuration alone."""

import argparse
import logging
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams

from tests.contracts.source import since
from tests.engine_config import config
from tests.places import add
from vllm_cold import plugin
from vllm_cold.compat import availability, hardware, places, start_hooks, versions
from vllm_cold.compat.engine import slots_of
from vllm_cold.compat.patching import Relies, bind
from vllm_cold.cpu import cpu_platform
from vllm_cold.errors import ColdError
from vllm_cold.frontend import engine_config, intake
from vllm_cold.frontend.capacity import fit
from vllm_cold.frontend.engine_config import configure
from vllm_cold.frontend.support import lacks_slots, unsupported
from vllm_cold.params import ColdParams
from vllm_cold.settings.amateurs import AmateurSpec
from vllm_cold.settings.arguments import parse_engine_defaults

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM has loaded the plugin ``cold_cpu``."""
    monkeypatch.setattr(cpu_platform, "is_loaded", True)


def test_adapters_need_the_kernels_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own LoRA gives rows of the base model an adapter."""
    engine = config()
    monkeypatch.setattr(hardware, "is_on", lambda platform: platform == "cpu")
    monkeypatch.setattr(cpu_platform, "lacks", lambda: None)
    monkeypatch.setattr(availability, "_adapters", plugin._unsupported_adapters)
    assert unsupported(engine) is None
    monkeypatch.setattr(cpu_platform, "is_loaded", False)
    monkeypatch.setenv("VLLM_PLUGINS", "cold")
    reason = str(unsupported(engine))
    assert "(VLLM_PLUGINS=cold)" in reason and "add cold_cpu to VLLM_PLUGINS" in reason
    engine.lora_config, engine.additional_config = None, {"cold": True}
    assert unsupported(engine) is None


def test_an_ordinary_engine_is_prepared() -> None:
    engine = config()
    assert unsupported(engine) is None
    configure(engine)
    assert "ColdAsyncScheduler" in engine.scheduler_config.scheduler_cls
    assert len(engine.model_config.logits_processors) == 1
    configure(engine)
    assert len(engine.model_config.logits_processors) == 1


def test_engines_of_the_v2_runner_miss_its_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others do not."""
    add(monkeypatch, places.WORKER, Relies("vllm.v1.worker.gpu.sample.sampler:Sampler.call"))
    engine = config()
    engine.use_v2_model_runner = False
    assert unsupported(engine) is None
    engine.use_v2_model_runner = True
    said = str(unsupported(engine))
    assert "it has the V2 model runner" in said
    assert "vllm.v1.worker.gpu.sample.sampler.Sampler.call is gone" in said


def test_a_runner_that_takes_no_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would never load ours, and copies of a configuration with one are refused."""
    name = "uses_standalone_cpu_model_runner"
    monkeypatch.setattr(type(current_platform), name, lambda self: True, raising=False)
    engine = config()
    vars(engine).pop("use_v2_model_runner", None)
    configure(engine)
    assert engine.model_config.logits_processors is None
    assert engine.scheduler_config.scheduler_cls is None
    engine.additional_config = {"cold": True}
    with pytest.raises(ValueError, match="default sampler, but .* install Triton with its backend"):
        configure(engine)


@pytest.mark.parametrize(
    ("said", "warns"),
    [
        ({"preset": "cad", "without": "tool"}, True),
        ({"beta": 1.0, "without": 0}, True),
        ({"preset": "cfg", "without": "system"}, False),
        # As many templates have texts.
        ({"preset": "cad", "without": "system"}, True),
        ({"beta": 0.5, "without": "system"}, False),
        ({"preset": "grd", "without": "tool"}, True),
        ({"preset": "cad", "without": "tool", "enabled": False}, False),
        (True, False),
    ],
)
def test_a_default_that_leaves_out_texts_is_warned_of(
    said: Any, warns: bool, logged: list[logging.LogRecord]
) -> None:
    engine_config._warn(parse_engine_defaults(said))
    assert len(logged) == warns
    for line in logged:
        does = "less: where it contra" if said.get("preset") == "grd" else "whether it answers or"
        assert f"a chat's text ({said['without']}) is followed {does}" in line.getMessage()


def put(engine: Any, option: str, value: Any) -> None:
    """``model.x`` is the field x of ``model_config``."""
    *owner, name = option.split(".")
    setattr(getattr(engine, f"{owner[0]}_config") if owner else engine, name, value)


def with_ssm() -> Any:
    """An engine that vllm-cold supports of a model with state-space layers."""
    engine = config(is_hybrid=True)
    engine.cache_config = SimpleNamespace(mamba_cache_mode="align")
    return engine


def speculating(**fields: Any) -> Any:
    """An engine with speculative decoding that vllm-cold supports."""
    engine = config()
    fields = {"num_speculative_tokens": 3, "max_num_new_slots_for_drafting": 0} | fields
    engine.speculative_config = SimpleNamespace(method="ngram", **fields)
    return engine


def of_groups(ranks: int, fully: bool = False, **text: int) -> dict[str, Any]:
    """Changes: a model whose state-space layers have so many groups, on so many ranks."""
    return {
        "model.hf_text_config": SimpleNamespace(**text),
        "parallel.tensor_parallel_size": ranks,
        "lora.fully_sharded_loras": fully,
    }


STAGES, RANKS = "parallel.pipeline_parallel_size", "parallel.tensor_parallel_size"
MTP = {
    "speculative_config": SimpleNamespace(
        method="mtp", num_speculative_tokens=1, max_num_new_slots_for_drafting=0
    )
}
CONNECTOR = {"kv_transfer_config": SimpleNamespace(kv_connector="SimpleCPUOffloadConnector")}
PROMPTS_ALONE = {"lora_config": None, "additional_config": {"cold": True}}
# An engine that vllm-cold supports, what is changed in it ("vllm" is its version), and what is
# said.
ENGINES: list[tuple[Any, dict[str, Any], str | None]] = [
    (config, {"model.runner_type": "pooling"}, "pooling model"),
    (config, {"model.is_encoder_decoder": True}, "has an encoder-decoder model"),
    (config, {"model.enable_trace_replay": True}, "it has enable_trace_replay"),
    (config, {"ec_transfer_config": object()}, "has an encoder-cache connector, which"),
    (config, {"parallel.enable_batch_sharded_sampling": True}, "has batch-sharded sampling"),
    (config, {"scheduler.enable_chunked_prefill": False}, "start with --enable-chunked-prefill."),
    (config, {"scheduler.scheduler_cls": "x.y"}, "leave scheduler_cls (--scheduler-cls)"),
    (config, {"lora_config": None}, "LoRA is off, and the engine was not asked for"),
    (config, PROMPTS_ALONE, None),
    (config, {"scheduler.max_num_seqs": 1}, "(--max-num-seqs) to 2 or more"),
    (config, {"scheduler.max_num_active_seqs": 1}, "(--max-num-active-seqs) to 2 or more"),
    (config, {"scheduler.max_num_batched_tokens": 1}, "(--max-num-batched-tokens) to 2 or "),
    (config, {"scheduler.max_num_scheduled_tokens": 1}, "contrastive request take 2; set it"),
    (config, {"scheduler.max_num_scheduled_tokens": 2}, None),
    # Pipelines in which vLLM is wrong.
    (config, {STAGES: 2, "vllm": "0.23.0"}, None),
    (config, {STAGES: 3, "vllm": "0.23.0"}, "has more than two pipeline stages before vLLM 0.27"),
    (config, {STAGES: 3, "vllm": "0.27.0"}, None),
    (config, {STAGES: 3, "vllm": "dev"}, None),
    (config, {**CONNECTOR, "vllm": "0.23.0"}, "a KV connector, which vllm-cold supports with"),
    # Models with SSM layers: by vLLM's release and options, not by family.
    (with_ssm, {"cache.mamba_cache_mode": "none"}, None),
    (with_ssm, {"cache.mamba_cache_mode": "all"}, "mode other than none and align together"),
    (with_ssm, {"cache.use_replayssm": True}, "has --use-replayssm together"),
    (with_ssm, {"cache.prefix_match_unit": 8}, "has --prefix-match-unit together"),
    (
        with_ssm,
        {"parallel.decode_context_parallel_size": 2},
        "--decode-context-parallel-size tog",
    ),
    (with_ssm, {RANKS: 2}, "that divides no groups of Mamba 2 together"),
    (with_ssm, {RANKS: 2, **PROMPTS_ALONE}, None),
    pytest.param(
        with_ssm,
        CONNECTOR,
        "a KV connector together with state-space layers",
        marks=since("0.31"),
    ),
    pytest.param(
        with_ssm, MTP, "decoding (mtp) together with state-space layers", marks=since("0.32")
    ),
    (with_ssm, {"vllm": "0.31.2"}, "supports with vLLM 0.32 and newer"),
    (
        with_ssm,
        {"model.is_hybrid": False, "model.is_attention_free": True, "vllm": "0.31.2"},
        "supports with vLLM 0.32 and newer",
    ),
    (with_ssm, of_groups(2, mamba_n_groups=8), None),
    (with_ssm, of_groups(2, n_groups=2), None),
    (with_ssm, of_groups(4, n_groups=2), "has LoRA and a --tensor-parallel-size that"),
    (with_ssm, of_groups(2, mamba_ngroups=1), "has LoRA and a --tensor-parallel-size that"),
    (with_ssm, of_groups(1, n_groups=1), None),
    (with_ssm, of_groups(1, True, n_groups=1), "--fully-sharded-loras together"),
]
DRAFTS = [
    (
        {"speculative.method": "ngram_gpu", "use_v2_model_runner": False},
        "ngram_gpu on the V1 model runner (ngram is supp",
    ),
    ({"speculative.method": "eagle", "use_v2_model_runner": True}, None),
    (
        {"speculative.enable_adaptive_verification": True},
        "with enable_adaptive_verification, which",
    ),
    ({"num_prefill_lookahead_tokens": 1}, None),
    ({"num_prefill_lookahead_tokens": 2}, "with several MTP modules, which"),
    ({STAGES: 2, "use_v2_model_runner": False}, "together with pipeline parallelism on the V1"),
    ({STAGES: 2, "use_v2_model_runner": True}, None),
    ({"vllm": "0.31.2"}, "decoding, which vllm-cold supports with vLLM 0.32 and"),
    ({"platform": "other"}, "workers other than vLLM's own for CPUs and"),
]


@pytest.mark.parametrize(
    ("make", "changes", "said"),
    [*ENGINES, *(pytest.param(speculating, *row, marks=since("0.32")) for row in DRAFTS)],
)
def test_which_engines_can(
    make: Callable[[], Any],
    changes: dict[str, Any],
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who did not ask for contrastive decoding keeps an engine that cannot; who did is told what to
    do.
    """
    from vllm.platforms import current_platform

    monkeypatch.setattr(versions, "vllm_version", lambda: "0.32.0")
    engine = make()
    assert unsupported(engine) is None
    for option, value in changes.items():
        if option == "vllm":
            monkeypatch.setattr(versions, "vllm_version", lambda version=value: version)
        elif option == "platform":
            monkeypatch.setattr(type(current_platform), "is_out_of_tree", lambda self: True)
        else:
            put(engine, option, value)
    before = engine.scheduler_config.scheduler_cls
    found = unsupported(engine)
    configure(engine)
    if said is None:
        assert found is None
        assert "ColdAsyncScheduler" in engine.scheduler_config.scheduler_cls
        return
    assert said in str(found)
    assert engine.scheduler_config.scheduler_cls == before
    assert engine.model_config.logits_processors is None
    if engine.lora_config is not None:  # without, such an engine is for prompts
        engine.additional_config = {"cold": True}
        with pytest.raises(
            ValueError, match="Contrastive decoding is this engine's default sampler, but "
        ):
            configure(engine)


@since("0.31")
def test_a_vllm_that_has_changed_what_a_connector_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    monkeypatch.delattr(Scheduler, "_handle_invalid_blocks")
    engine = config()
    assert unsupported(engine) is None
    engine.kv_transfer_config = CONNECTOR["kv_transfer_config"]
    said = "Scheduler has no _handle_invalid_blocks any more. Start it without"
    assert said in str(unsupported(engine))


@pytest.mark.parametrize(
    ("option", "least"),
    [("max_num_seqs", 3), ("max_num_batched_tokens", 12), ("max_num_scheduled_tokens", 12)],
)
def test_slots_where_drafts_are_verified(option: str, least: int) -> None:
    """vLLM admits a request with room for them, and some drafters add tokens to each request."""
    engine = speculating(max_num_new_slots_for_drafting=2)
    setattr(engine.scheduler_config, option, least)
    assert lacks_slots(engine, 3) is None
    setattr(engine.scheduler_config, option, least - 1)
    said = str(lacks_slots(engine, 3))
    assert said.startswith(f"{option}={least - 1}: the 3 streams of a contrastive request")
    assert said.endswith(f"set it (--{option.replace('_', '-')}) to {least} or more.")
    assert ("their drafts" in said) == (option != "max_num_seqs")


@pytest.mark.parametrize(
    ("share", "slots", "of_share"), [(0.29, 100, 29), (0.3, 10, 3), (0.5, 5, 2), (1, 8, 8)]
)
def test_a_share_of_the_slots(share: float, slots: int, of_share: int) -> None:
    """Decimals are exact; what never fits is refused, as what does not fit all slots is."""
    engine = config()
    engine.scheduler_config.max_num_seqs = slots
    engine.scheduler_config.max_num_batched_tokens = 2 * slots
    assert slots_of(engine) == (slots, slots, None) and lacks_slots(engine, slots) is None
    engine.additional_config = {"cold": {"max_share": share}}
    assert slots_of(engine) == (slots, of_share, share)
    assert unsupported(engine) is None
    assert lacks_slots(engine, of_share) is None
    said = str(lacks_slots(engine, of_share + 1))
    assert said.startswith("max_share=" if of_share < slots else "max_num_seqs=")
    engine.additional_config = {"cold": {"max_share": 1.9 / slots}}
    least = math.ceil(2000 / slots) / 1000
    assert str(unsupported(engine)).endswith(f"set it (--cold-max-share) to {least} or more.")


@pytest.mark.parametrize("share", [0, -0.5, 1.01, "half", True])
def test_a_share_that_is_none(share: Any) -> None:
    with pytest.raises(ColdError, match="must be a number above 0, at most 1"):
        parse_engine_defaults({"max_share": share})


@pytest.mark.parametrize(
    ("watermark", "ranks", "max_tokens"), [(0.0, 1, 17), (0.1, 1, 9), (0.0, 2, 41), (0.1, 2, 25)]
)
@pytest.mark.parametrize("hybrid", [False, True])
def test_what_fits_the_kv_cache(
    watermark: float, ranks: int, max_tokens: int, hybrid: bool
) -> None:
    """Prompts of 8 tokens and 7 blocks of 8, one of which is the null block; the last token is not
    computed. A hybrid model's states are not counted.
    """
    engine = config(max_model_len=1000, is_hybrid=hybrid)
    engine.scheduler_config.watermark = 1.5 * watermark
    engine.cache_config = SimpleNamespace(
        num_gpu_blocks=7, block_size=8, sliding_window=None, enable_prefix_caching=False
    )
    engine.parallel_config = SimpleNamespace(
        data_parallel_size=1, local_engines_only=False, decode_context_parallel_size=ranks
    )
    pair = [AmateurSpec("amateur", "amateur")]
    assert fit(engine, pair, [8, 8], max_tokens) == max_tokens
    with pytest.raises(ColdError, match="KV cache blocks"):
        fit(engine, pair, [8, 8], max_tokens + 1)
    assert fit(engine, pair, [8, 8], max_tokens + 1, unlimited=True) == max_tokens
    engine.model_config.is_attention_free = True
    assert fit(engine, pair, [8, 8], 900) == 900  # states take no more for more tokens


# ---- options of vllm serve -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said", "cold"),
    [
        ({}, None, None),
        ({"enable_lora": True}, None, None),
        ({}, True, True),
        ({"sampler": "cold"}, None, {"enabled": True}),
        ({"cold_beta": 2.0}, None, {"enabled": False, "beta": 2.0}),
        ({"cold_beta": 2.0}, True, {"enabled": True, "beta": 2.0}),
        ({"cold_max_share": 0.5}, None, {"enabled": False, "max_share": 0.5}),
        ({"cold_max_amateurs": 4}, None, {"enabled": False, "max_amateurs": 4}),
        ({"cold_beta": 2.0, "sampler": "cold"}, {"alpha": 0.3, "beta": 1.0},
         {"alpha": 0.3, "beta": 2.0, "enabled": True}),
        ({"cold_rule": "mti"}, {"beta": 1.0}, {"rule": "mti"}),
        ({"cold_beta": 2.0}, {"rule": "acd"}, {"beta": 2.0}),
        ({"cold_beta": 2.0}, "x", "x"),  # refused when the engine is configured
    ],
)  # fmt: skip
def test_options_of_a_server(options: dict[str, Any], said: Any, cold: Any) -> None:
    more = {"other": 1} | ({} if said is None else {"cold": said})
    args = argparse.Namespace(additional_config=more, middleware=["mine"], **options)
    made = bind(start_hooks.wrap_from_cli_args, lambda cls, args: SimpleNamespace(**vars(args)))(
        None, args
    )
    assert made.additional_config == {"other": 1} | ({} if cold is None else {"cold": cold})
    header = ["vllm_cold.frontend.serving.Header"] if options or cold else []
    assert made.middleware == ["mine", *header]
    assert more == {"other": 1} | ({} if said is None else {"cold": said})


def test_options_that_do_not_fit_together() -> None:
    args = argparse.Namespace(cold_rule_parameters={"tau": 2.0}, additional_config=None)
    with pytest.raises(SystemExit, match="vllm: error: --cold-rule-parameters={'tau': 2.0}: "):
        bind(start_hooks.wrap_from_cli_args, lambda cls, args: SimpleNamespace(**vars(args)))(
            None, args
        )


class Own(ColdParams):
    """As a caller may extend them."""


@pytest.mark.parametrize("kind", [ColdParams, Own])
def test_who_asks_in_an_engine_without_contrasts_is_not_overlooked(
    kind: type[ColdParams], monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted: list[Any] = []
    monkeypatch.setattr(intake, "admit_request", lambda *args: admitted.append(args[-1]))
    request = SimpleNamespace(sampling_params=object())
    process = bind(start_hooks.wrap_process_inputs, lambda *args: request)
    processor = SimpleNamespace(vllm_config=config())
    for params in (kind(), SamplingParams(), SamplingParams(extra_args={"cold": 1})):
        assert process(processor, "id", {}, params) is request
    assert [type(params) for params in admitted] == [kind, SamplingParams]


def test_a_changed_vllm_stops_no_worker(
    monkeypatch: pytest.MonkeyPatch, logged: list[logging.LogRecord]
) -> None:
    """Of an engine that may not have asked for anything."""

    def fails(hooks: Any) -> None:
        raise ImportError("no module")

    monkeypatch.setattr(cpu_platform.patching, "install", fails)
    register = bind(cpu_platform.wrap_register_overrides, lambda cls: None)
    register(None)
    assert "products are vLLM's own (ImportError: no module)" in logged[-1].getMessage()


# ---- what computes LoRA on CPU -------------------------------------------------------------------


def test_a_choice_of_lora_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_cold.cpu import operators

    monkeypatch.setenv("COLD_LORA", "0")
    with pytest.raises(ValueError, match="COLD_LORA='0': must be one of cpp, torch, stock"):
        cpu_platform.choice()
    monkeypatch.setattr(operators, "missing", lambda: "It is not built: build it.")
    monkeypatch.setenv("COLD_LORA", "cpp")
    with pytest.raises(RuntimeError, match=r"COLD_LORA=cpp was asked for\. It is not built"):
        cpu_platform.choice()


def test_the_wrapper_that_the_platform_names(
    monkeypatch: pytest.MonkeyPatch, logged: list[logging.LogRecord]
) -> None:
    from vllm_cold.cpu import operators

    monkeypatch.delenv("COLD_LORA", raising=False)
    stock = bind(cpu_platform.wrap_get_punica_wrapper, lambda cls: cpu_platform.STOCK)
    assert stock(None) == cpu_platform.WRAPPERS["cpp"]
    assert bind(cpu_platform.wrap_get_punica_wrapper, lambda cls: "their.own")(None) == "their.own"
    monkeypatch.setattr(operators, "missing", lambda: "It is not built: build it.")
    logged.clear()
    assert stock(None) == cpu_platform.WRAPPERS["torch"]
    (record,) = logged
    assert record.levelname == "WARNING" and "It is not built: build it." in record.getMessage()
