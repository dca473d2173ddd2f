# SPDX-License-Identifier: Apache-2.0
"""All that crosses between processes. Imports no vLLM.

Four channels, each in a field of vLLM's:

- ``stream``: ``SamplingParams.extra_args["cold_stream"]``, the settings and the streams of a
  request. The front end writes it at admission (``frontend.admission``), the scheduler completes it
  for each stream (``scheduler.amateur_requests``), workers read it (``worker.processor``).
- ``worker_output``: the attribute ``cold`` of a ``ModelRunnerOutput``, the figures of a step
  (``step_stats``). From workers (``worker.group_rows``) to ``scheduler.scheduler``. The first
  output has ``cold_kernels``, too: what computes there (``compat.hardware.kernels``).
- ``counters``: ``SchedulerStats.kv_connector_stats["cold"]``, what the scheduler counted.
  From ``scheduler.group_requests`` to ``frontend.metrics``.
- ``transfer_params``: ``kv_transfer_params["cold"]`` of an output, what a client is told of each
  token, and what an engine needs that goes on with a request. From ``scheduler.scheduler`` and
  ``scheduler.kv_loads`` to ``frontend.explain_output`` and ``frontend.serving``; back in with a
  request, to ``scheduler.amateur_requests``.
"""
