// A forward of a decoder of the Llama kind in one call: norms, rotary positions, grouped attention over slots, gated MLPs,
// head, and the choice of the token, over weights that keep the bits of their file. See `crew.h` for its threads.
//
// No header of PyTorch is included, and OpenMP is not used.

#include "decoder.h"

#include <cstring>

#include "walk.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

class Decoder final : Work {
 public:
  Decoder(const Model& model, const Cache& cache, std::shared_ptr<Crew> crew)
      : shared_(model, cache, crew->size()), crew_(std::move(crew)) {
    for (int64_t t = 0; t < threads(); ++t) walks_.push_back(std::make_unique<Walk>(shared_, walks_, t, threads()));
  }

  ~Decoder() { crew_->leave(*this); }

  // False where a step is not within its bounds.
  bool run(const Step& step) {
    if (!fits(step)) return false;
    Frames frames(step);
    while (frames.fill(next_)) {
      walk(kStages * shared_.model.layers + 1, [&] {
        if (step.hidden) shared_.take_states(step);
      });
      walks_[0]->commit();
      walks_[0]->hand_out(step);
      walks_[0]->answer(step);
    }
    return true;
  }

  // False where there is nothing that condenses them.
  bool condense(const float* states, int64_t count, float* condensed) {
    const Matrix& fc = shared_.model.fc;
    if (!fc.data) return false;
    next_ = Frame();
    next_.condenses = true;
    for (int64_t first = 0; first < count; first += kMaxTokens) {
      next_.num_tokens = std::min(kMaxTokens, count - first);
      walk(1, [&] { shared_.take_tapped(states + first * fc.inputs, next_.num_tokens); });
      walks_[0]->hand_out_condensed(condensed + first * fc.outputs);
    }
    return true;
  }

  void keep(int64_t slot, int64_t start, const int64_t* offsets, int64_t count) {
    each_head(slot, [&](float* keys, float* values) {
      const Sizes& s = shared_.sizes;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t from = start + offsets[i], to = start + i;
        if (from == to) continue;
        for (int64_t d = 0; d < s.head_dim; ++d) at(keys, to)[d * kGroup] = at(keys, from)[d * kGroup];
        std::memmove(values + to * s.value_dim, values + from * s.value_dim, 4 * s.value_dim);
      }
    });
  }

  void wipe(int64_t slot, int64_t start, int64_t stop) {
    each_head(slot, [&](float* keys, float* values) {
      const Sizes& s = shared_.sizes;
      int64_t first = start;
      for (; first < stop && first % kGroup; ++first) {
        for (int64_t d = 0; d < s.head_dim; ++d) at(keys, first)[d * kGroup] = 0;
        std::memset(values + first * s.value_dim, 0, 4 * s.value_dim);
      }
      if (first >= stop) return;  // Within a group, whose numbers stand among those of the keys before them
      const int64_t end = std::min((stop + kGroup - 1) / kGroup * kGroup, shared_.cache.length);
      clear(keys + first * s.head_dim, (end - first) * s.head_dim);
      clear(values + first * s.value_dim, (end - first) * s.value_dim);
    });
  }

  void read(int64_t layer, int64_t slot, int64_t count, float* keys, float* values) const {
    const Sizes& s = shared_.sizes;
    for (int64_t head = 0; head < shared_.model.kv_heads; ++head)
      for (int64_t i = 0; i < count; ++i)
        for (int64_t d = 0; d < s.head_dim; ++d) {
          const int64_t to = (head * count + i) * s.head_dim + d;
          keys[to] = at(const_cast<float*>(shared_.slot_keys(layer, slot, head)), i)[d * kGroup];
          values[to] = shared_.slot_values(layer, slot, head)[i * s.value_dim + d];
        }
  }

  int64_t threads() const { return crew_->size(); }
  const std::shared_ptr<Crew>& crew() const { return crew_; }

 private:
  void take_part(int64_t thread) override { walks_[thread]->join(); }

  // Has all threads work on the next frame, of so many stages. `give` writes what else it is to be of.
  template <class Give>
  void walk(int64_t stages, Give give) {
    const int64_t number = next_.number = number_ += 2;
    next_.ticket = ticket_;
    ticket_ += stages;
    shared_.number.store(number - 1);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    shared_.frame.take(next_);
    give();
    shared_.number.store(number);
    crew_->begin(*this);
    walks_[0]->run(number);
  }

  bool fits(const Step& step) const {
    const Cache& cache = shared_.cache;
    if (step.candidates < 0 || step.candidates > kMaxCandidates) return false;
    if (step.taps < 0 || step.taps > kMaxTaps) return false;
    if ((step.hidden != nullptr) != (shared_.model.state_norm != nullptr)) return false;
    for (int64_t tap = 0; tap < step.taps; ++tap)
      if (step.points[tap] < 0 || step.points[tap] > shared_.model.layers + 1) return false;
    for (int64_t r = 0; r < step.rows; ++r) {
      const int64_t count = step.counts[r], slot = step.slots[r], start = step.starts[r];
      if (count < 0 || count > step.width || slot < 0 || slot >= cache.slots) return false;
      if (start < 0 || start > cache.length - count) return false;
      if (step.ancestors && count > kMaxTokens) return false;
      for (const int64_t *token = step.tokens + r * step.width, *end = token + count; token < end; ++token)
        if (*token < 0 || *token >= shared_.model.embedding.outputs) return false;
    }
    return true;
  }

  // Where the numbers of a position's key begin.
  float* at(float* keys, int64_t position) const {
    return keys + position / kGroup * kGroup * shared_.sizes.head_dim + position % kGroup;
  }

  template <class Action>
  void each_head(int64_t slot, Action action) {
    for (int64_t layer = 0; layer < shared_.model.layers; ++layer)
      for (int64_t head = 0; head < shared_.model.kv_heads; ++head)
        action(const_cast<float*>(shared_.slot_keys(layer, slot, head)),
               const_cast<float*>(shared_.slot_values(layer, slot, head)));
  }

  // Zeros, by giving whole pages back to the system, which are zeros when they come again.
  static void clear(float* first, int64_t count) {
    char *begin = reinterpret_cast<char*>(first), *end = reinterpret_cast<char*>(first + count);
#if defined(__linux__)
    constexpr uintptr_t kPage = 65536;
    char* page = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(begin) + kPage - 1) / kPage * kPage);
    char* last = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(end) / kPage * kPage);
    if (page < last && madvise(page, last - page, MADV_DONTNEED) == 0) {
      std::memset(begin, 0, page - begin);
      begin = last;
    }
