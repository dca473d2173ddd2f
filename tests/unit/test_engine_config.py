# SPDX-License-Identifier: Apache-2.0
"""Which engines are refused, by their configuration alone."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_cold.errors import ColdError
from vllm_cold.method.amateurs import AmateurSpec
from vllm_cold.method.arguments import parse_engine_defaults
from vllm_cold.vllm import versions
from vllm_cold.vllm.frontend import engine_config
from vllm_cold.vllm.frontend.capacity import fit
from vllm_cold.vllm.frontend.config import unsupported
from vllm_cold.vllm.frontend.engine_config import configure

pytestmark = pytest.mark.unit


def config(**model: Any) -> Any:
    """As much of a VllmConfig as is looked at."""
    fields = {
        "runner_type": "generate",
        "is_encoder_decoder": False,
        "is_hybrid": False,
        "logits_processors": None,
        "max_model_len": 64,
        **model,
    }
    return SimpleNamespace(
        model_config=SimpleNamespace(**fields),
        scheduler_config=SimpleNamespace(
            scheduler_cls=None,
            max_num_seqs=8,
            max_num_batched_tokens=64,
            async_scheduling=True,
            enable_chunked_prefill=True,
        ),
        lora_config=SimpleNamespace(max_lora_rank=8, max_loras=2),
        parallel_config=SimpleNamespace(),
        speculative_config=None,
        kv_transfer_config=None,
        additional_config={},
        use_v2_model_runner=False,
    )


def test_an_ordinary_engine_is_prepared() -> None:
    engine = config()
    assert unsupported(engine) is None
    configure(engine)
    assert "ColdAsyncScheduler" in engine.scheduler_config.scheduler_cls
    assert len(engine.model_config.logits_processors) == 1
    configure(engine)
    assert len(engine.model_config.logits_processors) == 1


@pytest.mark.parametrize(
    ("said", "warns"),
    [
        ({"preset": "cad", "without": "tool"}, True),
        ({"preset": "grd", "without": "system,1"}, True),
        ({"beta": 1.0, "without": 0}, True),
        ({"preset": "cfg", "without": "system"}, False),
        ({"preset": "cad", "without": "tool", "enabled": False}, False),
        ({"alpha": 0.1}, False),
        (True, False),
        (None, False),
    ],
)
def test_a_default_that_takes_texts_away_says_what_it_does(
    said: Any, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(
        engine_config.logger, "warning", lambda text, *args: logged.append(text % args)
    )
    engine_config._warn(parse_engine_defaults(said))
    assert len(logged) == warns
    for line in logged:
        assert f"a chat's text ({said['without']}) is followed whether it answers or not" in line
        assert "fewer answers are right" in line and "\n" not in line


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"runner_type": "pooling"}, "pooling model"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        (
            {"enable_trace_replay": True},
            "it has enable_trace_replay, which CoLD does not support; start it without",
        ),
    ],
)
def test_models_that_cannot(model: dict[str, Any], reason: str) -> None:
    engine = config(**model)
    configure(engine)
    assert engine.scheduler_config.scheduler_cls is None
    assert engine.model_config.logits_processors is None
    engine.additional_config = {"cold": True}
    with pytest.raises(ValueError, match=reason):
        configure(engine)


@pytest.mark.parametrize("kind", ["is_hybrid", "is_attention_free"])
def test_models_with_states(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By vLLM's release and options, not by family; each says what to do."""

    def engine(**cache: Any) -> Any:
        made = config(**{kind: True})
        made.cache_config = SimpleNamespace(mamba_cache_mode="align", **cache)
        return made

    def said(engine: Any) -> str:
        return str(unsupported(engine))

    for version in ("0.23.0", "0.31.2"):
        monkeypatch.setattr(versions, "vllm_version", lambda version=version: version)
        assert said(engine()).endswith(
            "CoLD supports with vLLM 0.32 and newer; update vLLM, or serve another model."
        )
    monkeypatch.setattr(versions, "vllm_version", lambda: "0.32.0")
    for mode, works in (("none", True), ("align", True), ("all", False)):
        made = engine()
        made.cache_config.mamba_cache_mode = mode
        assert (unsupported(made) is None) == works
    assert said(made).startswith("mamba_cache_mode='all'") and "--mamba-cache-mode" in said(made)
    assert "(--no-use-replayssm)" in said(engine(use_replayssm=True))
    assert "leave it out" in said(engine(prefix_match_unit=8))
    made = engine()
    made.parallel_config.decode_context_parallel_size = 2
    assert "(--decode-context-parallel-size)" in said(made)
    made = engine()
    made.parallel_config.tensor_parallel_size = 2
    assert said(made).startswith("tensor_parallel_size=2 and LoRA are on with state-space layers")
    made.lora_config, made.additional_config = None, {"cold": True}
    assert unsupported(made) is None
    made = engine()
    made.speculative_config = SimpleNamespace(method="mtp", num_speculative_tokens=1)
    assert said(made).startswith("speculative decoding is on (mtp) with state-space layers")
    made = engine()
    made.scheduler_config.enable_chunked_prefill = False
    assert "--enable-chunked-prefill" in said(made)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("version", ["0.23.0", "0.26.2+cpu", "0.27.0", "0.32.0", "dev"])
