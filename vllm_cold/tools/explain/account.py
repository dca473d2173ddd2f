# SPDX-License-Identifier: Apache-2.0
"""A step's account from its log-probabilities, which is what vLLM gives, by the scoring op's own
reference. Pure functions.

Log-probabilities differ from logits by a constant for each step and stream (the log of the
softmax's sum), so the valid set is the same, and the scores differ from those of the logits by one
constant a step: their order, their differences and the winner are the same. Weights that a rule
chooses follow from the whole vocabulary: they are the engine's word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from vllm_cold.method.settings import ColdSettings
from vllm_cold.ops.scoring_reference import group_scores
from vllm_cold.tools.explain import visible
from vllm_cold.tools.explain.record import Candidate, Step
from vllm_cold.tools.explain.source import Logprob, Row

LISTED = 8  # of the most probable tokens of each stream, at least
MOST = 64  # candidates of a step that are kept, and the winner, greedy's and the engine's


def valid_tokens(
    expert: Row, known: int, vocab_size: int | None, settings: ColdSettings
) -> tuple[set[int], bool]:
    """The valid tokens among those that are known, and whether there can be no other.

    Args:
        expert: The expert's distribution; it holds at least the ``known`` most probable tokens.
        known: How many of the most probable tokens are known for certain.
        vocab_size: The vocabulary's size, None if it is not known.
        settings: alpha and the cap.

    Returns:
        Token ids, and False if the last known token is valid itself, so that others may follow.
    """
    values = sorted((entry.value for entry in expert.values()), reverse=True)
    bar = values[0] + (math.log(settings.alpha) if settings.alpha else -math.inf)
    cap = settings.expert_top_k
    if cap is not None and cap <= known:
        bar = max(bar, values[cap - 1])
    valid = {t for t, entry in expert.items() if entry.value >= bar and entry.value > -math.inf}
    everything = vocab_size is not None and known >= vocab_size
    return valid, everything or values[known - 1] < bar


def divergence_bits(expert: torch.Tensor, amateur: torch.Tensor) -> float:
    """The Jensen-Shannon divergence of two distributions, with all other tokens as one.

    Args:
        expert: ln-probabilities of some tokens, float64.
        amateur: The amateur's ln-probabilities of the same tokens.

    Returns:
        Bits, from 0 (the same) to 1 (nothing in common). What is not listed counts as one token
        that holds the rest of each distribution. Merging tokens can only lower the divergence: the
        one over the whole vocabulary is at least this.
    """
    shares = torch.stack([expert, amateur]).exp()
    rest = (1 - shares.sum(1, keepdim=True)).clamp(min=0)
    p = torch.cat([shares, rest], dim=1)
    middle = p.mean(0).clamp(min=1e-300)  # x log x is 0 at 0
    bits = float(torch.special.xlogy(p, p / middle).sum()) / (2 * math.log(2))
    return min(1.0, max(0.0, bits))


def listed(token: int, rows: Sequence[Row], valid: Iterable[int]) -> list[int]:
    """What is told of a position: the token there, the valid ones, the most probable ones under
    each stream.
    """
    ids = {token, *valid}
    for row in rows:
        ids.update(sorted(row, key=lambda t: (-row[t].value, t))[:LISTED])  # noqa: B023
    return sorted(ids)


def make_step(
    token: int,
    text: str,
    rows: Sequence[Row],
    weights: Sequence[float | None] | None,
    valid: tuple[set[int], bool],
    *,
    ruled: bool = False,
    method: str = "CoLD",
    greedy_answer: bool = False,
    ends: Sequence[int] = (),
) -> Step:
    """The account of one position.

    Args:
        token: The id that the engine put there.
        text: Its piece of the answer.
        rows: The streams' distributions there, the expert's first; each holds what is ``listed``.
        weights: The amateurs'; None for one that has ended, or if they are not known.
        valid: See ``valid_tokens``.
        ruled: Whether a rule chooses weights.
        method: What the method is called.
        greedy_answer: Whether ``token`` is of the expert's own answer.
        ends: The amateurs that end here.
    """
    expert, (valid_ids, complete) = rows[0], valid
    ids = listed(token, rows, valid_ids)  # in order: argmax takes the lowest id among equals
    tensors = [torch.tensor([r[t].value for t in ids], dtype=torch.float64) for r in rows]
    # The valid tokens are known already, with a cap among tokens that are not listed here.
    scored = torch.where(torch.tensor([t in valid_ids for t in ids]), tensors[0], -math.inf)
    greedy = ids[int(tensors[0].argmax())]
    scores: dict[int, float] = {}
    winner = None if greedy_answer else token  # the engine's word, where no number says more
    if weights is not None:
        found = group_scores(scored, tensors[1:], -math.inf, [one or 0.0 for one in weights])
        scores = dict(zip(ids, found.tolist(), strict=True))
        first = max(ids, key=scores.__getitem__)
        if complete or (winner is not None and scores[first] > scores[token]):
            winner = first
    expected = greedy if greedy_answer else winner
    margin = None
    if wrong := expected not in (None, token):
        better = {t: expert[t].value for t in ids} if greedy_answer else scores
        margin = better[expected] - better[token]
    takers = {method: winner, "greedy": greedy, "engine": token if wrong else None}

    def candidate(t: int) -> Candidate:
        score = scores.get(t, -math.inf)
        return Candidate(
            token=t,
            text=visible.alone(next((row[t].text for row in rows if row[t].text), ""), t),
            expert=_share(expert[t]),
            amateurs=tuple(_share(row[t]) for row in rows[1:]),
            score=score if math.isfinite(score) else None,
            valid=t in valid_ids,
            taken_by=tuple(name for name, taken in takers.items() if taken == t),
        )

    ids.sort(key=lambda t: (t not in valid_ids, -scores.get(t, 0.0), -expert[t].value, t))
    return Step(
        token=token,
        text=text,
        candidates=tuple(
            candidate(t) for i, t in enumerate(ids) if i < MOST or t in (winner, greedy, token)
        ),
        valid_size=len(valid_ids),
        complete=complete,
        divergences=tuple(divergence_bits(tensors[0], one) for one in tensors[1:]),
        greedy=greedy,
        winner=winner,
        weights=(None if weights is None else tuple(weights)) if ruled else (),
        ends=tuple(ends),
        wrong=wrong,
        margin=margin if margin is not None and math.isfinite(margin) else None,
    )


def _share(one: Logprob) -> float:
    return min(1.0, math.exp(one.value))


def spread(text: str, pieces: Sequence[str]) -> list[str]:
    """The answer's text, cut up into the pieces of its tokens, each of which is decoded alone.

    Tokenizers of the SentencePiece kind drop a leading space when they decode a token alone. It is
    taken back from the whole text. A piece that does not occur next in the text (a special token,
    or a part of a character) stays as it is.
    """
    found, at = [], 0
    for piece in pieces:
        for space in ("", " "):
            if piece and text.startswith(space + piece, at):
                piece = space + piece
                at += len(piece)
                break
        found.append(piece)
    return found
