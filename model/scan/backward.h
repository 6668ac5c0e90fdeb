// The backward kernel: chunk by chunk from the last, the states are recomputed from the saved ones, then walked back.
#pragma once

#include "block.h"

namespace scan {

struct Gradients {
  const float *y, *state, *saved;  // of the outputs, and the states saved by the forward kernel
  float *u, *delta;                // (B, L, D), (B, K, L, D) or by block (blocks, B, K, L, R)
  float *B, *C;                    // (blocks, B, K, L, N): every block of channels writes its own part
  float *A, *skip, *bias, *proj;   // (B, K, D, N), (B, K, D) twice, (B, K, D, R): every sample writes its own part
  float *decay, *recap, *initial;  // (B, K, D, N)
};

inline float total(const Vec& x) {
  return at::vec::vec_reduce_all<float>([](const Vec& a, const Vec& b) { return a + b; }, x);
}

template <int N, bool FULL>
struct Backward {
  const Part& s;
  const Problem& p;
  const Gradients& g;
  const int64_t states;
  Step* steps;  // of the tokens of a chunk
  Lanes *A, *decay, *recap, *entry, *grad_h, *grad_A, *grad_decay, *grad_recap;
  Lanes *proj, *grad_proj;
  Lanes *keeps, *history;  // exp(delta A) of every token of a chunk; the states before each, and after the last
  Lanes skip, bias, grad_skip = zero_lanes(), grad_bias = zero_lanes();

  static int64_t arrays(int64_t chunk) { return 8 + chunk + chunk + 1; }

  Backward(const Part& s_, const Gradients& g_, Lanes* scratch, Step* steps_)
      : s(s_), p(s_.p), g(g_), states(s.states<N>()), steps(steps_), skip(s.read(p.skip)),
        bias(s.read(p.bias)) {
    for (Lanes** array : {&A, &decay, &recap, &entry, &grad_h, &grad_A, &grad_decay, &grad_recap, &keeps}) {
      *array = scratch;
      scratch += states;
    }
    history = keeps + p.chunk * states;
    proj = history + (p.chunk + 1) * states;
    grad_proj = proj + p.rank;
    s.gather_parameters(A, proj, decay, recap);
    s.gather(grad_h, g.state, s.state(), p.states);
    std::fill_n(grad_proj, p.rank, zero_lanes());
    for (Lanes* sum : {grad_A, grad_decay, grad_recap}) std::fill_n(sum, states, zero_lanes());
  }

  void run() {
    for (int64_t chunk = p.chunks() - 1; chunk >= 0; --chunk) {
      const int64_t start = chunk * p.chunk, stop = std::min(start + p.chunk, p.length);
      const float* saved = g.saved + s.saved(chunk);
      for (int64_t n = 0; n < states; ++n) history[n] = load<FULL>(saved + n * p.channels, s.count);
      for (int64_t t = start; t < stop; ++t) recompute(t, t - start);
      for (int64_t t = stop - 1; t >= start; --t) walk_back(t, t - start);
    }
    s.scatter(g.A, s.state(), grad_A, p.states);
    s.scatter(g.proj, (s.b * p.directions * p.channels + s.parameter()) * p.rank, grad_proj, p.rank);
    if (g.initial != nullptr) s.scatter(g.initial, s.state(), grad_h, p.states);
    if (p.period > 0) s.scatter(g.decay, s.state(), grad_decay, p.states);
    if (p.period > 0) s.scatter(g.recap, s.state(), grad_recap, p.states);
    const int64_t row = s.b * p.directions * p.channels + s.parameter();
    if (g.skip != nullptr) store<false>(g.skip + row, grad_skip, s.count);
    if (g.bias != nullptr) store<false>(g.bias + row, grad_bias, s.count);
  }

  // The states that token t multiplies: those before it, after its recap.
  const Lanes* enter(int64_t t, int64_t i) {
    if (!p.recaps[t]) return history + i * states;
    apply_recap(entry, history + i * states, decay, recap, states);
    return entry;
  }

  void recompute(int64_t t, int64_t i) {
    const int64_t position = s.position(t);
    prefetch_step(s, s.position(t + PREFETCH), states);
    const Step& step = steps[i] = read_step<FULL>(s, proj, bias, position);
    const float* B = p.B.at(s.b, s.k, position);
    const Lanes* before = enter(t, i);
    Lanes *after = history + (i + 1) * states, *keep = keeps + i * states;
    for (int64_t n = 0; n < states; ++n) {
      const Vec b(B[n]);
      for (int64_t j = 0; j < WIDTH; ++j) {
        const Vec kept = exp2(step.delta.v[j] * A[n].v[j]);
        keep[n].v[j] = kept;
        after[n].v[j] = fmadd(kept, before[n].v[j], step.drive.v[j] * b);
      }
    }
  }

