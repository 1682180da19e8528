// Linear attention, backward: from q, k, v and the saved state alone.
//
// First pass, over queries: x_i again, its gradient through the normalisation, dq, and the
// gradients of the state, dS = sγ·Σφ(q)dxᵀ, dz, dm. Second pass, over keys: dv = dSᵀφ(k) + dm and
// dφ(k) = dS·v + dz. Gradients of weights and of the constant are summed in the first. For row sums
// S, m and y are those of centred values (`centre`).
#include "linear_problem.h"

namespace CASTLING_NAMESPACE {
namespace {

struct Backward : LinearProblem {
  bool passes_value;  // the identity term is of the values: its gradient goes through a buffer
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
    head_floats = CONSTANTS + dim * ldv + ldk + 3 * ldv + 2 * value_wide * ldk +
                  (converts_values() ? a.keys * ldv : 0) +
                  (converts_gradients() ? a.queries * ldv : 0);
    worker_floats = QueryBlock::floats(*this) + BLOCK * (ldk + 2 * ldv);
  }

  long result_floats() const { return 16 + (local.kind ? local.size() : 0); }
  bool converts_gradients() const { return local.kind && !in_place(a.out, a.dtype, value_dim); }

  struct Head {
    float *constants, *state, *total, *values, *mean, *shift, *transposed, *d_transposed, *converted,
        *gradients;
    Head(const Backward& p, float* own)
        : constants(own),
          state(constants + CONSTANTS),
          total(state + p.dim * p.ldv),
          values(total + p.ldk),
          mean(values + p.ldv),
          shift(mean + p.ldv),
          transposed(shift + p.ldv),
          d_transposed(transposed + p.value_wide * p.ldk),
          converted(d_transposed + p.value_wide * p.ldk),
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

  // Columns become rows of whole vectors, zero after the last channel.
  void transpose_state(const float* state, float* to) const {
    long whole = dim / 4 * 4;
    transpose(state, ldv, whole, value_dim, to, ldk);
    for (long r = whole; r < key_wide; ++r)
      for (long c = 0; c < value_dim; ++c) to[c * ldk + r] = r < dim ? state[r * ldv + c] : 0;
  }

  static void copy_row(const float* from, long count, float* to, long ld) {
    __builtin_memcpy(to, from, count * sizeof(float));
    zero(to + count, ld - count);
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
    if (rowsum) centre(head, (float)keys);
    for (long c = 0; c < ldv; ++c) head.mean[c] = s * constant * head.values[c];
    transpose_state(head.state, head.transposed);
    for (long i = 0; i < value_dim * ldk; i += LANES)
      store(head.transposed + i, broadcast(s * gamma) * load(head.transposed + i));
    if (converts_values()) masked_rows(a.value, b, h, 0, a.keys, value_dim, head.converted, ldv);
    if (converts_gradients())
      pack_rows(a.out, a.dtype, b, h, 0, a.queries, value_dim, head.gradients, ldv);
  }

  // Subtract a common row from v and y, the output for the query z; ⟨g, v − y⟩ is unchanged. Without
  // it, values far from zero cancel to rounding errors in the queries' gradients.
  void centre(const Head& head, float keys) const {
    const float sums = gamma * dot(head.total, head.total, key_wide) / max(1, (long)keys);
    const float share = 1 / (sums + constant * keys);
    zero(head.shift, ldv);
    for (long r = 0; r < dim; ++r)
      add_product(head.shift, gamma / max(1, (long)keys) * head.total[r], head.state + r * ldv);
    add_product(head.shift, constant, head.values);
    for (long c = 0; c < value_wide; ++c) {
      head.shift[c] *= share;
      if (!common_to_all(head, keys, c)) head.shift[c] = 0;
    }
    for (long r = 0; r < dim; ++r) add_product(head.state + r * ldv, -head.total[r], head.shift);
    add_product(head.values, -keys, head.shift);
  }
  // Whether the shift of a channel is near the mean of every feature's values. Much smaller values
  // would lose their digits to it.
  bool common_to_all(const Head& head, float keys, long c) const {
    const float shift = head.shift[c];
    if (!__builtin_isfinite(shift)) return false;
    auto near = [shift](float sum, float weight) {
      return __builtin_fabsf(sum - weight * shift) <= 0.5f * __builtin_fabsf(weight * shift);
    };
    for (long r = 0; r < dim; ++r)
      if (!near(head.state[r * ldv + c], head.total[r])) return false;
    return !mean || near(head.values[c], keys);
  }
  void add_product(float* to, float factor, const float* row) const {
    for (long c = 0; c < value_wide; c += LANES)
      store(to + c, load(to + c) + broadcast(factor) * load(row + c));
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
    Ahead ahead = after_queries(b, h, start, count);
    ahead.over(tiles(count, value_dim) + tiles(count, dim) + tiles(dim, value_dim));
    auto between = [&ahead] { ahead.step(); };
    block.compute(*this, b, h, start, count, s, (long)keys, head.state, head.total,
                  mean ? head.mean : nullptr, rowsum ? head.shift : nullptr, ahead);
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
        // Such a row is not divided: its slopes are those of values without a shift.
        if (block.empty[t]) d_sums[t] = dot(d_x + t * ldv, head.shift, value_wide);
        if (mean)
          sum.result[0] += s * constant_gradient(d_x + t * ldv, block.x + t * ldv, head.values,
                                                 keys * block.factors[t]);
        d_sums[t] *= s * gamma;
      }
    pass_identity(b, h, start, count, d_x, block.residual);
    Target to = target_of(a.d_query, a.dtype, b, h, start, dim, d_query, ldk);
    matmul<false, false>(count, dim, value_dim, d_x, ldv, head.transposed, ldk, to.data, to.ld,
                         between);
    for (long t = 0; rowsum && t < count; ++t) {
      float* row = to.data + t * to.ld;
      for (long c = 0; c < key_wide; c += LANES)
        store(row + c, load(row + c) + broadcast(d_sums[t]) * load(head.total + c));
    }
    map_gradients(a.features, block.query, block.rows, block.scales, count, key_wide, eps, to.data,
                  to.ld);
    deliver(to, count, dim, a.d_query, a.dtype, b, h, start);
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
    const Rows& q = block.rows;
    if (fresh)
      matmul<false, true>(dim, value_dim, count, q.data, q.ld, d_x, ldv, sum.state, ldv, between);
    else
      matmul<true, true>(dim, value_dim, count, q.data, q.ld, d_x, ldv, sum.state, ldv, between);
  }

