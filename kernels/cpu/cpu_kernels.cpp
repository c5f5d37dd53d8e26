// The CPU kernels: what `kernels/` computes on a CPU in one call each, for float32 activations.
//
// Compiled by `build.py` for the instructions of the machine it runs on, and called through the C
// functions at the end. Every function treats a row alone, in an order of operations that depends
// on nothing but the row's own numbers and the entries it sees, so that a row gives the same bits
// in any company and on any number of threads. Compiled without contraction: a sum is fused with a
// product only where `fma` says so.
//
// Names and shapes are those of the Python modules that call: T rows, Hq and Hkv heads, D head
// size, S spans, P pages of the longest sequence.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// Sixteen numbers at a time; the compiler splits them where registers are shorter.
constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

inline Floats splat(float x) { return Floats{} + x; }

inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  union {
    Floats all;
    __m256 half[2];
  } x{a}, y{b}, z{c};
  z.half[0] = _mm256_fmadd_ps(x.half[0], y.half[0], z.half[0]);
  z.half[1] = _mm256_fmadd_ps(x.half[1], y.half[1], z.half[1]);
  return z.all;
#else
  return a * b + c;
#endif
}

inline float sum(Floats x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#endif
  float parts[LANES];
  store(parts, x);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) parts[lane] += parts[lane + width];
  return parts[0];
}

// e to the x for x <= 0, within two units in the last place; 0 below -87.
inline Floats exp_of_negative(Floats x) {
  const Floats floor_x = splat(-87.0f);
  const Ints alive = x > floor_x;
  x = alive ? x : floor_x;
  // x = n log 2 + r with |r| <= log 2 / 2; adding 1.5 * 2**23 rounds to an integer.
  const Floats magic = splat(12582912.0f);
  const Floats shifted = fma(x, splat(1.44269504088896341f), magic);
  const Floats n = shifted - magic;
  Floats r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Floats p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  const Ints exponent = ((Ints)shifted - (Ints)magic + 127) << 23;
  return alive ? p * (Floats)exponent : Floats{};
}

// Rows below this number are not worth a second thread in cheap operations.
constexpr int64_t SHARE_ROWS = 16;
// Entries of a row that one thread activates at a time.
constexpr int64_t SWIGLU_PART = 512;
// Below this number of pieces of attention every head is a piece of its own.
constexpr int64_t FEW_PIECES = 8;

// ---------------------------------------------------------------------------- int8 products
//
// Weights lie in groups of 32 outputs, four inputs deep, each raised by 128 so that it is unsigned:
// [groups, in / 4, 32, 4]. Rows are signed. What the 128 adds is taken off again: 128 times the
// row's own sum.

constexpr int GROUP = 32;
constexpr int DEPTH = 4;
constexpr int RAISED = 128;
constexpr float SMALLEST_PEAK = 1e-30f;

#if defined(__AVX512BW__)
constexpr int VECTORS = 2;
constexpr int TILE_ROWS = 8;
typedef __m512i Sums;
inline Sums zero_sums() { return _mm512_setzero_si512(); }
inline Sums load_bytes(const uint8_t* from) { return _mm512_loadu_si512(from); }
inline Sums splat_bytes(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, 4);
  return _mm512_set1_epi32(four);
}
inline Sums multiply_add(Sums total, Sums weights, Sums row) {
#if defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(total, weights, row);
#else
  const Sums pairs = _mm512_maddubs_epi16(weights, row);
  return _mm512_add_epi32(total, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
}
inline void store_sums(int32_t* to, Sums x) { _mm512_storeu_si512(to, x); }
#elif defined(__AVX2__)
constexpr int VECTORS = 4;
constexpr int TILE_ROWS = 2;
typedef __m256i Sums;
inline Sums zero_sums() { return _mm256_setzero_si256(); }
inline Sums load_bytes(const uint8_t* from) { return _mm256_loadu_si256((const __m256i*)from); }
inline Sums splat_bytes(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, 4);
  return _mm256_set1_epi32(four);
}
inline Sums multiply_add(Sums total, Sums weights, Sums row) {
#if defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(total, weights, row);
#else
  const Sums pairs = _mm256_maddubs_epi16(weights, row);
  return _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}
