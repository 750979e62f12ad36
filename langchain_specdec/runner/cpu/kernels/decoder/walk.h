// One thread's way through the layers.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "choice.h"
#include "tokens.h"
#include "units.h"

class Walk;
using Walks = std::vector<std::unique_ptr<Walk>>;

constexpr int64_t kStages = 5;  // Of a layer

class Walk {
 public:
  Walk(Shared& shared, const Walks& walks, int64_t index, int64_t threads)
      : shared_(shared), s_(shared.sizes), walks_(walks), index_(index), threads_(threads), units_(shared, frame_) {
    constexpr int64_t tokens = kMaxTokens;
    for (auto& hidden : hidden_) hidden = Floats(tokens * padded(s_.hidden));
    for (auto& out : out_) out = Floats(tokens * s_.max_outputs);
    normed_ = Floats(tokens * padded(s_.hidden), true);
    attended_ = Floats(tokens * padded(s_.queries), true);
    active_ = Floats(tokens * padded(s_.mlp), true);
    joined_ = Floats(tokens * padded(s_.joined), true);
    merged_ = Floats(tokens * s_.max_outputs);
    new_keys_ = Floats(shared.model.layers * tokens * s_.keys + s_.value_dim);
    new_values_ = Floats(shared.model.layers * tokens * s_.keys + s_.value_dim);
    logits_ = Floats(tokens * s_.vocab);
    tapped_ = Floats(kMaxTaps * tokens * padded(s_.hidden));
    bests_.reset(new Best[head_split().pieces * tokens]);
  }

  // Takes part in the latest walk, unless it has before.
  void join() {
    const int64_t number = shared_.number.load();
    if (number % 2 || number == joined_number_) return;  // One that is being written is begun only then
    joined_number_ = number;
    run(number);
  }

  // Takes part in the walk of a number, until it is over.
  void run(int64_t number) {
    frame_.take(shared_.frame);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (shared_.number.load() != number) return;
    if (frame_.condenses) return condense();
    const int64_t layers = shared_.model.layers;
    const bool is_late = shared_.progress.load() >> 8 > frame_.ticket;
    if (!is_late) embed();
    for (int64_t layer = is_late ? rejoined(0) : 0; 0 <= layer && layer <= layers;) {
      if (frame_.num_logits == 0 && layer == layers) return;
      if (layer == layers ? head() : run_layer(layer))
        ++layer;
      else
        layer = rejoined(layer);
    }
  }

  // Of the calling thread, after its `run`.

  // Writes keys and values of the walk into the cache.
  void commit() {
    for (int64_t layer = 0; layer < shared_.model.layers; ++layer) {
      const Walk& walk = *walks_[shared_.kept[layer].load() & 255];
      const float *keys = walk.keys_of(layer), *values = walk.values_of(layer);
      for (int64_t r = 0; r < frame_.num_rows; ++r) {
        const Row& row = frame_.rows[r];
        for (int64_t head = 0; head < shared_.model.kv_heads; ++head) {
          float* to_keys = const_cast<float*>(shared_.slot_keys(layer, row.slot, head));
          float* to_values = const_cast<float*>(shared_.slot_values(layer, row.slot, head));
          for (int64_t i = 0; i < row.count; ++i) {
            const int64_t at = row.start + i, from = (row.first + i) * s_.keys + head * s_.head_dim;
            float* group = to_keys + at / kGroup * kGroup * s_.head_dim + at % kGroup;
            for (int64_t d = 0; d < s_.head_dim; ++d) group[d * kGroup] = keys[from + d];
            std::copy_n(values + from, s_.head_dim, to_values + at * s_.value_dim);
          }
        }
      }
    }
  }

  // Writes what was condensed.
  void hand_out_condensed(float* to) const { std::copy_n(merged_ + 0, tokens() * s_.hidden, to); }

