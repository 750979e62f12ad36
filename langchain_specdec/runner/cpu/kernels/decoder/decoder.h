// What Python hands over: a decoder's weights, its cache, and one step. Mirrored by `decoder_weights.py` and
// `native_decoder.py`. All numbers of 8 bytes or 4, all arrays row by row without gaps.
#pragma once

#include <cstdint>

extern "C" {

// A weight as its file holds it: a row of blocks per output, one row after the other.
struct Matrix {
  const uint8_t* data;
  int64_t format;  // A GGML type
  int64_t outputs, inputs;
  int64_t row_bytes;
};

// A decoder layer. Null is "has none".
struct Layer {
  Matrix query, key, value, output, gate, up, down;
  const float *query_bias, *key_bias, *value_bias, *output_bias;
  // Weights of RMSNorms: before attention, of each head's query and key, after attention, before and after the MLP.
  const float *attention_norm, *query_norm, *key_norm, *post_attention_norm, *mlp_norm, *post_mlp_norm;
  int64_t rotary;  // Which table; -1: positions do not turn queries and keys
  int64_t window;  // Positions that a token sees, itself included; 0: all
};

enum Activation : int64_t { kSilu = 0, kGeluTanh = 1, kGelu = 2 };

struct Model {
  int64_t layers, hidden, heads, kv_heads, head_dim, mlp, vocab;
  int64_t activation;
  int64_t rotary_dim;   // Numbers of a head that turn, the first ones
  int64_t rotary_pairs; // 0: number i turns with i + rotary_dim / 2 (Hugging Face); 1: with its neighbour (GGUF's Llama)
  int64_t positions;    // Rows of the rotary tables; later positions take the last
  const float* cosines[2];  // [positions, rotary_dim / 2]
  const float* sines[2];
  float norm_eps, embedding_scale, attention_scale, attention_softcap, logit_softcap, residual_scale, logit_scale;
  float reserved;
  Matrix embedding, head;
  const float* final_norm;
  const float* head_bias;
  const Layer* layer;
  // Of a draft head, which is given a state with each token (EAGLE-3). Its first layer's queries, keys and values are made
  // of the token's embedding as `attention_norm` has it, and then the state as this norm has it. Null: a plain decoder.
  const float* state_norm;
  int64_t has_normed_residual;  // Whether the first layer adds to the normed state, not to the state as it is given
  Matrix fc;                    // Condenses the states of several layers to one; without data: there is none
};

// Keys and values in float32, by layer and slot, `decoder_slot_floats` numbers each: first the keys of each head of
// keys, [length / 16, head_dim, 16], then its values, [length, head_dim in whole groups of 16]. Zeros at first.
struct Cache {
  float* data;
  int64_t slots, length;  // length: a multiple of 16
};

// The rows of a forward. Null is "not wanted", or "as usual".
struct Step {
  int64_t rows, width;       // Of the arrays; rows may have fewer tokens
  const int64_t* tokens;     // [rows, width]
  const int64_t* counts;     // [rows] tokens of each
  const int64_t* slots;      // [rows]
  const int64_t* starts;     // [rows] position of the first one
  const int64_t* depths;     // [rows, width] steps from the first token; null: 0, 1, 2, ...
  const uint8_t* ancestors;  // [rows, width, width] whether a token sees another one; null: those before it
  float* logits;             // [rows, width, vocab]; null: a prompt, of which only keys and values are kept
  const int64_t* wanted;     // [rows] of how many of its last tokens logits are wanted; null: of all
  const float* temperatures; // [rows]; null: all 0
  const int32_t* seeds;      // [rows, 2]
  int64_t* picks;            // [rows, width] what is picked after each token; null: nothing
  float* scores;             // [rows, width] its logit
  int64_t candidates;        // How many of the best tokens are wanted
  int64_t* best;             // [candidates, rows, width]
  float* chances;            // [candidates, rows, width] of these among all tokens (softmax); NaN: logits are not sound
  int64_t taps;              // How many states of each token are wanted, at most kMaxTaps
  const int64_t* points;     // [taps] the layer that each enters; the number of layers: what the final norm gives; and
                             // one more: what the final norm reads
  float* states;             // [rows, width, taps, hidden]
  const float* hidden;       // [rows, width, hidden] the states that a draft head is given; null for a plain decoder
};

constexpr int64_t kMaxTaps = 8;

// Numbers of a layer's keys and values in one slot.
int64_t decoder_slot_floats(const Model* model, int64_t length);
// Null where memory cannot be had. Weights and cache have to outlive it; the structs themselves are copied. `beside` is a
// decoder that it takes turns with, whose threads it shares, or null: it has so many of its own.
void* decoder_open(const Model* model, const Cache* cache, int64_t threads, const void* beside);
void decoder_close(void* decoder);
// Threads that it has, the calling one included.
int64_t decoder_threads(const void* decoder);
enum Outcome : int64_t { kDone = 0, kOutside = 1, kNoMemory = 2 };
// One forward; returns when all of it is done. One thread at a time, as with all that changes the cache. Nothing is done
// of a step with a token outside the vocabulary, a row outside the slots, or a tree or candidates that are too many.
int64_t decoder_run(void* decoder, const Step* step);
// What a draft head is given of its target: states W^T by `fc`, [count, fc.inputs] to [count, hidden]. As `decoder_run`.
int64_t decoder_condense(void* decoder, const float* states, int64_t count, float* condensed);
// Moves what is at start + offsets[i] of a slot to start + i, in all layers. Offsets grow.
void decoder_keep(void* decoder, int64_t slot, int64_t start, const int64_t* offsets, int64_t count);
// Writes zeros over what is in a slot from a position on, up to another one, and gives whole pages of it back.
void decoder_wipe(void* decoder, int64_t slot, int64_t start, int64_t stop);
// Keys or values of a slot as they would be in a plain cache, [kv_heads, count, head_dim], for tests.
void decoder_read(void* decoder, int64_t layer, int64_t slot, int64_t count, float* keys, float* values);
// A row of a matrix as numbers, `inputs` of them in whole chunks of 32. 0 where the format is not known.
int64_t decoder_widen(const Matrix* matrix, int64_t row, float* numbers);
// y = x W^T for x [rows, inputs in whole chunks of 32], y [rows, outputs], without threads; for tests.
void decoder_product(const Matrix* matrix, const float* x, int64_t rows, float* y);
// The noise of tokens 0 to count - 1 at a position, in whole vectors of 16.
void decoder_noise(const int32_t* seeds, int64_t position, int64_t count, float* noise);
}
