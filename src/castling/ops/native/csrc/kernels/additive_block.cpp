// The folded CAS-ViT block on channels-last images, in seven steps with a barrier after each:
//
//   1. y = x·L₁ + b                                                          (local integration)
//   2. x₁ = x + gelu(dw(y))·L₂ + b;  q, k, v = x₁·W + b                      a tile of pixels
//   3. g = σ(w·relu(dw(q))) and Σ g·q along a row; the same for k            a row
//   4. c = σ(C·mean(g·q)); the same for k                                    channels
//   5. s = q·g·c + k·g·c, in q's place                                       a tile
//   6. u = dw(s) ⊙ v, in y's place                                           a tile
//   7. x₂ = x₁ + dw(u);  out = x₂ + gelu(x₂·U + b)·D + b                     a tile
//
// - What lies between two products of a tile stays in the L2 cache: neither GELU nor the hidden
//   channels of the MLP, nor any gated image, reaches memory.
// - Each thread takes whole images; the threads share the remaining ones.
// - Sums over pixels are computed row by row and rows are added in order: results do not depend on
//   the number of threads.
#include "../arguments.h"

#include "../parallel.h"
#include "additive_block_weights.h"

namespace CASTLING_NAMESPACE {
namespace {

constexpr long TILE = 64;    // pixels; weights are read once a tile
constexpr long CHUNK = 256;  // hidden channels at a time: 64 KiB a tile

// each(): calls `work(item, worker)` for all items of a step and returns when they are done.
struct Alone {
  long worker;
  template <class Work>
  void each(int /*step*/, long total, Work work) const {
    for (long i = 0; i < total; ++i) work(i, worker);
  }
};

struct Together {
  castling::Tasks* steps;
  long worker;
  template <class Work>
  void each(int step, long /*total*/, Work work) const {
    for (long i; (i = steps[step].take()) >= 0; steps[step].finish()) work(i, worker);
    steps[step].wait();
  }
};

class Block {
 public:
  explicit Block(const castling::AdditiveBlockArguments& a)
      : args_(a), w_(a.channels, a.hidden, a.local != 0), packed_(a.packed),
        pixels_(a.height * a.width), threads_(max(1, a.threads)),
        tiles_(min(pixels_, ceil_divide(ceil_divide(pixels_, TILE), threads_) * threads_)),
        spread_(a.batch / threads_ * threads_),
        images_(spread_ > 0 ? threads_ : 1),
        memory_(images_ * image_floats() + threads_ * worker_floats()) {}

  int run() {
    if (memory_.data == nullptr) return 1;
    castling::Tasks whole(spread_);
    Region spread{this, &whole, 0};
    if (spread_ > 0) castling::parallel(threads_, spread_images, &spread);
    for (long i = spread_; i < args_.batch; ++i) {
      castling::Tasks steps[] = {
          castling::Tasks(tiles_), castling::Tasks(tiles_), castling::Tasks(2 * args_.height),
          castling::Tasks(2 * threads_), castling::Tasks(tiles_), castling::Tasks(tiles_),
          castling::Tasks(tiles_)};
      Region shared{this, steps, i};
      castling::parallel(threads_, share_image, &shared);
    }
    return 0;
  }

 private:
  struct Region {
    const Block* block;
    castling::Tasks* tasks;
    long image;
  };

  // A pool may start more workers than asked for; those have no memory.
  static void spread_images(void* data, long worker) {
    const Region& region = *static_cast<const Region*>(data);
    if (worker >= region.block->threads_) return;
    for (long i; (i = region.tasks->take()) >= 0;) region.block->image(i, worker, Alone{worker});
  }

  static void share_image(void* data, long worker) {
    const Region& region = *static_cast<const Region*>(data);
    if (worker < region.block->threads_)
      region.block->image(region.image, 0, Together{region.tasks, worker});
  }

  long image_floats() const {
    return pixels_ * (5 * w_.padded + 2) + 2 * args_.height * w_.padded + 2 * w_.padded + 64;
  }
  long worker_floats() const {
    const long rows = ceil_divide(pixels_, tiles_);
    return max(rows * (w_.padded + CHUNK), args_.width * LANES + w_.padded) + 64;
  }
  float* worker_memory(long worker) const {
    return memory_.data + images_ * image_floats() + worker * worker_floats();
  }

