// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "library.h"

// A matrix of rows that are `stride` elements apart, each contiguous.
struct Matrix {
    void* data;
    int64_t rows, columns, stride;
    int64_t dtype;
};
