// Checks the native decoder, compiled for whatever processor: check_decoder FILE.
//
// FILE holds cases that `tests/support/decoder_cases.py` wrote, with what is right. Products are compared with sums in
// double, written here. What fails is printed, a line each; the exit status is 1 then.

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "decoder.h"

namespace {

std::string current;  // The case
int failures = 0, checks = 0;

__attribute__((format(printf, 2, 3))) void expect(bool is_right, const char* format, ...) {
  ++checks;
  if (is_right || ++failures > 20) return;
  std::printf("%s: ", current.c_str());
  va_list values;
  va_start(values, format);
  std::vprintf(format, values);
  va_end(values);
  std::printf("\n");
}

// The file: numbers of 8 bytes, and arrays, which begin with their length in bytes.
class Cases {
 public:
  explicit Cases(const char* path) : file_(std::fopen(path, "rb")) {
    if (!file_) fail("cannot open the cases");
  }
  ~Cases() { std::fclose(file_); }

  bool is_over() {
    const int next = std::fgetc(file_);
    if (next != EOF) std::ungetc(next, file_);
    return next == EOF;
  }
  int64_t whole() {
    int64_t number;
    read(&number, 8);
    return number;
  }
  template <class Number>
  std::vector<Number> array() {
    const int64_t bytes = whole();
    std::vector<Number> numbers(bytes / sizeof(Number));
    if (bytes) read(numbers.data(), bytes);
    return numbers;
  }
  std::string text() {
    const auto letters = array<char>();
    return {letters.begin(), letters.end()};
  }

 private:
  [[noreturn]] static void fail(const char* why) {
    std::printf("%s\n", why);
    std::exit(2);
  }
  void read(void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, file_) != bytes) fail("the file of cases is cut short");
  }
  std::FILE* file_;
};

// Null where there is nothing, as in the interface.
template <class Number>
const Number* data_of(const std::vector<Number>& numbers) {
  return numbers.empty() ? nullptr : numbers.data();
}

template <class Number>
bool same_bits(const std::vector<Number>& a, const std::vector<Number>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(Number)) == 0);
}

int64_t in_chunks(int64_t count) { return (count + 31) / 32 * 32; }

struct HeldMatrix {
  int64_t format, outputs, inputs;

  explicit HeldMatrix(Cases& cases)
      : format(cases.whole()), outputs(cases.whole()), inputs(cases.whole()), bytes_(cases.array<uint8_t>()) {}
  Matrix view() const {
    return {bytes_.data(), format, outputs, inputs, static_cast<int64_t>(bytes_.size()) / std::max<int64_t>(outputs, 1)};
  }
  std::vector<float> row(int64_t index) const {
    std::vector<float> numbers(in_chunks(inputs), -1.0f);
    const Matrix matrix = view();
    expect(decoder_widen(&matrix, index, numbers.data()) != 0, "format %d is not known", static_cast<int>(format));
    return numbers;
  }

 private:
  std::vector<uint8_t> bytes_;
};

void check_widening(Cases& cases) {
  const HeldMatrix matrix(cases);
  const auto right = cases.array<float>();
  for (int64_t o = 0; o < matrix.outputs; ++o) {
    const auto found = matrix.row(o);
    for (int64_t i = 0; i < static_cast<int64_t>(found.size()); ++i) {
      const float expected = i < matrix.inputs ? right[o * matrix.inputs + i] : 0.0f;
      // A plain zero may have either sign.
      if (expected == 0.0f && found[i] == 0.0f && i < matrix.inputs) continue;
      expect(std::memcmp(&found[i], &expected, 4) == 0, "row %d, number %d is %.9g and not %.9g", static_cast<int>(o),
             static_cast<int>(i), found[i], expected);
    }
  }
}

