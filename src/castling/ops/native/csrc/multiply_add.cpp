#include "multiply_add.h"

#include "library.h"

CASTLING_EXPORT(multiply_add_rate, castling::MultiplyAddArguments)
