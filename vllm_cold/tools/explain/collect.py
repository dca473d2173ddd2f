# SPDX-License-Identifier: Apache-2.0
"""From prompts to a report: decode, score the answers under all streams, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise, takewhile

from vllm_cold.errors import ColdError
from vllm_cold.method.amateurs import AmateurSpec, Messages, Text
from vllm_cold.tools.contrast import Content, Stream, amateur_reads, expert_reads, make_streams
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import account
from vllm_cold.tools.explain.prompts import Asked
from vllm_cold.tools.explain.record import BASE, Amateur, Answer, Explanation, Piece, Report
from vllm_cold.tools.explain.source import (
    MAX_NAMED,
    Decoded,
    Logprob,
    Row,
    Source,
    after,
    side_by_side,
)
from vllm_cold.tools.pictures import text_of

FIRST_TOP = 20  # vLLM's default for --max-logprobs, which every server allows


async def explain(
    source: Source,
    prompts: Sequence[Asked],
    method: str = "CoLD",
    *,
    max_tokens: int = 64,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Decode and explain prompts.

    Args:
        source: An engine or a server.
        prompts: With what each is contrasted with, and the same settings.
        method: What that is called.
        max_tokens: The length of answers.
        progress: Called with a few words before each part.

    Raises:
        ToolError: a prompt does not fit the model, or the source cannot answer.
    """
    progress("reading the prompts")
    prompts = await read_all(source, prompts, max_tokens)
    progress(f"decoding with {method}")
    cold = await source.decode(prompts, False, max_tokens)
    progress("decoding greedily")
    greedy = await source.decode(prompts, True, max_tokens)
    progress("asking for probabilities")
    return await account_for(source, prompts, method, (cold, greedy))


async def read_all(source: Source, prompts: Sequence[Asked], max_tokens: int) -> list[Asked]:
    """The prompts with their streams.

    Raises:
        ToolError: a stream cannot be made, an amateur reads what its expert does, or one does not
            fit the model with an answer of ``max_tokens``.
    """
    found = await side_by_side(_read(source, one) for one in prompts)
    for one in found:
        _check_length(one, max_tokens, source.max_model_len)
    return found


async def _read(source: Source, asked: Asked) -> Asked:
    row, amateurs, tokens = asked.row, asked.contrast.amateurs, source.tokens
    try:
        whole = expert_reads(row.prompt, asked.chat)
        own = whole, await tokens("prompt", whole)
        others: list[tuple[Content, Sequence[int]] | None] = []
        for one in amateurs:
            reads = amateur_reads(whole, one)
            others.append(None if reads is None else (reads, await tokens(one.prompt_field, reads)))
        streams = make_streams(amateurs, own, others, source.expert, source.base, source.loaded)
    except ColdError as error:
        raise row.refusal(error) from error
    return replace(asked, streams=streams)


def _check_length(asked: Asked, max_tokens: int, limit: int | None) -> None:
    for number, stream in enumerate(asked.streams):
        whose = "the prompt" if number == 0 else f"what amateur {number} reads of the prompt"
        whose += f" {asked.row.start!r}"
        # vLLM wants room for one token more when it scores the answer.
        needed = len(stream.ids) + max_tokens + 1
        if limit is not None and needed > limit:
            raise ToolError(
                f"--max-tokens={max_tokens}: {whose} has {len(stream.ids)} tokens; with "
                f"the answer and one more that makes {needed}, and the model takes {limit}: lower "
                "--max-tokens or shorten the prompt"
            )


async def account_for(
    source: Source,
    prompts: Sequence[Asked],
    method: str,
    decoded: tuple[Sequence[Decoded], Sequence[Decoded]],
) -> Report:
    """Explain answers that are there.

    Args:
        source: What gave them.
        prompts: With their streams.
        method: What the method is called.
        decoded: Its answers, one for each prompt, and the greedy ones.
    """
    answers = [
        (
            await _account(source, asked, method, cold, cold, greedy=False),
            await _account(source, asked, method, greedy, cold, greedy=True),
        )
        for asked, cold, greedy in zip(prompts, *decoded, strict=True)
    ]
    return make_report(source, prompts, method, answers)


Weights = Sequence[float | None] | None
"""The amateurs' of a step; None where they are not known."""


