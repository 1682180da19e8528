// What a tensor is to this library: an address and strides, as Python packs them (see arguments.py).
#pragma once

#include <cstdint>

namespace castling {

enum Dtype : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

// (batch, tokens, heads, channels), strides in elements; address 0 means that there is no tensor.
struct Tensor4 {
  char* data;
  int64_t batch, token, head, channel;
};

inline int64_t item_size(int64_t dtype) { return dtype == FLOAT32 ? 4 : 2; }

}  // namespace castling
