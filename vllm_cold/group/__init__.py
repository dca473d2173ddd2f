# SPDX-License-Identifier: Apache-2.0
"""A request's streams: described, kept in lockstep, found in a batch, counted. Imports no vLLM."""
