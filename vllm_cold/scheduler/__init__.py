# SPDX-License-Identifier: Apache-2.0
"""In the engine core: the scheduler, which keeps the streams of a contrastive request in lockstep.

vLLM calls methods of its scheduler, some of which are ours. A step, in the order in which it does:

1. ``add_request`` (``group_requests``): a contrastive request has come. Its amateurs are made
   (``amateur_requests``); from here on it is a ``Group`` (``lockstep``). Its expert waits for all.
2. ``schedule`` (``group_planning``): a pass begins, with a ``Step``, the tokens that it may hand
   out, and a ``Pass`` (``passes``), which decides. Views take the queues' places (``queue_view``).
   Then vLLM's own ``schedule`` runs, which asks:
   - for each request that runs, ``_mamba_block_aligned_split``, now ``Pass.cap``: how many tokens?
     At the first stream of a group it is decided whether the group goes or holds: whether budget,
     blocks (``kv_blocks``), media (``encoder_inputs``) and loads (``kv_loads``) have room for all
     of it;
   - ``View.__bool__``, which asks ``Pass._may_start`` and, for a group, ``Pass._start_if_room``:
     may the head of the queue start, and is it within its share of the slots (``share``)?
     ``peek_request`` and ``pop_request`` hand it over, and ``Pass.cap`` says again how many tokens
     it gets;
   - ``_try_schedule_encoder_inputs``: which media are encoded?
   - ``_preempt_request``: for want of blocks somebody has to give them back. If it is a stream, its
     group gets nothing more.
3. ``_build_kv_connector_meta`` where there is a connector, else ``_update_after_schedule``: who was
   split is taken out of the step and waits again; groups that never fit must end.
4. The workers run the step.
5. ``update_from_output`` (``scheduler``): its results are back, with figures of each group
   (``wire.worker_output``). Those that may not be given to a client end their request
   (``output_checks``); ``drafting`` learns whether drafts pay. vLLM's own ``update_from_output``
   appends tokens to all streams. The amateurs' outputs are dropped, and explanations go to the
   clients that ask (``explain_steps``), with what answers have cost (``budgets``); counts are sent
   to /metrics (``wire.counters``).
6. ``finish_requests`` (``group_requests``): with a request its whole group ends.
"""
