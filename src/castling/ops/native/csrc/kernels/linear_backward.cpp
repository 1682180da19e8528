// Linear attention, backward: from q, k, v and the saved state alone.
//
// First pass, over queries: x_i again, its gradient through the normalisation, dq, and the
// gradients of the state, dS = sγ·Σφ(q)dxᵀ, dz, dm. Second pass, over keys: dv = dSᵀφ(k) + dm and
// dφ(k) = dS·v + dz. Gradients of weights and of the constant are summed in the first.
#include "linear_problem.h"

namespace CASTLING_NAMESPACE {
namespace {

struct Backward : LinearProblem {
  static constexpr long CONSTANTS = 16;
  bool passes_value;  // the identity term reaches the values through a buffer
  castling::Scratch buffer, results;
  castling::Tensor4 through;

  explicit Backward(const LinearArguments& arguments)
      : LinearProblem(arguments, arguments.queries, arguments.keys, 2.5, true),
        passes_value(a.identity != 0 && a.residual.data == nullptr),
        buffer(passes_value && a.dtype != castling::FLOAT32 ? batch * a.keys * heads * value_dim : 1),
        results(batch * heads * result_floats()),
        through(a.d_value) {
    if (a.dtype != castling::FLOAT32) through.data = (char*)buffer.data;
    sum_first = dim * ldv;
    sum_floats = dim * ldv + ldk + ldv + result_floats();
    head_floats = CONSTANTS + dim * ldv + ldk + 2 * ldv + 2 * value_dim * ldk +
                  (converts_values() ? a.keys * ldv : 0) +
                  (converts_gradients() ? a.queries * ldv : 0);
    worker_floats = QueryBlock::floats(*this) + BLOCK * (ldk + 2 * ldv);
  }

  long result_floats() const { return 16 + (local.kind ? local.size() : 0); }
  bool converts_gradients() const { return local.kind && !in_place(a.out, a.dtype, value_dim); }

  struct Head {
    float *constants, *state, *total, *values, *mean, *transposed, *d_transposed, *converted,
        *gradients;
    Head(const Backward& p, float* own)
        : constants(own),
          state(constants + CONSTANTS),
          total(state + p.dim * p.ldv),
          values(total + p.ldk),
          mean(values + p.ldv),
          transposed(mean + p.ldv),
          d_transposed(transposed + p.value_dim * p.ldk),
          converted(d_transposed + p.value_dim * p.ldk),
          gradients(converted + (p.converts_values() ? p.a.keys * p.ldv : 0)) {}
  };

  struct Sum {
    float *state, *total, *values, *result;  // result: [0] of a, [16…] of the local weights
    Sum(const Backward& p, float* sum)
        : state(sum),
          total(state + p.dim * p.ldv),
          values(total + p.ldk),
          result(values + p.ldv) {}
  };

  void transpose(const float* state, float* to) const {
    for (long c = 0; c < value_dim; ++c) {
      for (long r = 0; r < dim; ++r) to[c * ldk + r] = state[r * ldv + c];
      for (long r = dim; r < key_wide; ++r) to[c * ldk + r] = 0;
    }
  }

  static void copy_row(const float* from, long count, float* to, long ld) {
    for (long c = 0; c < ld; ++c) to[c] = c < count ? from[c] : 0;
  }

  void prepare(float*, long b, long h, float* own) {
    Head head(*this, own);
    long keys = count_keys(b);
    float s = scale(keys);
    head.constants[0] = s;
    head.constants[1] = (float)keys;
    const float* saved = a.state + (b * heads + h) * (dim * value_dim + dim + value_dim);
    for (long r = 0; r < dim; ++r)
      copy_row(saved + r * value_dim, value_dim, head.state + r * ldv, ldv);
    copy_row(saved + dim * value_dim, dim, head.total, ldk);
    copy_row(saved + dim * value_dim + dim, value_dim, head.values, ldv);
    for (long c = 0; c < ldv; ++c) head.mean[c] = s * constant * head.values[c];
    transpose(head.state, head.transposed);
    if (converts_values()) masked_rows(a.value, b, h, 0, a.keys, value_dim, head.converted, ldv);
    if (converts_gradients())
      pack_rows(a.out, a.dtype, b, h, 0, a.queries, value_dim, head.gradients, ldv);
  }

  Rows all_gradients(long b, long h, const Head& head) const {
    if (converts_gradients()) return {head.gradients, ldv};
    return {(const float*)a.out.data + b * a.out.batch + h * a.out.head, (long)a.out.token};
  }