  // Writes the states that were wanted.
  void hand_out(const Step& step) const {
    const int64_t layers = shared_.model.layers, stride = padded(s_.hidden);
    for (int64_t tap = 0; tap < frame_.taps; ++tap) {
      const int64_t point = frame_.points[tap];
      const Walk& walk = *walks_[point < layers ? shared_.kept[point].load() & 255 : index_];
      for (int64_t r = 0; r < frame_.num_rows; ++r) {
        const Row& row = frame_.rows[r];
        for (int64_t i = 0; i < row.count; ++i) {
          float* to = step.states + ((row.index * step.width + row.offset + i) * step.taps + tap) * s_.hidden;
          // The calling thread ends every walk, so it has what the last layer gave.
          if (point == layers)
            norm(hidden_[layers % 4] + (row.first + i) * stride, shared_.model.final_norm, s_.hidden, to);
          else if (point > layers)
            std::copy_n(hidden_[layers % 4] + (row.first + i) * stride, s_.hidden, to);
          else
            std::copy_n(walk.tapped_of(tap) + (row.first + i) * stride, s_.hidden, to);
        }
      }
    }
  }

  // Writes what was chosen, and the logits that were wanted.
  void answer(const Step& step) {
    const Split split = head_split();
    const int64_t ticket = frame_.ticket + kStages * shared_.model.layers;
    for (int64_t l = 0; l < frame_.num_logits; ++l) {
      const Token& token = frame_.tokens[frame_.logits[l]];
      const Row& row = frame_.rows[token.row];
      const int64_t node = row.offset + frame_.logits[l] - row.first, entry = row.index * step.width + node;
      Best best;
      for (int64_t piece = 0; piece < split.pieces; ++piece) {
        const Walk& walk = *walks_[shared_.stages.owner(ticket, piece)];
        if (step.picks) best.merge(walk.bests_[piece * kMaxTokens + l], frame_.candidates);
        if (step.logits)
          std::copy_n(walk.logits_ + l * s_.vocab + split.first(piece), split.last(piece) - split.first(piece),
                      step.logits + entry * s_.vocab + split.first(piece));
      }
      if (!step.picks) continue;
      const bool is_sound = best.is_sound && std::isfinite(best.logit) && best.token >= 0;
      step.picks[entry] = is_sound ? best.token : -1;
      if (step.scores) step.scores[entry] = best.logit;
      if (step.chances)
        for (int64_t piece = 0; piece < split.pieces; ++piece) {
          const Best& part = walks_[shared_.stages.owner(ticket, piece)]->bests_[piece * kMaxTokens + l];
          if (part.count > 0) best.sum += part.sum * power(part.candidates[0].logit - best.candidates[0].logit);
        }
      for (int64_t c = 0; c < frame_.candidates; ++c) {
        const int64_t to = (c * step.rows + row.index) * step.width + node;
        step.best[to] = c < best.count ? best.candidates[c].token : 0;
        if (!step.chances) continue;
        const float of = c < best.count ? power(best.candidates[c].logit - best.candidates[0].logit) : 0.0f;
        step.chances[to] = is_sound ? of / best.sum : std::numeric_limits<float>::quiet_NaN();
      }
    }
  }

 private:
  static constexpr int64_t kMaxHeadPieces = 64;

  float* keys_of(int64_t layer) const { return new_keys_ + layer * kMaxTokens * s_.keys; }
  float* values_of(int64_t layer) const { return new_values_ + layer * kMaxTokens * s_.keys; }
  float* tapped_of(int64_t tap) const { return tapped_ + tap * kMaxTokens * padded(s_.hidden); }
  float* out(int64_t ticket) const { return out_[ticket % kRing]; }
  int64_t tokens() const { return frame_.num_tokens; }

  Split head_split() const {
    Split split(s_.vocab, threads_);
    split.per = std::max(split.per, (s_.vocab / kMaxHeadPieces / 16 + 1) * 16);
    split.pieces = (s_.vocab + split.per - 1) / split.per;
    return split;
  }

  void condense() {
    const Matrix& fc = shared_.model.fc;
    stage(frame_.ticket, Split(s_.hidden, threads_), [&](int64_t first, int64_t last, float* y) {
      products({&fc}, first, last, shared_.states, padded(fc.inputs), y, s_.hidden);
    });
  }

