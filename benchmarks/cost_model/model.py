# SPDX-License-Identifier: Apache-2.0
"""Bytes, operations and seconds of one decode step: a roofline for each part, summed.

A part takes ``hypot(bytes / bandwidth, operations / rate)``: the roofline with its knee rounded,
as near it neither limit is reached in full. Activations between the layers are left out, as they
stay in caches. Sizes are in elements unless a name says bytes; times are in seconds; with tensor
parallelism they are one device's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GIB = 2**30
UTILIZATION = 0.92  # of a device's memory: vLLM's default
RESERVE = 3 * GIB  # activations and captured graphs of each device: assumed
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Shape:
    """Sizes of a dense decoder of the Llama kind."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    qkv_bias: bool = False

    @classmethod
    def read(cls, path: Path) -> Shape:
        """From a Hugging Face config.json, or the folder with it.

        Raises:
            ValueError: it has experts, quantised weights, or no sizes of a decoder.
        """
        file = path / "config.json" if path.is_dir() else path
        config: dict[str, Any] = json.loads(file.read_text())
        quantised = config.get("quantization_config")
        config = config.get("text_config", config)
        kind = config.get("model_type", file.parent.name)
        if any(config.get(name) for name in EXPERTS):
            raise ValueError(f"{path}: a mixture of experts is not modelled")
        if quantised or config.get("quantization_config"):
            raise ValueError(f"{path}: quantised weights are not modelled")
        try:
            hidden, heads = config["hidden_size"], config["num_attention_heads"]
            return cls(
                kind,
                hidden,
                config["num_hidden_layers"],
                heads,
                config.get("num_key_value_heads") or heads,
                config.get("head_dim") or hidden // heads,
                config["intermediate_size"],
                config["vocab_size"],
                # Files leave out what is their kind's default.
                config.get("tie_word_embeddings", kind.startswith("gemma")),
                config.get("attention_bias", False) or kind == "qwen2",
            )
        except KeyError as error:
            raise ValueError(f"{path}: no sizes of a decoder, {error} is missing") from None

    def linears(self) -> Iterator[tuple[int, int, bool]]:
        """One layer's: inputs, outputs, whether tensor parallelism splits the outputs."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield self.hidden, q, True
        yield self.hidden, kv, True
        yield self.hidden, kv, True
        yield q, self.hidden, False
        yield self.hidden, self.intermediate, True
        yield self.hidden, self.intermediate, True
        yield self.intermediate, self.hidden, False

    @property
    def matrices(self) -> int:
        """Elements of all layers' matrices, which every step reads."""
        return self.layers * sum(inputs * outputs for inputs, outputs, _ in self.linears())

    @property
    def head(self) -> int:
        """Elements of the matrix of the logits."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        bias = (self.heads + 2 * self.kv_heads) * self.head_dim * self.qkv_bias
        norms = self.hidden * (2 * self.layers + 1)
        return self.matrices + self.head * (2 - self.tied) + norms + self.layers * bias

    @property
    def kv(self) -> int:
        """Elements of keys and values that one token has in the cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def lora(self, rank: int, tp: int = 1) -> float:
        """Elements of an adapter on all linear layers, of each device: A or B is whole on each."""
        return (self.layers * rank) * sum(
            inputs + outputs / tp if split else inputs / tp + outputs
            for inputs, outputs, split in self.linears()
        )


@dataclass(frozen=True)
class Machine:
    """What a device reaches, not what its data sheet says.

    Attributes:
        bandwidth: Bytes read per second.
        rates: Operations per second of matrix products by dtype; an addition counts, too.
        layer: Seconds that a layer takes beside its bytes and operations: launches, gaps, norms.
        lora: The same for a layer's LoRA, where any row has an adapter.
        step: Seconds of a step that are no layer's.
        pair: Seconds of a step that keeping streams together takes.
        cache: Attention's share of ``bandwidth``.
        memory: Bytes.
        links: By devices in a group, ways to add up over them: seconds, and bytes per second of
            the traffic of a ring. The faster way is taken.
        sources: Where the numbers come from.
        drafts: Whether CoLD takes drafts there.
    """

    name: str
    bandwidth: float
    rates: Mapping[str, float]
    layer: float = 0.0
    lora: float = 0.0
    step: float = 0.0
    pair: float = 0.0
    cache: float = 1.0
    memory: float = math.inf
    links: Mapping[int, tuple[tuple[float, float], ...]] | None = None
    sources: str = ""
    drafts: bool = True

    def gather(self, count: float, tp: int) -> float:
        """Seconds in which each device gets the parts of ``count`` bytes that the others have."""
        if tp == 1:
            return 0.0
        assert self.links, f"{self.name}: no links"
        traffic = count * (tp - 1) / tp
        return min(latency + traffic / speed for latency, speed in self.links[tp])

    def reduce(self, count: float, tp: int) -> float:
        """Seconds to add up ``count`` bytes of each device: a ring passes them twice."""
        return self.gather(2 * count, tp)


