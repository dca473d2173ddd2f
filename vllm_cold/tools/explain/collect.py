# SPDX-License-Identifier: Apache-2.0
"""From prompts to a report: decode twice, score both answers under both streams, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import account, trace
from vllm_cold.tools.explain.sources import AMATEUR, EXPERT, MAX_NAMED, Decoded, Source
from vllm_cold.tools.explain.trace import Answer, Explanation, Logprob, Report, Row

FIRST_TOP = 20  # vLLM's default for --max-logprobs, which every server allows


@dataclass(slots=True)
class _Text:
    """A prompt with one of its answers, and what the two streams say about each step."""

    kind: str
    prompt: list[int]
    decoded: Decoded
    rows: dict[str, list[dict[int, Logprob]]] = field(default_factory=dict)
    top: dict[str, int] = field(default_factory=dict)
    limits: list[float | None] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.decoded.tokens]

    def put(self, stream: str, rows: Sequence[Row], top: int) -> None:
        """Keep the rows of the answer's steps; row i is about token i + 1 of the text."""
        self.rows[stream] = [dict(row) for row in rows[len(self.prompt) - 1 :]]
        self.top[stream] = top


def explain(
    source: Source,
    prompts: Sequence[str],
    settings: ColdSettings,
    *,
    chat: bool = False,
    max_tokens: int = 64,
    listed: int = 8,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Decode and explain prompts.

    Args:
        source: An engine or a server.
        prompts: Text.
        settings: CoLD's.
        chat: Whether prompts go through the chat template.
        max_tokens: The length of answers.
        listed: How many of the most probable tokens of each stream are listed at least.
        progress: Called with a few words before each part.

    Raises:
        ToolError: a prompt does not fit the model, or the source cannot answer.
    """
    progress("reading the prompts")
    encoded = source.encode(prompts, chat)
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids:
            raise ToolError(f"--prompt: {prompt[:40]!r} has no tokens; give a prompt with text")
        # vLLM wants room for one token more when it scores the answer.
        needed, limit = len(ids) + max_tokens + 1, source.max_model_len
        if limit is not None and needed > limit:
            raise ToolError(
                f"--max-tokens={max_tokens}: the prompt {prompt[:40]!r} has {len(ids)} tokens; "
                f"with the answer and one more that makes {needed}, and the model takes {limit}: "
                "lower --max-tokens or shorten the prompt"
            )
    texts: list[_Text] = []
    for kind, knobs in ((trace.GREEDY, None), (trace.COLD, settings)):
        progress(f"decoding, {'with CoLD' if knobs else 'greedily'}")
        answers = source.decode(encoded, max_tokens, knobs)
        texts += [_Text(kind, ids, a) for ids, a in zip(encoded, answers, strict=True)]
    progress("scoring both answers")
    top = FIRST_TOP if source.vocab_size is None else min(FIRST_TOP, source.vocab_size)
    for stream in (EXPERT, AMATEUR):
        _score(source, stream, texts, top)
    _widen(source, texts, settings)
    wanted = [_wanted(text, settings, listed) for text in texts]
    progress("asking for what is missing")
    for text in texts:
        rows = text.rows[AMATEUR]
        text.limits = [_limit(row, text.top[AMATEUR]) for row in rows]
    for stream in (EXPERT, AMATEUR):
        _fill(source, stream, texts, wanted)
    answers_made = [_answer(t, w, source, settings) for t, w in zip(texts, wanted, strict=True)]
    half = len(prompts)
    return Report(
        model=source.description.model,
        adapter=source.description.adapter,
        amateur=source.description.amateur,
        source=source.description.source,
        settings=settings,
        chat=chat,
        explanations=tuple(
            Explanation(prompt, len(ids), cold=cold, greedy=greedy)
            for prompt, ids, greedy, cold in zip(
                prompts, encoded, answers_made[:half], answers_made[half:], strict=True
            )
        ),
    )


def _score(source: Source, stream: str, texts: Sequence[_Text], top: int) -> None:
    found = source.score(stream, [text.ids for text in texts], top)
    for text, rows in zip(texts, found, strict=True):
        text.put(stream, rows, top)


def _widen(source: Source, texts: Sequence[_Text], settings: ColdSettings) -> None:
    """Ask the expert for more tokens where the last one that it gave is still valid."""
    while True:
        open_texts = [t for t in texts if not all(_complete(t, source, settings))]
        if not open_texts:
            return
        top = max(text.top[EXPERT] for text in open_texts)
        larger = min(source.largest_top(), 4 * top)
        if larger <= top:
            return
        _score(source, EXPERT, open_texts, larger)


def _complete(text: _Text, source: Source, settings: ColdSettings) -> list[bool]:
    known, size = text.top[EXPERT], source.vocab_size
    return [account.valid_tokens(row, known, size, settings)[1] for row in text.rows[EXPERT]]


def _limit(row: Row, top: int) -> float | None:
    """The least of the ``top`` most probable: no token outside of the row is above it."""
    values = sorted((entry.value for entry in row.values()), reverse=True)
    return values[top - 1] if len(values) >= top else None


def _wanted(text: _Text, settings: ColdSettings, listed: int) -> list[list[int]]:
    """The ids to list at each step: valid, most probable under either stream, the one taken."""
    found = []
    for step, token in enumerate(text.decoded.tokens):
        expert, amateur = text.rows[EXPERT][step], text.rows[AMATEUR][step]
        valid, _ = account.valid_tokens(expert, text.top[EXPERT], None, settings)
        ids = {token, *valid}
        for row in (expert, amateur):
            ids.update(sorted(row, key=lambda t: (-row[t].value, t))[:listed])  # noqa: B023
        found.append(sorted(ids))
    return found


def _fill(
    source: Source, stream: str, texts: Sequence[_Text], wanted: Sequence[list[list[int]]]
) -> None:
    """Look up the wanted tokens that a row lacks; each is named to vLLM, so the value is exact."""
    places: list[tuple[_Text, int]] = []
    asked: list[tuple[list[int], list[int]]] = []
    for text, steps in zip(texts, wanted, strict=True):
        for step, ids in enumerate(steps):
            missing = [token for token in ids if token not in text.rows[stream][step]]
            for start in range(0, len(missing), MAX_NAMED):
                places.append((text, step))
                prefix = text.ids[: len(text.prompt) + step]
                asked.append((prefix, missing[start : start + MAX_NAMED]))
    for (text, step), (_, ids), found in zip(
        places, asked, source.look_up(stream, asked), strict=True
    ):
        row = text.rows[stream][step]
        row.update({token: Logprob(found[token]) for token in ids if token in found})


def _answer(text: _Text, wanted: list[list[int]], source: Source, settings: ColdSettings) -> Answer:
    expert, amateur = text.rows[EXPERT], text.rows[AMATEUR]
    pieces = account.spread(
        text.decoded.text,
        [expert[i][token].text for i, token in enumerate(text.decoded.tokens)],
    )
    return Answer(
        kind=text.kind,
        text=text.decoded.text,
        finish_reason=text.decoded.finish_reason,
        steps=tuple(
            account.make_step(
                token,
                pieces[i],
                expert[i],
                amateur[i],
                known=text.top[EXPERT],
                amateur_limit=text.limits[i],
                vocab_size=source.vocab_size,
                settings=settings,
                listed=wanted[i],
            )
            for i, token in enumerate(text.decoded.tokens)
        ),
    )
