// Entry points of the exact Taylor attention.
#include "taylor_direct_backward.h"
#include "taylor_features_passes.h"

namespace CASTLING_NAMESPACE {

// Floats of a head's state: the features' table, row sums, the values' shift.
static long state_floats(const TaylorArguments& a) {
  return (a.features ? Table::size(a) : 0) + a.queries + a.value_dim;
}

int taylor_forward(const TaylorArguments& a) {
  const KeyLists lists(a);
  if (lists.failed()) return 1;
  const ValueShifts shifts(a, lists, state_floats(a), true);
  if (shifts.failed()) return 1;
  return a.features ? forward_features(a, lists, shifts) : forward_direct(a, lists, shifts);
}

int taylor_backward(const TaylorArguments& a) {
  const KeyLists lists(a);
  if (lists.failed()) return 1;
  const ValueShifts shifts(a, lists, state_floats(a), false);
  if (shifts.failed()) return 1;
  return a.features ? backward_features(a, lists, shifts) : backward_direct(a, lists, shifts);
}

}  // namespace CASTLING_NAMESPACE