  // Input of the first layer. That of a draft head goes to `joined_`, and what it adds to is its state.
  void embed() {
    const Model& m = shared_.model;
    const int64_t size = m.embedding.inputs;
    for (int64_t t = 0; t < tokens(); ++t) {
      float *hidden = hidden_[0] + t * padded(s_.hidden), *row = s_.joined ? joined_ + t * padded(s_.joined) : hidden;
      with_format(m.embedding.format, [&](auto format) {
        widen_row<decltype(format)>(m.embedding.data + frame_.tokens[t].id * m.embedding.row_bytes, size, row);
      });
      if (m.embedding_scale != 1.0f)
        for (int64_t i = 0; i < size; ++i) row[i] *= m.embedding_scale;
      if (!s_.joined) continue;
      const float* state = shared_.states + t * s_.hidden;
      norm(row, shared_.layers[0].attention_norm, size, row);
      norm(state, m.state_norm, s_.hidden, row + size);
      std::copy_n(m.has_normed_residual ? row + size : state, s_.hidden, hidden);
    }
  }

  // Whether anything is made of what the last layer gives.
  bool is_output_read() const {
    const auto is_of_output = [&](int64_t point) { return point >= shared_.model.layers; };
    return frame_.num_logits > 0 || std::any_of(frame_.points, frame_.points + frame_.taps, is_of_output);
  }

  // Where the others are: the layer that the last of them began, with its input. -1 where all is over.
  int64_t rejoined(int64_t layer) {
    const int64_t begin = frame_.ticket, end = begin + kStages * shared_.model.layers;
    while (true) {
      const int64_t seen = shared_.progress.load(), ticket = seen >> 8;
      if (ticket < begin || ticket > end || shared_.number.load() != frame_.number) return -1;
      const int64_t further = (ticket - begin) / kStages;
      if (further < layer) return -1;
      if (further > layer || ticket > begin) {
        const int64_t from = seen & 255, slot = further % 4;
        if (from != index_) std::copy_n(walks_[from]->hidden_[slot] + 0, tokens() * padded(s_.hidden), hidden_[slot] + 0);
        std::atomic_thread_fence(std::memory_order_seq_cst);
        if (shared_.progress.load() >> 8 <= ticket + 2 * kStages) return further;
      }
      relax();
    }
  }

  // Says where this thread is, for others to join it.
  void publish(int64_t ticket) { raise(shared_.progress, ticket << 8 | index_); }

  // A stage with outputs [tokens, outputs], of which every piece computes some; they come to `merged_`.
  template <class Run>
  bool stage(int64_t ticket, const Split& split, Run run) {
    if (!shared_.stages.share(ticket, split.pieces, index_, [&](int64_t piece) {
          run(split.first(piece), split.last(piece), out(ticket) + split.first(piece));
        }))
      return false;
    for (int64_t piece = 0; piece < split.pieces; ++piece) {
      const int64_t first = split.first(piece), count = split.last(piece) - first;
      const float* from = walks_[shared_.stages.owner(ticket, piece)]->out(ticket) + first;
      for (int64_t t = 0; t < tokens(); ++t) std::copy_n(from + t * split.outputs, count, merged_ + t * split.outputs + first);
    }
    return shared_.stages.is_intact(ticket);
  }

  // y[t][..] = x W^T for outputs first to last of several matrices, one after the other.
  void products(std::initializer_list<const Matrix*> matrices, int64_t first, int64_t last, const float* x,
                int64_t x_stride, float* y, int64_t y_stride) const {
    int64_t begin = 0;
    for (const Matrix* matrix : matrices) {
      const int64_t from = std::max(first, begin), to = std::min(last, begin + matrix->outputs);
      if (from < to) product(*matrix, from - begin, to - begin, tokens(), x, x_stride, y + (from - first), y_stride);
      begin += matrix->outputs;
    }
  }

  void norm(const float* x, const float* weight, int64_t count, float* y) const {
    rms_norm(x, weight, count, shared_.model.norm_eps, y);
  }

  // The input of a layer's half, `normed_`.
  void norm_all(const float* hidden, const float* weight) {
    const int64_t stride = padded(s_.hidden);
    for (int64_t t = 0; t < tokens(); ++t) norm(hidden + t * stride, weight, s_.hidden, normed_ + t * stride);
  }

  // next = hidden + merged_, with what a family does to it before.
  void add(const float* hidden, const float* bias, const float* post_norm, float* next) {
    const float scale = shared_.model.residual_scale;
    for (int64_t t = 0; t < tokens(); ++t) {
      float* change = merged_ + t * s_.hidden;
      if (bias)
        for (int64_t i = 0; i < s_.hidden; ++i) change[i] += bias[i];
      if (post_norm) norm(change, post_norm, s_.hidden, change);
      const float* from = hidden + t * padded(s_.hidden);
      float* to = next + t * padded(s_.hidden);
      for (int64_t i = 0; i < s_.hidden; ++i) to[i] = from[i] + (scale == 1.0f ? change[i] : change[i] * scale);
    }
  }

