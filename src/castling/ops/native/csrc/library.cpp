#include "library.h"

namespace castling {

Isa isa = PORTABLE;

namespace {

bool runs(int candidate) {
  if (candidate == PORTABLE) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(CASTLING_HAS_AVX2)
  if (candidate == AVX2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
#endif
#if defined(CASTLING_HAS_AVX512)
  if (candidate == AVX512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
#endif
  return false;
}

}  // namespace
}  // namespace castling

// Whether this build and this machine can run the instruction set; an Isa.
CASTLING_API int castling_runs(int candidate) { return castling::runs(candidate); }

CASTLING_API void castling_select(int chosen) { castling::isa = static_cast<castling::Isa>(chosen); }

// Fingerprint of the argument structures that this build was compiled with.
CASTLING_API const char* castling_interface() { return CASTLING_INTERFACE; }

CASTLING_API const char* castling_compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#else
  return "GCC " __VERSION__;
#endif
}
