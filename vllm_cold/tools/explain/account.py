# SPDX-License-Identifier: Apache-2.0
"""A step's account from its log-probabilities, which is what vLLM gives. Pure functions.

They differ from logits by a constant for each step and stream (the log of the softmax's sum), so

- the valid set is the same, ``lp >= max(lp) + ln(alpha)`` being a difference;
- the scores ``(1 + beta) * expert - beta * amateur`` differ from those of the logits by one
  constant a step, so their order, their differences and the winner are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.explain.trace import Candidate, Row, Step


def score(expert: float, amateur: float, beta: float) -> float:
    """The contrastive score of one token from its two ln-probabilities; nats.

    Where the amateur's probability is zero the penalty is zero, as in ``vllm_cold.ops``.
    """
    if expert == -math.inf:
        return -math.inf
    return (1.0 + beta) * expert - (0.0 if amateur == -math.inf else beta * amateur)


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


def beta_of_step(
    valid: Iterable[int], complete: bool, expert: Row, amateur: Row, settings: ColdSettings
) -> float | None:
    """The contrast strength of one position; None if what it follows from is not known.

    An adaptive beta is, from probabilities of the valid tokens, ``beta_max * reach * divergence``:
    the Jensen-Shannon divergence of the streams in bits, and the amateur's best valid token
    relative to its best token. A softmax over the valid ones takes ln-probabilities as it takes
    logits.

    Args:
        valid: The valid tokens that are known.
        complete: Whether there can be no other.
        expert: The expert's distribution.
        amateur: The amateur's; its most probable token is in it.
        settings: CoLD's.
    """
    if not settings.adaptive or settings.strength == 0.0:
        return settings.strength
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
        weights = [math.exp(value - max(values)) for value in values]
        shares.append([weight / math.fsum(weights) for weight in weights])
    reach = math.exp(reached - max(entry.value for entry in amateur.values()))
    return settings.strength * reach * _jensen_shannon(*shares)


def best(values: Iterable[tuple[int, float]]) -> int:
    """The id with the largest value, the lowest id among equals (as argmax takes it)."""
    return max(values, key=lambda pair: (pair[1], -pair[0]))[0]


def make_step(
    token: int,
    text: str,
    expert: Row,
    amateur: Row,
    *,
    known: int,
    amateur_limit: float | None,
    vocab_size: int | None,
    settings: ColdSettings,
    listed: Iterable[int],
    most: int = 64,
) -> Step:
    """The account of one position.

    Args:
        token: The id that the engine put there.
        text: Its piece of the answer.
        expert: The expert's distribution there; holds ``token``.
        amateur: The amateur's.
        known: See ``valid_tokens``.
        amateur_limit: No token that ``amateur`` lacks is more probable (ln); None if not known.
        vocab_size: See ``valid_tokens``.
        settings: CoLD's.
        listed: Ids to list beside the valid ones.
        most: At most this many candidates are kept (the winner, greedy's and ``token`` always).
    """
    valid, complete = valid_tokens(expert, known, vocab_size, settings)
    beta = beta_of_step(valid, complete, expert, amateur, settings)
    candidates = []
    for candidate in valid.union(listed, [token]):
        e, a = expert.get(candidate), amateur.get(candidate)
        e_value = e.value if e is not None else None
        bound = a is None and amateur_limit is not None
        a_value = a.value if a is not None else amateur_limit
        candidates.append(
            Candidate(
                token=candidate,
                text=next((x.text for x in (e, a) if x is not None and x.text), ""),
                expert=e_value,
                amateur=a_value,
                score=None
                if e_value is None or a_value is None or beta is None
                else score(e_value, a_value, beta),
                valid=candidate in valid,
                amateur_is_bound=bound,
            )
        )
    greedy = best((t, entry.value) for t, entry in expert.items())
    scored = [(c.token, c.score) for c in candidates if c.valid and c.score is not None]
    # Without any amateur value there is nothing to contrast with: the expert decides.
    winner = None if beta is None else best(scored) if scored else greedy
    exact = [
        (c.expert, c.amateur)
        for c in candidates
        if c.expert is not None and c.amateur is not None and not c.amateur_is_bound
    ]
    candidates.sort(key=lambda candidate: _order(candidate, by_score=beta is not None))
    kept = candidates[:most]
    kept += [c for c in candidates[most:] if c.token in (winner, greedy, token)]
    return Step(
        token=token,
        text=text,
        candidates=tuple(kept),
        valid_size=len(valid),
        valid_complete=complete,
        divergence=divergence_bits([e for e, _ in exact], [a for _, a in exact]),
        winner=winner,
        greedy=greedy,
        beta=beta,
    )


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
