// Threads: PyTorch's own OpenMP pool where its entry point was found, POSIX threads elsewhere.
//
// Compiled once, for the baseline instruction set. Counters hand out the work, and a phase ends when
// its tasks are done, not when all threads have arrived: a pool may start fewer threads than asked
// for (one, inside another parallel region), so that waiting for a thread could hang.
#pragma once

namespace castling {

// Calls `body(data, worker)` on up to `threads` threads at once, workers being numbered from 0.
void parallel(long threads, void (*body)(void* data, long worker), void* data);

// Tasks 0 … total − 1, each taken once; `wait` returns when all are finished.
class Tasks {
 public:
  explicit Tasks(long total) : total_(total) {}
  // The next task, or −1.
  long take() {
    long task = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED);
    return task < total_ ? task : -1;
  }
  void finish() { __atomic_fetch_add(&done_, 1, __ATOMIC_ACQ_REL); }
  void wait();

 private:
  long total_;
  alignas(64) long next_ = 0;
  alignas(64) long done_ = 0;
};

// Aligned scratch memory of a call, freed with the object. `data` is null if it could not be allocated.
class Scratch {
 public:
  explicit Scratch(long floats);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data;
};

}  // namespace castling
