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
cli                       ``AsyncEngineArgs.add_cli_args``, ``EngineArgs.from_cli_args``
admission                 ``InputProcessor.process_inputs``
serving                   ``OpenAIServingModels``, beam search
scheduler                 ``SchedulerConfig.scheduler_cls``
processor_v1              V1 model runner's logits processor interface
processor_v2              V2 model runner's logits processor interface
platform_cpu              ``CpuPlatform.get_punica_wrapper``, ``check_and_update_config``
punica_cpu                ``PunicaWrapperCPU``
punica_native             ``BaseLayerWithLoRA.set_mapping``
cpu_generators            ``CPUModelRunner.sample_tokens``
contracts                 the checks
========================  ==============================================================
"""