def test_pipelines_in_which_vllm_is_wrong(
    stages: int, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "vllm_version", lambda: version)
    engine = config()
    engine.parallel_config.pipeline_parallel_size = stages
    if stages > 2 and version < "0.27":
        assert str(unsupported(engine)).startswith("pipeline_parallel_size=3: before 0.27, vLLM")
    else:
        assert unsupported(engine) is None


def test_options_that_cannot() -> None:
    engine = config()
    engine.parallel_config.enable_batch_sharded_sampling = True
    assert "batch-sharded" in str(unsupported(engine))
    engine = config()


def speculating(method: str = "ngram", **fields: Any) -> Any:
    """An engine with speculative decoding that CoLD supports."""
    engine = config()
    engine.speculative_config = SimpleNamespace(method=method, num_speculative_tokens=3, **fields)
    engine.parallel_config.pipeline_parallel_size = 1
    return engine


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were vLLM 0.32, and its places those that are installed."""
    monkeypatch.setattr(versions, "vllm_version", lambda: "0.32.0")


since_speculation = pytest.mark.skipif(
    versions.is_before(0, 32), reason="CoLD speculates since vLLM 0.32"
)


@since_speculation
@pytest.mark.parametrize("v2", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("method", ["ngram", "draft_model", "eagle", "suffix"])
def test_an_engine_that_speculates_is_prepared(method: str, v2: bool) -> None:
    engine = speculating(method)
    engine.use_v2_model_runner = v2
    engine.num_prefill_lookahead_tokens = 1
    assert unsupported(engine) is None
    configure(engine)
    assert engine.scheduler_config.scheduler_cls is not None


@since_speculation
def test_speculation_that_cannot(newest: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each says what is on, and what to do."""
    from vllm.platforms import current_platform

    def said(engine: Any) -> str:
        reason = str(unsupported(engine))
        assert reason.startswith(f"speculative decoding is on ({engine.speculative_config.method})")
        return reason.partition(")")[2]

    engine = speculating("ngram_gpu")
    assert said(engine) == (
        ' with the V1 model runner, which CoLD supports with V2 only; use "ngram".'
    )
    engine.use_v2_model_runner = True
    assert unsupported(engine) is None
    engine.num_prefill_lookahead_tokens = 2
    assert said(engine).startswith(" with several MTP modules, which want prompts split")
    assert said(engine).endswith("use another drafter.")
    engine = speculating(enable_adaptive_verification=True)
    assert said(engine) == (
        " with enable_adaptive_verification, which may verify different drafts in the streams of "
        "a request; leave it off."
    )
    engine = speculating()
    engine.parallel_config.pipeline_parallel_size = 2
    assert said(engine) == (
        " together with pipeline parallelism, which CoLD does not support; switch one of them off."
    )
    engine = speculating()
    monkeypatch.setattr(type(current_platform), "is_out_of_tree", lambda self: True)
    assert said(engine) == (
        ", which CoLD supports with vLLM's own CPU and GPU workers only; switch it off."
    )
    monkeypatch.undo()
    for version, works in (("0.31.2", False), ("0.23.0", False), ("0.32.0", True)):
        monkeypatch.setattr(versions, "vllm_version", lambda version=version: version)
        engine = speculating()
        if works:
            assert unsupported(engine) is None
        else:
            assert said(engine) == (
                ", which CoLD supports with vLLM 0.32 and newer; switch it off."
            )
    # Whoever did not ask for CoLD keeps the engine.
    engine = speculating(enable_adaptive_verification=True)
    configure(engine)
    assert engine.scheduler_config.scheduler_cls is None
    engine.additional_config = {"cold": True}
    with pytest.raises(ValueError, match="enable_adaptive_verification"):
        configure(engine)


def test_seats_where_drafts_are_verified() -> None:
    """vLLM admits a request with room for them, and some drafters add tokens to each request."""
    from vllm_cold.vllm.frontend.config import lacks_seats

    engine = speculating(max_num_new_slots_for_drafting=2)
    for option, least in (
        ("max_num_seqs", 3), ("max_num_batched_tokens", 12), ("max_num_scheduled_tokens", 12)
    ):  # fmt: skip
        before = getattr(engine.scheduler_config, option, None)
        setattr(engine.scheduler_config, option, least)
        assert lacks_seats(engine, 3) is None
        setattr(engine.scheduler_config, option, least - 1)
        said = str(lacks_seats(engine, 3))
        flag = "--" + option.replace("_", "-")
        assert said.startswith(
            f"{option}={least - 1}: a CoLD request with 2 amateurs takes {least}"
        )
        assert said.endswith(f"set it ({flag}) to {least} or more.")
        assert ("speculative decoding" in said) == (option != "max_num_seqs")
        setattr(engine.scheduler_config, option, before)


