# SPDX-License-Identifier: Apache-2.0
"""Rules: how the weights of a group's amateurs, or the scores themselves, are chosen anew at each
step. Run in workers; front ends know their names and parameters. Import no vLLM.

A method of this field is mostly a way to choose the weights ``w_i`` of
``z0 + sum_i w_i * (z_i - z0)`` from the streams' own distributions. ``Rule`` is what one is,
``statistics`` what it may look at, ``built_in`` has ours.
"""

from vllm_cold.rules.rule import Choice, Parameter, Rule, Scores

__all__ = ["Choice", "Parameter", "Rule", "Scores"]
