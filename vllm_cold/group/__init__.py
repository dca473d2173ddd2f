# SPDX-License-Identifier: Apache-2.0
"""The streams of a request: described, kept in step, found in a batch, counted. Imports no vLLM."""
