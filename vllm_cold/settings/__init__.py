# SPDX-License-Identifier: Apache-2.0
"""What a request and an engine may ask for, and how it is read. Runs in front ends; workers load an
engine's rules by it. Imports no vLLM.
"""
