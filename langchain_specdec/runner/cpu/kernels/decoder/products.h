// Products of rows with a weight that keeps the bits of its file: y = x W^T in float32, the weight widened in registers.
//
// A tile of a few outputs by a few rows stays in registers while their inputs pass. Every output of a row is the same sum
// in the same order, whatever tile it is computed in: lane by lane over the inputs, then over the lanes. So its bits
// depend neither on the rows beside it nor on who computes what.
#pragma once

#include <algorithm>
#include <vector>

#include "decoder.h"
#include "formats.h"

#if defined(__AVX512F__)
constexpr int kTileOutputs = 4, kTileRows = 6;
#elif defined(__AVX2__)
constexpr int kTileOutputs = 2, kTileRows = 3;
#else
constexpr int kTileOutputs = 4, kTileRows = 4;
#endif
// How far ahead of its own reading a tile asks memory for weights, in bytes.
constexpr int64_t kAhead = 4096;
// From this many tiles of rows on, weights are widened once, into the cache, and not by each tile.
constexpr int64_t kWideningTiles = 4;

// Rows of activations are whole chunks, zeros after the last number.
inline int64_t padded(int64_t count) { return (count + kChunk - 1) / kChunk * kChunk; }

// The chunk of a row that is not whole: with zeros after its end. Only plain formats have such.
template <class Format>
inline void widen_rest(const uint8_t* from, int64_t count, Vector* w) {
  alignas(64) uint8_t whole[Format::kBytes] = {};
  std::memcpy(whole, from, count * Format::kSize);
  Format::widen(whole, 0, w);
}

template <class Format, int outputs, int rows>
void tile(const uint8_t* weight, int64_t row_bytes, int64_t inputs, const float* x, int64_t x_stride, float* y,
          int64_t y_stride) {
  Vector sums[outputs][rows] = {};
  const auto add = [&](const Vector(*w)[kChunkVectors], const float* at) {
    for (int v = 0; v < kChunkVectors; ++v)
      for (int r = 0; r < rows; ++r) {
        const Vector input = load(at + r * x_stride + v * kLanes);
        for (int o = 0; o < outputs; ++o) sums[o][r] += input * w[o][v];
      }
  };
  const int64_t blocks = inputs / (kChunk * Format::kParts);
  const uint8_t* ahead = weight + kAhead;
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t line = 0; line < outputs * Format::kBytes; line += kLine) __builtin_prefetch(ahead + line);
    ahead += outputs * Format::kBytes;
    for (int part = 0; part < Format::kParts; ++part) {
      Vector w[outputs][kChunkVectors];
      for (int o = 0; o < outputs; ++o) Format::widen(weight + o * row_bytes, part, w[o]);
      add(w, x);
      x += kChunk;
    }
    weight += Format::kBytes;
  }
  if constexpr (Format::kSize > 0)
    if (const int64_t rest = inputs % kChunk) {
      Vector w[outputs][kChunkVectors];
      for (int o = 0; o < outputs; ++o) widen_rest<Format>(weight + o * row_bytes, rest, w[o]);
      add(w, x);
    }
  for (int r = 0; r < rows; ++r)
    if constexpr (outputs == 4)
      *reinterpret_cast<StoredFour*>(y + r * y_stride) = sums_of(sums[0][r], sums[1][r], sums[2][r], sums[3][r]);
    else
      for (int o = 0; o < outputs; ++o) y[r * y_stride + o] = sum_of(sums[o][r]);
}

// As `tile`, for a number of rows that is known only now.
template <class Format, int outputs, int most = kTileRows>
void tile_of(int64_t rows, const uint8_t* weight, int64_t row_bytes, int64_t inputs, const float* x, int64_t x_stride,
             float* y, int64_t y_stride) {
  if constexpr (most > 1)
    if (rows < most)
      return tile_of<Format, outputs, most - 1>(rows, weight, row_bytes, inputs, x, x_stride, y, y_stride);
  tile<Format, outputs, most>(weight, row_bytes, inputs, x, x_stride, y, y_stride);
}

// Some outputs of all rows, in tiles of nearly equal size.
template <class Format, int outputs>
void rows_of(int64_t rows, const uint8_t* weight, int64_t row_bytes, int64_t inputs, const float* x, int64_t x_stride,
             float* y, int64_t y_stride) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t count = rows / tiles + (t < rows % tiles);
    tile_of<Format, outputs>(count, weight, row_bytes, inputs, x, x_stride, y, y_stride);
    x += count * x_stride;
    y += count * y_stride;
  }
}

// A row as numbers; whole chunks are written.
template <class Format>
void widen_row(const uint8_t* row, int64_t inputs, float* numbers) {
  Vector w[kChunkVectors];
  const auto write = [&] {
    for (int v = 0; v < kChunkVectors; ++v) store(numbers + v * kLanes, w[v]);
    numbers += kChunk;
  };
  for (int64_t b = 0; b < inputs / (kChunk * Format::kParts); ++b, row += Format::kBytes)
    for (int part = 0; part < Format::kParts; ++part) {
      Format::widen(row, part, w);
      write();
    }
  if constexpr (Format::kSize > 0)
    if (const int64_t rest = inputs % kChunk) {
      widen_rest<Format>(row, rest, w);
      write();
    }
}

template <class Format, int outputs>
void outputs_of(const Matrix& matrix, int64_t first, int64_t rows, const float* x, int64_t x_stride, float* y,
                int64_t y_stride) {
  const uint8_t* weight = matrix.data + first * matrix.row_bytes;
  if (rows <= kTileRows * (kWideningTiles - 1))
    return rows_of<Format, outputs>(rows, weight, matrix.row_bytes, matrix.inputs, x, x_stride, y, y_stride);
  static thread_local std::vector<float> wide;
  const int64_t size = padded(matrix.inputs);
  wide.resize(outputs * size + 16);
  float* numbers = wide.data() + (16 - reinterpret_cast<uintptr_t>(wide.data()) / 4 % 16) % 16;
  for (int o = 0; o < outputs; ++o) widen_row<Format>(weight + o * matrix.row_bytes, matrix.inputs, numbers + o * size);
  rows_of<F32, outputs>(rows, reinterpret_cast<const uint8_t*>(numbers), 4 * size, size, x, x_stride, y, y_stride);
}

// Outputs first to last of x W^T: y[r * y_stride + o - first].
inline void product(const Matrix& matrix, int64_t first, int64_t last, int64_t rows, const float* x, int64_t x_stride,
                    float* y, int64_t y_stride) {
  with_format(matrix.format, [&](auto format) {
    using Format = decltype(format);
    int64_t o = first;
    for (; o + kTileOutputs <= last; o += kTileOutputs)
      outputs_of<Format, kTileOutputs>(matrix, o, rows, x, x_stride, y + o - first, y_stride);
    for (; o < last; ++o)
      for (int64_t r = 0; r < rows; ++r)
        tile<Format, 1, 1>(matrix.data + o * matrix.row_bytes, matrix.row_bytes, matrix.inputs, x + r * x_stride,
                           x_stride, y + r * y_stride + o - first, y_stride);
  });
}
