// A device of libtorch that is played on the host: what a GPU would refuse, or be made to wait for,
// is seen without one.
#pragma once

#include <c10/core/Device.h>

#include <map>
#include <string>

namespace coppice::testing {

/// Where its tensors lie. Their memory is the host's; every operation on them is done by the CPU's
/// kernel and at once. One that mixes them with tensors of the CPU that have dimensions throws, as
/// it does on a GPU. The first call registers the backend with libtorch, for the whole process.
c10::Device played_device();

/// How often, since the last call, a thread waited for the device, by the operation that made it:
/// what became a number of the host's, what was copied there, or from there, unless the caller said
/// not to wait, and what has a shape that depends on values.
std::map<std::string, int> take_host_waits();

}  // namespace coppice::testing
