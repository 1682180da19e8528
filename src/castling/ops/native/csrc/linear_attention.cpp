#include "linear_attention.h"

#include "library.h"

CASTLING_EXPORT(linear_attention_forward, castling::LinearArguments)
CASTLING_EXPORT(linear_attention_backward, castling::LinearArguments)
