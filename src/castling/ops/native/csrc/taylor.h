// Arguments of the exact second-order Taylor attention, as taylor.py packs them.
#pragma once

#include "tensors.h"

namespace castling {

struct TaylorArguments {
  int64_t threads, dtype, batch, heads, queries, keys, dim, value_dim;
  int64_t normalise;        // z = ⟨q̂, k̂⟩; else ⟨q, k⟩/√d
  int64_t features;         // order: 0 direct, 1 features
  double eps;
  const uint8_t* key_mask;  // (batch, keys), 1 where a key takes part; or null
  float* state;             // null where nothing is saved
  Tensor4 query, key, value, out, grad_out, grad_query, grad_key, grad_value;
};

}  // namespace castling