  void walk_back(int64_t t, int64_t i) {
    const int64_t position = s.position(t), ahead = s.position(t - PREFETCH);
    prefetch(g.y + s.image_row(ahead), CHANNELS);
    prefetch(g.u + s.image_row(ahead), CHANNELS);
    const Step& step = steps[i];
    const Lanes grad_y = load<FULL>(g.y + s.image_row(position), s.count);
    Lanes grad_drive = zero_lanes(), grad_delta = zero_lanes();
    const Lanes *before = enter(t, i), *after = history + (i + 1) * states, *keep = keeps + i * states;
    const float *B = p.B.at(s.b, s.k, position), *C = p.C.at(s.b, s.k, position);
    const int64_t row = s.projection_row(position, states);
    float *grad_B = g.B + row, *grad_C = g.C + row;
    for (int64_t n = 0; n < states; ++n) {
      const Vec b(B[n]), c(C[n]);
      Vec sum_B(0.f), sum_C(0.f);
      for (int64_t j = 0; j < WIDTH; ++j) {
        const Vec grad = fmadd(c, grad_y.v[j], grad_h[n].v[j]);
        sum_C = fmadd(grad_y.v[j], after[n].v[j], sum_C);
        sum_B = fmadd(grad, step.drive.v[j], sum_B);
        grad_drive.v[j] = fmadd(grad, b, grad_drive.v[j]);
        const Vec grad_before = grad * keep[n].v[j];
        const Vec grad_exponent = grad_before * before[n].v[j];
        grad_h[n].v[j] = grad_before;
        grad_delta.v[j] = fmadd(grad_exponent, A[n].v[j], grad_delta.v[j]);
        grad_A[n].v[j] = fmadd(grad_exponent, step.delta.v[j], grad_A[n].v[j]);
      }
      grad_B[n] = total(sum_B);
      grad_C[n] = total(sum_C);
    }
    finish_token(position, step, grad_y, grad_drive, grad_delta);
    if (p.recaps[t]) undo_recap(history + i * states);
  }

  void finish_token(int64_t position, const Step& step, const Lanes& grad_y, const Lanes& grad_drive,
                    Lanes grad_delta) {
    float* row = g.u + s.image_row(position);
    Lanes grad_u = load<FULL>(row, s.count);
    for (int64_t j = 0; j < WIDTH; ++j) {
      grad_u.v[j] = fmadd(grad_drive.v[j], step.delta.v[j], fmadd(skip.v[j], grad_y.v[j], grad_u.v[j]));
      const Vec through_exponent = grad_delta.v[j] * Vec(LN2);  // A is held in units of log 2
      grad_delta.v[j] = fmadd(grad_drive.v[j], step.u.v[j], through_exponent) * step.slope.v[j];
      grad_skip.v[j] = fmadd(grad_y.v[j], step.u.v[j], grad_skip.v[j]);
      grad_bias.v[j] = grad_bias.v[j] + grad_delta.v[j];
    }
    store<FULL>(row, grad_u, s.count);
    if (!p.low_rank) store<FULL>(g.delta + s.delta_row(position), grad_delta, s.count);
    const float* low = p.delta.at(s.b, s.k, position);
    for (int64_t r = 0; r < p.rank; ++r) {
      Vec sum(0.f);
      for (int64_t j = 0; j < WIDTH; ++j) {
        sum = fmadd(grad_delta.v[j], proj[r].v[j], sum);
        grad_proj[r].v[j] = fmadd(grad_delta.v[j], Vec(low[r]), grad_proj[r].v[j]);
      }
      g.delta[s.projection_row(position, p.rank) + r] = total(sum);
    }
  }

  void undo_recap(const Lanes* before) {
    for (int64_t n = 0; n < states; ++n) {
      for (int64_t j = 0; j < WIDTH; ++j) {
        const Vec grad = grad_h[n].v[j];
        grad_recap[n].v[j] = grad_recap[n].v[j] + grad;
        grad_decay[n].v[j] = fmadd(grad, before[n].v[j], grad_decay[n].v[j]);
        grad_h[n].v[j] = grad * decay[n].v[j];
      }
    }
  }
};

}  // namespace scan
