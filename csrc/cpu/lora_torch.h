// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "torch_ops.h"

// y += B @ A @ x * scale for rows with an adapter, of a layer that the stack's item is the table of.
// What went wrong; null if nothing did.
const char* add_lora(Tensor y, Tensor x, Stack layer, Stack scale);
