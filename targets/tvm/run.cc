// Runs a library that `graphopt compile --target tvm` made, with TVM's runtime and nothing else.
//
//   run model.so float32:1,3,48,192:x.bin ...       raw inputs in order; outputs go to out0.bin, out1.bin, ...
//
// and a line with type and dims of each output to the standard output. What is wrong is one line and status 1 (2: no
// library was named). Build (docs/tvm.md):
//
//   g++ -std=c++17 run.cc -I.../tvm_ffi/include -ltvm_ffi -ltvm_runtime -ldl
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <dlfcn.h>
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

const char kForm[] = "an input is dtype:dims:file, as in float32:1,3:x.bin";

// Generated code loads whole vectors from the start of a buffer.
struct AlignedMemory {
  void AllocData(DLTensor* tensor) {
    size_t bytes = (ffi::GetDataSize(*tensor) + 63) / 64 * 64;
    tensor->data = std::aligned_alloc(64, bytes == 0 ? 64 : bytes);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

// Names of what code for an instruction set needs and this CPU lacks. Any CPU with these has the rest of its level.
std::string Lacking(const std::string& isa) {
  std::string lacking;
  auto want = [&lacking](bool has, const char* name) { lacking += has ? "" : std::string(" ") + name; };
#if defined(__x86_64__)
  __builtin_cpu_init();
  want(__builtin_cpu_supports("avx2"), "avx2");
  want(__builtin_cpu_supports("bmi2"), "bmi2");
  want(__builtin_cpu_supports("fma"), "fma");
  if (isa.rfind("avx512", 0) == 0) {
    want(__builtin_cpu_supports("avx512f"), "avx512f");
    want(__builtin_cpu_supports("avx512bw"), "avx512bw");
    want(__builtin_cpu_supports("avx512cd"), "avx512cd");
    want(__builtin_cpu_supports("avx512dq"), "avx512dq");
    want(__builtin_cpu_supports("avx512vl"), "avx512vl");
  }
  if (isa == "avx512vnni" || isa == "avx512vpopcntdq") want(__builtin_cpu_supports("avx512vnni"), "avx512vnni");
  if (isa == "avx512vpopcntdq") want(__builtin_cpu_supports("avx512vpopcntdq"), "avx512vpopcntdq");
#elif defined(__aarch64__)
  want(getauxval(AT_HWCAP) & HWCAP_ASIMD, "asimd");
  if (isa == "neondot") want(getauxval(AT_HWCAP) & HWCAP_ASIMDDP, "asimddp");
#endif
  return lacking;
}

// A library has a symbol that is named after the instruction set of its code.
void CheckCpu(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) return;  // TVM tells why
  for (std::string isa : {"avx2", "avx512", "avx512vnni", "avx512vpopcntdq", "neon", "neondot"}) {
    if (dlsym(library, ("graphopt_isa_" + isa).c_str()) == nullptr) continue;
    std::string lacking = Lacking(isa);
    if (!lacking.empty()) {
      throw std::runtime_error(path + " is made for " + isa + ", and this CPU lacks" + lacking +
                               "; compile the model for another isa");
    }
  }
  dlclose(library);
}

std::vector<int64_t> ReadDims(const std::string& dims, const std::string& spec) {
  std::vector<int64_t> shape;
  std::string dim;
  for (std::istringstream rest(dims + (dims.empty() ? "" : ",")); std::getline(rest, dim, ',');) {
    if (dim.empty() || dim.size() > 18 || dim.find_first_not_of("0123456789") != std::string::npos) {
      throw std::runtime_error(spec + ": '" + dim + "' is no size; " + kForm);
    }
    shape.push_back(std::stoll(dim));
  }
  return shape;
}

// Bytes of a tensor.
int64_t SizeOf(const std::vector<int64_t>& shape, DLDataType dtype, const std::string& spec) {
  int64_t size = dtype.bits * dtype.lanes;
  for (int64_t dim : shape) {
    if (__builtin_mul_overflow(size, dim, &size)) throw std::runtime_error(spec + ": these sizes are too large");
  }
  return size / 8 + (size % 8 != 0);
}

ffi::Tensor ReadInput(const std::string& spec) {
  std::istringstream fields(spec);
  std::string name, dims, path;
  std::getline(fields, name, ':');
  std::getline(fields, dims, ':');
  std::getline(fields, path);
  if (path.empty()) throw std::runtime_error(spec + ": " + kForm);
  std::vector<int64_t> shape = ReadDims(dims, spec);
  DLDataType dtype = ffi::StringToDLDataType(name);
  int64_t bytes = SizeOf(shape, dtype, spec);
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("cannot open " + path);
  int64_t there = file.tellg();
  if (there != bytes) {
    throw std::runtime_error(path + " has " + std::to_string(there) + " bytes, and " + name + ":" + dims + " has " +
                             std::to_string(bytes));
  }
  ffi::Tensor tensor = ffi::Tensor::FromNDAlloc(AlignedMemory(), ffi::ShapeView(shape.data(), shape.size()), dtype,
                                                DLDevice{kDLCPU, 0});
  file.seekg(0).read(static_cast<char*>(tensor.data_ptr()), bytes);
  if (!file) throw std::runtime_error("cannot read " + path);
  return tensor;
}

void WriteOutput(const ffi::Tensor& tensor, const std::string& path) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(tensor.data_ptr()), static_cast<std::streamsize>(ffi::GetDataSize(tensor)));
  file.close();
  if (!file) throw std::runtime_error("cannot write " + path + " into the current folder");
}

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::cerr << "usage: run model.so dtype:dims:file ...\n";
    return 2;
  }
  CheckCpu(argv[1]);
  ffi::Module library = ffi::Module::LoadFromFile(argv[1]);
  ffi::Module machine = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  const int pooled = 2;
  machine->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, pooled);

  std::vector<ffi::Tensor> inputs;
  for (int i = 2; i < argc; ++i) inputs.push_back(ReadInput(argv[i]));
  std::vector<ffi::AnyView> arguments(inputs.begin(), inputs.end());
  ffi::Any result;
  machine->GetFunction("main").value().CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);

  auto outputs = result.cast<ffi::Array<ffi::Tensor>>();
  for (size_t i = 0; i < outputs.size(); ++i) {
    WriteOutput(outputs[i], "out" + std::to_string(i) + ".bin");
    std::cout << ffi::DLDataTypeToString(outputs[i].dtype()) << ":";
    for (int axis = 0; axis < outputs[i].ndim(); ++axis) std::cout << (axis ? "," : "") << outputs[i].size(axis);
    std::cout << "\n";
  }
  if (!std::cout.flush()) throw std::runtime_error("cannot write to the standard output");
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
