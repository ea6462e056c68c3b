#include "tests/support/played_backend.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceType.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <mutex>
#include <optional>
#include <set>
#include <utility>

namespace coppice::testing {
namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;
const c10::Device kDevice{kType, 0};

struct HostWaits {
  std::mutex mutex;
  std::map<std::string, int> by_operation;

  void add(const std::string& operation) {
    const std::lock_guard lock(mutex);
    ++by_operation[operation];
  }
};

HostWaits& host_waits() {
  static HostWaits waits;
  return waits;
}

// ---- what libtorch asks of a backend besides operations

// One stream, on which everything is done at once: events have nothing to tell.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<kType> {
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }

  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  at::Device getDeviceFromPtr(void*) const override { return kDevice; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const at::Generator generator = at::detail::createCPUGenerator();
    return generator;
  }
};

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr memory = c10::GetCPUAllocator()->allocate(bytes);
    memory.unsafe_set_device(kDevice);
    return memory;
  }
  c10::DeleterFnPtr raw_deleter() const override { return c10::GetCPUAllocator()->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

Allocator& allocator() {
  static Allocator it;
  return it;
}

// ---- operations

/// The same memory, as a tensor of the CPU.
at::Tensor on_host(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  return at::from_blob(tensor.unsafeGetTensorImpl()->mutable_data(), tensor.sizes(),
                       tensor.strides(), at::TensorOptions(tensor.scalar_type()));
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator(),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator(),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

// Copies that playing an operation takes are not those of who called it.
thread_local bool is_playing = false;

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool non_blocking) {
  if (self.device() != to.device() && !non_blocking && !is_playing) {
    host_waits().add(to.is_cpu() ? "copy to the host" : "copy from the host");
  }
  on_host(to).copy_(on_host(self));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  to.resize_(self.sizes());
  on_host(to).copy_(on_host(self));
  return to;
}

const at::Tensor& resize(const at::Tensor& self, c10::IntArrayRef size,
                         std::optional<at::MemoryFormat>) {
  at::TensorImpl* impl = self.unsafeGetTensorImpl();
  int64_t count = 1;
  for (const int64_t extent : size) count *= extent;
  const size_t bytes =
      size_t(count) * self.element_size() + size_t(self.storage_offset()) * self.element_size();
  c10::Storage storage = self.storage();
  if (storage.nbytes() < bytes) {
    storage.set_data_ptr(allocator().allocate(bytes));
    storage.set_nbytes(bytes);
  }
  impl->set_sizes_contiguous(size);
  return self;
}

at::Scalar local_scalar(const at::Tensor& self) {
  host_waits().add("item");
  return at::_local_scalar_dense(on_host(self));
}

/// What ends in a shape or a number that depends on values.
bool waits_for_values(const std::string& operation) {
  static const std::set<std::string> those = {"aten::nonzero",    "aten::masked_select",
                                              "aten::equal",      "aten::_unique2",
                                              "aten::unique_dim", "aten::unique_consecutive"};
  return those.contains(operation);
}

/// What a GPU refuses: tensors of two places, unless one is a number.
void require_one_place(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  const auto check = [&](const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cpu() || tensor.dim() == 0) return;
    TORCH_CHECK(false, "Expected all tensors to be on the same device: ", op.schema().name(),
                " was given one of the CPU among those of the device");
  };
  const size_t count = op.schema().arguments().size();
  for (size_t i = stack.size() - count; i < stack.size(); ++i) {
    const c10::IValue& argument = stack[i];
    if (argument.isTensor()) check(argument.toTensor());
    if (argument.isTensorList()) {
      for (const at::Tensor& tensor : argument.toTensorVector()) check(tensor);
    }
  }
}

void on_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  require_one_place(op, *stack);
  if (waits_for_values(op.schema().name())) host_waits().add(op.schema().name());
  const bool was_playing = std::exchange(is_playing, true);
  struct Restore {
    bool before;
    ~Restore() { is_playing = before; }
  } restore{was_playing};
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("resize_", &resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
}

}  // namespace

c10::Device played_device() {
  static const bool is_registered = [] {
    static Hooks hooks;
    c10::register_privateuse1_backend("played");
    at::RegisterPrivateUse1HooksInterface(&hooks);
    return true;
  }();
  return is_registered ? kDevice : c10::Device(c10::kCPU);
}

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

std::map<std::string, int> take_host_waits() {
  const std::lock_guard lock(host_waits().mutex);
  return std::exchange(host_waits().by_operation, {});
}

}  // namespace coppice::testing
