// Attention of a few tokens over what their slot holds and over each other, in float32.
//
// The tokens of a forward that share keys (those of a row, in all heads of a group) pass over them together. Keys are
// read in spans at fixed positions (Flash-Decoding, Dao et al. 2023): each has its own largest score, sum and output,
// which are joined in order of position. So a token's output depends neither on the tokens beside it nor on who computes
// what, bit by bit.
//
// Keys are kept in groups of 16 positions, number by number: then a score is one sum over the numbers of a head, for 16
// keys at a time, and no lane is idle however few queries there are.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "products.h"

constexpr int64_t kGroup = 16;   // Keys that stand number by number
constexpr int64_t kSpan = 256;   // Keys that are weighed together
constexpr int kGroupVectors = kGroup / kLanes;
// Queries of a unit of work, if a token has no more heads.
constexpr int64_t kMaxQueries = 24;
// What a score is where nothing is seen. Weights relative to a larger one are 0.
constexpr float kHidden = -std::numeric_limits<float>::max();

#if defined(__AVX512F__)
constexpr int kScoreGroups = 4, kScoreQueries = 5, kValueVectors = 4, kValueQueries = 6;
#elif defined(__AVX2__)
constexpr int kScoreGroups = 1, kScoreQueries = 6, kValueVectors = 2, kValueQueries = 6;
#else
constexpr int kScoreGroups = 1, kScoreQueries = 5, kValueVectors = 4, kValueQueries = 6;
#endif

// Queries that see the same keys: some tokens of a row, in the heads of a group.
struct Queries {
  int64_t count, head_dim, value_dim;  // value_dim: head_dim in whole groups
  const float* numbers;                // [count, head_dim], scaled
  float softcap;
};

// Where a row's keys and values stand.
struct Keys {
  const float* old_keys;    // [groups, head_dim, 16] in the cache
  const float* old_values;  // [positions, value_dim]
  const float* new_keys;    // [groups, head_dim, 16] from group start / 16 on
  const float* new_values;  // [tokens, new_stride]
  int64_t start;            // Positions that are old
  int64_t end;              // And all
  int64_t new_stride;

  const float* group(int64_t index, int64_t head_dim) const {
    const int64_t first = start / kGroup, size = head_dim * kGroup;
    return index < first ? old_keys + index * size : new_keys + (index - first) * size;
  }
};

// scores[q][key] for some queries and some groups of keys.
template <int queries, int groups>
void score_tile(const float* q, int64_t head_dim, const float* const* keys, float* scores) {
  constexpr int vectors = groups * kGroupVectors;
  Vector sums[queries][vectors] = {};
  for (int64_t d = 0; d < head_dim; ++d) {
    Vector k[vectors];
    for (int v = 0; v < vectors; ++v) k[v] = load(keys[v / kGroupVectors] + d * kGroup + v % kGroupVectors * kLanes);
    for (int i = 0; i < queries; ++i) {
      const float number = q[i * head_dim + d];
      for (int v = 0; v < vectors; ++v) sums[i][v] += number * k[v];
    }
  }
  for (int i = 0; i < queries; ++i)
    for (int v = 0; v < vectors; ++v) store(scores + i * kSpan + v * kLanes, sums[i][v]);
}

template <int groups, int most = kScoreQueries>
void score_queries(int64_t count, const float* q, int64_t head_dim, const float* const* keys, float* scores) {
  if constexpr (most > 1)
    if (count < most) return score_queries<groups, most - 1>(count, q, head_dim, keys, scores);
  for (; count >= most; count -= most, q += most * head_dim, scores += most * kSpan)
    score_tile<most, groups>(q, head_dim, keys, scores);
  if constexpr (most > 1)
    if (count > 0) score_queries<groups, most - 1>(count, q, head_dim, keys, scores);
}

// y[q][d] += sum over keys of weights[q][key] * values[key][d], key after key.
template <int queries, int vectors>
void value_tile(const float* weights, int64_t count, const float* values, int64_t stride, float* y, int64_t y_stride) {
  Vector sums[queries][vectors];
  for (int i = 0; i < queries; ++i)
    for (int v = 0; v < vectors; ++v) sums[i][v] = load(y + i * y_stride + v * kLanes);
  for (int64_t key = 0; key < count; ++key, values += stride) {
    Vector numbers[vectors];
    for (int v = 0; v < vectors; ++v) numbers[v] = load(values + v * kLanes);
    for (int i = 0; i < queries; ++i) {
      const float weight = weights[i * kSpan + key];
      for (int v = 0; v < vectors; ++v) sums[i][v] += weight * numbers[v];
    }
  }
  for (int i = 0; i < queries; ++i)
    for (int v = 0; v < vectors; ++v) store(y + i * y_stride + v * kLanes, sums[i][v]);
}

