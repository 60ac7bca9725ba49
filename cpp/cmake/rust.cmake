# The one call of cargo. Gives `plugalloc_archive`, the static library with all Rust and C++ code, and
# the target `plugalloc_cargo` that makes it.

find_program(PLUGALLOC_CARGO cargo HINTS "$ENV{CARGO_HOME}/bin" "$ENV{HOME}/.cargo/bin" REQUIRED)

file(GLOB_RECURSE plugalloc_sources CONFIGURE_DEPENDS
     "${CMAKE_CURRENT_SOURCE_DIR}/src/*.rs"
     "${CMAKE_CURRENT_SOURCE_DIR}/cpp/src/*"
     "${CMAKE_CURRENT_SOURCE_DIR}/cpp/include/*.h")
list(APPEND plugalloc_sources
     "${CMAKE_CURRENT_SOURCE_DIR}/Cargo.toml"
     "${CMAKE_CURRENT_SOURCE_DIR}/Cargo.lock"
     "${CMAKE_CURRENT_SOURCE_DIR}/build.rs")

set(plugalloc_archive "${CMAKE_CURRENT_BINARY_DIR}/libplugalloc.a")
add_custom_command(
  OUTPUT "${plugalloc_archive}"
  COMMAND "${CMAKE_COMMAND}" -E env "CXX=${CMAKE_CXX_COMPILER}"
          "CARGO_TARGET_DIR=${PLUGALLOC_CARGO_TARGET_DIR}"
          "${PLUGALLOC_CARGO}" build --release --locked --lib
          --manifest-path "${CMAKE_CURRENT_SOURCE_DIR}/Cargo.toml"
  COMMAND "${CMAKE_COMMAND}" -E copy "${PLUGALLOC_CARGO_TARGET_DIR}/release/libplugalloc.a"
          "${plugalloc_archive}"
  DEPENDS ${plugalloc_sources}
  WORKING_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}"
  COMMENT "Building plugalloc with cargo"
  VERBATIM)
add_custom_target(plugalloc_cargo DEPENDS "${plugalloc_archive}")