void check_product(Cases& cases) {
  const HeldMatrix held(cases);
  const int64_t rows = cases.whole(), size = in_chunks(held.inputs), outputs = held.outputs;
  const auto x = cases.array<float>();
  std::vector<double> right(rows * outputs), scale(rows * outputs);
  for (int64_t o = 0; o < outputs; ++o) {
    const auto weight = held.row(o);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < held.inputs; ++i) {
        const double term = static_cast<double>(weight[i]) * x[r * size + i];
        right[r * outputs + o] += term;
        scale[r * outputs + o] += std::fabs(term);
      }
  }
  const Matrix matrix = held.view();
  std::vector<float> alone(rows * outputs);
  for (int64_t r = 0; r < rows; ++r)
    decoder_product(&matrix, x.data() + r * size, 1, alone.data() + r * outputs);
  for (int64_t i = 0; i < rows * outputs; ++i)
    expect(std::fabs(alone[i] - right[i]) <= 2e-6 * scale[i], "row %d, output %d is %.9g and not %.9g",
           static_cast<int>(i / outputs), static_cast<int>(i % outputs), alone[i], right[i]);
  // So many rows at a time: every shape of a tile, and weights widened beforehand.
  for (int64_t count = 1; count <= rows; ++count) {
    std::vector<float> together(count * outputs, std::numeric_limits<float>::quiet_NaN());
    decoder_product(&matrix, x.data(), count, together.data());
    expect(std::memcmp(together.data(), alone.data(), together.size() * 4) == 0, "%d rows at once give other bits than one",
           static_cast<int>(count));
  }
  // And so many outputs.
  for (int64_t count = 1; count <= std::min<int64_t>(outputs, 6); ++count)
    for (int64_t r : {int64_t{1}, rows}) {
      Matrix part = matrix;
      part.outputs = count;
      std::vector<float> some(r * count);
      decoder_product(&part, x.data(), r, some.data());
      for (int64_t i = 0; i < r * count; ++i)
        expect(some[i] == alone[i / count * outputs + i % count], "output %d of %d, row %d of %d, has other bits",
               static_cast<int>(i % count), static_cast<int>(count), static_cast<int>(i / count), static_cast<int>(r));
    }
}

void check_noise(Cases& cases) {
  const auto seeds = cases.array<int32_t>();
  const int64_t position = cases.whole();
  const auto right = cases.array<float>();
  std::vector<float> found((right.size() + 15) / 16 * 16);
  decoder_noise(seeds.data(), position, right.size(), found.data());
  for (size_t i = 0; i < right.size(); ++i)
    expect(std::fabs(found[i] - right[i]) <= 2e-6f * std::max(1.0f, std::fabs(right[i])),
           "the noise of token %d is %.9g and not %.9g", static_cast<int>(i), found[i], right[i]);
}

struct HeldStep {
  int64_t kind, rows, width, slot, start, candidates;
  std::vector<int64_t> tokens, counts, slots, starts, depths, offsets;
  std::vector<uint8_t> ancestors;
  std::vector<float> temperatures, hidden, logits;
  std::vector<int32_t> seeds;

  explicit HeldStep(Cases& cases) : kind(cases.whole()) {
    if (kind == 1) {  // keep
      slot = cases.whole();
      start = cases.whole();
      offsets = cases.array<int64_t>();
      return;
    }
    rows = cases.whole();
    width = cases.whole();
    candidates = cases.whole();
    for (auto* array : {&tokens, &counts, &slots, &starts, &depths}) *array = cases.array<int64_t>();
    ancestors = cases.array<uint8_t>();
    temperatures = cases.array<float>();
    seeds = cases.array<int32_t>();
    hidden = cases.array<float>();
    logits = cases.array<float>();
  }
};

struct HeldModel {
  Model model = {};
  std::vector<Layer> layers;
  std::vector<HeldMatrix> matrices;
  std::vector<std::vector<float>> vectors;
  int64_t slots, length;

