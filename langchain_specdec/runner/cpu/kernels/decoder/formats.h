// How weights are held, and how they become numbers: GGML's block formats (ggml-common.h, ggml-quants.c of
// https://github.com/ggml-org/ggml) and plain ones. What comes out is what dequantising gives, to the bit: every product
// of a scale and a whole number is exact in float32, so that one rounding is left, as there.
#pragma once

#include <cstring>

#include "../vectors.h"

// Weights that are widened at a time, and the vectors that hold them.
constexpr int kChunk = 32;
constexpr int kChunkVectors = kChunk / kLanes;

inline float from_half(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, 2);
#if defined(__F16C__)
  return _cvtsh_ss(half);
#elif defined(__aarch64__)
  __fp16 number;
  std::memcpy(&number, &half, 2);
  return number;
#else
  const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
  uint32_t bits;
  float value;
  if (rest >= 0x7c00u) {
    bits = sign | 0x7f800000u | (rest & 0x3ffu) << 13;
  } else {
    // The exponent is put right by a product, which is exact, for the smallest numbers too.
    bits = rest << 13;
    std::memcpy(&value, &bits, 4);
    value *= 5.192296858534828e33f;  // 2^112
    std::memcpy(&bits, &value, 4);
    bits |= sign;
  }
  std::memcpy(&value, &bits, 4);
  return value;
#endif
}

// A half and the one after it, in all lanes.
struct Halves {
#if defined(__AVX512F__)
  // Both are widened at once: spreading them out costs as much as widening the weights that they are of.
  __m128 both;
  explicit Halves(const uint8_t* p) {
    int32_t bits;
    std::memcpy(&bits, p, 4);
    both = _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
  }
  Vector first() const { return (Vector)_mm512_broadcastss_ps(both); }
  Vector second() const { return (Vector)_mm512_permutexvar_ps(_mm512_set1_epi32(1), _mm512_castps128_ps512(both)); }
#else
  const uint8_t* p;
  explicit Halves(const uint8_t* p) : p(p) {}
  Vector first() const { return spread(from_half(p)); }
  Vector second() const { return spread(from_half(p + 2)); }
#endif
};

// scale * q + least, for whole numbers q below 16; of those given, the four lowest bits count.
struct Line16 {
#if defined(__AVX512F__)
  // One lookup in a register in place of three operations.
  Vector table;
  Line16(Vector scale, Vector least) : table(__builtin_convertvector(counting(), Vector) * scale + least) {}
  explicit Line16(Vector values) : table(values) {}
  Vector operator()(Integers q) const { return (Vector)_mm512_permutexvar_ps((__m512i)q, (__m512)table); }
#else
  Vector scale, least;
  Line16(Vector scale, Vector least) : scale(scale), least(least) {}
  Vector operator()(Integers q) const { return __builtin_convertvector(q & 15, Vector) * scale + least; }
#endif
};

// The same for q below 32.
struct Line32 {
#if defined(__AVX512F__)
  Vector low, high;
  Line32(Vector scale, Vector least)
      : low(__builtin_convertvector(counting(), Vector) * scale + least),
        high(__builtin_convertvector(counting() + 16, Vector) * scale + least) {}
  Vector operator()(Integers q) const {
    return (Vector)_mm512_permutex2var_ps((__m512)low, (__m512i)q, (__m512)high);
  }
#else
  Vector scale, least;
  Line32(Vector scale, Vector least) : scale(scale), least(least) {}
  Vector operator()(Integers q) const { return __builtin_convertvector(q & 31, Vector) * scale + least; }
#endif
};

// The nibbles of 16 bytes: the lower ones first, then the upper ones. Higher bits than four may be left.
inline Integers nibbles16(const uint8_t* p, int v) {
  const int at = v * kLanes;
  const Integers bytes = load_bytes(p + at % 16);
  return at < 16 ? bytes : bytes >> 4;
}

// The fifth bits of 32 numbers, in place.
inline Integers fifths32(uint32_t bits, int v) {
  const Integers shifted = (Integers)((Bits{} + bits) >> (Bits)(counting() + v * kLanes));
  return (shifted << 4) & 16;
}