inline void store_sums(int32_t* to, Sums x) { _mm256_storeu_si256((__m256i*)to, x); }
#else
// Plain C, which compilers turn into what the machine has.
constexpr int VECTORS = 8;
constexpr int TILE_ROWS = 2;
struct Sums {
  int32_t lane[DEPTH];
};
struct Bytes {
  int16_t byte[DEPTH * DEPTH];
};
inline Sums zero_sums() { return Sums{}; }
inline Bytes load_bytes(const uint8_t* from) {
  Bytes bytes;
  for (int i = 0; i < DEPTH * DEPTH; ++i) bytes.byte[i] = from[i];
  return bytes;
}
inline Bytes splat_bytes(const int8_t* from) {
  Bytes bytes;
  for (int i = 0; i < DEPTH * DEPTH; ++i) bytes.byte[i] = from[i % DEPTH];
  return bytes;
}
inline Sums multiply_add(Sums total, Bytes weights, Bytes row) {
  for (int lane = 0; lane < DEPTH; ++lane)
    for (int i = 0; i < DEPTH; ++i)
      total.lane[lane] += int32_t(weights.byte[DEPTH * lane + i]) * row.byte[DEPTH * lane + i];
  return total;
}
inline void store_sums(int32_t* to, Sums x) { std::memcpy(to, x.lane, sizeof x.lane); }
#endif

constexpr int VECTOR_BYTES = GROUP * DEPTH / VECTORS;

// Integer sums [ROWS, 32] of one group with ROWS rows, `stride` bytes apart.
template <int ROWS>
inline void multiply_group(const uint8_t* weights, const int8_t* rows, int64_t stride,
                           int64_t steps, int32_t* sums) {
  Sums totals[ROWS][VECTORS];
  for (int row = 0; row < ROWS; ++row)
    for (int v = 0; v < VECTORS; ++v) totals[row][v] = zero_sums();
  for (int64_t step = 0; step < steps; ++step) {
    for (int v = 0; v < VECTORS; ++v) {
      const auto part = load_bytes(weights + step * GROUP * DEPTH + v * VECTOR_BYTES);
#pragma GCC unroll 8
      for (int row = 0; row < ROWS; ++row)
        totals[row][v] =
            multiply_add(totals[row][v], part, splat_bytes(rows + row * stride + step * DEPTH));
    }
  }
  for (int row = 0; row < ROWS; ++row)
    for (int v = 0; v < VECTORS; ++v)
      store_sums(sums + row * GROUP + v * (GROUP / VECTORS), totals[row][v]);
}

// One row: two independent halves of the depth hide the latency of the sums.
inline void multiply_one_row(const uint8_t* weights, const int8_t* row, int64_t steps,
                             int32_t* sums) {
  Sums even[VECTORS], odd[VECTORS];
  for (int v = 0; v < VECTORS; ++v) even[v] = odd[v] = zero_sums();
  int64_t step = 0;
  for (; step + 2 <= steps; step += 2) {
    const auto first = splat_bytes(row + step * DEPTH);
    const auto second = splat_bytes(row + (step + 1) * DEPTH);
    const uint8_t* here = weights + step * GROUP * DEPTH;
    for (int v = 0; v < VECTORS; ++v) {
      even[v] = multiply_add(even[v], load_bytes(here + v * VECTOR_BYTES), first);
      odd[v] = multiply_add(odd[v], load_bytes(here + GROUP * DEPTH + v * VECTOR_BYTES), second);
    }
  }
  if (step < steps)
    for (int v = 0; v < VECTORS; ++v)
      even[v] = multiply_add(even[v], load_bytes(weights + step * GROUP * DEPTH + v * VECTOR_BYTES),
                             splat_bytes(row + step * DEPTH));
  int32_t rest[GROUP];
  for (int v = 0; v < VECTORS; ++v) {
    store_sums(sums + v * (GROUP / VECTORS), even[v]);
    store_sums(rest + v * (GROUP / VECTORS), odd[v]);
  }
  for (int lane = 0; lane < GROUP; ++lane) sums[lane] += rest[lane];
}

template <int ROWS>
void multiply_rows(int64_t count, const uint8_t* weights, const int8_t* rows, int64_t stride,
                   int64_t steps, int32_t* sums) {
  if constexpr (ROWS > 1) {
    if (count < ROWS) return multiply_rows<ROWS - 1>(count, weights, rows, stride, steps, sums);
    multiply_group<ROWS>(weights, rows, stride, steps, sums);
  } else {
    multiply_one_row(weights, rows, steps, sums);
  }
}