@pytest.mark.parametrize(
    "option",
    ["max_num_seqs", "max_num_active_seqs", "max_num_batched_tokens", "max_num_scheduled_tokens"],
)
def test_an_engine_without_room_for_two_streams(option: str) -> None:
    engine = config()
    for value, works in ((1, False), (2, True), (None, True)):
        setattr(engine.scheduler_config, option, value)
        assert (unsupported(engine) is None) == works
    setattr(engine.scheduler_config, option, 1)
    assert f"{option}=1: a CoLD request takes two" in str(unsupported(engine))
    assert "--" + option.replace("_", "-") in str(unsupported(engine))


@pytest.mark.parametrize(
    ("watermark", "ranks", "max_tokens"), [(0.0, 1, 17), (0.1, 1, 9), (0.0, 2, 41), (0.1, 2, 25)]
)
def test_what_fits_the_kv_cache(watermark: float, ranks: int, max_tokens: int) -> None:
    """Prompts of 8 tokens and 7 blocks of 8, one of which is the null block; the last token is not
    computed.
    """
    engine = config(max_model_len=1000)
    engine.scheduler_config.watermark = 1.5 * watermark
    engine.cache_config = SimpleNamespace(
        num_gpu_blocks=7, block_size=8, sliding_window=None, enable_prefix_caching=False
    )
    engine.parallel_config = SimpleNamespace(
        data_parallel_size=1, decode_context_parallel_size=ranks
    )
    pair = [AmateurSpec("amateur", "amateur")]
    assert fit(engine, pair, 8, max_tokens) == max_tokens
    with pytest.raises(ColdError, match="KV cache blocks"):
        fit(engine, pair, 8, max_tokens + 1)
    assert fit(engine, pair, 8, max_tokens + 1, unlimited=True) == max_tokens


@pytest.mark.parametrize(
    ("mode", "usable", "max_tokens"),
    [("none", 12, 1), ("none", 16, 9), ("align", 6, 1), ("align", 12, 9), ("align", 20, 17)],
)
def test_states_take_blocks_too(mode: str, usable: int, max_tokens: int) -> None:
    """Two groups of layers with attention, and four blocks for states: a stream of a single block
    has not as many, where there are some for each of its last blocks.
    """
    engine = config(max_model_len=1000, is_hybrid=True)
    engine.cache_config = SimpleNamespace(
        num_gpu_blocks=1 + usable,
        block_size=8,
        sliding_window=None,
        mamba_cache_mode=mode,
        kv_cache_max_concurrency=(1 + usable) / (2 * 125 + 4),
    )
    engine.parallel_config = SimpleNamespace(data_parallel_size=1)
    pair = [AmateurSpec("amateur", "amateur")]
    assert fit(engine, pair, 8, max_tokens) == max_tokens
    with pytest.raises(ColdError, match=rf"states included, and the engine has {usable};"):
        fit(engine, pair, 8, max_tokens + 1)
    assert fit(engine, pair, 8, max_tokens + 1, unlimited=True) == max_tokens
    engine.cache_config.kv_cache_max_concurrency = None  # as in processes that are not told
    assert fit(engine, pair, 8, 900) == 900


# ---- what computes LoRA on CPU -------------------------------------------------------------------


def test_the_choice_of_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_cold.cpu import cpu_platform, lora_ops

    monkeypatch.delenv("COLD_LORA", raising=False)
    assert cpu_platform.choice() == "cpp"
    for name in ("cpp", "torch", "stock"):
        monkeypatch.setenv("COLD_LORA", name)
        assert cpu_platform.choice() == name
    monkeypatch.setenv("COLD_LORA", "0")
    with pytest.raises(ValueError, match="COLD_LORA='0': must be one of cpp, torch, stock"):
        cpu_platform.choice()
    monkeypatch.setattr(lora_ops, "missing", lambda: "It is not built: build it.")
    monkeypatch.setenv("COLD_LORA", "cpp")
    with pytest.raises(RuntimeError, match=r"COLD_LORA=cpp was asked for\. It is not built"):
        cpu_platform.choice()
    monkeypatch.delenv("COLD_LORA")
    assert cpu_platform.choice() == "torch"


def test_the_wrapper_that_the_platform_names(
    monkeypatch: pytest.MonkeyPatch, logged: list[logging.LogRecord]
) -> None:
    from vllm_cold.cpu import cpu_platform, lora_ops

    monkeypatch.delenv("COLD_LORA", raising=False)
    stock = cpu_platform._make_wrapper(lambda cls: cpu_platform.STOCK)
    assert stock(None) == cpu_platform.WRAPPERS["cpp"]
    assert cpu_platform._make_wrapper(lambda cls: "their.own")(None) == "their.own"
    monkeypatch.setattr(lora_ops, "missing", lambda: "It is not built: build it.")
    logged.clear()
    assert stock(None) == cpu_platform.WRAPPERS["torch"]
    (record,) = logged
    assert record.levelname == "WARNING" and "It is not built: build it." in record.getMessage()