#endif
    std::memset(begin, 0, end - begin);
  }

  Shared shared_;
  Walks walks_;
  Frame next_;
  int64_t number_ = 0, ticket_ = 1;
  std::shared_ptr<Crew> crew_;
};

}  // namespace

extern "C" {

int64_t decoder_slot_floats(const Model* model, int64_t length) { return Sizes(*model, length).slot_floats; }

void* decoder_open(const Model* model, const Cache* cache, int64_t threads, const void* beside) {
  try {
    if (beside) return new Decoder(*model, *cache, static_cast<const Decoder*>(beside)->crew());
    return new Decoder(*model, *cache, std::make_shared<Crew>(std::min(std::max<int64_t>(threads, 1), kMaxThreads)));
  } catch (...) {
    return nullptr;
  }
}

void decoder_close(void* decoder) { delete static_cast<Decoder*>(decoder); }

int64_t decoder_threads(const void* decoder) { return static_cast<const Decoder*>(decoder)->threads(); }

int64_t decoder_run(void* decoder, const Step* step) {
  try {
    return static_cast<Decoder*>(decoder)->run(*step) ? kDone : kOutside;
  } catch (...) {
    return kNoMemory;
  }
}

int64_t decoder_condense(void* decoder, const float* states, int64_t count, float* condensed) {
  try {
    return static_cast<Decoder*>(decoder)->condense(states, count, condensed) ? kDone : kOutside;
  } catch (...) {
    return kNoMemory;
  }
}

void decoder_keep(void* decoder, int64_t slot, int64_t start, const int64_t* offsets, int64_t count) {
  static_cast<Decoder*>(decoder)->keep(slot, start, offsets, count);
}

void decoder_wipe(void* decoder, int64_t slot, int64_t start, int64_t stop) {
  static_cast<Decoder*>(decoder)->wipe(slot, start, stop);
}

void decoder_read(void* decoder, int64_t layer, int64_t slot, int64_t count, float* keys, float* values) {
  static_cast<Decoder*>(decoder)->read(layer, slot, count, keys, values);
}

int64_t decoder_widen(const Matrix* matrix, int64_t row, float* numbers) {
  return with_format(matrix->format, [&](auto format) {
    widen_row<decltype(format)>(matrix->data + row * matrix->row_bytes, matrix->inputs, numbers);
  });
}

void decoder_product(const Matrix* matrix, const float* x, int64_t rows, float* y) {
  product(*matrix, 0, matrix->outputs, rows, x, padded(matrix->inputs), y, matrix->outputs);
}

void decoder_noise(const int32_t* seeds, int64_t position, int64_t count, float* noise) {
  const Noise of(seeds, position);
  for (int64_t token = 0; token < count; token += kLanes) store(noise + token, of(token));
}
}
