#include "experts.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace tenfold {

// A softmax in double, then the largest one after another; a row with a NaN is NaN throughout.
void choose_row(const Choice& c, int64_t token, std::vector<double>& room) {
  const float* logits = c.logits + token * c.experts;
  room.resize(c.experts);
  double most = logits[0], sum = 0;
  for (int64_t e = 1; e < c.experts; ++e) most = logits[e] > most ? logits[e] : most;
  for (int64_t e = 0; e < c.experts; ++e) sum += room[e] = std::exp(logits[e] - most);
  float* weights = c.weights + token * c.top_k;
  int32_t* chosen = c.chosen + token * c.top_k;
  float total = 0;
  for (int64_t s = 0; s < c.top_k; ++s) {
    int64_t best = -1;
    for (int64_t e = 0; e < c.experts; ++e) {
      const bool taken = std::find(chosen, chosen + s, e) != chosen + s;
      if (!taken && (best < 0 || room[e] > room[best])) best = e;
    }
    chosen[s] = static_cast<int32_t>(best);
    weights[s] = static_cast<float>(room[best] / sum);
    total += weights[s];
  }
  if (!c.norm) return;
  for (int64_t s = 0; s < c.top_k; ++s) weights[s] /= total;
}

void sort_pairs(const Route& r) {
  std::fill(r.starts, r.starts + r.experts + 1, 0);
  for (int64_t p = 0; p < r.pairs; ++p) {
    if (r.chosen[p] < 0 || r.chosen[p] >= r.experts) {
      throw std::invalid_argument("pair " + std::to_string(p) + " names expert " +
                                  std::to_string(r.chosen[p]) + " of " + std::to_string(r.experts));
    }
    ++r.starts[r.chosen[p] + 1];
  }
  for (int64_t e = 0; e < r.experts; ++e) r.starts[e + 1] += r.starts[e];
  for (int64_t p = 0; p < r.pairs; ++p) r.order[r.starts[r.chosen[p]]++] = static_cast<int32_t>(p);
  for (int64_t e = r.experts; e > 0; --e) r.starts[e] = r.starts[e - 1];  // each had moved to its end
  r.starts[0] = 0;
}

void mix_row(const Mix& m, int64_t token) {
  const float* weights = m.weights + token * m.top_k;
  const float* out = m.out + token * m.top_k * m.n;
  float* y = m.y + token * m.n;
  for (int64_t i = 0; i < m.n; ++i) y[i] = out[i] * weights[0];
  for (int64_t s = 1; s < m.top_k; ++s) {
    const float* row = out + s * m.n;
    for (int64_t i = 0; i < m.n; ++i) y[i] += row[i] * weights[s];
  }
  if (!m.shared) return;
  const float gate = static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(m.gate[token]))));
  const float* shared = m.shared + token * m.n;
  for (int64_t i = 0; i < m.n; ++i) y[i] += gate * shared[i];
}

}  // namespace tenfold