  explicit HeldModel(Cases& cases) {
    for (int64_t* size : {&model.layers, &model.hidden, &model.heads, &model.kv_heads, &model.head_dim, &model.mlp,
                          &model.vocab, &model.activation, &model.rotary_dim, &model.rotary_pairs, &model.positions})
      *size = cases.whole();
    const auto scales = cases.array<float>();
    float* const fields[] = {&model.norm_eps, &model.embedding_scale, &model.attention_scale, &model.attention_softcap,
                             &model.logit_softcap, &model.residual_scale, &model.logit_scale};
    for (int i = 0; i < 7; ++i) *fields[i] = scales[i];
    for (int i = 0; i < 2; ++i) {
      model.cosines[i] = vector(cases);
      model.sines[i] = vector(cases);
    }
    model.embedding = matrix(cases);
    model.head = matrix(cases);
    model.final_norm = vector(cases);
    model.head_bias = vector(cases);
    model.state_norm = vector(cases);
    model.has_normed_residual = cases.whole();
    const Matrix fc = matrix(cases);  // Of any decoder; only a draft head has a use for it
    if (model.state_norm) model.fc = fc;
    layers.resize(model.layers);
    for (auto& layer : layers) {
      for (Matrix* m : {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate, &layer.up, &layer.down})
        *m = matrix(cases);
      for (const float** v : {&layer.query_bias, &layer.key_bias, &layer.value_bias, &layer.output_bias,
                              &layer.attention_norm, &layer.query_norm, &layer.key_norm, &layer.post_attention_norm,
                              &layer.mlp_norm, &layer.post_mlp_norm})
        *v = vector(cases);
      layer.rotary = cases.whole();
      layer.window = cases.whole();
    }
    model.layer = layers.data();
    slots = cases.whole();
    length = cases.whole();
  }

 private:
  Matrix matrix(Cases& cases) {
    matrices.emplace_back(cases);
    return matrices.back().view();  // The bytes stay where they are when the list grows: it moves
  }
  const float* vector(Cases& cases) {
    vectors.push_back(cases.array<float>());
    return data_of(vectors.back());
  }
};

// What a step gave.
struct Given {
  std::vector<float> logits, scores;
  std::vector<int64_t> picks, best;

  explicit Given(const HeldStep& step, int64_t vocab)
      : logits(step.rows * step.width * vocab), scores(step.rows * step.width),
        picks(step.rows * step.width, -7), best(step.candidates * step.rows * step.width, -7) {}
  bool operator==(const Given& other) const {
    return same_bits(logits, other.logits) && same_bits(scores, other.scores) && picks == other.picks &&
           best == other.best;
  }
};

// Runs all steps in a cache of its own.
class Runs {
 public:
  // `beside` is what it takes turns with, if any.
  Runs(const HeldModel& held, int64_t threads, const Runs* beside = nullptr)
      : held_(held), memory_(held.model.layers * held.slots * decoder_slot_floats(&held.model, held.length)),
        cache_{memory_.data(), held.slots, held.length},
        decoder_(decoder_open(&held.model, &cache_, threads, beside ? beside->decoder_ : nullptr)) {}
  ~Runs() { decoder_close(decoder_); }
  Runs(const Runs&) = delete;
  Runs& operator=(const Runs&) = delete;

  bool is_open() const { return decoder_ != nullptr; }

