// The selective scan on a CPU, forward and backward, as operators of the library `selective_scan_cpu`. Work is cut into (batch,
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

std::tuple<Tensor, Tensor, Tensor> forward(const Tensors& inputs, bool softplus, int64_t period, int64_t chunk) {
  const Problem p(inputs, softplus, period, chunk);
  const auto options = inputs.at("u").options();
  Tensor y = at::zeros({p.batch, p.length, p.channels}, options);
  Tensor state = at::empty({p.batch, p.directions, p.channels, p.states}, options);
  Tensor saved = at::empty({p.batch, p.directions, p.chunks(), p.states, p.channels}, options);
  const Output out{y.data_ptr<float>(), state.data_ptr<float>(), saved.data_ptr<float>()};
  for_each_part(p, [&] {
    return [&, scratch = std::vector<Lanes>(4 * p.states + p.rank)](
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

Tensors backward(const Tensor& grad_y, const Tensor& grad_state, const Tensor& saved, const Tensors& inputs,
                 bool softplus, int64_t period, int64_t chunk) {
  const Problem p(inputs, softplus, period, chunk);
  const int64_t batch = p.batch, k = p.directions, d = p.channels, n = p.states;
  Tensors gradients;
  const auto gradient = [&](const char* name, std::initializer_list<int64_t> size) -> float* {
    if (!inputs.contains(name)) return nullptr;
    gradients.insert(name, at::empty(size, grad_y.options()));
    return gradients.at(name).data_ptr<float>();
  };
  const Gradients g{grad_y.const_data_ptr<float>(),
                    grad_state.const_data_ptr<float>(),
                    saved.const_data_ptr<float>(),
                    gradient("u", {batch, p.length, d}),
                    p.low_rank ? gradient("delta", {p.blocks, batch, k, p.length, p.rank})
                               : gradient("delta", {batch, k, p.length, d}),
                    gradient("B", {p.blocks, batch, k, p.length, n}),
                    gradient("C", {p.blocks, batch, k, p.length, n}),
                    gradient("A", {batch, k, d, n}),
                    gradient("skip", {batch, k, d}),
                    gradient("delta_bias", {batch, k, d}),
                    gradient("delta_proj", {batch, k, d, p.rank}),
                    gradient("decay", {batch, k, d, n}),
                    gradient("recap_state", {batch, k, d, n}),
                    gradient("initial_state", {batch, k, d, n})};
  gradients.at("u").zero_();
  for_each_part(p, [&] {
    return [&, scratch = std::vector<Lanes>(Backward<0, false>::arrays(chunk) * n + 2 * p.rank),
            steps = std::vector<Step>(chunk)](const Part& part, auto states, auto full) mutable {
      Backward<states(), full()>(part, g, scratch.data(), steps.data()).run();
    };
  });
  for (const char* name : {"delta", "A", "B", "C", "skip", "delta_bias", "delta_proj"}) {  // one part per sample or block
    const bool is_sum = name != std::string("delta") || p.low_rank;
    if (is_sum && gradients.contains(name)) gradients.insert_or_assign(name, sum_parts(gradients.at(name)));
  }
  return gradients;
}

}  // namespace
}  // namespace scan

// Tensors in dictionaries do not choose the device, so these operators have one implementation, for the CPU.
TORCH_LIBRARY(selective_scan_cpu, library) {
  const std::string inputs = "Dict(str, Tensor) inputs, bool delta_softplus, int period, int chunk";
  const std::string outputs = "Tensor grad_y, Tensor grad_state, Tensor saved, ";
  library.def(("forward(" + inputs + ") -> (Tensor, Tensor, Tensor)").c_str(), scan::forward);
  library.def(("backward(" + outputs + inputs + ") -> Dict(str, Tensor)").c_str(), scan::backward);
}
