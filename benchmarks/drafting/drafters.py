# SPDX-License-Identifier: Apache-2.0
"""Drafters that need token ids alone: of the prompt, of the answer so far, of earlier answers.

A drafter belongs to a request; what it knows of other requests is in a store that the drafters of
a workload share. Drafts do not depend on what was drafted before, so those of every place of a
recorded answer can be made once, and steps of any length be played over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Pick = Literal["first", "last"]

# Between texts: no token.
_END = -1
# Of a prompt's end, kept before an answer: so many tokens find where answers begin.
_TAIL = 8


class Drafter(Protocol):
    """Drafts for one request."""

    def add(self, token: int) -> None:
        """Learn the answer's next token."""

    def draft(self, k: int) -> list[int]:
        """At most k tokens that may follow."""

    def finish(self) -> None:
        """The answer is complete."""


class Index:
    """Texts, and where in them some tokens stand.

    Args:
        shortest: The fewest tokens that are looked for.
        longest: The most.
        pick: Which of several places of the same length is taken.
    """

    def __init__(self, shortest: int, longest: int, pick: Pick) -> None:
        self.text: list[int] = []
        self._shortest, self._longest, self._pick = shortest, longest, pick
        # Last tokens -> the places behind them, in order.
        self._places: dict[tuple[int, ...], list[int]] = {}

    def add(self, tokens: Sequence[int]) -> None:
        """Append tokens to the last text."""
        for token in tokens:
            self.text.append(token)
            key = tuple(self.text[-self._shortest :])
            if len(key) == self._shortest and _END not in key:
                self._places.setdefault(key, []).append(len(self.text))

    def end(self) -> None:
        """Begin another text."""
        self.text.append(_END)

    def find(self, suffix: Sequence[int]) -> tuple[int, int]:
        """The longest end of ``suffix`` in the texts: its length and the place behind it, or 0, 0.

        A place at the end of all texts, which nothing follows, is none.
        """
        text, best, place = self.text, 0, 0
        for end in self._places.get(tuple(suffix[-self._shortest :]), ()):
            if end == len(text):
                continue
            size, most = self._shortest, min(self._longest, end, len(suffix))
            while size < most and text[end - size - 1] == suffix[-size - 1]:
                size += 1
            if size > best or (size == best and self._pick == "last"):
                best, place = size, end
        return best, place

    def after(self, place: int, k: int) -> list[int]:
        """At most k tokens from a place on, of the text that it is in."""
        found = self.text[place : place + k]
        return found[: found.index(_END)] if _END in found else found