  long begin_of(long tile) const { return tile * pixels_ / tiles_; }

  Depthwise filter(const float* image, long stride, long weight, long bias) const {
    return {image, args_.height, args_.width, stride, w_.padded, packed_ + weight, packed_ + bias};
  }

  template <class Team>
  void image(long index, long place, Team team) const {
    const long c = w_.channels, p = w_.padded, three = 3 * p;
    const float* x = args_.x + index * pixels_ * c;
    float* out = args_.out + index * pixels_ * c;
    float* y = memory_.data + place * image_floats();
    float* x1 = y + pixels_ * p;
    float* qkv = x1 + pixels_ * p;
    float* gates = qkv + pixels_ * three;
    float* sums = gates + 2 * pixels_;
    float* scales = sums + 2 * args_.height * p;

    team.each(0, tiles_, [&](long tile, long) {
      if (!w_.local) return;
      const long begin = begin_of(tile), count = begin_of(tile + 1) - begin;
      product({x + begin * c, c, packed_ + w_.local_first, c, c, 0, packed_ + w_.local_first_bias,
               nullptr, 0, y + begin * p, p, p, false}, count);
    });
    team.each(1, tiles_, [&](long tile, long worker) {
      const long begin = begin_of(tile), end = begin_of(tile + 1);
      project_in(begin, end, x, y, x1, qkv, worker_memory(worker));
    });
    team.each(2, 2 * args_.height, [&](long item, long worker) {
      const long which = item / args_.height, row = item % args_.height;
      gate_row(w_.gates[which], row, qkv + which * p, gates + which * pixels_ + row * args_.width,
               sums + item * p, worker_memory(worker));
    });
    team.each(3, 2 * threads_, [&](long item, long worker) {
      const long which = item / threads_, part = item % threads_, all = w_.padded;
      channel_gates(w_.gates[which].channel, sums + which * args_.height * p, scales + which * p,
                    part * all / threads_, (part + 1) * all / threads_, worker_memory(worker));
    });
    team.each(4, tiles_, [&](long tile, long) {
      for (long pixel = begin_of(tile); pixel < begin_of(tile + 1); ++pixel) {
        float* q = qkv + pixel * three;
        const Vec of_q = broadcast(gates[pixel]), of_k = broadcast(gates[pixels_ + pixel]);
        for (long i = 0; i < p; i += LANES)
          store(q + i, load(q + i) * of_q * load(scales + i) +
                           load(q + p + i) * of_k * load(scales + p + i));
      }
    });
    team.each(5, tiles_, [&](long tile, long) {
      depthwise_pixels(filter(qkv, three, w_.gamma, w_.gamma_bias), begin_of(tile),
                       begin_of(tile + 1), [&](long pixel, long channel, Vec value) {
                         const float* v = qkv + pixel * three + 2 * p + channel;
                         store(y + pixel * p + channel, value * load(v));
                       });
    });
    const float* before = w_.local ? x1 : x;
    const long stride = w_.local ? p : c;
    team.each(6, tiles_, [&](long tile, long worker) {
      const long begin = begin_of(tile), end = begin_of(tile + 1);
      float* rows = worker_memory(worker);
      depthwise_pixels(filter(y, p, w_.project, w_.project_bias), begin, end,
                       [&](long pixel, long channel, Vec value) {
                         value += load_some(before + pixel * stride + channel, c - channel);
                         store(rows + (pixel - begin) * p + channel, value);
                       });
      mlp(rows, end - begin, rows + (end - begin) * p, out + begin * c);
    });
  }

  // Step 2 on the pixels begin … end − 1.
  void project_in(long begin, long end, const float* x, const float* y, float* x1, float* qkv,
                  float* rows) const {
    const long c = w_.channels, p = w_.padded, three = 3 * p, count = end - begin;
    const float* from = x + begin * c;
    long stride = c;
    if (w_.local) {
      depthwise_pixels(filter(y, p, w_.local_depthwise, w_.local_depthwise_bias), begin, end,
                       [&](long pixel, long channel, Vec value) {
                         store(rows + (pixel - begin) * p + channel, gelu(value));
                       });
      // Columns after the last channel are stored too: the residual reads them.
      product({rows, p, packed_ + w_.local_last, c, c, 0, packed_ + w_.local_last_bias, nullptr, 0,
               x1 + begin * p, p, p, false}, count);
      add_pixels(from, x1 + begin * p, count);
      from = x1 + begin * p, stride = p;
    }
    product({from, stride, packed_ + w_.qkv, c, c, 0, packed_ + w_.qkv_bias, nullptr, 0,
             qkv + begin * three, three, three, false}, count);
  }