// A row as integers in [-levels, levels], the number it was scaled by, and 128 times its sum.
void quantize_row(const float* x, int64_t in, int64_t padded, float levels, int8_t* values,
                  float* peak, int32_t* raised) {
  // A lane that meets what is no number keeps it: x - x is zero for numbers alone.
  Floats peaks{}, faults{};
  int64_t i = 0;
  for (; i + LANES <= in; i += LANES) {
    const Floats part = load(x + i);
    const Floats magnitude = (Floats)((Ints)part & INT32_MAX);
    peaks = magnitude > peaks ? magnitude : peaks;
    faults += part - part;
  }
  float largest = 0.0f;
  for (int lane = 0; lane < LANES; ++lane) largest = std::max(largest, peaks[lane]);
  float fault = sum(faults);
  for (; i < in; ++i) {
    largest = std::max(largest, std::fabs(x[i]));
    fault += x[i] - x[i];
  }
  largest = std::max(largest, SMALLEST_PEAK);
  // A row with an infinity, or something that is no number, gives nothing but such.
  const bool is_finite = fault == 0.0f;
  *peak = is_finite ? largest : NAN;
  int32_t total = 0;
  if (is_finite) {
    for (i = 0; i < in; ++i) {
      const int32_t rounded = int32_t(std::nearbyint(x[i] / largest * levels));
      values[i] = int8_t(rounded);
      total += rounded;
    }
  } else {
    std::memset(values, 0, in);
  }
  std::memset(values + in, 0, padded - in);
  *raised = RAISED * total;
}

// ---------------------------------------------------------------------------- attention

// Entries are taken this many at a time, at absolute places.
constexpr int TILE = 16;
// Query vectors that share one walk over the entries.
constexpr int MOST_QUERIES = 24;
constexpr int MOST_DIM = 512;

struct Sight {
  int32_t first, limit, window_start, window_stop;
  // Which entries of the tile that begins at `start` are seen, a bit each.
  uint32_t tile(int64_t start) const {
    return bits(first - start, limit - start) | bits(window_start - start, window_stop - start);
  }
  static uint32_t bits(int64_t from, int64_t to) {
    from = std::clamp<int64_t>(from, 0, TILE);
    to = std::clamp<int64_t>(to, from, TILE);
    return ((1u << to) - 1u) & ~((1u << from) - 1u);
  }
};

struct Batch {
  const int32_t* starts;
  const int32_t* table;
  const int32_t* limits;
  const int32_t* firsts;
  const int32_t* window_starts;
  const int32_t* window_stops;
  int64_t spans, pages, page_size;
  Sight sight(int64_t row) const {
    return {firsts ? firsts[row] : 0, limits[row], window_starts ? window_starts[row] : 0,
            window_starts ? window_stops[row] : 0};
  }
};

// What a walk over the entries has found of one query.
struct Found {
  float peak, total;
};

// Scores of the tile's entries for one query; those it does not see are -inf.
inline Floats score_tile(const float* query, const float* const* keys, int count, int64_t dim,
                         float scale, uint32_t seen) {
  float scores[TILE];
  for (int entry = 0; entry < TILE; ++entry) {
    scores[entry] = -INFINITY;
    if (!(seen >> entry & 1) || entry >= count) continue;
    const float* key = keys[entry];
    Floats total{};
    int64_t i = 0;
    for (; i + LANES <= dim; i += LANES) total = fma(load(query + i), load(key + i), total);
    float rest = 0.0f;
    for (; i < dim; ++i) rest += query[i] * key[i];
    scores[entry] = (sum(total) + rest) * scale;
  }
  return load(scores);
}

