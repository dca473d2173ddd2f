# SPDX-License-Identifier: Apache-2.0
"""The ``vllm-cold`` command: see, tune and check contrastive decoding."""