@dataclass(frozen=True)
class Load:
    """A step's batch.

    Attributes:
        batch: Requests.
        context: Tokens that a stream has in the cache; the mean, if streams differ.
        streams: Of each request: 1, or an expert and its amateurs.
        adapters: Different adapters in the batch; experts' alone. 0: the base model only.
        drafts: Verified by each stream.
        rank: Of the adapters.
    """

    batch: int
    context: float
    streams: int = 1
    adapters: int = 1
    drafts: int = 0
    rank: int = 16

    @property
    def positions(self) -> int:
        """At which a token is chosen: rows of the experts."""
        return self.batch * (1 + self.drafts)

    @property
    def rows(self) -> int:
        return self.positions * self.streams


def parts(shape: Shape, machine: Machine, load: Load, dtype: str, tp: int = 1) -> dict[str, float]:
    """Seconds of each part of a step."""
    size, rows = BYTES[dtype], load.rows

    def roof(count: float, operations: float, share: float = 1.0) -> float:
        return math.hypot(count / (share * machine.bandwidth), operations / machine.rates[dtype])

    def product(elements: float, taken_by: int) -> float:
        return roof(elements * size, 2 * taken_by * elements)

    found = {
        "layers": product(shape.matrices / tp, rows),
        "logits": product(shape.head / tp, rows),
        # Each stream has a cache of its own, read once for all of its drafts.
        "attention": roof(
            load.batch * load.streams * load.context * shape.kv * size / min(tp, shape.kv_heads),
            4 * rows * load.context * shape.layers * shape.heads * shape.head_dim / tp,
            machine.cache,
        ),
        # Logits are written, read, written in float32 and read for the best.
        "sampling": roof(rows * shape.vocab * (2 * size + 8), 0),
        "overhead": machine.step + shape.layers * machine.layer,
    }
    if load.adapters:
        lora = shape.lora(load.rank, tp)
        found["LoRA"] = machine.lora * shape.layers + roof(
            load.adapters * lora * size, 2 * load.positions * lora
        )
    if load.streams > 1:  # reads a row of each stream, writes the expert's, in float32
        words = load.positions * shape.vocab * (load.streams + 1)
        found["scoring"] = machine.pair + roof(4 * words, 0)
    if tp > 1:
        reduce = machine.reduce(rows * shape.hidden * size, tp)
        logits = machine.gather(rows * shape.vocab * size, tp)
        found["all-reduce"] = (2 * shape.layers + 1) * reduce + logits
    return found


def seconds(shape: Shape, machine: Machine, load: Load, dtype: str, tp: int = 1) -> float:
    """Seconds of a step."""
    return sum(parts(shape, machine, load, dtype, tp).values())


def tokens_per_step(drafts: int, right: float) -> float:
    """Where each draft is right with this probability if those before it are."""
    return sum(right**n for n in range(drafts + 1))


def requests(
    shape: Shape, machine: Machine, load: Load, dtype: str, tp: int = 1, prefix: int = 0
) -> int:
    """How many requests like those of ``load`` have room for their caches.

    Args:
        prefix: Tokens that all prompts begin with. Streams of the same adapter share them: an
            expert's with its adapter's, and amateurs', which have none, with each other.

    Returns:
        0 also if the weights do not fit.
    """
    size = BYTES[dtype]
    token = shape.kv * size / min(tp, shape.kv_heads)
    weights = shape.parameters / tp + load.adapters * shape.lora(load.rank, tp)
    shared = prefix * (max(1, load.adapters) + load.streams - 1)
    room = UTILIZATION * machine.memory - RESERVE - weights * size - shared * token
    return max(0, int(room // (load.streams * (load.context - prefix) * token)))
