// Vectors of floats, and conversions from and to float32, bfloat16 and float16.
//
// - One source for every instruction set: the compiler's own vector type of LANES floats. SSE2, AVX2,
//   AVX-512 and NEON have code of their own for float16 conversions only.
// - Everything is in CASTLING_NAMESPACE: the file is compiled once per instruction set, and the
//   linker must never merge two copies of an inline function.
// - load_part/store_part access exactly `count` elements: nothing past the end of a tensor is read.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef CASTLING_NAMESPACE
#define CASTLING_NAMESPACE castling_portable
#endif

#define CASTLING_INLINE inline __attribute__((always_inline))

namespace CASTLING_NAMESPACE {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

// Vectors in a row of a register tile.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE_VECTORS = 4;
#else
constexpr int TILE_VECTORS = 2;
#endif
constexpr int TILE_ROWS = 6;

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t VecI __attribute__((vector_size(4 * LANES)));
typedef uint32_t VecU __attribute__((vector_size(4 * LANES)));
typedef uint16_t VecH __attribute__((vector_size(2 * LANES)));
typedef float LooseVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t LooseVecH __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

CASTLING_INLINE Vec broadcast(float x) { return x - Vec{}; }  // x − 0 is x, −0 included
CASTLING_INLINE Vec select(VecI mask, Vec yes, Vec no) {
  return (Vec)((mask & (VecI)yes) | (~mask & (VecI)no));
}
CASTLING_INLINE Vec positive_part(Vec x) { return select(x < Vec{}, Vec{}, x); }

CASTLING_INLINE Vec load(const float* p) { return *(const LooseVec*)p; }
CASTLING_INLINE void store(float* p, Vec x) { *(LooseVec*)p = x; }

CASTLING_INLINE Vec load(const BFloat16* p) {
  VecH bits = *(const LooseVecH*)p;
  return (Vec)(__builtin_convertvector(bits, VecU) << 16);
}

CASTLING_INLINE void store(BFloat16* p, Vec x) {
  VecU bits = (VecU)x;
  VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  VecU nan = (VecU)(x != x);
  rounded = (nan & ((bits >> 16) | 0x40u)) | (~nan & rounded);
  *(LooseVecH*)p = __builtin_convertvector(rounded, VecH);
}

#if defined(__AVX512F__)  // zeroing forms: GCC warns about an uninitialised source in the plain ones
CASTLING_INLINE Vec load(const Float16* p) {
  return (Vec)_mm512_maskz_cvtph_ps((__mmask16)-1, _mm256_loadu_si256((const __m256i*)p));
}
CASTLING_INLINE void store(Float16* p, Vec x) {
  _mm256_storeu_si256((__m256i*)p, _mm512_maskz_cvtps_ph((__mmask16)-1, (__m512)x,
                                                         _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__) && defined(__AVX2__)
CASTLING_INLINE Vec load(const Float16* p) {
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
CASTLING_INLINE void store(Float16* p, Vec x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__aarch64__)
CASTLING_INLINE Vec load(const Float16* p) {
  return (Vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t*)p)));
}
CASTLING_INLINE void store(Float16* p, Vec x) {
  vst1_u16((uint16_t*)p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x)));
}
#else
CASTLING_INLINE Vec load(const Float16* p) {
  VecU bits = __builtin_convertvector(*(const LooseVecH*)p, VecU);
  VecU magnitude = (bits & 0x7fffu) << 13;
  // Multiplying by 2^112 rebases the exponent and makes subnormal numbers normal.
  VecU value = (VecU)((Vec)magnitude * 0x1p112f);
  value |= (VecU)(magnitude >= 0x0f800000u) & 0x7f800000u;
  return (Vec)(value | ((bits & 0x8000u) << 16));
}
CASTLING_INLINE void store(Float16* p, Vec x) {
  VecU bits = (VecU)x, magnitude = bits & 0x7fffffffu;
  VecU normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14, adding ½ rounds to the spacing of subnormal numbers.
  VecU small = (VecU)((Vec)magnitude + 0.5f) - 0x3f000000u;
  VecU large = 0x7c00u + ((VecU)(magnitude > 0x7f800000u) & 0x200u);
  VecU is_small = (VecU)(magnitude < 0x38800000u), is_large = (VecU)(magnitude >= 0x47800000u);
  VecU value = (is_small & small) | (is_large & large) | (~(is_small | is_large) & normal);
  *(LooseVecH*)p = __builtin_convertvector(value | ((bits >> 16) & 0x8000u), VecH);
}
#endif

// The first `count` < LANES elements, zeros after them.
template <class T>
CASTLING_INLINE Vec load_part(const T* p, long count) {
  T part[LANES] = {};
  __builtin_memcpy(part, p, count * sizeof(T));
  return load(part);
}

template <class T>
CASTLING_INLINE void store_part(T* p, Vec x, long count) {
  T part[LANES];
  store(part, x);
  __builtin_memcpy(p, part, count * sizeof(T));
}

CASTLING_INLINE float sum(Vec x) {
  typedef float Four __attribute__((vector_size(16), may_alias));
  Four parts[LANES / 4];
  __builtin_memcpy(parts, &x, sizeof(x));
  Four total = parts[0];
  for (int i = 1; i < LANES / 4; ++i) total += parts[i];
  return (total[0] + total[2]) + (total[1] + total[3]);
}

CASTLING_INLINE long min(long a, long b) { return a < b ? a : b; }
CASTLING_INLINE long max(long a, long b) { return a > b ? a : b; }
CASTLING_INLINE long ceil_divide(long a, long b) { return (a + b - 1) / b; }

// Floats of a scratch row of `count`: whole vectors and one more cache line, so that rows of
// power-of-two sizes do not map to the same few cache sets. A multiple of 16 floats.
CASTLING_INLINE long padded(long count) { return ceil_divide(count, 16) * 16 + 16; }
// Vectors that hold `count` floats.
CASTLING_INLINE long vectors(long count) { return ceil_divide(count, LANES); }

}  // namespace CASTLING_NAMESPACE
