// Products of the tokens of some experts with those experts' weights in GGML blocks, on PyTorch's threads, in float32.
#include <algorithm>

#include "decoder/products.h"

namespace {

// Outputs of a piece of work: few enough that a handful of experts keeps all threads busy.
constexpr int64_t kPiece = 64;

}  // namespace

extern "C" {

// y = x W^T, by the weight of each token's expert. `data` has [outputs] rows of each expert. Tokens are in the order of
// their experts: those of experts[i] end before ends[i]. x is [tokens, inputs in whole blocks], y [tokens, outputs].
void expert_products(const uint8_t* data, int64_t format, int64_t outputs, int64_t inputs, int64_t row_bytes,
                     const int64_t* experts, const int64_t* ends, int64_t count, const float* x, float* y,
                     int threads) {
  const int64_t pieces = (outputs + kPiece - 1) / kPiece;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < count * pieces; ++task) {
    const int64_t i = task / pieces, first = task % pieces * kPiece;
    const int64_t begin = i ? ends[i - 1] : 0;
    const Matrix matrix{data + experts[i] * outputs * row_bytes, format, outputs, inputs, row_bytes};
    product(matrix, first, std::min(first + kPiece, outputs), ends[i] - begin, x + begin * inputs, inputs,
            y + begin * outputs + first, outputs);
  }
}
}