// Attention of `count` query vectors (rows of one span times the heads that share keys).
void attend_queries(const float* const* queries, const Sight* sights, int count, float* const* outputs,
                    const Batch& batch, int64_t span, const float* keys, const float* values,
                    int64_t entry_stride, int64_t dim, float scale) {
  Found found[MOST_QUERIES];
  alignas(64) float totals[MOST_QUERIES][MOST_DIM];
  int64_t low = INT64_MAX, stop = 0;
  for (int q = 0; q < count; ++q) {
    found[q] = {-INFINITY, 0.0f};
    std::memset(totals[q], 0, sizeof(float) * dim);
    const Sight& own = sights[q];
    if (own.first < own.limit) {
      low = std::min<int64_t>(low, own.first);
      stop = std::max<int64_t>(stop, own.limit);
    }
    if (own.window_start < own.window_stop) {
      low = std::min<int64_t>(low, own.window_start);
      stop = std::max<int64_t>(stop, own.window_stop);
    }
  }
  const int32_t* table = batch.table + span * batch.pages;
  for (int64_t start = low / TILE * TILE; start < stop; start += TILE) {
    const int size = int(std::min<int64_t>(TILE, stop - start));
    uint32_t seen[MOST_QUERIES], by_any = 0;
    for (int q = 0; q < count; ++q) {
      seen[q] = sights[q].tile(start);
      by_any |= seen[q];
    }
    if (!by_any) continue;
    const float* tile_keys[TILE];
    const float* tile_values[TILE];
    for (int entry = 0; entry < size; ++entry) {
      if (!(by_any >> entry & 1)) continue;
      const int64_t place = start + entry;
      const int64_t slot = int64_t(table[place / batch.page_size]) * batch.page_size +
                           place % batch.page_size;
      tile_keys[entry] = keys + slot * entry_stride;
      tile_values[entry] = values + slot * entry_stride;
    }
    for (int q = 0; q < count; ++q) {
      if (!seen[q]) continue;
      const Floats scores = score_tile(queries[q], tile_keys, size, dim, scale, seen[q]);
      float peak = found[q].peak;
      for (int entry = 0; entry < TILE; ++entry) peak = std::max(peak, scores[entry]);
      const Floats masses = exp_of_negative(scores - peak);
      float* total = totals[q];
      if (peak > found[q].peak && found[q].total > 0.0f) {
        const float shrink = exp_of_negative(splat(found[q].peak - peak))[0];
        found[q].total *= shrink;
        for (int64_t i = 0; i < dim; ++i) total[i] *= shrink;
      }
      found[q].peak = peak;
      found[q].total += sum(masses);
      int64_t i = 0;
      for (; i + 2 * LANES <= dim; i += 2 * LANES) {
        Floats first = load(total + i), second = load(total + i + LANES);
        for (int entry = 0; entry < size; ++entry) {
          if (!(seen[q] >> entry & 1)) continue;
          const Floats mass = splat(masses[entry]);
          first = fma(mass, load(tile_values[entry] + i), first);
          second = fma(mass, load(tile_values[entry] + i + LANES), second);
        }
        store(total + i, first);
        store(total + i + LANES, second);
      }
      for (; i < dim; ++i)
        for (int entry = 0; entry < size; ++entry)
          if (seen[q] >> entry & 1) total[i] += masses[entry] * tile_values[entry][i];
    }
  }
  for (int q = 0; q < count; ++q) {
    const float share = found[q].total > 0.0f ? 1.0f / found[q].total : 0.0f;
    for (int64_t i = 0; i < dim; ++i) outputs[q][i] = totals[q][i] * share;
  }
}

float mean_square(const float* x, int64_t size) {
  Floats total{};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) {
    const Floats part = load(x + i);
    total = fma(part, part, total);
  }
  float rest = 0.0f;
  for (; i < size; ++i) rest += x[i] * x[i];
  return (sum(total) + rest) / float(size);
}

// ---------------------------------------------------------------------------- work of a team
//
// These run inside a parallel region; each ends with all of its results written.

// Weights laid out by `estuary_pack_int8`, with their scales and the levels of a row.
struct Matrix {
  const uint8_t* packed;
  const float* scales;
  int64_t in, out;
  float levels;
  int64_t steps() const { return (in + DEPTH - 1) / DEPTH; }
  int64_t stride() const { return steps() * DEPTH; }
};

// Rows as integers, for the widest matrix that is going to read them.
struct Integers {
  std::unique_ptr<int8_t[]> values;
  std::unique_ptr<float[]> peaks;
  std::unique_ptr<int32_t[]> raised;
  Integers(int64_t rows, int64_t stride)
      : values(new int8_t[rows * stride]), peaks(new float[rows]), raised(new int32_t[rows]) {}
};