  void first_pass(float* work, long b, long h, long start, long count, bool fresh, float* own,
                  float* sums) {
    Head head(*this, own);
    Sum sum(*this, sums);
    float s = head.constants[0], keys = head.constants[1];
    QueryBlock block(*this, work);
    float* d_query = work + QueryBlock::floats(*this);
    float* d_x = d_query + BLOCK * ldk;
    float* packed = d_x + BLOCK * ldv;
    Ahead nothing_ahead;
    block.compute(*this, b, h, start, count, s, (long)keys, head.state, head.total,
                  mean ? head.mean : nullptr, nothing_ahead);
    Rows g = rows_of(a.out, a.dtype, b, h, start, count, value_dim, packed, ldv);
    if (local.kind) {
      Rows all = all_values(b, h, head.converted);
      weight_gradients(local, g.data, g.ld, all.data, all.ld, start, count, sum.result + 16);
    }
    float d_sums[BLOCK];  // gradients of the row sums, times sγ
    for (long t = 0; t < count; ++t)
      d_sums[t] = normalisation_gradient(g.data + t * g.ld, block.x + t * ldv, block.factors[t],
                                         d_x + t * ldv);
    if (rowsum)
      for (long t = 0; t < count; ++t) {
        if (mean)
          sum.result[0] += s * constant_gradient(d_x + t * ldv, block.x + t * ldv, head.values,
                                                 keys * block.factors[t]);
        d_sums[t] *= s * gamma;
      }
    pass_identity(b, h, start, count, d_x, block.residual);
    matmul<false, false>(count, dim, value_dim, d_x, ldv, head.transposed, ldk, d_query, ldk);
    for (long t = 0; t < count; ++t) {
      float* row = d_query + t * ldk;
      for (long c = 0; c < key_wide; c += LANES) {
        Vec d = broadcast(s * gamma) * load(row + c);
        if (rowsum) d += broadcast(d_sums[t]) * load(head.total + c);
        store(row + c, d);
      }
    }
    map_gradients(a.features, block.query, block.rows, block.scales, count, key_wide, eps, d_query,
                  ldk);
    unpack_rows(d_query, ldk, count, dim, a.d_query, a.dtype, b, h, start);
    for (long t = 0; t < count; ++t) {
      float* row = d_x + t * ldv;
      const float* mapped = block.rows.data + t * block.rows.ld;
      for (long c = 0; c < value_wide; c += LANES) {
        Vec d = load(row + c);
        store(sum.values + c, load(sum.values + c) + d);
        store(row + c, broadcast(block.scales[t]) * d);
      }
      if (rowsum)
        for (long c = 0; c < key_wide; c += LANES)
          store(sum.total + c,
                load(sum.total + c) + broadcast(block.scales[t] * d_sums[t]) * load(mapped + c));
    }
    (fresh ? matmul<false, true> : matmul<true, true>)(dim, value_dim, count, block.rows.data,
                                                       block.rows.ld, d_x, ldv, sum.state, ldv);
  }

  // dx from the gradient of y = factor·x; returns the gradient of the row sum.
  float normalisation_gradient(const float* g, const float* x, float factor, float* to) const {
    float along = a.normalize == castling::NONE ? 0 : dot(g, x, value_wide);
    Vec by = broadcast(factor);
    Vec back = broadcast(a.normalize == castling::L2 ? factor * along * factor : 0);
    for (long c = 0; c < value_wide; c += LANES)
      store(to + c, by * (load(g + c) - (a.normalize == castling::L2 ? back * load(x + c) : Vec{})));
    if (!rowsum) return 0;
    return -factor * along * factor;
  }

  // dx·(m − N·y): the difference of two large sums, taken before they are sums.
  float constant_gradient(const float* d_x, const float* x, const float* m, float factor) const {
    Vec total = {};
    for (long c = 0; c < value_wide; c += LANES)
      total += load(d_x + c) * (load(m + c) - broadcast(factor) * load(x + c));
    return sum(total);
  }

  // The identity term's gradient goes to the residual, or waits for the second pass.
  void pass_identity(long b, long h, long start, long count, const float* d_x, float* scratch) const {
    if (a.residual.data == nullptr && !passes_value) return;
    for (long t = 0; t < count; ++t)
      for (long c = 0; c < value_wide; c += LANES)
        store(scratch + t * ldv + c, broadcast(identity) * load(d_x + t * ldv + c));
    if (passes_value)
      unpack_rows(scratch, ldv, count, value_dim, through, castling::FLOAT32, b, h, start);
    else
      unpack_rows(scratch, ldv, count, value_dim, a.d_residual, a.dtype, b, h, start);
  }