  void add_pixels(const float* from, float* to, long count) const {
    const long c = w_.channels, p = w_.padded;
    for (long i = 0; i < count; ++i)
      for (long j = 0; j < p; j += LANES)
        store(to + i * p + j, load(to + i * p + j) + load_some(from + i * c + j, c - j));
  }

  // Step 3: σ(w·relu(dw(image))) along a row, and the row's sums of image times that.
  void gate_row(const BlockWeights::Gate& gate, long row, const float* image, float* gates,
                float* sums, float* lanes) const {
    const long width = args_.width, p = w_.padded, stride = 3 * p;
    __builtin_memset(lanes, 0, width * LANES * sizeof(float));
    const Depthwise job = filter(image, stride, gate.depthwise, gate.bias);
    for (long channel = 0; channel < p; channel += LANES) {
      const Vec weight = load(packed_ + gate.position + channel);
      depthwise_row(job, row, 0, width, channel, [&](long x, Vec value) {
        store(lanes + x * LANES, load(lanes + x * LANES) + relu(value) * weight);
      });
    }
    for (long x = 0; x < width; ++x) gates[x] = logistic(sum(load(lanes + x * LANES)));
    const float* pixels = image + row * width * stride;
    for (long channel = 0; channel < p; channel += LANES) {
      Vec total = Vec{};
      for (long x = 0; x < width; ++x) total += gates[x] * load(pixels + x * stride + channel);
      store(sums + channel, total);
    }
  }

  // Step 4 for the channels begin … end − 1.
  void channel_gates(long weight, const float* sums, float* scales, long begin, long end,
                     float* means) const {
    const long p = w_.padded;
    for (long i = 0; i < p; i += LANES) {
      Vec total = Vec{};
      for (long row = 0; row < args_.height; ++row) total += load(sums + row * p + i);
      store(means + i, total / static_cast<float>(pixels_));
    }
    for (long channel = begin; channel < end; ++channel) {
      Vec dot = Vec{};
      // There are no weights after the last channel: any finite gate will do.
      const float* row = packed_ + weight + min(channel, w_.channels - 1) * p;
      for (long i = 0; i < p; i += LANES) dot += load(means + i) * load(row + i);
      scales[channel] = logistic(sum(dot));
    }
  }

  // out = rows + gelu(rows·U + b)·D + b, the hidden channels CHUNK at a time.
  void mlp(const float* rows, long count, float* hidden, float* out) const {
    const long c = w_.channels, p = w_.padded;
    for (long first = 0; first < w_.hidden; first += CHUNK) {
      const long depth = min(CHUNK, w_.hidden - first);
      product({rows, p, packed_ + w_.up + first * c, c, c, 0, packed_ + w_.up_bias + first, nullptr,
               0, hidden, CHUNK, whole_vectors(depth), true}, count);
      const bool begins = first == 0;
      product({hidden, CHUNK, packed_ + w_.down, depth, w_.hidden, first,
               begins ? packed_ + w_.down_bias : nullptr, begins ? rows : nullptr, p, out, c, c,
               false}, count);
    }
  }

  const castling::AdditiveBlockArguments& args_;
  const BlockWeights w_;
  const float* packed_;
  const long pixels_, threads_, tiles_;
  const long spread_;  // images that one thread computes alone
  const long images_;  // images worked on at once
  castling::Scratch memory_;
};

}  // namespace

int additive_block_size(const castling::AdditiveBlockArguments& a) {
  *a.size = BlockWeights(a.channels, a.hidden, a.local != 0).size;
  return 0;
}

int additive_block_pack(const castling::AdditiveBlockArguments& a) {
  BlockWeights(a.channels, a.hidden, a.local != 0).pack(a.weights, a.packed);
  return 0;
}

int additive_block_forward(const castling::AdditiveBlockArguments& a) { return Block(a).run(); }

}  // namespace CASTLING_NAMESPACE
