// Attention over short heads, and the softmax of the vocabulary, for the CPU.
//
// GPT-Neo's heads are 4 to 64 numbers wide (4 in XS), too narrow for the matrix products that other
// implementations are made of. Here 16 keys stand side by side in a vector and a query goes over
// them: scores live in registers and the first-level cache, and never reach memory.
//
// Only vector extensions of GCC and Clang are used, so that one text serves AVX-512, AVX2 and NEON.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t kLanes = 16;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
const Ints kLaneNumbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// bf16 is the upper half of a float; rounding is to nearest even, as everywhere in PyTorch.
struct Bfloat16 {
  uint16_t bits;
};

inline Floats load(const float *from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline Floats load(const Bfloat16 *from) {
  Halves x;
  std::memcpy(&x, from, sizeof x);
  return (Floats)(__builtin_convertvector(x, Bits) << 16);
}
inline void store(float *to, Floats x) { std::memcpy(to, &x, sizeof x); }
inline void store(Bfloat16 *to, Floats x) {
  Bits bits = (Bits)x;
  bits += 0x7fff + ((bits >> 16) & 1);
  Halves half = __builtin_convertvector(bits >> 16, Halves);
  std::memcpy(to, &half, sizeof half);
}
inline Floats splat(float x) { return Floats{} + x; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline float sum(Floats x) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}
inline float largest(Floats x) {
  float top = x[0];
  for (int i = 1; i < kLanes; ++i) top = std::max(top, x[i]);
  return top;
}

// e^x for x <= 88, to two units in the last place: x = n ln 2 + r, and a polynomial in r (Cephes).
// Below -87 it is 0; NaN stays NaN.
inline Floats exponential(Floats x) {
  const Floats round = splat(12582912.0f);  // 1.5 x 2^23: adding it leaves the nearest integer
  const Ints vanishes = x < -87.0f;
  const Floats shifted = x * 1.44269504088896341f + round;
  const Floats n = shifted - round;
  const Floats r = (x - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return vanishes ? Floats{} : p * (Floats)(((Bits)shifted - (Bits)round + 127) << 23);
}

// Dropout needs a random number for each score, the same ones again in the backward pass. They are
// a hash of where the score stands, so that nothing is stored: a 64-bit mix (SplitMix64) of the call
// and the query gives a key, a 32-bit mix (Wellons' low-bias search) of key and position the number.
inline uint32_t query_key(uint64_t seed, uint64_t query) {
  uint64_t z = seed + query * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return (uint32_t)(z ^ (z >> 31));
}
inline Floats drop(Floats x, uint32_t key, int64_t position, uint32_t threshold) {
  Bits z = (Bits)(kLaneNumbers + (int32_t)position) * 0x9e3779b9u + key;
  z = (z ^ (z >> 16)) * 0x21f0aaadu;
  z = (z ^ (z >> 15)) * 0x735a2d97u;
  z ^= z >> 15;
  return z >= threshold ? x : Floats{};
}

struct Attention {
  int64_t batch, length, heads;
  int64_t window;      // a query sees itself and the window - 1 tokens before it
  int64_t threads;
  uint64_t seed;       // of this call's dropout
  uint32_t threshold;  // dropped where the random number is below it
  float keep_scale;    // 1 / (1 - dropout)
};

// Numbers without a value yet, the same count for each thread.
class Buffer {
 public:
  Buffer(int64_t threads, int64_t count) : count_(count), numbers_(new float[threads * count]) {}
  float *of_this_thread() const { return numbers_.get() + omp_get_thread_num() * count_; }

 private:
  int64_t count_;
  std::unique_ptr<float[]> numbers_;
};

// Rows first to last - 1 of one head, 16 of them side by side: packed[row / 16][d][row % 16].
template <int D>
inline int64_t packed_at(int64_t row, int64_t d) {
  return row / kLanes * kLanes * D + d * kLanes + row % kLanes;
}
template <int D>
void pack(const float *rows, int64_t stride, int64_t first, int64_t last, float *packed) {
  const int64_t count = last - first, whole = (count + kLanes - 1) / kLanes * kLanes;
  if (whole > count) std::fill(packed + (whole - kLanes) * D, packed + whole * D, 0.0f);
  for (int64_t row = 0; row < count; ++row)
    for (int64_t d = 0; d < D; ++d) packed[packed_at<D>(row, d)] = rows[(first + row) * stride + d];
}
template <int D>
void unpack(const float *packed, int64_t stride, int64_t first, int64_t last, float *rows) {
  for (int64_t row = 0; row < last - first; ++row)
    for (int64_t d = 0; d < D; ++d) rows[(first + row) * stride + d] = packed[packed_at<D>(row, d)];
}

// The 16 values from `position` on, with `otherwise` where a key lies outside first..last.
inline Floats within(Floats x, int64_t position, int64_t first, int64_t last, float otherwise) {
  if (position >= first && position + kLanes - 1 <= last) return x;
  const Ints at = kLaneNumbers + (int32_t)position;
  return ((at >= (int32_t)first) & (at <= (int32_t)last)) ? x : splat(otherwise);
}

// All tensors are (batch, length, heads * D), as the projections give and take them;
// log_sums is (batch, heads, length).
template <int D, bool Dropout>
void forward(const Attention &a, const float *query, const float *key, const float *value,
             float *output, float *log_sums) {
  const int64_t stride = a.heads * D, padded = (a.length + kLanes - 1) / kLanes * kLanes;
  const Buffer all(a.threads, padded * (2 * D + 1));
#pragma omp parallel num_threads(a.threads)
  {
    float *keys = all.of_this_thread(), *values = keys + padded * D, *scores = values + padded * D;
#pragma omp for schedule(dynamic)
    for (int64_t head = 0; head < a.batch * a.heads; ++head) {
      const int64_t start = head / a.heads * a.length * stride + head % a.heads * D;
      pack<D>(key + start, stride, 0, a.length, keys);
      pack<D>(value + start, stride, 0, a.length, values);
      for (int64_t i = 0; i < a.length; ++i) {
        const int64_t first = std::max<int64_t>(0, i - a.window + 1);
        const int64_t begin = first / kLanes * kLanes;
        float q[D];
        std::copy_n(query + start + i * stride, D, q);
        Floats tops = splat(-INFINITY);
        for (int64_t j = begin; j <= i; j += kLanes) {
          Floats score{};
          for (int d = 0; d < D; ++d) score += q[d] * load(&keys[j * D + d * kLanes]);
          score = within(score, j, first, i, -INFINITY);
          store(&scores[j], score);
          tops = larger(tops, score);
        }
        const float top = largest(tops);
        const uint32_t random = query_key(a.seed, head * a.length + i);
        Floats sums{}, mixed[D] = {};
        for (int64_t j = begin; j <= i; j += kLanes) {
          Floats weight = exponential(load(&scores[j]) - top);
          sums += weight;
          if (Dropout) weight = drop(weight, random, j, a.threshold);
          for (int d = 0; d < D; ++d) mixed[d] += weight * load(&values[j * D + d * kLanes]);
        }
        const float total = sum(sums), scale = a.keep_scale / total;
        for (int d = 0; d < D; ++d) output[start + i * stride + d] = sum(mixed[d]) * scale;
        log_sums[head * a.length + i] = top + std::log(total);
      }
    }
  }
}

// The weights are computed again from the scores and `log_sums`. Keys are taken in tiles whose four
// packed arrays (keys, values and their gradients) fill the first-level cache, 32 KB.
template <int D, bool Dropout>
void backward(const Attention &a, const float *query, const float *key, const float *value,
              const float *output, const float *log_sums, const float *grad_output,
              float *grad_query, float *grad_key, float *grad_value) {
  constexpr int64_t tile = std::max<int64_t>(1, (32 << 10) / (4 * D * kLanes * 4)) * kLanes;
  const int64_t stride = a.heads * D;
  const Buffer all(a.threads, a.length);
#pragma omp parallel num_threads(a.threads)
  {
    float *deltas = all.of_this_thread();
    alignas(64) float keys[tile * D], values[tile * D], grad_keys[tile * D], grad_values[tile * D];
#pragma omp for schedule(dynamic)
    for (int64_t head = 0; head < a.batch * a.heads; ++head) {
      const int64_t start = head / a.heads * a.length * stride + head % a.heads * D;
      for (int64_t i = 0; i < a.length; ++i) {
        const int64_t at = start + i * stride;
        deltas[i] = 0;
        for (int d = 0; d < D; ++d) deltas[i] += grad_output[at + d] * output[at + d];
        std::fill_n(grad_query + at, D, 0.0f);
      }
      for (int64_t left = 0; left < a.length; left += tile) {
        const int64_t right = std::min(left + tile, a.length);
        pack<D>(key + start, stride, left, right, keys);
        pack<D>(value + start, stride, left, right, values);
        std::fill_n(grad_keys, tile * D, 0.0f);
        std::fill_n(grad_values, tile * D, 0.0f);
        // The queries that see any key of the tile. A window may be longer than the text.
        const int64_t beyond = right - 1 + std::min(a.window, a.length);
        for (int64_t i = left; i < std::min(a.length, beyond); ++i) {
          const int64_t first = std::max(left, i - a.window + 1), last = std::min(i, right - 1);
          const uint32_t random = query_key(a.seed, head * a.length + i);
          const float log_sum = log_sums[head * a.length + i];
          float q[D], g[D];
          for (int d = 0; d < D; ++d) {
            q[d] = query[start + i * stride + d];
            g[d] = grad_output[start + i * stride + d] * a.keep_scale;
          }
          Floats grad_q[D] = {};
          for (int64_t j = left + (first - left) / kLanes * kLanes; j <= last; j += kLanes) {
            const int64_t at = (j - left) * D;
            Floats score{}, grad_weight{};
            for (int d = 0; d < D; ++d) score += q[d] * load(keys + at + d * kLanes);
            for (int d = 0; d < D; ++d) grad_weight += g[d] * load(values + at + d * kLanes);
            const Floats weight = within(exponential(score - log_sum), j, first, last, 0.0f);
            Floats kept = weight;
            if (Dropout) {
              kept = drop(weight, random, j, a.threshold);
              grad_weight = drop(grad_weight, random, j, a.threshold);
            }
            const Floats grad_score = weight * (grad_weight - deltas[i]);
            for (int d = 0; d < D; ++d) {
              float *grad_k = grad_keys + at + d * kLanes, *grad_v = grad_values + at + d * kLanes;
              grad_q[d] += grad_score * load(keys + at + d * kLanes);
              store(grad_k, load(grad_k) + grad_score * q[d]);
              store(grad_v, load(grad_v) + kept * g[d]);
            }
          }
          for (int d = 0; d < D; ++d) grad_query[start + i * stride + d] += sum(grad_q[d]);
        }
        unpack<D>(grad_keys, stride, left, right, grad_key + start);
        unpack<D>(grad_values, stride, left, right, grad_value + start);
      }
    }
  }
}

// Logits are (vocabulary, tokens), 16 tokens side by side; `tokens` is a multiple of 16. Each thread
// takes a share of the vocabulary and keeps the largest logit and the sum of exponentials per token.
// A label of -100 is not counted. With the gradient, each logit is replaced by its own. Returns the
// place of a label that is outside the vocabulary, before anything is changed, or kDone.
constexpr int64_t kIgnored = -100, kDone = -1, kNoMemory = -2;
template <typename Number>
int64_t cross_entropy(int64_t vocabulary, int64_t tokens, int64_t threads, const int64_t *labels,
                   bool with_gradient, Number *logits, float *losses) {
  for (int64_t c = 0; c < tokens; ++c)
    if (labels[c] != kIgnored && (labels[c] < 0 || labels[c] >= vocabulary)) return c;
  constexpr int64_t tile = 64;  // vocabulary entries between two corrections of the sums
  std::vector<float> tops(threads * tokens, -INFINITY), sums(threads * tokens, 0.0f);
  std::vector<float> log_sums(tokens), counted(tokens);
  std::vector<float> grad_labels(tokens, 0.0f);  // in fp32: near 1, bf16 is too coarse for p - 1
  const int64_t tiles = (vocabulary + tile - 1) / tile;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t thread = 0; thread < threads; ++thread) {
    float *top = tops.data() + thread * tokens, *total = sums.data() + thread * tokens;
    for (int64_t t = tiles * thread / threads; t < tiles * (thread + 1) / threads; ++t) {
      const int64_t begin = t * tile, end = std::min(begin + tile, vocabulary);
      for (int64_t c = 0; c < tokens; c += kLanes) {
        const Floats before = load(top + c);
        Floats now = before, added{};
        for (int64_t v = begin; v < end; ++v) now = larger(now, load(logits + v * tokens + c));
        for (int64_t v = begin; v < end; ++v)
          added += exponential(load(logits + v * tokens + c) - now);
        store(total + c, load(total + c) * exponential(before - now) + added);
        store(top + c, now);
      }
    }
  }
  for (int64_t c = 0; c < tokens; ++c) {
    float top = -INFINITY;
    double total = 0;
    for (int64_t t = 0; t < threads; ++t) top = std::max(top, tops[t * tokens + c]);
    for (int64_t t = 0; t < threads; ++t)
      total += sums[t * tokens + c] * std::exp((double)tops[t * tokens + c] - top);
    log_sums[c] = top + std::log(total);
    counted[c] = labels[c] >= 0;
    const int64_t at = std::max<int64_t>(labels[c], 0) * tokens + c;
    losses[c] = labels[c] < 0 ? 0 : log_sums[c] - load(logits + at - c % kLanes)[c % kLanes];
  }
  if (!with_gradient) return kDone;
  for (int64_t c = 0; c < tokens; ++c)
    if (labels[c] >= 0) grad_labels[c] = std::expm1(-losses[c]);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t v = 0; v < vocabulary; ++v)
    for (int64_t c = 0; c < tokens; c += kLanes) {
      Number *at = logits + v * tokens + c;
      const Floats probability = exponential(load(at) - load(&log_sums[c]));
      store(at, load(&counted[c]) > 0 ? probability : Floats{});
    }
  for (int64_t c = 0; c < tokens; ++c) {
    if (labels[c] < 0) continue;
    Number *at = logits + labels[c] * tokens + c / kLanes * kLanes;
    Floats gradients = load(at);
    gradients[c % kLanes] = grad_labels[c];
    store(at, gradients);
  }
  return kDone;
}

