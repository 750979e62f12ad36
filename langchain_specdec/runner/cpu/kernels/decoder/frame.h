// The tokens of one walk through the layers: some rows of a step, or a piece of a row.
#pragma once

#include <algorithm>
#include <cstddef>

#include "crew.h"
#include "decoder.h"

// Tokens of a walk: a tree has to fit. More would not be faster, and each thread keeps what it computes of them.
constexpr int64_t kMaxTokens = 80;

struct Row {
  int64_t slot, start;    // `start`: positions that the slot holds
  int64_t first, count;   // Its tokens in the frame
  int64_t index, offset;  // Which row of the step this is, and which of its tokens are the first here
  bool is_chain;
  float temperature;
  int32_t seeds[2];
};

struct Token {
  int64_t id, row;
  int64_t position;   // In the text
  bool has_logits;
  uint64_t sees[2];   // Tokens of its own row that it sees, itself included
};

struct Frame {
  int64_t number;       // Of the walk
  int64_t ticket;       // Of its first stage
  int64_t num_rows, num_tokens, num_logits;
  int64_t candidates;
  bool has_picks, has_chances;
  bool condenses;  // Its tokens are only states to condense
  int64_t taps, points[kMaxTaps];
  Row rows[kMaxTokens];
  Token tokens[kMaxTokens];
  int64_t logits[kMaxTokens];  // Which tokens have logits

  bool sees(int64_t token, int64_t other) const { return tokens[token].sees[other / 64] >> other % 64 & 1; }

  // Copies what is used of another one.
  void take(const Frame& other) {
    std::copy_n(reinterpret_cast<const char*>(&other), offsetof(Frame, rows), reinterpret_cast<char*>(this));
    num_rows = std::min(num_rows, kMaxTokens);
    num_tokens = std::min(num_tokens, kMaxTokens);
    num_logits = std::min(num_logits, kMaxTokens);
    std::copy_n(other.rows, num_rows, rows);
    std::copy_n(other.tokens, num_tokens, tokens);
    std::copy_n(other.logits, num_logits, logits);
  }
};

// Fills frames with a step's tokens, until none are left.
class Frames {
 public:
  explicit Frames(const Step& step) : step_(step) {}

  // False where there is nothing left.
  bool fill(Frame& frame) {
    frame.num_rows = frame.num_tokens = frame.num_logits = 0;
    frame.candidates = step_.candidates;
    frame.has_picks = step_.picks != nullptr;
    frame.has_chances = step_.chances != nullptr;
    frame.condenses = false;
    frame.taps = step_.taps;
    std::copy_n(step_.points, step_.taps, frame.points);
    while (row_ < step_.rows) {
      const int64_t room = kMaxTokens - frame.num_tokens, left = step_.counts[row_] - offset_;
      // A tree stays whole; a chain may be cut anywhere.
      const bool is_chain = step_.ancestors == nullptr;
      if (left > room && (room == 0 || !is_chain) && frame.num_tokens > 0) return true;
      const int64_t count = std::min(left, room);
      if (count > 0) add(frame, count, is_chain);
      offset_ += count;
      if (offset_ == step_.counts[row_]) {
        ++row_;
        offset_ = 0;
      }
      if (frame.num_tokens == kMaxTokens) return true;
    }
    return frame.num_tokens > 0;
  }

 private:
  void add(Frame& frame, int64_t count, bool is_chain) {
    Row& row = frame.rows[frame.num_rows];
    row.slot = step_.slots[row_];
    row.start = step_.starts[row_] + offset_;
    row.first = frame.num_tokens;
    row.count = count;
    row.index = row_;
    row.offset = offset_;
    row.is_chain = is_chain;
    row.temperature = step_.temperatures ? step_.temperatures[row_] : 0.0f;
    row.seeds[0] = step_.seeds ? step_.seeds[2 * row_] : 0;
    row.seeds[1] = step_.seeds ? step_.seeds[2 * row_ + 1] : 0;
    const int64_t total = step_.counts[row_];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = offset_ + i, entry = row_ * step_.width + at;
      Token& token = frame.tokens[frame.num_tokens];
      token.id = step_.tokens[entry];
      token.row = frame.num_rows;
      token.position = step_.starts[row_] + (is_chain || !step_.depths ? at : step_.depths[entry]);
      token.sees[0] = token.sees[1] = 0;
      for (int64_t j = 0; j < count; ++j) {
        const bool sees = is_chain ? j <= i : step_.ancestors[entry * step_.width + j] != 0;
        token.sees[j / 64] |= static_cast<uint64_t>(sees) << j % 64;
      }
      const bool is_wanted = step_.logits != nullptr || step_.picks != nullptr;
      token.has_logits = is_wanted && (!step_.wanted || at >= total - step_.wanted[row_]);
      if (token.has_logits) frame.logits[frame.num_logits++] = frame.num_tokens;
      ++frame.num_tokens;
    }
    ++frame.num_rows;
  }

  const Step& step_;
  int64_t row_ = 0, offset_ = 0;
};
