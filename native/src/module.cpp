// tenfold._native: numbers and addresses in, nothing else. Shapes and types are checked in Python
// (kernels/native.py); what depends on the data (ids, slots, block tables) is checked here.
#include <nanobind/nanobind.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "runtime.hpp"

namespace nb = nanobind;
using namespace tenfold;

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Kind kind_of(int code) {
  if (code < 0 || code >= kKinds) throw std::invalid_argument("unknown weight kind code");
  return static_cast<Kind>(code);
}

KvType kv_type(int code) {
  if (code < 0 || code >= kKvTypes) throw std::invalid_argument("unknown cache type code");
  return static_cast<KvType>(code);
}

// Lets other Python threads run, for calls long enough to be worth the hand-over.
class Unlocked {
 public:
  explicit Unlocked(bool worth) {
    if (worth) release_.emplace();
  }

 private:
  std::optional<nb::gil_scoped_release> release_;
};

constexpr int64_t kLong = 1 << 20;  // multiply-adds, or as many elements times sixteen

int64_t packed_bytes(int kind, int64_t rows, int64_t cols) {
  return panel_count(rows) * panel_bytes(kind_of(kind), cols);
}

Matrix matrix(int kind, Address w, int64_t bytes, int64_t rows, int64_t cols, Address bias) {
  if (bytes < packed_bytes(kind, rows, cols)) {
    throw std::invalid_argument("the packed matrix " + std::to_string(rows) + " x " + std::to_string(cols) +
                                " takes " + std::to_string(packed_bytes(kind, rows, cols)) +
                                " bytes, its data has " + std::to_string(bytes));
  }
  return {kind_of(kind), at<uint8_t>(w), rows, cols, at<float>(bias)};
}

void linear(Runtime& self, int kind, Address w, int64_t bytes, int64_t rows, int64_t cols, Address x,
            int64_t tokens, int64_t x_row, Address bias, Address y, int64_t y_row) {
  const Matrix weight = matrix(kind, w, bytes, rows, cols, bias);
  const Unlocked unlocked(tokens * rows * cols >= kLong);
  self.linear(weight, at<float>(x), tokens, x_row, at<float>(y), y_row);
}

using Experts = std::vector<Matrix>;

void grouped(Runtime& self, const Experts& matrices, Address chosen, int64_t pairs, Address order, Address starts,
             int64_t repeat, Address x, int64_t x_row, Address y, int64_t y_row, int64_t room,
             Address x_rows, Address y_rows) {
  const Route way{at<int32_t>(chosen), pairs, static_cast<int64_t>(matrices.size()), at<int32_t>(order),
                  at<int32_t>(starts)};
  const Unlocked unlocked(true);
  self.grouped({matrices, way, repeat, at<float>(x), x_row, at<float>(y), y_row, room,
                at<float>(x_rows), at<float>(y_rows)});
}

void embed(Runtime& self, int kind, Address w, int64_t bytes, int64_t rows, int64_t cols, Address ids,
           int64_t tokens, float scale, Address y) {
  self.embed(matrix(kind, w, bytes, rows, cols, 0), at<int32_t>(ids), tokens, scale, at<float>(y));
}

void attention(Runtime& self, Address q, int64_t tokens, int64_t heads, int64_t head_dim, int64_t q_token,
               int64_t q_head, int type, Address cache, int64_t blocks, int64_t kv_heads, int64_t block_tokens,
               int64_t block_stride, int64_t layer_stride, int64_t kv_stride, int64_t head_stride,
               int64_t token_stride, int64_t layer, Address table, int64_t sequences, int64_t columns,
               int64_t table_stride, Address starts, Address context, float scale, int64_t window,
               float softcap, Address sinks, Address out, Address lse) {
  const Unlocked unlocked(true);
  self.attention({{at<float>(q), tokens, heads, q_token, q_head, head_dim},
                  {kv_type(type), at<uint8_t>(cache), blocks, 0, kv_heads, block_tokens, head_dim,
                   block_stride, layer_stride, kv_stride, head_stride, token_stride},
                  layer, at<int32_t>(table), sequences, columns, table_stride, at<int32_t>(starts),
                  at<int32_t>(context), scale, window, softcap, at<float>(sinks), at<float>(out),
                  at<float>(lse)});
}

