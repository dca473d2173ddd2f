# SPDX-License-Identifier: Apache-2.0
"""From prompts to a report: decode, score the answers under all streams, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import account
from vllm_cold.tools.explain.prompts import DEFAULT, Asked, Column
from vllm_cold.tools.explain.source import MAX_NAMED, Decoded, Read, Source, read, side_by_side
from vllm_cold.tools.explain.trace import (
    BASE,
    Amateur,
    Answer,
    Explanation,
    Logprob,
    Method,
    Report,
    Step,
)

FIRST_TOP = 20  # vLLM's default for --max-logprobs, which every server allows
LISTED = 8  # of the most probable tokens of each stream, at least

Reads = Mapping[str, Sequence[Read]]
"""The prompts as their streams read them, by the method's name."""


@dataclass(slots=True)
class _Text:
    """A prompt with one of its answers, and what its streams say about each step."""

    column: Column
    read: Read
    decoded: Decoded
    top: int = 0  # of the expert's most probable tokens, that are known
    rows: list[list[dict[int, Logprob]]] = field(init=False)  # by stream and step
    wanted: list[list[int]] = field(init=False)  # to be listed, by step

    def __post_init__(self) -> None:
        self.rows = [[] for _ in self.read.streams]

    @property
    def settings(self) -> ColdSettings:
        return self.read.asked.contrast.settings

    @property
    def no_mask(self) -> bool:
        return Method("", self.settings).no_mask

    def complete(self, source: Source) -> bool:
        """Whether all valid tokens of all steps are known."""
        size = source.vocab_size
        rows = self.rows[0]
        return all(account.valid_tokens(r, self.top, size, self.settings)[1] for r in rows)

    def want(self) -> None:
        """Valid ones, the most probable under each stream, the one taken."""
        self.wanted = []
        for step, token in enumerate(self.decoded.tokens):
            rows = [rows[step] for rows in self.rows]
            valid, _ = account.valid_tokens(rows[0], self.top, None, self.settings)
            ids = {token, *valid}
            for row in rows:
                ids.update(sorted(row, key=lambda t: (-row[t].value, t))[:LISTED])  # noqa: B023
            self.wanted.append(sorted(ids))

    def step(self, index: int, piece: str, source: Source, told: int | None) -> Step:
        return account.make_step(
            self.decoded.tokens[index],
            piece,
            [rows[index] for rows in self.rows],
            self.read.asked.contrast.weights,
            known=self.top,
            vocab_size=source.vocab_size,
            settings=self.settings,
            listed=self.wanted[index],
            told=told,
        )