  // Rows first to last, and of a chain `tokens` at a time.
  void run(const HeldStep& step, int64_t first, int64_t last, int64_t tokens, Given& given) {
    const int64_t vocab = held_.model.vocab;
    for (int64_t begin = 0; begin < step.width; begin += tokens) {
      const int64_t width = std::min(tokens, step.width - begin);
      std::vector<int64_t> ids, counts, slots, starts, depths;
      std::vector<uint8_t> ancestors;
      std::vector<float> temperatures, hidden;
      std::vector<int32_t> seeds;
      std::vector<int64_t> rows;
      for (int64_t r = first; r < last; ++r) {
        const int64_t count = std::min(width, step.counts[r] - begin);
        if (count <= 0) continue;
        rows.push_back(r);
        counts.push_back(count);
        slots.push_back(step.slots[r]);
        starts.push_back(step.starts[r] + begin);
        for (int64_t i = 0; i < width; ++i) ids.push_back(step.tokens[r * step.width + begin + i]);
        if (!step.hidden.empty()) {
          const auto from = step.hidden.begin() + (r * step.width + begin) * held_.model.hidden;
          hidden.insert(hidden.end(), from, from + width * held_.model.hidden);
        }
        if (!step.temperatures.empty()) {
          temperatures.push_back(step.temperatures[r]);
          for (int i = 0; i < 2; ++i) seeds.push_back(step.seeds[2 * r + i]);
        }
        if (step.depths.empty()) continue;
        for (int64_t i = 0; i < width; ++i) depths.push_back(step.depths[r * step.width + i]);
        for (int64_t i = 0; i < width * width; ++i) ancestors.push_back(step.ancestors[r * width * width + i]);
      }
      const int64_t size = static_cast<int64_t>(rows.size()) * width;
      if (size == 0) continue;
      std::vector<float> logits(size * vocab), scores(size);
      std::vector<int64_t> picks(size, -7), best(size * step.candidates, -7);
      std::vector<float> chances(size * step.candidates, -7);
      const int64_t points[] = {0, held_.model.layers};
      std::vector<float> states(size * 2 * held_.model.hidden);
      const Step one = {static_cast<int64_t>(rows.size()), width, ids.data(), counts.data(), slots.data(), starts.data(),
                        data_of(depths), data_of(ancestors), logits.data(), nullptr, data_of(temperatures), data_of(seeds),
                        picks.data(), scores.data(), step.candidates, best.data(), chances.data(), 2, points, states.data(),
                        data_of(hidden)};
      expect(decoder_run(decoder_, &one) == kDone, "a step was not done");
      for (size_t r = 0; r < rows.size(); ++r)
        for (int64_t i = 0; i < counts[r]; ++i) {
          const int64_t from = r * width + i, to = rows[r] * step.width + begin + i;
          std::copy_n(logits.data() + from * vocab, vocab, given.logits.data() + to * vocab);
          given.scores[to] = scores[from];
          given.picks[to] = picks[from];
          for (int64_t d = 0; d < 2 * held_.model.hidden; ++d)
            expect(std::isfinite(states[from * 2 * held_.model.hidden + d]), "a state is not finite");
          for (int64_t c = 0; c < step.candidates; ++c) {
            given.best[c * step.rows * step.width + to] = best[c * size + from];
            double sum = 0;
            const float *of = logits.data() + from * vocab, chosen = of[best[c * size + from]];
            for (int64_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(of[v]) - chosen);
            const float chance = chances[c * size + from];
            expect(std::fabs(chance * sum - 1) < 1e-4 || 1 / sum < 1e-30, "a chance is %g and not %g", chance, 1 / sum);
          }
        }
    }
  }

  // Condenses what a head was given, two states at a time.
  void check_condensing(const HeldStep& step) {
    const Matrix& fc = held_.model.fc;
    if (!fc.data) return;
    const int64_t count = step.hidden.size() / fc.inputs, stride = in_chunks(fc.inputs);
    std::vector<float> found(count * fc.outputs), right(count * fc.outputs), inputs(count * stride);
    for (int64_t i = 0; i < count; ++i) std::copy_n(step.hidden.data() + i * fc.inputs, fc.inputs, &inputs[i * stride]);
    decoder_product(&fc, inputs.data(), count, right.data());
    expect(decoder_condense(decoder_, step.hidden.data(), count, found.data()) == kDone, "nothing was condensed");
    expect(same_bits(found, right), "condensing gives other bits than a product");
  }

  void keep(const HeldStep& step) {
    decoder_keep(decoder_, step.slot, step.start, step.offsets.data(), step.offsets.size());
  }

  // All that is in the cache, with what was left of nodes that were not kept.
  const std::vector<float>& memory() const { return memory_; }

 private:
  const HeldModel& held_;
  std::vector<float> memory_;
  Cache cache_;
  void* decoder_;
};

