# SPDX-License-Identifier: Apache-2.0
"""The V1 model runner: of vLLM 0.32 and 0.33 on CPUs, and of vllm-ascend 0.23. vLLM 0.34 has it no
more. When none of these is supported, this folder goes, with ``Runner.V1`` and the rows
``places.V1*``; nothing else in the package imports it but by name.

A step, where it differs from the V2 runner's (``worker``): ``update_state`` of ``processor_v1``
says which rows are streams; rows of drafts are scored by ``RejectionSampler`` (``drafts_v1``);
``Sampler.forward`` has sampled, and the figures leave with ``ModelRunnerOutput.__init__``
(``step_outputs``).
"""
