#include "additive_block.h"

#include "library.h"

CASTLING_EXPORT(additive_block_size, castling::AdditiveBlockArguments)
CASTLING_EXPORT(additive_block_pack, castling::AdditiveBlockArguments)
CASTLING_EXPORT(additive_block_forward, castling::AdditiveBlockArguments)
