// Vectors as wide as the processor's registers, by the vector types of GCC and clang, and functions of them.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
constexpr int kLanes = 16;
// Vectors of sums that stay in registers while weights and inputs pass, of 32 registers and of 16.
constexpr int kSums = 24;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kSums = 12;
#else
constexpr int kLanes = 4;
constexpr int kSums = 24;
#endif
// Bytes that memory moves at a time.
constexpr int kLine = 64;

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef int32_t Integers __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef float StoredFloats __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint16_t StoredHalves __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
typedef uint8_t StoredBytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
typedef int8_t StoredSigned __attribute__((vector_size(kLanes), aligned(1), may_alias));
typedef uint32_t StoredWord __attribute__((aligned(1), may_alias));
typedef float Four __attribute__((vector_size(16)));
typedef float StoredFour __attribute__((vector_size(16), aligned(4), may_alias));

// A number in all lanes. Subtracting zero leaves it as it is, adding it would not: -0.
inline Vector spread(float x) { return x - Vector{}; }

inline Vector load(const float* p) { return *reinterpret_cast<const StoredFloats*>(p); }

// bfloat16 is the upper half of a float32. GCC 12 takes numbers one by one out of vectors that are narrower than a
// register, so that loads are spelled out where they are to be fast.
inline Vector load(const uint16_t* p) {
#if defined(__AVX512F__)
  return (Vector)((Bits)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))) << 16);
#elif defined(__AVX2__)
  return (Vector)((Bits)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))) << 16);
#elif defined(__aarch64__)
  return (Vector)vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16);
#else
  return (Vector)(__builtin_convertvector(*reinterpret_cast<const StoredHalves*>(p), Bits) << 16);
#endif
}

inline void store(float* p, Vector v) { *reinterpret_cast<StoredFloats*>(p) = v; }

inline Integers load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return (Integers)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (Integers)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
  const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(*reinterpret_cast<const StoredWord*>(p)));
  return (Integers)vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
#else
  return __builtin_convertvector(*reinterpret_cast<const StoredBytes*>(p), Integers);
#endif
}

inline Integers load_signed(const uint8_t* p) {
#if defined(__AVX512F__)
  return (Integers)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (Integers)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
  const int8x8_t bytes = vreinterpret_s8_u32(vdup_n_u32(*reinterpret_cast<const StoredWord*>(p)));
  return (Integers)vmovl_s16(vget_low_s16(vmovl_s8(bytes)));
#else
  return __builtin_convertvector(*reinterpret_cast<const StoredSigned*>(p), Integers);
#endif
}

// 0, 1, 2, ...
inline Integers counting() {
#if defined(__AVX512F__)
  return (Integers){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX2__)
  return (Integers){0, 1, 2, 3, 4, 5, 6, 7};
#else
  return (Integers){0, 1, 2, 3};
#endif
}

// Whether a bit is set in any lane.
inline bool any_of(Integers v) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)v, (__m512i)v) != 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256((__m256i)v, (__m256i)v) == 0;
#elif defined(__aarch64__)
  return vmaxvq_u32((uint32x4_t)v) != 0;
#else
  return (v[0] | v[1] | v[2] | v[3]) != 0;
#endif
}

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }
inline Vector smaller(Vector a, Vector b) { return a < b ? a : b; }

// The sums of neighbours half a vector apart, until four are left. The order is the same wherever lanes are added up.
inline Four folded(Vector v) {
#if defined(__AVX512F__)
  typedef float Eight __attribute__((vector_size(32)));
  const Eight half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#elif defined(__AVX2__)
  return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
  return v;
#endif
}

inline float sum_of(Vector v) {
  const Four four = folded(v);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// `sum_of` each of four vectors.
inline Four sums_of(Vector a, Vector b, Vector c, Vector d) {
#if defined(__AVX512F__)
  // Halves, then quarters, of several vectors are added at once.
  const __m512 ab = _mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x44) + _mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xee);
  const __m512 cd = _mm512_shuffle_f32x4((__m512)c, (__m512)d, 0x44) + _mm512_shuffle_f32x4((__m512)c, (__m512)d, 0xee);
  const __m512 all = _mm512_shuffle_f32x4(ab, cd, 0x88) + _mm512_shuffle_f32x4(ab, cd, 0xdd);
  const __m512 pairs = all + _mm512_permute_ps(all, 0x4e);
  const __m512 sums = pairs + _mm512_permute_ps(pairs, 0xb1);
  const __m512i firsts = _mm512_castsi128_si512(_mm_setr_epi32(0, 4, 8, 12));
  return (Four)_mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, sums));
#else
  const Four fa = folded(a), fb = folded(b), fc = folded(c), fd = folded(d);
  const Four ab = __builtin_shufflevector(fa, fb, 0, 4, 1, 5) + __builtin_shufflevector(fa, fb, 2, 6, 3, 7);
  const Four cd = __builtin_shufflevector(fc, fd, 0, 4, 1, 5) + __builtin_shufflevector(fc, fd, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
#endif
}

inline float largest_of(Vector v) {
  float top = v[0];
  for (int i = 1; i < kLanes; ++i) top = v[i] > top ? v[i] : top;
  return top;
}

// e to the x, to 2 units in the last place (Cephes' expf); 0 below -87 and no more above 88, where float32 ends. NaN
// stays.
inline Vector exponential(Vector x) {
  const Vector least = spread(-87.0f), most = spread(88.0f);
  const Integers is_zero = x < least;
  x = smaller(most, larger(least, x));
  // Adding and taking away 1.5 * 2^23 rounds to whole numbers.
  const Vector n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
  x = x - n * 0.693359375f;
  x = x + n * 2.12194440e-4f;
  Vector y = x * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * x + 8.3334519073e-3f;
  y = y * x + 4.1665795894e-2f;
  y = y * x + 1.6666665459e-1f;
  y = y * x + 5.0000001201e-1f;
  y = y * (x * x) + x + 1.0f;
  const Vector power = (Vector)((__builtin_convertvector(n, Integers) + 127) << 23);
  return is_zero ? Vector{} : y * power;
}

// The natural logarithm of a normal positive number (Cephes' logf).
inline Vector logarithm(Vector x) {
  Integers bits = (Integers)x;
  // Mantissas from sqrt(1/2) to sqrt(2).
  Integers exponent = ((bits - 0x3f3504f3) >> 23);
  const Vector m = (Vector)(bits - (exponent << 23)) - 1.0f;
  const Vector n = __builtin_convertvector(exponent, Vector);
  const Vector square = m * m;
  Vector y = m * 7.0376836292e-2f - 1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m - 1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m - 1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m - 2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  y = y * m * square + n * -2.12194440e-4f - square * 0.5f;
  return m + y + n * 0.693359375f;
}
