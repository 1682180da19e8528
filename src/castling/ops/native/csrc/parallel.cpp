#include "parallel.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include <atomic>

#include "library.h"

namespace castling {
namespace {

typedef void (*OpenMPParallel)(void (*)(void*), void*, unsigned, unsigned);
OpenMPParallel openmp = nullptr;

// Starting a thread takes as long as a few million multiplications; callers ask for as many threads
// as their work can use.
constexpr long MAX_THREADS = 256;

struct Region {
  void (*body)(void*, long);
  void* data;
  std::atomic<long> workers;
};

void enter(void* region) {
  Region* r = static_cast<Region*>(region);
  r->body(r->data, r->workers.fetch_add(1, std::memory_order_relaxed));
}

void* enter_thread(void* region) {
  enter(region);
  return nullptr;
}

}  // namespace

void parallel(long threads, void (*body)(void*, long), void* data) {
  if (threads <= 1) return body(data, 0);
  Region region{body, data, {0}};
  if (openmp != nullptr) return openmp(enter, &region, static_cast<unsigned>(threads), 0);
  pthread_t others[MAX_THREADS];
  long started = 0;
  while (started + 1 < threads && started < MAX_THREADS &&
         pthread_create(&others[started], nullptr, enter_thread, &region) == 0)
    ++started;
  enter(&region);
  while (started > 0) pthread_join(others[--started], nullptr);
}

void Tasks::wait() {
  for (long spins = 0; __atomic_load_n(&done_, __ATOMIC_ACQUIRE) < total_; ++spins) {
    if (spins > 4000) sched_yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

Scratch::Scratch(long floats) : data(nullptr) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, static_cast<size_t>(floats) * sizeof(float) + 64) == 0)
    data = static_cast<float*>(memory);
}

Scratch::~Scratch() { free(data); }

}  // namespace castling

CASTLING_API void castling_use_openmp(void* entry) {
  castling::openmp = reinterpret_cast<castling::OpenMPParallel>(entry);
}

CASTLING_API int castling_has_openmp() { return castling::openmp != nullptr; }