#if !defined(__AVX512F__)
// values[q], for q below 16. The lookup goes byte by byte, of which the lowest counts.
inline Integers lookup(const int8_t* values, Integers q) {
#if defined(__AVX2__)
  const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
  return (Integers)_mm256_shuffle_epi8(table, (__m256i)q) << 24 >> 24;
#elif defined(__aarch64__)
  return (Integers)vqtbl1q_s8(vld1q_s8(values), (uint8x16_t)q) << 24 >> 24;
#else
  Integers found;
  for (int i = 0; i < kLanes; ++i) found[i] = values[q[i]];
  return found;
#endif
}
#endif

inline uint32_t load_word(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
}

// A format has blocks of `kParts` chunks in `kBytes`, and widens one chunk of a block.

struct F32 {
  static constexpr int64_t kParts = 1, kBytes = 4 * kChunk;
  static constexpr int kSize = 4;
  static void widen(const uint8_t* block, int, Vector* w) {
    for (int v = 0; v < kChunkVectors; ++v) w[v] = load(reinterpret_cast<const float*>(block) + v * kLanes);
  }
};

struct BF16 {
  static constexpr int64_t kParts = 1, kBytes = 2 * kChunk;
  static constexpr int kSize = 2;
  static void widen(const uint8_t* block, int, Vector* w) {
    for (int v = 0; v < kChunkVectors; ++v) w[v] = load(reinterpret_cast<const uint16_t*>(block) + v * kLanes);
  }
};

struct F16 {
  static constexpr int64_t kParts = 1, kBytes = 2 * kChunk;
  static constexpr int kSize = 2;
  static void widen(const uint8_t* block, int, Vector* w) {
    for (int v = 0; v < kChunkVectors; ++v) {
      const uint8_t* p = block + 2 * v * kLanes;
#if defined(__AVX512F__)
      w[v] = (Vector)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__) && defined(__F16C__)
      w[v] = (Vector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
      w[v] = (Vector)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
#else
      for (int i = 0; i < kLanes; ++i) w[v][i] = from_half(p + 2 * i);
#endif
    }
  }
};

struct Q4_0 {
  static constexpr int64_t kParts = 1, kBytes = 18;
  static constexpr int kSize = 0;
  static void widen(const uint8_t* block, int, Vector* w) {
    const Vector scale = Halves(block).first();
    const Line16 line(scale, scale * -8.0f);
    for (int v = 0; v < kChunkVectors; ++v) w[v] = line(nibbles16(block + 2, v));
  }
};

struct Q4_1 {
  static constexpr int64_t kParts = 1, kBytes = 20;
  static constexpr int kSize = 0;
  static void widen(const uint8_t* block, int, Vector* w) {
    const Halves halves(block);
    const Line16 line(halves.first(), halves.second());
    for (int v = 0; v < kChunkVectors; ++v) w[v] = line(nibbles16(block + 4, v));
  }
};

struct Q5_0 {
  static constexpr int64_t kParts = 1, kBytes = 22;
  static constexpr int kSize = 0;
  static void widen(const uint8_t* block, int, Vector* w) {
    const Vector scale = Halves(block).first();
    const Line32 line(scale, scale * -16.0f);
    const uint32_t fifths = load_word(block + 2);
    for (int v = 0; v < kChunkVectors; ++v) w[v] = line((nibbles16(block + 6, v) & 15) | fifths32(fifths, v));
  }
};

struct Q5_1 {
  static constexpr int64_t kParts = 1, kBytes = 24;
  static constexpr int kSize = 0;
  static void widen(const uint8_t* block, int, Vector* w) {
    const Halves halves(block);
    const Line32 line(halves.first(), halves.second());
    const uint32_t fifths = load_word(block + 4);
    for (int v = 0; v < kChunkVectors; ++v) w[v] = line((nibbles16(block + 8, v) & 15) | fifths32(fifths, v));
  }
};

struct Q8_0 {
  static constexpr int64_t kParts = 1, kBytes = 34;
  static constexpr int kSize = 0;
  static void widen(const uint8_t* block, int, Vector* w) {
    const Vector scale = Halves(block).first();
    for (int v = 0; v < kChunkVectors; ++v)
      w[v] = __builtin_convertvector(load_signed(block + 2 + v * kLanes), Vector) * scale;
  }
};