async def explain(
    source: Source,
    methods: Mapping[str, Sequence[Asked]],
    columns: Sequence[Column] = DEFAULT.columns,
    *,
    max_tokens: int = 64,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Decode and explain prompts with one or more methods.

    Args:
        source: An engine or a server.
        methods: The prompts with what each method contrasts them with, by the method's name.
        columns: Which answers, and in which order.
        max_tokens: The length of answers.
        progress: Called with a few words before each part.

    Raises:
        ToolError: a prompt does not fit the model, or the source cannot answer.
    """
    progress("reading the prompts")
    reads = await read_all(source, methods, max_tokens)
    names, answers = list(reads), []
    for method, greedy in columns:
        progress("decoding greedily" if greedy else f"decoding with {names[method]}")
        answers.append(await source.decode(reads[names[method]], greedy, max_tokens))
    return await account_for(source, reads, columns, answers, progress)


async def read_all(
    source: Source, methods: Mapping[str, Sequence[Asked]], max_tokens: int
) -> Reads:
    """The prompts as their streams read them.

    Raises:
        ToolError: one does not fit the model with an answer of ``max_tokens``.
    """
    reads = {
        name: await side_by_side(read(source, one) for one in asked)
        for name, asked in methods.items()
    }
    for one in (one for those in reads.values() for one in those):
        _check_length(one, max_tokens, source.max_model_len)
    return reads


def _check_length(read: Read, max_tokens: int, limit: int | None) -> None:
    start = read.asked.row.pieces[0].text[:40]
    for number, stream in enumerate(read.streams):
        whose = "the prompt" if number == 0 else f"what amateur {number} reads of the prompt"
        if not stream.ids:
            raise ToolError(f"--prompt: {whose} {start!r} has no tokens; give a prompt with text")
        # vLLM wants room for one token more when it scores the answer.
        needed = len(stream.ids) + max_tokens + 1
        if limit is not None and needed > limit:
            raise ToolError(
                f"--max-tokens={max_tokens}: {whose} {start!r} has {len(stream.ids)} tokens; with "
                f"the answer and one more that makes {needed}, and the model takes {limit}: lower "
                "--max-tokens or shorten the prompt"
            )


async def account_for(
    source: Source,
    reads: Reads,
    columns: Sequence[Column],
    decoded: Sequence[Sequence[Decoded]],
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Explain answers that are there.

    Args:
        source: What gave them.
        reads: The prompts.
        columns: Which answers they are.
        decoded: Each column's answers, one for each prompt.
        progress: See ``explain``.
    """
    prompts = list(reads.values())
    texts = [
        _Text(column, read, answer)
        for column, answers in zip(columns, decoded, strict=True)
        for read, answer in zip(prompts[column.method], answers, strict=True)
    ]
    progress("scoring the answers")
    await _score(source, _places(texts), min(FIRST_TOP, source.vocab_size or FIRST_TOP))
    await _widen(source, texts)
    progress("asking for what is missing")
    for text in texts:
        text.want()
    await _fill(source, texts)
    answers = [_answer(source, text) for text in texts]
    count = len(prompts[0])
    return make_report(source, reads, [answers[i::count] for i in range(count)])


def make_report(source: Source, reads: Reads, answers: Sequence[Sequence[Answer]]) -> Report:
    """A report of answers that are explained, those of each prompt in the columns' order."""
    by_prompt = list(zip(*reads.values(), strict=True))
    return Report(
        model=source.model,
        adapter=source.expert or BASE,
        source=source.about,
        methods=tuple(
            Method(name, those[0].asked.contrast.settings) for name, those in reads.items()
        ),
        explanations=tuple(
            Explanation(
                those[0].asked.row.pieces,
                len(those[0].streams[0].ids),
                tuple(map(_amateurs, those)),
                tuple(found),
            )
            for those, found in zip(by_prompt, answers, strict=True)
        ),
    )


def _amateurs(read: Read) -> tuple[Amateur, ...]:
    contrast = read.asked.contrast
    found = zip(contrast.amateurs, contrast.weights, read.streams[1:], strict=True)
    return tuple(
        Amateur(stream.adapter or BASE, weight, *read.asked.reads(one), len(stream.ids))
        for one, weight, stream in found
    )


_Place = tuple[_Text, int]  # a text, and one of its streams


def _places(texts: Sequence[_Text]) -> list[_Place]:
    return [(text, i) for text in texts for i in range(len(text.rows))]


def _by_adapter(places: Sequence[_Place]) -> Mapping[str | None, list[_Place]]:
    """A request has one adapter for all of its texts."""
    found: dict[str | None, list[_Place]] = {}
    for text, i in places:
        found.setdefault(text.read.streams[i].adapter, []).append((text, i))
    return found


async def _score(source: Source, places: Sequence[_Place], top: int) -> None:
    for adapter, those in _by_adapter(places).items():
        asked = [[*text.read.streams[i].ids, *text.decoded.tokens] for text, i in those]
        for (text, i), rows in zip(those, await source.score(adapter, asked, top), strict=True):
            start = len(text.read.streams[i].ids) - 1  # row i is about token i + 1 of the text
            text.rows[i] = [dict(row) for row in rows[start:]]
            if i == 0:
                text.top = top


async def _widen(source: Source, texts: Sequence[_Text]) -> None:
    """Ask the expert for more tokens where the last one that it gave is still valid. Without a mask
    that is all tokens, or it is of no use.
    """
    while open_texts := [text for text in texts if not text.complete(source)]:
        most = await source.largest_top()
        every = source.vocab_size is not None and source.vocab_size <= most
        more = [(t, 0) for t in open_texts if t.top < most and (every or not t.no_mask)]
        if not more:
            return
        await _score(source, more, min(most, 4 * max(text.top for text, _ in more)))


async def _fill(source: Source, texts: Sequence[_Text]) -> None:
    """Look up the wanted tokens that a row lacks; each is named to vLLM, so the value is exact."""
    for adapter, those in _by_adapter(_places(texts)).items():
        rows: list[dict[int, Logprob]] = []
        asked: list[tuple[list[int], list[int]]] = []
        for text, i in those:
            for step, wanted in enumerate(text.wanted):
                row = text.rows[i][step]
                missing = [token for token in wanted if token not in row]
                before = [*text.read.streams[i].ids, *text.decoded.tokens[:step]]
                for start in range(0, len(missing), MAX_NAMED):
                    rows.append(row)
                    asked.append((before, missing[start : start + MAX_NAMED]))
        found = await source.look_up(adapter, asked)
        for row, (_, missing), values in zip(rows, asked, found, strict=True):
            row.update({t: Logprob(values[t]) for t in missing})


def _answer(source: Source, text: _Text) -> Answer:
    decoded, column = text.decoded, text.column
    alone = [text.rows[0][i][token].text for i, token in enumerate(decoded.tokens)]
    pieces = account.spread(decoded.text, alone)
    # What the engine takes with CoLD is known of CoLD's own answer.
    told = [None if column.greedy else token for token in decoded.tokens]
    steps = (text.step(i, piece, source, told[i]) for i, piece in enumerate(pieces))
    return Answer(column.method, column.greedy, decoded.text, decoded.finish_reason, tuple(steps))
