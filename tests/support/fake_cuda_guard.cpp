// Lets a PyTorch that was built without CUDA pass fake tensors of that device on: it looks up what switches to a device
// before most operators, and finds nothing else.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
using Guard = c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>;
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
}  // namespace