  // Prefetch for the next block.
  Ahead after_queries(long b, long h, long start, long count) const {
    Ahead ahead;
    if (!far) return ahead;
    if (!step_on(a.queries, h, start, count)) {
      ask_for_keys(ahead, b, h, 0, min(BLOCK, a.keys));
      return ahead;
    }
    ask_for_queries(ahead, b, h, start, count);
    ahead.add(a.out, a.dtype, b, h, start, count, value_dim);
    return ahead;
  }
  Ahead after_keys(long b, long h, long start, long count) const {
    Ahead ahead;
    if (!far || !step_on(a.keys, h, start, count)) return ahead;
    ask_for_keys(ahead, b, h, start, count);
    if (passes_value) ahead.add(through, castling::FLOAT32, b, h, start, count, value_dim);
    start += local.reach();
    if (local.kind)
      ahead.add(a.out, a.dtype, b, h, start, min(count, a.queries - start), value_dim);
    return ahead;
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

  // dx·(m − N·y), with the difference inside the sum: both sums are large.
  float constant_gradient(const float* d_x, const float* x, const float* m, float factor) const {
    Vec total = {};
    for (long c = 0; c < value_wide; c += LANES)
      total += load(d_x + c) * (load(m + c) - broadcast(factor) * load(x + c));
    return sum(total);
  }

  // The gradient of the identity term: written to the residual's, or kept for the second pass.
  void pass_identity(long b, long h, long start, long count, const float* d_x, float* scratch) const {
    if (a.residual.data == nullptr && !passes_value) return;
    const castling::Tensor4& x = passes_value ? through : a.d_residual;
    long dtype = passes_value ? (long)castling::FLOAT32 : a.dtype;
    Target to = target_of(x, dtype, b, h, start, value_dim, scratch, ldv);
    for (long t = 0; t < count; ++t)
      for (long c = 0; c < value_wide; c += LANES)
        store(to.data + t * to.ld + c, broadcast(identity) * load(d_x + t * ldv + c));
    deliver(to, count, value_dim, x, dtype, b, h, start);
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
    transpose_state(sum.state, head.d_transposed);
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
    Rows key = token_rows(a.key, b, h, start, count, dim, k, ldk);
    map_rows(a.features, key, count, key_wide, eps, mapped, ldk, scales);
    Rows rows = transforms(a.features) ? Rows{mapped, ldk} : key;
    Ahead ahead = after_keys(b, h, start, count);
    ahead.over(tiles(count, value_dim) + tiles(count, dim));
    auto between = [&ahead] { ahead.step(); };
    matmul<false, false>(count, value_dim, dim, rows.data, rows.ld, sum.state, ldv, d_value, ldv,
                         between);
    Rows direct{nullptr, 0};
    if (passes_value)
      direct = rows_of(through, castling::FLOAT32, b, h, start, count, value_dim, passed, ldv);
    Target to = target_of(a.d_value, a.dtype, b, h, start, value_dim, d_value, ldv);
    for (long t = 0; t < count; ++t) {
      ones[t] = 1;
      for (long c = 0; c < value_wide; c += LANES) {
        Vec d = broadcast(scales[t]) * load(d_value + t * ldv + c);
        if (mean) d += load(sum.values + c);
        if (passes_value) d += load(direct.data + t * direct.ld + c);
        store(to.data + t * to.ld + c, d);
      }
    }
    if (local.kind) {
      Rows all = all_gradients(b, h, head);
      convolve(local, weights_of(h), all.data, all.ld, start, count, to.data, to.ld, ones, to.data,
               to.ld);
    }
    zero_masked(to.data, to.ld, value_wide, b, start, count);
    deliver(to, count, value_dim, a.d_value, a.dtype, b, h, start);

    Rows values = token_rows(a.value, b, h, start, count, value_dim, v, ldv);
    if (rowsum) {
      for (long t = 0; t < count; ++t)
        for (long c = 0; c < value_wide; c += LANES)
          store(v + t * ldv + c, load(values.data + t * values.ld + c) - load(head.shift + c));
      values = {v, ldv};
    }
    to = target_of(a.d_key, a.dtype, b, h, start, dim, d_key, ldk);
    matmul<false, false>(count, dim, value_dim, values.data, values.ld, head.d_transposed, ldk,
                         to.data, to.ld, between);
    for (long t = 0; rowsum && t < count; ++t)
      for (long c = 0; c < key_wide; c += LANES)
        store(to.data + t * to.ld + c, load(to.data + t * to.ld + c) + load(sum.total + c));
    map_gradients(a.features, key, rows, scales, count, key_wide, eps, to.data, to.ld);
    zero_masked(to.data, to.ld, key_wide, b, start, count);
    deliver(to, count, dim, a.d_key, a.dtype, b, h, start);
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
