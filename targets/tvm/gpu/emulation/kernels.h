// CUDA C++ as this machine's compiler takes it: what TVM's kernels use of the language. Included before their source.
#pragma once
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block runs at a time, so what its threads share is shared by all.
#define __shared__ static
// `static alignas(64)` is no C++.
#define alignas(bytes) __attribute__((aligned(bytes)))

struct Dim3 {
  int x, y, z;
};
extern "C" {
extern Dim3 graphopt_thread, graphopt_block, graphopt_grid_size, graphopt_block_size;
void graphopt_syncthreads();
// Every thread of a warp hands in a value of `size` bytes and gets that of the lane `source` of its warp.
void graphopt_exchange(const void* value, void* result, int size, int source);
int graphopt_lane();
}
#define threadIdx graphopt_thread
#define blockIdx graphopt_block
#define gridDim graphopt_grid_size
#define blockDim graphopt_block_size

inline void __syncthreads() { graphopt_syncthreads(); }
inline unsigned __activemask() { return 0xffffffffu; }
template <typename T>
T graphopt_shuffle(T value, int source) {
  T result;
  graphopt_exchange(&value, &result, sizeof(T), source);
  return result;
}
// Lanes outside of the width, or of the warp, get their own value.
template <typename T>
T __shfl_down_sync(unsigned, T value, int delta, int width = 32) {
  int lane = graphopt_lane();
  return graphopt_shuffle(value, lane % width + delta < width ? lane + delta : lane);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int delta, int width = 32) {
  int lane = graphopt_lane();
  return graphopt_shuffle(value, lane % width - delta >= 0 ? lane - delta : lane);
}
template <typename T>
T __shfl_sync(unsigned, T value, int source, int width = 32) {
  int lane = graphopt_lane();
  return graphopt_shuffle(value, lane / width * width + source % width);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return graphopt_shuffle(value, graphopt_lane() ^ mask);
}

template <typename T>
struct alignas(sizeof(T) * 2) Vector2 {
  T x, y;
};
template <typename T>
struct Vector3 {
  T x, y, z;
};
template <typename T>
struct alignas(sizeof(T) * 4 > 16 ? 16 : sizeof(T) * 4) Vector4 {
  T x, y, z, w;
};
#define GRAPHOPT_VECTORS(T, name)                                                             \
  using name##2 = Vector2<T>;                                                                 \
  using name##3 = Vector3<T>;                                                                 \
  using name##4 = Vector4<T>;                                                                 \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                  \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                          \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
GRAPHOPT_VECTORS(float, float)
GRAPHOPT_VECTORS(double, double)
GRAPHOPT_VECTORS(signed char, char)
GRAPHOPT_VECTORS(unsigned char, uchar)
GRAPHOPT_VECTORS(short, short)
GRAPHOPT_VECTORS(unsigned short, ushort)
GRAPHOPT_VECTORS(int, int)
GRAPHOPT_VECTORS(unsigned int, uint)
GRAPHOPT_VECTORS(long long, longlong)
GRAPHOPT_VECTORS(unsigned long long, ulonglong)
GRAPHOPT_VECTORS(long, long)
GRAPHOPT_VECTORS(unsigned long, ulong)

