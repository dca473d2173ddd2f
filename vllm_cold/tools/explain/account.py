# SPDX-License-Identifier: Apache-2.0
"""A step's account from its log-probabilities, which is what vLLM gives. Pure functions.

They differ from logits by a constant for each step and stream (the log of the softmax's sum), so

- the valid set is the same, ``lp >= max(lp) + ln(alpha)`` being a difference;
- the scores ``expert + sum of weight * (amateur - expert)`` differ from those of the logits by one
  constant a step, so their order, their differences and the winner are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vllm_cold.method.settings import ColdSettings, Weight
from vllm_cold.tools.explain.trace import EXACT, LEAST, MOST, Candidate, Row, Step


@dataclass(frozen=True, slots=True)
class Contrasted:
    """An amateur at one position.

    Attributes:
        row: Its distribution, as far as it is known; its most probable token is in it.
        weight: Its weight.
        limit: No token that ``row`` lacks is more probable (ln); None if not known.
    """

    row: Row
    weight: Weight
    limit: float | None = None


def score(expert: float, amateurs: Sequence[float], weights: Sequence[float]) -> float:
    """The contrastive score of one token from its ln-probabilities; nats.

    Where an amateur's probability is zero its logarithm counts as 0, as in ``vllm_cold.ops``.
    """
    if expert == -math.inf:
        return -math.inf
    total = expert
    for value, weight in zip(amateurs, weights, strict=True):
        total += weight * ((0.0 if value == -math.inf else value) - expert)
    return total


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
    bar = values[0] + math.log(settings.alpha) if settings.alpha else -math.inf
    cap = settings.expert_top_k
    if cap is not None and cap <= min(known, len(values)):
        bar = max(bar, values[cap - 1])
    valid = {t for t, entry in expert.items() if entry.value >= bar and entry.value > -math.inf}
    everything = len(values) < known or (vocab_size is not None and known >= vocab_size)
    return valid, everything or values[known - 1] < bar


def divergence_bits(expert: Sequence[float], amateur: Sequence[float]) -> float:
    """The Jensen-Shannon divergence of two distributions, with all other tokens as one.

    Args:
        expert: ln-probabilities of some tokens.
        amateur: The amateur's ln-probabilities of the same tokens.

    Returns:
        Bits, from 0 (the same) to 1 (nothing in common). What is not listed counts as one token
        that holds the rest of each distribution. Merging tokens can only lower the divergence: the
        one over the whole vocabulary is at least this.
    """
    p, q = ([math.exp(value) for value in values] for values in (expert, amateur))
    p.append(max(0.0, 1.0 - math.fsum(p)))
    q.append(max(0.0, 1.0 - math.fsum(q)))
    return _jensen_shannon(p, q)


def _jensen_shannon(p: Sequence[float], q: Sequence[float]) -> float:
    total = 0.0
    for x, y in zip(p, q, strict=True):
        middle = (x + y) / 2
        total += sum(0.5 * part * math.log2(part / middle) for part in (x, y) if part > 0.0)
    return min(1.0, max(0.0, total))


def weight_of_step(
    valid: Iterable[int], complete: bool, expert: Row, amateur: Row, weight: Weight
) -> float | None:
    """An amateur's weight at one position; None if what it follows from is not known.

    An adaptive one is, from probabilities of the valid tokens, ``weight * reach * divergence``:
    the Jensen-Shannon divergence of the streams in bits, and the amateur's best valid token
    relative to its best token. A softmax over the valid ones takes ln-probabilities as it takes
    logits.

    Args:
        valid: The valid tokens that are known.
        complete: Whether there can be no other.
        expert: The expert's distribution.
        amateur: The amateur's; its most probable token is in it.
        weight: The amateur's.
    """
    if not weight.adaptive or weight.weight == 0.0:
        return weight.weight
    ids = sorted(valid)
    if complete and len(ids) == 1:
        return 0.0  # there is nothing to contrast
    if not complete or any(token not in amateur for token in ids):
        return None
    reached = max(amateur[token].value for token in ids)
    if reached == -math.inf:
        return 0.0
    shares = []
    for row in (expert, amateur):
        values = [row[token].value for token in ids]
        parts = [math.exp(value - max(values)) for value in values]
        shares.append([part / math.fsum(parts) for part in parts])
    reach = math.exp(reached - max(entry.value for entry in amateur.values()))
    return weight.weight * reach * _jensen_shannon(*shares)


def best(values: Iterable[tuple[int, float]]) -> int:
    """The id with the largest value, the lowest id among equals (as argmax takes it)."""
    return max(values, key=lambda pair: (pair[1], -pair[0]))[0]


def make_step(
    token: int,
    text: str,
    expert: Row,
    amateurs: Sequence[Contrasted],
    *,
    known: int,
    vocab_size: int | None,
    settings: ColdSettings,
    listed: Iterable[int],
    told: int | None = None,
    most: int = 64,
) -> Step:
    """The account of one position.

    Args:
        token: The id that the engine put there.
        text: Its piece of the answer.
        expert: The expert's distribution there; holds ``token``.
        amateurs: The amateurs there.
        known: See ``valid_tokens``.
        vocab_size: See ``valid_tokens``.
        settings: CoLD's.
        listed: Ids to list beside the valid ones.
        told: The id that the engine takes here with CoLD, None if it was not asked.
        most: At most this many candidates are kept (the winner, greedy's and ``token`` always).
    """
    valid, complete = valid_tokens(expert, known, vocab_size, settings)
    weights = [weight_of_step(valid, complete, expert, x.row, x.weight) for x in amateurs]
    certain = [weight for weight in weights if weight is not None]
    scored = len(certain) == len(weights)
    candidates = [
        _candidate(one, one in valid, expert, amateurs, certain if scored else None)
        for one in valid.union(listed, [token])
    ]
    greedy = best((t, entry.value) for t, entry in expert.items())
    winner, proved = told, False
    if scored:
        ranges = {t: _range(t, expert[t].value, amateurs, certain) for t in valid}
        values = sorted((entry.value for entry in expert.values()), reverse=True)
        others = -math.inf if complete else _most(values[known - 1], certain)
        cut = told in expert and told not in valid
        winner, proved = _winner(ranges, others, told, cut)
    candidates.sort(key=lambda candidate: _order(candidate, scored))
    kept = candidates[:most]
    kept += [c for c in candidates[most:] if c.token in (winner, greedy, token)]
    return Step(
        token=token,
        text=text,
        candidates=tuple(kept),
        valid_size=len(valid),
        valid_complete=complete,
        divergences=tuple(_divergence(candidates, i) for i in range(len(amateurs))),
        winner=winner,
        greedy=greedy,
        weights=tuple(weights),
        told=winner is not None and not proved,
    )


def _candidate(
    token: int,
    valid: bool,
    expert: Row,
    amateurs: Sequence[Contrasted],
    weights: Sequence[float] | None,
) -> Candidate:
    entries = [expert.get(token), *(one.row.get(token) for one in amateurs)]
    value, *others = (None if entry is None else entry.value for entry in entries)
    limits = [one.limit for one in amateurs]
    values = tuple(x if x is not None else y for x, y in zip(others, limits, strict=True))
    bounds = tuple(x is None and y is not None for x, y in zip(others, limits, strict=True))
    total, is_what = None, EXACT
    if value is not None and weights is not None and None not in values:
        total, is_what = _shown(*_range(token, value, amateurs, weights))
    return Candidate(
        token=token,
        text=next((x.text for x in entries if x is not None and x.text), ""),
        expert=value,
        amateurs=values,
        bounds=bounds,
        score=total,
        score_is=is_what,
        valid=valid,
    )


def _shown(low: float, high: float) -> tuple[float | None, int]:
    """What is said of a score that is between these two."""
    if low == high:
        return low, EXACT
    if low > -math.inf:
        return low, LEAST
    return (high, MOST) if high < math.inf else (None, EXACT)


def _range(
    token: int, expert: float, amateurs: Sequence[Contrasted], weights: Sequence[float]
) -> tuple[float, float]:
    """The least and the most that a token's score can be."""
    found = [one.row.get(token) for one in amateurs]
    values = [
        entry.value if entry is not None else (0.0 if one.limit is None else one.limit)
        for entry, one in zip(found, amateurs, strict=True)
    ]
    low = high = score(expert, values, weights)
    for entry, weight in zip(found, weights, strict=True):
        if entry is None and weight:  # it may be any smaller than that
            low, high = (-math.inf, high) if weight > 0.0 else (low, math.inf)
    return low, high


def _most(limit: float, weights: Sequence[float]) -> float:
    """The best score of a token that is not known, with at most ``limit`` of the expert: an
    amateur that is contrasted with may find it as improbable as it likes.
    """
    own = 1.0 - math.fsum(weights)
    if own < 0.0 or min(weights) < 0.0:
        return math.inf
    return own * limit if own else 0.0  # ln-probabilities of amateurs are at most 0


def _winner(
    ranges: Mapping[int, tuple[float, float]], others: float, told: int | None, cut: bool
) -> tuple[int | None, bool]:
    """CoLD's choice, and whether the scores prove it: else it is what the engine told, unless
    another is better for certain.

    Args:
        ranges: The least and the most that the scores of the valid tokens can be.
        others: The most that the score of another token can be.
        told: The engine's choice.
        cut: Whether that is known not to be valid.
    """
    first = best((token, low) for token, (low, _) in ranges.items())
    low = ranges[first][0]
    rest = max((high for token, (_, high) in ranges.items() if token != first), default=-math.inf)
    if low >= max(rest, others):
        return first, True
    if told is None:
        return None, False
    contradicted = cut or ranges.get(told, (0.0, others))[1] < low
    return (first, True) if contradicted else (told, False)


def _divergence(candidates: Sequence[Candidate], amateur: int) -> float:
    exact = [
        (c.expert, value)
        for c in candidates
        if c.expert is not None
        and (value := c.amateurs[amateur]) is not None
        and not c.bounds[amateur]
    ]
    return divergence_bits([e for e, _ in exact], [a for _, a in exact])


def _order(candidate: Candidate, by_score: bool) -> tuple[bool, float, int]:
    value = candidate.score if candidate.valid and by_score else candidate.expert
    return not candidate.valid, math.inf if value is None else -value, candidate.token


def spread(text: str, pieces: Sequence[str]) -> list[str]:
    """The answer's text, cut up into the pieces of its tokens.

    Tokenizers of the SentencePiece kind drop a leading space when they decode a token alone. It is
    taken back from the whole text. A piece that does not occur next in the text (a special token,
    or a part of a character) stays as it is.

    Args:
        text: The whole answer.
        pieces: Each token, decoded alone.
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
