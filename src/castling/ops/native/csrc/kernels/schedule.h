// Two passes over the tokens of every head, with a sum between them, on any number of threads.
//
// - By head: one task computes both passes of a head while its rows are in cache.
// - Split: tasks are ranges of tokens with all heads (rows of a packed projection are adjacent, so
//   memory is read in order); partial sums are added, then the second pass follows.
// The result is bit-identical for both and for any number of threads: sums run over the same blocks
// of the same chunks, and chunks are added in order.
#pragma once

#include "../parallel.h"
#include "simd.h"

namespace CASTLING_NAMESPACE {

constexpr long BLOCK = 64;  // maximum tokens at once: their rows fill half an L1 cache

struct Blocks {
  long tokens, chunk, chunks;
  explicit Blocks(long count) : tokens(count) {
    // At least 256 tokens, so that adding states is cheap; sixteen chunks, so that few heads can
    // use many threads; at most 1024, for the precision of long sums.
    chunk = min(1024, max(256, ceil_divide(ceil_divide(count, 16), BLOCK) * BLOCK));
    chunks = ceil_divide(count, chunk);
  }
  long start(long c) const { return c * chunk; }
  long length(long c) const { return min(chunk, tokens - c * chunk); }
};

// Calls `body(start, count)` for evenly sized blocks of a chunk.
template <class Body>
static CASTLING_INLINE void for_blocks(const Blocks& blocks, long chunk, Body body) {
  long length = blocks.length(chunk), count = ceil_divide(length, BLOCK);
  long size = count ? ceil_divide(length, count) : 0;
  for (long t = 0; t < length; t += size)
    body(blocks.start(chunk) + t, min(size, length - t));
}

static void zero(float* to, long count) { __builtin_memset(to, 0, count * sizeof(float)); }

static void add(float* to, const float* from, long count) {
  for (long i = 0; i < count; i += LANES) store(to + i, load(to + i) + load(from + i));
}

// Problem offers: batch, heads, threads, by_head; first, second (Blocks); sum_floats,
// head_floats (multiples of 16) and worker_floats; and, on a head with its own memory `own`,
//   prepare(worker, b, h, own)                               before the first pass
//   first_pass(worker, b, h, start, count, fresh, own, sum)  adds to sum, whose sum_first first
//                                                            floats it overwrites when fresh
//   finish(worker, b, h, own, sum)                           between the passes
//   second_pass(worker, b, h, start, count, own, sum)
template <class Problem>
class Schedule {
 public:
  explicit Schedule(Problem& problem)
      : p(problem),
        heads(p.batch * p.heads),
        groups(p.by_head ? 1 : groups_of(p)),
        prepared(heads),
        first(p.batch * p.first.chunks * groups),
        summed(heads),
        second(p.batch * p.second.chunks * groups),
        stride(p.worker_floats + (p.by_head ? p.head_floats + 2 * p.sum_floats : 0)),
        shared(p.threads * stride),
        memory(shared + (p.by_head ? 0
                                   : heads * p.head_floats +
                                         heads * max(1, p.first.chunks) * p.sum_floats)) {}

  // 0, or 1 when there is no memory.
  int run() {
    if (memory.data == nullptr) return 1;
    castling::parallel(p.threads, [](void* self, long worker) {
      Schedule* s = static_cast<Schedule*>(self);
      if (worker < s->p.threads) s->p.by_head ? s->by_head(worker) : s->split(worker);
    }, this);
    return 0;
  }

 private:
  // Heads are divided too if there are fewer ranges of tokens than threads can use.
  static long groups_of(const Problem& p) {
    long pieces = max(1, p.batch * p.first.chunks);
    return p.threads == 1 ? 1 : max(1, min(p.heads, ceil_divide(4 * p.threads, pieces)));
  }

  void by_head(long worker) {
    float* work = memory.data + worker * stride;
    float* own = work + p.worker_floats;
    float* sum = own + p.head_floats;
    float* part = sum + p.sum_floats;
    for (long task; (task = prepared.take()) >= 0;) {
      long b = task / p.heads, h = task % p.heads;
      p.prepare(work, b, h, own);
      if (p.first.chunks == 0) zero(sum, p.sum_floats);
      for (long c = 0; c < p.first.chunks; ++c) {
        float* to = c == 0 ? sum : part;
        zero(to + p.sum_first, p.sum_floats - p.sum_first);
        for_blocks(p.first, c, [&](long start, long count) {
          p.first_pass(work, b, h, start, count, start == p.first.start(c), own, to);
        });
        if (c > 0) add(sum, part, p.sum_floats);
      }
      p.finish(work, b, h, own, sum);
      for (long c = 0; c < p.second.chunks; ++c)
        for_blocks(p.second, c, [&](long start, long count) {
          p.second_pass(work, b, h, start, count, own, sum);
        });
    }
  }

  float* own_of(long head) { return memory.data + shared + head * p.head_floats; }
  float* sum_of(long head, long chunk) {
    return memory.data + shared + heads * p.head_floats +
           (head * max(1, p.first.chunks) + chunk) * p.sum_floats;
  }

  void split(long worker) {
    float* work = memory.data + worker * stride;
    for (long head; (head = prepared.take()) >= 0; prepared.finish())
      p.prepare(work, head / p.heads, head % p.heads, own_of(head));
    prepared.wait();
    for (long task; (task = first.take()) >= 0; first.finish()) {
      long group = task % groups, c = task / groups % p.first.chunks;
      long b = task / groups / p.first.chunks;
      long from = p.heads * group / groups, to = p.heads * (group + 1) / groups;
      for (long h = from; h < to; ++h)
        zero(sum_of(b * p.heads + h, c) + p.sum_first, p.sum_floats - p.sum_first);
      for_blocks(p.first, c, [&](long start, long count) {
        for (long h = from; h < to; ++h)
          p.first_pass(work, b, h, start, count, start == p.first.start(c),
                       own_of(b * p.heads + h), sum_of(b * p.heads + h, c));
      });
    }
    first.wait();
    for (long head; (head = summed.take()) >= 0; summed.finish()) {
      float* sum = sum_of(head, 0);
      if (p.first.chunks == 0) zero(sum, p.sum_floats);
      for (long c = 1; c < p.first.chunks; ++c) add(sum, sum_of(head, c), p.sum_floats);
      p.finish(work, head / p.heads, head % p.heads, own_of(head), sum);
    }
    summed.wait();
    for (long task; (task = second.take()) >= 0; second.finish()) {
      // In reverse: what the first pass read last is still in cache.
      long at = p.batch * p.second.chunks * groups - 1 - task;
      long group = at % groups, c = at / groups % p.second.chunks;
      long b = at / groups / p.second.chunks;
      long from = p.heads * group / groups, to = p.heads * (group + 1) / groups;
      for_blocks(p.second, c, [&](long start, long count) {
        for (long h = from; h < to; ++h)
          p.second_pass(work, b, h, start, count, own_of(b * p.heads + h),
                        sum_of(b * p.heads + h, 0));
      });
    }
  }

  Problem& p;
  long heads, groups;
  castling::Tasks prepared, first, summed, second;
  long stride, shared;
  castling::Scratch memory;
};

}  // namespace CASTLING_NAMESPACE
