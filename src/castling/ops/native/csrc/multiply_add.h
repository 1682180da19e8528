// Arguments of the measurement of this machine's multiply-adds, as castling.ops.native.multiply_add
// packs them.
#pragma once

namespace castling {

struct MultiplyAddArguments {
  double* rate;  // written: 10⁹ floating-point operations a second, two in each multiply-add
};

}  // namespace castling
