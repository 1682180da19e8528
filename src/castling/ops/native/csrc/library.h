// The C interface, and how a call finds the copy compiled for this machine's instructions.
//
// csrc/*.cpp is compiled once, csrc/kernels/*.cpp once per instruction set, each into a namespace
// of its own. A kernel `int name(const Arguments&)` is exported by CASTLING_EXPORT(name, Arguments)
// in one of the former; it returns 0, or 1 when memory ran out.
#pragma once

#define CASTLING_API extern "C" __attribute__((visibility("default")))

namespace castling {

enum Isa { PORTABLE = 0, AVX2 = 1, AVX512 = 2 };
extern Isa isa;  // chosen by castling_select

}  // namespace castling

#if defined(CASTLING_HAS_AVX2)
#define CASTLING_DECLARE_AVX2(name, Arguments) \
  namespace castling_avx2 { int name(const Arguments&); }
#define CASTLING_TRY_AVX2(name) \
  if (castling::isa == castling::AVX2) return castling_avx2::name(*arguments);
#else
#define CASTLING_DECLARE_AVX2(name, Arguments)
#define CASTLING_TRY_AVX2(name)
#endif

#if defined(CASTLING_HAS_AVX512)
#define CASTLING_DECLARE_AVX512(name, Arguments) \
  namespace castling_avx512 { int name(const Arguments&); }
#define CASTLING_TRY_AVX512(name) \
  if (castling::isa == castling::AVX512) return castling_avx512::name(*arguments);
#else
#define CASTLING_DECLARE_AVX512(name, Arguments)
#define CASTLING_TRY_AVX512(name)
#endif

#define CASTLING_EXPORT(name, Arguments) \
  CASTLING_DECLARE_AVX2(name, Arguments) \
  CASTLING_DECLARE_AVX512(name, Arguments) \
  namespace castling_portable { int name(const Arguments&); } \
  CASTLING_API int castling_##name(const Arguments* arguments) { \
    CASTLING_TRY_AVX512(name) CASTLING_TRY_AVX2(name) \
    return castling_portable::name(*arguments); \
  }