void store_kv(Runtime& self, Address k, int64_t k_token, int64_t k_head, Address v, int64_t v_token,
              int64_t v_head, int64_t tokens, int type, Address cache, int64_t blocks, int64_t kv_heads,
              int64_t block_tokens, int64_t head_dim, int64_t block_stride, int64_t layer_stride,
              int64_t kv_stride, int64_t head_stride, int64_t token_stride, int64_t layer, Address slots) {
  self.store_kv({at<float>(k), tokens, kv_heads, k_token, k_head, head_dim},
                {at<float>(v), tokens, kv_heads, v_token, v_head, head_dim},
                {kv_type(type), at<uint8_t>(cache), blocks, 0, kv_heads, block_tokens, head_dim,
                 block_stride, layer_stride, kv_stride, head_stride, token_stride},
                layer, at<int32_t>(slots));
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // a Kernels object may live until the process ends
  m.def("packed_bytes", packed_bytes);
  m.def("best_arch", [] { return choose_arch("")->name; });
  nb::class_<Tape>(m, "Tape").def(nb::init<>()).def("__len__", &Tape::size);
  nb::class_<Experts>(m, "Experts")
      .def(nb::init<>())
      .def("add", [](Experts& self, int kind, Address w, int64_t bytes, int64_t rows, int64_t cols) {
        self.push_back(matrix(kind, w, bytes, rows, cols, 0));
      });
  nb::class_<Runtime>(m, "Runtime")
      .def(nb::init<int, const char*, bool>())
      .def_prop_ro("threads", &Runtime::threads)
      .def_prop_ro("arch", &Runtime::arch_name)
      .def("pack",
           [](Runtime& self, int kind, int64_t rows, int64_t cols, Address raw, Address out) {
             const Unlocked unlocked(true);
             self.pack(kind_of(kind), rows, cols, at<uint8_t>(raw), at<uint8_t>(out));
           })
      .def("linear", linear)
      .def("embed", embed)
      .def("rms_norm",
           [](Runtime& self, Address x, int64_t tokens, int64_t heads, int64_t n, int64_t token_stride,
              int64_t head_stride, Address weight, float eps, Address y) {
             self.rms_norm({at<float>(x), tokens, heads, token_stride, head_stride, n}, at<float>(weight),
                           eps, at<float>(y));
           })
      .def("add_rms_norm",
           [](Runtime& self, Address x, Address delta, Address delta_weight, Address weight, int64_t tokens,
              int64_t n, float eps, Address y) {
             self.add_rms_norm(at<float>(x), at<float>(delta), at<float>(delta_weight), at<float>(weight),
                               tokens, n, eps, at<float>(y));
           })
      .def("softcap",
           [](Runtime& self, Address x, int64_t count, float cap) { self.softcap(at<float>(x), count, cap); })
      .def("largest",
           [](Runtime& self, Address x, int64_t rows, int64_t n, Address ids, Address values) {
             self.largest(at<float>(x), rows, n, at<int32_t>(ids), at<float>(values));
           })
      .def("gather",
           [](Runtime& self, Address x, Address rows, int64_t count, int64_t total, int64_t n, Address y) {
             self.gather(at<float>(x), at<int32_t>(rows), count, total, n, at<float>(y));
           })
      .def("slots",
           [](Runtime& self, Address table, int64_t sequences, int64_t columns, int64_t table_stride,
              int64_t tokens, int64_t block_tokens, Address starts, Address context, Address out) {
             self.slots({at<int32_t>(table), sequences, columns, table_stride, tokens, block_tokens,
                         at<int32_t>(starts), at<int32_t>(context)},
                        at<int32_t>(out));
           })
      .def("record", [](Runtime& self, Tape& tape) { self.record(&tape); })
      .def("stop", &Runtime::stop)
      .def("replay", [](Runtime& self, const Tape& tape) {
             const Unlocked unlocked(true);
             self.replay(tape);
           })
      .def_prop_ro("seconds", &Runtime::seconds)
      .def("gated",
           [](Runtime& self, Address x, int64_t tokens, int64_t x_row, int64_t half, bool gelu, Address y) {
             const Unlocked unlocked(tokens * half * 16 >= kLong);
             self.gated(at<float>(x), tokens, x_row, half, gelu, at<float>(y));
           })
      .def("rope",
           [](Runtime& self, Address x, int64_t tokens, int64_t heads, int64_t n, int64_t token_stride,
              int64_t head_stride, Address positions, Address cos, Address sin, int64_t table) {
             self.rope({at<float>(x), tokens, heads, token_stride, head_stride, n}, at<int32_t>(positions),
                       at<float>(cos), at<float>(sin), table);
           })
      .def("choose",
           [](Runtime& self, Address logits, int64_t tokens, int64_t experts, int64_t top_k, bool norm,
              Address weights, Address chosen) {
             self.choose({at<float>(logits), tokens, experts, top_k, norm, at<float>(weights),
                          at<int32_t>(chosen)});
           })
      .def("route",
           [](Runtime& self, Address chosen, int64_t pairs, int64_t experts, Address order, Address starts) {
             self.route({at<int32_t>(chosen), pairs, experts, at<int32_t>(order), at<int32_t>(starts)});
           })
      .def("grouped", grouped)
      .def("mix",
           [](Runtime& self, Address out, Address weights, int64_t tokens, int64_t top_k, int64_t n,
              Address shared, Address gate, Address y) {
             self.mix({at<float>(out), at<float>(weights), tokens, top_k, n, at<float>(shared),
                       at<float>(gate), at<float>(y)});
           })
      .def("store_kv", store_kv)
      .def("attention", attention);
}
