# Installs the headers, the libraries, and what find_package and pkg-config need. Nothing of it holds
# an absolute path, so that the prefix can be moved.
include(CMakePackageConfigHelpers)

set(plugalloc_config_dir "${CMAKE_INSTALL_LIBDIR}/cmake/plugalloc")
set(plugalloc_pc_dir "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

install(TARGETS plugalloc EXPORT plugalloc-targets
        LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
        ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}/cpp/include/plugalloc"
        DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h")
if(PLUGALLOC_STATIC)
  install(FILES "${plugalloc_archive}" DESTINATION "${CMAKE_INSTALL_LIBDIR}")
endif()
install(FILES LICENSE-MIT LICENSE-APACHE DESTINATION "${CMAKE_INSTALL_DATADIR}/licenses/plugalloc")

install(EXPORT plugalloc-targets NAMESPACE plugalloc:: DESTINATION "${plugalloc_config_dir}")
configure_package_config_file(
  cpp/cmake/plugalloc-config.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/plugalloc-config.cmake"
  INSTALL_DESTINATION "${plugalloc_config_dir}"
  PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
# Before 1.0 a minor version may change what is promised.
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/plugalloc-config-version.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/plugalloc-config.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/plugalloc-config-version.cmake"
        DESTINATION "${plugalloc_config_dir}")

# pkg-config knows where its own file lies; the prefix is so many folders above it.
file(RELATIVE_PATH plugalloc_pc_prefix "/prefix/${plugalloc_pc_dir}" "/prefix")
configure_file(cpp/cmake/plugalloc.pc.in "${CMAKE_CURRENT_BINARY_DIR}/plugalloc.pc" @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/plugalloc.pc" DESTINATION "${plugalloc_pc_dir}")
