// What is done to the numbers of a token by themselves: norms, biases, turns by its position, activations.
#pragma once

#include <cmath>

#include "attention.h"
#include "decoder.h"

inline void rms_norm(const float* x, const float* weight, int64_t count, float eps, float* y) {
  Vector squares = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) squares += load(x + i) * load(x + i);
  float sum = sum_of(squares);
  for (; i < count; ++i) sum += x[i] * x[i];
  const float factor = 1.0f / std::sqrt(sum / static_cast<float>(count) + eps);
  for (i = 0; i + kLanes <= count; i += kLanes) store(y + i, load(x + i) * factor * load(weight + i));
  for (; i < count; ++i) y[i] = x[i] * factor * weight[i];
}

inline void add_bias(float* x, const float* bias, int64_t count) {
  if (bias)
    for (int64_t i = 0; i < count; ++i) x[i] += bias[i];
}

// Turns a head by its position; `half` pairs of its numbers turn, neighbours or those that stand so far apart.
inline void rotate(float* x, const float* cosines, const float* sines, int64_t half, bool are_neighbours) {
  if (are_neighbours) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cosines[i] - b * sines[i];
      x[2 * i + 1] = b * cosines[i] + a * sines[i];
    }
    return;
  }
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cosines[i] - b * sines[i];
    x[i + half] = b * cosines[i] + a * sines[i];
  }
}

inline Vector activated(int64_t activation, Vector x) {
  switch (activation) {
    case kGeluTanh:
      return 0.5f * x * (1.0f + hyperbolic_tangent(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case kGelu:
      for (int i = 0; i < kLanes; ++i) x[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.7071067811865476f));
      return x;
    default:
      return x / (1.0f + exponential(-x));
  }
}
