# SPDX-License-Identifier: Apache-2.0
"""The products of linear layers with few rows, on CPU.

``packed`` has the operator and the weights, ``linear_layers`` gives them to vLLM's layers.
"""
