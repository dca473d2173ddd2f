# SPDX-License-Identifier: Apache-2.0
"""From prompts to reports: decode greedily and with each method, score the answers under all
streams, put together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import account, trace
from vllm_cold.tools.explain.prompts import Asked
from vllm_cold.tools.explain.sources import MAX_NAMED, Decoded, Read, Source
from vllm_cold.tools.explain.trace import (
    BASE,
    Amateur,
    Answer,
    Explanation,
    Logprob,
    Report,
    Row,
    Step,
)

FIRST_TOP = 20  # vLLM's default for --max-logprobs, which every server allows


@dataclass(slots=True)
class _Text:
    """A prompt with one of its answers, and what its streams say about each step."""

    kind: str
    read: Read
    decoded: Decoded
    rows: list[list[dict[int, Logprob]]] = field(init=False)
    top: list[int] = field(init=False)
    limits: list[list[float | None]] = field(init=False)
    names: dict[int, str] = field(default_factory=dict)  # of tokens that no row has the text of

    def __post_init__(self) -> None:
        num = len(self.read.streams)
        self.rows, self.top, self.limits = [[]] * num, [0] * num, [[]] * num

    @property
    def settings(self) -> ColdSettings:
        return self.read.asked.contrast.settings

    def ids(self, stream: int) -> list[int]:
        return [*self.read.streams[stream].ids, *self.decoded.tokens]

    def put(self, stream: int, rows: Sequence[Row], top: int) -> None:
        """Keep the rows of the answer's steps; row i is about token i + 1 of the text."""
        start = len(self.read.streams[stream].ids) - 1
        self.rows[stream] = [dict(row) for row in rows[start:]]
        self.top[stream] = top

    def set_limits(self) -> None:
        """No token that a row lacks is more probable than these; before any is looked up."""
        self.limits = [
            [_limit(row, top) for row in rows]
            for rows, top in zip(self.rows, self.top, strict=True)
        ]

    def step(
        self, index: int, piece: str, source: Source, wanted: Sequence[int], told: int | None
    ) -> Step:
        """The account of a step."""
        return account.make_step(
            self.decoded.tokens[index],
            piece,
            self.rows[0][index],
            [
                account.Contrasted(rows[index], weight, limits[index])
                for rows, weight, limits in zip(
                    self.rows[1:], self.read.asked.contrast.weights, self.limits[1:], strict=True
                )
            ],
            known=self.top[0],
            vocab_size=source.vocab_size,
            settings=self.settings,
            listed=wanted,
            told=told,
        )


_Place = tuple[_Text, int]  # a text, and one of its streams