// product [T, out] = (rows as integers . weights) * scales [out] * peak of the row, plus bias.
void linear(const float* x, const Matrix& matrix, const float* bias, float* product, int64_t rows,
            Integers& integers) {
  const int64_t steps = matrix.steps(), stride = matrix.stride(), out = matrix.out;
  const int64_t groups = (out + GROUP - 1) / GROUP;
#pragma omp for schedule(static)
  for (int64_t row = 0; row < rows; ++row)
    quantize_row(x + row * matrix.in, matrix.in, stride, matrix.levels,
                 &integers.values[row * stride], &integers.peaks[row], &integers.raised[row]);
#pragma omp for schedule(static)
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = group * GROUP, width = std::min<int64_t>(GROUP, out - first);
    for (int64_t start = 0; start < rows; start += TILE_ROWS) {
      int32_t sums[TILE_ROWS * GROUP];
      const int64_t count = std::min<int64_t>(TILE_ROWS, rows - start);
      multiply_rows<TILE_ROWS>(count, matrix.packed + group * steps * GROUP * DEPTH,
                               &integers.values[start * stride], stride, steps, sums);
      for (int64_t row = 0; row < count; ++row) {
        float* to = product + (start + row) * out + first;
        const float peak = integers.peaks[start + row];
        const int32_t excess = integers.raised[start + row];
        for (int64_t lane = 0; lane < width; ++lane)
          to[lane] = float(sums[row * GROUP + lane] - excess) * matrix.scales[first + lane] * peak;
        if (bias)
          for (int64_t lane = 0; lane < width; ++lane) to[lane] += bias[first + lane];
      }
    }
  }
}

// normed = (x + residual) over its root mean square, times weight [d]; total = x + residual.
// residual and total may be null together; total may be residual.
void rms_norm(const float* x, const float* residual, const float* weight, float* total,
              float* normed, int64_t rows, int64_t size, float eps) {
#pragma omp for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const float* own = x + row * size;
    if (residual) {
      float* to = total + row * size;
      for (int64_t i = 0; i < size; ++i) to[i] = own[i] + residual[row * size + i];
      own = to;
    }
    const float scale = 1.0f / std::sqrt(mean_square(own, size) + eps);
    float* to = normed + row * size;
    for (int64_t i = 0; i < size; ++i) to[i] = own[i] * scale * weight[i];
  }
}

// activated [T, I] = silu(gate) * up of gate_up [T, 2 I].
void swiglu(const float* gate_up, float* activated, int64_t rows, int64_t size) {
  const int64_t parts = (size + SWIGLU_PART - 1) / SWIGLU_PART;
#pragma omp for schedule(static)
  for (int64_t work = 0; work < rows * parts; ++work) {
    const int64_t row = work / parts, begin = work % parts * SWIGLU_PART;
    const float* gate = gate_up + row * 2 * size;
    const float* up = gate + size;
    float* to = activated + row * size;
    const int64_t stop = std::min(begin + SWIGLU_PART, size);
    for (int64_t start = begin; start < stop; start += LANES) {
      const int count = int(std::min<int64_t>(LANES, stop - start));
      float gates[LANES] = {}, ups[LANES] = {}, results[LANES];
      std::memcpy(gates, gate + start, 4 * count);
      std::memcpy(ups, up + start, 4 * count);
      const Floats g = load(gates);
      // The exponential is taken of -|g|: 1 / (1 + e^-g) is e^-|g| / (1 + e^-|g|) where g < 0.
      const Ints negative = g < 0.0f;
      const Floats mass = exp_of_negative(negative ? g : -g);
      const Floats share = (negative ? mass : splat(1.0f)) / (mass + 1.0f);
      store(results, g * share * load(ups));
      std::memcpy(to + start, results, 4 * count);
    }
  }
}

struct Heads {
  int64_t heads, kv_heads, dim;
};

// Angles of a step's rows [T, turning], and what queries are multiplied by [T] or null.
struct Rotation {
  const float* cos;
  const float* sin;
  const float* query_scale;
  int64_t turning, interleaved;
};

// Norms of queries and keys [D], both or neither.
struct HeadNorms {
  const float* q;
  const float* k;
  float eps;
};

