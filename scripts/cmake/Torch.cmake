# libtorch out of the Python package: target coppice_torch. (find_package(Torch) probes GPUs with CUDA20
# and fails where the toolkit is present.) COPPICE_WITH_CUDA says whether .cu files are compiled.
set(COPPICE_PYTHON ${CMAKE_SOURCE_DIR}/.venv/bin/python CACHE FILEPATH "Python with torch, tokenizers and h5py")
if(NOT EXISTS ${COPPICE_PYTHON})
  message(FATAL_ERROR "no Python environment at ${COPPICE_PYTHON}: run scripts/setup.sh, or set COPPICE_PYTHON")
endif()
execute_process(
  COMMAND ${COPPICE_PYTHON} -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
  OUTPUT_VARIABLE torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)

include(CheckLanguage)
set(COPPICE_WITH_CUDA OFF)
if(COPPICE_CUDA STREQUAL "AUTO" OR COPPICE_CUDA)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER AND EXISTS ${torch_dir}/lib/libtorch_cuda.so)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)  # and newer ones by the driver's compiler
    endif()
    set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)  # torch's: a second one would not see its devices' state
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    set(COPPICE_WITH_CUDA ON)
  elseif(NOT COPPICE_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "COPPICE_CUDA=${COPPICE_CUDA}, but there is no nvcc or torch has no CUDA libraries")
  endif()
endif()
message(STATUS "CUDA side: ${COPPICE_WITH_CUDA}")

add_library(coppice_torch INTERFACE)
# -idirafter: the wheel bundles an fmt of its own, which must not shadow the system's.
target_compile_options(coppice_torch INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter ${torch_dir}/include -idirafter ${torch_dir}/include/torch/csrc/api/include>")
target_include_directories(coppice_torch SYSTEM INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:${torch_dir}/include;${torch_dir}/include/torch/csrc/api/include>")
target_link_libraries(coppice_torch INTERFACE ${torch_dir}/lib/libc10.so ${torch_dir}/lib/libtorch_cpu.so)
target_link_options(coppice_torch INTERFACE -fopenmp -Wl,-rpath,${torch_dir}/lib)
# -fopenmp: at::parallel_for is a template over OpenMP and must use the team that torch uses.
target_compile_options(coppice_torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
if(COPPICE_WITH_CUDA)
  target_compile_definitions(coppice_torch INTERFACE COPPICE_WITH_CUDA=1)
  target_include_directories(coppice_torch SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(coppice_torch INTERFACE ${torch_dir}/lib/libc10_cuda.so)
  # 235 MiB of resident memory and half a second, whether there is a GPU or not: the program loads it
  # where there is one (pipeline/device/cuda_device.cpp), tests that run on every device link it.
  add_library(coppice_torch_cuda INTERFACE)
  target_link_libraries(coppice_torch_cuda INTERFACE
    -Wl,--no-as-needed ${torch_dir}/lib/libtorch_cuda.so -Wl,--as-needed)
endif()
