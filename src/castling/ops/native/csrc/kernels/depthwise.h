// Depthwise convolutions 3×3 with zero padding on channels-last images, a row at a time.
//
// A loaded pixel is used for the three results it contributes to, so memory is read three times
// instead of nine. The caller consumes each result, so what follows needs no pass of its own.
#pragma once

#include "simd.h"

namespace CASTLING_NAMESPACE {

struct Depthwise {
  const float* image;  // (height, width, stride), channels in whole vectors
  long height, width, stride, channels;
  const float* weight;  // [9][channels]
  const float* bias;    // [channels]
};

// consume(x, result) for the pixels begin … end − 1 of row y and the vector of channels at `channel`.
template <class Consume>
static CASTLING_INLINE void depthwise_row(const Depthwise& job, long y, long begin, long end,
                                          long channel, Consume consume) {
  Vec w[9];
  for (int tap = 0; tap < 9; ++tap) w[tap] = load(job.weight + tap * job.channels + channel);
  const Vec bias = load(job.bias + channel);
  const long down = job.width * job.stride;
  const float* middle = job.image + y * down + channel;
  const bool top = y == 0, bottom = y + 1 == job.height;
  const float* above = top ? middle : middle - down;
  const float* below = bottom ? middle : middle + down;
  if (top) w[0] = w[1] = w[2] = Vec{};
  if (bottom) w[6] = w[7] = w[8] = Vec{};
  const auto part = [&](long x, int tap) {
    const long at = x * job.stride;
    return load(above + at) * w[tap] + load(middle + at) * w[tap + 3] +
           load(below + at) * w[tap + 6];
  };
  // Adds in the order of the loop below, so that results do not depend on where a row is split.
  Vec now = (begin > 0 ? bias + part(begin - 1, 0) : bias) + part(begin, 1);
  Vec next = bias + part(begin, 0);
  for (long x = begin; x < end; ++x) {
    if (x + 1 == job.width) return consume(x, now);
    const long at = (x + 1) * job.stride;
    const Vec a = load(above + at), m = load(middle + at), b = load(below + at);
    consume(x, now + (a * w[2] + m * w[5] + b * w[8]));
    now = next + (a * w[1] + m * w[4] + b * w[7]);
    next = bias + (a * w[0] + m * w[3] + b * w[6]);
  }
}

// consume(pixel, channel, result) for the pixels begin … end − 1, counted row by row.
template <class Consume>
static CASTLING_INLINE void depthwise_pixels(const Depthwise& job, long begin, long end,
                                             Consume consume) {
  while (begin < end) {
    const long y = begin / job.width, start = y * job.width, stop = min(end, start + job.width);
    for (long channel = 0; channel < job.channels; channel += LANES)
      depthwise_row(job, y, begin - start, stop - start, channel,
                    [&](long x, Vec value) { consume(start + x, channel, value); });
    begin = stop;
  }
}

// weight (count, 1, 3, 3) -> [9][channels], zeros after them.
static void pack_depthwise(const float* weight, long count, long channels, float* packed) {
  for (long tap = 0; tap < 9; ++tap)
    for (long c = 0; c < channels; ++c)
      packed[tap * channels + c] = c < count ? weight[c * 9 + tap] : 0.0f;
}

}  // namespace CASTLING_NAMESPACE
