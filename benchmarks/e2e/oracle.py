# SPDX-License-Identifier: Apache-2.0
"""A drafter that is right as often as it is told to be: V1's ``custom_class``.

It drafts for the models of ``benchmarks.e2e.shapes``, where token t + 1 follows token t. How many
of its drafts are right is drawn anew in each step from a profile, by a hash of the text so far:
streams that have read the same are drafted the same, and so is a request when it is repeated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Profile:
    """How drafts fare.

    Attributes:
        without_draft: The share of steps that get no draft.
        accepted: Of the others, the share in which 0, 1, ... k drafts are accepted.
        drafted: The drafts of such a step, on average; from what is accepted, at least 1, to k.
    """

    without_draft: float
    accepted: tuple[float, ...]
    drafted: float

    def __post_init__(self) -> None:
        total = sum(self.accepted)
        if not 0 <= self.without_draft < 1 or len(self.accepted) < 2 or abs(total - 1) > 1e-2:
            raise ValueError(f"{self}: shares must be from 0 to 1, those of accepted sum to 1")
        object.__setattr__(self, "accepted", tuple(share / total for share in self.accepted))

    @property
    def k(self) -> int:
        """The most drafts of a step."""
        return len(self.accepted) - 1

    @property
    def gain(self) -> float:
        """Accepted drafts of a step, on average."""
        mean = sum(j * share for j, share in enumerate(self.accepted))
        return (1 - self.without_draft) * mean

    def draw(self, seed: bytes) -> tuple[int, int]:
        """How many drafts of a step are right, and how many there are.

        Where ``drafted`` is below k some drafts are as short as they can be, the others have k.
        """
        digest = hashlib.blake2b(seed, digest_size=24).digest()
        none, which, long = (int.from_bytes(digest[i : i + 8]) / 2**64 for i in (0, 8, 16))
        if none < self.without_draft:
            return 0, 0
        right = 0
        while right < self.k and which >= self.accepted[right]:
            which -= self.accepted[right]
            right += 1
        shortest = sum(max(j, 1) * share for j, share in enumerate(self.accepted))
        share = (self.drafted - shortest) / (self.k - shortest) if shortest < self.k else 1.0
        return right, self.k if long < share else max(right, 1)


def fixed(rate: float, k: int) -> Profile:
    """A draft is accepted with probability ``rate`` if all before it are."""
    shares = [rate**j * (1 - rate) for j in range(k)]
    return Profile(0.0, (*shares, rate**k), k)


def read(path: Path, drafter: str, decoding: str = "cold") -> Profile:
    """A measured profile: what ``benchmarks.drafting`` writes of a workload, or one alone.

    Raises:
        ValueError: It has none of this drafter.
    """
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "profiles" in found:
        known = found["profiles"][decoding]
        if drafter not in known:
            raise ValueError(f"{path} has no {drafter!r}, only {', '.join(known)}")
        found = known[drafter]
    return Profile(found["without_draft"], tuple(found["accepted"]), found["drafted"])


class Oracle:
    """The drafter; it drafts nothing until ``follow`` has been called."""

    def __init__(self, vllm_config: Any) -> None:
        self._vocab: int = vllm_config.model_config.get_vocab_size()
        self._most: int = vllm_config.speculative_config.num_speculative_tokens
        self._length: int = vllm_config.model_config.max_model_len
        self._profile: Profile | None = None

    def load_model(self, *args: Any) -> None:
        """There is none; vLLM's CPU runner calls this nevertheless."""

    def follow(self, profile: Mapping[str, Any] | None) -> None:
        """Draft by this profile from now on, or nothing."""
        if profile is None:
            self._profile = None
            return
        self._profile = Profile(**{**profile, "accepted": tuple(profile["accepted"])})
        if self._profile.k > self._most:
            raise ValueError(f"{self._profile}: the engine takes {self._most} drafts")

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: Any,
        token_ids_cpu: Any,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Drafts of each row that has sampled; as vLLM calls it."""
        return [
            self.draft(token_ids_cpu[i, : num_tokens_no_spec[i]]) if len(sampled) else []
            for i, sampled in enumerate(sampled_token_ids)
        ]

    def draft(self, text: Any) -> list[int]:
        """What comes after a text, int32 [n], then a wrong token and what would follow it."""
        if self._profile is None:
            return []
        right, count = self._profile.draw(text.tobytes())
        last, made = int(text[-1]), []
        for i in range(min(count, self._length - len(text))):
            last += 1 if i != right else 2
            made.append(last % self._vocab)
        return made
