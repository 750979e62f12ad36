// Attention of a few queries over long keys and values, for decoding on a CPU, in float32.
//
// A step reads every key and value that its row can see, and does little with each. So all queries that share a head of
// keys, those of its group of heads at all positions of a draft, pass over it together, and the keys are cut into blocks
// that threads share (Flash-Decoding, Dao et al. 2023): each block has its own largest score, sum and output, which are
// joined at the end.
//
// Blocks lie at fixed positions, and all sums run in order of position, so a query's output depends neither on the
// queries and rows beside it nor on the number of threads, bit by bit.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {

// Keys of a block.
constexpr int64_t kBlock = 128;
// Keys that are scored at a time, while the next ones and their values are on their way.
constexpr int64_t kKeys = 12;
// What a mask adds where nothing is seen; more than float32's lowest number, which it is in fact.
constexpr float kHidden = -1e38f;

struct Sizes {
  int64_t rows, heads, kv_heads, width, length, key_dim, value_dim;

  int64_t group() const { return heads / kv_heads; }
  int64_t queries() const { return group() * width; }
  // Queries, rounded up to whole vectors.
  int64_t columns() const { return (queries() + kLanes - 1) / kLanes * kLanes; }
  int64_t blocks() const { return (length + kBlock - 1) / kBlock; }
  // Numbers that a block leaves behind: largest score and sum by query, then the queries' outputs.
  int64_t part() const { return 2 * columns() + queries() * value_dim; }
};

// Distances of neighbours in a tensor, in numbers; the last dimension has none between.
struct Strides {
  int64_t row, head, position;
};

// Memory that will be needed soon, to be asked for bit by bit while something else is computed: asked for at once, it
// would hold up all that is read meanwhile. What is past the end may be asked for, too; that does nothing.
struct Ahead {
  const char* first;   // into the inner cache
  const char* second;  // into the outer one
  int64_t first_step, second_step;

  void ask() {
    __builtin_prefetch(first);
    __builtin_prefetch(second, 0, 2);
    first += first_step;
    second += second_step;
  }
};

struct Nothing {
  void ask() {}
};

// y[r][c] = sum over k of x[r * row + k * step] * panel[k * stride + c].
template <int rows, int vectors, class Row, class Asking>
void tile(const float* x, Row row, int64_t step, int64_t count, const float* panel, int64_t stride, float* y,
          int64_t y_stride, Asking ahead) {
  Vector sums[rows][vectors] = {};
  for (int64_t k = 0; k < count; ++k) {
    ahead.ask();
    Vector factors[vectors];
    for (int v = 0; v < vectors; ++v) factors[v] = load(panel + v * kLanes);
    for (int r = 0; r < rows; ++r) {
      const float input = x[r * row];
      for (int v = 0; v < vectors; ++v) sums[r][v] += input * factors[v];
    }
    x += step;
    panel += stride;
  }
#pragma GCC unroll 24
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v) store(y + r * y_stride + v * kLanes, sums[r][v]);
}

// As `tile`, for a number of rows that is known only now.
template <int vectors, int most, class Row, class Asking>
void tile_of(int64_t rows, const float* x, Row row, int64_t step, int64_t count, const float* panel, int64_t stride,
             float* y, int64_t y_stride, Asking ahead) {
  if constexpr (most > 1)
    if (rows < most) return tile_of<vectors, most - 1>(rows, x, row, step, count, panel, stride, y, y_stride, ahead);
  tile<most, vectors>(x, row, step, count, panel, stride, y, y_stride, ahead);
}

// As `tile`, for any number of rows, and of columns that is a multiple of kLanes.
template <class Row, class Asking>
void product(int64_t rows, int64_t columns, const float* x, Row row, int64_t step, int64_t count, const float* panel,
             int64_t stride, float* y, int64_t y_stride, Asking ahead) {
  for (int64_t c = 0; c < columns; c += 2 * kLanes) {
    const bool is_single = columns - c == kLanes;
    const int64_t most = std::min(is_single ? kKeys : kSums / 2, kKeys);
    for (int64_t r = 0; r < rows; r += most) {
      const int64_t few = std::min(most, rows - r);
      if (is_single)
        tile_of<1, kKeys>(few, x + r * row, row, step, count, panel + c, stride, y + r * y_stride + c, y_stride,
                            ahead);
      else
        tile_of<2, kSums / 2>(few, x + r * row, row, step, count, panel + c, stride, y + r * y_stride + c, y_stride,
                            ahead);
    }
  }
}

// The scores of all queries at a block's keys, [keys, columns].
template <class Row>
void score(const Sizes& size, int64_t count, const float* keys, Row key_stride, const float* values,
           int64_t value_stride, const float* queries, float* scores) {
  const int64_t columns = size.columns();
  for (int64_t j = 0; j < count; j += kKeys) {
    const int64_t few = std::min(kKeys, count - j);
    const float* next = keys + (j + kKeys) * key_stride;
    const float* later = values + j * value_stride;
    const int64_t bytes = kKeys * static_cast<int64_t>(sizeof(float));
    const Ahead ahead = {reinterpret_cast<const char*>(next), reinterpret_cast<const char*>(later),
                         bytes * key_stride / size.key_dim, bytes * value_stride / size.key_dim};
    product(few, columns, keys + j * key_stride, key_stride, 1, size.key_dim, queries, columns, scores + j * columns,
            columns, ahead);
  }
}

