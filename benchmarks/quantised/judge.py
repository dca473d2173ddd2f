# SPDX-License-Identifier: Apache-2.0
"""How far an engine's tokens are from what the same checkpoint in transformers and peft says, and
whether that is more than rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.e2e.jobs import ALPHA, BETA, Job
from benchmarks.e2e.run import TASK
from examples.demo import ADAPTERS

# Logits by which a token may be behind, whatever the rounded reference does.
TIE = {"float32": 0.05, "bfloat16": 0.5}
# As far as this times the rounded reference's worst, too: the worst of a few hundred tokens varies,
# and engines round in other places. And so many times as often further off than it as nearer.
ROOM = 2.0
LEVEL = 0.01  # of the test of how often
FLOAT32_ROUNDING = 2.0**-23  # relative


@dataclass(frozen=True)
class Verdict:
    """What a reference says about a batch, and about what it would have chosen itself of the same
    texts after rounding ("rounded").

    Attributes:
        equal: The share of tokens that are the reference's best one.
        behind: How far the worst is from being it, in logits.
        rounded_equal: As ``equal``.
        rounded_behind: As ``behind``.
        further: Tokens that are further from the best than the rounded reference's.
        nearer: Those that are nearer to it.
    """

    equal: float
    behind: float
    rounded_equal: float
    rounded_behind: float
    further: int
    nearer: int


class Reference:
    """A checkpoint in transformers and peft, in float32; and rounded: in the engine's dtype, or if
    that is float32, too, from embeddings that are off by its rounding. ``folder``: None for the
    model itself.
    """

    def __init__(self, model: Path, folder: Path | None, dtype: str) -> None:
        from benchmarks.e2e.naive import Naive
        from benchmarks.quantised.reference import dress

        settings = {"model": str(model), "adapter": str(ADAPTERS / TASK)}
        self._exact, self._rounded = (Naive({**settings, "dtype": d}) for d in ("float32", dtype))
        for naive in (self._exact, self._rounded) if folder is not None else ():
            dress(naive.base, folder)
            dress(naive.adapted, folder)
        if dtype == "float32":
            for each in (self._rounded.base, self._rounded.adapted):
                each.get_input_embeddings().register_forward_hook(_off_by_rounding)

    def judge(self, job: Job, tie: float) -> Verdict:
        """Judge what a job gave."""
        import torch

        from benchmarks.e2e.naive import scores

        mode, own, rounded = job.system.mode, [], []
        with torch.inference_mode():
            for prompt, output in zip(job.prompts, job.output, strict=True):
                exact, near = (
                    _logits(naive, mode, prompt, output) for naive in (self._exact, self._rounded)
                )
                own.append(distances(*exact, torch.tensor(output), tie))
                rounded.append(distances(*exact, scores(near[0], *near[1]).argmax(-1), tie))
        return compare(own, rounded)


def _off_by_rounding(layer: Any, arguments: Any, output: Any) -> Any:
    import torch

    generator = torch.Generator().manual_seed(output.shape[-2])  # the same when it is judged again
    return output * (1 + FLOAT32_ROUNDING * torch.randn(output.shape, generator=generator))


def _logits(naive: Any, mode: str, prompt: list[int], output: list[int]) -> tuple[Any, list[Any]]:
    """Of each token of an output, [T, V]: the expert's, and each amateur's."""
    import torch

    ids = torch.tensor([prompt + output[:-1]])
    expert, *amateurs = (
        model(input_ids=ids, logits_to_keep=len(output)).logits[0].double()
        for model in naive._models(mode)
    )
    return expert, amateurs


def compare(own: Sequence[tuple[Any, Any]], rounded: Sequence[tuple[Any, Any]]) -> Verdict:
    """The verdict on texts whose tokens have these ``distances``."""
    import torch

    (strict, generous), (strict_rounded, generous_rounded) = (
        [torch.cat(each) for each in zip(*gaps, strict=True)] for gaps in (own, rounded)
    )
    return Verdict(
        float((strict == 0).double().mean()),
        float(generous.max()),
        float((strict_rounded == 0).double().mean()),
        float(generous_rounded.max()),
        int((strict > strict_rounded).sum()),
        int((strict < strict_rounded).sum()),
    )


def too_far(verdicts: Mapping[str, Verdict], tie: float) -> list[str]:
    """Sentences about tokens that are further behind than ``tie``, in logits, and than ``ROOM``
    times the worst of all that the rounded reference chose.
    """
    limit = max(tie, ROOM * max(v.rounded_behind for v in verdicts.values()))
    return [
        f"{label}: a token is {verdict.behind:.2f} logits behind the reference's; rounding "
        f"explains {limit:.2f}"
        for label, verdict in verdicts.items()
        if not verdict.behind <= limit  # not a number is wrong, too
    ]


def too_often(verdicts: Mapping[str, Verdict]) -> list[str]:
    """A sentence if tokens are further behind than what the rounded reference chose of the same
    text more than ``ROOM`` times as often as nearer (a binomial test). Each text counts once.
    """
    from scipy.stats import binomtest

    further = sum(v.further for v in verdicts.values())
    parted = further + sum(v.nearer for v in verdicts.values())
    share = ROOM / (ROOM + 1)
    p = binomtest(further, parted, share, alternative="greater").pvalue if parted else 1.0
    if p >= LEVEL:
        return []
    return [
        f"{', '.join(verdicts)}: of {parted} tokens that are not as far behind the best as the "
        f"rounded reference's, {further} are further (p = {p:.1g}); rounding explains {share:.0%}"
    ]


def distances(expert: Any, amateurs: Sequence[Any], chosen: Any, tie: float) -> tuple[Any, Any]:
    """How far tokens are from the best ones, in logits.

    Args:
        expert: Logits [T, V].
        amateurs: Of each amateur, likewise.
        chosen: Tokens [T].
        tie: Candidates closer than this to the bar may be none.

    Returns:
        By how much each is behind the best candidate, or outside of the candidates, [T]; and the
        same against the best one of those that are candidates for certain.
    """
    import torch

    scores, bar = expert, torch.full_like(expert[:, :1], -math.inf)
    if amateurs:
        bar = expert.max(-1, keepdim=True).values + math.log(ALPHA)
        scores = expert + sum(BETA * (expert - amateur) for amateur in amateurs)
    own, logit = scores.gather(1, chosen[:, None]), expert.gather(1, chosen[:, None])

    def behind(slack: float) -> Any:
        # The expert's best token is a candidate whatever the slack, so there is always one.
        allowed = expert >= torch.minimum(bar + slack, expert.max(-1, keepdim=True).values)
        best = torch.where(allowed, scores, -math.inf).max(-1, keepdim=True).values
        return torch.maximum(best - own, bar - logit).clamp(min=0)[:, 0]

    return behind(0.0), behind(tie)
