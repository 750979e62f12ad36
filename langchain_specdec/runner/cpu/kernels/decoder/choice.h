// What the target picks after a token: argmax of logit + temperature * gumbel(seed, position, token), and its best tokens.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../vectors.h"

// The most of the best tokens that can be asked for.
constexpr int64_t kMaxCandidates = 32;

// The 32-bit integer hash lowbias32 (C. Wellons, hash-prospector).
template <class Whole>
inline Whole mixed(Whole x) {
  x = x ^ (x >> 16);
  x = x * 0x7FEB352Du;
  x = x ^ (x >> 15);
  x = x * 0x846CA68Bu;
  return x ^ (x >> 16);
}

// The shared noise; `sampling/noise.py` says what it is of.
struct Noise {
  uint32_t low, high;

  Noise(const int32_t* seeds, int64_t at) {
    const uint32_t first = static_cast<uint32_t>(seeds[0]), second = static_cast<uint32_t>(seeds[1]);
    const uint32_t position = static_cast<uint32_t>(at);
    low = mixed(mixed(position + first) + second);
    high = mixed(mixed((position * 0x9E3779B1u) ^ second) + first);
  }

  // Of the tokens from `token` on.
  Vector operator()(int64_t token) const {
    const Bits tokens = (Bits)(counting() + static_cast<int32_t>(token));
    const Bits bits = mixed(mixed(tokens + low) ^ high);
    Vector v = (__builtin_convertvector((Integers)(bits & 0x7FFFFFFFu), Vector) + 0.5f) * 4.656612873077393e-10f;
    v = smaller(v, spread(1.0f - 5.9604644775390625e-8f));
    // log1p(-v): what rounding 1 - v loses is made up for by a factor (Goldberg 1991, theorem 4).
    const Vector rest = 1.0f - v, lost = 1.0f - rest;
    const Vector exact = lost == 0.0f ? v : -logarithm(rest) * (v / (lost == 0.0f ? spread(1.0f) : lost));
    return -logarithm(exact);
  }
};

struct Candidate {
  float logit;
  int32_t token;
};

// The best of some logits.
struct Best {
  float score = -std::numeric_limits<float>::infinity();  // With noise
  float logit = -std::numeric_limits<float>::infinity();
  int32_t token = -1;
  bool is_sound = true;  // No NaN is among them
  int64_t count = 0;
  Candidate candidates[kMaxCandidates];
  float sum = 0;  // Of e^(logit - best candidate's logit), where chances are wanted

  // Takes in a candidate, if it is better than the last of so many.
  void offer(Candidate candidate, int64_t most) {
    if (count == most && !(candidate.logit > candidates[count - 1].logit)) return;
    int64_t at = count < most ? count++ : count - 1;
    for (; at > 0 && candidates[at - 1].logit < candidate.logit; --at) candidates[at] = candidates[at - 1];
    candidates[at] = candidate;
  }

  // Takes in the best of later tokens.
  void merge(const Best& other, int64_t most) {
    is_sound = is_sound && other.is_sound;
    if (other.score > score) {
      score = other.score;
      logit = other.logit;
      token = other.token;
    }
    for (int64_t i = 0; i < other.count; ++i) offer(other.candidates[i], most);
  }
};

// e^x; libm's needs a newer system than packages are made for.
inline float power(float x) { return exponential(spread(x))[0]; }

// The sum of e^(logit - top), for logits that are no larger.
inline float sum_of_powers(const float* logits, int64_t count, float top) {
  Vector sums = {};
  int64_t at = 0;
  for (; at + kLanes <= count; at += kLanes) sums += exponential(load(logits + at) - top);
  float sum = sum_of(sums);
  for (; at < count; ++at) sum += power(logits[at] - top);
  return sum;
}

// A product that is rounded by itself, and not as part of the sum that takes it up: PyTorch does the same.
inline Vector rounded(Vector v) {
#if defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// Looks through logits of the tokens from `first` on.
inline void choose(const float* logits, int64_t count, int64_t first, float temperature, const int32_t* seeds,
                   int64_t position, int64_t candidates, Best& best) {
  const Noise noise = temperature > 0 ? Noise(seeds, position) : Noise((const int32_t[2]){0, 0}, 0);
  const auto look = [&](Vector logit, Vector score, int64_t at, int64_t lanes) {
    const Integers is_bad = logit != logit, is_better = score > best.score;
    const float least = best.count < candidates ? -std::numeric_limits<float>::infinity()
                        : candidates > 0       ? best.candidates[best.count - 1].logit
                                               : std::numeric_limits<float>::infinity();
    const Integers is_candidate = logit > least, any = is_bad | is_better | is_candidate;
    if (!any_of(any)) return;
    for (int64_t i = 0; i < lanes; ++i) {
      if (is_bad[i]) best.is_sound = false;
      if (score[i] > best.score) {
        best.score = score[i];
        best.logit = logit[i];
        best.token = static_cast<int32_t>(first + at + i);
      }
      if (is_candidate[i]) best.offer({logit[i], static_cast<int32_t>(first + at + i)}, candidates);
    }
  };
  for (int64_t at = 0; at < count; at += kLanes) {
    const int64_t lanes = std::min<int64_t>(kLanes, count - at);
    Vector logit = spread(-std::numeric_limits<float>::infinity());
    if (lanes == kLanes)
      logit = load(logits + at);
    else
      for (int64_t i = 0; i < lanes; ++i) logit[i] = logits[at + i];
    look(logit, temperature > 0 ? logit + rounded(temperature * noise(first + at)) : logit, at, lanes);
  }
}