// Keys and values of qkv [T, Hq + 2 Hkv, D] into their slots, queries [T, Hq, D] out; norm and
// rotation on the way.
void store_kv(const float* qkv, float* keys, float* values, const int64_t* slots,
              const Rotation& turn, const HeadNorms& norms, float* queries, int64_t rows,
              const Heads& shape) {
  const auto [heads, kv_heads, dim] = shape;
#pragma omp for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const float* own = qkv + row * (heads + 2 * kv_heads) * dim;
    for (int64_t head = 0; head < heads + kv_heads; ++head) {
      const float* from = own + head * dim;
      const bool is_query = head < heads;
      float* to = is_query ? queries + (row * heads + head) * dim
                           : keys + (slots[row] * kv_heads + head - heads) * dim;
      float normed[MOST_DIM];
      if (norms.q) {
        const float* weight = is_query ? norms.q : norms.k;
        const float scale = 1.0f / std::sqrt(mean_square(from, dim) + norms.eps);
        for (int64_t i = 0; i < dim; ++i) normed[i] = from[i] * scale * weight[i];
        from = normed;
      }
      const float* c = turn.cos + row * turn.turning;
      const float* s = turn.sin + row * turn.turning;
      const int64_t half = turn.turning / 2;
      if (turn.interleaved) {
        for (int64_t i = 0; i < turn.turning; ++i) to[i] = from[i] * c[i] + from[i ^ 1] * s[i];
      } else {
        for (int64_t i = 0; i < half; ++i) {
          to[i] = from[i] * c[i] + from[i + half] * s[i];
          to[i + half] = from[i + half] * c[i + half] + from[i] * s[i + half];
        }
      }
      for (int64_t i = turn.turning; i < dim; ++i) to[i] = from[i];
      if (is_query && turn.query_scale)
        for (int64_t i = 0; i < dim; ++i) to[i] *= turn.query_scale[row];
    }
    std::memcpy(values + slots[row] * kv_heads * dim, own + (heads + kv_heads) * dim,
                sizeof(float) * kv_heads * dim);
  }
}

// Which rows are attended together: up to `tile_rows` rows of one span for some heads that share
// keys. Few pieces are cut by heads, so that every thread has some.
struct Tiles {
  std::unique_ptr<int32_t[]> spans, starts;
  int64_t count = 0, tile_rows, shared_heads, parts;
  Tiles(const Batch& batch, const Heads& shape) {
    const int64_t group = shape.heads / shape.kv_heads, rows = batch.starts[batch.spans];
    tile_rows = std::max<int64_t>(1, MOST_QUERIES / group);
    spans.reset(new int32_t[rows]);
    starts.reset(new int32_t[rows]);
    for (int64_t span = 0; span < batch.spans; ++span)
      for (int64_t row = batch.starts[span]; row < batch.starts[span + 1]; row += tile_rows) {
        spans[count] = int32_t(span);
        starts[count++] = int32_t(row);
      }
    shared_heads = count * shape.kv_heads < FEW_PIECES ? 1 : std::min<int64_t>(group, MOST_QUERIES);
    parts = (group + shared_heads - 1) / shared_heads;
  }
};

// output [T, Hq, D]: what every row reads from the entries it sees.
void attend(const float* q, const float* keys, const float* values, float* output,
            const Batch& batch, const Tiles& tiles, const Heads& shape, float scale) {
  const auto [heads, kv_heads, dim] = shape;
  const int64_t group = heads / kv_heads;
  const int64_t pieces = tiles.count * kv_heads * tiles.parts;
#pragma omp for schedule(dynamic, 1)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    // Later rows see more: they come first, so that no long piece is left at the end.
    const int64_t tile = tiles.count - 1 - piece / (kv_heads * tiles.parts);
    const int64_t kv_head = piece / tiles.parts % kv_heads;
    const int64_t first_head = kv_head * group + piece % tiles.parts * tiles.shared_heads;
    const int64_t last_head = std::min((kv_head + 1) * group, first_head + tiles.shared_heads);
    const int64_t span = tiles.spans[tile], start = tiles.starts[tile];
    const int64_t stop = std::min<int64_t>(start + tiles.tile_rows, batch.starts[span + 1]);
    const float* queries[MOST_QUERIES];
    float* outputs[MOST_QUERIES];
    Sight sights[MOST_QUERIES];
    int count = 0;
    for (int64_t row = start; row < stop; ++row)
      for (int64_t head = first_head; head < last_head; ++head) {
        queries[count] = q + (row * heads + head) * dim;
        outputs[count] = output + (row * heads + head) * dim;
        sights[count++] = batch.sight(row);
      }
    attend_queries(queries, sights, count, outputs, batch, span, keys + kv_head * dim,
                   values + kv_head * dim, kv_heads * dim, dim, scale);
  }
}

// Low-rank weights beside a matrix: down [rank, in], up [rank, out]; rank 0 for none.
struct LowRank {
  const float* down;
  const float* up;
  int64_t rank;
};

struct Layer {
  Matrix qkv, output, gate_up, down;
  const float *qkv_bias, *output_bias, *gate_up_bias, *down_bias;
  const float *q_norm, *k_norm, *feed_norm, *following_norm;
  float *keys, *values;
  LowRank low_output, low_down;
  float head_eps;
};

float dot(const float* a, const float* b, int64_t size) {
  Floats total{};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) total = fma(load(a + i), load(b + i), total);
  float rest = 0.0f;
  for (; i < size; ++i) rest += a[i] * b[i];
  return sum(total) + rest;
}

