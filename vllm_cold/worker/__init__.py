# SPDX-License-Identifier: Apache-2.0
"""In a worker: the scores that tokens are sampled from, what is reported of them, and workarounds.

A worker sees the streams of a group as requests of a batch. A step, in the order in which vLLM runs
it (V1: ``processor_v1``; V2, the default on GPUs since 0.32: ``processor_v2``):

1. ``LogitsProcessor.__init__``, once: rules are loaded, the scoring backend is chosen, vLLM's
   functions are wrapped that the table of ``worker_places`` names; models with SSM layers get their
   workarounds (``ssm``).
2. ``update_state`` (V1) or ``add_request`` (V2): which rows of the batch are streams. Their
   ``Stream`` comes in ``extra_args`` (``wire.stream``). ``GroupRows.match`` (``group_rows``) finds
   the complete groups.
3. The model runs.
4. Where drafts are verified, ``RejectionSampler.forward`` (``drafts_v1``) or ``__call__``
   (``drafts_v2``) tell the processor how many rows of logits each request has.
5. ``apply``: the rules choose weights or compute scores (``rule_weights``), these or the op's
   (``ops``) are written over the experts' rows, and what clients ask about is explained
   (``explain_step``). On V1 it is after
   vLLM's masks and before penalties anyway; on V2 ``Sampler.__init__`` gives it that place
   (``penalties_v2``).
6. ``Sampler.forward`` (V1) or ``Sampler.__call__`` (V2) have sampled: each amateur gets its
   expert's token (``amateur_tokens``), on the device, and rules that charge are told what it cost
   (``RuleStates.settle``). With speculation it also gets the expert's
   accepted drafts and its next ones (``propose_draft_token_ids``, ``sample_tokens``).
7. ``ModelRunnerOutput.__init__``: the figures go to the scheduler (``wire.worker_output``).
"""