  void finish(float*, long b, long h, float* own, float* sums) {
    Head head(*this, own);
    Sum sum(*this, sums);
    float s = head.constants[0];
    if (!rowsum) sum.result[0] = s * dot(sum.values, head.values, value_wide);
    for (long i = 0; i < dim * ldv; i += LANES)
      store(sum.state + i, broadcast(s * gamma) * load(sum.state + i));
    for (long c = 0; c < value_wide; c += LANES)
      store(sum.values + c, broadcast(s * constant) * load(sum.values + c));
    transpose(sum.state, head.d_transposed);
    __builtin_memcpy(results.data + (b * heads + h) * result_floats(), sum.result,
                     result_floats() * sizeof(float));
  }

  void second_pass(float* work, long b, long h, long start, long count, float* own, float* sums) {
    Head head(*this, own);
    Sum sum(*this, sums);
    float* k = work;
    float* mapped = k + BLOCK * ldk;
    float* d_key = mapped + BLOCK * ldk;
    float* v = d_key + BLOCK * ldk;
    float* d_value = v + BLOCK * ldv;
    float* passed = d_value + BLOCK * ldv;
    float scales[BLOCK], ones[BLOCK];
    masked_rows(a.key, b, h, start, count, dim, k, ldk);
    map_rows(a.features, {k, ldk}, count, key_wide, eps, mapped, ldk, scales);
    Rows rows{transforms(a.features) ? mapped : k, ldk};
    matmul<false, false>(count, value_dim, dim, rows.data, ldk, sum.state, ldv, d_value, ldv);
    Rows direct{nullptr, 0};
    if (passes_value)
      direct = rows_of(through, castling::FLOAT32, b, h, start, count, value_dim, passed, ldv);
    for (long t = 0; t < count; ++t) {
      ones[t] = 1;
      for (long c = 0; c < value_wide; c += LANES) {
        Vec d = broadcast(scales[t]) * load(d_value + t * ldv + c);
        if (mean) d += load(sum.values + c);
        if (passes_value) d += load(direct.data + t * direct.ld + c);
        store(d_value + t * ldv + c, d);
      }
    }
    if (local.kind) {
      Rows all = all_gradients(b, h, head);
      convolve(local, weights_of(h), all.data, all.ld, start, count, d_value, ldv, ones,
               d_value, ldv);
    }
    zero_masked(d_value, ldv, b, start, count);
    unpack_rows(d_value, ldv, count, value_dim, a.d_value, a.dtype, b, h, start);

    Rows values = value_rows(b, h, start, count, v);
    matmul<false, false>(count, dim, value_dim, values.data, values.ld, head.d_transposed, ldk,
                         d_key, ldk);
    if (rowsum)
      for (long t = 0; t < count; ++t)
        for (long c = 0; c < key_wide; c += LANES)
          store(d_key + t * ldk + c, load(d_key + t * ldk + c) + load(sum.total + c));
    map_gradients(a.features, {k, ldk}, rows, scales, count, key_wide, eps, d_key, ldk);
    zero_masked(d_key, ldk, b, start, count);
    unpack_rows(d_key, ldk, count, dim, a.d_key, a.dtype, b, h, start);
  }

  // Sums over the batch, in order.
  void write_parameters() {
    double constant_gradient = 0;
    for (long head = 0; head < batch * heads; ++head)
      constant_gradient += results.data[head * result_floats()];
    *a.d_constant = (float)constant_gradient;
    if (!local.kind) return;
    float* laid = weights.data;  // no longer needed as weights
    for (long h = 0; h < heads; ++h) {
      float* to = laid + h * local.size();
      zero(to, local.size());
      for (long b = 0; b < batch; ++b) {
        const float* from = results.data + (b * heads + h) * result_floats() + 16;
        for (long i = 0; i < local.size(); ++i) to[i] += from[i];
      }
    }
    unlay_weights(local, laid, heads, value_dim, a.d_local_weight);
  }
};

}  // namespace

int linear_attention_backward(const LinearArguments& arguments) {
  Backward problem(arguments);
  if (problem.weights.data == nullptr || problem.buffer.data == nullptr ||
      problem.results.data == nullptr)
    return 1;
  if (Schedule<Backward>(problem).run()) return 1;
  problem.write_parameters();
  return 0;
}

}  // namespace CASTLING_NAMESPACE
