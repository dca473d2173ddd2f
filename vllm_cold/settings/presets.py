# SPDX-License-Identifier: Apache-2.0
"""Methods that contrast, by name: the values that their papers give, and of our own those that
harmed least where they were measured (docs/accuracy.md). Imports no vLLM.

All are the one formula of docs/how-it-works.md; a preset sets the mask and the weights, and a
request says what its amateurs are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_cold.rules import registry


@dataclass(frozen=True, slots=True)
class Preset:
    """The values of a method.

    Attributes:
        settings: Fields of ``ColdSettings``.
        weights: Of its amateurs, where it has several.
        without: The messages of a chat that its amateur does not read where nobody says which, for
            each of several; None for a method that leaves out none.
        images: What its amateur sees of the images where nobody says what it reads; None for a
            method that is not about images.
    """

    settings: Mapping[str, Any]
    weights: tuple[float, ...] = ()
    without: str | tuple[str, ...] | None = None
    images: str | None = None

    @property
    def own_prompt(self) -> bool:
        """Whether its amateur reads another prompt than the expert."""
        return self.without is not None or self.images is not None

    @property
    def limits(self) -> bool:
        """Whether it says what is sampled from, whichever part its amateur lacks."""
        return registry.is_of_scores(self.settings.get("rule"))

    @property
    def of_texts(self) -> bool:
        """Whether its amateur lacks a text, wherever in a chat that stands."""
        return "tool" in (self.without or ())


def _of_rule(rule: str) -> Preset:
    return Preset({"alpha": 0.0, "rule": rule}, without="tool")


PRESETS: Mapping[str, Preset] = {
    # An adapter against the base model (arXiv 2505.14620)
    "cold": Preset({"alpha": 0.1, "beta": 0.5}),
    # A prompt against the same one without its context (arXiv 2305.14739): (1 + a) z - a z',
    # a = 0.5, no mask
    "cad": Preset({"alpha": 0.0, "beta": 0.5}, without="tool"),
    # The same, as strong as the two differ (arXiv 2409.07394): a is the Jensen-Shannon divergence
    # at each step
    "adacad": Preset(
        {"alpha": 0.0, "rule": "adaptive", "rule_parameters": {"beta_max": 1.0}},
        without="tool",
    ),
    # The same, by the rules of these names, whose files say where each is from; none has a mask
    "acd": _of_rule("acd"),  # both mixed by their entropies
    "arr": _of_rule("arr"),  # towards the more confident one
    "cocoa": _of_rule("cocoa"),  # weighted by the gap of their entropies
    "grd": _of_rule("grd"),  # committed to one of both at their first disagreement
    "m3id": _of_rule("m3id"),  # stronger with every token
    "mti": _of_rule("mti"),  # only where the expert is uncertain
    # Limits what a part of the input may add to the answer, in bits. No paper's: docs/bound.md
    "bound": Preset({"alpha": 0.0, "rule": "bound"}),
    # A prompt against the same one without its instruction (arXiv 2306.17806): z' + g (z - z'),
    # g = 1.5, so w = -(g - 1)
    "cfg": Preset({"alpha": 0.0, "beta": 0.5}, without="system"),
    # The base model, towards one adapter and away from another (arXiv 2105.03023, 2401.08565):
    # z + (z+ - z-)
    "dexperts": Preset({"alpha": 0.0}, weights=(1.0, -1.0)),
    # A prompt against the same one without its context, and without its question. No paper's: what
    # the text makes likely whatever is asked must not win either
    "grounded": Preset({"alpha": 0.3}, weights=(-0.25, -0.25), without=("tool", "user")),
    # Images against the same with noise (arXiv 2311.16922): (1 + a) z - a z', a = 1, mask 0.1, 500
    # steps of noise
    "vcd": Preset({"alpha": 0.1, "beta": 1.0}, images="noise:500"),
}
NO_PRESET = Preset({})