  bool run_layer(int64_t index) {
    const Layer& layer = shared_.layers[index];
    const int64_t ticket = frame_.ticket + kStages * index, stride = padded(s_.hidden);
    float *hidden = hidden_[index % 4], *next = hidden_[(index + 1) % 4];
    publish(ticket);
    for (int64_t tap = 0; tap < frame_.taps; ++tap)
      if (frame_.points[tap] == index) std::copy_n(hidden + 0, tokens() * stride, tapped_of(tap));
    const bool is_joined = index == 0 && s_.joined;
    if (!is_joined) norm_all(hidden, layer.attention_norm);
    const float* inputs = is_joined ? joined_ : normed_;
    // Of a last layer that nothing is made of, keys and values are all that is wanted.
    const int64_t queries = index + 1 < shared_.model.layers || is_output_read() ? s_.queries : 0;
    const int64_t width = queries + 2 * s_.keys, skipped = s_.queries - queries;
    if (!stage(ticket, Split(width, threads_), [&](int64_t first, int64_t last, float* y) {
          products({&layer.query, &layer.key, &layer.value}, first + skipped, last + skipped, inputs,
                   is_joined ? padded(s_.joined) : stride, y, width);
        }))
      return false;
    turn(layer, index, queries);
    if (queries == 0) return true;
    if (!attend(layer, index, ticket + 1)) return false;
    if (!stage(ticket + 2, Split(s_.hidden, threads_), [&](int64_t first, int64_t last, float* y) {
          products({&layer.output}, first, last, attended_, padded(s_.queries), y, s_.hidden);
        }))
      return false;
    add(hidden, layer.output_bias, layer.post_attention_norm, next);
    norm_all(next, layer.mlp_norm);
    if (!stage(ticket + 3, Split(s_.mlp, threads_), [&](int64_t first, int64_t last, float* y) {
          gate(layer, first, last, y);
        }))
      return false;
    for (int64_t t = 0; t < tokens(); ++t) std::copy_n(merged_ + t * s_.mlp, s_.mlp, active_ + t * padded(s_.mlp));
    if (!stage(ticket + 4, Split(s_.hidden, threads_), [&](int64_t first, int64_t last, float* y) {
          products({&layer.down}, first, last, active_, padded(s_.mlp), y, s_.hidden);
        }))
      return false;
    add(next, nullptr, layer.post_mlp_norm, next);
    return true;
  }

  // act(gate x) * (up x), for some outputs.
  void gate(const Layer& layer, int64_t first, int64_t last, float* y) {
    const int64_t count = last - first, stride = padded(s_.hidden);
    up_.resize(tokens() * count);
    products({&layer.gate}, first, last, normed_, stride, y, s_.mlp);
    products({&layer.up}, first, last, normed_, stride, up_.data(), count);
    for (int64_t t = 0; t < tokens(); ++t) {
      float* g = y + t * s_.mlp;
      const float* u = up_.data() + t * count;
      int64_t i = 0;
      const int64_t kind = shared_.model.activation;
      for (; i + kLanes <= count; i += kLanes) store(g + i, activated(kind, load(g + i)) * load(u + i));
      if (i < count) {
        float rest[kLanes] = {};
        std::copy_n(g + i, count - i, rest);
        store(rest, activated(kind, load(rest)));
        for (int64_t j = i; j < count; ++j) g[j] = rest[j - i] * u[j];
      }
    }
  }

