# SPDX-License-Identifier: Apache-2.0
"""The front end: API servers, and the process of an ``LLM``. What happens there to an engine and to
a request, in vLLM's order, with the hook that enters each line. ``frontend_places`` has them, but
for ``start_hooks``, which all processes load (``compat.start_places``).

vLLM starts an engine:
- ``start_hooks.wrap_add_cli_args``, ``wrap_from_cli_args``: options of the command line (``cli``)
- ``start_hooks.wrap_create_engine_config``: its configuration is final. If it may have a contrast,
  ``support`` and ``compat.refused_options`` say whether it can, and ``engine_config`` prepares it
- ``request_hooks.wrap_models_init``: a server knows its adapters, and gets its ``Admission``; where
  the engine was not asked for a contrast, only when a client asks for one

A body comes in (``serving.Header``), and ``aliases.wrap_check_model`` looks at its model's name:
- ``request_hooks.wrap_preprocess`` calls ``serving.preprocess``: ``admission`` reads what it asks
  for (``RequestedContrast``); what is wrong is a ``ColdError``, here and below, and HTTP 400 by
  ``compat.vllm_errors.as_http_400``
- ``prompts.wrap_render_chat``, ``wrap_render_cmpl``: vLLM makes the prompt, which notes how;
  ``request_media.wrap_load_from_url`` fetches each URL once
- ``serving.preprocess`` goes on: ``rendering`` makes the amateurs' prompts, and ``admission``
  decides what is contrasted (``ResolvedContrast``, in the prompt)
- ``request_hooks.wrap_to_sampling_params``: the length of the answer is checked (``capacity``);
  beam search is refused in ``wrap_to_beam_search_params``
- ``serving.wrap_generate``: watches the outputs, from here to the end
- ``intake.wrap_add_request``: here an async engine without a server makes amateurs' prompts
- ``start_hooks.wrap_process_inputs``: the request is admitted, and leaves with its ``Stream``;
  offline (``LLM``), all from ``admission`` on is done here (``intake.admit_request``)

The engine core answers:
- ``explain_output.wrap_make_request_output``: what is told of each token, collected
- ``metrics.wrap_record``: a scheduler's figures, counted
- ``serving.Header`` adds what was used, and to a stream what was told

Where contrastive decoding is unavailable, ``compat.unavailable`` is all that is hooked.
"""
