// How a layer's attention is cut into units of work, and what one of them does.
#pragma once

#include "memory.h"

// Some tokens of a row in the heads of a group, and where their spans' parts begin.
struct Unit {
  int64_t row, head, first, count, begin, spans, part;
};

// One thread's attention: queries, keys and values of its frame's tokens, over what their slots hold.
class Units {
 public:
  Units(const Shared& shared, const Frame& frame) : shared_(shared), s_(shared.sizes), frame_(frame) {}

  // Cuts up a layer's attention.
  //   queries: [tokens, stride], turned and scaled, heads one after the other
  //   keys, values: [tokens, kv_heads * head_dim], of the new tokens
  void plan(const Layer& layer, int64_t index, const float* queries, int64_t stride, const float* keys,
            const float* values, int64_t threads) {
    layer_ = &layer;
    index_ = index;
    turned_ = queries;
    stride_ = stride;
    keys_ = keys;
    values_ = values;
    units_.clear();
    num_spans_ = 0;
    const int64_t most = std::max<int64_t>(1, kMaxQueries / s_.group);
    int64_t parts = 0;
    for (int64_t r = 0; r < frame_.num_rows; ++r) {
      const Row& row = frame_.rows[r];
      for (int64_t first = 0; first < row.count; first += most) {
        Unit unit = {r, 0, first, std::min(most, row.count - first), 0, 0, 0};
        const int64_t end = row.start + (row.is_chain ? first + unit.count : row.count);
        if (layer.window > 0) unit.begin = std::max<int64_t>(0, least_position(row, unit) - layer.window + 1) / kSpan;
        unit.spans = (end + kSpan - 1) / kSpan - unit.begin;
        for (unit.head = 0; unit.head < shared_.model.kv_heads; ++unit.head) {
          unit.part = parts;
          parts += unit.spans * part_size(unit);
          num_spans_ += unit.spans;
          units_.push_back(unit);
        }
      }
    }
    const int64_t units = static_cast<int64_t>(units_.size());
    // Few units are cut up by spans, whose parts every thread joins.
    is_cut_ = threads > 1 && units < 4 * threads && parts <= kMaxTokens * s_.max_outputs && num_spans_ > units;
    const int64_t total = is_cut_ ? num_spans_ : units, wanted = std::min(kMaxPieces, is_cut_ ? 8 * threads : units);
    per_ = (total + wanted - 1) / wanted;
    pieces_ = (total + per_ - 1) / per_;
  }

  int64_t pieces() const { return pieces_; }

  // Computes a piece: parts of spans, or whole outputs [tokens, heads * head_dim].
  void run(int64_t piece, float* outputs) {
    const int64_t first = piece * per_, last = std::min(is_cut_ ? num_spans_ : count(), first + per_);
    if (!is_cut_) {
      for (int64_t u = first; u < last; ++u) {
        const Unit& unit = units_[u];
        float* parts = room(parts_, unit.spans * part_size(unit));
        spans_of(unit, 0, unit.spans, parts);
        join_unit(unit, parts, outputs, s_.queries);
      }
      return;
    }
    int64_t entry = 0;
    for (const Unit& unit : units_) {
      const int64_t from = std::max(first, entry), to = std::min(last, entry + unit.spans);
      if (from < to) spans_of(unit, from - entry, to - entry, outputs + unit.part);
      entry += unit.spans;
    }
  }

  // Puts all pieces together, to [tokens, stride]. `outputs_of(piece)` is what `run` was given for it.
  template <class OutputsOf>
  void gather(OutputsOf outputs_of, float* attended, int64_t stride) {
    int64_t entry = 0;
    for (int64_t u = 0; u < count(); ++u) {
      const Unit& unit = units_[u];
      if (is_cut_) {
        const int64_t size = part_size(unit);
        float* parts = room(parts_, unit.spans * size);
        for (int64_t s = 0; s < unit.spans; ++s, ++entry)
          std::copy_n(outputs_of(entry / per_) + unit.part + s * size, size, parts + s * size);
        join_unit(unit, parts, attended, stride);
        continue;
      }
      const float* from = outputs_of(u / per_);
      for (int64_t i = 0; i < unit.count; ++i) {
        const int64_t t = frame_.rows[unit.row].first + unit.first + i, at = unit.head * s_.group * s_.head_dim;
        std::copy_n(from + t * s_.queries + at, s_.group * s_.head_dim, attended + t * stride + at);
      }
    }
  }

 private:
  int64_t count() const { return static_cast<int64_t>(units_.size()); }
  int64_t part_size(const Unit& unit) const { return unit.count * s_.group * (2 + s_.value_dim); }

  // At least so many numbers, in whole cache lines.
  static float* room(std::vector<float>& numbers, int64_t count) {
    numbers.resize(std::max<size_t>(numbers.size(), count + 16));
    return numbers.data() + (16 - reinterpret_cast<uintptr_t>(numbers.data()) / 4 % 16) % 16;
  }

