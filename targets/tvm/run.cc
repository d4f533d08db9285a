// Runs a library that `graphopt compile --target tvm` made, with TVM's runtime and nothing else.
//
//   run model.so float32:1,3,48,192:x.bin ...       raw inputs in order; outputs go to out0.bin, out1.bin, ...
//
// and a line with type and dims of each output to the standard output. Build (docs/tvm.md):
//
//   g++ -std=c++17 run.cc -I.../tvm_ffi/include -ltvm_ffi -ltvm_runtime
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

// Generated code loads whole vectors from the start of a buffer.
struct AlignedMemory {
  void AllocData(DLTensor* tensor) {
    size_t bytes = (ffi::GetDataSize(*tensor) + 63) / 64 * 64;
    tensor->data = std::aligned_alloc(64, bytes == 0 ? 64 : bytes);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

ffi::Tensor ReadInput(const std::string& spec) {
  std::istringstream fields(spec);
  std::string dtype, dims, path, dim;
  std::getline(fields, dtype, ':');
  std::getline(fields, dims, ':');
  std::getline(fields, path);
  std::vector<int64_t> shape;
  for (std::istringstream rest(dims); std::getline(rest, dim, ',');) shape.push_back(std::stoll(dim));
  ffi::Tensor tensor = ffi::Tensor::FromNDAlloc(AlignedMemory(), ffi::ShapeView(shape.data(), shape.size()),
                                                ffi::StringToDLDataType(dtype), DLDevice{kDLCPU, 0});
  std::ifstream file(path, std::ios::binary);
  size_t bytes = ffi::GetDataSize(tensor);
  if (!file.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(bytes))) {
    throw std::runtime_error(path + " is shorter than " + std::to_string(bytes) + " bytes");
  }
  return tensor;
}

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::cerr << "usage: run model.so dtype:dims:file ...\n";
    return 2;
  }
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
    std::ofstream file("out" + std::to_string(i) + ".bin", std::ios::binary);
    file.write(static_cast<const char*>(outputs[i].data_ptr()),
               static_cast<std::streamsize>(ffi::GetDataSize(outputs[i])));
    std::cout << ffi::DLDataTypeToString(outputs[i].dtype()) << ":";
    for (int axis = 0; axis < outputs[i].ndim(); ++axis) std::cout << (axis ? "," : "") << outputs[i].size(axis);
    std::cout << "\n";
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