template <int vectors, int most = kValueQueries>
void value_queries(int64_t queries, const float* weights, int64_t count, const float* values, int64_t stride, float* y,
                   int64_t y_stride) {
  if constexpr (most > 1)
    if (queries < most)
      return value_queries<vectors, most - 1>(queries, weights, count, values, stride, y, y_stride);
  for (; queries >= most; queries -= most, weights += most * kSpan, y += most * y_stride)
    value_tile<most, vectors>(weights, count, values, stride, y, y_stride);
  if constexpr (most > 1)
    if (queries > 0) value_queries<vectors, most - 1>(queries, weights, count, values, stride, y, y_stride);
}

inline void add_values(const Queries& q, const float* weights, int64_t count, const float* values, int64_t stride,
                       float* y, int64_t y_stride) {
  int64_t d = 0;
  for (; d + kValueVectors * kLanes <= q.value_dim; d += kValueVectors * kLanes)
    value_queries<kValueVectors>(q.count, weights, count, values + d, stride, y + d, y_stride);
  for (; d < q.value_dim; d += kLanes) value_queries<1>(q.count, weights, count, values + d, stride, y + d, y_stride);
}

inline Vector hyperbolic_tangent(Vector x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

// One span's part of the outputs: [queries, 2 + value_dim], largest score, sum of weights, weighted values.
// `hide(scores, first, last)` writes kHidden over what is not seen of keys first to last. `scores` is [queries, kSpan].
template <class Hide>
void span_part(const Queries& q, const Keys& keys, int64_t span, Hide hide, float* scores, float* part) {
  const int64_t first = span * kSpan, last = std::min(first + kSpan, keys.end);
  const int64_t groups = (last - first + kGroup - 1) / kGroup, stride = 2 + q.value_dim;
  int64_t g = 0;
  const float* pointers[kScoreGroups];
  for (; g + kScoreGroups <= groups; g += kScoreGroups) {
    for (int i = 0; i < kScoreGroups; ++i) pointers[i] = keys.group(first / kGroup + g + i, q.head_dim);
    score_queries<kScoreGroups>(q.count, q.numbers, q.head_dim, pointers, scores + g * kGroup);
  }
  for (; g < groups; ++g) {
    pointers[0] = keys.group(first / kGroup + g, q.head_dim);
    score_queries<1>(q.count, q.numbers, q.head_dim, pointers, scores + g * kGroup);
  }
  const int64_t width = groups * kGroup;
  if (q.softcap > 0)
    for (int64_t i = 0; i < q.count; ++i)
      for (int64_t j = 0; j < width; j += kLanes) {
        float* at = scores + i * kSpan + j;
        store(at, hyperbolic_tangent(load(at) / q.softcap) * q.softcap);
      }
  for (int64_t i = 0; i < q.count; ++i)
    for (int64_t j = last - first; j < width; ++j) scores[i * kSpan + j] = kHidden;
  hide(scores, first, last);
  for (int64_t i = 0; i < q.count; ++i) {
    float* row = scores + i * kSpan;
    Vector top = load(row);
    for (int64_t j = kLanes; j < width; j += kLanes) top = larger(top, load(row + j));
    const float most = largest_of(top);
    Vector sum = {};
    for (int64_t j = 0; j < width; j += kLanes) {
      const Vector weight = exponential(load(row + j) - most);
      store(row + j, weight);
      sum += weight;
    }
    part[i * stride] = most;
    part[i * stride + 1] = sum_of(sum);
    std::fill_n(part + i * stride + 2, q.value_dim, 0.0f);
  }
  const int64_t old = std::max<int64_t>(std::min(last, keys.start) - first, 0);
  add_values(q, scores, old, keys.old_values + first * q.value_dim, q.value_dim, part + 2, stride);
  const int64_t fresh = std::max(first, keys.start);
  if (fresh < last)
    add_values(q, scores + (fresh - first), last - fresh, keys.new_values + (fresh - keys.start) * keys.new_stride,
               keys.new_stride, part + 2, stride);
}

// One query's output of all spans: parts [spans], `distance` numbers from one to the next.
inline void join(const float* parts, int64_t spans, int64_t distance, int64_t value_dim, int64_t head_dim,
                 float* output, float* whole) {
  float top = parts[0];
  for (int64_t s = 1; s < spans; ++s) top = std::max(top, parts[s * distance]);
  float sum = 0;
  std::fill_n(whole, value_dim, 0.0f);
  for (int64_t s = 0; s < spans; ++s) {
    const float* part = parts + s * distance;
    const float factor = exponential(spread(part[0] - top))[0];
    sum += factor * part[1];
    for (int64_t d = 0; d < value_dim; d += kLanes)
      store(whole + d, load(whole + d) + factor * load(part + 2 + d));
  }
  for (int64_t d = 0; d < value_dim; d += kLanes) store(whole + d, load(whole + d) / sum);
  std::copy_n(whole, head_dim, output);
}
