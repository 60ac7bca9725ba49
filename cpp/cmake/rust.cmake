# The one call of cargo. Gives `plugalloc_archive`, the static library with all Rust and C++ code, and
# the target `plugalloc_cargo` that makes it.
#
# Cargo compiles the C++ files with the compiler, the flags (CMAKE_CXX_FLAGS) and the sysroot of this
# build. CMAKE_BUILD_TYPE and its flags are not passed: the library is optimised in every build.

find_program(PLUGALLOC_CARGO cargo HINTS "$ENV{CARGO_HOME}/bin" "$ENV{HOME}/.cargo/bin")
if(NOT PLUGALLOC_CARGO OR NOT EXISTS "${PLUGALLOC_CARGO}")
  message(FATAL_ERROR "plugalloc is built with cargo, and there is none (PLUGALLOC_CARGO is "
                      "'${PLUGALLOC_CARGO}'): install Rust 1.88 or later, or set PLUGALLOC_CARGO to "
                      "the path of a cargo")
endif()
set(PLUGALLOC_RUST_TARGET "" CACHE STRING
    "The Rust target to build for, such as aarch64-unknown-linux-gnu; empty: the machine that builds")

if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
  message(FATAL_ERROR "plugalloc can be built for Linux alone, and this build is for "
                      "${CMAKE_SYSTEM_NAME}")
endif()
if(CMAKE_CROSSCOMPILING AND NOT PLUGALLOC_RUST_TARGET)
  message(FATAL_ERROR "This is a cross build (for ${CMAKE_SYSTEM_PROCESSOR}), and cargo has to be told "
                      "so: set PLUGALLOC_RUST_TARGET to the Rust target, such as "
                      "${CMAKE_SYSTEM_PROCESSOR}-unknown-linux-gnu, and add its standard library with "
                      "`rustup target add`")
endif()

set(plugalloc_cxx_flags "${CMAKE_CXX_FLAGS}")
if(CMAKE_CXX_COMPILER_TARGET AND CMAKE_CXX_COMPILE_OPTIONS_TARGET)
  string(APPEND plugalloc_cxx_flags
         " ${CMAKE_CXX_COMPILE_OPTIONS_TARGET}${CMAKE_CXX_COMPILER_TARGET}")
endif()
if(CMAKE_SYSROOT)
  string(APPEND plugalloc_cxx_flags " \"--sysroot=${CMAKE_SYSROOT}\"")
endif()
string(STRIP "${plugalloc_cxx_flags}" plugalloc_cxx_flags)

# What is for the target is named after it, so that programs of the build itself, which run on this
# machine, are not compiled so.
set(plugalloc_env_suffix "")
set(plugalloc_cargo_target "")
set(plugalloc_cargo_output "${PLUGALLOC_CARGO_TARGET_DIR}/release")
if(PLUGALLOC_RUST_TARGET)
  string(REPLACE "-" "_" plugalloc_env_suffix "_${PLUGALLOC_RUST_TARGET}")
  set(plugalloc_cargo_target --target "${PLUGALLOC_RUST_TARGET}")
  set(plugalloc_cargo_output "${PLUGALLOC_CARGO_TARGET_DIR}/${PLUGALLOC_RUST_TARGET}/release")
endif()
# The flags were read from the environment when this build was configured; what is in it later counts
# no more.
set(plugalloc_cargo_env --unset=CXXFLAGS "CARGO_TARGET_DIR=${PLUGALLOC_CARGO_TARGET_DIR}"
    "CXX${plugalloc_env_suffix}=${CMAKE_CXX_COMPILER}")
if(plugalloc_cxx_flags)
  list(APPEND plugalloc_cargo_env CC_SHELL_ESCAPED_FLAGS=1
       "CXXFLAGS${plugalloc_env_suffix}=${plugalloc_cxx_flags}")
endif()
if(PLUGALLOC_RUST_TARGET AND CMAKE_AR)
  list(APPEND plugalloc_cargo_env "AR${plugalloc_env_suffix}=${CMAKE_AR}")
endif()

file(GLOB_RECURSE plugalloc_sources CONFIGURE_DEPENDS
     "${CMAKE_CURRENT_SOURCE_DIR}/src/*.rs"
     "${CMAKE_CURRENT_SOURCE_DIR}/cpp/src/*"
     "${CMAKE_CURRENT_SOURCE_DIR}/cpp/include/*.h")
list(APPEND plugalloc_sources
     "${CMAKE_CURRENT_SOURCE_DIR}/Cargo.toml"
     "${CMAKE_CURRENT_SOURCE_DIR}/Cargo.lock"
     "${CMAKE_CURRENT_SOURCE_DIR}/build.rs")

set(plugalloc_archive "${CMAKE_CURRENT_BINARY_DIR}/libplugalloc.a")
# Changed flags or another compiler make the archive anew.
set(plugalloc_flags_file "${CMAKE_CURRENT_BINARY_DIR}/plugalloc_cargo_env.txt")
file(CONFIGURE OUTPUT "${plugalloc_flags_file}" CONTENT "${plugalloc_cargo_env}\n" @ONLY)
add_custom_command(
  OUTPUT "${plugalloc_archive}"
  COMMAND "${CMAKE_COMMAND}" -E env ${plugalloc_cargo_env}
          "${PLUGALLOC_CARGO}" build --release --locked --lib ${plugalloc_cargo_target}
          --manifest-path "${CMAKE_CURRENT_SOURCE_DIR}/Cargo.toml"
  COMMAND "${CMAKE_COMMAND}" -E copy "${plugalloc_cargo_output}/libplugalloc.a"
          "${plugalloc_archive}"
  DEPENDS ${plugalloc_sources} "${plugalloc_flags_file}"
  WORKING_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}"
  COMMENT "Building plugalloc with cargo"
  VERBATIM)
add_custom_target(plugalloc_cargo DEPENDS "${plugalloc_archive}")
