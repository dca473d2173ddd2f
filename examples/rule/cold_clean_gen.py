# SPDX-License-Identifier: Apache-2.0
import torch

from vllm_cold.rules import Parameter, Rule


class CleanGen(Rule):
    """The reference model's logits where the expert is much surer of its best token."""

    name = "clean_gen"
    amateurs = 1
    mixes = True
    parameters = {"ratio": Parameter(20.0, 1.0, 1e6, "of its probabilities that is suspicious")}

    def weights(self, s, p):
        of_best = s.log_probability_of_best[:, :, 0]
        return torch.where(of_best[:, :1] - of_best[:, 1:] >= p.ratio.log(), 1.0, 0.0)
