// Threads: PyTorch's own OpenMP pool where its entry point was found, POSIX threads elsewhere.
//
// Compiled once, for the plainest instruction set. Work is handed out by counters, and a phase is
// over when all of its tasks are done, not when all threads have met: a pool may give fewer threads
// than were asked for (one, inside another parallel region) and nothing may wait for the others.
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

// Aligned scratch memory of a call; freed with the object. Null data when there is none to have.
class Scratch {
 public:
  explicit Scratch(long floats);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data;
};

}  // namespace castling
