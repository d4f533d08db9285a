// Stands in for a GPU and TVM's runtime for CUDA: runs kernels that were compiled for this machine's CPU (kernels.h).
//
// Device memory is this process's; the threads of a block are fibers, which switch where they wait for each other.
// GRAPHOPT_EMULATION_ORDER=reverse runs them in the opposite order: code whose result depends on it has a race.
#include <tvm/ffi/cast.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <dlfcn.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

struct Dim3 {
  int x, y, z;
};
using Kernel = void (*)(const int64_t*);

extern "C" {
Dim3 graphopt_thread, graphopt_block, graphopt_grid_size, graphopt_block_size;
}

namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = 128 << 10;
constexpr int kLargest = 16;

struct Barrier {
  int size = 0, arrived = 0;
  unsigned round = 0;
};

// A place in a computation: left by Switch(from, to), which goes on with `to`.
#if defined(__x86_64__)
struct Place {
  void* stack = nullptr;
};
// Saves what a function has to keep on the stack; without the system calls of swapcontext.
asm(R"(
.text
.local graphopt_switch
graphopt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
extern "C" void graphopt_switch(Place* from, const Place* to);
void Switch(Place* from, const Place* to) { graphopt_switch(from, to); }
void Start(Place* place, char* stack, size_t size, void (*enter)()) {
  void** top = reinterpret_cast<void**>(stack + size / 16 * 16) - 2;
  *top = reinterpret_cast<void*>(enter);  // what Switch returns to, below six registers
  place->stack = top - 6;
}
#else
struct Place {
  ucontext_t context;
};
void Switch(Place* from, const Place* to) { swapcontext(&from->context, &to->context); }
void Start(Place* place, char* stack, size_t size, void (*enter)()) {
  getcontext(&place->context);
  place->context.uc_stack.ss_sp = stack;
  place->context.uc_stack.ss_size = size;
  place->context.uc_link = nullptr;
  makecontext(&place->context, enter, 0);
}
#endif

struct Fiber {
  Place place;
  std::unique_ptr<char[]> stack;
  Dim3 thread;
  bool done;
  unsigned char value[kLargest];
};

struct Block {
  Place scheduler;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Barrier> warps;
  Barrier all;
  int current = 0;
  bool moved = false;
  Kernel kernel = nullptr;
  const int64_t* arguments = nullptr;
} block;

void Enter() {
  block.kernel(block.arguments);
  Fiber& fiber = *block.fibers[block.current];
  fiber.done = true;
  block.moved = true;
  Switch(&fiber.place, &block.scheduler);
}

void Yield() { Switch(&block.fibers[block.current]->place, &block.scheduler); }

void Wait(Barrier* barrier) {
  unsigned round = barrier->round;
  block.moved = true;
  if (++barrier->arrived == barrier->size) {
    barrier->arrived = 0;
    ++barrier->round;
    return;
  }
  while (barrier->round == round) Yield();
}

Dim3 Thread(int index) {
  const Dim3 size = graphopt_block_size;
  return {index % size.x, index / size.x % size.y, index / size.x / size.y};
}

bool Reverse() {
  static const char* order = std::getenv("GRAPHOPT_EMULATION_ORDER");
  return order != nullptr && std::strcmp(order, "reverse") == 0;
}

// Threads that never wait for each other, one after the other.
void RunApart(int threads) {
  for (int i = 0; i < threads; ++i) {
    graphopt_thread = Thread(Reverse() ? threads - 1 - i : i);
    block.kernel(block.arguments);
  }
}

// Runs one block; false when its threads wait for each other at different places.
bool RunTogether(int threads) {
  block.all = Barrier{threads};
  block.warps.assign((threads + kWarp - 1) / kWarp, Barrier{kWarp});
  if (threads % kWarp) block.warps.back().size = threads % kWarp;
  while (block.fibers.size() < static_cast<size_t>(threads)) {
    block.fibers.push_back(std::make_unique<Fiber>());
    block.fibers.back()->stack.reset(new char[kStack]);
  }
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = *block.fibers[i];
    fiber.done = false;
    fiber.thread = Thread(i);
    Start(&fiber.place, fiber.stack.get(), kStack, Enter);
  }
  for (int left = threads; left > 0;) {
    block.moved = false;
    for (int i = 0; i < threads; ++i) {
      const int index = Reverse() ? threads - 1 - i : i;
      Fiber& fiber = *block.fibers[index];
      if (fiber.done) continue;
      block.current = index;
      graphopt_thread = fiber.thread;
      Switch(&block.scheduler, &fiber.place);
      left -= fiber.done;
    }
    if (!block.moved) return false;
  }
  return true;
}

void Launch(const std::string& name, Kernel kernel, bool apart, const int64_t* arguments, Dim3 grid, Dim3 size) {
  const int threads = size.x * size.y * size.z;
  graphopt_grid_size = grid;
  graphopt_block_size = size;
  block.kernel = kernel;
  block.arguments = arguments;
  for (graphopt_block.z = 0; graphopt_block.z < grid.z; ++graphopt_block.z) {
    for (graphopt_block.y = 0; graphopt_block.y < grid.y; ++graphopt_block.y) {
      for (graphopt_block.x = 0; graphopt_block.x < grid.x; ++graphopt_block.x) {
        if (apart) {
          RunApart(threads);
        } else if (!RunTogether(threads)) {
          TVM_FFI_THROW(RuntimeError) << "threads of kernel " << name << " wait for each other at different places";
        }
      }
    }
  }
}

