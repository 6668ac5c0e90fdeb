// What the forward and backward kernels of the selective scan share: blocks of channels and the tokens they read.
#pragma once

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <string>
#include <vector>

namespace scan {

using at::Tensor;
using at::vec::fmadd;
using Tensors = c10::Dict<std::string, Tensor>;  // by the names of ScanInputs; what is absent is not in it
using Vec = at::vec::Vectorized<float>;

constexpr int64_t CHANNELS = 64;  // per block; fixed, so that results do not depend on the number of threads
constexpr int64_t LANES = Vec::size();
constexpr int64_t WIDTH = CHANNELS / LANES;  // vectors per block
constexpr int64_t CACHE_LINE = 16;           // floats
constexpr int64_t PREFETCH = 4;              // tokens; an order may jump, which no hardware prefetcher foresees
constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;
static_assert(CHANNELS % LANES == 0);

// 2^x to 2e-7 and exactly 1 at 0, where slow decays live: x = n + r, a polynomial in r, n added to its exponent bits.
inline Vec exp2(const Vec& x) {
#if defined(CPU_CAPABILITY_AVX512)
  const Vec n = x.round(), r = x - n;
#else
  const Vec magic(12582912.f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Vec bounded = at::vec::clamp(x, Vec(-126.f), Vec(128.f));
  const Vec shifted = bounded + magic;
  const Vec r = bounded - (shifted - magic);
#endif
  Vec p(0.00132647272f);
  for (const float c : {0.00967151281f, 0.0555073374f, 0.240222421f, 0.693146978f, 1.f}) p = fmadd(p, r, Vec(c));
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_scalef_ps(p, n);
#else
  const auto exponent = at::vec::cast<int32_t>(shifted) << at::vec::Vectorized<int32_t>(23);
  return at::vec::cast<float>(at::vec::cast<int32_t>(p) + exponent);
#endif
}

// log(1 + x) for x in [0, 1] to 2e-7, relatively.
inline Vec log1p(const Vec& x) {
  Vec p(0.00523269371f);
  for (const float c : {-0.0295052401f, 0.078225961f, -0.136632473f, 0.191060079f, -0.248429827f, 0.333190969f,
                        -0.499994931f, 0.99999997f}) {
    p = fmadd(p, x, Vec(c));
  }
  return p * x;
}

struct Lanes {  // one number per channel of a block
  Vec v[WIDTH];
};

inline Lanes zero_lanes() {
  Lanes x;
  std::fill_n(x.v, WIDTH, Vec(0.f));
  return x;
}

// Channels beyond D read as zero and are not written.
template <bool FULL>
Lanes load(const float* from, int64_t count) {
  Lanes x;
  for (int64_t i = 0; i < WIDTH; ++i) {
    const float* at = from + i * LANES;
    x.v[i] = FULL ? Vec::loadu(at) : Vec::loadu(at, std::clamp<int64_t>(count - i * LANES, 0, LANES));
  }
  return x;
}

template <bool FULL>
void store(float* to, const Lanes& x, int64_t count) {
  for (int64_t i = 0; i < WIDTH; ++i) {
    x.v[i].store(to + i * LANES, FULL ? LANES : std::clamp<int64_t>(count - i * LANES, 0, LANES));
  }
}

inline void prefetch(const float* row, int64_t count) {
  for (int64_t i = 0; i < count; i += CACHE_LINE) __builtin_prefetch(row + i);
  __builtin_prefetch(row + count - 1);
}

struct Rows {  // (B, K, L, *) with contiguous rows
  const float* data;
  int64_t batch, direction, token;

  explicit Rows(const Tensor& x)
      : data(x.const_data_ptr<float>()), batch(x.stride(0)), direction(x.stride(1)), token(x.stride(2)) {}
  const float* at(int64_t b, int64_t k, int64_t position) const {
    return data + b * batch + k * direction + position * token;
  }
};

inline const float* pointer(const Tensors& inputs, const char* name) {
  return inputs.contains(name) ? inputs.at(name).const_data_ptr<float>() : nullptr;
}

struct Problem {
  Rows u, delta, B, C;
  int64_t batch, directions, length, channels, states, rank, blocks, period, chunk;
  bool softplus, low_rank;
  const float *A, *skip, *bias, *proj, *decay, *recap, *initial;
  const int64_t* order;
  std::vector<char> recaps;  // whether a recap comes before token t

  Problem(const Tensors& inputs, bool softplus_, int64_t period_, int64_t chunk_)
      : u(inputs.at("u").unsqueeze(1)), delta(inputs.at("delta")), B(inputs.at("B")), C(inputs.at("C")),
        batch(inputs.at("u").size(0)), directions(inputs.at("A").size(0)), length(inputs.at("u").size(1)),
        channels(inputs.at("A").size(1)), states(inputs.at("A").size(2)),
        rank(inputs.contains("delta_proj") ? inputs.at("delta").size(3) : 0),
        blocks((channels + CHANNELS - 1) / CHANNELS), period(period_), chunk(chunk_), softplus(softplus_), low_rank(inputs.contains("delta_proj")),
        A(pointer(inputs, "A")), skip(pointer(inputs, "skip")), bias(pointer(inputs, "delta_bias")),
        proj(pointer(inputs, "delta_proj")), decay(pointer(inputs, "decay")), recap(pointer(inputs, "recap_state")),
        initial(pointer(inputs, "initial_state")), order(inputs.at("order").const_data_ptr<int64_t>()),
        recaps(length) {
    for (int64_t t = 0; period > 0 && t < length; t += period) recaps[t] = 1;
    std::vector<int64_t> seen(length, -1);  // an index out of range would read foreign memory
    for (int64_t k = 0; k < directions; ++k) {
      for (int64_t t = 0; t < length; ++t) {
        const int64_t position = order[k * length + t];
        TORCH_CHECK_VALUE(position >= 0 && position < length && seen[position] != k, "order[", k,
                          "] is not a permutation of the ", length, " tokens");
        seen[position] = k;
      }
    }
  }

  int64_t chunks() const { return (length + chunk - 1) / chunk; }
};

// One direction of one block of channels.
struct Part {
  const Problem& p;
  int64_t b, k, first, count;

  template <int N>
  int64_t states() const {
    return N > 0 ? N : p.states;
  }
  int64_t lane() const { return b * p.directions + k; }
  int64_t position(int64_t t) const { return p.order[k * p.length + std::clamp<int64_t>(t, 0, p.length - 1)]; }
  // Where the block begins in
  int64_t parameter() const { return k * p.channels + first; }                                          // (K, D)
  int64_t state() const { return (lane() * p.channels + first) * p.states; }                            // (B, K, D, N)
  int64_t saved(int64_t c) const { return (lane() * p.chunks() + c) * p.states * p.channels + first; }  // (B, K, c, N, D)
  int64_t image_row(int64_t position) const { return (b * p.length + position) * p.channels + first; }  // (B, L, D)
  int64_t delta_row(int64_t position) const {  // (B, K, L, D)
    return (lane() * p.length + position) * p.channels + first;
  }
  int64_t projection_row(int64_t position, int64_t width) const {  // (blocks, B, K, L, width)
    return ((first / CHANNELS * p.batch * p.directions + lane()) * p.length + position) * width;
  }

  Lanes read(const float* x) const {  // (K, D), zero when absent
    return x == nullptr ? zero_lanes() : load<false>(x + parameter(), count);
  }
  // Copies between (D, width) in a tensor and `width` Lanes; an absent tensor is zero.
  void gather(Lanes* to, const float* from, int64_t offset, int64_t width) const {
    for (int64_t n = 0; n < width; ++n) {
      float row[CHANNELS] = {};
      for (int64_t d = 0; from != nullptr && d < count; ++d) row[d] = from[offset + d * width + n];
      to[n] = load<true>(row, CHANNELS);
    }
  }
  void scatter(float* to, int64_t offset, const Lanes* from, int64_t width) const {
    for (int64_t n = 0; n < width; ++n) {
      float row[CHANNELS];
      store<true>(row, from[n], CHANNELS);
      for (int64_t d = 0; d < count; ++d) to[offset + d * width + n] = row[d];
    }
  }
  void gather_parameters(Lanes* A, Lanes* proj, Lanes* decay, Lanes* recap) const {
    gather(A, p.A, parameter() * p.states, p.states);
    gather(proj, p.proj, parameter() * p.rank, p.rank);
    for (int64_t n = 0; n < p.states; ++n) {
      for (Vec& a : A[n].v) a = a * Vec(LOG2E);
    }
    gather(decay, p.decay, state(), p.states);
    gather(recap, p.recap, state(), p.states);
  }
};

struct Step {  // what a token brings to a block
  Lanes u, delta, drive, slope;  // slope: derivative of delta with respect to its value before the softplus
};

template <bool FULL>
C10_ALWAYS_INLINE Lanes read_delta(const Part& s, const Lanes* proj, const Lanes& bias, int64_t position) {
  const float* row = s.p.delta.at(s.b, s.k, position);
  Lanes delta = bias;
  if (!s.p.low_rank) {
    const Lanes given = load<FULL>(row + s.first, s.count);
    for (int64_t i = 0; i < WIDTH; ++i) delta.v[i] = delta.v[i] + given.v[i];
  }
  for (int64_t r = 0; r < s.p.rank; ++r) {
    const Vec low(row[r]);
    for (int64_t i = 0; i < WIDTH; ++i) delta.v[i] = fmadd(low, proj[r].v[i], delta.v[i]);
  }
  return delta;
}

template <bool FULL>
C10_ALWAYS_INLINE Step read_step(const Part& s, const Lanes* proj, const Lanes& bias, int64_t position) {
  Step step;
  step.u = load<FULL>(s.p.u.at(s.b, 0, position) + s.first, s.count);
  step.delta = read_delta<FULL>(s, proj, bias, position);
  const Vec zero(0.f), one(1.f);
  for (int64_t i = 0; i < WIDTH; ++i) {
    Vec x = step.delta.v[i];
    step.slope.v[i] = one;
    if (s.p.softplus) {
      const Vec e = exp2(x.abs() * Vec(-LOG2E));
      step.slope.v[i] = Vec::blendv(e, one, x >= zero) / (one + e);
      x = at::vec::maximum(x, zero) + log1p(e);
    }
    step.delta.v[i] = x;
    step.drive.v[i] = x * step.u.v[i];
  }
  return step;
}

inline void prefetch_step(const Part& s, int64_t position, int64_t states) {
  prefetch(s.p.u.at(s.b, 0, position) + s.first, CHANNELS);
  const float* delta = s.p.delta.at(s.b, s.k, position);
  s.p.low_rank ? prefetch(delta, s.p.rank) : prefetch(delta + s.first, CHANNELS);
  prefetch(s.p.B.at(s.b, s.k, position), states);
  prefetch(s.p.C.at(s.b, s.k, position), states);
}

inline void apply_recap(Lanes* to, const Lanes* h, const Lanes* decay, const Lanes* recap, int64_t states) {
  for (int64_t n = 0; n < states; ++n) {
    for (int64_t i = 0; i < WIDTH; ++i) to[n].v[i] = fmadd(decay[n].v[i], h[n].v[i], recap[n].v[i]);
  }
}

}  // namespace scan
