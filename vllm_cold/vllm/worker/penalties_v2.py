# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``Sampler.__init__`` (V2 runner), the order of its ``logits_processors``.

Why: V2 applies penalties before custom processors, to each row by the tokens of its own prompt. An
amateur with a prompt of its own has other ones than its expert: a repetition penalty (which vLLM
takes from a model's generation_config, too) would then be scored as if the model had found these
tokens less likely. Here CoLD scores before penalties and behind ``bad_words``, as on V1: the scores
are penalised, by the expert's tokens. For plain requests nothing changes: what ``bad_words`` forbid
is -inf before penalties as behind them.
Since: 0.31. Can go: when V2 lets a processor say where it stands.
"""

from collections.abc import Callable
from typing import Any

from vllm_cold.vllm.patching import PatchPoint


def _make_init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.logits_processors = in_order(self.logits_processors)

    return __init__


def in_order(processors: list[Any]) -> list[Any]:
    """VLLM's processors and custom ones, with CoLD's before penalties and behind bad words.

    Raises:
        RuntimeError: vLLM's are not those that are known, so that CoLD would score penalised rows.
    """
    ours = [p for p in processors if hasattr(p, "tell_amateurs")]
    if not ours:
        return processors
    named = {type(p).__name__: p for p in processors}
    late, early = named.get("PenaltiesState"), named.get("BadWordsState")
    if late is None or early is None:
        raise RuntimeError(
            "CoLD: this vLLM's V2 sampler has no PenaltiesState or no BadWordsState among its "
            "logits processors, so penalties would be scored; set VLLM_USE_V2_MODEL_RUNNER=0, or "
            "install a vLLM that vllm-cold supports."
        )
    rest = [p for p in processors if p not in (early, *ours)]
    at = rest.index(late)
    return [*rest[:at], early, *ours, *rest[at:]]


V2 = (PatchPoint("vllm.v1.worker.gpu.sample.sampler:Sampler.__init__", _make_init),)