void check_given(const HeldStep& step, const Given& given, int64_t vocab) {
  float top = 0;
  for (float logit : step.logits) top = std::max(top, std::fabs(logit));
  for (int64_t r = 0; r < step.rows; ++r)
    for (int64_t i = 0; i < step.counts[r]; ++i) {
      const int64_t at = r * step.width + i, depth = step.depths.empty() ? i : step.depths[at];
      const float *logits = given.logits.data() + at * vocab, *right = step.logits.data() + at * vocab;
      float worst = 0;
      for (int64_t v = 0; v < vocab; ++v)
        worst = std::max(worst, std::isnan(logits[v]) ? HUGE_VALF : std::fabs(logits[v] - right[v]));
      expect(worst <= 3e-5f * top, "row %d, token %d: a logit is off by %g, the largest is %g", static_cast<int>(r),
             static_cast<int>(i), worst, top);
      std::vector<float> scores(logits, logits + vocab);
      const float temperature = step.temperatures.empty() ? 0.0f : step.temperatures[r];
      if (temperature > 0) {
        std::vector<float> noise(vocab + 16);
        decoder_noise(step.seeds.data() + 2 * r, step.starts[r] + depth + 1, vocab, noise.data());
        for (int64_t v = 0; v < vocab; ++v) {
          volatile float product = temperature * noise[v];  // Rounded by itself, as in PyTorch
          scores[v] += product;
        }
      }
      const int64_t pick = std::max_element(scores.begin(), scores.end()) - scores.begin();
      expect(given.picks[at] == pick, "row %d, token %d: %d is picked and not %d", static_cast<int>(r),
             static_cast<int>(i), static_cast<int>(given.picks[at]), static_cast<int>(pick));
      expect(given.scores[at] == logits[pick], "row %d, token %d: the logit of the pick is %g and not %g",
             static_cast<int>(r), static_cast<int>(i), given.scores[at], logits[pick]);
      std::vector<int64_t> order(vocab);
      for (int64_t v = 0; v < vocab; ++v) order[v] = v;
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
      for (int64_t c = 0; c < step.candidates; ++c)
        expect(given.best[c * step.rows * step.width + at] == order[c], "row %d, token %d: candidate %d is wrong",
               static_cast<int>(r), static_cast<int>(i), static_cast<int>(c));
    }
}

void check_decoder(Cases& cases) {
  const HeldModel held(cases);
  std::vector<HeldStep> steps;
  for (int64_t left = cases.whole(); left > 0; --left) steps.emplace_back(cases);
  const std::string name = current;
  std::vector<Given> first;
  std::vector<float> memory;
  const std::pair<int64_t, const char*> ways[] = {
      {1, "all rows at once"}, {1, "chains in threes"}, {2, "row by row"}, {5, "all rows at once"}, {5, "in turns"}};
  for (const auto& [threads, batching] : ways) {
    current = name + ", " + std::to_string(threads) + " threads, " + batching;
    const bool is_in_turns = batching[0] == 'i';
    auto other = is_in_turns ? std::make_unique<Runs>(held, threads) : nullptr;
    Runs runs(held, threads, other.get());
    expect(runs.is_open(), "no decoder");
    if (!runs.is_open()) return;
    size_t number = 0;
    for (const HeldStep& step : steps) {
      if (step.kind == 1) {
        runs.keep(step);
        continue;
      }
      Given given(step, held.model.vocab);
      if (is_in_turns) {
        // Each of the others ends soon, and leaves the threads to the decoder beside it.
        Given others(step, held.model.vocab);
        other->run(step, 0, step.rows, step.width, others);
        other = std::make_unique<Runs>(held, 1, &runs);
      }
      const bool is_tree = !step.depths.empty();
      const int64_t tokens = batching[0] == 'c' && !is_tree ? 3 : step.width;
      if (batching[0] == 'r')
        for (int64_t r = step.rows - 1; r >= 0; --r) runs.run(step, r, r + 1, tokens, given);
      else
        runs.run(step, 0, step.rows, tokens, given);
      runs.check_condensing(step);
      if (first.size() == number) {
        check_given(step, given, held.model.vocab);
        first.push_back(given);
      }
      expect(given == first[number], "step %d gives other bits than with one thread and all rows at once",
             static_cast<int>(number));
      ++number;
    }
    if (memory.empty()) memory = runs.memory();
    expect(same_bits(memory, runs.memory()), "keys or values have other bits");
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::printf("usage: check_decoder FILE\n");
    return 2;
  }
  Cases cases(arguments[1]);
  while (!cases.is_over()) {
    const int64_t kind = cases.whole();
    current = cases.text();
    switch (kind) {
      case 0: check_widening(cases); break;
      case 1: check_product(cases); break;
      case 2: check_noise(cases); break;
      case 3: check_decoder(cases); break;
      default: std::printf("kind %d is not known\n", static_cast<int>(kind)); return 2;
    }
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures > 0;
}