// Memory is asked for outside of parallel regions, which no exception may leave.
template <typename Result, typename Run>
Result with_memory(Result without, Run run) {
  try {
    return run();
  } catch (const std::exception &) {  // bad_alloc, or a length that no vector can have
    return without;
  }
}

// Calls `run` with the head dimension as a constant; false where there is no kernel for it.
template <typename Run>
bool with_dimension(int64_t dimension, Run run) {
  switch (dimension) {
    case 4: run(std::integral_constant<int, 4>{}); return true;
    case 8: run(std::integral_constant<int, 8>{}); return true;
    case 16: run(std::integral_constant<int, 16>{}); return true;
    case 32: run(std::integral_constant<int, 32>{}); return true;
    case 48: run(std::integral_constant<int, 48>{}); return true;
    case 64: run(std::integral_constant<int, 64>{}); return true;
    default: return false;
  }
}

}  // namespace

extern "C" {

// Both return false where there is no kernel for the dimension, or no memory.
bool attention_forward(const Attention *a, int64_t dimension, float *log_sums, const float *query,
                       const float *key, const float *value, float *output) {
  return with_memory(false, [&] {
    return with_dimension(dimension, [&](auto d) {
      const auto run = a->threshold ? forward<d(), true> : forward<d(), false>;
      run(*a, query, key, value, output, log_sums);
    });
  });
}

bool attention_backward(const Attention *a, int64_t dimension, const float *log_sums,
                        const float *query, const float *key, const float *value,
                        const float *output, const float *grad_output, float *grad_query,
                        float *grad_key, float *grad_value) {
  return with_memory(false, [&] {
    return with_dimension(dimension, [&](auto d) {
      const auto run = a->threshold ? backward<d(), true> : backward<d(), false>;
      run(*a, query, key, value, output, log_sums, grad_output, grad_query, grad_key, grad_value);
    });
  });
}

int64_t cross_entropy_float(int64_t vocabulary, int64_t tokens, int64_t threads,
                            const int64_t *labels, bool with_gradient, float *logits,
                            float *losses) {
  return with_memory(kNoMemory, [&] {
    return cross_entropy(vocabulary, tokens, threads, labels, with_gradient, logits, losses);
  });
}

int64_t cross_entropy_bfloat16(int64_t vocabulary, int64_t tokens, int64_t threads,
                               const int64_t *labels, bool with_gradient, Bfloat16 *logits,
                               float *losses) {
  return with_memory(kNoMemory, [&] {
    return cross_entropy(vocabulary, tokens, threads, labels, with_gradient, logits, losses);
  });
}
}
