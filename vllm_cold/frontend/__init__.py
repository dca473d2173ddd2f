# SPDX-License-Identifier: Apache-2.0
"""Front end: configuration, options, admission, serving, /metrics."""
