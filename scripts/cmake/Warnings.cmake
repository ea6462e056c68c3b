# Warnings and sanitizers for our own targets; packages are SYSTEM and stay silent.
add_library(coppice_warnings INTERFACE)
target_compile_options(coppice_warnings INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 sees std::string and std::optional write where they do not (GCC bugs 105329, 105562).
  target_compile_options(coppice_warnings INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wno-array-bounds;-Wno-stringop-overflow;-Wno-maybe-uninitialized>)
endif()
target_include_directories(coppice_warnings INTERFACE ${CMAKE_SOURCE_DIR})
if(COPPICE_SANITIZE)
  list(JOIN COPPICE_SANITIZE "," sanitizers)
  target_compile_options(coppice_warnings INTERFACE -fsanitize=${sanitizers} -fno-omit-frame-pointer)
  target_link_options(coppice_warnings INTERFACE -fsanitize=${sanitizers})
endif()

# Adds library coppice_NAME with alias coppice::NAME: coppice_library(NAME HEADERS … SOURCES … LINKS …)
function(coppice_library name)
  cmake_parse_arguments(ARG "" "" "HEADERS;SOURCES;LINKS" ${ARGN})
  add_library(coppice_${name} STATIC ${ARG_SOURCES})
  target_sources(coppice_${name} PUBLIC FILE_SET HEADERS BASE_DIRS ${CMAKE_SOURCE_DIR} FILES ${ARG_HEADERS})
  target_link_libraries(coppice_${name} PUBLIC ${ARG_LINKS} PRIVATE coppice_warnings)
  target_include_directories(coppice_${name} PUBLIC ${CMAKE_SOURCE_DIR})
  # all_verify_interface_header_sets compiles every header alone.
  set_target_properties(coppice_${name} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
  add_library(coppice::${name} ALIAS coppice_${name})
endfunction()
