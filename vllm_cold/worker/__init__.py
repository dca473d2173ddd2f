# SPDX-License-Identifier: Apache-2.0
"""In a worker: the scores that tokens are sampled from, what is reported of them, and workarounds.

A worker sees the streams of a group as requests of a batch. A step, in the order in which vLLM runs
it with the V2 model runner, which since vLLM 0.34 is the only one (``v1`` has the other):

1. ``LogitsProcessor.__init__`` (``processor``), once: rules are loaded, the scoring backend is
   chosen, vLLM's functions are wrapped that the table of ``worker_places`` names; models with SSM
   layers get their workarounds (``ssm``). When the model is loaded, the runner is extended
   (``runner_hooks``), on the call of ``init_worker_extension`` (``extension``).
2. ``add_request``: which rows of the batch are streams. Their ``Stream`` comes in ``extra_args``
   (``wire.stream``). ``GroupRows.match`` (``group_rows``) finds the complete groups.
3. The model runs.
4. ``GPUModelRunner.sample``: where drafts are verified, the processor is told how many rows of
   logits each request has.
5. ``apply``: the rules choose weights or compute scores (``rule_weights``), these or the op's
   (``ops``) are written over the experts' rows, and what clients ask about is explained
   (``explain_step``). It is after vLLM's masks and before penalties.
6. When ``sample`` returns, each amateur gets its expert's token, on the device, and rules that
   charge are told what it cost (``RuleStates.settle``). With speculation it also gets the
   expert's accepted drafts, and its next ones when ``propose`` returns.
7. When ``sample_tokens`` returns, the figures are at its output (``wire.worker_output``).
"""