// product[rows] += up (down x[rows]).
void add_low_rank(const float* x, const Matrix& beside, const LowRank& low, const int64_t* rows,
                  int64_t count, float* product) {
  if (!low.rank || !count) return;
#pragma omp for schedule(static)
  for (int64_t i = 0; i < count; ++i) {
    const float* from = x + rows[i] * beside.in;
    float* to = product + rows[i] * beside.out;
    std::unique_ptr<float[]> shrunk(new float[low.rank]);
    for (int64_t j = 0; j < low.rank; ++j) shrunk[j] = dot(from, low.down + j * beside.in, beside.in);
    for (int64_t j = 0; j < low.rank; ++j) {
      const float* up = low.up + j * beside.out;
      const Floats share = splat(shrunk[j]);
      int64_t o = 0;
      for (; o + LANES <= beside.out; o += LANES) store(to + o, fma(share, load(up + o), load(to + o)));
      for (; o < beside.out; ++o) to[o] += shrunk[j] * up[o];
    }
  }
}

// What one row of logits says: peak, sum of e^(logit - peak), that sum weighted by the gaps, the
// second largest logit, and where the peak is (its first place).
void summarize(const float* logits, int64_t vocab, float* numbers, int64_t* argmax) {
  Floats best = splat(-INFINITY), second = splat(-INFINITY), faults{};
  Ints places{}, lanes;
  for (int lane = 0; lane < LANES; ++lane) lanes[lane] = lane;
  int64_t i = 0;
  for (; i + LANES <= vocab; i += LANES) {
    const Floats x = load(logits + i);
    faults += x - x;
    const Ints larger = x > best;
    const Floats loser = larger ? best : x;
    second = loser > second ? loser : second;
    best = larger ? x : best;
    places = larger ? lanes + int32_t(i) : places;
  }
  float peak = -INFINITY, next = -INFINITY;
  int64_t place = 0;
  const auto meet = [&](float x, int64_t where) {
    if (x > peak || (x == peak && where < place)) {
      next = std::max(next, peak);
      peak = x;
      place = where;
    } else {
      next = std::max(next, x);
    }
  };
  for (int lane = 0; lane < LANES; ++lane) {
    meet(best[lane], places[lane]);
    next = std::max(next, second[lane]);
  }
  const int64_t rest = i;
  float fault = sum(faults);
  for (; i < vocab; ++i) {
    meet(logits[i], i);
    fault += logits[i] - logits[i];
  }
  Floats total{}, weighted{};
  for (i = 0; i < rest; i += LANES) {
    const Floats gap = load(logits + i) - peak;
    const Floats mass = exp_of_negative(gap);
    total += mass;
    weighted = fma(mass > 0.0f ? gap : Floats{}, mass, weighted);
  }
  float last[LANES];
  for (float& x : last) x = -INFINITY;
  std::memcpy(last, logits + rest, sizeof(float) * (vocab - rest));
  const Floats gap = load(last) - peak;
  const Floats mass = exp_of_negative(gap);
  total += mass;
  weighted = fma(mass > 0.0f ? gap : Floats{}, mass, weighted);
  // x - x is zero for numbers alone: a row with something else gives nothing but such.
  const float parts[4] = {peak, sum(total), sum(weighted), next};
  for (int part = 0; part < 4; ++part) numbers[part] = fault == 0.0f ? parts[part] : NAN;
  *argmax = place;
}

}  // namespace

