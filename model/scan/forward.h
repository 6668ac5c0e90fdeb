// The forward kernel: a block's states stay in the first-level cache while it goes through the tokens of a direction.
#pragma once

#include "block.h"

namespace scan {

struct Output {
  float *y, *state, *saved;  // (B, L, D), (B, K, D, N), (B, K, chunks, N, D)
};

template <bool FULL>
void save_states(const Part& s, float* saved, const Lanes* h) {
  for (int64_t n = 0; n < s.p.states; ++n) store<FULL>(saved + n * s.p.channels, h[n], s.count);
}

template <int N, bool FULL>
void forward_part(const Part& s, const Output& out, Lanes* scratch) {  // of 4 N + R Lanes
  const Problem& p = s.p;
  const int64_t states = s.states<N>();
  Lanes *A = scratch, *h = A + states, *decay = h + states, *recap = decay + states;
  Lanes* proj = recap + states;
  s.gather_parameters(A, proj, decay, recap);
  s.gather(h, p.initial, s.state(), p.states);
  const Lanes skip = s.read(p.skip), bias = s.read(p.bias);
  for (int64_t t = 0; t < p.length; ++t) {
    if (t % p.chunk == 0) save_states<FULL>(s, out.saved + s.saved(t / p.chunk), h);
    if (p.recaps[t]) apply_recap(h, h, decay, recap, states);
    const int64_t position = s.position(t), ahead = s.position(t + PREFETCH);
    prefetch_step(s, ahead, states);
    prefetch(out.y + s.image_row(ahead), CHANNELS);
    const Step step = read_step<FULL>(s, proj, bias, position);
    const float *B = p.B.at(s.b, s.k, position), *C = p.C.at(s.b, s.k, position);
    float* y = out.y + s.image_row(position);
    Lanes sum = load<FULL>(y, s.count);
    for (int64_t i = 0; i < WIDTH; ++i) sum.v[i] = fmadd(skip.v[i], step.u.v[i], sum.v[i]);
    for (int64_t n = 0; n < states; ++n) {
      const Vec b(B[n]), c(C[n]);
      for (int64_t i = 0; i < WIDTH; ++i) {
        const Vec keep = exp2(step.delta.v[i] * A[n].v[i]);
        const Vec state = fmadd(keep, h[n].v[i], step.drive.v[i] * b);
        h[n].v[i] = state;
        sum.v[i] = fmadd(c, state, sum.v[i]);
      }
    }
    store<FULL>(y, sum, s.count);
  }
  s.scatter(out.state, s.state(), h, p.states);
}

}  // namespace scan
