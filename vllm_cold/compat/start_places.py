# SPDX-License-Identifier: Apache-2.0
"""What vllm-cold wraps in every process when vLLM loads the plugin; ``compat.places`` says how it
is used. Data alone.
"""

from vllm_cold.compat import places
from vllm_cold.compat.patching import Hook, Wraps, lazy

# fmt: off
start_hooks, unavailable = lazy("vllm_cold.compat", "start_hooks unavailable")

_ENGINE_ARGS = "vllm.engine.arg_utils:EngineArgs."

TABLE = (
    Hook(
        start_hooks, places.START,
        "Here an engine's configuration is final. An engine with LoRA, or that asks for "
        "contrastive decoding, gets vllm-cold's scheduler and the logits processor of its model "
        "runner, by the public options `scheduler_cls` and `logits_processors`. (The entry point "
        "`vllm.logits_processors` would break every engine on the machine: each model runner "
        "refuses the other's class.)",
        "when vLLM lets plugins set these options.",
        Wraps(_ENGINE_ARGS + "create_engine_config", start_hooks.wrap_create_engine_config,
              "usage_context"),
    ),
    Hook(
        start_hooks, places.START,
        "`vllm serve --sampler cold --cold-beta ...`, also as keys of vLLM's `--config` YAML. The "
        'values end up in `additional_config["cold"]`. `from_cli_args` also adds the middleware '
        "that tells clients what was used.",
        "when plugins can add arguments.",
        Wraps(_ENGINE_ARGS + "add_cli_args", start_hooks.wrap_add_cli_args, "parser", staticmethod),
        Wraps(_ENGINE_ARGS + "from_cli_args", start_hooks.wrap_from_cli_args, "args", classmethod),
    ),
    Hook(
        start_hooks, places.START,
        "Every request passes it, and only it sees a request's parameters, adapter and prompt's "
        "length before the engine core does. (`LogitsProcessor.validate_params` sees the "
        "parameters only.)",
        places.DERIVED,
        Wraps("vllm.v1.engine.input_processor:InputProcessor.process_inputs",
              start_hooks.wrap_process_inputs, "request_id prompt params"),
    ),
    Hook(
        unavailable, places.NO_COLD,
        "Who asks for contrastive decoding must be told why it is not there, and must not "
        "silently get regular decoding. Contrastive decoding itself hooks none of these, so that "
        "a change of vLLM hardly ever breaks both.",
        "never; it is the net.",
        Wraps("vllm.sampling_params:SamplingParams.verify", unavailable.wrap_verify),
        Wraps(_ENGINE_ARGS + "__post_init__", unavailable.wrap_post_init),
        lost="who asks for contrastive decoding is not always told why it is unavailable",
    ),
)
# fmt: on