extern "C" {

// Raises every weight [out, in] int8 by 128 and lays it out for the products: [groups, in / 4,
// 32, 4], outputs and inputs filled up with zeros (128).
void estuary_pack_int8(const int8_t* values, int64_t out, int64_t in, uint8_t* packed) {
  const int64_t groups = (out + GROUP - 1) / GROUP, steps = (in + DEPTH - 1) / DEPTH;
#pragma omp parallel for schedule(static)
  for (int64_t group = 0; group < groups; ++group)
    for (int64_t step = 0; step < steps; ++step)
      for (int64_t lane = 0; lane < GROUP; ++lane)
        for (int64_t i = 0; i < DEPTH; ++i) {
          const int64_t output = group * GROUP + lane, input = step * DEPTH + i;
          const int value = output < out && input < in ? values[output * in + input] : 0;
          packed[((group * steps + step) * GROUP + lane) * DEPTH + i] = uint8_t(value + RAISED);
        }
}

void estuary_int8_linear(const float* x, const Matrix* matrix, const float* bias, float* product,
                         int64_t rows) {
  Integers integers(rows, matrix->stride());
#pragma omp parallel
  linear(x, *matrix, bias, product, rows, integers);
}

void estuary_rms_norm(const float* x, const float* residual, const float* weight, float* total,
                      float* normed, int64_t rows, int64_t size, float eps) {
#pragma omp parallel if (rows >= SHARE_ROWS)
  rms_norm(x, residual, weight, total, normed, rows, size, eps);
}

void estuary_swiglu(const float* gate_up, float* activated, int64_t rows, int64_t size) {
#pragma omp parallel if (rows >= SHARE_ROWS)
  swiglu(gate_up, activated, rows, size);
}

void estuary_store_kv(const float* qkv, float* keys, float* values, const int64_t* slots,
                      const Rotation* turn, const float* q_norm, const float* k_norm, float eps,
                      float* queries, int64_t rows, const Heads* shape) {
#pragma omp parallel if (rows >= SHARE_ROWS)
  store_kv(qkv, keys, values, slots, *turn, {q_norm, k_norm, eps}, queries, rows, *shape);
}

void estuary_paged_attention(const float* q, const float* keys, const float* values, float* output,
                             const Batch* batch, const Heads* shape, float scale) {
  const Tiles tiles(*batch, *shape);
#pragma omp parallel
  attend(q, keys, values, output, *batch, tiles, *shape, scale);
}

// Layers one after the other. x [T, d] holds what the first one reads and then what follows the
// last one's norm; the residual [T, d] is brought up to date in place. low_rows [L] are the rows to
// which low-rank weights apply.
void estuary_run_layers(const Layer* layers, int64_t count, float* x, float* residual,
                        const int64_t* slots, const Rotation* turn, const Batch* batch,
                        const Heads* shape, float scale, float eps, const int64_t* low_rows,
                        int64_t num_low, int64_t rows) {
  const Tiles tiles(*batch, *shape);
  const Matrix &qkv = layers->qkv, &gate_up = layers->gate_up, &down = layers->down;
  const int64_t size = layers->output.out, heads_size = layers->output.in;
  Integers integers(rows, std::max({qkv.stride(), layers->output.stride(), down.stride()}));
  // What the projections give and what the gates give are never needed at the same time.
  std::unique_ptr<float[]> wide(new float[rows * std::max(qkv.out, gate_up.out)]);
  std::unique_ptr<float[]> queries(new float[rows * std::max(heads_size, down.in)]);
  std::unique_ptr<float[]> attended(new float[rows * heads_size]);
  std::unique_ptr<float[]> product(new float[rows * size]);
#pragma omp parallel
  for (int64_t i = 0; i < count; ++i) {
    const Layer& layer = layers[i];
    linear(x, layer.qkv, layer.qkv_bias, wide.get(), rows, integers);
    store_kv(wide.get(), layer.keys, layer.values, slots, *turn,
             {layer.q_norm, layer.k_norm, layer.head_eps}, queries.get(), rows, *shape);
    attend(queries.get(), layer.keys, layer.values, attended.get(), *batch, tiles, *shape, scale);
    linear(attended.get(), layer.output, layer.output_bias, product.get(), rows, integers);
    add_low_rank(attended.get(), layer.output, layer.low_output, low_rows, num_low, product.get());
    rms_norm(product.get(), residual, layer.feed_norm, residual, x, rows, size, eps);
    linear(x, layer.gate_up, layer.gate_up_bias, wide.get(), rows, integers);
    swiglu(wide.get(), queries.get(), rows, layer.down.in);
    linear(queries.get(), layer.down, layer.down_bias, product.get(), rows, integers);
    add_low_rank(queries.get(), layer.down, layer.low_down, low_rows, num_low, product.get());
    rms_norm(product.get(), residual, layer.following_norm, residual, x, rows, size, eps);
  }
}

// numbers [r, 4] and argmax [r] of logits [r, V]: see `summarize`. Rows with something that is no
// number get nothing but such.
void estuary_summarize_logits(const float* logits, int64_t rows, int64_t vocab, float* numbers,
                              int64_t* argmax) {
#pragma omp parallel for schedule(static) if (rows > 1)
  for (int64_t row = 0; row < rows; ++row)
    summarize(logits + row * vocab, vocab, numbers + row * 4, argmax + row);
}

}  // extern "C"
