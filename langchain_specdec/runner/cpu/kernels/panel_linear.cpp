// Products of a few rows with a large weight, for decoding on a CPU: y = x W^T + bias, in float32.
//
// A decoding step reads every weight once and does little with each, so what counts is to read memory as fast as it
// goes, whatever the number of rows. The weight is stored in panels of kPanel outputs, input by input, so that all of
// it is read from front to back. A tile of up to kRows rows stays in registers while a panel passes. Every pass asks
// for its share of the next panel, into the outer cache, and for what comes next of its own, into the inner one, so that
// memory is never idle. Where more rows need several tiles, the first pass so brings the panel into the cache.
//
// Each output is one chain of multiply-adds over its inputs, first to last, then the bias. So a row's outputs do not
// depend on the rows beside it, nor on the number of threads, bit by bit.
//
// No header of PyTorch is included: this takes a second to compile and serves all of its versions. It is linked
// without an OpenMP library, so that it shares the threads of the one that PyTorch has loaded.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace {

constexpr int kVectors = 2;
constexpr int kRows = kSums / kVectors;
constexpr int kPanel = kLanes * kVectors;
// How far ahead of its own reading a pass asks, in bytes.
constexpr int kNear = 4096;
// Most tiles that share in asking for the next panel; with more, computing takes longer than reading.
constexpr int64_t kMaxAskingTiles = 4;
// From this many tiles on, 16-bit weights are widened once, into the cache, and not by each tile.
constexpr int64_t kWideningTiles = 3;

// `rows` rows of x by one panel. `ahead` walks through the next panel, `stride` bytes per input. Asking for what is past
// the end of all panels does nothing.
template <int rows, class Weight>
void tile(const float* x, int64_t inputs, const Weight* panel, const float* bias, float* y, int64_t outputs,
          int64_t columns, const char* ahead, int64_t stride) {
  Vector sums[rows][kVectors] = {};
  for (int64_t k = 0; k < inputs; ++k) {
    for (int line = 0; line < kPanel * static_cast<int>(sizeof(Weight)); line += kLine) {
      __builtin_prefetch(reinterpret_cast<const char*>(panel) + kNear + line);
      __builtin_prefetch(ahead + line, 0, 2);
    }
    ahead += stride;
    Vector weights[kVectors];
    for (int v = 0; v < kVectors; ++v) weights[v] = load(panel + v * kLanes);
    for (int r = 0; r < rows; ++r) {
      const float input = x[r * inputs + k];
      for (int v = 0; v < kVectors; ++v) sums[r][v] += input * weights[v];
    }
    panel += kPanel;
  }
  for (int r = 0; r < rows; ++r) {
    float out[kPanel];
    std::memcpy(out, sums[r], sizeof(out));
    if (bias)
      for (int64_t c = 0; c < columns; ++c) out[c] += bias[c];
    std::memcpy(y + r * outputs, out, columns * sizeof(float));
  }
}

// As `tile`, for a number of rows that is known only now.
template <int most = kRows, class Weight>
void tile_of(int64_t rows, const float* x, int64_t inputs, const Weight* panel, const float* bias, float* y,
             int64_t outputs, int64_t columns, const char* ahead, int64_t stride) {
  if constexpr (most > 1)
    if (rows < most)
      return tile_of<most - 1>(rows, x, inputs, panel, bias, y, outputs, columns, ahead, stride);
  tile<most>(x, inputs, panel, bias, y, outputs, columns, ahead, stride);
}

// All rows by one panel, in tiles of nearly equal size.
template <class Weight>
void rows_of(int64_t rows, const float* x, int64_t inputs, const Weight* panel, const float* bias, float* y,
             int64_t outputs, int64_t columns, const char* ahead, int64_t stride) {
  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t t = 0, row = 0; t < tiles; ++t) {
    const int64_t count = rows / tiles + (t < rows % tiles);
    tile_of(count, x + row * inputs, inputs, panel, bias, y + row * outputs, outputs, columns, ahead, stride);
    ahead += stride * inputs;
    row += count;
  }
}

template <class Weight>
void linear(const float* x, const Weight* weight, const float* bias, float* y, int64_t rows, int64_t inputs,
            int64_t outputs, int threads) {
  const int64_t panels = (outputs + kPanel - 1) / kPanel, size = kPanel * inputs;
  const int64_t tiles = (rows + kRows - 1) / kRows;
  const int64_t stride = tiles <= kMaxAskingTiles ? kPanel * static_cast<int64_t>(sizeof(Weight)) / tiles : 0;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t p = 0; p < panels; ++p) {
    const Weight* panel = weight + p * size;
    const float* panel_bias = bias ? bias + p * kPanel : nullptr;
    const int64_t columns = std::min<int64_t>(kPanel, outputs - p * kPanel);
    const char* ahead = reinterpret_cast<const char*>(panel + size);
    if (sizeof(Weight) < sizeof(float) && tiles >= kWideningTiles) {
      static thread_local std::vector<float> wide;
      wide.resize(size);
      for (int64_t i = 0; i < size; i += kLanes) store(wide.data() + i, load(panel + i));
      rows_of(rows, x, inputs, wide.data(), panel_bias, y + p * kPanel, outputs, columns, ahead, stride);
    } else {
      rows_of(rows, x, inputs, panel, panel_bias, y + p * kPanel, outputs, columns, ahead, stride);
    }
  }
}

}  // namespace

extern "C" {

// Outputs of a panel. A weight is [panels, inputs, panel_width()], zeros after the last output.
int panel_width() { return kPanel; }

// x is [rows, inputs], y [rows, outputs], bias [outputs] or null.
void panel_linear_float32(const float* x, const float* weight, const float* bias, float* y, int64_t rows,
                          int64_t inputs, int64_t outputs, int threads) {
  linear(x, weight, bias, y, rows, inputs, outputs, threads);
}

// The same with a weight in bfloat16, each number of which is the float32 that it stands for.
void panel_linear_bfloat16(const float* x, const uint16_t* weight, const float* bias, float* y, int64_t rows,
                           int64_t inputs, int64_t outputs, int threads) {
  linear(x, weight, bias, y, rows, inputs, outputs, threads);
}
}
