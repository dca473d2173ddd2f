# SPDX-License-Identifier: Apache-2.0
"""Everything that touches vLLM, one file for each place in vLLM.

Each file's docstring says what it touches, why, since when, and when it can go; ``contracts``
checks each of these places and names what broke when vLLM changes. Nothing outside this package
(and ``vllm_cold.params``) imports vLLM.

========================  ==============================================================
file                      place in vLLM
========================  ==============================================================
plugin                    entry point ``vllm.general_plugins``
engine_config             ``EngineArgs.create_engine_config``
cli                       ``EngineArgs.add_cli_args``, ``.from_cli_args``
admission                 ``InputProcessor.process_inputs``, ``AsyncLLM.add_request``
serving                   ``OpenAIServingModels``, the protocols, ``AsyncLLM.generate``,
                          beam search
errors                    ``vllm.exceptions``
metrics                   ``StatLoggerManager``, ``ModelRunnerOutput``
scheduler                 ``SchedulerConfig.scheduler_cls``
processor_v1              V1 model runner's logits processor interface
processor_v2              V2 model runner's logits processor interface
platform_cpu              ``CpuPlatform.get_punica_wrapper``, ``check_and_update_config``
punica_cpu                ``PunicaWrapperCPU``
punica_native             ``BaseLayerWithLoRA.set_mapping``
cpu_generators            ``CPUModelRunner.sample_tokens``
block_zeroer              ``CPUModelRunner.initialize_kv_cache`` of the V2 model runner
cpu_speculation           ``rejection_sampler.expand_batch_to_tokens``
lora_rows                 ``LoraState.make_lora_inputs`` of the V2 model runner
refusal                   where CoLD is unavailable: ``SamplingParams.verify``,
                          ``FlexibleArgumentParser``, ``EngineArgs.__post_init__``
patching, availability    no place: how the others are wrapped, and what if they cannot be
contracts, versions       no place: the checks, and the releases they were written for
========================  ==============================================================
"""