class HostAsDevice final : public tvm::runtime::DeviceAPI {
 public:
  void SetDevice(DLDevice) final {}
  void GetAttr(DLDevice, tvm::runtime::DeviceAttrKind kind, ffi::Any* result) final {
    if (kind == tvm::runtime::kExist) *result = 1;
  }
  void* AllocDataSpace(DLDevice, size_t bytes, size_t alignment, DLDataType) final {
    const size_t step = alignment < 256 ? 256 : alignment;
    void* memory = std::aligned_alloc(step, (bytes + step) / step * step);
    std::memset(memory, 0xff, bytes);  // NaN: what is read must have been written
    return memory;
  }
  void FreeDataSpace(DLDevice, void* memory) final { std::free(memory); }
  void* AllocWorkspace(DLDevice device, size_t bytes, DLDataType type) final {
    return AllocDataSpace(device, bytes, 256, type);
  }
  void FreeWorkspace(DLDevice, void* memory) final { std::free(memory); }
  void StreamSync(DLDevice, TVMStreamHandle) final {}

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes, DLDevice, DLDevice,
                      DLDataType, TVMStreamHandle) final {
    std::memcpy(static_cast<char*>(to) + to_offset, static_cast<const char*>(from) + from_offset, bytes);
  }
};

class Reader {
 public:
  explicit Reader(const ffi::Bytes& bytes) : data_(bytes.data()) {}
  uint64_t Number() {
    uint64_t value;
    std::memcpy(&value, data_ + at_, 8);
    at_ += 8;
    return value;
  }
  std::string Text() {
    const uint64_t size = Number();
    at_ += size;
    return std::string(data_ + at_ - size, size);
  }
  void Skip(uint64_t bytes) { at_ += bytes; }

 private:
  const char* data_;
  uint64_t at_ = 0;
};

struct Signature {
  size_t arguments;
  std::vector<std::string> tags;
};

// The library with the kernels of the module that is loaded next.
std::string& Library() {
  static std::string path;
  return path;
}

class Emulated final : public ffi::ModuleObj {
 public:
  explicit Emulated(const ffi::Bytes& bytes) {
    Reader reader(bytes);
    reader.Text();
    for (uint64_t left = reader.Number(); left > 0; --left) {
      const std::string name = reader.Text();
      reader.Text();
      Signature& signature = signatures_[name];
      signature.arguments = reader.Number();
      reader.Skip(4 * signature.arguments);
      for (uint64_t tags = reader.Number(); tags > 0; --tags) signature.tags.push_back(reader.Text());
      reader.Skip(4 * reader.Number());
    }
    library_ = dlopen(Library().c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library_ == nullptr) TVM_FFI_THROW(RuntimeError) << "cannot load emulated kernels: " << dlerror();
  }
  const char* kind() const final { return "cuda"; }
  int GetPropertyMask() const final { return ffi::Module::kRunnable; }
  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    const auto found = signatures_.find(name);
    if (found == signatures_.end()) return std::nullopt;
    const auto kernel = reinterpret_cast<Kernel>(dlsym(library_, ("graphopt_run_" + std::string(name)).c_str()));
    if (kernel == nullptr) TVM_FFI_THROW(RuntimeError) << "there is no emulated kernel " << name;
    const ffi::Module self = ffi::GetRef<ffi::Module>(this);
    const Signature& signature = found->second;
    const bool apart = dlsym(library_, ("graphopt_apart_" + std::string(name)).c_str()) != nullptr;
    return ffi::Function::FromPacked([self, &signature, kernel, apart, name](ffi::PackedArgs args, ffi::Any*) {
      std::vector<int64_t> raw;
      const auto* values = reinterpret_cast<const TVMFFIAny*>(args.data());
      for (size_t i = 0; i < signature.arguments; ++i) raw.push_back(values[i].v_int64);
      Dim3 grid{1, 1, 1}, size{1, 1, 1};
      for (size_t i = 0; i < signature.tags.size(); ++i) {
        const std::string& tag = signature.tags[i];
        Dim3* which = tag.rfind("blockIdx.", 0) == 0 ? &grid : tag.rfind("threadIdx.", 0) == 0 ? &size : nullptr;
        if (tag == "tirx.use_dyn_shared_memory") continue;  // all that a block may have is there (__init__.py)
        if (which == nullptr) TVM_FFI_THROW(RuntimeError) << "kernel " << name << " is launched with " << tag;
        const int extent = static_cast<int>(values[signature.arguments + i].v_int64);
        (tag.back() == 'x' ? which->x : tag.back() == 'y' ? which->y : which->z) = extent;
      }
      Launch(name, kernel, apart, raw.data(), grid, size);
    });
  }

 private:
  std::map<std::string, Signature> signatures_;
  void* library_ = nullptr;
};

TVM_FFI_STATIC_INIT_BLOCK() {
  static HostAsDevice device;
  ffi::reflection::GlobalDef()
      .def("device_api.cuda", []() -> void* { return static_cast<tvm::runtime::DeviceAPI*>(&device); })
      .def("graphopt.emulation.kernels", [](ffi::String path) { Library() = path; })
      .def("ffi.Module.load_from_bytes.cuda",
           [](ffi::Bytes bytes) { return ffi::Module(ffi::make_object<Emulated>(bytes)); });
}

}  // namespace

extern "C" {

void graphopt_syncthreads() { Wait(&block.all); }

int graphopt_lane() { return block.current % kWarp; }

void graphopt_exchange(const void* value, void* result, int size, int source) {
  const int start = block.current / kWarp * kWarp;
  Barrier* warp = &block.warps[block.current / kWarp];
  std::memcpy(block.fibers[block.current]->value, value, size);
  Wait(warp);
  const size_t from = start + source;
  const bool there = from < block.fibers.size() && source < warp->size;
  std::memcpy(result, block.fibers[there ? from : block.current]->value, size);
  Wait(warp);
}
}
