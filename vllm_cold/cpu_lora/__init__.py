# SPDX-License-Identifier: Apache-2.0
"""LoRA on CPU for batches of mixed adapters.

``cpu_platform`` chooses: ``cpp_wrapper`` with ``cpp_ops`` (C++, compiled) is what is used,
``fallback_wrapper`` with ``fallback_ops`` (torch) is for machines without the C++ library.
"""
