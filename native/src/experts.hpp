// What stands between the products of a mixture of experts. E experts, k of them for each of T tokens;
// pair p is slot p % k of token p / k. Every token's results depend on that token alone.
#pragma once

#include <cstdint>
#include <vector>

#include "arch.hpp"

namespace tenfold {

struct Choice {  // of the k heaviest experts of each token
  const float* logits;  // (T, E), dense
  int64_t tokens, experts, top_k;
  bool norm;         // weights are divided by their sum
  float* weights;    // (T, k), heaviest first
  int32_t* chosen;   // (T, k); equally heavy ones by number
};

struct Route {  // pairs by expert: those of expert e are order[starts[e]] .. order[starts[e + 1] - 1], ascending
  const int32_t* chosen;
  int64_t pairs, experts;
  int32_t* order;   // (pairs)
  int32_t* starts;  // (E + 1)
};

struct Grouped {  // y[p] = matrix of pair p's expert times x[p / repeat]
  std::vector<Matrix> matrices;
  Route way;
  int64_t repeat;
  const float* x;
  int64_t x_row;
  float* y;
  int64_t y_row;
  int64_t room;            // rows that are multiplied together, at most: of
  float *x_rows, *y_rows;  // (room, I) and (room, O)
};

struct Mix {  // y[t] = sum of out[t k + s] weights[t k + s] in the order of s, + sigmoid(gate[t]) shared[t]
  const float* out;
  const float* weights;
  int64_t tokens, top_k, n;
  const float* shared;  // (T, n), or null
  const float* gate;    // (T), with shared
  float* y;
};

void choose_row(const Choice& c, int64_t token, std::vector<double>& room);
void sort_pairs(const Route& r);  // throws invalid_argument for a number that names no expert
void mix_row(const Mix& m, int64_t token);

}  // namespace tenfold