  int64_t least_position(const Row& row, const Unit& unit) const {
    int64_t least = frame_.tokens[row.first + unit.first].position;
    for (int64_t i = 1; i < unit.count; ++i)
      least = std::min(least, frame_.tokens[row.first + unit.first + i].position);
    return least;
  }

  void join_unit(const Unit& unit, const float* parts, float* outputs, int64_t stride) {
    const int64_t queries = unit.count * s_.group, part = 2 + s_.value_dim;
    float* whole = room(whole_, s_.value_dim);
    for (int64_t q = 0; q < queries; ++q) {
      const int64_t t = frame_.rows[unit.row].first + unit.first + q / s_.group;
      const int64_t head = unit.head * s_.group + q % s_.group;
      join(parts + q * part, unit.spans, queries * part, s_.value_dim, s_.head_dim,
           outputs + t * stride + head * s_.head_dim, whole);
    }
  }

  void spans_of(const Unit& unit, int64_t from, int64_t to, float* parts) {
    const Row& row = frame_.rows[unit.row];
    const int64_t queries = unit.count * s_.group, dim = s_.head_dim;
    float* numbers = room(queries_, queries * dim);
    for (int64_t q = 0; q < queries; ++q)
      std::copy_n(turned_ + (row.first + unit.first + q / s_.group) * stride_ + (unit.head * s_.group + q % s_.group) * dim,
                  dim, numbers + q * dim);
    Keys keys;
    keys.old_keys = shared_.slot_keys(index_, row.slot, unit.head);
    keys.old_values = shared_.slot_values(index_, row.slot, unit.head);
    keys.start = row.start;
    keys.end = row.start + (row.is_chain ? unit.first + unit.count : row.count);
    keys.new_stride = s_.keys;
    keys.new_keys = nullptr;
    keys.new_values = values_ + row.first * s_.keys + unit.head * dim;
    if ((unit.begin + to) * kSpan > row.start) keys.new_keys = grouped_keys(row, unit, keys);
    const Queries q = {queries, dim, s_.value_dim, numbers, shared_.model.attention_softcap};
    const auto hide = [&](float* scores, int64_t first, int64_t last) { mask(row, unit, scores, first, last); };
    float* scores = room(scores_, queries * kSpan);
    for (int64_t s = from; s < to; ++s)
      span_part(q, keys, unit.begin + s, hide, scores, parts + s * queries * (2 + s_.value_dim));
  }

  // New keys in groups, the first of them with the old ones that it begins with.
  const float* grouped_keys(const Row& row, const Unit& unit, const Keys& keys) {
    const int64_t dim = s_.head_dim, begin = row.start / kGroup, size = dim * kGroup;
    float* to = room(grouped_, ((keys.end + kGroup - 1) / kGroup - begin) * size);
    if (row.start % kGroup) std::copy_n(keys.old_keys + begin * size, size, to);
    const float* from = keys_ + row.first * s_.keys + unit.head * dim;
    for (int64_t i = 0; i < keys.end - row.start; ++i, from += s_.keys) {
      const int64_t at = row.start + i - begin * kGroup;
      float* group = to + at / kGroup * size + at % kGroup;
      for (int64_t d = 0; d < dim; ++d) group[d * kGroup] = from[d];
    }
    return to;
  }

  // Hides those of the keys first to last that a unit's tokens do not see.
  void mask(const Row& row, const Unit& unit, float* scores, int64_t first, int64_t last) const {
    for (int64_t i = 0; i < unit.count; ++i) {
      const int64_t token = row.first + unit.first + i, position = frame_.tokens[token].position;
      float* rows = scores + i * s_.group * kSpan;
      const auto hide = [&](int64_t key) {
        for (int64_t g = 0; g < s_.group; ++g) rows[g * kSpan + key - first] = kHidden;
      };
      const int64_t least = layer_->window > 0 ? position - layer_->window + 1 : 0;
      for (int64_t key = first; key < std::min({last, least, row.start}); ++key) hide(key);
      for (int64_t key = std::max(first, row.start); key < last; ++key) {
        const int64_t other = key - row.start;
        if (!frame_.sees(token, other) || frame_.tokens[row.first + other].position < least) hide(key);
      }
    }
  }

  const Shared& shared_;
  const Sizes& s_;
  const Frame& frame_;
  const Layer* layer_ = nullptr;
  int64_t index_ = 0, stride_ = 0, num_spans_ = 0, per_ = 1, pieces_ = 0;
  bool is_cut_ = false;
  const float *turned_ = nullptr, *keys_ = nullptr, *values_ = nullptr;
  std::vector<Unit> units_;
  std::vector<float> parts_, whole_, queries_, scores_, grouped_;
};
