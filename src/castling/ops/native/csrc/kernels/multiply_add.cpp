// The rate of multiply-adds of one thread on registers alone: the limit of every matrix product.
#include "../arguments.h"

#include <chrono>

#include "simd.h"

namespace CASTLING_NAMESPACE {
namespace {

// More sums than multiply-adds in flight, and few enough for sixteen registers.
constexpr int SUMS = 12;
constexpr long STEPS = 20000;        // a piece of about a tenth of a millisecond
constexpr double SECONDS = 20e-3;    // long enough for one undisturbed piece

// Volatile, so that no piece is computed at compile time; sums stay below one.
volatile float factor = 0.5f, addend = 0.25f, result;

void piece() {
  Vec by = broadcast(factor), plus = broadcast(addend), sums[SUMS];
#pragma GCC unroll 16
  for (int i = 0; i < SUMS; ++i) sums[i] = plus * broadcast((float)i / SUMS);
  for (long step = 0; step < STEPS; ++step)
#pragma GCC unroll 16
    for (int i = 0; i < SUMS; ++i) sums[i] = sums[i] * by + plus;
#pragma GCC unroll 16
  for (int i = 1; i < SUMS; ++i) sums[0] += sums[i];
  result = sum(sums[0]);
}

}  // namespace

int multiply_add_rate(const castling::MultiplyAddArguments& arguments) {
  typedef std::chrono::steady_clock Clock;
  auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  double best = SECONDS;
  for (Clock::time_point begin = Clock::now(); since(begin) < SECONDS;) {
    Clock::time_point start = Clock::now();
    piece();
    double took = since(start);
    if (took < best) best = took;
  }
  *arguments.rate = 2e-9 * STEPS * SUMS * LANES / best;
  return 0;
}

}  // namespace CASTLING_NAMESPACE