class Lookup:
    """Copies what follows the longest match in the prompt, the answer, and other texts.

    ``Lookup(prompt, 5, 5, "first")`` is vLLM's n-gram drafter with its default values.

    Args:
        prompt: Token ids.
        shortest: The fewest tokens of a match.
        longest: The most that are compared.
        pick: Which of several matches of the same length is taken.
        earlier: Earlier answers; this one is added when it is finished. A match there is used
            where it is longer than any here.
        texts: More texts, each as likely as the prompt.
        here: Whether prompt and answer are looked at.
        own_first: Whether earlier answers are used only where nothing matches here.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        shortest: int,
        longest: int,
        pick: Pick,
        earlier: Index | None = None,
        texts: Sequence[Sequence[int]] = (),
        here: bool = True,
        own_first: bool = False,
    ) -> None:
        self._own_first = own_first
        self._all = list(prompt)
        self._own = Index(shortest, longest, pick) if here else None
        self._more = Index(shortest, longest, pick) if texts else None
        self._earlier, self._start = earlier, len(prompt)
        if self._own is not None:
            self._own.add(prompt)
        for text in texts:
            assert self._more is not None
            self._more.add([*prompt[-_TAIL:], *text])
            self._more.end()

    def add(self, token: int) -> None:
        self._all.append(token)
        if self._own is not None:
            self._own.add([token])

    def draft(self, k: int) -> list[int]:
        best, found = 0, list[int]()
        for index in (self._more, self._own, self._earlier):
            if index is None:
                continue
            if best and self._own_first and index is self._earlier:
                break
            size, place = index.find(self._all)
            if size > best:
                best, found = size, index.after(place, k)
        return found

    def finish(self) -> None:
        if self._earlier is not None:
            self._earlier.add(self._all[max(0, self._start - _TAIL) :])
            self._earlier.end()


@dataclass
class Table:
    """The token that last followed each run of some tokens.

    Attributes:
        shortest: The fewest tokens of a run.
        longest: The most.
    """

    shortest: int
    longest: int
    next: dict[tuple[int, ...], int] = field(default_factory=dict)

    def learn(self, before: Sequence[int], token: int) -> None:
        """``token`` followed ``before``."""
        for size in range(self.shortest, min(self.longest, len(before)) + 1):
            self.next[tuple(before[-size:])] = token


class Walk:
    """Goes from token to token, each the one that last followed the longest known run before it.

    Args:
        prompt: Token ids.
        shortest: The fewest tokens of a run.
        longest: The most.
        shared: What all requests' answers taught, at once; None for this request's text alone.
            Of two runs of the same length, the one of this request is used.
    """

    def __init__(
        self, prompt: Sequence[int], shortest: int, longest: int, shared: Table | None = None
    ) -> None:
        self._own, self._shared = Table(shortest, longest), shared
        self._all = list[int]()
        for token in prompt:
            self._own.learn(self._all[-longest:], token)
            self._all.append(token)

    def add(self, token: int) -> None:
        before = self._all[-self._own.longest :]
        self._own.learn(before, token)
        if self._shared is not None:
            self._shared.learn(before, token)
        self._all.append(token)

    def _next(self, before: tuple[int, ...]) -> int | None:
        for size in range(len(before), self._own.shortest - 1, -1):
            key = before[-size:]
            found = self._own.next.get(key)
            if found is None and self._shared is not None:
                found = self._shared.next.get(key)
            if found is not None:
                return found
        return None

    def draft(self, k: int) -> list[int]:
        before, found = tuple(self._all[-self._own.longest :]), list[int]()
        while len(found) < k and (token := self._next(before)) is not None:
            found.append(token)
            before = (*before, token)[-self._own.longest :]
        return found

    def finish(self) -> None: ...


class Node:
    """A place in a tree: how often it was reached, and what follows it."""

    __slots__ = ("count", "children")

    def __init__(self) -> None:
        self.count = 0
        self.children: dict[int, Node] = {}


class Tree:
    """Counts of what follows what in texts, to some depth."""

    def __init__(self, depth: int) -> None:
        self._depth, self._root = depth, Node()

    def add(self, token: int, open_nodes: list[Node]) -> list[Node]:
        """Append a token to a text.

        Args:
            token: To append.
            open_nodes: What the last call for this text gave; none for its first token.
        """
        following = []
        for node in [*open_nodes, self._root][-self._depth :]:
            child = node.children.setdefault(token, Node())
            child.count += 1
            following.append(child)
        return following

    def draft(
        self, suffix: Sequence[int], k: int, factor: float, least: float
    ) -> tuple[float, list[int]]:
        """The draft with the most expected tokens, over all lengths of a match, and that number."""
        best, drafted = 0.0, list[int]()
        for size in range(1, min(len(suffix), self._depth)):
            node = self._root
            for token in suffix[-size:]:
                if token not in node.children:
                    return best, drafted
                node = node.children[token]
            most, chance, score, found = min(k, int(size * factor + 1e-6)), 1.0, 0.0, list[int]()
            while len(found) < most and node.children:
                token, child = max(node.children.items(), key=lambda item: item[1].count)
                chance *= child.count / node.count
                if chance < least:
                    break
                found.append(token)
                score += chance
                node = child
            if score >= best:
                best, drafted = score, found
        return best, drafted


class Suffix:
    """Suffix decoding (arXiv 2411.04975) with vLLM's default values, on plain trees.

    Args:
        prompt: Token ids.
        earlier: A tree of all answers so far; None for this request's text alone.
    """

    DEPTH, FACTOR, LEAST = 24, 1.0, 0.1

    def __init__(self, prompt: Sequence[int], earlier: Tree | None = None) -> None:
        self._own, self._earlier = Tree(self.DEPTH), earlier
        self._open, self._open_earlier = list[Node](), list[Node]()
        self._all = list[int]()
        for token in prompt:
            self._learn(token)

    def _learn(self, token: int) -> None:
        self._open = self._own.add(token, self._open)
        self._all.append(token)

    def add(self, token: int) -> None:
        self._learn(token)
        if self._earlier is not None:
            self._open_earlier = self._earlier.add(token, self._open_earlier)

    def draft(self, k: int) -> list[int]:
        suffix = self._all[-self.DEPTH :]
        score, found = self._own.draft(suffix, k, self.FACTOR, self.LEAST)
        if self._earlier is not None:
            other, theirs = self._earlier.draft(suffix, k, self.FACTOR, self.LEAST)
            if other > score:
                return theirs
        return found

    def finish(self) -> None: ...


# Where a draft comes from: the request's own text or what was remembered of answers.
Source = Literal["own", "answers"]
# What is believed of them before anything was judged: so many of so many predictions right.
BEFORE: dict[Source, tuple[int, int]] = {"own": (8, 12), "answers": (4, 16)}


@dataclass
class Memory:
    """What the drafters of an engine remember: of answers, and of how well they predicted.

    Attributes:
        longest: Tokens of the longest run that is told from others.
        next: Of a run of 1 to ``longest`` tokens of answers, the token that last followed it.
        right: Of a source and the length of its match, how often it was right, and asked.
    """

    longest: int = 6
    next: dict[tuple[int, ...], int] = field(default_factory=dict)
    right: dict[tuple[Source, int], list[int]] = field(default_factory=dict)

    def rate(self, source: Source, size: int) -> float:
        """How often a prediction was right so far, beginning with ``BEFORE``."""
        good, asked = self.right.get((source, size), (0, 0))
        right, of = BEFORE[source]
        return (good + right) / (asked + of)

    def judge(self, source: Source, size: int, right: bool) -> None:
        """A prediction was right or wrong."""
        found = self.right.setdefault((source, size), [0, 0])
        found[0] += right
        found[1] += 1

    def learn(self, before: Sequence[int], token: int) -> None:
        """In an answer, ``token`` followed ``before``."""
        for size in range(1, min(self.longest, len(before)) + 1):
            self.next[tuple(before[-size:])] = token

    def find(self, before: Sequence[int]) -> tuple[int, int]:
        """The longest end of ``before`` that is known: its length and what followed, or 0, 0."""
        for size in range(min(self.longest, len(before)), 0, -1):
            token = self.next.get(tuple(before[-size:]))
            if token is not None:
                return size, token
        return 0, 0


class Recall:
    """Copies from the request's own text, or recalls answers: whichever has been right more often.

    Each new token is a free test of what both predicted for it. The measured rates, by source and
    length of the match, choose the source, and say how likely a draft is to be reached and
    accepted: the draft ends where that falls below ``least``.

    Args:
        prompt: Token ids.
        memory: Shared by all drafters of an engine.
        least: The smallest chance of acceptance at which a token is drafted; about the cost of
            one more token of a forward pass, in passes. 0: as many as may be.
        answers: Whether answers are remembered.
    """

    def __init__(
        self, prompt: Sequence[int], memory: Memory, least: float = 0.1, answers: bool = True
    ) -> None:
        self._memory, self._least, self._answers = memory, least, answers
        self._own = Index(1, memory.longest, "last")
        self._own.add(prompt)
        self._all = self._own.text

    def _found(self) -> list[tuple[Source, int, int]]:
        """What the sources know: source, length of the match, and the next token."""
        found: list[tuple[Source, int, int]] = []
        size, place = self._own.find(self._all)
        if size:
            found.append(("own", size, self._all[place]))
        if self._answers:
            size, token = self._memory.find(self._all[-self._memory.longest :])
            if size:
                found.append(("answers", size, token))
        return found

    def add(self, token: int) -> None:
        for source, size, predicted in self._found():
            self._memory.judge(source, size, predicted == token)
        if self._answers:
            self._memory.learn(self._all[-self._memory.longest :], token)
        self._own.add([token])

    def draft(self, k: int) -> list[int]:
        found = self._found()
        if not found:
            return []
        memory, drafted, chance = self._memory, list[int](), 1.0
        source, size, token = max(found, key=lambda each: memory.rate(*each[:2]))
        copied = self._own.after(self._own.find(self._all)[1], k) if source == "own" else []
        before = self._all[-memory.longest :]
        for i in range(k):
            chance *= memory.rate(source, size)
            if chance < self._least:
                break
            drafted.append(token)
            if source == "own":
                if i + 1 == len(copied):
                    break
                size, token = min(size + 1, memory.longest), copied[i + 1]
            else:
                before = [*before, token][-memory.longest :]
                size, token = memory.find(before)
                if not size:
                    break
        return drafted

    def finish(self) -> None: ...
