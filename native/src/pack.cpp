#include "pack.hpp"

#include <cmath>
#include <cstring>

namespace tenfold {
namespace {

template <class T>
T read(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
template <class T>
void write(uint8_t* p, T value) {
  std::memcpy(p, &value, sizeof value);
}

float from_f16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t size = static_cast<uint32_t>(half & 0x7fffu) << 13;
  float value = read<float>(reinterpret_cast<const uint8_t*>(&size)) * 0x1p112f;
  if (size >= 0x0f800000u) value = size == 0x0f800000u ? INFINITY : NAN;
  return sign ? -value : value;
}

float from_bf16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  return read<float>(reinterpret_cast<const uint8_t*>(&bits));
}

// One checkpoint row's 32 columns, taken apart. Codes are unsigned nibbles or signed bytes.
struct Columns {
  uint16_t half_scale = 0, half_min = 0;  // where the packed form keeps float16
  float scale[2] = {0, 0};                // where it keeps float32
  float min = 0;
  int8_t codes[kBlock];
  bool finite = true;
};

void nibbles(const uint8_t* p, int8_t* codes) {  // 16 bytes: low halves are columns 0..15
  for (int i = 0; i < 16; ++i) {
    codes[i] = static_cast<int8_t>(p[i] & 15);
    codes[i + 16] = static_cast<int8_t>(p[i] >> 4);
  }
}

Columns take_small(Kind kind, const uint8_t* p) {  // the 32-column checkpoint blocks
  Columns c;
  c.half_scale = read<uint16_t>(p);
  c.finite = std::isfinite(from_f16(c.half_scale));
  if (kind == Kind::q4_0) {
    nibbles(p + 2, c.codes);
  } else if (kind == Kind::q4_1) {
    c.half_min = read<uint16_t>(p + 2);
    c.finite = c.finite && std::isfinite(from_f16(c.half_min));
    nibbles(p + 4, c.codes);
  } else if (kind == Kind::q5_0) {
    const uint32_t fifth = read<uint32_t>(p + 2);
    nibbles(p + 6, c.codes);
    for (int i = 0; i < kBlock; ++i) {
      c.codes[i] = static_cast<int8_t>((c.codes[i] | ((fifth >> i & 1) << 4)) - 16);
    }
  } else {
    std::memcpy(c.codes, p + 2, kBlock);
  }
  return c;
}

// Sub-block `part` (0..7) of a 256-column Q4_K block: d, dmin, 12 bytes of 6-bit pairs, nibbles.
Columns take_q4_k(const uint8_t* p, int part) {
  Columns c;
  const float d = from_f16(read<uint16_t>(p)), dmin = from_f16(read<uint16_t>(p + 2));
  c.finite = std::isfinite(d) && std::isfinite(dmin);
  const uint8_t* pairs = p + 4;
  int scale, min;
  if (part < 4) {
    scale = pairs[part] & 63;
    min = pairs[part + 4] & 63;
  } else {
    scale = (pairs[part + 4] & 15) | (pairs[part - 4] >> 6) << 4;
    min = (pairs[part + 4] >> 4) | (pairs[part] >> 6) << 4;
  }
  c.scale[0] = d * static_cast<float>(scale);
  c.min = -(dmin * static_cast<float>(min));
  const uint8_t* codes = p + 16 + part / 2 * 32;
  for (int i = 0; i < kBlock; ++i) {
    c.codes[i] = static_cast<int8_t>(part % 2 ? codes[i] >> 4 : codes[i] & 15);
  }
  return c;
}

// Columns 32 part .. of a 256-column Q6_K block: 128 low nibbles, 64 high pairs, 16 scales, d.
Columns take_q6_k(const uint8_t* p, int part) {
  Columns c;
  const float d = from_f16(read<uint16_t>(p + 208));
  c.finite = std::isfinite(d);
  const int half = part / 4, quarter = part % 4;
  const uint8_t* low = p + half * 64 + quarter % 2 * 32;
  const uint8_t* high = p + 128 + half * 32;
  for (int i = 0; i < kBlock; ++i) {
    const int nibble = quarter < 2 ? low[i] & 15 : low[i] >> 4;
    c.codes[i] = static_cast<int8_t>((nibble | (high[i] >> (2 * quarter) & 3) << 4) - 32);
  }
  for (int s = 0; s < 2; ++s) {
    c.scale[s] = d * static_cast<float>(static_cast<int8_t>(p[192 + part * 2 + s]));
  }
  return c;
}

Columns take(Kind kind, const uint8_t* row, int64_t block) {
  if (kind == Kind::q4_k) return take_q4_k(row + block / 8 * 144, static_cast<int>(block % 8));
  if (kind == Kind::q6_k) return take_q6_k(row + block / 8 * 210, static_cast<int>(block % 8));
  return take_small(kind, row + block * raw_block(kind).bytes);
}

// Where the codes begin inside a packed block.
int64_t codes_offset(Kind kind) {
  const bool four = kind == Kind::q4_0 || kind == Kind::q4_1 || kind == Kind::q4_k;
  return block_bytes(kind) - (four ? kPanel * kBlock / 2 : kPanel * kBlock);
}

void put(Kind kind, const Columns& c, int lane, uint8_t* block) {
  uint8_t* codes = block + codes_offset(kind);
  if (kind == Kind::q4_0 || kind == Kind::q4_1 || kind == Kind::q4_k) {
    for (int k = 0; k < kBlock; k += 8) {
      uint32_t word = 0;
      for (int j = 0; j < 8; ++j) word |= static_cast<uint32_t>(c.codes[k + j]) << (4 * j);
      write(codes + (k / 8 * kPanel + lane) * 4, word);
    }
  } else {
    for (int k = 0; k < kBlock; k += 4) std::memcpy(codes + (k / 4 * kPanel + lane) * 4, c.codes + k, 4);
  }
  if (kind == Kind::q4_k) {
    write(block + lane * 4, c.scale[0]);
    write(block + (kPanel + lane) * 4, c.min);
  } else if (kind == Kind::q6_k) {
    write(block + lane * 4, c.scale[0]);
    write(block + (kPanel + lane) * 4, c.scale[1]);
  } else {
    write(block + lane * 2, c.half_scale);
    if (kind == Kind::q4_1) write(block + (kPanel + lane) * 2, c.half_min);
  }
}

bool pack_dense(Kind kind, int64_t cols, const uint8_t* row, int lane, uint8_t* panel) {
  bool finite = true;
  for (int64_t k = 0; k < cols; ++k) {
    if (kind == Kind::f32) {
      const float value = read<float>(row + k * 4);
      finite = finite && std::isfinite(value);
      write(panel + (k * kPanel + lane) * 4, value);
    } else {
      const uint16_t value = read<uint16_t>(row + k * 2);
      finite = finite && std::isfinite(kind == Kind::f16 ? from_f16(value) : from_bf16(value));
      write(panel + (k * kPanel + lane) * 2, value);
    }
  }
  return finite;
}

}  // namespace

