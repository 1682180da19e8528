#include "taylor.h"

#include "library.h"

CASTLING_EXPORT(taylor_forward, castling::TaylorArguments)
CASTLING_EXPORT(taylor_backward, castling::TaylorArguments)
