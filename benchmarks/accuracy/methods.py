# SPDX-License-Identifier: Apache-2.0
"""The decoding methods that are compared. Their keys name them in files and in the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

# No token that could win is excluded, which makes CoLD classifier-free guidance.
NO_MASK = 1e-30


@dataclass(frozen=True)
class Method:
    """A way to decode.

    Attributes:
        key: names it.
        kind: "base", "greedy", "vote" (nucleus sampling and a majority vote) or "cold" in vLLM;
            "beam", "dola" or "contrastive-search" in transformers.
        alpha: for CoLD.
        beta: for CoLD; a number or "adaptive".
        knobs: more fields of ColdParams.
        amateur: percent of the steps of the adapter that is the amateur; None for the base model.
    """

    key: str
    kind: str
    alpha: float = 1.0
    beta: float | str = 0.0
    knobs: tuple[tuple[str, Any], ...] = ()
    amateur: int | None = None

    @property
    def family(self) -> str:
        """What it is a setting of: the report picks one of each family on dev."""
        return self.key.split(" ")[0]


BASE = Method("base", "base")
GREEDY = Method("greedy", "greedy")
BEAM = Method("beam", "beam")
VOTE = Method("vote", "vote")
DOLA = Method("dola", "dola")
CONTRASTIVE_SEARCH = Method("contrastive-search", "contrastive-search")

BEAMS = 4
SAMPLES, TOP_P = 5, 0.9

ALPHAS = (0.1, 0.3)
BETAS = (0.25, 0.5, 1.0, 2.0)


def fixed(alpha: float, beta: float) -> Method:
    """CoLD with a fixed beta."""
    return Method(f"cold {alpha:g} {beta:g}", "cold", alpha, beta)


def guidance(beta: float) -> Method:
    """Classifier-free guidance of scale 1 + beta (arXiv 2306.17806): CoLD without its mask."""
    return Method(f"cfg {1 + beta:g}", "cold", NO_MASK, beta)


def adaptive(alpha: float, beta_max: float) -> Method:
    """CoLD with a beta that adapts itself, up to ``beta_max``."""
    return Method(
        f"adaptive {alpha:g} {beta_max:g}", "cold", alpha, "adaptive", (("beta_max", beta_max),)
    )


def against_quarter(method: Method) -> Method:
    """The same contrast, with the same adapter after a quarter of its training as amateur: a bad
    version of the expert itself, as in autoguidance (arXiv 2406.02507).
    """
    return replace(method, key=f"quarter-{method.key}", amateur=25)


DEFAULT = fixed(0.1, 0.5)
GRID = [fixed(alpha, beta) for beta in BETAS for alpha in reversed(ALPHAS)]
# The first one is the default.
ADAPTIVE = [adaptive(0.1, 1.0), adaptive(0.3, 1.0), adaptive(0.1, 2.0)]
GUIDANCE = [guidance(beta) for beta in (0.25, 0.5, 1.0)]
QUARTER = [against_quarter(fixed(0.1, beta)) for beta in (0.25, 0.5, 1.0)]
QUARTER_ADAPTIVE = [against_quarter(method) for method in ADAPTIVE if method.alpha == 0.1]
