// What threads share, and how memory and work are cut up.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "attention.h"
#include "crew.h"
#include "frame.h"
#include "products.h"

// Memory in whole cache lines; it is taken where it is written.
class Floats {
 public:
  Floats() = default;
  explicit Floats(int64_t count, bool is_zero = false) {
    const size_t bytes = (static_cast<size_t>(count) * 4 + 64 + 63) / 64 * 64;
    data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    if (is_zero) std::memset(data_.get(), 0, bytes);
  }
  operator float*() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float[], Free> data_;
};

// Sizes that are asked for often.
struct Sizes {
  int64_t hidden, queries, keys, mlp, vocab, head_dim, value_dim, group, slot_keys, slot_floats, max_outputs;
  int64_t joined;  // An embedding with its state, of a draft head; else 0

  Sizes(const Model& m, int64_t length)
      : hidden(m.hidden), queries(m.heads * m.head_dim), keys(m.kv_heads * m.head_dim), mlp(m.mlp), vocab(m.vocab),
        head_dim(m.head_dim), value_dim((m.head_dim + kGroup - 1) / kGroup * kGroup), group(m.heads / m.kv_heads),
        slot_keys(m.kv_heads * length * m.head_dim), slot_floats(slot_keys + m.kv_heads * length * value_dim),
        max_outputs(std::max({queries + 2 * keys, mlp, hidden})),
        joined(m.state_norm ? m.embedding.inputs + hidden : 0) {}
};

// What threads share.
struct Shared {
  Model model;
  std::vector<Layer> layers;
  Cache cache;
  Sizes sizes;
  Stages stages;
  Frame frame;
  Floats states;  // Of the frame's tokens, where these have some: [tokens, hidden], or those to condense in whole chunks
  std::atomic<int64_t> number{0};    // Of the frame; odd while it is written
  std::atomic<int64_t> progress{0};  // Ticket of the first stage of the last layer that was begun, and the thread
  std::vector<std::atomic<int64_t>> kept;  // By layer: ticket of a walk, and a thread that has its keys and values

  Shared(const Model& m, const Cache& c, int64_t threads)
      : model(m), layers(m.layer, m.layer + m.layers), cache(c), sizes(m, c.length), stages(threads),
        states(m.state_norm ? kMaxTokens * std::max(m.hidden, padded(m.fc.inputs)) : 0), kept(m.layers) {
    model.layer = layers.data();
    for (auto& entry : kept) entry = 0;
  }

  // A thread that comes late reads these while they are written for the next frame. As with all that it reads then, nobody
  // asks for what it makes of them; see `crew.h`.

  // Takes in the states of the frame's tokens.
  void take_states(const Step& step) {
    for (int64_t r = 0; r < frame.num_rows; ++r) {
      const Row& row = frame.rows[r];
      const float* from = step.hidden + (row.index * step.width + row.offset) * sizes.hidden;
      std::copy_n(from, row.count * sizes.hidden, states + row.first * sizes.hidden);
    }
  }

  // Takes in states to condense.
  void take_tapped(const float* tapped, int64_t count) {
    const int64_t size = model.fc.inputs, stride = padded(size);
    for (int64_t t = 0; t < count; ++t) {
      std::copy_n(tapped + t * size, size, states + t * stride);
      std::fill_n(states + t * stride + size, stride - size, 0.0f);
    }
  }

  const float* slot_keys(int64_t layer, int64_t slot, int64_t head) const {
    return cache.data + (layer * cache.slots + slot) * sizes.slot_floats + head * cache.length * sizes.head_dim;
  }
  const float* slot_values(int64_t layer, int64_t slot, int64_t head) const {
    return cache.data + (layer * cache.slots + slot) * sizes.slot_floats + sizes.slot_keys +
           head * cache.length * sizes.value_dim;
  }
};

// Some outputs of a stage for each of its pieces.
struct Split {
  int64_t outputs, per, pieces;

  Split(int64_t outputs, int64_t threads) : outputs(outputs) {
    const int64_t wanted = threads == 1 ? 1 : 6 * threads;
    per = std::max<int64_t>(16, (outputs / wanted + 15) / 16 * 16);
    per = std::max(per, (outputs / kMaxPieces / 16 + 1) * 16);
    pieces = (outputs + per - 1) / per;
  }
  int64_t first(int64_t piece) const { return piece * per; }
  int64_t last(int64_t piece) const { return std::min(outputs, (piece + 1) * per); }
};
