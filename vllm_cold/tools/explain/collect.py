# SPDX-License-Identifier: Apache-2.0
"""From prompts to a report: decode, score the answers under all streams, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from vllm_cold.method.amateurs import AmateurSpec, Messages, Text
from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.contrast import Content, Stream, amateur_reads, expert_reads
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
    read,
    side_by_side,
)
from vllm_cold.tools.pictures import text_of

FIRST_TOP = 20  # vLLM's default for --max-logprobs, which every server allows
LISTED = 8  # of the most probable tokens of each stream, at least


@dataclass(slots=True)
class _Text:
    """A prompt with one of its answers, and what its streams say about each step."""

    asked: Asked
    decoded: Decoded
    greedy: bool
    cold: Decoded  # the method's answer
    known: int = 0  # how many of the expert's most probable tokens
    rows: list[list[Row]] = field(init=False)  # by stream and step

    def __post_init__(self) -> None:
        self.rows = [[] for _ in self.asked.streams]

    @property
    def settings(self) -> ColdSettings:
        return self.asked.contrast.settings

    def weights(self) -> list[Sequence[float | None] | None]:
        """The amateurs', by step: a rule's of the method's answer are the other's, too, up to where
        the two part, and not known behind it.
        """
        tokens = self.decoded.tokens
        if self.settings.rule is None:
            return [self.asked.contrast.weights] * len(tokens)
        both = zip(tokens, self.cold.tokens, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
        known = self.cold.weights[: same + 1][: len(tokens)]
        return [*known, *[None] * (len(tokens) - len(known))]

    def complete(self, source: Source) -> bool:
        """Whether all valid tokens of all steps are known."""
        known = (self.known, source.vocab_size, self.settings)
        return all(account.valid_tokens(row, *known)[1] for row in self.rows[0])

    def listed(self, step: int) -> list[int]:
        """Valid tokens, the most probable ones under each stream, the one taken."""
        rows = [rows[step] for rows in self.rows]
        valid, _ = account.valid_tokens(rows[0], self.known, None, self.settings)
        ids = {self.decoded.tokens[step], *valid}
        for row in rows:
            ids.update(sorted(row, key=lambda t: (-row[t].value, t))[:LISTED])  # noqa: B023
        return sorted(ids)


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
        ToolError: one does not fit the model with an answer of ``max_tokens``.
    """
    found = await side_by_side(read(source, one) for one in prompts)
    for one in found:
        _check_length(one, max_tokens, source.max_model_len)
    return found


def _check_length(asked: Asked, max_tokens: int, limit: int | None) -> None:
    for number, stream in enumerate(asked.streams):
        whose = "the prompt" if number == 0 else f"what amateur {number} reads of the prompt"
        whose += f" {asked.row.start!r}"
        if not stream.ids:
            raise ToolError(f"--prompt: {whose} has no tokens; give a prompt with text")
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
    texts = [
        _Text(asked, answer, greedy, cold)
        for greedy, answers in zip((False, True), decoded, strict=True)
        for asked, answer, cold in zip(prompts, answers, decoded[0], strict=True)
    ]
    places = [(text, i) for text in texts for i in range(len(text.rows))]
    await _score(source, places, min(FIRST_TOP, source.vocab_size or FIRST_TOP))
    await _widen(source, [text for text in texts if not text.complete(source)])
    await _fill(source, texts)
    answers = [_answer(source, text, method) for text in texts]
    both = zip(answers[: len(prompts)], answers[len(prompts) :], strict=True)
    return make_report(source, prompts, method, list(both))


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
        pieces=_pieces(amateur_reads(asked.row.prompt, spec, asked.chat)),
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


async def _score(source: Source, places: Sequence[tuple[_Text, int]], top: int) -> None:
    """Ask what a stream of each text says."""
    streams = [after(text.asked.streams[i], text.decoded.tokens) for text, i in places]
    for (text, i), rows in zip(places, await source.score(streams, top), strict=True):
        # Row i is about token i + 1 of the text.
        text.rows[i] = rows[len(text.asked.streams[i].ids) - 1 :]
        if i == 0:
            text.known = top


async def _widen(source: Source, texts: Sequence[_Text]) -> None:
    """Ask the expert for more tokens where the last one that it gave is still valid. Without a mask
    that is all tokens, or it is of no use.
    """
    if not texts:
        return
    most = await source.largest_top()
    every = source.vocab_size is not None and source.vocab_size <= most
    more = [(t, 0) for t in texts if every or t.settings.alpha or t.settings.expert_top_k]
    if most > FIRST_TOP:
        await _score(source, more, most)


async def _fill(source: Source, texts: Sequence[_Text]) -> None:
    """Look up the listed tokens that a row lacks; each is named to vLLM, so the value is exact."""
    lacking: list[tuple[Row, list[int]]] = []
    asked: list[tuple[Stream, list[int]]] = []
    for text in texts:
        for step in range(len(text.decoded.tokens)):
            listed = text.listed(step)
            for stream, rows in zip(text.asked.streams, text.rows, strict=True):
                missing = [token for token in listed if token not in rows[step]]
                before = after(stream, text.decoded.tokens[:step])
                for start in range(0, len(missing), MAX_NAMED):
                    part = missing[start : start + MAX_NAMED]
                    lacking.append((rows[step], part))
                    asked.append((before, part))
    for (row, missing), values in zip(lacking, await source.look_up(asked), strict=True):
        row.update({token: Logprob(values[token]) for token in missing})


def _ending(weights: Sequence[Sequence[float | None] | None]) -> list[int]:
    """Which amateurs end with a step, by its weights and those of the next one."""
    if len(weights) < 2 or weights[0] is None or weights[1] is None:
        return []
    both = enumerate(zip(*weights, strict=True), 1)
    return [number for number, (now, then) in both if now is not None and then is None]


def _answer(source: Source, text: _Text, method: str) -> Answer:
    decoded = text.decoded
    alone = [text.rows[0][i][token].text for i, token in enumerate(decoded.tokens)]
    weights = text.weights()
    steps = [
        account.make_step(
            token,
            piece,
            [rows[index] for rows in text.rows],
            weights[index],
            known=text.known,
            vocab_size=source.vocab_size,
            settings=text.settings,
            listed=text.listed(index),
            method=method,
            greedy_answer=text.greedy,
            ends=() if text.greedy else _ending(weights[index : index + 2]),
        )
        for index, (token, piece) in enumerate(
            zip(decoded.tokens, account.spread(decoded.text, alone), strict=True)
        )
    ]
    return Answer(
        title="Greedy" if text.greedy else method,
        greedy=text.greedy,
        text=decoded.text,
        finish_reason=decoded.finish_reason,
        steps=tuple(steps),
    )
