// Arguments of the linear attention kernels, as castling.ops.native.linear_attention packs them:
// every field takes eight bytes.
#pragma once

#include "tensors.h"

namespace castling {

enum Features : int64_t { UNIT = 0, RELU = 1, SQUARES = 2, IDENTITY = 3 };
enum Normalisation : int64_t { NONE = 0, L2 = 1, ROWSUM = 2 };
enum LocalKind : int64_t { NO_LOCAL = 0, ALONG_TOKENS = 1, ON_GRID = 2 };

struct LinearArguments {
  // Another at every call.
  Tensor4 query, key, value;
  Tensor4 out;                // backward: the gradient of the output
  const float* local_weight;  // contiguous
  float* state;               // (B, H, d·dv + d + dv), written forward (0: not wanted), read backward
  int64_t threads;
  double constant;  // a
  // The same for a module's calls: sizes and formula.
  int64_t batch, queries, keys, heads, dim, value_dim, dtype;
  int64_t features, normalize;
  int64_t local, taps, height, width, prefix;
  double identity, gamma, kv_scale, eps, row_eps;
  // Seldom there.
  Tensor4 residual;
  const unsigned char* key_mask;
  int64_t mask_batch, mask_token;
  // Backward only.
  Tensor4 d_query, d_key, d_value, d_residual;  // channels contiguous
  float* d_local_weight;                        // contiguous, written
  float* d_constant;                            // one float: the gradient of a
};

}  // namespace castling