// Adds a block's part of the mask to its scores. False where no query sees anything.
bool hide(const Sizes& size, int64_t count, const float* mask, int64_t mask_stride, float* scores) {
  const int64_t group = size.group(), columns = size.columns();
  int64_t seen = 0;
  for (int64_t w = 0; w < size.width; ++w) {
    const float* added = mask + w * mask_stride;
    int here = 0, changed = 0;
    for (int64_t j = 0; j < count; ++j) {
      here += added[j] > kHidden;
      changed += added[j] != 0;
    }
    seen += here;
    if (changed == 0) continue;
    for (int64_t j = 0; j < count; ++j)
      for (int64_t g = 0; g < group; ++g) scores[j * columns + g * size.width + w] += added[j];
  }
  return seen > 0;
}

// Scores to weights, relative to each query's largest score in the block.
void weigh(int64_t columns, int64_t count, float* scores, float* largest, float* sums) {
  for (int64_t c = 0; c < columns; c += kLanes) {
    Vector top = load(scores + c);
    for (int64_t j = 1; j < count; ++j) top = larger(top, load(scores + j * columns + c));
    Vector sum = {};
    for (int64_t j = 0; j < count; ++j) {
      const Vector weight = exponential(load(scores + j * columns + c) - top);
      store(scores + j * columns + c, weight);
      sum += weight;
    }
    store(largest + c, top);
    store(sums + c, sum);
  }
}

// One query's output of all blocks.
void join(const Sizes& size, const float* parts, int64_t query, float* output) {
  const int64_t blocks = size.blocks(), part = size.part(), columns = size.columns();
  float top = parts[query];
  for (int64_t b = 1; b < blocks; ++b) top = std::max(top, parts[b * part + query]);
  float sum = 0;
  std::fill_n(output, size.value_dim, 0.0f);
  for (int64_t b = 0; b < blocks; ++b) {
    const float* block = parts + b * part;
    const float factor = exponential(Vector{} + (block[query] - top))[0];
    sum += factor * block[columns + query];
    const float* term = block + 2 * columns + query * size.value_dim;
    for (int64_t d = 0; d < size.value_dim; d += kLanes) store(output + d, load(output + d) + factor * load(term + d));
  }
  for (int64_t d = 0; d < size.value_dim; d += kLanes) store(output + d, load(output + d) / sum);
}

}  // namespace

extern "C" {

// Vectors of values have to be whole.
int decode_attention_lanes() { return kLanes; }

// Numbers of `parts` that `decode_attention` needs.
int64_t decode_attention_parts(const Sizes* size) { return size->rows * size->kv_heads * size->blocks() * size->part(); }

// query is [rows, heads, width, key_dim]; keys and values [rows, kv_heads, length, ...]; mask [rows, -, width, length],
// added to the scores; output [rows, width, heads, value_dim]. `strides` are those of the first four, in this order.
void decode_attention(const float* query, const float* keys, const float* values, const float* mask, float* output,
                      float* parts, const Sizes* sizes, const Strides* strides, float scale, int threads) {
  const Sizes size = *sizes;
  const Strides q = strides[0], k = strides[1], v = strides[2], m = strides[3];
  const int64_t units = size.rows * size.kv_heads, queries = size.queries(), columns = size.columns();
  const int64_t blocks = size.blocks(), part = size.part();
#pragma omp parallel num_threads(threads)
  {
    static thread_local std::vector<float> scratch;
    scratch.resize((size.key_dim + kBlock) * columns);
    float* packed = scratch.data();
    float* scores = packed + size.key_dim * columns;
    // Whose queries are packed: a row and a head of keys, of which a thread has several blocks.
    int64_t unit = -1;
#pragma omp for schedule(static)
    for (int64_t t = 0; t < units * blocks; ++t) {
      const int64_t row = t / blocks / size.kv_heads, head = t / blocks % size.kv_heads, start = t % blocks * kBlock;
      const int64_t count = std::min(kBlock, size.length - start);
      float* largest = parts + t * part;
      float* sums = largest + columns;
      float* outputs = sums + columns;
      if (t / blocks != unit) {
        unit = t / blocks;
        for (int64_t i = 0; i < columns; ++i) {
          const int64_t at = head * size.group() + i / size.width;
          const float* from = query + row * q.row + at * q.head + i % size.width * q.position;
          for (int64_t d = 0; d < size.key_dim; ++d) packed[d * columns + i] = i < queries ? from[d] * scale : 0.0f;
        }
      }
      const float* block_keys = keys + row * k.row + head * k.head + start * k.position;
      const float* block_values = values + row * v.row + head * v.head + start * v.position;
      // The usual distances as constants: a dozen keys then need one register for their addresses, and not a dozen.
      if (k.position == 64)
        score(size, count, block_keys, std::integral_constant<int64_t, 64>(), block_values, v.position, packed, scores);
      else if (k.position == 128)
        score(size, count, block_keys, std::integral_constant<int64_t, 128>(), block_values, v.position, packed, scores);
      else
        score(size, count, block_keys, k.position, block_values, v.position, packed, scores);
      if (hide(size, count, mask + row * m.row + start, m.position, scores)) {
        weigh(columns, count, scores, largest, sums);
        product(queries, size.value_dim, scores, std::integral_constant<int64_t, 1>(), columns, count, block_values,
                v.position, outputs, size.value_dim, Nothing());
      } else {
        std::fill_n(largest, columns, -std::numeric_limits<float>::max());
        std::fill_n(sums, columns + queries * size.value_dim, 0.0f);
      }
    }
#pragma omp for schedule(static)
    for (int64_t u = 0; u < units * queries; ++u) {
      const int64_t row = u / queries / size.kv_heads, head = u / queries % size.kv_heads, i = u % queries;
      const int64_t at = (row * size.width + i % size.width) * size.heads + head * size.group() + i / size.width;
      join(size, parts + u / queries * blocks * part, i, output + at * size.value_dim);
    }
  }
}
}
