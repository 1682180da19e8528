// Written by `python -m castling.ops.native` from arguments.py; do not edit.
#pragma once

#include <cstdint>

namespace castling {

enum Dtype : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

enum Features : int64_t { UNIT = 0, RELU = 1, SQUARES = 2, IDENTITY = 3 };

enum Normalisation : int64_t { NONE = 0, L2 = 1, ROWSUM = 2 };

enum LocalKind : int64_t { NO_LOCAL = 0, ALONG_TOKENS = 1, ON_GRID = 2 };

// Address and strides in elements of (batch, tokens, heads, channels); address 0: none.
struct Tensor4 {
  char* data;
  int64_t batch, token, head, channel;
};

// Linear attention, forward and backward: castling/ops/linear_attention.py has the formula.
struct LinearArguments {
  Tensor4 query;
  Tensor4 key;
  Tensor4 value;
  Tensor4 out;  // backward: the gradient of the output
  const float* local_weight;  // contiguous; null: no convolution
  float* state;  // (B, H, d·d_v + d + d_v): written forward unless null, then read
  int64_t threads;
  double constant;  // a
  // Sizes and formula, the same for all calls of a module.
  int64_t batch;
  int64_t queries;
  int64_t keys;
  int64_t heads;
  int64_t dim;  // of queries and keys
  int64_t value_dim;
  int64_t dtype;  // Dtype
  int64_t features;  // Features
  int64_t normalize;  // Normalisation
  int64_t local;  // LocalKind
  int64_t taps;  // along one axis
  int64_t height;
  int64_t width;
  int64_t prefix;  // tokens before the grid
  double identity;  // ι
  double gamma;  // γ
  double kv_scale;  // s; 0: 1/N
  double eps;  // under the root of every norm
  double row_eps;  // added to a row sum
  // Often absent.
  Tensor4 residual;
  const uint8_t* key_mask;  // 1 where a key takes part
  int64_t mask_batch;  // stride
  int64_t mask_token;  // stride
  // Backward only; channels contiguous.
  Tensor4 d_query;
  Tensor4 d_key;
  Tensor4 d_value;
  Tensor4 d_residual;
  float* d_local_weight;  // contiguous, written
  float* d_constant;  // one float: the gradient of a
};
static_assert(sizeof(LinearArguments) == 584, "no padding");

// Exact second-order Taylor attention, forward and backward.
struct TaylorArguments {
  int64_t threads;
  int64_t dtype;  // Dtype
  int64_t batch;
  int64_t heads;
  int64_t queries;
  int64_t keys;
  int64_t dim;  // of queries and keys
  int64_t value_dim;
  int64_t normalise;  // 1: z = ⟨q̂, k̂⟩; 0: ⟨q, k⟩/√d
  int64_t features;  // order: 0 direct, 1 features
  double eps;  // under norms, and added to the mean of a row of similarities
  const uint8_t* key_mask;  // (batch, keys) contiguous, 1: takes part; or null
  float* state;  // null where nothing is saved
  Tensor4 query;
  Tensor4 key;
  Tensor4 value;
  Tensor4 out;
  Tensor4 grad_out;  // backward only, as those below
  Tensor4 grad_query;
  Tensor4 grad_key;
  Tensor4 grad_value;
};
static_assert(sizeof(TaylorArguments) == 424, "no padding");

// The folded CAS-ViT block: its weights are packed once, then read by every forward pass.
struct AdditiveBlockArguments {
  const float* const* weights;  // to pack: contiguous, in BlockWeights' order
  float* packed;  // written to pack, read forward
  int64_t* size;  // written: the floats of `packed`
  const float* x;  // (batch, height, width, channels), contiguous
  float* out;  // the same shape
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t hidden;
  int64_t local;  // whether there is a local integration
  int64_t threads;
};
static_assert(sizeof(AdditiveBlockArguments) == 96, "no padding");

// The rate of multiply-adds of one thread.
struct MultiplyAddArguments {
  double* rate;  // written: 10⁹ floating-point operations a second, two each
};
static_assert(sizeof(MultiplyAddArguments) == 8, "no padding");

}  // namespace castling