bool pack_panels(Kind kind, int64_t rows, int64_t cols, const uint8_t* raw, int64_t panel0,
                 int64_t panel1, uint8_t* out) {
  const int64_t size = panel_bytes(kind, cols);
  const int64_t row_bytes = cols / raw_block(kind).values * raw_block(kind).bytes;
  bool finite = true;
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    uint8_t* to = out + panel * size;
    if ((panel + 1) * kPanel > rows) std::memset(to, 0, size);
    for (int lane = 0; lane < kPanel && panel * kPanel + lane < rows; ++lane) {
      const uint8_t* row = raw + (panel * kPanel + lane) * row_bytes;
      if (is_dense(kind)) {
        finite = pack_dense(kind, cols, row, lane, to) && finite;
        continue;
      }
      for (int64_t block = 0; block < cols / kBlock; ++block) {
        const Columns columns = take(kind, row, block);
        finite = finite && columns.finite;
        put(kind, columns, lane, to + block * block_bytes(kind));
      }
    }
  }
  return finite;
}

namespace {

void unpack_dense(Kind kind, int64_t cols, const uint8_t* panel, int lane, float* out) {
  for (int64_t k = 0; k < cols; ++k) {
    const int64_t at = k * kPanel + lane;
    if (kind == Kind::f32) out[k] = read<float>(panel + at * 4);
    else if (kind == Kind::f16) out[k] = from_f16(read<uint16_t>(panel + at * 2));
    else out[k] = from_bf16(read<uint16_t>(panel + at * 2));
  }
}

float scale_of(Kind kind, const uint8_t* block, int index) {  // index counts lanes over all scale rows
  const bool wide = kind == Kind::q4_k || kind == Kind::q6_k;
  return wide ? read<float>(block + index * 4) : from_f16(read<uint16_t>(block + index * 2));
}

}  // namespace

void unpack_row(Kind kind, int64_t cols, const uint8_t* packed, int64_t row, float* out) {
  const uint8_t* panel = packed + row / kPanel * panel_bytes(kind, cols);
  const int lane = static_cast<int>(row % kPanel);
  if (is_dense(kind)) return unpack_dense(kind, cols, panel, lane, out);
  const bool four = kind == Kind::q4_0 || kind == Kind::q4_1 || kind == Kind::q4_k;
  for (int64_t b = 0; b < cols / kBlock; ++b, out += kBlock) {
    const uint8_t* block = panel + b * block_bytes(kind);
    const uint8_t* codes = block + codes_offset(kind);
    const float scale = scale_of(kind, block, lane);
    if (four) {
      const float low = kind == Kind::q4_0 ? -8.0f * scale : scale_of(kind, block, kPanel + lane);
      for (int k = 0; k < kBlock; ++k) {
        const uint32_t word = read<uint32_t>(codes + (k / 8 * kPanel + lane) * 4);
        out[k] = scale * static_cast<float>(word >> (k % 8 * 4) & 15) + low;
      }
    } else {
      const float second = kind == Kind::q6_k ? scale_of(kind, block, kPanel + lane) : scale;
      for (int k = 0; k < kBlock; ++k) {
        const int8_t code = read<int8_t>(codes + (k / 4 * kPanel + lane) * 4 + k % 4);
        out[k] = (k < 16 ? scale : second) * static_cast<float>(code);
      }
    }
  }
}

}  // namespace tenfold
