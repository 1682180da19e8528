// Arguments of the folded CAS-ViT block, as castling.ops.native.additive_block packs them: every
// field takes eight bytes.
#pragma once

#include <cstdint>

namespace castling {

struct AdditiveBlockArguments {
  const float* const* weights;  // contiguous, in the order of BlockWeights; read to pack
  float* packed;                // written to pack, read forward
  int64_t* size;                // one number: how many floats `packed` has
  const float* x;               // (batch, height, width, channels), contiguous
  float* out;                   // the same shape
  int64_t batch, height, width, channels, hidden, local, threads;
};

}  // namespace castling
