// Vectors as wide as the processor's registers, by the vector types of GCC and clang.
#pragma once

#include <cstdint>

#if defined(__AVX512F__)
constexpr int kLanes = 16;
// Vectors of sums that stay in registers while weights and inputs pass, of 32 registers and of 16.
constexpr int kSums = 24;
#else
constexpr int kLanes = 8;
constexpr int kSums = 12;
#endif
// Bytes that memory moves at a time.
constexpr int kLine = 64;

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef int32_t Integers __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef float StoredFloats __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint16_t StoredHalves __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

inline Vector load(const float* p) { return *reinterpret_cast<const StoredFloats*>(p); }

// bfloat16 is the upper half of a float32.
inline Vector load(const uint16_t* p) {
  return (Vector)(__builtin_convertvector(*reinterpret_cast<const StoredHalves*>(p), Bits) << 16);
}

inline void store(float* p, Vector v) { *reinterpret_cast<StoredFloats*>(p) = v; }
