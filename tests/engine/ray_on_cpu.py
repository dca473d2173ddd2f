# SPDX-License-Identifier: Apache-2.0
"""What Ray as executor back end lacks on vLLM's CPU platform, for the test: a resource name.

vLLM gives each worker one unit of the resource that the platform names, and the CPU platform names
none. Here it is "GPU", of which ``ray.init(num_gpus=...)`` promises as many as wanted; nothing on
the CPU platform looks for a device behind it.
"""


def declare_devices() -> None:
    """Called in the driver, and by Ray in each worker process before anything else."""
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.ray_device_key = "GPU"