struct IQ4_NL {
  static constexpr int64_t kParts = 1, kBytes = 18;
  static constexpr int kSize = 0;
  static void widen(const uint8_t* block, int, Vector* w) {
    static const int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    const Vector scale = Halves(block).first();
#if defined(__AVX512F__)
    const Vector all = __builtin_convertvector(load_signed(reinterpret_cast<const uint8_t*>(values)), Vector);
    const Line16 line(all * scale);
    for (int v = 0; v < kChunkVectors; ++v) w[v] = line(nibbles16(block + 2, v));
#elif defined(__AVX2__)
    // Each half of the table by the lower three bits, and the half by the fourth.
    const auto half = [&](const int8_t* from) {
      return (__m256)(__builtin_convertvector(load_signed(reinterpret_cast<const uint8_t*>(from)), Vector) * scale);
    };
    const __m256 low = half(values), high = half(values + 8);
    for (int v = 0; v < kChunkVectors; ++v) {
      const __m256i q = (__m256i)nibbles16(block + 2, v);
      const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(q, 28));
      w[v] = (Vector)_mm256_blendv_ps(_mm256_permutevar8x32_ps(low, q), _mm256_permutevar8x32_ps(high, q), upper);
    }
#else
    for (int v = 0; v < kChunkVectors; ++v)
      w[v] = __builtin_convertvector(lookup(values, nibbles16(block + 2, v) & 15), Vector) * scale;
#endif
  }
};

// Scale and least of one chunk of a block of 256 with scales of 6 bits.
struct SixBits {
  float scale, least;
  SixBits(const uint8_t* block, int part) {
    const uint8_t* q = block + 4;
    int s, m;
    if (part < 4) {
      s = q[part] & 63;
      m = q[part + 4] & 63;
    } else {
      s = (q[part + 4] & 15) | (q[part - 4] >> 6) << 4;
      m = (q[part + 4] >> 4) | (q[part] >> 6) << 4;
    }
    scale = from_half(block) * static_cast<float>(s);
    least = -(from_half(block + 2) * static_cast<float>(m));
  }
};

struct Q4_K {
  static constexpr int64_t kParts = 8, kBytes = 144;
  static constexpr int kSize = 0;
  static void widen(const uint8_t* block, int part, Vector* w) {
    const SixBits bits(block, part);
    const Line16 line(spread(bits.scale), spread(bits.least));
    const uint8_t* q = block + 16 + part / 2 * 32;
    for (int v = 0; v < kChunkVectors; ++v) w[v] = line(load_bytes(q + v * kLanes) >> part % 2 * 4);
  }
};

struct Q5_K {
  static constexpr int64_t kParts = 8, kBytes = 176;
  static constexpr int kSize = 0;
  static void widen(const uint8_t* block, int part, Vector* w) {
    const SixBits bits(block, part);
    const Line32 line(spread(bits.scale), spread(bits.least));
    const uint8_t *fifths = block + 16, *q = block + 48 + part / 2 * 32;
    for (int v = 0; v < kChunkVectors; ++v) {
      const Integers low = load_bytes(q + v * kLanes) >> part % 2 * 4;
      const Integers high = load_bytes(fifths + v * kLanes) >> part << 4;
      w[v] = line((low & 15) | (high & 16));
    }
  }
};

struct Q6_K {
  static constexpr int64_t kParts = 8, kBytes = 210;
  static constexpr int kSize = 0;
  static void widen(const uint8_t* block, int part, Vector* w) {
    const int half = part / 4, quarter = part % 4;
    const uint8_t* low = block + 64 * half + quarter % 2 * 32;
    const uint8_t* high = block + 128 + 32 * half;
    const int8_t* scales = reinterpret_cast<const int8_t*>(block + 192) + 8 * half + 2 * quarter;
    const float scale = from_half(block + 208);
    for (int v = 0; v < kChunkVectors; ++v) {
      const int at = v * kLanes;
      const Integers q = (load_bytes(low + at) >> quarter / 2 * 4 & 15) | (load_bytes(high + at) >> 2 * quarter & 3) << 4;
      w[v] = __builtin_convertvector(q - 32, Vector) * (scale * static_cast<float>(scales[at / 16]));
    }
  }
};

// Calls `action` with a format by its number; false where it is not known.
template <class Action>
bool with_format(int64_t format, Action action) {
  switch (format) {
    case 0: action(F32()); return true;
    case 1: action(F16()); return true;
    case 2: action(Q4_0()); return true;
    case 3: action(Q4_1()); return true;
    case 6: action(Q5_0()); return true;
    case 7: action(Q5_1()); return true;
    case 8: action(Q8_0()); return true;
    case 12: action(Q4_K()); return true;
    case 13: action(Q5_K()); return true;
    case 14: action(Q6_K()); return true;
    case 20: action(IQ4_NL()); return true;
    case 30: action(BF16()); return true;
    default: return false;
  }
}
