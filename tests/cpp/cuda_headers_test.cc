// The headers live together with CUDA's own, which declare a stream like this.
struct CUstream_st;
typedef struct CUstream_st* cudaStream_t;
enum cudaError { cudaSuccess = 0 };
typedef enum cudaError cudaError_t;

#include <doctest/doctest.h>
#include <plugalloc/plugalloc.h>

#include <type_traits>

static_assert(std::is_same<::cudaStream_t, CUstream_st*>::value, "one type");
static_assert(std::is_abstract<plugalloc::CUDAAllocator>::value, "an interface");
static_assert(std::is_nothrow_move_constructible<plugalloc::DataPtr>::value, "moves freely");
static_assert(!std::is_copy_constructible<plugalloc::DataPtr>::value, "owns alone");
static_assert(std::is_base_of<std::runtime_error, plugalloc::OutOfMemoryError>::value, "typed");

TEST_CASE("VersionIsKnown") {
  CHECK(std::string(plugalloc::version()).find('.') != std::string::npos);
}
