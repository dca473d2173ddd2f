# SPDX-License-Identifier: Apache-2.0
"""All that crosses between processes. Each file is one channel, or what travels in it, and names
both ends. Imports no vLLM.
"""