// CUDA's max and min of floats leave a NaN out.
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
template <typename A, typename B>
std::enable_if_t<std::is_integral_v<A> && std::is_integral_v<B>, std::common_type_t<A, B>> max(A a, B b) {
  return std::common_type_t<A, B>(a) > std::common_type_t<A, B>(b) ? a : b;
}
template <typename A, typename B>
std::enable_if_t<std::is_integral_v<A> && std::is_integral_v<B>, std::common_type_t<A, B>> min(A a, B b) {
  return std::common_type_t<A, B>(a) < std::common_type_t<A, B>(b) ? a : b;
}
// Half precision, rounded after each operation.
using half = _Float16;
using __half = half;
GRAPHOPT_VECTORS(half, half_)  // half4 is the kernels' own
using half2 = half_2;
using __half2 = half_2;
inline half2 make_half2(half x, half y) { return {x, y}; }
inline half __float2half(float x) { return half(x); }
inline half __float2half_rn(float x) { return half(x); }
inline float __half2float(half x) { return float(x); }
inline half __hmax(half a, half b) { return half(fmaxf(a, b)); }
inline half __hmin(half a, half b) { return half(fminf(a, b)); }
inline bool __hgt(half a, half b) { return a > b; }
inline bool __hlt(half a, half b) { return a < b; }
inline half __habs(half x) { return half(fabsf(x)); }
inline half __hneg(half x) { return -x; }
inline half hpow(half x, half y) { return half(powf(x, y)); }
#define GRAPHOPT_HALF(name, wide) \
  inline half name(half x) { return half(wide(float(x))); }
GRAPHOPT_HALF(hexp, expf)
GRAPHOPT_HALF(hexp2, exp2f)
GRAPHOPT_HALF(hexp10, exp10f)
GRAPHOPT_HALF(hlog, logf)
GRAPHOPT_HALF(hlog2, log2f)
GRAPHOPT_HALF(hlog10, log10f)
GRAPHOPT_HALF(hsqrt, sqrtf)
GRAPHOPT_HALF(hrsqrt, 1.0f / sqrtf)
GRAPHOPT_HALF(hsin, sinf)
GRAPHOPT_HALF(hcos, cosf)
GRAPHOPT_HALF(htan, tanf)
GRAPHOPT_HALF(htanh, tanhf)
GRAPHOPT_HALF(hatan, atanf)
GRAPHOPT_HALF(herf, erff)
GRAPHOPT_HALF(hfloor, floorf)
GRAPHOPT_HALF(hceil, ceilf)
GRAPHOPT_HALF(htrunc, truncf)
GRAPHOPT_HALF(hrint, rintf)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define CUDART_INF_F __builtin_inff()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_INF __builtin_inf()
#define CUDART_NAN __builtin_nan("")
#define CUDART_INF_FP16 half(__builtin_inff())
#define CUDART_NAN_FP16 half(__builtin_nanf(""))
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <typename T>
T __ldg(const T* at) {
  return *at;
}

// Warp matrix functions: every lane holds the whole matrix and computes all of it.
namespace nvcuda {
namespace wmma {
struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };
template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? K : M, cols = std::is_same_v<Use, matrix_a> ? K : N;
  T at[rows][cols];
};
template <typename Use, int M, int N, int K, typename T, typename Layout>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const T* from, unsigned stride) {
  for (int i = 0; i < f.rows; ++i)
    for (int j = 0; j < f.cols; ++j)
      f.at[i][j] = std::is_same_v<Layout, col_major> ? from[j * stride + i] : from[i * stride + j];
}
template <int M, int N, int K, typename T>
void fill_fragment(fragment<accumulator, M, N, K, T>& f, T value) {
  for (auto& row : f.at)
    for (T& element : row) element = value;
}
template <int M, int N, int K, typename T, typename A, typename B, typename S>
void mma_sync(fragment<accumulator, M, N, K, S>& d, const fragment<matrix_a, M, N, K, T, A>& a,
              const fragment<matrix_b, M, N, K, T, B>& b, const fragment<accumulator, M, N, K, S>& c) {
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) {
      S sum = c.at[i][j];
      for (int k = 0; k < K; ++k) sum += S(a.at[i][k]) * S(b.at[k][j]);
      d.at[i][j] = sum;
    }
}
template <int M, int N, int K, typename T>
void store_matrix_sync(T* to, const fragment<accumulator, M, N, K, T>& f, unsigned stride, layout_t layout) {
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) (layout == mem_row_major ? to[i * stride + j] : to[j * stride + i]) = f.at[i][j];
}
}  // namespace wmma
}  // namespace nvcuda