def explain(
    source: Source,
    prompts: Sequence[Asked],
    *,
    max_tokens: int = 64,
    listed: int = 8,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Decode and explain prompts with one method; see ``compare``."""
    methods = {trace.COLD_NAME: prompts}
    [report] = compare(source, methods, max_tokens=max_tokens, listed=listed, progress=progress)
    return report


def compare(
    source: Source,
    methods: Mapping[str, Sequence[Asked]],
    *,
    max_tokens: int = 64,
    listed: int = 8,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Report]:
    """Decode and explain prompts with one or more methods.

    Args:
        source: An engine or a server.
        methods: The prompts with what each method contrasts them with, by the method's name.
        max_tokens: The length of answers.
        listed: How many of the most probable tokens of each stream are listed at least.
        progress: Called with a few words before each part.

    Returns:
        A report for each method; the greedy answers are the same in all.

    Raises:
        ToolError: a prompt does not fit the model, or the source cannot answer.
    """
    progress("reading the prompts")
    reads = {name: read_all(source, asked, max_tokens) for name, asked in methods.items()}
    progress("decoding greedily")
    first = next(iter(reads.values()))
    greedy = source.greedy([read.streams[0].ids for read in first], max_tokens)
    answers = {}
    for name, those in reads.items():
        progress(f"decoding with {name}")
        answers[name] = source.cold(those, max_tokens)
    return [
        account_for(source, name, those, greedy, answers[name], listed, progress)
        for name, those in reads.items()
    ]


def read_all(source: Source, prompts: Sequence[Asked], max_tokens: int) -> list[Read]:
    """The prompts as their streams read them.

    Raises:
        ToolError: one does not fit the model with an answer of ``max_tokens``.
    """
    reads = source.read(prompts)
    for read in reads:
        _check_length(read, max_tokens, source.max_model_len)
    return reads


def account_for(
    source: Source,
    name: str,
    reads: Sequence[Read],
    greedy: Sequence[Decoded],
    cold: Sequence[Decoded],
    listed: int = 8,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Explain answers that are there.

    Args:
        source: What gave them.
        name: What the method is called.
        reads: The prompts.
        greedy: The expert's own answers.
        cold: The method's.
        listed: See ``compare``.
        progress: See ``compare``.
    """
    texts = [
        _Text(kind, read, answer)
        for kind, answers in ((trace.GREEDY, greedy), (trace.COLD, cold))
        for read, answer in zip(reads, answers, strict=True)
    ]
    progress("scoring both answers")
    top = FIRST_TOP if source.vocab_size is None else min(FIRST_TOP, source.vocab_size)
    _score(source, [(text, i) for text in texts for i in range(len(text.rows))], top)
    _widen(source, texts)
    wanted = [_wanted(text, listed) for text in texts]
    progress("asking for what is missing")
    for text in texts:
        text.set_limits()
    _fill(source, texts, wanted)
    told = [_told(source, t, w) for t, w in zip(texts, wanted, strict=True)]
    _fill(source, texts, wanted)  # what the engine told is listed too
    answers = [_answer(source, *each) for each in zip(texts, wanted, told, strict=True)]
    half = len(reads)
    return put_together(source, name, reads, answers[:half], answers[half:])


def put_together(
    source: Source,
    name: str,
    reads: Sequence[Read],
    greedy: Sequence[Answer],
    cold: Sequence[Answer],
) -> Report:
    """A report of answers that are explained; see ``account_for``."""
    asked = reads[0].asked
    return Report(
        model=source.description.model,
        adapter=source.description.adapter or BASE,
        source=source.description.source,
        settings=asked.contrast.settings,
        chat=asked.chat,
        explanations=tuple(
            Explanation(
                read.asked.prompt,
                len(read.streams[0].ids),
                cold=with_method,
                greedy=without,
                amateurs=_amateurs(read),
            )
            for read, without, with_method in zip(reads, greedy, cold, strict=True)
        ),
        name=name,
    )


def first_look(
    source: Source, kind: str, read: Read, decoded: Decoded, listed: int = 8
) -> tuple[Step, ...]:
    """The account of an answer that may still grow, from one look at each stream: the most
    probable tokens of each alone, so that other numbers may be bounds, or not known.
    """
    text = _Text(kind, read, decoded)
    top = FIRST_TOP if source.vocab_size is None else min(FIRST_TOP, source.vocab_size)
    _score(source, [(text, i) for i in range(len(text.rows))], top)
    text.set_limits()
    told = decoded.tokens if kind == trace.COLD else [None] * len(decoded.tokens)
    return _answer(source, text, _wanted(text, listed), told).steps


def _check_length(read: Read, max_tokens: int, limit: int | None) -> None:
    start = read.asked.start
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


def _amateurs(read: Read) -> tuple[Amateur, ...]:
    contrast = read.asked.contrast
    found = zip(contrast.amateurs, contrast.weights, read.streams[1:], strict=True)
    return tuple(
        Amateur(stream.adapter or BASE, weight, *read.asked.reads(one), len(stream.ids))
        for one, weight, stream in found
    )


def _score(source: Source, places: Sequence[_Place], top: int) -> None:
    for adapter, those in _by_adapter(places).items():
        found = source.score(adapter, [text.ids(stream) for text, stream in those], top)
        for (text, stream), rows in zip(those, found, strict=True):
            text.put(stream, rows, top)


def _by_adapter(places: Sequence[_Place]) -> Mapping[str | None, list[_Place]]:
    """A request has one adapter for all of its texts."""
    found: dict[str | None, list[_Place]] = {}
    for text, stream in places:
        found.setdefault(text.read.streams[stream].adapter, []).append((text, stream))
    return found


def _widen(source: Source, texts: Sequence[_Text]) -> None:
    """Ask the expert for more tokens where the last one that it gave is still valid. Without a mask
    that is all tokens, of all streams, or it is of no use.
    """
    while True:
        open_texts = [t for t in texts if not all(_complete(t, source))]
        if not open_texts:
            return
        no_mask = trace.no_mask(open_texts[0].settings)
        top, most = max(text.top[0] for text in open_texts), source.largest_top()
        if no_mask and (source.vocab_size is None or source.vocab_size > most):
            return
        larger = most if no_mask else min(most, 4 * top)
        if larger <= top:
            return
        streams = [len(text.rows) if no_mask else 1 for text in open_texts]
        places = [(t, i) for t, n in zip(open_texts, streams, strict=True) for i in range(n)]
        _score(source, places, larger)


def _complete(text: _Text, source: Source) -> list[bool]:
    known, size, settings = text.top[0], source.vocab_size, text.settings
    return [account.valid_tokens(row, known, size, settings)[1] for row in text.rows[0]]


def _limit(row: Row, top: int) -> float | None:
    """The least of the ``top`` most probable: no token outside of the row is above it."""
    values = sorted((entry.value for entry in row.values()), reverse=True)
    return values[top - 1] if len(values) >= top else None


def _wanted(text: _Text, listed: int) -> list[list[int]]:
    """The ids to list at each step: valid, most probable under a stream, the one taken."""
    found = []
    for step, token in enumerate(text.decoded.tokens):
        valid, _ = account.valid_tokens(text.rows[0][step], text.top[0], None, text.settings)
        ids = {token, *valid}
        for rows in text.rows:
            row = rows[step]
            ids.update(sorted(row, key=lambda t: (-row[t].value, t))[:listed])  # noqa: B023
        found.append(sorted(ids))
    return found


def _fill(source: Source, texts: Sequence[_Text], wanted: Sequence[list[list[int]]]) -> None:
    """Look up the wanted tokens that a row lacks; each is named to vLLM, so the value is exact."""
    places = [(text, stream) for text in texts for stream in range(len(text.rows))]
    steps_of = {id(text): steps for text, steps in zip(texts, wanted, strict=True)}
    for adapter, those in _by_adapter(places).items():
        rows: list[tuple[dict[int, Logprob], Mapping[int, str]]] = []
        asked: list[tuple[list[int], list[int]]] = []
        for text, stream in those:
            ids, prompt = text.ids(stream), len(text.read.streams[stream].ids)
            for step, listed in enumerate(steps_of[id(text)]):
                row = text.rows[stream][step]
                missing = [token for token in listed if token not in row]
                for start in range(0, len(missing), MAX_NAMED):
                    rows.append((row, text.names))
                    asked.append((ids[: prompt + step], missing[start : start + MAX_NAMED]))
        answers = source.look_up(adapter, asked)
        for (row, names), (_, missing), found in zip(rows, asked, answers, strict=True):
            for token in missing:
                if token in found:
                    row[token] = Logprob(found[token], names.get(token, ""))


def _told(source: Source, text: _Text, wanted: list[list[int]]) -> list[int | None]:
    """What the engine takes with CoLD at each step, where that is known; it is wanted then."""
    tokens = text.decoded.tokens
    told: list[int | None] = list(tokens)
    if text.kind == trace.COLD:
        return told
    steps = [text.step(i, "", source, wanted[i], None) for i in range(len(tokens))]
    told = [step.winner for step in steps]
    unknown = [i for i, winner in enumerate(told) if winner is None]
    found = source.choose([text.read.after(tokens[:i]) for i in unknown])
    for i, answer in zip(unknown, found, strict=True):
        if answer is not None:
            [token] = answer.tokens
            told[i] = token
            wanted[i].append(token)
            text.names[token] = answer.text
    return told


def _answer(
    source: Source, text: _Text, wanted: list[list[int]], told: Sequence[int | None]
) -> Answer:
    tokens = text.decoded.tokens
    alone = [text.rows[0][i][token].text for i, token in enumerate(tokens)]
    pieces = account.spread(text.decoded.text, alone)
    steps = (text.step(i, pieces[i], source, wanted[i], told[i]) for i in range(len(tokens)))
    return Answer(text.kind, text.decoded.text, text.decoded.finish_reason, tuple(steps))
