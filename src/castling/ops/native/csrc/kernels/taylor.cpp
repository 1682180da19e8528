// Entry points of the exact Taylor attention.
#include "taylor_direct_backward.h"
#include "taylor_features_passes.h"

namespace CASTLING_NAMESPACE {

int taylor_forward(const TaylorArguments& a) {
  const KeyLists lists(a);
  if (lists.failed()) return 1;
  const ValueShifts shifts(a, lists, a.features ? table_state(a) : direct_state(a), true);
  if (shifts.failed()) return 1;
  return a.features ? forward_features(a, lists, shifts) : forward_direct(a, lists, shifts);
}

int taylor_backward(const TaylorArguments& a) {
  const KeyLists lists(a);
  if (lists.failed()) return 1;
  const ValueShifts shifts(a, lists, a.features ? table_state(a) : direct_state(a), false);
  if (shifts.failed()) return 1;
  return a.features ? backward_features(a, lists, shifts) : backward_direct(a, lists, shifts);
}

}  // namespace CASTLING_NAMESPACE
