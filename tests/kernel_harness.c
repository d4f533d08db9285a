/* Runs the function `main` of a library of TVM's without TVM's runtime: what generated code calls of it is below.
 *
 *   kernel_harness kernel.so f32:2,3:a.bin u8:3,4:b.bin f32:2,4:out.bin      the last is written; f, i or u, and bits
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

typedef struct {
  void* sync_handle;
  int32_t num_task;
} Group;
typedef int (*Task)(int id, Group* group, void* data);

int TVMBackendParallelLaunch(Task task, void* data, int count) {
  Group group = {NULL, count > 0 ? count : 3};
  for (int id = 0; id < group.num_task; ++id) {
    if (task(id, &group, data) != 0) return -1;
  }
  return 0;
}
void* TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int code, int bits) {
  void* memory = NULL;
  return posix_memalign(&memory, 64, bytes) == 0 ? memory : NULL;
}
int TVMBackendFreeWorkspace(int device, int id, void* memory) {
  free(memory);
  return 0;
}
void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) { fprintf(stderr, "%s: %s\n", kind, message); }
void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) fprintf(stderr, "%s", parts[i] ? parts[i] : "");
  fprintf(stderr, "\n");
}

/* Libraries have a pointer to each function of the runtime that they call, which the loader sets. */
static void set(void* library, const char* name, void* function) {
  void** pointer = dlsym(library, name);
  if (pointer != NULL) *pointer = function;
}

int main(int argc, char** argv) {
  void* library = dlopen(argv[1], RTLD_NOW);
  if (library == NULL) return fprintf(stderr, "%s\n", dlerror()), 1;
  set(library, "__TVMBackendParallelLaunch", (void*)TVMBackendParallelLaunch);
  set(library, "__TVMBackendAllocWorkspace", (void*)TVMBackendAllocWorkspace);
  set(library, "__TVMBackendFreeWorkspace", (void*)TVMBackendFreeWorkspace);
  TVMFFISafeCallType call = (TVMFFISafeCallType)dlsym(library, "__tvm_ffi_main");
  if (call == NULL) return fprintf(stderr, "no function main\n"), 1;
  static DLTensor tensors[8];
  static int64_t shapes[8][6];
  static TVMFFIAny arguments[8];
  int count = argc - 2;
  for (int i = 0; i < count; ++i) {
    char* kind = argv[i + 2];
    char* dims = strchr(kind, ':') + 1;
    char* path = strchr(dims, ':');
    *path++ = 0;
    int bits = atoi(kind + 1);
    size_t elements = 1, size = bits / 8;
    DLTensor* tensor = &tensors[i];
    for (char* dim = strtok(dims, ","); dim != NULL; dim = strtok(NULL, ",")) {
      elements *= shapes[i][tensor->ndim++] = atol(dim);
    }
    tensor->shape = shapes[i];
    tensor->dtype = (DLDataType){*kind == 'f' ? kDLFloat : *kind == 'u' ? kDLUInt : kDLInt, bits, 1};
    tensor->device = (DLDevice){kDLCPU, 0};
    if (posix_memalign(&tensor->data, 64, size * elements + 64) != 0) return 1;
    if (i + 1 < count) {
      FILE* file = fopen(path, "rb");
      if (file == NULL || fread(tensor->data, size, elements, file) != elements) return fprintf(stderr, "%s\n", path), 1;
      fclose(file);
    }
    arguments[i].type_index = kTVMFFIDLTensorPtr;
    arguments[i].v_ptr = tensor;
    if (i + 1 == count) {
      TVMFFIAny result = {0};
      if (call(NULL, arguments, count, &result) != 0) return 1;
      FILE* file = fopen(path, "wb");
      fwrite(tensor->data, size, elements, file);
      fclose(file);
    }
  }
  return 0;
}
