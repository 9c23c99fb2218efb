// The kernels for any machine.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels.h"

namespace sgl::portable {
#include "isa.h"
#include "linear.h"
#include "attention.h"
#include "pass.h"
#include "table.h"
}  // namespace sgl::portable

namespace sgl {
const Kernels& portable_kernels = portable::table;
}
