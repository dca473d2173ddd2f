# SPDX-License-Identifier: Apache-2.0
"""What a request may ask for: the method's settings. But for ``params``, it imports no vLLM."""
