// A pretend accelerator for tests: tensors of device "pretend" lie in host memory and every operation
// is handed to the CPU, but only if all its tensors are on the device, as a real one would ask.
//
// Refused are a CPU tensor of one or more dimensions beside one of the device, and every random draw:
// the kit draws on the CPU, one generator per sample, and moves what was drawn.

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <optional>

namespace {

constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

c10::Device pretend() { return c10::Device(KIND, 0); }

// One device and one stream, on which everything has already happened.
struct OneDevice final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return KIND; }
  c10::Device getDevice() const override { return pretend(); }
  c10::Device exchangeDevice(c10::Device) const override { return pretend(); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, OneDevice);

// Without hooks torch runs no backward pass on a device.
struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};
Hooks hooks;
const bool known = (at::RegisterPrivateUse1HooksInterface(&hooks), true);

struct HostMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* start = bytes ? std::malloc(bytes) : nullptr;
    TORCH_CHECK(start || !bytes, "out of memory");
    return {start, start, &std::free, pretend()};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
HostMemory memory;
REGISTER_ALLOCATOR(KIND, &memory);

// The same numbers as a CPU tensor, not copied.
at::Tensor seen_from_host(const at::Tensor& x) {
  if (x.device().type() != KIND) return x;
  auto* start = static_cast<char*>(x.storage().mutable_data());
  if (start) start += x.storage_offset() * x.element_size();
  return at::from_blob(start, x.sizes(), x.strides(), at::TensorOptions(x.dtype()));
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> type,
                 std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride,
                         std::optional<at::ScalarType> type, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEYS,
                                           c10::dtype_or_default(type));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  if (to.numel()) seen_from_host(to).copy_(seen_from_host(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

const at::Tensor& resize_(const at::Tensor& x, at::IntArrayRef size,
                          std::optional<at::MemoryFormat>) {
  if (x.sizes() == size) return x;  // a view keeps its strides
  auto* storage = x.storage().unsafeGetStorageImpl();
  size_t needed = (c10::multiply_integers(size) + x.storage_offset()) * x.element_size();
  if (needed > storage->nbytes()) {
    auto larger = memory.allocate(needed);
    if (storage->nbytes()) std::memcpy(larger.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(larger));
    storage->set_nbytes(needed);
  }
  x.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return x;
}

void refuse_unless_here(const char* name, const at::Tensor& x) {
  TORCH_CHECK(!x.defined() || x.device().type() == KIND || x.dim() == 0,
              "Expected all tensors to be on the same device, but ", name, " got one of shape ",
              x.sizes(), " on ", x.device(), " and one on ", pretend());
}

bool is_here(const c10::IValue& value) {
  return value.isTensor() && value.toTensor().defined() &&
         value.toTensor().device().type() == KIND;
}

// A tensor of the device may be indexed by one of the CPU, as on CUDA, but not the reverse.
bool may_hold_host_indices(const c10::OperatorHandle& op, at::ArrayRef<c10::IValue> given) {
  return op.schema().name().find("index") != std::string::npos && is_here(given[0]);
}

void on_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& expected = op.schema().arguments();
  const char* name = op.schema().name().c_str();
  const auto given = torch::jit::last(*stack, expected.size());
  for (const auto& argument : expected) {
    TORCH_CHECK(argument.type()->str().find("Generator") == std::string::npos, name,
                " draws random numbers on ", pretend(), ": draw on the CPU and move them");
  }
  for (const auto& value : given) {
    if (value.isTensor()) refuse_unless_here(name, value.toTensor());
    if (value.isTensorList())
      for (const at::Tensor& x : value.toTensorVector()) refuse_unless_here(name, x);
    if (value.isOptionalTensorList() && !may_hold_host_indices(op, given))
      for (const auto& x : value.toOptionalTensorVector())
        if (x) refuse_unless_here(name, *x);
  }
  at::native::cpu_fallback(op, stack);
}

auto boxed() { return torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>(); }

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, all) { all.fallback(boxed()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, own) {
  own.impl("empty.memory_format", empty);
  own.impl("empty_strided", empty_strided);
  own.impl("_copy_from", copy_from);
  own.impl("_copy_from_and_resize", copy_from_and_resize);
  own.impl("resize_", resize_);
  // Views share memory, which a trip to the CPU would lose.
  own.impl("alias", at::native::alias);
  own.impl("as_strided", at::native::as_strided_tensorimpl);
  own.impl("_reshape_alias", at::native::_reshape_alias);
  own.impl("unfold", at::native::unfold);
  own.impl("view", at::native::view);
  own.impl("set_.source_Storage",
           static_cast<at::Tensor& (*)(at::Tensor&, at::Storage)>(at::native::set_));
  own.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  // Composites that would otherwise end in a kernel which no CPU has, or in other roundings.
  for (const char* name : {"convolution", "convolution_backward", "native_group_norm"})
    own.impl(name, boxed());
}
