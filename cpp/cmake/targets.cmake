# The libraries: plugalloc::plugalloc, shared, and on request plugalloc::plugalloc_static.

set(plugalloc_exports "${CMAKE_CURRENT_SOURCE_DIR}/cpp/cmake/exports.map")

# A library needs a source file of its own; what it holds comes from cargo's archive, whole.
set(plugalloc_anchor "${CMAKE_CURRENT_BINARY_DIR}/plugalloc_anchor.cc")
file(CONFIGURE OUTPUT "${plugalloc_anchor}" CONTENT "// Everything is in the archive.\n")

if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(plugalloc_so_version "0.${PROJECT_VERSION_MINOR}")
else()
  set(plugalloc_so_version "${PROJECT_VERSION_MAJOR}")
endif()

add_library(plugalloc SHARED "${plugalloc_anchor}")
add_library(plugalloc::plugalloc ALIAS plugalloc)
add_dependencies(plugalloc plugalloc_cargo)
set_target_properties(plugalloc PROPERTIES
  VERSION "${PROJECT_VERSION}"
  # As find_package has it: before 1.0 a minor version may change what is promised.
  SOVERSION "${plugalloc_so_version}"
  CXX_VISIBILITY_PRESET hidden
  LINK_DEPENDS "${plugalloc_archive};${plugalloc_exports}")
target_compile_features(plugalloc PUBLIC cxx_std_17)
target_include_directories(plugalloc PUBLIC
  "$<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/cpp/include>"
  "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
target_link_options(plugalloc PRIVATE
  "LINKER:--version-script=${plugalloc_exports}"
  "LINKER:--gc-sections"
  "LINKER:-Bsymbolic-functions"
  "LINKER:--no-undefined")
target_link_libraries(plugalloc PRIVATE
  "-Wl,--whole-archive" "${plugalloc_archive}" "-Wl,--no-whole-archive"
  Threads::Threads ${CMAKE_DL_LIBS} m gcc_s)

if(PLUGALLOC_STATIC)
  add_library(plugalloc_static STATIC IMPORTED GLOBAL)
  add_library(plugalloc::plugalloc_static ALIAS plugalloc_static)
  add_dependencies(plugalloc_static plugalloc_cargo)
  set_target_properties(plugalloc_static PROPERTIES IMPORTED_LOCATION "${plugalloc_archive}")
  target_compile_features(plugalloc_static INTERFACE cxx_std_17)
  target_include_directories(plugalloc_static INTERFACE
    "${CMAKE_CURRENT_SOURCE_DIR}/cpp/include")
  target_link_libraries(plugalloc_static INTERFACE
    Threads::Threads ${CMAKE_DL_LIBS} m gcc_s)
endif()
