# SPDX-License-Identifier: Apache-2.0
"""What a request may ask for, and how it is read. Imports no vLLM."""
