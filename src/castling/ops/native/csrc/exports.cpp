// The kernels that Python calls.
#include "arguments.h"
#include "library.h"

CASTLING_EXPORT(linear_attention_forward, castling::LinearArguments)
CASTLING_EXPORT(linear_attention_backward, castling::LinearArguments)
CASTLING_EXPORT(taylor_forward, castling::TaylorArguments)
CASTLING_EXPORT(taylor_backward, castling::TaylorArguments)
CASTLING_EXPORT(additive_block_size, castling::AdditiveBlockArguments)
CASTLING_EXPORT(additive_block_pack, castling::AdditiveBlockArguments)
CASTLING_EXPORT(additive_block_forward, castling::AdditiveBlockArguments)
CASTLING_EXPORT(multiply_add_rate, castling::MultiplyAddArguments)
