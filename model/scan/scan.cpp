// The selective scan on a CPU, forward and backward, as operators of the library `hmnet_scan`. Work is cut into (batch,
// block of channels): what a block computes does not depend on the thread that does it.
#include "backward.h"
#include "forward.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <type_traits>

namespace scan {
namespace {

// Calls work(part, states, full) for every direction of every block, where make() gives every thread its own `work`.
// The numbers `states` and `full` are known at compile time, 0 states standing for any number.
template <typename F>
void for_each_part(const Problem& p, const F& make) {
  at::parallel_for(0, p.batch * p.blocks, 1, [&](int64_t begin, int64_t end) {
    auto work = make();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % p.blocks * CHANNELS, count = std::min(CHANNELS, p.channels - first);
      for (int64_t k = 0; k < p.directions; ++k) {
        const Part part{p, task / p.blocks, k, first, count};
        if (count < CHANNELS) {
          work(part, std::integral_constant<int, 0>(), std::false_type());
        } else if (p.states == 16) {
          work(part, std::integral_constant<int, 16>(), std::true_type());
        } else {
          work(part, std::integral_constant<int, 0>(), std::true_type());
        }
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                           const Tensor& C, const Tensor& order, const OptionalTensor& skip,
                                           const OptionalTensor& delta_bias, bool delta_softplus,
                                           const OptionalTensor& decay, const OptionalTensor& recap_state,
                                           int64_t period, const OptionalTensor& initial_state, int64_t chunk) {
  const Problem p(u, delta, A, B, C, order, skip, delta_bias, delta_softplus, decay, recap_state, period,
                  initial_state, chunk);
  Tensor y = at::zeros({p.batch, p.length, p.channels}, u.options());
  Tensor state = at::empty({p.batch, p.directions, p.channels, p.states}, u.options());
  Tensor saved = at::empty({p.batch, p.directions, p.chunks(), p.states, p.channels}, u.options());
  const Output out{y.data_ptr<float>(), state.data_ptr<float>(), saved.data_ptr<float>()};
  for_each_part(p, [&] {
    return [&, scratch = std::vector<Lanes>(FORWARD_ARRAYS * p.states)](
               const Part& part, auto states, auto full) mutable {
      forward_part<states(), full()>(part, out, scratch.data());
    };
  });
  return {y, state, saved};
}

// Sums over the first dimension, always in the same order.
Tensor sum_parts(const Tensor& parts) {
  const int64_t count = parts.size(0), size = count == 0 ? 0 : parts.numel() / count;
  Tensor sum = at::zeros(parts.sizes().slice(1), parts.options());
  float* to = sum.data_ptr<float>();
  const float* from = parts.const_data_ptr<float>();
  at::parallel_for(0, size, 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t part = 0; part < count; ++part) {
      for (int64_t i = begin; i < end; ++i) to[i] += from[part * size + i];
    }
  });
  return sum;
}

std::vector<Tensor> backward(const Tensor& grad_y, const Tensor& grad_state, const Tensor& saved, const Tensor& u,
                             const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                             const Tensor& order, const OptionalTensor& skip, const OptionalTensor& delta_bias,
                             bool delta_softplus, const OptionalTensor& decay, const OptionalTensor& recap_state,
                             int64_t period, const OptionalTensor& initial_state, int64_t chunk) {
  const Problem p(u, delta, A, B, C, order, skip, delta_bias, delta_softplus, decay, recap_state, period,
                  initial_state, chunk);
  const auto empty = [&](bool present, std::initializer_list<int64_t> size) {
    return present ? at::empty(size, u.options()) : at::empty({0}, u.options());
  };
  const int64_t batch = p.batch, k = p.directions, d = p.channels, n = p.states;
  Tensor grad_u = at::zeros({batch, p.length, d}, u.options());
  Tensor grad_delta = empty(true, {batch, k, p.length, d});
  Tensor grad_B = empty(true, {p.blocks, batch, k, p.length, n}), grad_C = empty(true, {p.blocks, batch, k, p.length, n});
  Tensor grad_A = empty(true, {batch, k, d, n});
  Tensor grad_skip = empty(skip.has_value(), {batch, k, d}), grad_bias = empty(delta_bias.has_value(), {batch, k, d});
  Tensor grad_decay = empty(period > 0, {batch, k, d, n}), grad_recap = empty(period > 0, {batch, k, d, n});
  Tensor grad_initial = empty(initial_state.has_value(), {batch, k, d, n});
  const auto pointer = [](const Tensor& x) { return x.numel() > 0 ? x.data_ptr<float>() : nullptr; };
  const Gradients g{grad_y.const_data_ptr<float>(), grad_state.const_data_ptr<float>(), saved.const_data_ptr<float>(),
                    pointer(grad_u), pointer(grad_delta), pointer(grad_B), pointer(grad_C), pointer(grad_A),
                    pointer(grad_skip), pointer(grad_bias), pointer(grad_decay), pointer(grad_recap),
                    pointer(grad_initial)};
  for_each_part(p, [&] {
    return [&, scratch = std::vector<Lanes>(Backward<0, false>::arrays(chunk) * n),
            steps = std::vector<Step>(chunk)](const Part& part, auto states, auto full) mutable {
      Backward<states(), full()>(part, g, scratch.data(), steps.data()).run();
    };
  });
  return {grad_u, grad_delta, sum_parts(grad_A), sum_parts(grad_B), sum_parts(grad_C),
          skip.has_value() ? sum_parts(grad_skip) : grad_skip,
          delta_bias.has_value() ? sum_parts(grad_bias) : grad_bias, grad_decay, grad_recap, grad_initial};
}

}  // namespace
}  // namespace scan

TORCH_LIBRARY(hmnet_scan, library) {
  const std::string inputs =
      "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor order, Tensor? skip, Tensor? delta_bias, "
      "bool delta_softplus, Tensor? decay, Tensor? recap_state, int period, Tensor? initial_state, int chunk";
  library.def(("forward(" + inputs + ") -> (Tensor, Tensor, Tensor)").c_str());
  library.def(("backward(Tensor grad_y, Tensor grad_state, Tensor saved, " + inputs + ") -> Tensor[]").c_str());
}

TORCH_LIBRARY_IMPL(hmnet_scan, CPU, library) {
  library.impl("forward", scan::forward);
  library.impl("backward", scan::backward);
}
