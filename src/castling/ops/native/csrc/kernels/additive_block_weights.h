// Where each weight of a folded CAS-ViT block lies in one packed buffer.
#pragma once

#include "depthwise.h"
#include "packed_product.h"

namespace CASTLING_NAMESPACE {

// Offsets in floats. The weights come in this order, each convolution's weight before its bias:
// local integration (first, depthwise, last), qkv, for q and for k (spatial depthwise, spatial 1×1,
// channel gate), Γ, the projection, up, down. The 1×1 and the channel gate have no bias.
struct BlockWeights {
  long channels, hidden, padded;  // padded: channels in whole vectors
  bool local;
  long local_first, local_first_bias, local_depthwise, local_depthwise_bias;
  long local_last, local_last_bias, qkv, qkv_bias;
  struct Gate {
    long depthwise, bias, position, channel;
  } gates[2];
  long gamma, gamma_bias, project, project_bias, up, up_bias, down, down_bias, size;

  BlockWeights(long channel_count, long hidden_count, bool with_local)
      : channels(channel_count), hidden(hidden_count), padded(whole_vectors(channel_count)),
        local(with_local), size(0) {
    const long matrix = matrix_size(channels, channels);
    if (local) {
      local_first = take(matrix), local_first_bias = take(padded);
      local_depthwise = take(9 * padded), local_depthwise_bias = take(padded);
      local_last = take(matrix), local_last_bias = take(padded);
    }
    qkv = take(3 * matrix), qkv_bias = take(3 * padded);
    for (Gate& gate : gates) {
      gate.depthwise = take(9 * padded), gate.bias = take(padded);
      gate.position = take(padded), gate.channel = take(channels * padded);
    }
    gamma = take(9 * padded), gamma_bias = take(padded);
    project = take(9 * padded), project_bias = take(padded);
    up = take(matrix_size(hidden, channels)), up_bias = take(whole_vectors(hidden));
    down = take(matrix_size(channels, hidden)), down_bias = take(padded);
  }

  void pack(const float* const* from, float* to) const {
    if (local) {
      dense(from, channels, channels, to + local_first, to + local_first_bias);
      depthwise(from, to + local_depthwise, to + local_depthwise_bias);
      dense(from, channels, channels, to + local_last, to + local_last_bias);
    }
    pack_matrix(*from++, 3, channels, channels, to + qkv);
    for (long part = 0; part < 3; ++part)
      pack_row(*from + part * channels, channels, to + qkv_bias + part * padded);
    ++from;
    for (const Gate& gate : gates) {
      depthwise(from, to + gate.depthwise, to + gate.bias);
      pack_row(*from++, channels, to + gate.position);
      for (long c = 0; c < channels; ++c)
        pack_row(*from + c * channels, channels, to + gate.channel + c * padded);
      ++from;
    }
    depthwise(from, to + gamma, to + gamma_bias);
    depthwise(from, to + project, to + project_bias);
    dense(from, hidden, channels, to + up, to + up_bias);
    dense(from, channels, hidden, to + down, to + down_bias);
  }

 private:
  // Aligned to cache lines.
  long take(long count) {
    const long at = size;
    size += ceil_divide(count, 16) * 16;
    return at;
  }
  static void dense(const float* const*& from, long outputs, long inputs, float* to, float* bias) {
    pack_matrix(*from++, 1, outputs, inputs, to);
    pack_row(*from++, outputs, bias);
  }
  void depthwise(const float* const*& from, float* to, float* bias) const {
    pack_depthwise(*from++, channels, padded, to);
    pack_row(*from++, channels, bias);
  }
};

}  // namespace CASTLING_NAMESPACE
