// Entry points of the exact Taylor attention.
#include "taylor_direct_backward.h"
#include "taylor_features_passes.h"

namespace CASTLING_NAMESPACE {

int taylor_forward(const TaylorArguments& a) {
  const KeyLists lists(a);
  if (lists.failed()) return 1;
  const ValueMeans means(a, lists);
  if (means.failed()) return 1;
  return a.features ? forward_features(a, lists, means) : forward_direct(a, lists, means);
}

int taylor_backward(const TaylorArguments& a) {
  const KeyLists lists(a);
  if (lists.failed()) return 1;
  const ValueMeans means(a, lists);
  if (means.failed()) return 1;
  return a.features ? backward_features(a, lists, means) : backward_direct(a, lists, means);
}

}  // namespace CASTLING_NAMESPACE
