# SPDX-License-Identifier: Apache-2.0
"""``ColdParams``: vLLM's SamplingParams plus the settings of contrastive decoding, and what it
contrasts with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from msgspec import UNSET, UnsetType
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams

from vllm_cold.compat import active
from vllm_cold.errors import ColdError
from vllm_cold.settings.amateurs import check_preset
from vllm_cold.settings.arguments import check_limited
from vllm_cold.settings.images import Blur, Noise, read_distorted
from vllm_cold.settings.presets import PRESETS
from vllm_cold.settings.source_readers import read_source
from vllm_cold.settings.sources import Source
from vllm_cold.settings.table import (
    DEFAULT_ALPHA,
    DEFAULT_BETA,
    MAX_AMATEURS,
    SETTINGS,
    ColdSettings,
    check,
    combine,
    merge,
)


@dataclass(frozen=True, kw_only=True)
class Amateur:
    """What a request is contrasted with: an adapter, a prompt, or both.

    The score of a token is ``z0 + sum_i weight_i * (z_i - z0)`` in logits, over a request's
    amateurs, on the expert's candidates.

    Attributes:
        prompt: What it reads instead of the expert's prompt: text, token ids, chat messages,
            which the chat template renders (in ``LLM.chat`` with the call's own arguments),
            or ``{"prompt": text, "multi_modal_data": media}`` as vLLM takes it (or with
            ``prompt_token_ids``).
        without: What it does not read of the expert's conversation (``LLM.chat``): a role, the
            index of a message, "images", "videos" or "audios", or a list of these.
        without_text: A text that it does not read, where that first stands in the expert's prompt
            or conversation.
        images: What it sees instead of each of the expert's images: ``Noise(500)`` or
            ``Blur(12)``. At most one of these four is given.
        lora_request: Its adapter, None for the base model. Left out: the expert's own if one of
            these four is given, else none.
        weight: A number from -1e6 to 1e6, below 0 to contrast; the name of a rule that chooses it
            at each step; None for what ``beta`` says.

    Raises:
        ValueError: names the field, the value and what is allowed.

    Examples:
        >>> from vllm_cold import Amateur, ColdParams
        >>> question = "Who wrote it?"
        >>> params = ColdParams(alpha=0.1, beta=0.5, amateur=Amateur(prompt=question))
    """

    prompt: str | Sequence[int] | Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None
    without: str | int | Sequence[str | int] | None = None
    without_text: str | None = None
    images: Noise | Blur | None = None
    lora_request: LoRARequest | None | UnsetType = UNSET
    weight: float | str | None = None

    def __post_init__(self) -> None:
        _ = self.source
        if self.lora_request is not UNSET and not isinstance(
            self.lora_request, (LoRARequest, type(None))
        ):
            raise ColdError(
                "lora_request",
                self.lora_request,
                "must be a LoRARequest, or None for the base model",
            )
        object.__setattr__(self, "weight", check("weight", self.weight))

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # vLLM copies the parameters of every request; nothing of it is changed

    @property
    def source(self) -> Source | None:
        """What it reads; None for the expert's prompt."""
        return read_source(self.prompt, self.without, self.without_text, self.images)

    def adapter(self, expert: LoRARequest | None) -> LoRARequest | None:
        """Return its adapter next to this expert's."""
        if self.lora_request is UNSET:
            return None if self.source is None else expert
        return self.lora_request


def _check_amateurs(amateur: Any, amateurs: Any) -> tuple[Amateur, ...]:
    """Return the amateurs that one of the two fields has; raises ColdError for anything else."""
    if amateur is not None and not isinstance(amateur, (LoRARequest, Amateur)):
        raise ColdError(
            "amateur", amateur, "must be a LoRARequest or an Amateur, or None for the base model"
        )
    if amateurs is None:
        return (amateur if isinstance(amateur, Amateur) else Amateur(lora_request=amateur),)
    problem = ""
    if amateur is not None:
        problem = "amateur is given too; give one of the two"
    elif (
        not isinstance(amateurs, (list, tuple))
        or not 1 <= len(amateurs) <= MAX_AMATEURS
        or not all(isinstance(entry, Amateur) for entry in amateurs)
    ):
        problem = f"must be a list of 1 to {MAX_AMATEURS} Amateurs"
    if problem:
        raise ColdError("amateurs", amateurs, problem)
    return tuple(amateurs)


class ColdParams(SamplingParams, kw_only=True, omit_defaults=True, dict=True):  # type: ignore
    """Sampling parameters of a request that is decoded with a contrast.

    Everything that ``SamplingParams`` has keeps its meaning and applies to the contrastive
    scores: temperature, top_p, n, seed, stop, penalties, logprobs (the expert's), structured
    outputs and so on. The fields of contrastive decoding are keyword arguments only.

    At each step a token is a candidate if the expert (the request itself) gives it at least
    ``alpha`` times the probability of its best token; candidates are scored
    ``(1 + beta) * expert - beta * amateur`` in logits (arXiv 2505.14620), or with each amateur's
    own weight (``Amateur``). A rule chooses the weights at each step (docs/methods.md lists them).

    Attributes:
        alpha: Plausibility threshold in [0, 1]; default 0.1. 1 equals greedy, 0 is no mask.
        beta: Contrast strength, >= 0 (at most 1e6); default 0.5. 0 equals the adapter alone.
        rule: The name of a rule, such as "adaptive", which chooses the strength at each step in
            place of ``beta``.
        rule_parameters: The rule's parameters by name; those that are left out have their defaults.
            An error without a rule.
        expert_top_k: Optional cap on the candidates: the expert's k most probable tokens.
        bits: What a part may add to the answer by the rule "bound", in bits (docs/bound.md): a
            number, or one for each amateur; None for no limit.
        bits_per_token: The same for what it may add besides with each token; None for 0.
        amateur: What to contrast with: None for the base model, another adapter, or an ``Amateur``.
        amateurs: The same for 1 to 32 of them, instead of ``amateur``.
        explain: Of how many tokens at each step, the best by score and the expert's most probable,
            the output's ``kv_transfer_params["cold"]["steps"]`` tells scores, logits and weights;
            0 to 64, 0 for none (docs/write-a-rule.md).
        method: The preset's name, which ``preset`` sets: what the request is counted under. None:
            "cold", or "custom" if an amateur has a prompt of its own.

    Raises:
        ValueError: names the field, the value and the allowed range.

    Examples:
        >>> from vllm_cold import ColdParams
        >>> params = ColdParams(alpha=0.1, beta=0.5, max_tokens=64)
    """

    alpha: float = DEFAULT_ALPHA
    beta: float = DEFAULT_BETA
    rule: str | None = None
    rule_parameters: dict[str, Any] | None = None
    expert_top_k: int | None = None
    bits: float | list[float] | None = None
    bits_per_token: float | list[float] | None = None
    amateur: LoRARequest | Amateur | None = None
    amateurs: Sequence[Amateur] | None = None
    explain: int = 0
    method: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.combine()

    @classmethod
    def preset(cls, name: str, **fields: Any) -> Self:
        """Return the parameters of a method by its name (``settings.presets``).

        Args:
            name: The method's.
            fields: Of this class; they win over the method's. A method with several amateurs gives
                those of ``amateurs`` their weights.

        Raises:
            ValueError: there is no such method, or it needs other amateurs.

        Examples:
            >>> params = ColdParams.preset("cad", amateur=Amateur(prompt="Who?"), max_tokens=64)
        """
        preset = PRESETS[check("preset", name)]
        if preset.images is not None and not fields.keys() & {"amateur", "amateurs"}:
            fields["amateur"] = Amateur(images=read_distorted("images", preset.images))
        amateurs = _check_amateurs(fields.get("amateur"), fields.get("amateurs"))
        check_preset(
            ("preset", name),
            preset,
            [amateur.source for amateur in amateurs],
            "give amateur=Amateur(prompt=...), or its without or images",
            "; give amateurs=[...]",
        )
        if preset.weights:
            fields["amateurs"] = amateurs = tuple(
                amateur if amateur.weight is not None else replace(amateur, weight=weight)
                for amateur, weight in zip(amateurs, preset.weights, strict=True)
            )
        settings = {setting: fields.pop(setting) for setting in SETTINGS if setting in fields}
        # What the caller's fields leave nothing to do for is left out.
        weights = [amateur.weight for amateur in amateurs]
        values = merge(settings, weights, defaults=preset.settings)
        check_limited("preset", name, preset, values.get("rule"))
        return cls(**{"method": name, **values, **fields})

    def contrast(self) -> tuple[Amateur, ...]:
        """Return what it contrasts with, checked."""
        return _check_amateurs(self.amateur, self.amateurs)

    def combine(self) -> tuple[ColdSettings, tuple[float | None, ...]]:
        """Return the method's settings and the amateurs' weights, checked (fields may have been
        assigned after construction).
        """
        weights = [amateur.weight for amateur in self.contrast()]
        check("preset", self.method, "method")
        check("explain", self.explain)
        values = {name: getattr(self, name) for name in SETTINGS}
        for name, default in (("alpha", DEFAULT_ALPHA), ("beta", DEFAULT_BETA)):
            if values[name] == default:
                del values[name]  # nobody may have set it
        return combine(values, weights)

    def verify(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to run where the plugin is not active: there the request would silently be decoded
        without a contrast. vLLM calls this at admission.
        """
        active.require()
        super().verify(*args, **kwargs)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in SETTINGS)
        amateur = self.amateur
        contrast = repr(amateur.lora_name if isinstance(amateur, LoRARequest) else amateur)
        if self.amateurs is not None:
            contrast += f", amateurs={self.amateurs!r}"
        rest = super().__repr__().removeprefix("SamplingParams(")
        return f"ColdParams({settings}, amateur={contrast}, {rest}"
