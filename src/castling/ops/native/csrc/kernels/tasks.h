// Work divided into tasks for the threads, and scratch memory divided for each of them.
#pragma once

#include "../parallel.h"
#include "simd.h"

namespace CASTLING_NAMESPACE {

// Hands out pieces of scratch memory; with a null base it only computes the size.
struct Carver {
  float* base;
  long used = 0;
  float* take(long floats) {
    float* piece = base == nullptr ? nullptr : base + used;
    used += ceil_divide(floats, 16) * 16;
    return piece;
  }
};

// run(task, memory) for tasks 0 … total − 1, each thread with `floats` of memory. 0, or 1 when
// there was no memory.
template <class Run>
static int each_task(long threads, long total, long floats, const Run& run) {
  struct Region {
    const Run& run;
    castling::Tasks tasks;
    float* memory;
    long floats;
  };
  threads = max(1, min(threads, total));
  floats = ceil_divide(floats, 16) * 16;
  castling::Scratch scratch(threads * floats);
  if (scratch.data == nullptr) return 1;
  Region region{run, castling::Tasks(total), scratch.data, floats};
  castling::parallel(
      threads,
      [](void* data, long worker) {
        Region& r = *static_cast<Region*>(data);
        for (long task; (task = r.tasks.take()) >= 0;) {
          r.run(task, r.memory + worker * r.floats);
          r.tasks.finish();
        }
      },
      &region);
  region.tasks.wait();
  return 0;
}

}  // namespace CASTLING_NAMESPACE