  // Queries, if any, and keys as positions turn them, from `merged_`; keys and values stay for the cache.
  void turn(const Layer& layer, int64_t index, int64_t queries) {
    const Model& m = shared_.model;
    const int64_t width = queries + 2 * s_.keys, query_heads = queries ? m.heads : 0;
    float *keys = keys_of(index), *values = values_of(index);
    for (int64_t t = 0; t < tokens(); ++t) {
      float* row = merged_ + t * width;
      add_bias(row, layer.query_bias, queries);
      add_bias(row + queries, layer.key_bias, s_.keys);
      add_bias(row + queries + s_.keys, layer.value_bias, s_.keys);
      const int64_t position = std::min(frame_.tokens[t].position, m.positions - 1);
      for (int64_t head = 0; head < query_heads + m.kv_heads; ++head) {
        float* x = row + head * s_.head_dim;
        const bool is_query = head < query_heads;
        if (const float* weight = is_query ? layer.query_norm : layer.key_norm) norm(x, weight, s_.head_dim, x);
        if (layer.rotary >= 0) {
          const int64_t half = m.rotary_dim / 2;
          rotate(x, m.cosines[layer.rotary] + position * half, m.sines[layer.rotary] + position * half, half,
                 m.rotary_pairs != 0);
        }
        if (is_query)
          for (int64_t d = 0; d < s_.head_dim; ++d) x[d] *= m.attention_scale;
      }
      std::copy_n(row + queries, s_.keys, keys + t * s_.keys);
      std::copy_n(row + queries + s_.keys, s_.keys, values + t * s_.keys);
    }
    int64_t seen = shared_.kept[index].load();
    const int64_t mine = frame_.ticket << 8 | index_;
    while (seen >> 8 < frame_.ticket && !shared_.kept[index].compare_exchange_weak(seen, mine)) {}
  }

  // Attention, to `attended_`.
  bool attend(const Layer& layer, int64_t index, int64_t ticket) {
    units_.plan(layer, index, merged_, s_.queries + 2 * s_.keys, keys_of(index), values_of(index), threads_);
    if (!shared_.stages.share(ticket, units_.pieces(), index_, [&](int64_t piece) { units_.run(piece, out(ticket)); }))
      return false;
    const auto outputs_of = [&](int64_t piece) -> const float* {
      return walks_[shared_.stages.owner(ticket, piece)]->out(ticket);
    };
    units_.gather(outputs_of, attended_, padded(s_.queries));
    return shared_.stages.is_intact(ticket);
  }

  bool head() {
    const Model& m = shared_.model;
    const int64_t ticket = frame_.ticket + kStages * m.layers, stride = padded(s_.hidden), count = frame_.num_logits;
    publish(ticket);
    const float* hidden = hidden_[m.layers % 4];
    for (int64_t l = 0; l < count; ++l)
      norm(hidden + frame_.logits[l] * stride, m.final_norm, s_.hidden, normed_ + l * stride);
    const Split split = head_split();
    return shared_.stages.share(ticket, split.pieces, index_, [&](int64_t piece) {
      const int64_t first = split.first(piece), last = split.last(piece);
      product(m.head, first, last, count, normed_, stride, logits_ + first, s_.vocab);
      for (int64_t l = 0; l < count; ++l) finish(l, piece, first, last);
    });
  }

  void finish(int64_t l, int64_t piece, int64_t first, int64_t last) {
    const Model& m = shared_.model;
    float* logits = logits_ + l * s_.vocab + first;
    const int64_t count = last - first;
    if (m.head_bias) add_bias(logits, m.head_bias + first, count);
    if (m.logit_scale != 1.0f)
      for (int64_t i = 0; i < count; ++i) logits[i] *= m.logit_scale;
    if (m.logit_softcap > 0)
      for (int64_t i = 0; i < count; ++i) logits[i] = std::tanh(logits[i] / m.logit_softcap) * m.logit_softcap;
    if (!frame_.has_picks) return;
    const Token& token = frame_.tokens[frame_.logits[l]];
    const Row& row = frame_.rows[token.row];
    Best& best = bests_[piece * kMaxTokens + l];
    best = Best();
    choose(logits, count, first, row.temperature, row.seeds, token.position + 1, frame_.candidates, best);
    if (frame_.has_chances && best.count > 0) best.sum = sum_of_powers(logits, count, best.candidates[0].logit);
  }

  Shared& shared_;
  const Sizes& s_;
  const Walks& walks_;
  const int64_t index_, threads_;
  int64_t joined_number_ = 0;
  Frame frame_;
  Floats hidden_[4];     // Inputs of layers, by layer
  Floats out_[kRing];    // What this thread computed of stages, by ticket
  Floats normed_, joined_, attended_, active_, merged_, new_keys_, new_values_, logits_, tapped_;
  std::unique_ptr<Best[]> bests_;
  Units units_;
  std::vector<float> up_;
};