def _weights(asked: Asked, answer: Decoded, cold: Decoded) -> list[Weights]:
    """Of an answer's steps. A rule chose those of the method's answer, which are the greedy one's,
    too, up to where the two part, and not known behind it.
    """
    length, fixed = len(answer.tokens), asked.contrast.weights
    if asked.contrast.settings.rule is None:
        return [fixed] * length
    both = zip(answer.tokens, cold.tokens, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
    known = cold.weights[: min(same + 1, length)]
    return [*known, *[None] * (length - len(known))]


async def _account(
    source: Source, asked: Asked, method: str, decoded: Decoded, cold: Decoded, *, greedy: bool
) -> Answer:
    """The method's answer (``cold``) or the greedy one, with what the streams say of each step."""
    tokens, settings = decoded.tokens, asked.contrast.settings
    weights = _weights(asked, decoded, cold)
    known = min(FIRST_TOP, source.vocab_size or FIRST_TOP)
    rows = await _score(source, asked.streams, tokens, known)

    def valid(step: int) -> tuple[set[int], bool]:
        return account.valid_tokens(rows[0][step], known, source.vocab_size, settings)

    if not all(valid(step)[1] for step in range(len(tokens))):
        most = await source.largest_top()
        # Without a mask it is all tokens, or of no use.
        every = source.vocab_size is not None and source.vocab_size <= most
        if most > known and (every or settings.alpha or settings.expert_top_k):
            rows[:1] = await _score(source, asked.streams[:1], tokens, most)
            known = most

    # Each token that a row lacks is named to vLLM, so the value is exact.
    lacking: list[tuple[Row, Stream, list[int]]] = []
    for step, (token, at) in enumerate(zip(tokens, zip(*rows, strict=True), strict=True)):
        listed = account.listed(token, at, valid(step)[0])
        for stream, row in zip(asked.streams, at, strict=True):
            before = after(stream, tokens[:step])
            missing = [each for each in listed if each not in row]
            for start in range(0, len(missing), MAX_NAMED):
                lacking.append((row, before, missing[start : start + MAX_NAMED]))
    found = await source.look_up([(before, named) for _, before, named in lacking])
    for (row, _, named), values in zip(lacking, found, strict=True):
        row.update({token: Logprob(values[token]) for token in named})

    alone = [row[token].text for row, token in zip(rows[0], tokens, strict=True)]
    pieces = account.spread(decoded.text, alone)
    steps = [
        account.make_step(
            token,
            piece,
            at,
            now,
            valid(step),
            ruled=settings.rule is not None,
            method=method,
            greedy_answer=greedy,
            ends=() if greedy else _ending(now, then),
        )
        for step, (token, piece, at, (now, then)) in enumerate(
            zip(tokens, pieces, zip(*rows, strict=True), pairwise([*weights, None]), strict=True)
        )
    ]
    return Answer(
        title="Greedy" if greedy else method,
        greedy=greedy,
        finish_reason=decoded.finish_reason,
        steps=tuple(steps),
    )


async def _score(
    source: Source, streams: Sequence[Stream], tokens: Sequence[int], top: int
) -> list[list[Row]]:
    """What each stream says of each token of an answer."""
    found = await source.score([after(stream, tokens) for stream in streams], top)
    # Row i is about token i + 1 of the text.
    return [rows[len(stream.ids) - 1 :] for stream, rows in zip(streams, found, strict=True)]


def _ending(now: Weights, then: Weights) -> list[int]:
    """Which amateurs end with a step, by its weights and those of the next one."""
    both = enumerate(zip(now or (), then or (), strict=False), 1)
    return [number for number, (one, later) in both if one is not None and later is None]


def make_report(
    source: Source,
    prompts: Sequence[Asked],
    method: str,
    answers: Sequence[tuple[Answer, Answer]],
) -> Report:
    """A report of answers that are explained: each prompt's, by the method and greedy."""
    settings = prompts[0].contrast.settings
    cap = "" if settings.expert_top_k is None else f", expert_top_k {settings.expert_top_k}"
    return Report(
        model=source.model,
        adapter=source.expert or BASE,
        source=source.about,
        method=method,
        settings=f"alpha {settings.alpha:g}{cap}",
        explanations=tuple(
            Explanation(
                pieces=_pieces(expert_reads(one.row.prompt, one.chat)),
                tokens=len(one.streams[0].ids),
                amateurs=tuple(
                    _amateur(one, spec, str(settings.rule) if weight is None else weight, stream)
                    for spec, weight, stream in zip(
                        one.contrast.amateurs, one.contrast.weights, one.streams[1:], strict=True
                    )
                ),
                answers=found,
            )
            for one, found in zip(prompts, answers, strict=True)
        ),
    )


def _amateur(asked: Asked, spec: AmateurSpec, weight: float | str, stream: Stream) -> Amateur:
    reads = ""
    if spec.source is not None:
        own = isinstance(spec.source, (Text, Messages))
        reads = f", {spec.source} of its own" if own else f" {spec.source}"
    said = weight if isinstance(weight, str) else f"{weight:+g}" if weight else "0"
    return Amateur(
        label=f"{stream.adapter or BASE}{reads}, weight {said}",
        pieces=_pieces(amateur_reads(expert_reads(asked.row.prompt, asked.chat), spec)),
        tokens=len(stream.ids),
    )


def _pieces(reads: Content | None) -> tuple[Piece, ...]:
    match reads:
        case None:
            return ()
        case Text(text):
            return (Piece(text=text),)
        case Messages(messages):
            return tuple(Piece(text=text_of(one), role=one["role"]) for one in messages)
